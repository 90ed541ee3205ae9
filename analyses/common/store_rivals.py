"""What a user would otherwise write: the rows of layers appended by xarray's ``to_zarr`` and by netCDF4.

Both take the dense arrays of 64 records at a time, as the store does, and have no journal: what waits is lost by a
kill, and a kill while they write may cost the file.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import netCDF4
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from covshift import schema
from covshift.schema import Row, SparseCounts

Blocks = dict[str, dict[str, NDArray[Any]]]


def stacked(records: Sequence[Sequence[Row]]) -> Blocks:
    """Dense arrays by group and variable, ``step`` first."""
    groups: dict[str, list[Row]] = {}
    for rows in records:
        for row in rows:
            groups.setdefault(row.group, []).append(row)
    return {name: _block(rows) for name, rows in groups.items()}


def _block(rows: Sequence[Row]) -> dict[str, NDArray[Any]]:
    arrays = {name: np.stack([_dense(row.variables[name]) for row in rows]) for name in rows[0].variables}
    return {"step": np.array([row.step for row in rows]), **arrays}


def _dense(cells: NDArray[Any] | SparseCounts) -> NDArray[Any]:
    return cells.dense() if isinstance(cells, SparseCounts) else np.asarray(cells)


def _dims(group: str, name: str) -> tuple[str, ...]:
    known = {variable.name: variable.dims for variable in schema.group_of(group).variables}
    return ("step", *known.get(name, ()))


class AppendingZarr:
    """``Dataset.to_zarr(append_dim="step")`` per group."""

    def __init__(self, path: Path) -> None:
        self._path, self._begun = path, set[str]()

    def write(self, blocks: Blocks) -> None:
        """Append one block to every group."""
        for group, arrays in blocks.items():
            data = xr.Dataset({name: (_dims(group, name), values) for name, values in arrays.items() if name != "step"})
            data = data.assign_coords(step=arrays["step"])
            begun: Mapping[str, Any] = {"append_dim": "step"} if group in self._begun else {"mode": "a"}
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                data.to_zarr(self._path, group=group, zarr_format=3, **begun)
            self._begun.add(group)

    def close(self) -> None:
        """Nothing is open."""


class AppendingNetCDF:
    """One netCDF-4 file with an unlimited ``step`` per group, compressed and synchronised at every block."""

    def __init__(self, path: Path) -> None:
        self._file = netCDF4.Dataset(path, "w")

    def write(self, blocks: Blocks) -> None:
        """Append one block to every group."""
        for group, arrays in blocks.items():
            node = self._file.groups.get(group) or self._create(group, arrays)
            start = len(node.dimensions["step"])
            for name, values in arrays.items():
                node.variables[name][start : start + len(values)] = values
        self._file.sync()

    def _create(self, group: str, arrays: Mapping[str, NDArray[Any]]) -> netCDF4.Group:
        node = self._file.createGroup(group)
        node.createDimension("step", None)
        for name, values in arrays.items():
            dims = _dims(group, name) if name != "step" else ("step",)
            for dim, length in zip(dims[1:], values.shape[1:], strict=True):
                if dim not in node.dimensions:
                    node.createDimension(dim, length)
            chunks = (min(64, len(values)), *values.shape[1:])
            node.createVariable(name, values.dtype, dims, zlib=True, complevel=1, shuffle=True, chunksizes=chunks)
        return node

    def close(self) -> None:
        """Close the file."""
        self._file.close()
