"""The records that charts of layers draw: some of them, evenly spread, where there are more than a chart holds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from covshift.analysis import rows
from covshift.analysis.rivers import rivers
from covshift.exceptions import SignalNotRecorded
from covshift.reporting.results import Answer, Results

CELLS = 64
"""Cells of a river, and most rows of the strip of units."""

MOST_STEPS, FEWEST_STEPS = 200, 24


def thinned(records: int, most: int) -> NDArray[np.int64]:
    """Positions of at most ``most`` of ``records``, evenly spread, the first and the last among them.

    Examples
    --------
    >>> thinned(5, 10), thinned(100, 3)
    (array([0, 1, 2, 3, 4]), array([ 0, 50, 99]))
    """
    return np.unique(np.linspace(0, max(records - 1, 0), min(most, records)).round().astype(np.int64))


@dataclass(frozen=True)
class DrawnRecords:
    """What the charts read, at the records that are drawn; None where the recording lacks it."""

    steps: dict[str, list[int]]
    described: xr.Dataset
    output: xr.Dataset | None
    z: xr.Dataset | None
    gradient: xr.Dataset | None
    zero_rate: xr.DataArray | None
    linkage: xr.Dataset | None
    shift: xr.Dataset | None
    update_ratio: xr.DataArray | None
    survival: xr.DataArray | None
    units: xr.Dataset | None
    rivers: dict[str, xr.Dataset]


def drawn_records(result: Results, *, most: int) -> DrawnRecords:
    """What the charts of a run read, at ``most`` records of each axis."""
    steps: dict[str, list[int]] = {}

    def drawn(values: Answer | None, axis: str) -> Answer | None:
        if values is None:
            return None
        chosen = values.isel(step=thinned(values.sizes["step"], most))
        steps[axis] = chosen["step"].values.tolist()
        return chosen

    def moments(signal: str) -> xr.Dataset | None:
        try:
            return drawn(rows.moments(result.recording, signal=signal), "layers")
        except SignalNotRecorded:
            return None

    return DrawnRecords(
        steps,
        rows.group(result.recording, "layers"),
        moments("activation"),
        moments("preactivation"),
        moments("activation_grad"),
        drawn(result.zero_rate, "layers"),
        drawn(result.linkage, "layers"),
        drawn(result.shift, "shift"),
        drawn(result.update_ratio, "parameters"),
        drawn(result.survival, "units"),
        drawn(result.trained_units, "units"),
        _rivers(result.recording, steps, most),
    )


def _rivers(recording: xr.DataTree, steps: dict[str, list[int]], most: int) -> dict[str, xr.Dataset]:
    try:
        records = rows.group(recording, "histograms").sizes["step"]
    except SignalNotRecorded:
        return {}
    chosen = thinned(records, most)
    steps["histograms"] = rows.group(recording, "histograms")["step"].values[chosen].tolist()
    return rivers(recording, records=chosen.tolist(), cells=CELLS)
