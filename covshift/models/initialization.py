"""How the weights of a network start: variance-preserving, or Glorot-uniform as Keras does.

Both act in place on convolutions and linear layers, set biases to zero, and draw from the generator they are given,
leaving the global random state alone. The variance-preserving rule needs to know which activation feeds which layer
and reads it from the order of ``nn.Sequential``; a model that runs its layers in any other way is refused, because a
guessed order would be a silently wrong number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from statistics import fmean
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from covshift.exceptions import InvalidArgumentError, UnsupportedModelError

Model = TypeVar("Model", bound=nn.Module)
Activation = nn.Module | Callable[[Tensor], Tensor]
Weighted = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d

_WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_STANDARDISING = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.SyncBatchNorm,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
    nn.LayerNorm,
    nn.GroupNorm,
)
_PASSING = (
    nn.Identity,
    nn.Flatten,
    nn.Unflatten,
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.AlphaDropout,
    nn.MaxPool1d,
    nn.MaxPool2d,
    nn.MaxPool3d,
    nn.AvgPool1d,
    nn.AvgPool2d,
    nn.AvgPool3d,
    nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveAvgPool3d,
)


def activation_members(activation: Activation) -> Sequence[Callable[[Tensor], Tensor]]:
    """Functions of one pre-activation that an activation concatenates; a plain activation is its own only member.

    Parameters
    ----------
    activation : nn.Module or callable
        A linked activation states its members in the attribute ``linkage_members``, its layout in
        ``linkage_layout``; any module carrying them is read the same way.

    Returns
    -------
    sequence of callable
        At least one; the layer that follows reads as many channels per unit.

    Raises
    ------
    UnsupportedModelError
        If the members are not concatenated, or there are none.

    Examples
    --------
    >>> len(activation_members(torch.nn.ReLU()))
    1
    """
    members: Sequence[Callable[[Tensor], Tensor]] | None = getattr(activation, "linkage_members", None)
    if members is None:
        return (activation,)
    layout = getattr(activation, "linkage_layout", None)
    if layout != "concatenated" or len(members) == 0:
        raise UnsupportedModelError(
            f"{type(activation).__name__} has {len(members)} linkage_members in linkage_layout {layout!r}; "
            "expected at least one member and the layout 'concatenated'"
        )
    return tuple(members)


@torch.no_grad()
def mean_square_gain(activation: Activation, *, units: int = 1) -> float:
    """Mean square of what an activation sends on when it is fed standard normal numbers.

    The mean over its members g of E[g(z)^2], z ~ N(0, 1), by 16-point Gauss-Legendre quadrature on panels of width
    1/2 between -12 and 12. Kinks and jumps at multiples of 1/2 (ReLU, ReLU6, hardtanh, hardswish, softshrink, ...)
    fall on panel borders and cost no accuracy; the relative error is then below 1e-10 in double precision.

    Parameters
    ----------
    activation : nn.Module or callable
        Acts on each number by itself. Evaluated in the precision of its own parameters if it has any.
    units : int, default 1
        Number of units it acts on; matters only where it has parameters of its own for each unit.

    Returns
    -------
    float
        In (0, inf): 1/2 for ReLU and its mirror linkage, 1 for the identity and SELU.

    Raises
    ------
    UnsupportedModelError
        If the activation does not map each number by itself to one number, or does so at random.
    InvalidArgumentError
        If the mean square is zero, infinite or NaN.

    Examples
    --------
    >>> round(mean_square_gain(torch.nn.ReLU()), 12)
    0.5
    >>> round(mean_square_gain(torch.tanh), 6)
    0.394294
    """
    points, density = _normal_quadrature()
    parameter = next(activation.parameters(), None) if isinstance(activation, nn.Module) else None
    grid = torch.from_numpy(points)[:, None].expand(-1, units)
    grid = grid if parameter is None else grid.to(parameter)
    responses = [_response(member, grid).to("cpu", torch.float64) for member in activation_members(activation)]
    gain = fmean(float(density @ response.square().mean(1).numpy()) for response in responses)
    if not (math.isfinite(gain) and gain > 0):
        raise InvalidArgumentError(
            f"activation={_label(activation)} has mean square {gain} on standard normal input; expected a finite "
            "number above 0, since no weight scale can make up for any other"
        )
    return gain


def variance_preserving_(model: Model, *, generator: torch.Generator | None = None) -> Model:
    r"""Draw weights that keep the mean square of the pre-activations from layer to layer; biases become zero.

    Each weight of a convolution or linear layer is drawn from N(0, sd^2) with

    .. math:: sd^2 = \frac{1}{\text{fan\_in} \cdot \text{mean over members of } E[g(z)^2]}, \quad z \sim N(0, 1),

    where g is the activation that *feeds* the layer and fan_in counts all channels the layer reads, so a linked feed
    of two members counts both. For ReLU this is the rule of He et al. [1]_, sd^2 = 2 / fan_in. A layer that reads the
    data, another layer or a norm without an activation in between has E = 1: raw inputs are taken as standardised,
    so data of mean square m scale the first pre-activations by m (digits in [0, 1]: about 0.23), which ReLU, its
    linkage and a norm carry along or undo.

    Parameters
    ----------
    model : nn.Module
        A convolution or linear layer, or nested ``nn.Sequential`` of such layers, activations, norms and layers that
        pass their input on (flatten, dropout, pooling, whose effect on the mean square is ignored, as is that of
        zero padding at the border: about 8 % off per 3x3 convolution of an 8x8 image).
    generator : torch.Generator, optional
        Source of all draws, on the device of the weights; by default the global one.

    Returns
    -------
    nn.Module
        The same model, changed in place.

    Raises
    ------
    UnsupportedModelError
        If the order of the layers cannot be read, a layer occurs twice, one activation feeds another, or there is
        nothing to initialise. Nothing has been changed then.

    References
    ----------
    .. [1] He, Zhang, Ren & Sun, "Delving deep into rectifiers", ICCV 2015, equation 10; for other activations the 2
       becomes 1 / E[g(z)^2].

    Examples
    --------
    >>> net = torch.nn.Sequential(torch.nn.Linear(9, 500), torch.nn.ReLU(), torch.nn.Linear(500, 500))
    >>> _ = variance_preserving_(net, generator=torch.Generator().manual_seed(0))
    >>> f"{net[0].weight.var() * 9:.1f} {net[2].weight.var() * 500:.1f}"
    '1.0 2.0'
    """
    fed = list(_fed_layers(model))
    if not fed:
        raise UnsupportedModelError(_nothing_to_initialise(model))
    for layer, mean_square in fed:
        fan_in = layer.weight[0].numel()
        nn.init.normal_(layer.weight, std=(fan_in * mean_square) ** -0.5, generator=generator)
        _zero_bias(layer)
    return model


def glorot_uniform_(model: Model, *, generator: torch.Generator | None = None) -> Model:
    """Draw Glorot-uniform weights and zero biases, the defaults of Keras under which the paper trained.

    Each weight of a convolution or linear layer is uniform in (-a, a), a^2 = 6 / (fan_in + fan_out) [1]_. Works on
    any architecture. Keras also starts PReLU slopes at 0, where torch starts at 0.25; ask for it where the activation
    is made, ``activation=lambda: nn.PReLU(init=0.0)``.

    Parameters
    ----------
    model : nn.Module
        Every convolution and linear layer inside it is drawn, in the order of ``model.modules()``.
    generator : torch.Generator, optional
        Source of all draws, on the device of the weights; by default the global one.

    Returns
    -------
    nn.Module
        The same model, changed in place.

    Raises
    ------
    UnsupportedModelError
        If the model has no convolution or linear layer.

    References
    ----------
    .. [1] Glorot & Bengio, "Understanding the difficulty of training deep feedforward neural networks", AISTATS 2010,
       equation 16.
    """
    for layer in _weighted_layers(model):
        nn.init.xavier_uniform_(layer.weight, generator=generator)
        _zero_bias(layer)
    return model


def glorot_normal_(model: Model, *, generator: torch.Generator | None = None) -> Model:
    """Draw normal weights of Glorot's variance and zero biases, as in the paper's parameter-matched network.

    Each weight is drawn from N(0, 2 / (fan_in + fan_out)), the variance of :func:`glorot_uniform_`, of which this
    differs in nothing else. Keras cuts the normal off at two standard deviations; here it is whole.

    Parameters
    ----------
    model : nn.Module
        As for :func:`glorot_uniform_`.
    generator : torch.Generator, optional
        Source of all draws, on the device of the weights; by default the global one.

    Returns
    -------
    nn.Module
        The same model, changed in place.

    Raises
    ------
    UnsupportedModelError
        If the model has no convolution or linear layer.
    """
    for layer in _weighted_layers(model):
        nn.init.xavier_normal_(layer.weight, generator=generator)
        _zero_bias(layer)
    return model


def _weighted_layers(model: nn.Module) -> list[Weighted]:
    layers = [module for module in model.modules() if isinstance(module, _WEIGHTED)]
    if not layers:
        raise UnsupportedModelError(_nothing_to_initialise(model))
    return layers


@cache
def _normal_quadrature() -> tuple[np.ndarray, np.ndarray]:
    """Points in (-12, 12) and the standard normal mass that each stands for."""
    panel = 0.5
    nodes, weights = np.polynomial.legendre.leggauss(16)
    centres = np.arange(-12, 12, panel) + panel / 2
    points = (centres[:, None] + panel / 2 * nodes).ravel()
    density = np.exp(-(points**2) / 2) / math.sqrt(2 * math.pi)
    return points, panel / 2 * np.tile(weights, centres.size) * density


def _response(member: Callable[[Tensor], Tensor], grid: Tensor) -> Tensor:
    """What a member makes of every point, having seen that no point's answer depends on the others."""
    try:
        # Copies, because an in-place activation overwrites what it is given.
        whole, half = member(grid.clone()), member(grid[::2].clone())
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise UnsupportedModelError(
            f"{_label(member)} cannot be used as an activation of {grid.shape[1]} units: {error}"
        ) from error
    elementwise = (
        isinstance(whole, Tensor)
        and whole.shape == grid.shape
        and torch.allclose(whole[::2], half, rtol=1e-3, atol=1e-6, equal_nan=True)
    )
    if not elementwise:
        raise UnsupportedModelError(
            f"{_label(member)} is not an activation that maps each number by itself to one number; an activation "
            "that concatenates several functions must list them in linkage_members"
        )
    return whole


