"""The torch reference: a Summary by plain torch operations, on any device and any layout.

This is what a summary means; :mod:`covshift.summary.cpu` computes the same numbers in one pass over memory and is
tested against it. It is also the path for tensors a kernel cannot walk, and for machines without numba.

Nothing here draws random numbers, keeps a reference to the tensor, or writes to it; :func:`packed` never waits for a
device.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from covshift.grid import Grid
from covshift.summary.numbers import COLUMNS
from covshift.summary.summary import Histogram, Summary, UnitSummary, example_count

_UNIT_FIELDS, _UNIT_COUNTS = 9, 5

_WIDEST_EXACT = {torch.float16: torch.float32, torch.bfloat16: torch.float32}
_SAME_WIDTH = {2: torch.int16, 4: torch.int32, 8: torch.int64}


class _Kinds(NamedTuple):
    """Which elements are what, told from their bits: arithmetic may read subnormals as zero, bits never do."""

    zero: torch.Tensor
    negative: torch.Tensor
    subnormal: torch.Tensor
    infinite: torch.Tensor
    nan: torch.Tensor


@torch.no_grad()
def packed(
    tensor: torch.Tensor,
    *,
    unit_axis: int | None,
    example_axis: int | None,
    grid: Grid | None,
    groups: int,
    units: bool,
) -> torch.Tensor:
    """Everything a summary of ``tensor`` holds, as one float64 vector on the tensor's own device.

    Nothing is copied to the host, so that the vectors of many tensors can be joined and copied together; counts are
    exact, being below 2**53. :func:`unpacked` reads the vector. Parameters as in :func:`covshift.summary.summarize`;
    the tensor must have elements.

    Returns
    -------
    Tensor
        The row of :data:`covshift.summary.numbers.COLUMNS`, then the histogram, then the units.
    """
    values = tensor.detach().resolve_neg()
    wide, kinds = values.to(torch.float64), _kinds(values)
    finite = ~(kinds.infinite | kinds.nan)
    infinite, negative = kinds.infinite.sum(), (kinds.infinite & kinds.negative).sum()
    counts = (
        kinds.zero.sum(),
        kinds.negative.sum(),
        kinds.nan.sum(),
        infinite - negative,
        negative,
        kinds.subnormal.sum(),
    )
    extremes = torch.where(finite, wide, math.inf).min(), torch.where(finite, wide, -math.inf).max()
    # Filled where the tensor lies: a tensor made from Python numbers would be copied there.
    known = [wide.new_full((1,), number) for number in (values.numel(), example_count(values.shape, example_axis))]
    numbers = (*known, *counts, *_moments(wide, finite), *extremes)
    parts = [torch.cat([number.to(torch.float64).reshape(1) for number in numbers])]
    if grid is not None:
        parts.append(_histogram(values, grid, example_axis, groups).reshape(-1).to(torch.float64))
    if units and unit_axis is not None:
        parts.append(_units(wide, finite, kinds, unit_axis, example_axis).reshape(-1))
    return torch.cat(parts)


def unpacked(
    vector: NDArray[np.float64], *, grid: Grid | None, groups: int
) -> tuple[NDArray[np.float64], Histogram | None, UnitSummary | None]:
    """What :func:`packed` has packed with the same ``grid`` and ``groups``: row of numbers, histogram, units."""
    row, rest = vector[: len(COLUMNS)], vector[len(COLUMNS) :]
    histogram = None
    if grid is not None:
        counts, rest = np.split(rest, [groups * grid.size])
        histogram = Histogram(grid, counts.astype(np.int64).reshape(groups, grid.size))
    if not rest.size:
        return row, histogram, None
    fields = rest.reshape(_UNIT_FIELDS, -1)
    integers = fields[:_UNIT_COUNTS].astype(np.int64)
    return row, histogram, UnitSummary(*integers, *fields[_UNIT_COUNTS:])


def summarize_by_torch(
    tensor: torch.Tensor,
    *,
    unit_axis: int | None,
    example_axis: int | None,
    grid: Grid | None,
    groups: int,
    units: bool,
) -> Summary:
    """Summary of one strided floating-point tensor; parameters as in :func:`covshift.summary.summarize`."""
    if tensor.numel() == 0:
        return Summary()
    vector = packed(tensor, unit_axis=unit_axis, example_axis=example_axis, grid=grid, groups=groups, units=units)
    row, histogram, by_unit = unpacked(vector.cpu().numpy(), grid=grid, groups=groups)
    return Summary.of(row, histogram=histogram, units=by_unit)


def _kinds(values: torch.Tensor) -> _Kinds:
    bits = values.view(_SAME_WIDTH[values.element_size()])
    top = torch.iinfo(bits.dtype).max
    infinity, normal = (
        int(torch.tensor(value, dtype=values.dtype).view(bits.dtype))
        for value in (math.inf, torch.finfo(values.dtype).tiny)
    )
    magnitude = bits & top
    zero, nan = magnitude == 0, magnitude > infinity
    return _Kinds(
        zero=zero,
        negative=(bits < 0) & ~zero & ~nan,
        subnormal=~zero & (magnitude < normal),
        infinite=magnitude == infinity,
        nan=nan,
    )


def _moments(wide: torch.Tensor, finite: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Corrected two-pass sums (Chan, Golub & LeVeque 1983): the mean is rounded, the corrections undo it."""
    count = finite.sum().clamp(min=1)
    mean = torch.where(finite, wide, 0.0).sum() / count
    deviation = torch.where(finite, wide - mean, 0.0)
    square = deviation * deviation
    s1, s2, s3, s4 = (part.sum() for part in (deviation, square, square * deviation, square * square))
    rest = s1 / count
    return (
        mean + rest,
        s2 - rest * s1,
        s3 - 3 * rest * s2 + 2 * rest * rest * s1,
        s4 - 4 * rest * s3 + 6 * rest * rest * s2 - 3 * rest * rest * rest * s1,
    )


