"""Turn a sequential model into its linked counterpart: linked activations, and wider layers to read them.

The conversion follows one tensor through nested ``nn.Sequential`` containers and keeps account of how many times wider
it has become and in which axis its units lie. It refuses what it cannot follow (own ``forward`` methods, branches,
grouped convolutions, unknown norm layers) by naming the layer, because a silently half-converted model would be taken
for a linked one.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TypeAlias

from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin

from covshift.exceptions import InvalidArgumentError, UnsupportedModelError
from covshift.linked.modules import Linked, LinkedPReLU, LinkedReLU, LinkedSELU, LinkedSiLU

__all__ = ["link_model"]

# Exact types: a subclass may compute something else.
_MIRRORED = {
    nn.CELU, nn.ELU, nn.GELU, nn.Hardshrink, nn.Hardsigmoid, nn.Hardswish, nn.Hardtanh, nn.LeakyReLU, nn.LogSigmoid,
    nn.Mish, nn.ReLU6, nn.RReLU, nn.Sigmoid, nn.Softplus, nn.Softshrink, nn.Softsign, nn.Tanh, nn.Tanhshrink,
    nn.Threshold,
}  # fmt: skip
_NAMED: dict[type[nn.Module], Callable[..., Linked]] = {
    nn.ReLU: LinkedReLU,
    nn.SELU: LinkedSELU,
    nn.SiLU: LinkedSiLU,
}
_ACTIVATIONS = {nn.PReLU, *_NAMED, *_MIRRORED}
_Convolution: TypeAlias = nn.Conv1d | nn.Conv2d | nn.Conv3d
_BatchNorm: TypeAlias = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d
_BATCH_NORMS = {nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d}
_ELEMENTWISE = {
    nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout,
}  # fmt: skip
_SPATIAL = {
    nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.LPPool1d, nn.LPPool2d,
    nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d,
    nn.AdaptiveMaxPool3d, nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d, nn.ConstantPad1d, nn.ConstantPad2d,
    nn.ConstantPad3d, nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d, nn.ReplicationPad1d,
    nn.ReplicationPad2d, nn.ReplicationPad3d, nn.CircularPad1d, nn.CircularPad2d, nn.CircularPad3d, nn.Upsample,
}  # fmt: skip
_SOFTMAXES = {nn.Softmax, nn.LogSoftmax, nn.Softmin, nn.Softmax2d}
_NORMS = {
    nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.LocalResponseNorm,
    nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d,
}  # fmt: skip
_NOT_READING = _ACTIVATIONS | _ELEMENTWISE | _SPATIAL | _BATCH_NORMS | _SOFTMAXES | {nn.Flatten}
_WAY_OUT = "link this part by hand with the modules of covshift.linked, and convert the rest"


@dataclass(frozen=True)
class _Place:
    """A leaf layer, the container that holds it, and its dotted path from the root."""

    path: str
    parent: nn.Module | None
    name: str
    layer: nn.Module

    def refuse(self, problem: str) -> UnsupportedModelError:
        where = f"layer '{self.path}'" if self.path else "the model itself"
        return UnsupportedModelError(f"{where} ({type(self.layer).__name__}) {problem}; {_WAY_OUT}")


@dataclass(frozen=True)
class _Flow:
    """The tensor between two layers: how many times wider than in the original model, and where its units are."""

    factor: int = 1
    units: int | None = None  # in the original model; None where unknown
    axis: int | None = None  # 1, -1, or None where unknown


def link_model(model: nn.Module) -> nn.Module:
    """Copy a sequential model with linked activations, and widen the layers that read them.

    ReLU, PReLU, SELU and SiLU become their linked modules, every other elementwise activation of ``torch.nn`` becomes
    ``Linked(activation)``; the axis is that of the units of the layer before it (1 after a convolution, -1 after
    a Linear, 1 where unknown). The next Conv1d/2d/3d or Linear gets twice the input units, also behind Flatten, and
    BatchNorm in between twice the features; dropout, pooling and padding pass the width on.

    Parameters
    ----------
    model : nn.Module
        Containers must be ``nn.Sequential``, or subclasses with its ``forward``, nested as deep as you like. It is
        left untouched.

    Returns
    -------
    nn.Module
        A deep copy with the same output shape. Layers of unchanged width keep their weights; a widened layer has fresh
        ones, bias included, from its own ``reset_parameters()``, drawn from torch's global generator. PReLU slopes are
        copied to both members. Device, dtype, ``requires_grad`` and training flags are kept; hooks on the replaced
        activations are not.

    Raises
    ------
    InvalidArgumentError
        If ``model`` is not a module.
    UnsupportedModelError
        If a layer cannot be followed, or no activation is read by a later layer. The message names the layer.

    Notes
    -----
    An activation that no later layer reads (only pooling, dropout, Flatten, BatchNorm, softmax or other activations
    follow) is the model's output. It stays single, so that the output keeps its shape.

    Examples
    --------
    >>> link_model(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(288, 10)))
    Sequential(
      (0): Conv2d(3, 8, kernel_size=(3, 3), stride=(1, 1))
      (1): LinkedReLU(members=(relu, mirrored relu), dim=1)
      (2): Flatten(start_dim=1, end_dim=-1)
      (3): Linear(in_features=576, out_features=10, bias=True)
    )
    """
    if not isinstance(model, nn.Module):
        raise InvalidArgumentError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    _refuse_shared(list(_places(_Place("", None, "", model))))
    linked = copy.deepcopy(model)
    places = list(_places(_Place("", None, "", linked)))
    last_reader = max((i for i, place in enumerate(places) if type(place.layer) not in _NOT_READING), default=-1)
    flow, swapped = _Flow(), 0
    for index, place in enumerate(places):
        if type(place.layer) not in _ACTIVATIONS:
            flow = _follow(place, flow)
        elif index < last_reader:
            flow = _swap(place, flow)
            swapped += 1
    if not swapped:
        raise UnsupportedModelError(
            f"the model ({type(model).__name__}) has no activation that a later layer reads, so there is nothing to "
            f"link; {_WAY_OUT}"
        )
    return linked


def _places(place: _Place) -> Iterator[_Place]:
    """Leaf layers in the order in which the tensor passes them."""
    layer = place.layer
    if type(layer).forward is nn.Sequential.forward:
        for name, child in layer._modules.items():
            if child is not None:
                path = f"{place.path}.{name}" if place.path else name
                yield from _places(_Place(path, layer, name, child))
    elif "weight" in vars(layer):
        raise place.refuse("has a weight computed by a hook (weight norm, pruning), which cannot be widened")
    elif hasattr(layer, "linkage_members") or _is_plain(layer):
        yield place
    else:
        raise place.refuse("has a forward of its own, or none yet, through which the tensor cannot be followed")


def _is_plain(layer: nn.Module) -> bool:
    own = type(layer).__module__.startswith("torch.nn.modules.")
    return own and not any(True for _ in layer.children()) and not isinstance(layer, LazyModuleMixin)


def _refuse_shared(places: list[_Place]) -> None:
    """Refuse weights or containers that stand in two places: one width cannot serve both."""
    seen: dict[object, str] = {}
    for place in places:
        for key in [(id(place.parent), place.name), *map(id, place.layer.parameters())]:
            if seen.setdefault(key, place.path) != place.path:
                raise place.refuse(f"shares weights or its container with layer '{seen[key]}', where widths may differ")


def _swap(place: _Place, flow: _Flow) -> _Flow:
    """Put the linked counterpart in an activation's place."""
    layer, dim = place.layer, flow.axis or 1
    if isinstance(layer, nn.PReLU):
        linked: Linked = _linked_prelu(layer, factor=flow.factor, dim=dim)
    elif type(layer) in _NAMED:
        linked = _NAMED[type(layer)](dim=dim)
    else:
        linked = Linked(layer, dim=dim)
    assert place.parent is not None, "an activation with a later reader lies in a container"
    place.parent.add_module(place.name, linked.train(layer.training))
    return replace(flow, factor=2 * flow.factor)


