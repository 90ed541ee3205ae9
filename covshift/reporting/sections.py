"""The numbers of one run's sections, as lists of rows: by layer, shift, depth, units, linkage, parameters."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from covshift.analysis import gradient_health, rows
from covshift.analysis.weight_path import module_of
from covshift.exceptions import SignalNotRecorded
from covshift.reporting.drawn_records import thinned
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
UNIT_STATES = ("dead", "silent", "rare", "alive", "not finite")
LINKAGE_RATES = ("structural_rate", "zero_atom_rate", "gradient_zero_rate", "other_rate")
MEMBER_COUNTS = ("linked_units", "one_member_silent", "all_members_silent")
COURSES = {
    "activation": {"mean": "mean", "sd": "sd", "zero_rate": "zero_rate"},
    "activation_grad": {"gradient_rms": "rms", "gradient_zero_rate": "zero_rate"},
}
"""Numbers of a layer at single records, by the signal they are of."""

FIT_NUMBERS = ("step", "slope", "slope_low", "slope_high", "total_decades", "n_layers")


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


def course(result: Results) -> list[dict[str, Any]]:
    """Three rows a layer: its numbers at the first, the middle and the last record, as recorded.

    ``update_ratio`` is that of the layer's largest parameter, None where none was measured at that very step.
    """
    described = rows.group(result.recording, "layers")
    records = thinned(described.sizes["step"], 3)
    steps = described["step"].values[records]
    tables = _courses(result, records)
    updates = _largest_parameters(result)
    entries = []
    for row, layer in enumerate(rows.names(described).tolist()):
        ratio = updates.get(module_of(layer))
        ratios = None if ratio is None else ratio.reindex(step=steps).values
        for at, step in enumerate(steps):
            entry: dict[str, Any] = {"layer": layer, "step": number(step)}
            entry |= {name: number(table[at, row]) for name, table in tables.items()}
            entries.append(entry | {"update_ratio": None if ratios is None else number(ratios[at])})
    return entries


def _courses(result: Results, records: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
    """Numbers of every layer (record, layer) by name; NaN where the recording lacks them."""
    blank = np.full((records.size, rows.group(result.recording, "layers").sizes["layer"]), np.nan)
    found: dict[str, NDArray[np.float64]] = {}
    for signal, names in COURSES.items():
        try:
            zeros = gradient_health.zero_rate(result.recording, signal=signal)
            read = rows.moments(result.recording, signal=signal).assign(zero_rate=zeros)
        except SignalNotRecorded:
            found |= dict.fromkeys(names, blank)
            continue
        for name, part in names.items():
            found[name] = read[part].transpose("step", "layer").values[records].astype(np.float64)
    return found


def _largest_parameters(result: Results) -> dict[str, xr.DataArray]:
    """Update ratios of the largest parameter of each module that has one."""
    if result.update_ratio is None:
        return {}
    sizes = rows.group(result.recording, "parameters")["parameter_size"].values
    largest: dict[str, int] = {}
    for at, name in enumerate(rows.names(result.update_ratio, "parameter").tolist()):
        owner = name.rpartition(".")[0]
        if owner not in largest or sizes[at] > sizes[largest[owner]]:
            largest[owner] = at
    return {owner: result.update_ratio.isel(parameter=at) for owner, at in largest.items()}


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
    """One row a layer: state of its operating point, drifts with their intervals, since when it is settled.

    The state is "not measured" where it is so of all layers, with the reason in ``missing``, or of one without a finite
    value.
    """
    if result.stability is None:
        return []
    found = result.stability
    columns = {name: found[name].values.tolist() for name in STABILITY_NUMBERS}
    settled = found["settled_step"].values.tolist()
    known = ~found["broken"].values & ("operating" not in result.missing)
    return [
        {"layer": layer, "state": state.lower() if known[row] else "not measured"}
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
    """Gradients over depth at the last record that has any: layers without one, and the slope.

    ``fitted`` is the last slope there is, with the ``step`` at which it was fitted, which may be an earlier one; None
    where there is none. ``slope`` and ``total_decades`` are those of the record itself.
    """
    if result.profile is None:
        return None
    known = np.flatnonzero(np.isfinite(result.profile["rms"].transpose("step", "layer").values).any(axis=1))
    fits = np.flatnonzero(np.isfinite(result.profile["slope"].values))
    if not known.size:
        return None
    at = result.profile.isel(step=known[-1])
    fitted = {name: number(result.profile[name][fits[-1]]) for name in FIT_NUMBERS} if fits.size else None
    now = {name: number(at[name]) for name in ("step", "vanished", "slope", "total_decades")}
    return {"layers": at.sizes["layer"], **now, "fitted": fitted}


def units(result: Results) -> dict[str, Any] | None:
    """Units of the nonlinearities by state, in all and layer by layer."""
    found = result.units
    if found is None or not found.sizes["unit"]:
        return None
    state, owner = found["state"].values, found["layer"].values.astype(str)
    by_layer = [
        {"layer": layer, "units": int((owner == layer).sum())}
        | {_key(name): int(((owner == layer) & (state == name)).sum()) for name in UNIT_STATES}
        for layer in dict.fromkeys(owner.tolist())
    ]
    total = {_key(name): int((state == name).sum()) for name in UNIT_STATES}
    examples = int(found["examples"].values.max(initial=0))
    return {"stream": result.units_stream, "examples": examples, "units": len(state), **total, "by_layer": by_layer}


def _key(state: str) -> str:
    return state.replace(" ", "_")


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
