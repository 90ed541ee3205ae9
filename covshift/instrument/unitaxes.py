"""Which axis counts units where no module says so: that of the tensor that was read, or of layers of the same shape.

A wrong axis is worse than none: dead units hide among positions. Where what was met disagrees, units are unknown.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from covshift import schema
from covshift.instrument import sites
from covshift.instrument.callsites import Read
from covshift.instrument.forward import Forward, Seen

DISPUTED = schema.UNKNOWN_AXIS
"""In place of an axis: what was met says different things. None says that nothing was met."""

_FEWEST_AXES = 3
"""Below, an axis beside that of the examples is the only one."""


class UnitAxes:
    """What was met so far: shapes of first outputs, and the axes that count their units."""

    def __init__(self) -> None:
        self._met: list[tuple[tuple[int, ...], int]] = []

    def meet(self, tensor: torch.Tensor, axis: int) -> None:
        """A layer was described by its first output."""
        if axis != schema.UNKNOWN_AXIS and tensor.ndim >= _FEWEST_AXES:
            self._met.append((tuple(tensor.shape), axis))

    def read(self, forward: Forward, z: object, seen: Seen | None, within: Read | None) -> Read:
        """What a module called inside of another, which was itself given ``within``, is given now."""
        if not isinstance(z, torch.Tensor) or z.layout is not torch.strided or z.is_nested:
            return Read(begun=len(self._met))
        axis = _of_seen(seen) if seen is not None else forward.axis_of(z)
        if seen is None and axis is None:
            axis = self._of_unseen(forward, z, within)
        return Read(tuple(z.shape), z.stride(), _address(z), axis, len(self._met))

    def _of_unseen(self, forward: Forward, z: torch.Tensor, within: Read | None) -> int | None:
        axis = _of_base(forward, z)
        if axis is None:
            axis = self._of_shape(tuple(z.shape), within or Read())
        return self._of_shape(tuple(z.shape), None) if axis is None else axis

    def _of_shape(self, shape: tuple[int, ...], within: Read | None) -> int | None:
        """The one axis on which layers of a shape count units: those met inside of a call, or all of them."""
        if len(shape) < _FEWEST_AXES:
            return None
        axes = {axis for known, axis in self._met[within.begun if within else 0 :] if known == shape}
        if within is not None and within.shape == shape and within.axis is not None:
            axes.add(within.axis)
        return None if not axes else axes.pop() if len(axes) == 1 else DISPUTED

    def of_unrecorded(self, forward: Forward, module: nn.Module, tensor: torch.Tensor, read: Read) -> int | None:
        """Unit axis of what a module without children returned that is not recorded; None where nothing tells."""
        inherited = self.of_output(forward, module, tensor, read)
        if inherited is None and not sites.says_axis(module):
            return None
        axis, _ = sites.axes(module, tensor, inherited)
        self.meet(tensor, axis)
        return axis

    def of_output(self, forward: Forward, module: nn.Module, tensor: torch.Tensor, read: Read) -> int | None:
        """Unit axis of what a module returned, as far as what it read and what was met inside of it tell.

        Elementwise modules and their like hand on the axis of what they read, views of it take the axis along. What a
        module around others returns is mostly a sum of what these made.
        """
        shape, axis = tuple(tensor.shape), None
        if tensor.layout is not torch.strided:
            return None
        if not sites.is_leaf(module):
            axis = _of_base(forward, tensor)
            axis = self._of_shape(shape, read) if axis is None else axis
        if axis is None:
            axis = _handed_on(read, tensor)
        if axis is None and not sites.is_leaf(module):
            axis = self._of_shape(shape, None)
        return axis


def _of_seen(seen: Seen) -> int | None:
    layer = seen.layer.layer
    # A layer without any axis was named when it was met, and tells nothing.
    nothing = layer.unit_axis == schema.UNKNOWN_AXIS and layer.example_axis == schema.UNKNOWN_AXIS
    return None if nothing else layer.unit_axis


def _of_base(forward: Forward, tensor: torch.Tensor) -> int | None:
    """Unit axis of a view of a tensor that a layer returned: ``x.permute(0, 2, 3, 1)`` takes it along."""
    base = tensor._base
    seen = forward.find(base) if base is not None else None
    if base is None:
        return None
    axis = _of_seen(seen) if seen is not None else forward.axis_of(base)
    if axis is None:
        return None
    return _along(base.shape, base.stride(), axis, tensor)


def _handed_on(read: Read, tensor: torch.Tensor) -> int | None:
    """Unit axis of an output, given that of what was read."""
    if read.axis is None or read.axis == DISPUTED:
        return read.axis if len(read.shape) == tensor.ndim else None
    if read.address and _address(tensor) == read.address:
        axis = _along(read.shape, read.stride, read.axis, tensor)
        if axis is not None:
            return axis
    if len(read.shape) != tensor.ndim:
        return None
    shape, units = tuple(tensor.shape), read.shape[read.axis]
    if shape[read.axis] == units or sorted(shape) != sorted(read.shape):
        return read.axis
    # Permuted, and copied.
    places = [place for place in range(1, len(shape)) if shape[place] == units]
    return places[0] if len(places) == 1 else DISPUTED


def _along(shape: Sequence[int], stride: Sequence[int], axis: int, view: torch.Tensor) -> int | None:
    """Where a view has the axis of what it shows, told by its step in memory; None where it has none, or several."""
    if axis == DISPUTED:
        return DISPUTED
    wanted = shape[axis], stride[axis]
    places = [place for place, step in enumerate(zip(view.shape, view.stride(), strict=True)) if step == wanted]
    return places[0] if len(places) == 1 and shape[axis] > 1 else None


def _address(tensor: torch.Tensor) -> int:
    """Where its first element lies; 0 for what has no memory of its own."""
    return tensor.data_ptr() if type(tensor) is torch.Tensor and torch._C._has_storage(tensor) else 0
