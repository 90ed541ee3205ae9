"""Committed arrays and the journal's rows behind them, seen as one: nothing is read or made dense before it is used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from xarray.backends import BackendArray
from xarray.core import indexing

from covshift import schema
from covshift.schema import Row, Variable
from covshift.store import layout
from covshift.store.axes import Axes
from covshift.store.frames import Numbered
from covshift.store.rows import stacked

DENSE_BYTES = 32 * 2**20
"""Size of a dask chunk, at most, unless one row of one layer is larger."""


def joined(recording: xr.DataTree, rows: Mapping[str, Sequence[Numbered]], axes: Axes) -> xr.DataTree:
    """The recording with rows of the journal behind the committed ones; groups without such rows stay as they are.

    Returns
    -------
    DataTree
        Lazy in every variable with more dimensions than ``step``.
    """
    datasets = {path: node.to_dataset(inherit=False) for path, node in recording.subtree_with_keys}
    for path, numbered in rows.items():
        if numbered:
            datasets[path] = _joined_group(path, datasets.get(path), [one.row for one in numbered], axes)
    return xr.DataTree.from_dict({path if path != "." else "/": dataset for path, dataset in datasets.items()})


def _joined_group(path: str, committed: xr.Dataset | None, rows: Sequence[Row], axes: Axes) -> xr.Dataset:
    known = list(layout.data_variables(path))
    if path == schema.SCALARS.name:
        logged = {name for row in rows for name in row.variables}
        logged |= set() if committed is None else set(map(str, committed.data_vars))
        named = sorted(logged - {variable.name for variable in known})
        known += [layout.stepped(layout.logged_scalar(name)) for name in named]
    lengths = {**axes.lengths, **layout.fixed_lengths(path)}
    variables = {one.name: _joined_variable(one, committed, rows, lengths) for one in known}
    steps = {one.name: _joined_line(one, committed, _flags(rows, one)) for one in layout.step_variables(path)}
    group = schema.group_of(path)
    labels = {
        one.name: xr.Variable(one.dims, axes.values(one, group), one.attrs) for one in layout.label_variables(path)
    }
    attrs = {} if committed is None else committed.attrs
    return xr.Dataset(variables, {**steps, **labels}, attrs)


def _flags(rows: Sequence[Row], variable: Variable) -> NDArray[Any]:
    return np.asarray([getattr(row, variable.name) for row in rows], dtype=variable.dtype)


def _joined_variable(
    variable: Variable, committed: xr.Dataset | None, rows: Sequence[Row], lengths: Mapping[str, int]
) -> xr.Variable:
    within = Variable(variable.name, variable.dims[1:], variable.dtype, variable.long_name)
    if not within.dims:
        return _joined_line(variable, committed, stacked(rows, within, ()))
    before = None if committed is None else committed[variable.name].variable
    array = _JoinedArray(before, within, rows, tuple(lengths[dim] for dim in within.dims))
    return xr.Variable(variable.dims, indexing.LazilyIndexedArray(array), variable.attrs)


def _joined_line(variable: Variable, committed: xr.Dataset | None, values: NDArray[Any]) -> xr.Variable:
    attrs = variable.attrs
    tail = xr.conventions.decode_cf_variable(variable.name, xr.Variable(("step",), values, attrs))
    if committed is None:
        return tail
    if variable.name in committed:
        before = committed[variable.name].variable
    else:
        fill = np.full(committed.sizes["step"], layout.fill_value(variable), dtype=variable.dtype)
        before = xr.Variable(("step",), fill, tail.attrs)
    return xr.Variable(("step",), np.concatenate([before.values, tail.values]), tail.attrs)


class _JoinedArray(BackendArray):
    """Rows of a stored variable, where there is one, then rows of the journal.

    The stored variable may be shorter than ``shape`` on its second axis: layers declared since are absent there.
    """

    def __init__(
        self, stored: xr.Variable | None, variable: Variable, rows: Sequence[Row], shape: tuple[int, ...]
    ) -> None:
        self._stored, self._variable, self._rows = stored, variable, rows
        self._committed = 0 if stored is None else stored.shape[0]
        self.shape = (self._committed + len(rows), *shape)
        self.dtype = np.dtype(variable.dtype)

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.OUTER, self._outer)

    def _outer(self, key: tuple[Any, ...]) -> NDArray[Any]:
        chosen = [np.atleast_1d(np.arange(length)[one]) for one, length in zip(key, self.shape, strict=True)]
        values = np.full([len(one) for one in chosen], self._variable.fill_value, dtype=self.dtype)
        stored = chosen[0] < self._committed
        if self._stored is not None and stored.any():
            known = chosen[1] < self._stored.shape[1]
            wanted = [chosen[0][stored], chosen[1][known], *chosen[2:]]
            part = self._stored.isel(dict(zip(self._stored.dims, wanted, strict=True))).values
            values[np.ix_(stored, known, *(np.arange(len(one)) for one in chosen[2:]))] = part
        rows = [self._rows[position - self._committed] for position in chosen[0][~stored]]
        if rows:
            dense = stacked(rows, self._variable, self.shape[1:])
            values[~stored] = dense[np.ix_(np.arange(len(rows)), *chosen[1:])]
        return values.reshape(
            [len(one) for one, k in zip(chosen, key, strict=True) if not isinstance(k, int | np.integer)]
        )


def dask_chunks(path: str, dataset: xr.Dataset, name: str) -> dict[str, int]:
    """Chunk lengths for a variable: whole shards of steps, and as much of the next axis as keeps a chunk small."""
    variable = dataset[name]
    cuts = layout.SHARDS.get(schema.group_of(path).name, {})
    chunks = {"step": cuts.get("step", layout.LINE_PER_CHUNK)}
    if len(variable.dims) > 1:
        dim = str(variable.dims[1])
        unit = layout.CHUNKS[schema.group_of(path).name].get(dim, 1)
        row = int(np.prod(variable.shape[2:], dtype=np.int64)) * variable.dtype.itemsize * chunks["step"]
        chunks[dim] = max(1, DENSE_BYTES // max(1, row * unit)) * unit
    return {dim: min(length, max(1, variable.sizes[dim])) for dim, length in chunks.items()}
