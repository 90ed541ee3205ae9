"""The torch reference: a Summary by plain torch operations, on any device and any layout.

This is what a summary means; :mod:`covshift.summary.cpu` computes the same numbers in one pass over memory and is
tested against it. It is also the path for tensors a kernel cannot walk, and for machines without numba.

Nothing here draws random numbers, keeps a reference to the tensor, or writes to it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from covshift.grid import Grid
from covshift.summary.summary import Histogram, Moments, Summary, UnitSummary, example_count

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
    values = tensor.detach().resolve_neg()
    if values.numel() == 0:
        return Summary()
    wide, kinds = values.to(torch.float64), _kinds(values)
    finite = ~(kinds.infinite | kinds.nan)
    infinite, negative = int(kinds.infinite.sum()), int((kinds.infinite & kinds.negative).sum())
    return Summary(
        count=values.numel(),
        example_count=example_count(values.shape, example_axis),
        zero_count=int(kinds.zero.sum()),
        negative_count=int(kinds.negative.sum()),
        nan_count=int(kinds.nan.sum()),
        posinf_count=infinite - negative,
        neginf_count=negative,
        subnormal_count=int(kinds.subnormal.sum()),
        moments=_moments(wide, finite),
        min=float(torch.where(finite, wide, math.inf).min()),
        max=float(torch.where(finite, wide, -math.inf).max()),
        histogram=_histogram(values, grid, example_axis, groups) if grid is not None else None,
        units=_units(wide, finite, kinds, unit_axis, example_axis) if units and unit_axis is not None else None,
    )


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


def _moments(wide: torch.Tensor, finite: torch.Tensor) -> Moments:
    """Corrected two-pass sums (Chan, Golub & LeVeque 1983): the mean is rounded, the corrections undo it."""
    count = int(finite.sum())
    if count == 0:
        return Moments()
    mean = float(torch.where(finite, wide, 0.0).sum()) / count
    deviation = torch.where(finite, wide - mean, 0.0)
    square = deviation * deviation
    s1, s2, s3, s4 = (float(part.sum()) for part in (deviation, square, square * deviation, square * square))
    rest = s1 / count
    return Moments(
        count,
        mean + rest,
        s2 - rest * s1,
        s3 - 3 * rest * s2 + 2 * rest * rest * s1,
        s4 - 4 * rest * s3 + 6 * rest * rest * s2 - 3 * rest * rest * rest * s1,
    )


def _units(
    wide: torch.Tensor, finite: torch.Tensor, kinds: _Kinds, unit_axis: int, example_axis: int | None
) -> UnitSummary:
    """Per-unit numbers over rows of shape ``(units, examples, positions)``."""
    parts = (wide, finite, kinds.zero, kinds.negative, kinds.nan)
    rows = [_by_unit_and_example(part, unit_axis, example_axis) for part in parts]
    active = (~rows[2]).any(2).sum(1)
    flat, mask, zero, negative, nan = (part.flatten(1) for part in rows)
    count = mask.sum(1)
    mean = torch.where(mask, flat, 0.0).sum(1) / count.clamp(min=1)
    deviation = torch.where(mask, flat - mean[:, None], 0.0)
    rest = deviation.sum(1) / count.clamp(min=1)
    integers = (
        torch.full_like(count, flat.shape[1]),
        count,
        zero.sum(1),
        (~(zero | negative | nan)).sum(1),
        active if example_axis is not None else torch.zeros_like(count),
    )
    floats = (
        mean + rest,
        (deviation * deviation).sum(1) - rest * deviation.sum(1),
        torch.where(mask, flat, math.inf).amin(1),
        torch.where(mask, flat, -math.inf).amax(1),
    )
    return UnitSummary(*(part.cpu().numpy() for part in (*integers, *floats)))


def _by_unit_and_example(values: torch.Tensor, unit_axis: int, example_axis: int | None) -> torch.Tensor:
    rows = values.movedim(unit_axis, 0)
    if example_axis is None:
        return rows.reshape(rows.shape[0], 1, -1)
    example, unit = example_axis % values.ndim, unit_axis % values.ndim
    rows = rows.movedim(example if example > unit else example + 1, 1)
    return rows.reshape(rows.shape[0], rows.shape[1], -1)


def _histogram(values: torch.Tensor, grid: Grid, example_axis: int | None, groups: int) -> Histogram:
    """Counts by example group: example ``i`` belongs to group ``i mod groups``, everything to 0 without examples."""
    ids = bin_ids(values, grid)
    if example_axis is not None and groups > 1:
        shape = [1] * values.ndim
        shape[example_axis] = -1
        example = torch.arange(values.shape[example_axis], device=values.device) % groups
        ids = ids + example.reshape(shape) * grid.size
    counts = torch.bincount(ids.reshape(-1), minlength=groups * grid.size)
    return Histogram(grid, counts.reshape(groups, grid.size).cpu().numpy())


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