def _units(
    wide: torch.Tensor, finite: torch.Tensor, kinds: _Kinds, unit_axis: int, example_axis: int | None
) -> torch.Tensor:
    """Fields of a :class:`UnitSummary` over rows of shape ``(units, examples, positions)``; shape ``(9, units)``."""
    parts = (wide, finite, kinds.zero, kinds.negative, kinds.nan)
    rows = [_by_unit_and_example(part, unit_axis, example_axis) for part in parts]
    active = (~rows[2]).any(2).sum(1)
    flat, mask, zero, negative, nan = (part.flatten(1) for part in rows)
    count = mask.sum(1)
    mean = torch.where(mask, flat, 0.0).sum(1) / count.clamp(min=1)
    deviation = torch.where(mask, flat - mean[:, None], 0.0)
    rest = deviation.sum(1) / count.clamp(min=1)
    fields = (
        torch.full_like(count, flat.shape[1]),
        count,
        zero.sum(1),
        (~(zero | negative | nan)).sum(1),
        active if example_axis is not None else torch.zeros_like(count),
        mean + rest,
        (deviation * deviation).sum(1) - rest * deviation.sum(1),
        torch.where(mask, flat, math.inf).amin(1),
        torch.where(mask, flat, -math.inf).amax(1),
    )
    return torch.stack([field.to(torch.float64) for field in fields])


def _by_unit_and_example(values: torch.Tensor, unit_axis: int, example_axis: int | None) -> torch.Tensor:
    rows = values.movedim(unit_axis, 0)
    if example_axis is None:
        return rows.reshape(rows.shape[0], 1, -1)
    example, unit = example_axis % values.ndim, unit_axis % values.ndim
    rows = rows.movedim(example if example > unit else example + 1, 1)
    return rows.reshape(rows.shape[0], rows.shape[1], -1)


def _histogram(values: torch.Tensor, grid: Grid, example_axis: int | None, groups: int) -> torch.Tensor:
    """Counts by example group: example ``i`` belongs to group ``i mod groups``, everything to 0 without examples."""
    ids = bin_ids(values, grid)
    if example_axis is not None and groups > 1:
        shape = [1] * values.ndim
        shape[example_axis] = -1
        example = torch.arange(values.shape[example_axis], device=values.device) % groups
        ids = ids + example.reshape(shape) * grid.size
    # bincount would read the largest id back to the host.
    counts = torch.zeros(groups * grid.size, dtype=torch.int64, device=values.device)
    return counts.scatter_add_(0, ids.reshape(-1), torch.ones_like(ids).reshape(-1))


def bin_ids(values: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Bin id of every element, int64, shaped like ``values``; the torch form of :meth:`covshift.grid.Grid.ids`."""
    exact = values.to(_WIDEST_EXACT.get(values.dtype, values.dtype)).contiguous()
    double = exact.dtype == torch.float64
    width, bias = (52, 1023) if double else (23, 127)
    bits = exact.view(torch.int64 if double else torch.int32).to(torch.int64)
    magnitude = bits & (2**63 - 1 if double else 2**31 - 1)
    infinity = (2 * bias + 1) << width
    octave = (magnitude >> (width - grid.mantissa_bits)) - ((grid.min_exponent + bias) << grid.mantissa_bits)
    rank = octave.clamp(-1, grid.side) + 2
    rank = torch.where(magnitude == 0, 0, rank)
    rank = torch.where(magnitude == infinity, grid.side + 3, rank)
    signed = torch.where(bits < 0, grid.zero - rank, grid.zero + rank)
    return torch.where(magnitude > infinity, grid.nan, signed)
