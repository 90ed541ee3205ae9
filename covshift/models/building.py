"""How the reference networks are put together: a row of named layers that knows how many channels come next.

A linked activation widens the input of the layer that follows it; every network here counts channels in this one place.
Layers are made without weights and initialised at the end, so that building draws no random number of its own.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from numbers import Integral
from typing import Literal, get_args

import torch
from torch import nn

from covshift.exceptions import InvalidArgumentError, UnsupportedModelError
from covshift.models.initialization import (
    Model,
    activation_members,
    glorot_normal_,
    glorot_uniform_,
    variance_preserving_,
)

Initialization = Literal["variance-preserving", "keras", "glorot-normal"]
Activation = Callable[[], nn.Module]
Norm = Callable[[int], nn.Module]

_INITIALISE = {
    "variance-preserving": variance_preserving_,
    "keras": glorot_uniform_,
    "glorot-normal": glorot_normal_,
}


class Row:
    """Layers in a row, named by kind and position: ``conv0, norm0, act0, conv1, ...``.

    Parameters
    ----------
    channels, side : int
        Shape of the input, ``(batch, channels, side, side)``.
    activation : callable
        Makes the activation that follows each active layer.
    norm : callable, optional
        Makes the norm between an active convolution and its activation.

    Attributes
    ----------
    layers : OrderedDict of str to nn.Module
    channels : int
        Channels, or after flattening features, that the next layer reads.
    side : int
        Height and width of the image that the next layer reads.
    """

    def __init__(self, channels: int, side: int, *, activation: Activation, norm: Norm | None = None) -> None:
        self.layers: OrderedDict[str, nn.Module] = OrderedDict()
        self.channels, self.side = channels, side
        self._given_side = side
        self._activation, self._norm = activation, norm
        self._count = 0

    def convolution(
        self, units: int, kernel: int, *, stride: int = 1, same: bool = True, active: bool = True, normed: bool = True
    ) -> None:
        """Add a convolution; ``same`` pads with zeros to the size of the input (rounded up when striding).

        An active one is followed by its norm, if there are norms, and its activation. An inactive one is followed by
        its norm only with ``normed``.
        """
        if not same and self.side < kernel:
            raise InvalidArgumentError(
                f"image_size={self._given_side}: {self.side} pixels are left before an unpadded {kernel}x{kernel} "
                "convolution; expected a larger image"
            )
        number = self._next()
        padding = kernel // 2 if same else 0
        # Made on "meta": the layer's own draws would be overwritten, and would move the global random state.
        blank = nn.Conv2d(self.channels, units, kernel, stride=stride, padding=padding, device="meta")
        self.layers[f"conv{number}"] = blank.to_empty(device=torch.get_default_device())
        self.channels, self.side = units, (self.side + 2 * padding - kernel) // stride + 1
        if normed and self._norm is not None:
            self.layers[f"norm{number}"] = made("norm", self._norm, units)
        if active:
            self._activate(number)

    def linear(self, units: int, *, name: str | None = None, active: bool = False) -> None:
        """Add a fully connected layer, called ``linear<position>`` unless named; no norm follows it."""
        number = self._next()
        blank = nn.Linear(self.channels, units, device="meta")
        self.layers[name or f"linear{number}"] = blank.to_empty(device=torch.get_default_device())
        self.channels = units
        if active:
            self._activate(number)

    def max_pool(self) -> None:
        """Add a 2x2 max pooling; an odd last row and column are dropped, as in Keras."""
        if self.side < 2:
            raise InvalidArgumentError(
                f"image_size={self._given_side}: {self.side} pixel is left before a 2x2 pooling; expected a larger "
                "image"
            )
        self.layers[f"pool{self._count - 1}"] = nn.MaxPool2d(2)
        self.side //= 2

    def dropout(self, rate: float) -> None:
        """Add dropout of single elements."""
        self.layers[f"drop{self._count - 1}"] = nn.Dropout(rate)

    def average(self) -> None:
        """Add the average over positions, which leaves one feature a channel."""
        self.layers["average"] = nn.AdaptiveAvgPool2d(1)
        self.side = 1
        self.flatten()

    def flatten(self) -> None:
        """Make features of all positions of all channels."""
        self.layers["flatten"] = nn.Flatten()
        self.channels *= self.side**2

    def _next(self) -> int:
        self._count += 1
        return self._count - 1

    def _activate(self, number: int) -> None:
        activation = made("activation", self._activation)
        self.layers[f"act{number}"] = activation
        self.channels *= channels_per_unit(activation)


def initialised(model: Model, initialization: Initialization, generator: torch.Generator | None) -> Model:
    """The model after drawing its weights by one of the three rules; biases are zero under all."""
    require_choice("initialization", initialization, get_args(Initialization))
    return _INITIALISE[initialization](model, generator=generator)


def made(argument: str, factory: Callable[..., nn.Module], *arguments: int) -> nn.Module:
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


def channels_per_unit(activation: nn.Module) -> int:
    """How many channels the next layer reads for each unit: the members of the linkage, or 1."""
    members = len(activation_members(activation))
    dim = getattr(activation, "linkage_dim", 1)
    if members > 1 and dim != 1:
        raise UnsupportedModelError(
            f"activation= made a {type(activation).__name__} with linkage_dim {dim}; a convolution reads its "
            "channels from dim 1, so make it with dim=1"
        )
    return members


def require_positive_integers(**sizes: object) -> None:
    """Refuse by name whatever is no integer of at least 1."""
    for name, value in sizes.items():
        if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
            raise InvalidArgumentError(f"{name}={value!r}; expected an integer of at least 1")


def require_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuse by name a word that is not among the known ones."""
    if value not in choices:
        raise InvalidArgumentError(f"{name}={value!r}; expected one of {', '.join(map(repr, choices))}")
