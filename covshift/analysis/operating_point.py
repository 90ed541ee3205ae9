"""Whether a layer has reached a stable operating point, since when, and how sure that is.

"No significant trend" is not evidence of stability: with few or dependent records no trend ever is. Stability is
therefore claimed only where the interval of the drift lies inside a margin (an equivalence test), and "undetermined" is
an answer. A network that no longer learns holds still for another reason, and is called frozen.

References
----------
Two one-sided tests: Schuirmann (1987). The margin of 0.2 sd is Cohen's "small" (1988). Settling is the control
engineer's: inside a band from then on. The rest of the definition is ours; docs/concepts/operating_point.md argues it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from covshift.analysis import inference, operating_parts, rows
from covshift.analysis.operating_parts import MASS_MARGIN, Columns
from covshift.analysis.unit_shift import sum_by_layer, unit_moments
from covshift.exceptions import InvalidArgumentError, SignalNotRecorded

Floats = NDArray[np.float64]

WINDOW_SHARE, WINDOW_RECORDS = 0.2, 40
LOCATION_MARGIN = 0.2
"""Drift of location over the window, and bound on the change of shape, in sd."""

SCALE_MARGIN = float(np.log(1.2))
LEAST_MASS = 0.05
"""Active mass below which no point is a good one to rest at."""

REFERENCE_SHARE = 0.1

_FEWEST = 4 * inference.BATCHES * inference.RECORDS_PER_BATCH // 3 + 1
"""Three quarters of a window are tested where directions were chosen on the first, and must fill the batches."""


@dataclass(frozen=True)
class _Series:
    """Location and scale of each layer over some steps, in units of the reference; shape (step, layer).

    ``signed`` says that location is a signed mean over units whose signs were chosen up to the first quarter of the
    window, so that only the rest of it tells.
    """

    steps: NDArray[np.int64]
    distance: Floats
    location: Floats
    scale: Floats
    signed: bool


def stability(
    recording: xr.DataTree,
    *,
    signal: str = "activation",
    stream: str = "train",
    share: float = WINDOW_SHARE,
    min_records: int = WINDOW_RECORDS,
) -> xr.Dataset:
    """State of every layer at the end of the recording.

    The window is the last ``share`` of the records, extended to ``min_records`` but never beyond the last half of the
    run. Location and scale come from per-unit moments where the window holds ``min_records`` records of units (units
    that move against one another are seen), else from the layer's own.

    Parameters
    ----------
    recording : DataTree
        Needs the group ``layers``; ``units``, ``histograms`` and ``parameters`` are used where they are.
    signal : {"activation", "activation_grad"}
        Which tensor.
    stream : {"train", "evaluation", "probe"}
        Which rows.
    share : float, default 0.2
        Share of the records that make the window, in (0, 1].
    min_records : int, default 40
        Fewest records of a window, at least 22.

    Returns
    -------
    Dataset
        Dims ``(layer,)``; the attributes give the window, ``min_records`` and the margins.

        ``state``
            ``"STABLE"``: the 90 % intervals of the drifts of location, scale and active mass lie inside their margins,
            and the upper bound of the change of shape below its own, as far as they are measured; location and scale
            must be. ``"DRIFTING"``: one of them is beyond its margin and its 95 % interval excludes 0. ``"FROZEN"``: no
            parameter up to this depth moved by more than 1e-6 of its length an update, or 99.9 % of the layer's
            gradient is zero. ``"UNDETERMINED"``: anything else, and every layer where none has ``min_records`` records
            in the window.
        ``location_drift``, ``location_low``, ``location_high``
            Drift over the window in sd of the reference, with its 90 % interval. By units: mean over units, each in the
            direction it moved into the first quarter, tested on the other three and scaled to the whole window.
        ``scale_drift``, ``scale_low``, ``scale_high``
            Drift of the (mean over units of the) logarithm of the standard deviation.
        ``drifts_by``
            Which of ``"location"``, ``"scale"``, ``"distribution"`` and ``"active mass"`` drift, joined by ``", "``;
            empty where the state is another.
        ``shape_shift``, ``shape_low``, ``shape_high``
            Equivalent shift between the first and the last fifth of the window, sampling noise taken off, and its 90 %
            interval, whose ends are 95 % bounds; NaN where that noise is unknown, the bins too wide, or there are fewer
            than 2 histograms.
        ``active_mass``, ``mass_low``, ``mass_high``
            Median share of z with a usable derivative, and the 90 % interval of its drift; NaN where not known.
        ``settled_step``, ``settled_low``, ``settled_high``
            First record from which on the layer stayed within 0.2 sd of the last tenth of the run, sampling noise
            allowed for; and the same with twice that noise, and with none. -1 where not stable or never.
        ``weight_path``
            Relative length of the way the parameters up to this depth went in the window.
        ``susceptibility``
            ``|location_drift| / weight_path``: what makes layers of different learning rates comparable.
        ``records``, ``correlation``
            Records behind the location, and their lag-1 correlation.
        ``by_units``
            Whether location and scale come from units.
        ``broken``, ``finite_until``
            Whether the window holds elements of the layer but no finite one, and then the last step with one (-1 for
            never, and where not broken).

    Raises
    ------
    InvalidArgumentError
        If ``share`` or ``min_records`` is out of range.
    SignalNotRecorded
        If the signal was not recorded.
    """
    if not 0 < share <= 1 or min_records < _FEWEST:
        raise InvalidArgumentError(
            f"share={share}, min_records={min_records}: expected 0 < share <= 1 and min_records >= {_FEWEST}"
        )
    layers = rows.layer_rows(recording, signal=signal, stream=stream)
    by_layer = _of_layers(recording, signal, stream)
    by_units = _of_units(recording, signal, stream, share=share, least=min_records)
    window = _window(len(by_layer.steps), share, min_records)
    columns = _tests(by_layer, window, min_records)
    by_unit = np.zeros(len(columns["records"]), dtype=bool)
    if by_units is not None:
        unit_window = _window(len(by_units.steps), share, min_records)
        unit_columns = _tests(by_units, unit_window, min_records)
        by_unit = unit_columns["records"] >= min_records
        columns = {name: np.where(by_unit, unit_columns[name], columns[name]) for name in columns}
    start = int(by_layer.steps[window][0]) if len(by_layer.steps) else 0
    columns |= operating_parts.shape(recording, signal, stream, start) | operating_parts.mass(
        recording, stream, rows.names(layers), window
    )
    columns |= operating_parts.motion(recording, layers, stream, start)
    columns["susceptibility"] = rows.ratio(np.abs(columns["location_drift"]), columns["weight_path"])
    columns["state"], columns["drifts_by"] = _states(columns, min_records)
    columns["by_units"] = by_unit
    columns["broken"], columns["finite_until"] = _broken(layers, start)
    return _dataset(columns, rows.names(layers), window, by_layer.steps).assign_attrs(min_records=min_records)


def _window(records: int, share: float, least: int) -> slice:
    size = max(int(np.ceil(records * share)), min(least, records // 2))
    return slice(records - size, records)


def _of_layers(recording: xr.DataTree, signal: str, stream: str) -> _Series:
    found = rows.moments(recording, signal=signal, stream=stream)
    mean, sd = found["mean"].values, found["sd"].values
    positive = np.where(sd > 0, sd, np.nan)
    with np.errstate(divide="ignore"):
        logs = np.log(positive)
    reference = _reference(mean), np.exp(_reference(logs))
    location = (mean - reference[0]) / reference[1]
    return _Series(found["step"].values.astype(np.int64), location**2, location, logs, signed=False)


def _of_units(recording: xr.DataTree, signal: str, stream: str, *, share: float, least: int) -> _Series | None:
    try:
        units = rows.group(recording, "units", stream=stream)
    except SignalNotRecorded:
        return None
    if not units.sizes["step"]:
        return None
    layers = rows.group(recording, "layers", stream=stream).sizes["layer"]
    owner = units["layer_index"].values.astype(np.int64)
    mean, variance = unit_moments(units, signal)
    sd = np.sqrt(np.where(variance > 0, variance, np.nan))
    logs = np.log(sd)
    moved = (mean - _reference(mean)) / np.exp(_reference(logs))
    known = np.isfinite(moved)
    compared = sum_by_layer(known, owner, layers)
    distance = rows.ratio(sum_by_layer(np.nan_to_num(moved) ** 2, owner, layers), compared)
    signs = _directions(moved, _window(len(moved), share, least))
    location = rows.ratio(sum_by_layer(np.nan_to_num(moved) * signs, owner, layers), compared)
    # Relative to each unit's own, for not every record need know the same units.
    spread = logs - _reference(logs)
    scale = rows.ratio(
        sum_by_layer(np.nan_to_num(spread), owner, layers), sum_by_layer(np.isfinite(spread), owner, layers)
    )
    return _Series(units["step"].values.astype(np.int64), distance, location, scale, signed=True)


def _reference(values: Floats) -> Floats:
    """Mean of each column over the last tenth of the records, at least three; NaN where nothing is known there."""
    last = values[-max(int(np.ceil(len(values) * REFERENCE_SHARE)), 3) :]
    known = np.isfinite(last)
    return rows.ratio(np.where(known, last, 0.0).sum(axis=0), known.sum(axis=0))


def _directions(moved: Floats, window: slice) -> Floats:
    """Sign of each unit's displacement into the first quarter of the window, from as many records before it.

    Where nothing came before, from the first half of that quarter to its second.
    """
    known, start = np.nan_to_num(moved), window.start
    head = known[start : start + _chosen(len(known) - start)]
    before = known[max(2 * start - len(known), 0) : start]
    if not len(before):
        before, head = head[: len(head) // 2], head[len(head) // 2 :]
    if not len(before) or not len(head):
        return np.ones(moved.shape[1])
    return np.asarray(np.sign(head.mean(axis=0) - before.mean(axis=0)))


def _chosen(records: int) -> int:
    """Records at the head of a window of ``records`` that choose directions and are not tested."""
    return records // 4


def _tests(series: _Series, window: slice, least: int) -> Columns:
    location, scale = series.location[window], series.scale[window]
    records = np.isfinite(location).sum(axis=0)
    tested = location[_chosen(len(location)) :] if series.signed else location
    found = {"location": inference.trend(tested), "scale": inference.trend(scale)}
    factor = max(len(location) - 1, 1) / max(len(tested) - 1, 1)
    columns: Columns = {"records": records, "correlation": found["location"].correlation}
    for name, margin in (("location", LOCATION_MARGIN), ("scale", SCALE_MARGIN)):
        stretch = factor if name == "location" else 1.0
        low, high = found[name].interval(0.9)
        columns |= {f"{name}_drift": found[name].drift * stretch, f"{name}_low": low * stretch}
        columns |= {f"{name}_high": high * stretch}
        verdict = inference.equivalence(found[name], margin / stretch)
        columns[f"{name}_verdict"] = np.where(records >= least, verdict, "UNDETERMINED")
    return columns | _settled(series)


def _settled(series: _Series) -> Columns:
    """Steps from which on location and scale stay in their bands, with the usual, twice, and no allowance for noise."""
    last = slice(-max(int(np.ceil(len(series.steps) * REFERENCE_SHARE)), 3), None)
    scale = np.abs(series.scale - _reference(series.scale))
    noise = [_upper(part[last]) for part in (series.distance, scale)]
    return {
        name: _first_inside(
            series.steps,
            (series.distance > LOCATION_MARGIN**2 + allowance * noise[0])
            | (scale > SCALE_MARGIN + allowance * noise[1]),
        )
        for name, allowance in (("settled_step", 1.0), ("settled_low", 2.0), ("settled_high", 0.0))
    }


def _upper(values: Floats) -> Floats:
    """Largest known value of each column; the reference window is short, so its 95 % point is about its largest."""
    return np.asarray(np.where(np.isfinite(values), values, 0.0).max(axis=0, initial=0.0))


def _first_inside(steps: NDArray[np.int64], outside: NDArray[np.bool_]) -> NDArray[np.int64]:
    if not len(steps):
        return np.full(outside.shape[1], -1, dtype=np.int64)
    last_outside = np.where(outside, np.arange(len(steps))[:, None], -1).max(axis=0)
    return np.where(last_outside + 1 < len(steps), steps[np.minimum(last_outside + 1, len(steps) - 1)], -1)


def _broken(layers: xr.Dataset, start: int) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Layers with elements but no finite one from ``start`` on, and the last step at which each of them had one."""
    steps, finite = layers["step"].values.astype(np.int64), rows.finite_count(layers) > 0
    seen = (layers["count"].values > 0)[steps >= start].any(axis=0)
    last = np.where(finite, steps[:, None], -1).max(axis=0, initial=-1)
    broken = np.asarray(seen & (last < start))
    return broken, np.where(broken, last, -1)


