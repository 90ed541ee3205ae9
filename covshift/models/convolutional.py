"""The paper's feed-forward networks for 32x32 images besides the depth net: one wide layer, a matched CNN, All-CNN.

All are plain ``nn.Sequential`` with layers named as in :func:`~covshift.models.depth_net`; the softmax lives in the
loss. They are the networks of arXiv 1712.02609 as its text and scripts define them, not those of the works it cites.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from covshift.exceptions import InvalidArgumentError
from covshift.models.building import Activation, Initialization, Norm, Row, initialised, require_positive_integers


def width_net(
    width: int = 50,
    *,
    in_channels: int = 3,
    image_size: int = 32,
    classes: int = 10,
    activation: Activation = nn.ReLU,
    norm: Norm | None = None,
    initialization: Initialization = "variance-preserving",
    generator: torch.Generator | None = None,
) -> nn.Sequential:
    """Build the width net of the paper (table W): one unpadded 3x3 convolution, flatten, one linear layer.

    Parameters
    ----------
    width : int, default 50
        Units of the convolution; 50 and 400 in the paper.
    in_channels, image_size, classes, activation, norm, initialization, generator
        As for :func:`~covshift.models.depth_net`; the paper used ``initialization="keras"``.

    Returns
    -------
    nn.Sequential
        Layers ``conv0, norm0, act0, flatten, head`` (``norm0`` only where asked for); output ``(batch, classes)``.

    Raises
    ------
    InvalidArgumentError
        If a count is not a positive integer, the image is too small, a choice is unknown, or a factory does not
        return a module.
    UnsupportedModelError
        If a linked activation does not concatenate along the channel axis.

    Examples
    --------
    >>> sum(parameter.numel() for parameter in width_net(50).parameters())
    451410
    """
    require_positive_integers(width=width, in_channels=in_channels, image_size=image_size, classes=classes)
    row = Row(in_channels, image_size, activation=activation, norm=norm)
    row.convolution(width, 3, same=False)
    row.flatten()
    row.linear(classes, name="head")
    return initialised(nn.Sequential(row.layers), initialization, generator)


def extended_cnn(
    *,
    width_factor: float = 1.0,
    in_channels: int = 3,
    image_size: int = 32,
    classes: int = 10,
    activation: Activation = nn.ReLU,
    norm: Norm | None = None,
    initialization: Initialization = "variance-preserving",
    generator: torch.Generator | None = None,
) -> nn.Sequential:
    """Build the parameter-matched CNN of the paper (table E): two pairs of convolutions, a dense layer of 512.

    Convolutions of 32 (padded), 32 (unpadded), 2x2 max pooling, 64 (padded), 64 (unpadded), pooling, a linear layer of
    512, each with its activation, and the linear head. No dropout.

    Parameters
    ----------
    width_factor : float, default 1.0
        Factor on the units of every hidden layer, cut to whole units as in the paper's script. ``math.sqrt(2)`` gives
        the unlinked control of a linked net: 45, 45, 90, 90 and 724 units, 0.7 % fewer parameters.
    in_channels, image_size, classes, activation, norm, initialization, generator
        As for :func:`~covshift.models.depth_net`; the paper used ``initialization="glorot-normal"``. Norms follow
        convolutions only, the dense layer has none.

    Returns
    -------
    nn.Sequential
        Layers ``conv0, act0, conv1, act1, pool1, conv2, ..., pool3, flatten, linear4, act4, head``.

    Raises
    ------
    InvalidArgumentError
        If ``width_factor`` leaves a layer without units, or as for :func:`~covshift.models.width_net`.
    UnsupportedModelError
        If a linked activation does not concatenate along the channel axis.

    Examples
    --------
    >>> sum(parameter.numel() for parameter in extended_cnn().parameters())
    1250858
    """
    require_positive_integers(in_channels=in_channels, image_size=image_size, classes=classes)
    narrow, wide, dense = (_widened(units, width_factor) for units in (32, 64, 512))
    row = Row(in_channels, image_size, activation=activation, norm=norm)
    for units in (narrow, wide):
        row.convolution(units, 3)
        row.convolution(units, 3, same=False)
        row.max_pool()
    row.flatten()
    row.linear(dense, active=True)
    row.linear(classes, name="head")
    return initialised(nn.Sequential(row.layers), initialization, generator)


def all_cnn(
    *,
    in_channels: int = 3,
    image_size: int = 32,
    classes: int = 10,
    width_factor: float = 1.0,
    activation: Activation = nn.ReLU,
    norm: Norm | None = None,
    initialization: Initialization = "variance-preserving",
    generator: torch.Generator | None = None,
) -> nn.Sequential:
    """Build the All-CNN of the paper (table A): nine convolutions, of which two stride, and a global average.

    3x3 convolutions of 96, 96 and 96 with stride 2, dropout of one half, 192, 192 and 192 with stride 2, dropout, 192;
    1x1 convolutions of 192 and ``classes``; the average over positions. The two strided convolutions and the last one
    have no activation, unlike those of Springenberg et al. (2015, arXiv 1412.6806), and the input no dropout.

    Parameters
    ----------
    width_factor : float, default 1.0
        Factor on the units of every hidden layer, cut to whole units.
    in_channels, image_size, classes, activation, norm, initialization, generator
        As for :func:`~covshift.models.depth_net`; the paper used ``initialization="keras"``. Norms stand before
        activations only.

    Returns
    -------
    nn.Sequential
        Layers ``conv0, act0, conv1, act1, conv2, drop2, ..., conv8, average, flatten``; there is no linear layer.

    Raises
    ------
    InvalidArgumentError
        As for :func:`extended_cnn`.
    UnsupportedModelError
        If a linked activation does not concatenate along the channel axis.

    Examples
    --------
    >>> sum(parameter.numel() for parameter in all_cnn().parameters())
    1369738
    """
    require_positive_integers(in_channels=in_channels, image_size=image_size, classes=classes)
    narrow, wide = (_widened(units, width_factor) for units in (96, 192))
    row = Row(in_channels, image_size, activation=activation, norm=norm)
    for units in (narrow, wide):
        row.convolution(units, 3)
        row.convolution(units, 3)
        row.convolution(units, 3, stride=2, active=False, normed=False)
        row.dropout(0.5)
    row.convolution(wide, 3)
    row.convolution(wide, 1)
    row.convolution(classes, 1, active=False, normed=False)
    row.average()
    return initialised(nn.Sequential(row.layers), initialization, generator)


def _widened(units: int, factor: float) -> int:
    if not (math.isfinite(factor) and int(units * factor) >= 1):
        raise InvalidArgumentError(
            f"width_factor={factor!r}: {units} units become none; expected a finite factor of at least 1 / {units}"
        )
    return int(units * factor)