def _linked_prelu(layer: nn.PReLU, *, factor: int, dim: int) -> LinkedPReLU:
    slopes = layer.weight.detach()
    if len(slopes) > 1:
        slopes = slopes.repeat(factor)
    linked = LinkedPReLU(len(slopes), dim=dim, device=slopes.device, dtype=slopes.dtype)
    for weight in linked.parameters():
        weight.data.copy_(slopes)
        weight.requires_grad_(layer.weight.requires_grad)
    return linked


def _follow(place: _Place, flow: _Flow) -> _Flow:
    """Widen a layer as far as needed, and say what leaves it."""
    layer, kind = place.layer, type(place.layer)
    if isinstance(layer, _Convolution):
        return _through_convolution(place, layer, flow)
    if isinstance(layer, nn.Linear):
        return _through_linear(place, layer, flow)
    if isinstance(layer, _BatchNorm):
        return _through_batch_norm(place, layer, flow)
    if isinstance(layer, nn.Flatten):
        return _through_flatten(place, layer, flow)
    if kind in _SPATIAL:
        return _through_spatial(place, flow)
    if kind in _ELEMENTWISE:
        return flow
    if flow.factor > 1:
        raise place.refuse("reads a linked activation, but how to widen it is not known")
    return flow if kind in _NORMS | _SOFTMAXES else _Flow()


