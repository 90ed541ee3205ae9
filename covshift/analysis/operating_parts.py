"""The parts of an operating point beside location and scale: shape, active mass, and whether the layer can move at all.

Each part is a column per layer, NaN where the recording cannot tell; :mod:`covshift.analysis.operating_point` joins
them into one state.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from covshift.analysis import gradient_health, inference, rows, shift, weight_path
from covshift.analysis.active_mass import active_mass
from covshift.analysis.shift_records import Record, View
from covshift.exceptions import SignalNotRecorded

Columns = dict[str, NDArray[Any]]

MASS_MARGIN = 0.05
"""Drift of the active mass over the window."""

FROZEN_UPDATE, FROZEN_ZEROS = 1e-6, 0.999
"""Relative update up to which a parameter does not move, and share of zeros from which a gradient does not arrive."""


def shape(recording: xr.DataTree, signal: str, stream: str, start: int) -> Columns:
    """Equivalent shift between the first and the last fifth of the histograms from ``start`` on, and its interval.

    NaN where sampling noise is unknown, the bins are too wide, or there are fewer than 2 histograms.
    """
    blank = np.full(rows.group(recording, "layers", stream=stream).sizes["layer"], np.nan)
    unknown = {"shape_shift": blank, "shape_low": blank, "shape_high": blank}
    try:
        view = View.of(recording, signal, stream)
    except SignalNotRecorded:
        return unknown
    inside = np.flatnonzero(view.steps >= start)
    fifth = int(np.ceil(len(inside) / 5))
    if len(inside) < 2:
        return unknown
    first, last = (
        Record.pooled(list(view.records(int(part[0]), int(part[-1]) + 1)), view.grid)
        for part in (inside[:fifth], inside[-fifth:])
    )
    found = shift.distances(first, last, view.grid)
    usable = (found["noise_known"] == 1) & (found["off_centre"] == 0) & np.isfinite(found["u"])
    squares, noise = (found[name] / shift.CRAMER_OF_SMALL_SHIFT for name in ("u", "u_noise"))
    intervals = np.full((len(usable), 2), np.nan)
    for layer in np.flatnonzero(usable):
        intervals[layer] = shift.equivalent_interval(float(squares[layer]), float(noise[layer]), 1)
    return {
        "shape_shift": np.where(usable, found["equivalent_shift"], np.nan),
        "shape_low": intervals[:, 0],
        "shape_high": intervals[:, 1],
    }


def mass(recording: xr.DataTree, stream: str, names: NDArray[np.str_], window: slice) -> Columns:
    """Typical active mass of the records of ``window``, the interval of its drift, and the verdict on that.

    The verdict is empty where the drift is not known.
    """
    blank = np.full(len(names), np.nan)
    try:
        shares = active_mass(recording, stream=stream).reindex(layer=names).values[window]
    except SignalNotRecorded:
        return dict.fromkeys(("active_mass", "mass_low", "mass_high"), blank) | {
            "mass_verdict": np.full(len(names), "")
        }
    # Histograms are rarer than other records: where none gives a mass, there is no record of it.
    shares = shares[np.isfinite(shares).any(axis=1)]
    drift = inference.trend(shares)
    low, high = drift.interval(0.9)
    verdict = inference.equivalence(drift, MASS_MARGIN)
    return {
        "active_mass": rows.median(shares),
        "mass_low": low,
        "mass_high": high,
        "mass_verdict": np.where(np.isfinite(low), verdict, ""),
    }


def motion(recording: xr.DataTree, layers: xr.Dataset, stream: str, start: int) -> Columns:
    """Weight path up to each layer's depth, and whether it is frozen."""
    path, largest = weight_path.upstream(recording, layers, start=start)
    frozen = largest <= FROZEN_UPDATE
    try:
        zeros = gradient_health.zero_rate(recording, stream=stream).sel(step=slice(start, None)).values
    except SignalNotRecorded:
        zeros = np.full((1, len(path)), np.nan)
    return {"weight_path": path, "frozen": frozen | (rows.median(zeros) >= FROZEN_ZEROS)}
