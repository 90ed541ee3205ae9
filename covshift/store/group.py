"""One group of a recording: the rows that wait for it in memory and the arrays that receive them.

Writes beyond the committed length only, so that whatever happens before the commit leaves readers what they had.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.abc.store import Store

from covshift import schema
from covshift.schema import Row, Variable
from covshift.store import layout
from covshift.store.axes import Axes
from covshift.store.rows import size_in_bytes, stacked


class StoredGroup:
    """The group at ``path``: created by its first :meth:`write`, grown by every further one.

    :meth:`write` may fail and be repeated; only :meth:`settle`, called after the commit, moves the committed length.
    """

    def __init__(self, store: Store, path: str, axes: Axes) -> None:
        self.path = path
        self.rows: list[Row] = []
        self.buffered_bytes = 0
        self.last_step = -1
        self.committed = 0
        self._store = store
        self._axes = axes
        self._labelled = dict.fromkeys(layout.GROWING, 0)
        self._variables: dict[str, Variable] = {}
        self._arrays: dict[str, zarr.Array[Any]] = {}
        self._documents: dict[str, Any] = {}

    def append(self, row: Row) -> None:
        """Keep a checked row until the next write."""
        self.rows.append(row)
        self.buffered_bytes += size_in_bytes(row)
        self.last_step = row.step

    @property
    def length(self) -> int:
        """Rows the group has once the waiting ones are committed."""
        return self.committed + len(self.rows)

    @property
    def exists(self) -> bool:
        """Whether the arrays of the group have been created."""
        return self.path in self._documents

    @property
    def is_behind(self) -> bool:
        """Whether rows, or labels declared since, wait to be written."""
        dims = [dim for dim in schema.group_of(self.path).dims if dim in layout.GROWING]
        lengths = self._axes.lengths
        return bool(self.rows) or (self.exists and any(self._labelled[dim] != lengths[dim] for dim in dims))

    def write(self) -> None:
        """Write waiting rows and labels to arrays of the length they will have, leaving committed cells alone."""
        if not self.exists:
            self.create()
        self._create_logged_scalars()
        self._grow()
        self._write_labels()
        if self.rows:
            self._write_steps()
            self._write_data()

    def settle(self) -> None:
        """Take what was written as committed and forget the rows."""
        self.committed = self.length
        self._labelled = dict(self._axes.lengths)
        self.rows, self.buffered_bytes = [], 0

    def documents(self) -> dict[str, Any]:
        """Zarr metadata of the group and its arrays, by path, with the shapes as last written."""
        for name, array in self._arrays.items():
            self._documents[f"{self.path}/{name}"]["shape"] = list(array.shape)
        return self._documents

    def create(self) -> None:
        """Create the empty group with all its arrays, in place of what an attempt that failed has left."""
        document = layout.create_group(self._store, self.path)
        labels = layout.label_variables(self.path)
        for variable in (*layout.step_variables(self.path), *labels, *layout.data_variables(self.path)):
            self._create_array(variable)
        for variable in labels:
            if variable.dims[0] not in layout.GROWING:
                self._arrays[variable.name][:] = self._labels(variable)
        self._documents[self.path] = document

    def _create_array(self, variable: Variable) -> None:
        array = layout.create_array(self._store, self.path, variable)
        self._arrays[variable.name] = array
        self._variables[variable.name] = variable
        self._documents[f"{self.path}/{variable.name}"] = array.metadata.to_dict()

    def _waiting_names(self) -> Iterable[str]:
        return dict.fromkeys(name for row in self.rows for name in row.variables)

    def _create_logged_scalars(self) -> None:
        for name in self._waiting_names():
            if name not in self._arrays:
                self._create_array(layout.stepped(layout.logged_scalar(name)))

    def _grow(self) -> None:
        lengths = {"step": self.length, **self._axes.lengths, **layout.fixed_lengths(self.path)}
        for name, array in self._arrays.items():
            shape = tuple(lengths[dim] for dim in self._variables[name].dims)
            if shape != array.shape:
                array.resize(shape)

    def _labels(self, variable: Variable) -> NDArray[Any]:
        return self._axes.values(variable, schema.group_of(self.path))

    def _write_labels(self) -> None:
        for variable in layout.label_variables(self.path):
            start = self._labelled.get(variable.dims[0])
            if start is not None and start < self._axes.lengths[variable.dims[0]]:
                self._arrays[variable.name][start:] = self._labels(variable)[start:]

    def _write_steps(self) -> None:
        for variable in layout.step_variables(self.path):
            values = [getattr(row, variable.name) for row in self.rows]
            self._arrays[variable.name][self.committed : self.length] = np.asarray(values, dtype=variable.dtype)

    def _write_data(self) -> None:
        for name in self._waiting_names():
            self._write_variable(self._arrays[name], self._variables[name])

    def _write_variable(self, array: zarr.Array[Any], variable: Variable) -> None:
        """Make cells dense one column of chunks along the growing axis at a time, and write those that hold any.

        Counts of zero need no chunk: beyond the committed length lies nothing yet, or an earlier attempt at these rows.
        """
        rows = slice(self.committed, self.length)
        if array.ndim == 1:
            array[rows] = stacked(self.rows, variable, ())
            return
        for start in range(0, array.shape[1], array.chunks[1]):
            width = min(array.chunks[1], array.shape[1] - start)
            block = stacked(self.rows, variable, (width, *array.shape[2:]), start=start)
            for part in _parts(array):
                cells = block[:, :, *part]
                if variable.fill_value != 0 or cells.any():
                    array[rows, start : start + width, *part] = cells


def _parts(array: zarr.Array[Any]) -> Iterable[tuple[slice, ...]]:
    """Where the axes after ``step`` and the growing one are cut into chunks."""
    axes = zip(array.shape[2:], array.chunks[2:], strict=True)
    return product(*([slice(start, start + cut) for start in range(0, length, cut)] for length, cut in axes))
