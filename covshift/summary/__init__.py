"""Tensor in, Summary out: mergeable moments and counts of one tensor, read once where it lies."""

from __future__ import annotations

import torch

from covshift.exceptions import InvalidArgumentError
from covshift.grid import VALUES, Grid
from covshift.summary.cpu import FORMS, prepare, summarize_by_kernel
from covshift.summary.device import summarize_by_torch
from covshift.summary.summary import Histogram, Moments, Summary, UnitSummary

__all__ = ["Histogram", "Moments", "Summary", "UnitSummary", "prepare", "summarize"]


def summarize(
    tensor: torch.Tensor,
    *,
    unit_axis: int | None = None,
    example_axis: int | None = 0,
    grid: Grid | None = VALUES,
    groups: int = 4,
    units: bool = True,
) -> Summary:
    """Summary of one tensor.

    Parameters
    ----------
    tensor : Tensor
        Any shape; float32, float64, bfloat16 or float16; any strides; CPU or accelerator. It is only read: on the
        CPU in one pass over its memory by fused kernels, elsewhere by torch operations.
    unit_axis : int or None
        Axis that counts units; None or an absent axis leaves ``Summary.units`` out.
    example_axis : int or None, default 0
        Axis that counts independent examples; None where unknown: then ``example_count`` and every
        ``active_examples`` are 0 and all elements are in example group 0.
    grid : Grid or None, default the grid of activations
        Bins of the histogram; None for no histogram.
    groups : int, default 4
        Example groups of the histogram, from which the noise floor of a shift is estimated
        (an example ``i`` counts in group ``i mod groups``).
    units : bool, default True
        Whether to summarise units.

    Returns
    -------
    Summary
        An empty tensor gives ``Summary()``. Kinds and bins of elements go by their bits, moments and extremes by
        arithmetic: where the machine is told to flush subnormals to zero, these are zero to the latter only.

    Raises
    ------
    InvalidArgumentError
        If the tensor is no strided floating-point tensor with values, an axis is out of range, or one axis is to
        count both units and examples.
    """
    _check(tensor, unit_axis, example_axis, groups)
    if tensor.ndim == 0:
        unit_axis = example_axis = None
    summary = summarize_by_kernel(
        tensor, unit_axis=unit_axis, example_axis=example_axis, grid=grid, groups=groups, units=units
    )
    if summary is not None:
        return summary
    return summarize_by_torch(
        tensor, unit_axis=unit_axis, example_axis=example_axis, grid=grid, groups=groups, units=units
    )


def _check(tensor: torch.Tensor, unit_axis: int | None, example_axis: int | None, groups: int) -> None:
    kind = "nested" if tensor.is_nested else "meta" if tensor.is_meta else tensor.layout
    if kind != torch.strided or tensor.dtype not in FORMS:
        raise InvalidArgumentError(
            f"tensor: {kind}, {tensor.dtype}: expected a strided tensor of float32, float64, bfloat16 or float16, "
            "with values; convert it first"
        )
    ndim = tensor.ndim
    for name, axis in (("unit_axis", unit_axis), ("example_axis", example_axis)):
        if axis is not None and ndim and not -ndim <= axis < ndim:
            raise InvalidArgumentError(f"{name}={axis}: the tensor has {ndim} axes; expected an axis or None")
    if ndim and unit_axis is not None and example_axis is not None and (unit_axis - example_axis) % ndim == 0:
        raise InvalidArgumentError(
            f"unit_axis={unit_axis} and example_axis={example_axis} are the same axis: an entry is a unit or an "
            "example; give None for the other"
        )
    if groups < 1:
        raise InvalidArgumentError(f"groups={groups}: expected at least 1")
