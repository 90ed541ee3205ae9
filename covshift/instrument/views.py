"""Views that cover their base, by numbers alone: where in the base's gradient each element of the view has its own.

An operation in place on a view makes its gradient arrive at the base, which has other axes. What is kept of a view is
its size and strides, never a tensor: whoever waits for a gradient would keep that alive.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch


class View(NamedTuple):
    """How a view and its base lie over the same elements of memory."""

    size: torch.Size
    stride: tuple[int, ...]
    base_size: torch.Size
    base_stride: tuple[int, ...]

    def of(self, gradient: torch.Tensor) -> torch.Tensor:
        """The base's gradient with the axes of the view.

        Without a copy, unless the gradient lies in memory in another order than the base does.
        """
        laid = gradient.detach()
        if laid.stride() != self.base_stride:
            laid = torch.empty_strided(self.base_size, self.base_stride, dtype=laid.dtype, device=laid.device)
            laid.copy_(gradient.detach())
        return laid.as_strided(self.size, self.stride, laid.storage_offset())


def view_of(tensor: torch.Tensor, base: torch.Tensor) -> View | None:
    """How ``tensor`` covers its base; None for a view that does not show every element of its base once.

    And for one of a leaf: torch lets nobody modify a leaf in place, nor a view of it, and keep the graph.
    """
    if type(base) is not torch.Tensor or base.is_leaf or base.numel() != tensor.numel():
        return None
    view = View(tensor.shape, tensor.stride(), base.shape, base.stride())
    is_same = (
        tensor.dtype == base.dtype
        and tensor.storage_offset() == base.storage_offset()
        and tensor.is_neg() == base.is_neg()
        and is_dense(view.size, view.stride)
        and is_dense(view.base_size, view.base_stride)
    )
    return view if is_same else None


def is_dense(size: Sequence[int], stride: Sequence[int]) -> bool:
    """Whether the elements fill a stretch of memory from its start, each once, in whatever order."""
    reach = 1
    for step, length in sorted(zip(stride, size, strict=True)):
        if length == 1:
            continue
        if step != reach:
            return False
        reach *= length
    return True
