"""The numbers of one run's sections, as lists of rows: by layer, shift, depth, units, linkage, parameters."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from covshift.analysis import rows
from covshift.reporting.results import Results, windowed

STABILITY_NUMBERS = (
    "location_drift",
    "location_low",
    "location_high",
    "scale_drift",
    "scale_low",
    "scale_high",
    "active_mass",
    "records",
)
UNIT_STATES = ("dead", "silent", "rare", "alive")
LINKAGE_RATES = ("structural_rate", "zero_atom_rate", "gradient_zero_rate", "other_rate")
MEMBER_COUNTS = ("linked_units", "one_member_silent", "all_members_silent")
DEPTH_NUMBERS = ("slope", "slope_low", "slope_high", "total_decades", "n_layers", "vanished", "step")


def number(value: Any) -> float | int | None:
    """``value`` as a JSON number; None where it is missing, NaN or infinite."""
    plain = value.item() if hasattr(value, "item") else value
    if isinstance(plain, bool | np.bool_):
        return int(plain)
    return plain if isinstance(plain, int) or (isinstance(plain, float) and math.isfinite(plain)) else None


def layers(result: Results) -> list[dict[str, Any]]:
    """One row a layer in the order of the recording: medians over the last window of the run."""
    described = rows.group(result.recording, "layers")
    kinds, names = rows.names(described, "module_type").tolist(), rows.names(described).tolist()
    columns = {str(measure): values.values.tolist() for measure, values in result.measures.items()}
    return [
        {"layer": layer, "type": kind} | {measure: number(column[row]) for measure, column in columns.items()}
        for row, (layer, kind) in enumerate(zip(names, kinds, strict=True))
    ]


def shift(result: Results) -> list[dict[str, Any]]:
    """One row a layer that was compared, the one that moved most first; records too far off centre do not count."""
    if result.shift is None:
        return []
    distances = result.shift[["w1", "noise_floor"]]
    resolved = distances.where(~result.shift["off_centre"]).transpose("step", "layer")
    w1, floor = resolved["w1"].values, resolved["noise_floor"].values
    steps, entries = result.shift["step"].values, []
    for row, layer in enumerate(rows.names(result.shift).tolist()):
        known = np.flatnonzero(np.isfinite(w1[:, row]))
        if not known.size:
            continue
        most = known[int(w1[known, row].argmax())]
        entries.append(
            {
                "layer": layer,
                "largest": number(w1[most, row]),
                "at_step": number(steps[most]),
                "noise_floor": number(floor[most, row]),
                "above_floor": int((w1[known, row] > np.nan_to_num(floor[known, row])).sum()),
                "compared": int(known.size),
                "last": number(w1[known[-1], row]),
            }
        )
    return sorted(entries, key=lambda entry: -entry["largest"])


def operating(result: Results) -> list[dict[str, Any]]:
    """One row a layer: state of its operating point, drifts with their intervals, since when it is settled."""
    if result.stability is None:
        return []
    found = result.stability
    columns = {name: found[name].values.tolist() for name in STABILITY_NUMBERS}
    settled = found["settled_step"].values.tolist()
    return [
        {"layer": layer, "state": state.lower()}
        | {name: number(column[row]) for name, column in columns.items()}
        | {"settled_step": settled[row] if settled[row] >= 0 else None}
        for row, (layer, state) in enumerate(zip(rows.names(found).tolist(), found["state"].values, strict=True))
    ]


def cost(result: Results) -> dict[str, Any] | None:
    """What recording cost, from the run's own clock."""
    if result.cost is None:
        return None
    return {str(name): number(value) for name, value in result.cost.data_vars.items()}


def depth(result: Results) -> dict[str, Any] | None:
    """Slope of the gradient's norm over depth at the last step that has one."""
    if result.profile is None:
        return None
    known = np.flatnonzero(np.isfinite(result.profile["slope"].values))
    if not known.size:
        return None
    at = result.profile.isel(step=known[-1])
    return {name: number(at[name]) for name in DEPTH_NUMBERS}


def units(result: Results) -> dict[str, Any] | None:
    """Units of the nonlinearities by state, in all and layer by layer."""
    found = result.units
    if found is None or not found.sizes["unit"]:
        return None
    state, owner = found["state"].values, found["layer"].values.astype(str)
    by_layer = [
        {"layer": layer, "units": int((owner == layer).sum())}
        | {name: int(((owner == layer) & (state == name)).sum()) for name in UNIT_STATES}
        for layer in dict.fromkeys(owner.tolist())
    ]
    total = {name: int((state == name).sum()) for name in UNIT_STATES}
    examples = int(found["examples"].values.max(initial=0))
    return {"stream": result.units_stream, "examples": examples, "units": len(state), **total, "by_layer": by_layer}


def linkage(result: Results) -> list[dict[str, Any]]:
    """One row a nonlinearity: structural zeros against all zeros, and silent members of linkages."""
    if result.linkage is None:
        return []
    now = {name: windowed(result.linkage[name]).values for name in LINKAGE_RATES}
    members = result.members
    known = {} if members is None else {layer: row for row, layer in enumerate(rows.names(members).tolist())}
    entries = []
    for row, layer in enumerate(rows.names(result.linkage).tolist()):
        entry: dict[str, Any] = {"layer": layer} | {name: number(rates[row]) for name, rates in now.items()}
        counts = None if members is None or layer not in known else members.isel(layer=known[layer])
        entry |= {name: None if counts is None else number(counts[name]) for name in MEMBER_COUNTS}
        entries.append(entry)
    return entries


def parameters(result: Results) -> list[dict[str, Any]]:
    """One row a parameter: the length of its updates relative to its own."""
    if result.update_ratio is None:
        return []
    group = rows.group(result.recording, "parameters")
    now, ratios = windowed(result.update_ratio).values, result.update_ratio.transpose("step", "parameter").values
    return [
        {
            "parameter": name,
            "size": number(group["parameter_size"].values[row]),
            "update_ratio": number(now[row]),
            "measured": int(np.isfinite(ratios[:, row]).sum()),
        }
        for row, name in enumerate(rows.names(group, "parameter").tolist())
    ]