def _states(columns: Columns, least: int) -> tuple[NDArray[np.str_], NDArray[np.str_]]:
    """State of each layer, and by which tests it drifts; none where no layer has ``least`` records."""
    parts = [columns["location_verdict"], columns["scale_verdict"]]
    drifts = {
        "location": parts[0] == "DRIFTING",
        "scale": parts[1] == "DRIFTING",
        "distribution": columns["shape_low"] > LOCATION_MARGIN,
        "active mass": columns["mass_verdict"] == "DRIFTING",
    }
    drifting = np.any(list(drifts.values()), axis=0)
    stable = np.all([part == "STABLE" for part in parts], axis=0)
    stable &= ~(columns["shape_high"] >= LOCATION_MARGIN)
    stable &= np.isin(columns["mass_verdict"], ["STABLE", ""]) & ~(columns["active_mass"] < LEAST_MASS)
    state = np.select([columns["frozen"], drifting, stable], ["FROZEN", "DRIFTING", "STABLE"], "UNDETERMINED")
    if columns["records"].max(initial=0) < least:
        state[:] = "UNDETERMINED"
    by = [", ".join(name for name, found in drifts.items() if found[at]) for at in range(len(state))]
    return state, np.where(state == "DRIFTING", np.array(by, dtype=np.str_), "")


