"""Tensor in, Summary out: mergeable moments and counts of one tensor, read once where it lies."""

from __future__ import annotations

import torch

from covshift.exceptions import InvalidArgumentError
from covshift.grid import VALUES, Grid
from covshift.summary.device import summarize_by_torch
from covshift.summary.summary import Histogram, Moments, Summary, UnitSummary

__all__ = ["Histogram", "Moments", "Summary", "UnitSummary", "summarize"]

FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


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
        Any shape; float32, float64, bfloat16 or float16; any strides; CPU or accelerator. It is only read.
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
        An empty tensor gives ``Summary()``.

    Raises
    ------
    InvalidArgumentError
        If the tensor is no strided floating-point tensor, or an axis is out of range.
    """
    _check(tensor, unit_axis, example_axis, groups)
    if tensor.ndim == 0:
        unit_axis = example_axis = None
    return summarize_by_torch(
        tensor, unit_axis=unit_axis, example_axis=example_axis, grid=grid, groups=groups, units=units
    )


def _check(tensor: torch.Tensor, unit_axis: int | None, example_axis: int | None, groups: int) -> None:
    if tensor.layout != torch.strided or tensor.dtype not in FLOATING:
        raise InvalidArgumentError(
            f"tensor: {tensor.layout}, {tensor.dtype}: expected a strided tensor of float32, float64, bfloat16 "
            "or float16; convert it first"
        )
    for name, axis in (("unit_axis", unit_axis), ("example_axis", example_axis)):
        if axis is not None and tensor.ndim and not -tensor.ndim <= axis < tensor.ndim:
            raise InvalidArgumentError(f"{name}={axis}: the tensor has {tensor.ndim} axes; expected an axis or None")
    if groups < 1:
        raise InvalidArgumentError(f"groups={groups}: expected at least 1")
