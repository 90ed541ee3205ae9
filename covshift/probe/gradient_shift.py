"""Internal covariate shift as a change of gradients: Santurkar et al. 2018 (arXiv 1805.11604), definition 2.1.

G_i is the gradient of layer i's parameters before a step, G'_i the same after only the layers before i have made the
step, on the same batch with the same random numbers. Their difference is what the movement of the preceding layers
changes in what layer i should do. See docs/concepts/gradient-ics.md.
"""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from covshift.exceptions import InvalidArgumentError, ProbeUnsupported
from covshift.probe.batch import Batch, LossFunction, as_batch, gradients_of
from covshift.probe.layers import ParameterLayer, parameter_layers, with_gradients
from covshift.probe.parameters import flat, norm, write
from covshift.probe.state import Visit, visiting

Gradient = list[torch.Tensor | None]

REPEATABLE = 1e-5
"""Largest relative difference of the first layer's two gradients, which are the same by definition: above it the model
does not compute the same thing twice. CPUs give 0; atomic additions on GPUs some float32 roundings."""

_MEANINGS = {
    "ics": "L2 norm of G - G'",
    "gradient_norm": "L2 norm of G",
    "relative_ics": "L2 norm of G - G' over that of G",
    "cosine": "cosine of the angle between G and G'",
    "gradient_noise": "L2 norm of the difference of the gradients of two minibatches",
    "ics_to_noise": "L2 norm of G - G' over the minibatch gradient noise",
    "update_norm": "L2 norm of the step the layer's own parameters make",
}


def gradient_ics(
    model: nn.Module,
    loss_fn: LossFunction,
    batch: Any,
    optimizer_step: Callable[[], Any] | torch.optim.Optimizer,
    *,
    noise_batch: Any = None,
    mode: str = "train",
) -> xr.Dataset:
    """Gradient internal covariate shift of one real optimizer step, layer by layer.

    Costs one forward and backward pass for each layer and one more, or two with ``noise_batch``, and memory for three
    copies of the parameters and the optimizer's state. Nothing of the step remains: parameters, buffers, gradients,
    random numbers and the optimizer's state are as before.

    Parameters
    ----------
    model : Module
        Its layers are its modules with trainable parameters of their own on which the loss depends, in the order in
        which they are called.
    loss_fn : callable
        ``loss_fn(output, *targets)``, a scalar.
    batch : tuple, mapping or Tensor
        ``(inputs, *targets)``, or inputs alone.
    optimizer_step : callable or Optimizer
        Makes the training's own step from the gradients in ``.grad``: an optimizer, or a callable without arguments
        that may clip first. It is called once.
    noise_batch : optional
        Another minibatch, in the form of ``batch``, for the gradient noise G(x) - G(x'). Without it the noise is NaN.
    mode : {"train", "eval"}
        Training flags of the passes.

    Returns
    -------
    Dataset
        Dim ``layer``. ``ics``, ``gradient_norm``, ``gradient_noise``, ``update_norm``: float64 L2 norms, >= 0;
        ``relative_ics``, ``ics_to_noise``: ratios; ``cosine`` in [-1, 1]. NaN where a norm divided by is 0 or was not
        measured. The first layer's ``ics`` is 0 by definition, which is the self-test. Never judge ``relative_ics``
        alone: late in training the gradient's norm goes to 0 and the ratio to infinity.

    Raises
    ------
    InvalidArgumentError
        If the batch or the loss cannot be used, the model has no trainable parameter, or ``optimizer_step`` changes
        none of them or makes one NaN or infinite.
    ProbeUnsupported
        If the model cannot be probed, or does not compute the same gradient twice from the same state.
    """
    given = as_batch(model, batch)
    other = None if noise_batch is None else as_batch(model, noise_batch, name="noise_batch")
    step = _callable(optimizer_step)
    with visiting(model, mode=mode, tensors=given.tensors) as visit:
        layers, loss = parameter_layers(visit.model, lambda: given.loss(visit.model, loss_fn))
        gradients = gradients_of(loss, [parameter for layer in layers for parameter in layer.parameters])
        layers, own = with_gradients(layers, gradients)
        everything = [parameter for layer in layers for parameter in layer.parameters]
        first = _of_layers(layers, own)
        del loss
        noise = None if other is None else _of_layers(layers, _gradients(visit, other, loss_fn, everything, everything))
        before = [parameter.detach().clone() for parameter in everything]
        after = _step(model, step, everything, own)
        write(everything, before)
        second = _after_preceding(visit, given, loss_fn, layers, _of_layers(layers, after))
    moved = _of_layers(layers, [b - a for a, b in zip(before, after, strict=True)])
    return _dataset(layers, first, second, noise, moved)


def _callable(optimizer_step: object) -> Callable[[], Any]:
    step = optimizer_step.step if isinstance(optimizer_step, torch.optim.Optimizer) else optimizer_step
    if not callable(step):
        raise InvalidArgumentError(
            f"optimizer_step={optimizer_step!r}: expected an optimizer, or a callable without arguments that makes its "
            "step"
        )
    return step


