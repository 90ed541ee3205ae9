"""The paper's depth net: many narrow convolutions in a row, where dead units and vanishing gradients show.

It returns a plain ``nn.Sequential`` with readable layer names, so that hooks, ``link_model`` and the eye all find the
same layers. The softmax lives in the loss; data, training and measurement live elsewhere.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from numbers import Integral
from typing import Literal, get_args

import torch
from torch import nn

from covshift.exceptions import InvalidArgumentError, UnsupportedModelError
from covshift.models.initialization import activation_members, glorot_uniform_, variance_preserving_

Stem = Literal["7x7", "3x3"]
Initialization = Literal["variance-preserving", "keras"]


def depth_net(
    depth: int = 50,
    *,
    width: int = 4,
    in_channels: int = 3,
    image_size: int = 32,
    classes: int = 10,
    stem: Stem = "7x7",
    activation: Callable[[], nn.Module] = nn.ReLU,
    norm: Callable[[int], nn.Module] | None = None,
    initialization: Initialization = "variance-preserving",
    generator: torch.Generator | None = None,
) -> nn.Sequential:
    """Build the depth net of the paper: narrow convolutions, an activation after each, flatten, one linear layer.

    The defaults are the CIFAR-10 net of the paper's depth experiment, arXiv 1712.02609 (table D), except for the
    initialisation, where the paper used ``"keras"``. For the 8x8 digits take ``in_channels=1, image_size=8,
    stem="3x3"``.

    Parameters
    ----------
    depth : int, default 50
        Number of 3x3 convolutions, stride 1. With ``stem="7x7"`` one more convolution comes before them (51 for the
        paper's 50); with ``stem="3x3"`` they are all there is (50).
    width : int, default 4
        Units of each convolution.
    in_channels, image_size : int
        Input shape ``(batch, in_channels, image_size, image_size)``.
    classes : int, default 10
        Outputs of the linear layer, one logit each.
    stem : {"7x7", "3x3"}
        The first convolution: 7x7 with stride 2, which halves the image (rounding up), or 3x3 like the others.
        All convolutions are padded with zeros to the "same" size. torch pads evenly where TensorFlow pads less on
        the top and left, so on even images the 7x7 windows lie one pixel off those of Keras.
    activation : callable, default nn.ReLU
        Called without arguments, once for each convolution. A linked activation (attributes ``linkage_members``,
        ``linkage_dim == 1``, ``linkage_layout == "concatenated"``) widens the input of the layer that follows to
        ``width * len(linkage_members)`` channels.
    norm : callable, optional
        Called with ``width``, once for each convolution; stands between convolution and activation. The
        convolution keeps its bias, as in the paper.
    initialization : {"variance-preserving", "keras"}
        :func:`~covshift.models.variance_preserving_` or :func:`~covshift.models.glorot_uniform_`. Biases start at
        zero under both.
    generator : torch.Generator, optional
        Source of all weights, leaving the global random state alone; by default the global one.

    Returns
    -------
    nn.Sequential
        Layers ``conv0, norm0, act0, conv1, ..., flatten, head`` (``norm`` only where asked for); output
        ``(batch, classes)``.

    Raises
    ------
    InvalidArgumentError
        If a count is not a positive integer, a choice is unknown, or a factory does not return a module.
    UnsupportedModelError
        If a linked activation does not concatenate along the channel axis.

    Examples
    --------
    >>> net = depth_net(50, in_channels=1, image_size=8, stem="3x3")
    >>> net(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 10])
    >>> sum(parameter.numel() for parameter in net.parameters())
    9862
    """
    sizes = {"depth": depth, "width": width, "in_channels": in_channels, "image_size": image_size, "classes": classes}
    for name, size in sizes.items():
        _require_positive_integer(name, size)
    _require_choice("stem", stem, get_args(Stem))
    _require_choice("initialization", initialization, get_args(Initialization))

    device = torch.get_default_device()
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    channels = in_channels
    for index in range(depth + (stem == "7x7")):
        kernel, stride = (7, 2) if index == 0 and stem == "7x7" else (3, 1)
        # Made on "meta": the layer's own draws would be overwritten, and would move the global random state.
        convolution = nn.Conv2d(channels, width, kernel, stride=stride, padding=kernel // 2, device="meta")
        layers[f"conv{index}"] = convolution.to_empty(device=device)
        if norm is not None:
            layers[f"norm{index}"] = _made("norm", norm, width)
        layers[f"act{index}"] = _made("activation", activation)
        channels = width * _channels_per_unit(layers[f"act{index}"])
    side = (image_size + 1) // 2 if stem == "7x7" else image_size
    layers["flatten"] = nn.Flatten()
    layers["head"] = nn.Linear(channels * side**2, classes, device="meta").to_empty(device=device)

    initialise = variance_preserving_ if initialization == "variance-preserving" else glorot_uniform_
    return initialise(nn.Sequential(layers), generator=generator)


def _made(argument: str, factory: Callable[..., nn.Module], *arguments: int) -> nn.Module:
    """A fresh module from a factory, or an error that says what a factory is."""
    if isinstance(factory, nn.Module):
        raise InvalidArgumentError(
            f"{argument}= got a {type(factory).__name__} module; expected a factory that makes a new one for each "
            "layer, such as the class itself or a lambda"
        )
    module = factory(*arguments)
    if not isinstance(module, nn.Module):
        raise InvalidArgumentError(
            f"{argument}= returned a {type(module).__name__}; expected a factory that returns an nn.Module"
        )
    return module


def _channels_per_unit(activation: nn.Module) -> int:
    members = len(activation_members(activation))
    dim = getattr(activation, "linkage_dim", 1)
    if members > 1 and dim != 1:
        raise UnsupportedModelError(
            f"activation= made a {type(activation).__name__} with linkage_dim {dim}; a convolution reads its "
            "channels from dim 1, so make it with dim=1"
        )
    return members


def _require_positive_integer(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise InvalidArgumentError(f"{name}={value!r}; expected an integer of at least 1")


def _require_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InvalidArgumentError(f"{name}={value!r}; expected one of {', '.join(map(repr, choices))}")
