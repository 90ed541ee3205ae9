"""Opt-in capture of activations called as functions: ``F.relu(x)``, ``torch.relu(x)``, ``x.relu()`` and their kind.

No hook sees them, so a ``TorchFunctionMode`` does, during forward passes with gradients only: outside of those it would
switch off the fused inference path of stock transformer layers and change the bits of evaluation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack, _pop_mode, _push_mode

from covshift import schema
from covshift.instrument import sites
from covshift.instrument.forward import Forward, Running
from covshift.instrument.hooks import transformed, unseen
from covshift.instrument.structural import ZeroSet, zero_set
from covshift.summary.table import is_summarizable

if TYPE_CHECKING:
    from covshift.instrument.observer import Observer


@dataclass(frozen=True)
class Function:
    """An activation called as a function.

    Attributes
    ----------
    name : str
        By which its call sites are named.
    kind : str
        The class of :mod:`torch.nn` that computes the same, "" where there is none.
    like : callable or None
        The function under which :func:`covshift.instrument.structural.zero_set` knows it when called with defaults.
    """

    name: str
    kind: str
    like: Callable[..., torch.Tensor] | None = None
    zeros: ZeroSet | None = None

    def describe(self, layer: schema.Layer) -> schema.Layer:
        """The layer's description, with the function in place of the module that called it."""
        return replace(layer, module_type="function", activation=self.kind, linkage_members=0)


def _forms(*names: str) -> Iterable[Any]:
    """Every callable by which torch offers a function."""
    for name in names:
        yield from (getattr(home, name) for home in (F, torch, torch.Tensor) if hasattr(home, name))


_ACTIVATIONS = (
    Function("relu", "ReLU", torch.relu),
    Function("relu6", "ReLU6"),
    Function("gelu", "GELU"),
    Function("silu", "SiLU", F.silu),
    Function("elu", "ELU", F.elu),
    Function("selu", "SELU", F.selu),
    Function("celu", "CELU"),
    Function("leaky_relu", "LeakyReLU"),
    Function("mish", "Mish"),
    Function("softplus", "Softplus", F.softplus),
    Function("hardtanh", "Hardtanh"),
    Function("hardswish", "Hardswish"),
    Function("sigmoid", "Sigmoid", torch.sigmoid),
    Function("tanh", "Tanh", torch.tanh),
)
_CLAMP = Function("clamp", "ReLU", torch.relu)
# In place, most derive from their output, whose zeros of the derivative are others; ReLU's are the same.
_IN_PLACE = {form: replace(one, like=None) for one in _ACTIVATIONS for form in _forms(f"{one.name}_")}
_BY_FORM: Mapping[Any, Function] = {
    **{form: one for one in _ACTIVATIONS for form in _forms(one.name)},
    **_IN_PLACE,
    **dict.fromkeys(_forms("relu_"), _ACTIVATIONS[0]),
}
_CLAMPS = frozenset(_forms("clamp", "clamp_", "clamp_min", "clamp_min_", "clip", "clip_"))
_ATTENTION = Function("scaled_dot_product_attention", "")


def recognised(function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Function | None:
    """Which activation a call computes, None where it is none."""
    if function is F.scaled_dot_product_attention:
        return _ATTENTION
    known = _BY_FORM.get(function)
    if known is not None:
        default = len(args) == 1 and not any(value for name, value in kwargs.items() if name != "input")
        return replace(known, zeros=zero_set(known.like) if default and known.like is not None else None)
    if function in _CLAMPS and _floor(args, kwargs) == 0.0:
        return replace(_CLAMP, zeros=zero_set(torch.relu))
    return None


def _floor(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> float | None:
    """The lower bound of a clamp that has no upper one."""
    low, high = (*args[1:3], None, None)[:2]
    low, high = kwargs.get("min", low), kwargs.get("max", high)
    return float(low) if isinstance(low, int | float) and high is None else None


ELEMENTWISE = nn.Identity()
"""Stands for the function where its axes are asked for: those of its input."""


class FunctionMode(TorchFunctionMode):
    """Shows the activations called as functions within one forward pass to an observer."""

    def __init__(self, forward: Forward, observer: Observer) -> None:
        super().__init__()
        self._forward, self._observer = forward, observer
        self._has_left = False

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run the function as it would have run, and observe its input and output if it is an activation."""
        kwargs = kwargs or {}
        function = None if self._has_left or transformed() else recognised(func, args, kwargs)
        within = self._forward.stack[-1] if self._forward.stack else None
        if function is None or within is None or not self._observer.follows_functions_in(within.module):
            return func(*args, **kwargs)
        with self._observer.guard(function.name), unseen():
            running = self._enter(function, within, args[0] if args else kwargs.get("input"))
        output = func(*args, **kwargs)
        with self._observer.guard(function.name), unseen():
            if isinstance(output, torch.Tensor) and is_summarizable(output):
                self._observer.collector.function(self._forward, running, output, function)
        return output

    def _enter(self, function: Function, within: Running, z: Any) -> Running:
        forward, observer = self._forward, self._observer
        call = forward.call(observer.call_sites.function(function.name, within.call))
        reads = forward.find(z) if isinstance(z, torch.Tensor) else None
        if not call.layers:
            observer.collector.first_read(forward, call, z, reads, within.call)
        if function.kind and isinstance(z, torch.Tensor) and is_summarizable(z):
            observer.collector.preactivation(forward, call, ELEMENTWISE, z, reads, function.zeros)
        return Running(ELEMENTWISE, call, reads)

    def leave(self) -> None:
        """Let functions pass unseen, and take the mode off this thread's stack, whatever lies on top of it.

        Another thread's stack is out of reach; there the mode only does nothing more.
        """
        self._has_left = True
        if self not in _get_current_function_mode_stack():  # type: ignore[no-untyped-call]
            return
        above = []
        while (mode := _pop_mode()) is not self:  # type: ignore[no-untyped-call]
            above.append(mode)
        for mode in reversed(above):
            _push_mode(mode)  # type: ignore[no-untyped-call]


def is_disturbed(model: nn.Module) -> bool:
    """Whether a function mode would change what the model computes.

    A stock transformer layer in evaluation mode that nothing is to be learned from takes its fused path, whose bits
    differ, with gradients enabled too; any mode switches it off.
    """
    stock = (nn.TransformerEncoder, nn.TransformerEncoderLayer, nn.MultiheadAttention)
    return any(
        isinstance(module, stock) and not module.training and not any(p.requires_grad for p in module.parameters())
        for module in model.modules()
    )


def hidden_functions(model: nn.Module) -> list[str]:
    """Stock transformer layers whose activation is a function, which no module hook sees."""
    stock = (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)
    return [
        name or sites.ROOT
        for name, module in model.named_modules()
        if isinstance(module, stock) and not isinstance(module.activation, nn.Module)
    ]
