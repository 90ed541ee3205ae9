"""Recordings brought to common axes: layers, units, parameters and steps by name, what one lacks filled as absent."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import numpy as np
import xarray as xr

from covshift import schema
from covshift.store import layout


def aligned(
    path: str, datasets: Sequence[xr.Dataset], layers: Sequence[Sequence[str]], steps: Iterable[int]
) -> list[xr.Dataset]:
    """Datasets of the group at ``path`` on the union of their labels and on ``steps``.

    Parameters
    ----------
    path : str
        Group of :mod:`covshift.schema`.
    datasets : sequence of Dataset
        One per recording.
    layers : sequence
        Names on the layer axis of each recording, by which its units are told.
    steps : iterable of int
        Steps to have, strictly increasing.

    Returns
    -------
    list of Dataset
        All with the same labels, in the order of their first appearance. Absent cells read as in a recording: counts
        and status 0, floats NaN.
    """
    names = _union(layers)
    labels: dict[Hashable, Any] = {"step": np.fromiter(steps, dtype=np.int64)}
    prepared = list(datasets)
    if "unit" in schema.group_of(path).dims:
        prepared = [_with_unit_labels(dataset, own) for dataset, own in zip(datasets, layers, strict=True)]
    for dim in layout.GROWING:
        if dim in schema.group_of(path).dims:
            labels[dim] = _union([dataset[dim].values.tolist() for dataset in prepared])
    known = (*layout.step_variables(path), *layout.label_variables(path), *layout.data_variables(path))
    fills = {variable.name: _fill(variable) for variable in known}
    results = [_reindexed(dataset, labels, fills) for dataset in prepared]
    return [_with_static_labels(path, result, results, names) for result in results]


def _union(lists: Iterable[Iterable[Any]]) -> list[Any]:
    return list(dict.fromkeys(one for own in lists for one in own))


def _with_unit_labels(dataset: xr.Dataset, layers: Sequence[str]) -> xr.Dataset:
    pairs = zip(dataset["layer_index"].values.tolist(), dataset["unit_in_layer"].values.tolist(), strict=True)
    return dataset.assign_coords(unit=("unit", np.array([f"{layers[k]}\0{unit}" for k, unit in pairs], dtype=object)))


def _fill(variable: schema.Variable) -> Any:
    fill = layout.fill_value(variable)
    return fill if variable.dtype == "str" else np.dtype(variable.dtype).type(fill)


def _reindexed(dataset: xr.Dataset, labels: dict[Hashable, Any], fills: dict[str, Any]) -> xr.Dataset:
    wanted = {dim: values for dim, values in labels.items() if not _equal(dataset.indexes[dim], values)}
    if not wanted:
        return dataset
    present = {name: fill for name, fill in fills.items() if name in dataset.variables}
    times = {str(name): np.datetime64("NaT", "ns") for name, one in dataset.variables.items() if one.dtype.kind == "M"}
    floats = {str(name): np.nan for name in dataset.data_vars if name not in fills}
    return dataset.reindex(wanted, fill_value=floats | present | times)


def _equal(index: Any, values: Any) -> bool:
    return len(index) == len(values) and bool((np.asarray(index) == np.asarray(values)).all())


def _with_static_labels(
    path: str, dataset: xr.Dataset, all_of_them: Sequence[xr.Dataset], layers: Sequence[str]
) -> xr.Dataset:
    """Coordinates along layers, units and parameters from the first dataset that knows the label."""
    for variable in (*layout.step_variables(path)[1:], *layout.label_variables(path)):
        fill = layout.fill_value(variable)
        values = np.array(dataset[variable.name].values)
        for other in all_of_them:
            values = np.where(values == fill, other[variable.name].values, values)
        dataset = dataset.assign_coords({variable.name: (variable.dims, values, dataset[variable.name].attrs)})
    if "unit" in dataset.coords:
        owners, within = zip(*(str(label).split("\0") for label in dataset["unit"].values), strict=True) or ((), ())
        place = {name: position for position, name in enumerate(layers)}
        dataset = dataset.assign_coords(
            layer_index=("unit", np.array([place[name] for name in owners], dtype="i4"), dataset.layer_index.attrs),
            unit_in_layer=("unit", np.array(within, dtype="i4"), dataset.unit_in_layer.attrs),
        ).drop_vars("unit")
    return dataset