def _gradients(
    visit: Visit,
    batch: Batch,
    loss_fn: LossFunction,
    parameters: Sequence[torch.Tensor],
    everything: Sequence[torch.Tensor],
) -> Gradient:
    """Gradients of some of the parameters, ``everything`` as it stands and all other state as it was found."""
    visit.rewind(but=everything)
    return gradients_of(batch.loss(visit.model, loss_fn), parameters)


def _of_layers(layers: list[ParameterLayer], values: Sequence[Any]) -> list[list[Any]]:
    """Values of all parameters in a row, cut into those of each layer."""
    ends = np.cumsum([len(layer.parameters) for layer in layers])
    return [list(values[end - len(layer.parameters) : end]) for layer, end in zip(layers, ends, strict=True)]


def _after_preceding(
    visit: Visit, batch: Batch, loss_fn: LossFunction, layers: list[ParameterLayer], after: list[list[torch.Tensor]]
) -> list[Gradient]:
    """G'_i of every layer: the step is written one layer at a time, after that layer's own gradient was taken."""
    found = []
    everything = [parameter for layer in layers for parameter in layer.parameters]
    for layer, stepped in zip(layers, after, strict=True):
        found.append(_gradients(visit, batch, loss_fn, layer.parameters, everything))
        write(layer.parameters, stepped)
    return found


def _step(
    model: nn.Module, step: Callable[[], Any], parameters: list[nn.Parameter], gradients: list[torch.Tensor]
) -> list[torch.Tensor]:
    """Parameters after the real step, made from the given gradients."""
    before = [parameter.detach().clone() for parameter in parameters]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        # A copy: clipping works in place.
        parameter.grad = gradient.clone()
    with _optimizers_put_back():
        step()
    for parameter in model.parameters():
        parameter.grad = None
    after = [parameter.detach().clone() for parameter in parameters]
    if all(torch.equal(a, b) for a, b in zip(before, after, strict=True)):
        raise InvalidArgumentError(
            "optimizer_step: changed no parameter of the model; expected the step of the model's own optimizer, with a "
            "learning rate above 0 and a loss whose gradient is not 0"
        )
    if not all(bool(torch.isfinite(value).all()) for value in after):
        raise InvalidArgumentError("optimizer_step: made a parameter NaN or infinite; there is no state after the step")
    return after


@contextmanager
def _optimizers_put_back() -> Iterator[None]:
    """Let every optimizer that steps inside the ``with`` work on a copy of its state, and put the original back."""
    found: dict[int, tuple[torch.optim.Optimizer, Any, list[dict[str, Any]]]] = {}

    def keep(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if id(optimizer) in found:
            return
        found[id(optimizer)] = (optimizer, optimizer.state, [dict(group) for group in optimizer.param_groups])
        # Keys are the parameters themselves, so only what stands under them is copied.
        optimizer.state = defaultdict(dict, {key: copy.deepcopy(value) for key, value in optimizer.state.items()})

    handle = register_optimizer_step_pre_hook(keep)
    try:
        yield
    finally:
        handle.remove()
        for optimizer, state, groups in found.values():
            optimizer.state = state
            for group, values in zip(optimizer.param_groups, groups, strict=True):
                group.clear()
                group.update(values)


def _dataset(
    layers: list[ParameterLayer],
    first: list[list[torch.Tensor]],
    second: list[Gradient],
    noise: list[Gradient] | None,
    moved: list[list[torch.Tensor]],
) -> xr.Dataset:
    rows = []
    for place, layer in enumerate(layers):
        own = layer.parameters
        g, shifted = flat(first[place], own), flat(second[place], own)
        noisy = math.nan if noise is None else norm(g - flat(noise[place], own))
        rows.append(_numbers(g, shifted, noisy) | {"update_norm": norm(flat(moved[place], own))})
    _demand_repeatable(layers[0].name, rows[0])
    units = {"ics_to_noise": "1", "relative_ics": "1", "cosine": "1"}
    data = {
        name: ("layer", [row[name] for row in rows], {"long_name": meaning, "units": units.get(name, "loss/parameter")})
        for name, meaning in _MEANINGS.items()
    }
    data["update_norm"][2]["units"] = "parameter"
    return xr.Dataset(data, {"layer": [layer.name for layer in layers]}, {"definition": "arXiv 1805.11604, 2.1"})


def _numbers(g: torch.Tensor, shifted: torch.Tensor, noise: float) -> dict[str, float]:
    ics, length, other = norm(g - shifted), norm(g), norm(shifted)
    cosine = float(torch.dot(g / length, shifted / other)) if length and other else math.nan
    return {
        "ics": ics,
        "gradient_norm": length,
        "relative_ics": ics / length if length else math.nan,
        "cosine": min(max(cosine, -1.0), 1.0) if not math.isnan(cosine) else cosine,
        "gradient_noise": noise,
        "ics_to_noise": ics / noise if noise else math.nan,
    }


def _demand_repeatable(name: str, row: dict[str, float]) -> None:
    if row["ics"] > REPEATABLE * row["gradient_norm"]:
        raise ProbeUnsupported(
            f"layer '{name}': its two gradients, of the same state on the same batch, differ by "
            f"{row['relative_ics']:.1e} of their norm (expected 0). The model keeps state outside its parameters and "
            "buffers, draws random numbers of its own, or uses operations that are not deterministic"
        )
