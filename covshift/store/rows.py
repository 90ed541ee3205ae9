"""Rows on their way to disk: checked when they arrive, kept as small as they came, stacked when they are written.

Refuses what it would have to guess or wrap: unknown variables, wrong shapes, counts that do not fit their type.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from covshift import schema
from covshift.exceptions import InvalidArgumentError
from covshift.schema import Row, SparseCounts, Variable
from covshift.store import layout
from covshift.store.axes import Axes

Cells = NDArray[Any] | SparseCounts

_VARIABLES = {name: {variable.name: variable for variable in group.variables} for name, group in schema.GROUPS.items()}


def checked(row: Row, axes: Axes) -> Row:
    """The row with every array in the type it is stored in.

    Arrays that already have that type are kept, not copied. Floating-point values beyond the range of float32
    become infinite in float32 variables; counts never wrap.

    Raises
    ------
    InvalidArgumentError
        If the group or a variable is unknown, the step no integer from 0, a shape does not fit the declared axes,
        or a count does not fit its type.
    """
    if row.group not in layout.PATHS:
        raise InvalidArgumentError(f"group='{row.group}': expected one of {', '.join(layout.PATHS)}")
    lengths = axes.lengths | layout.fixed_lengths(row.group)
    known = _VARIABLES[schema.group_of(row.group).name]
    variables = {
        name: _checked_cells(
            cells, known.get(name) or _variable(row.group, name), row.group, lengths=lengths, axes=axes
        )
        for name, cells in row.variables.items()
    }
    return replace(row, step=_checked_step(row), variables=variables)


def _checked_step(row: Row) -> int:
    try:
        step = operator.index(row.step)
    except TypeError:
        step = -1
    if step < 0:
        raise InvalidArgumentError(f"{row.group}: step={row.step!r}: expected an integer, 0 or more")
    return step


def _variable(path: str, name: str) -> Variable:
    known = _VARIABLES[schema.group_of(path).name]
    if name in known:
        return known[name]
    if path == schema.SCALARS.name:
        return layout.logged_scalar(name)
    raise InvalidArgumentError(f"{path}: unknown variable '{name}': expected some of {', '.join(known)}")


def _checked_cells(cells: Any, variable: Variable, path: str, *, lengths: Mapping[str, int], axes: Axes) -> Cells:
    if not isinstance(cells, SparseCounts):
        array = np.asarray(cells)
        _demand_shape(array.shape, variable, path, lengths)
        return _stored(array, variable, path, owner=lambda k: _owner(k, array.shape, variable, axes))
    _demand_shape(cells.shape, variable, path, lengths)
    _demand_index(cells, variable, path)
    index, shape = cells.index, cells.shape
    return replace(
        cells, counts=_stored(cells.counts, variable, path, owner=lambda k: _owner(index[k], shape, variable, axes))
    )


def _demand_shape(shape: tuple[int, ...], variable: Variable, path: str, lengths: Mapping[str, int]) -> None:
    """Axes that grow may be shorter than declared; what a row has not heard of yet reads as absent."""
    # Nearly all rows are as long as declared, and this runs for every variable of every record.
    if shape == tuple([lengths[dim] for dim in variable.dims]):
        return
    if len(shape) == len(variable.dims) and all(
        got == lengths[dim] or (got < lengths[dim] and dim in layout.GROWING)
        for got, dim in zip(shape, variable.dims, strict=True)
    ):
        return
    wanted = [f"{dim} {'<=' if dim in layout.GROWING else '='} {lengths[dim]}" for dim in variable.dims]
    raise InvalidArgumentError(
        f"{path}/{variable.name}: shape {shape}: expected ({', '.join(wanted)}); "
        "layers and parameters are declared before rows that hold them"
    )


def _demand_index(cells: SparseCounts, variable: Variable, path: str) -> None:
    index, size = cells.index, math.prod(cells.shape)
    if np.dtype(variable.dtype).kind != "u":
        raise InvalidArgumentError(
            f"{path}/{variable.name}: SparseCounts came: expected an array, the variable is no count"
        )
    if index.ndim != 1 or index.shape != cells.counts.shape or index.dtype.kind not in "iu":
        raise InvalidArgumentError(
            f"{path}/{variable.name}: SparseCounts with index {index.dtype}{index.shape} and counts of shape "
            f"{cells.counts.shape}: expected one integer index per count"
        )
    if index.size and not 0 <= index.min() <= index.max() < size:
        raise InvalidArgumentError(
            f"{path}/{variable.name}: SparseCounts with indices {index.min()} to {index.max()}: "
            f"expected 0 to {size - 1}, the cells of shape {cells.shape}"
        )


def _owner(cell: int | np.integer[Any], shape: tuple[int, ...], variable: Variable, axes: Axes) -> str:
    return axes.owner(variable.dims[0], int(cell) // math.prod(shape[1:]))


def _stored(values: NDArray[Any], variable: Variable, path: str, *, owner: Callable[[int], str]) -> NDArray[Any]:
    """The values in the variable's type; ``owner`` names the layer or parameter of the k-th one for the error."""
    dtype = np.dtype(variable.dtype)
    if values.dtype == dtype:
        return values
    convertible = "fiub" if dtype.kind == "f" else "iub"
    if values.dtype.kind not in convertible:
        raise InvalidArgumentError(
            f"{path}/{variable.name}: dtype {values.dtype}: expected {dtype} or what converts to it"
        )
    if dtype.kind == "f":
        with np.errstate(over="ignore", under="ignore"):
            return values.astype(dtype)
    limits = np.iinfo(dtype)
    outside = np.flatnonzero((values < limits.min) | (values > limits.max))
    if outside.size:
        first = int(outside[0])
        raise InvalidArgumentError(
            f"{path}/{variable.name}: {values.flat[first]} for {owner(first)} does not fit {dtype}: "
            f"expected {limits.min} to {limits.max}; record more often, or fewer elements a record"
        )
    return values.astype(dtype)


