"""The records that charts of layers draw: some of them, evenly spread, where there are more than a chart holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from covshift.analysis import rows
from covshift.analysis.rivers import rivers
from covshift.exceptions import SignalNotRecorded
from covshift.reporting.results import Results

CELLS = 64
"""Cells of a river, and most rows of the strip of units."""

MOST_STEPS, FEWEST_STEPS = 200, 2


def thinned(records: int, most: int) -> NDArray[np.int64]:
    """Positions of at most ``most`` of ``records``, evenly spread, the first and the last among them.

    Examples
    --------
    >>> thinned(5, 10), thinned(100, 3)
    (array([0, 1, 2, 3, 4]), array([ 0, 50, 99]))
    """
    return np.unique(np.linspace(0, max(records - 1, 0), min(most, records)).round().astype(np.int64))


Series = Mapping[str, NDArray[Any]]
"""Values by name, those over the steps with the step as first axis."""

Columns = Mapping[str, Series]
"""Series by layer or parameter: charts pick thousands, and xarray takes a millisecond to pick a label."""

FACTS = ("module_type", "depth", "unit_count_of_layer", "activation")
"""What is known of every layer beforehand."""


@dataclass(frozen=True)
class DrawnRecords:
    """What the charts read, at the records that are drawn; empty where the recording lacks it."""

    steps: dict[str, list[int]]
    described: dict[str, Series]
    output: Columns
    z: Columns
    gradient: Columns
    zero_rate: Columns
    linkage: Columns
    shift: Columns
    update_ratio: Columns
    survival: Columns
    units: Columns
    rivers: Columns


def drawn_records(result: Results, *, most: int) -> DrawnRecords:
    """What the charts of a run read, at ``most`` records of each axis."""
    steps: dict[str, list[int]] = {}

    def drawn(values: xr.Dataset | xr.DataArray | None, axis: str, of: str = "layer") -> Columns:
        if values is None:
            return {}
        table = values.to_dataset(name=values.name) if isinstance(values, xr.DataArray) else values
        chosen = table.isel(step=thinned(table.sizes["step"], most))
        steps[axis] = chosen["step"].values.tolist()
        return _columns(chosen, of)

    def moments(signal: str) -> Columns:
        try:
            return drawn(rows.moments(result.recording, signal=signal), "layers")
        except SignalNotRecorded:
            return {}

    return DrawnRecords(
        steps,
        _described(rows.group(result.recording, "layers")),
        moments("activation"),
        moments("preactivation"),
        moments("activation_grad"),
        drawn(result.zero_rate, "layers"),
        drawn(result.linkage, "layers"),
        drawn(result.shift, "shift"),
        drawn(result.update_ratio, "parameters", "parameter"),
        drawn(result.survival, "units"),
        drawn(result.trained_units, "units"),
        _rivers(result.recording, steps, most),
    )


def _columns(table: xr.Dataset, of: str) -> Columns:
    """Whatever has steps in ``table``; ``of`` is a dimension of it, or labels another, such as the layers of units."""
    labels, (dim,) = rows.names(table, of), table[of].dims
    series = {
        str(name): values.transpose("step", dim).values
        for name, values in table.data_vars.items()
        if set(values.dims) == {"step", dim}
    }
    own = {label: np.flatnonzero(labels == label) if dim != of else at for at, label in enumerate(labels.tolist())}
    return {label: {name: values[:, at] for name, values in series.items()} for label, at in own.items()}


def _described(layers: xr.Dataset) -> dict[str, Series]:
    facts = {name: layers[name].values for name in FACTS}
    return {layer: {name: known[at] for name, known in facts.items()} for at, layer in enumerate(rows.names(layers))}


def _rivers(recording: xr.DataTree, steps: dict[str, list[int]], most: int) -> Columns:
    """Rivers by layer; ``held`` says at which steps a layer has any count."""
    try:
        records = rows.group(recording, "histograms").sizes["step"]
    except SignalNotRecorded:
        return {}
    drawn = rivers(recording, records=thinned(records, most).tolist(), cells=CELLS)
    steps["histograms"] = drawn["step"].values.tolist()
    known = {str(name): values.values for name, values in drawn.variables.items() if "layer" in values.dims}
    known["held"] = known["finite"] + known["nan"] + known["infinite"] > 0
    return {layer: {name: values[at] for name, values in known.items()} for at, layer in enumerate(rows.names(drawn))}
