"""The torch reference: a Summary by plain torch operations, on any device and any layout.

This is what a summary means; :mod:`covshift.summary.cpu` computes the same numbers in one pass over memory and is
tested against it. It is also the path for tensors a kernel cannot walk, and for machines without numba.

Nothing here draws random numbers, keeps a reference to the tensor, or writes to it.
"""

from __future__ import annotations

import math

import torch

from covshift.grid import Grid
from covshift.summary.summary import Histogram, Moments, Summary, UnitSummary

_WIDEST_EXACT = {torch.float16: torch.float32, torch.bfloat16: torch.float32}


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
    values = tensor.detach()
    if values.numel() == 0:
        return Summary()
    wide = values.to(torch.float64)
    finite = torch.isfinite(wide)
    positive_infinities, negative_infinities = int(torch.isposinf(wide).sum()), int(torch.isneginf(wide).sum())
    low, high = _extremes(wide, finite)
    return Summary(
        count=values.numel(),
        example_count=1 if example_axis is None and values.ndim == 0 else _length(values, example_axis),
        zero_count=values.numel() - int(torch.count_nonzero(wide)),
        negative_count=int((wide < 0).sum()),
        nan_count=int(torch.isnan(wide).sum()),
        posinf_count=positive_infinities,
        neginf_count=negative_infinities,
        subnormal_count=int(((wide != 0) & (wide.abs() < torch.finfo(values.dtype).tiny)).sum()),
        moments=_moments(wide, finite),
        min=low,
        max=high,
        histogram=_histogram(values, grid, example_axis, groups) if grid is not None else None,
        units=_units(wide, finite, unit_axis, example_axis) if units and unit_axis is not None else None,
    )


def _length(values: torch.Tensor, axis: int | None) -> int:
    return 0 if axis is None else values.shape[axis]


def _extremes(wide: torch.Tensor, finite: torch.Tensor) -> tuple[float, float]:
    return (
        float(torch.where(finite, wide, math.inf).min()),
        float(torch.where(finite, wide, -math.inf).max()),
    )


def _moments(wide: torch.Tensor, finite: torch.Tensor) -> Moments:
    count = int(finite.sum())
    if count == 0:
        return Moments()
    mean = float(torch.where(finite, wide, 0.0).sum()) / count
    deviation = torch.where(finite, wide - mean, 0.0)
    square = deviation * deviation
    return Moments(count, mean, float(square.sum()), float((square * deviation).sum()), float((square * square).sum()))


def _units(wide: torch.Tensor, finite: torch.Tensor, unit_axis: int, example_axis: int | None) -> UnitSummary:
    """Per-unit numbers over rows of shape ``(units, examples, positions)``."""
    rows, kept = (_by_unit_and_example(part, unit_axis, example_axis) for part in (wide, finite))
    flat, mask = rows.flatten(1), kept.flatten(1)
    finite_count = mask.sum(1)
    mean = torch.where(mask, flat, 0.0).sum(1) / finite_count.clamp(min=1)
    deviation = torch.where(mask, flat - mean[:, None], 0.0)
    integers = (
        torch.full_like(finite_count, flat.shape[1]),
        finite_count,
        (flat == 0).sum(1),
        (flat > 0).sum(1),
        (rows != 0).any(2).sum(1) if example_axis is not None else torch.zeros_like(finite_count),
    )
    floats = (
        mean,
        (deviation * deviation).sum(1),
        torch.where(mask, flat, math.inf).amin(1),
        torch.where(mask, flat, -math.inf).amax(1),
    )
    return UnitSummary(*(part.cpu().numpy() for part in (*integers, *floats)))


def _by_unit_and_example(values: torch.Tensor, unit_axis: int, example_axis: int | None) -> torch.Tensor:
    rows = values.movedim(unit_axis, 0)
    if example_axis is None:
        return rows.reshape(rows.shape[0], 1, -1)
    example = example_axis % values.ndim
    rows = rows.movedim(example if example > unit_axis % values.ndim else example + 1, 1)
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