def _fed_layers(model: nn.Module) -> Iterator[tuple[Weighted, float]]:
    """Every layer with weights, in forward order, and the mean square of what feeds it."""
    mean_square, units = 1.0, 1
    activation: str | None = None
    seen: dict[nn.Module, str] = {}
    for name, module in _in_forward_order(model, "model"):
        if isinstance(module, _WEIGHTED):
            if module in seen:
                raise UnsupportedModelError(
                    f"{name} is the same layer as {seen[module]}, and one weight cannot follow two feeds; give each "
                    "place a layer of its own or use glorot_uniform_"
                )
            seen[module] = name
            yield module, mean_square
            mean_square, units, activation = 1.0, module.weight.shape[0], None
        elif isinstance(module, _STANDARDISING):
            mean_square, activation = 1.0, None
        elif not isinstance(module, _PASSING):
            if activation is not None:
                raise UnsupportedModelError(
                    f"{name} is fed by the activation {activation}, so its input is not standard normal; put a "
                    "layer or a norm between them or use glorot_uniform_"
                )
            mean_square, activation = _gain_at(name, module, units), name


def _in_forward_order(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    """The parts of nested ``nn.Sequential``, repeats included, which ``named_children`` would drop."""
    if isinstance(module, nn.Sequential) and not hasattr(module, "linkage_members"):
        for child_name, child in module._modules.items():
            assert child is not None  # nn.Sequential never holds None
            yield from _in_forward_order(child, f"{name}.{child_name}")
    elif not isinstance(module, _WEIGHTED) and any(isinstance(part, _WEIGHTED) for part in module.modules()):
        raise UnsupportedModelError(
            f"{name} ({type(module).__name__}) is not an nn.Sequential, so the order in which it runs its layers is "
            "unknown; initialise its sequential parts one by one or use glorot_uniform_"
        )
    else:
        yield name, module


def _gain_at(name: str, activation: nn.Module, units: int) -> float:
    try:
        return mean_square_gain(activation, units=units)
    except (UnsupportedModelError, InvalidArgumentError) as error:
        raise UnsupportedModelError(f"{name}: {error}") from error


def _zero_bias(layer: Weighted) -> None:
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def _nothing_to_initialise(model: nn.Module) -> str:
    kinds = ", ".join(kind.__name__ for kind in _WEIGHTED)
    return f"model ({type(model).__name__}) has nothing to initialise; expected at least one of {kinds}"


def _label(activation: Activation) -> str:
    return getattr(activation, "__name__", type(activation).__name__)