def size_in_bytes(row: Row) -> int:
    """Memory held by the arrays of a row."""
    return sum(
        cells.index.nbytes + cells.counts.nbytes if isinstance(cells, SparseCounts) else cells.nbytes
        for cells in row.variables.values()
    )


def placed(row: Row, positions: Mapping[str, NDArray[np.int64]], lengths: Mapping[str, int]) -> Row:
    """A checked row with its cells moved along the growing axes: cell ``k`` to ``positions[dim][k]``.

    ``lengths`` are those of the axes after the move; cells that none moves to hold fill values.
    """
    moved: dict[str, Cells] = {}
    for name, cells in row.variables.items():
        variable = _variable(row.group, name)
        dim = variable.dims[0] if variable.dims else ""
        moved[name] = _moved(cells, positions[dim], lengths[dim], variable) if dim in positions else cells
    return replace(row, variables=moved)


def _moved(cells: Cells, positions: NDArray[np.int64], length: int, variable: Variable) -> Cells:
    if isinstance(cells, SparseCounts):
        within = math.prod(cells.shape[1:])
        place, rest = np.divmod(cells.index.astype(np.int64), within)
        index = (positions[place] * within + rest).astype(np.uint32)
        return SparseCounts((length, *cells.shape[1:]), index, cells.counts)
    target = np.full((length, *cells.shape[1:]), variable.fill_value, dtype=variable.dtype)
    target[positions[: len(cells)]] = cells
    return target


def stacked(rows: Sequence[Row], variable: Variable, shape: tuple[int, ...], *, start: int = 0) -> NDArray[Any]:
    """Cells of one variable for all rows, dense, from position ``start`` of its growing axis.

    Parameters
    ----------
    rows : sequence of Row
        Checked rows; one that lacks the variable, or is too short, contributes fill values.
    variable : Variable
        Its first dimension is the one that grows.
    shape : tuple of int
        Cells to give per row: the first axis counts from ``start``.

    Returns
    -------
    ndarray
        Shape ``(len(rows), *shape)``, of the variable's type.
    """
    block = np.full((len(rows), *shape), variable.fill_value, dtype=variable.dtype)
    for position, row in enumerate(rows):
        cells = row.variables.get(variable.name)
        if isinstance(cells, SparseCounts):
            _scatter(cells, block[position], start)
        elif cells is not None and not shape:
            block[position] = cells
        elif cells is not None:
            part = cells[start : start + shape[0]]
            block[position, : len(part)] = part
    return block


def _scatter(cells: SparseCounts, target: NDArray[Any], start: int) -> None:
    first = start * math.prod(target.shape[1:])
    inside = (cells.index >= first) & (cells.index < first + target.size)
    target.reshape(-1)[cells.index[inside] - first] = cells.counts[inside]