_UNITS = {
    "state": "",
    "drifts_by": "",
    "location_drift": "sd",
    "location_low": "sd",
    "location_high": "sd",
    "scale_drift": "1",
    "scale_low": "1",
    "scale_high": "1",
    "shape_shift": "sd",
    "shape_low": "sd",
    "shape_high": "sd",
    "active_mass": "1",
    "mass_low": "1",
    "mass_high": "1",
    "settled_step": "step",
    "settled_low": "step",
    "settled_high": "step",
    "weight_path": "1",
    "susceptibility": "sd",
    "records": "count",
    "correlation": "1",
    "by_units": "",
    "broken": "",
    "finite_until": "step",
}


def _dataset(columns: Columns, names: NDArray[np.str_], window: slice, steps: NDArray[np.int64]) -> xr.Dataset:
    settled = columns["state"] == "STABLE"
    for name in ("settled_step", "settled_low", "settled_high"):
        columns[name] = np.where(settled, columns[name], -1)
    inside = steps[window]
    attrs = {
        "window_start": int(inside[0]) if len(inside) else -1,
        "window_end": int(inside[-1]) if len(inside) else -1,
        "location_margin": LOCATION_MARGIN,
        "scale_margin": SCALE_MARGIN,
        "mass_margin": MASS_MARGIN,
    }
    return xr.Dataset(
        {name: ("layer", columns[name], {"units": unit} if unit else {}) for name, unit in _UNITS.items()},
        coords={"layer": names},
        attrs=attrs,
    )
