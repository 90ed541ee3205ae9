"""The paper's depth net: many narrow convolutions in a row, where dead units and vanishing gradients show.

It returns a plain ``nn.Sequential`` with readable layer names, so that hooks, ``link_model`` and the eye all find the
same layers. The softmax lives in the loss; data, training and measurement live elsewhere.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import nn

from covshift.models.building import (
    Activation,
    Initialization,
    Norm,
    Row,
    initialised,
    require_choice,
    require_positive_integers,
)

Stem = Literal["7x7", "3x3"]


def depth_net(
    depth: int = 50,
    *,
    width: int = 4,
    in_channels: int = 3,
    image_size: int = 32,
    classes: int = 10,
    stem: Stem = "7x7",
    activation: Activation = nn.ReLU,
    norm: Norm | None = None,
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
    initialization : {"variance-preserving", "keras", "glorot-normal"}
        :func:`~covshift.models.variance_preserving_`, :func:`~covshift.models.glorot_uniform_` or
        :func:`~covshift.models.glorot_normal_`. Biases start at zero under all.
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
    require_positive_integers(depth=depth, width=width, in_channels=in_channels, image_size=image_size, classes=classes)
    require_choice("stem", stem, get_args(Stem))
    row = Row(in_channels, image_size, activation=activation, norm=norm)
    if stem == "7x7":
        row.convolution(width, 7, stride=2)
    for _ in range(depth):
        row.convolution(width, 3)
    row.flatten()
    row.linear(classes, name="head")
    return initialised(nn.Sequential(row.layers), initialization, generator)
