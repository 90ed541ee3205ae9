"""Layers as probes count them: modules with parameters of their own, in the order in which the model calls them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from covshift.exceptions import InvalidArgumentError
from covshift.instrument import sites
from covshift.instrument.hooks import inside_backward


@dataclass(frozen=True)
class ParameterLayer:
    """One layer W_i: a name and its trainable parameters."""

    name: str
    parameters: tuple[nn.Parameter, ...]


def parameter_layers(model: nn.Module, run: Callable[[], torch.Tensor]) -> tuple[list[ParameterLayer], torch.Tensor]:
    """Layers in the order in which ``run`` first enters them, and what ``run`` returned.

    A module whose weights are used without calling it (``MultiheadAttention.out_proj``) belongs to the nearest module
    around it that is called, in the end to the model itself. A parameter shared by several layers belongs to the first.

    Raises
    ------
    InvalidArgumentError
        If the model has no trainable parameter in any module that is called.
    """
    names = {module: name for name, module in model.named_modules()}
    entered: dict[str, None] = {}

    def enter(module: nn.Module, args: object) -> None:
        if module in names and not inside_backward():
            entered.setdefault(names[module])

    handle = register_module_forward_pre_hook(enter)
    try:
        result = run()
    finally:
        handle.remove()
    owned: dict[str, list[nn.Parameter]] = {name: [] for name in entered}
    for name, parameter in model.named_parameters():
        owner = _nearest(name.rpartition(".")[0], owned)
        if parameter.requires_grad and owner is not None:
            owned[owner].append(parameter)
    _give_shared_to_first(model, owned)
    layers = [ParameterLayer(name or sites.ROOT, tuple(held)) for name, held in owned.items() if held]
    if not layers:
        raise InvalidArgumentError(
            "model: has no trainable parameter in a module it calls; expected at least one layer to measure"
        )
    return layers, result


def with_gradients(
    layers: list[ParameterLayer], gradients: Sequence[torch.Tensor | None]
) -> tuple[list[ParameterLayer], list[torch.Tensor]]:
    """Layers without the parameters that the loss does not depend on, and the gradients of the others, in a row.

    Raises
    ------
    InvalidArgumentError
        If none is left.
    """
    everything = [parameter for layer in layers for parameter in layer.parameters]
    known = {id(p): g for p, g in zip(everything, gradients, strict=True) if g is not None}
    used = [ParameterLayer(layer.name, tuple(p for p in layer.parameters if id(p) in known)) for layer in layers]
    used = [layer for layer in used if layer.parameters]
    if not used:
        raise InvalidArgumentError("loss_fn: the loss depends on no parameter of the model; expected its training loss")
    return used, [known[id(parameter)] for layer in used for parameter in layer.parameters]


def _nearest(name: str, called: dict[str, list[nn.Parameter]]) -> str | None:
    while name and name not in called:
        name = name.rpartition(".")[0]
    return name if name in called else None


def _give_shared_to_first(model: nn.Module, owned: dict[str, list[nn.Parameter]]) -> None:
    """Move parameters known under several names to the layer that is called first."""
    paths: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owner = _nearest(name.rpartition(".")[0], owned)
        if owner is not None:
            paths.setdefault(id(parameter), []).append(owner)
    order = {name: place for place, name in enumerate(owned)}
    for name, held in owned.items():
        for parameter in list(held):
            first = min(paths[id(parameter)], key=order.__getitem__)
            if first != name:
                held[:] = [other for other in held if other is not parameter]
                owned[first].append(parameter)
