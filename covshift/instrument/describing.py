"""What a layer is, told from its module and its first output: axes, units, dtype, kind."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from covshift import schema
from covshift.instrument import sites
from covshift.instrument.callsites import Read
from covshift.instrument.forward import Forward
from covshift.instrument.incidents import Incidents
from covshift.instrument.structural import ZeroSet
from covshift.instrument.unitaxes import UnitAxes


@dataclass(frozen=True)
class Settings:
    """What the user asked to observe."""

    layers: sites.Selection | list[sites.Selection] | None = None
    signals: tuple[str, ...] = schema.SIGNALS
    unit_axis: Mapping[str, int] = field(default_factory=dict)
    example_axis: int = 0
    functional: bool = False


class Describer:
    """Describes the layers of one recorder; names once what it cannot tell.

    Attributes
    ----------
    units : UnitAxes
        Unit axes met so far.
    """

    def __init__(self, settings: Settings, incidents: Incidents) -> None:
        self.units = UnitAxes()
        self._settings, self._incidents = settings, incidents

    def of_input(self, forward: Forward, blank: schema.Layer, tensor: torch.Tensor) -> schema.Layer:
        """An input of the model, as a layer."""
        described = self.of_output(forward, blank, nn.Identity(), tensor, Read(), zeros=None, producer="")
        return replace(described, module_type="input")

    def of_preactivation(
        self, forward: Forward, blank: schema.Layer, module: nn.Module, z: torch.Tensor
    ) -> schema.Layer:
        """The layer as reader of ``z``: no units, and examples where the example axis holds the batch."""
        unit_axis, example_axis = sites.axes(module, z, None)
        example_axis = self._example_axis(forward, module, z, unit_axis, example_axis)
        matches = is_batch(forward, z, example_axis) and not sites.is_parametrization(blank.name)
        return replace(blank, unit_count=0, example_axis=example_axis if matches else schema.UNKNOWN_AXIS)

    def of_output(
        self,
        forward: Forward,
        blank: schema.Layer,
        module: nn.Module,
        tensor: torch.Tensor,
        read: Read,
        *,
        path: str = "",
        zeros: ZeroSet | None,
        producer: str,
    ) -> schema.Layer:
        """Static description of a layer from its first output, at ``path`` of what the module returned."""
        inherited = self.units.of_output(forward, module, tensor, read)
        unit_axis, example_axis = sites.axes(module, tensor, inherited)
        example_axis = self._example_axis(forward, module, tensor, unit_axis, example_axis)
        if isinstance(module, nn.RNNBase) and path.startswith("1") and tensor.ndim == 3:
            # The last state is (layers, batch, units), whatever batch_first says of the sequence.
            example_axis = 1
        unit_axis = self._unit_axis(blank.name, tensor, unit_axis)
        if unit_axis == example_axis and tensor.ndim > 1:
            # A single example without a batch axis.
            example_axis = schema.UNKNOWN_AXIS
        layer = replace(
            blank,
            module_type=type(module).__name__,
            activation=sites.activation_kind(module),
            linkage_members=len(module.linkage_members) if sites.is_linkage(module) else 0,  # type: ignore[arg-type]
            preactivation_of=producer,
            structural_measured=zeros is not None and zeros.covers(tensor.dtype),
            unit_axis=unit_axis,
            example_axis=example_axis,
            unit_count=tensor.shape[unit_axis] if tensor.ndim > 1 and unit_axis != schema.UNKNOWN_AXIS else 0,
            dtype=str(tensor.dtype).removeprefix("torch."),
            memory_format=_memory_format(tensor),
        )
        if sites.is_parametrization(blank.name):
            # A weight has no examples, though its first axis be as long as the batch.
            return _blind(layer)
        if tensor.ndim and example_axis != schema.UNKNOWN_AXIS and not is_batch(forward, tensor, example_axis):
            return self._without_axes(layer, tensor, forward.batch_size or 0)
        if unit_axis == schema.UNKNOWN_AXIS:
            self._name_dispute(layer, tensor)
        return layer

    def _name_dispute(self, layer: schema.Layer, tensor: torch.Tensor) -> None:
        self._incidents.warn_once(
            "unit axis",
            layer.name,
            f"layer '{layer.name}': more than one axis of its output {tuple(tensor.shape)} may count its units, by "
            "what it reads and by layers of that shape; recorded without units. Name the axis: "
            f"unit_axis={{{layer.name!r}: axis}}",
        )

    def _unit_axis(self, name: str, tensor: torch.Tensor, by_type: int) -> int:
        """The axis that counts units: as the user names it for the layer, else as the module's type says."""
        for pattern, axis in reversed(list(self._settings.unit_axis.items())):
            if fnmatch.fnmatchcase(name, pattern):
                if -tensor.ndim <= axis < tensor.ndim:
                    return axis % tensor.ndim
                expected = f"an axis from {-tensor.ndim} to {tensor.ndim - 1}" if tensor.ndim else "no axis to name"
                self._incidents.warn_once(
                    "unit axis",
                    name,
                    f"unit_axis={{{pattern!r}: {axis}}}: layer '{name}' has an output of shape {tuple(tensor.shape)}, "
                    f"expected {expected}; its units are counted as without unit_axis=",
                )
                break
        return by_type

    def _example_axis(
        self, forward: Forward, module: nn.Module, tensor: torch.Tensor, unit_axis: int, by_type: int
    ) -> int:
        """The axis that counts examples in the model's input, unless the module's type says or the shape forbids it."""
        axis = self._settings.example_axis
        if axis == 0 or hasattr(module, "batch_first") or not -tensor.ndim <= axis < tensor.ndim:
            return by_type
        axis %= tensor.ndim
        return axis if axis != unit_axis and is_batch(forward, tensor, axis) else by_type

    def _without_axes(self, layer: schema.Layer, tensor: torch.Tensor, batch_size: int) -> schema.Layer:
        self._incidents.warn_once(
            "axis",
            layer.name,
            f"layer '{layer.name}': axis {layer.example_axis} of its output {tuple(tensor.shape)} is not the batch of "
            f"{batch_size}; recorded without units and example groups, for where examples end is not known. If another "
            "axis of the model's input counts them, name it with example_axis=",
        )
        return _blind(layer)


def _blind(layer: schema.Layer) -> schema.Layer:
    return replace(layer, unit_axis=schema.UNKNOWN_AXIS, example_axis=schema.UNKNOWN_AXIS, unit_count=0)


def is_batch(forward: Forward, tensor: torch.Tensor, axis: int) -> bool:
    """Whether an axis is as long as the batch, as far as that is known."""
    return forward.batch_size is None or (tensor.ndim > 0 and tensor.shape[axis] == forward.batch_size)


def _memory_format(tensor: torch.Tensor) -> str:
    if tensor.is_contiguous():
        return "contiguous"
    if tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
        return "channels_last"
    return "strided"