def _through_convolution(place: _Place, layer: _Convolution, flow: _Flow) -> _Flow:
    if flow.factor > 1:
        if flow.axis == -1:
            raise place.refuse("reads axis 1, but the linked units lie in the last axis")
        if layer.groups > 1:
            raise place.refuse(f"reads a linked activation with groups={layer.groups}, which would split the members")
        _refuse_other_width(place, flow, "in_channels", layer.in_channels)
        layer.in_channels *= flow.factor
        _renew_weight(layer, flow.factor)
    return _Flow(units=layer.out_channels, axis=1)


def _through_linear(place: _Place, layer: nn.Linear, flow: _Flow) -> _Flow:
    if flow.factor > 1:
        if flow.axis == 1:
            raise place.refuse("reads the last axis, but the linked units lie in axis 1 (an nn.Flatten is missing)")
        _refuse_other_width(place, flow, "in_features", layer.in_features)
        layer.in_features *= flow.factor
        _renew_weight(layer, flow.factor)
    return _Flow(units=layer.out_features, axis=-1)


def _through_batch_norm(place: _Place, layer: _BatchNorm, flow: _Flow) -> _Flow:
    if flow.factor > 1:
        _refuse_other_width(place, flow, "num_features", layer.num_features)
        layer.num_features *= flow.factor
        for name, parameter in list(layer.named_parameters()):
            wider = parameter.new_empty(layer.num_features)
            layer.register_parameter(name, nn.Parameter(wider, requires_grad=parameter.requires_grad))
        for name in ("running_mean", "running_var"):
            if (running := layer._buffers[name]) is not None:
                layer.register_buffer(name, running.new_empty(layer.num_features))
        layer.reset_parameters()
    return flow


def _through_flatten(place: _Place, layer: nn.Flatten, flow: _Flow) -> _Flow:
    # All units of a member stay together, so the flattened axis is longer by the same factor.
    if (layer.start_dim, layer.end_dim) == (1, -1):
        return _Flow(factor=flow.factor, axis=-1)
    if layer.start_dim >= 2:
        return flow if flow.axis == 1 else replace(flow, units=None)
    if flow.factor > 1:
        raise place.refuse(
            f"with start_dim={layer.start_dim}, end_dim={layer.end_dim} mixes linked units and other axes"
        )
    return _Flow()


def _through_spatial(place: _Place, flow: _Flow) -> _Flow:
    if flow.axis != -1:
        return flow
    if flow.factor > 1:
        raise place.refuse("works along the last axis, where the linked units lie")
    return replace(flow, units=None)


def _refuse_other_width(place: _Place, flow: _Flow, name: str, width: int) -> None:
    if flow.units not in (None, width):
        raise place.refuse(f"has {name}={width}, but {flow.units} units reach it in the original model")


def _renew_weight(layer: _Convolution | nn.Linear, factor: int) -> None:
    weight = layer.weight
    shape = [weight.shape[0], weight.shape[1] * factor, *weight.shape[2:]]
    layer.weight = nn.Parameter(weight.new_empty(shape), requires_grad=weight.requires_grad)
    layer.reset_parameters()
