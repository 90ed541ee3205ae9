"""The paper's ResNet-50 for 32x32 images, with Batch Normalization or without (arXiv 1712.02609, tables R and N).

Bottlenecks as in He et al. (2016, arXiv 1512.03385) and Keras: the first 1x1 convolution strides, the activation
follows the sum. Linked activations stand inside the branches only: after the sum they would double the channels, and
the identity shortcut of the next block could not be added.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from covshift.exceptions import UnsupportedModelError
from covshift.models.building import (
    Activation,
    Initialization,
    Norm,
    Row,
    channels_per_unit,
    initialised,
    made,
    require_positive_integers,
)
from covshift.models.initialization import variance_preserving_

STEM = 8


@dataclass(frozen=True)
class Stage:
    """Blocks of one size: units of the two inner convolutions, of the outer one, and the first block's stride."""

    blocks: int
    inner: int
    outer: int
    stride: int


STAGES = (Stage(3, 16, 64, 1), Stage(4, 16, 64, 2), Stage(6, 32, 128, 2), Stage(3, 32, 128, 2))
"""The paper's: a quarter (an eighth from the second on) of the units of ResNet-50, the first without a stride."""


class Bottleneck(nn.Module):
    """A residual block: 1x1, 3x3 and 1x1 convolutions beside an identity or a 1x1 convolution, summed, activated.

    Parameters
    ----------
    branch : nn.Sequential
        The three convolutions with norms, and activations after the first two.
    shortcut : nn.Module
        ``nn.Identity`` or a convolution with its norm.
    activation : nn.Module
        Applied to the sum.
    """

    def __init__(self, branch: nn.Sequential, shortcut: nn.Module, activation: nn.Module) -> None:
        super().__init__()
        self.branch, self.shortcut, self.activation = branch, shortcut, activation

    def forward(self, x: Tensor) -> Tensor:
        """Activation of the sum; channels and size as the branch makes them."""
        return cast(Tensor, self.activation(self.branch(x) + self.shortcut(x)))


def resnet50(
    *,
    in_channels: int = 3,
    image_size: int = 32,
    classes: int = 10,
    activation: Activation = nn.ReLU,
    sum_activation: Activation = nn.ReLU,
    norm: Norm | None = nn.BatchNorm2d,
    initialization: Initialization = "variance-preserving",
    generator: torch.Generator | None = None,
) -> nn.Sequential:
    """Build the paper's ResNet-50: a 3x3 convolution of 8, stages of 3, 4, 6 and 3 bottlenecks, flatten, linear.

    Parameters
    ----------
    activation : callable, default nn.ReLU
        Inside the branches, after the first and the second convolution; may be linked.
    sum_activation : callable, default nn.ReLU
        After the first convolution and after every sum, where the paper's linked variants keep the unlinked base.
    norm : callable or None, default nn.BatchNorm2d
        After every convolution, called with its units; None for the paper's nets without Batch Normalization.
    initialization : {"variance-preserving", "keras", "glorot-normal"}
        The paper used "keras". Under "variance-preserving" every branch keeps the mean square of its input as in
        :func:`~covshift.models.variance_preserving_`, and the weights of its last convolution are divided by the root
        of the number of blocks, so that the sums of all blocks together grow by a bounded factor (Hayou et al. 2021,
        arXiv 2010.12859).
    in_channels, image_size, classes, generator
        As for :func:`~covshift.models.depth_net`.

    Returns
    -------
    nn.Sequential
        Layers ``conv0, norm0, act0, block0, ..., block15, flatten, head``; inside a block ``branch.conv0`` and so on.

    Raises
    ------
    InvalidArgumentError
        If a count is not a positive integer, a choice is unknown, or a factory does not return a module.
    UnsupportedModelError
        If ``sum_activation`` is linked, or ``activation`` is along another axis than the channels.

    Examples
    --------
    >>> net = resnet50()
    >>> net(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    >>> sum(parameter.numel() for parameter in net.parameters())
    242458
    """
    require_positive_integers(in_channels=in_channels, image_size=image_size, classes=classes)
    row = Row(in_channels, image_size, activation=_unlinked(sum_activation), norm=norm)
    row.convolution(STEM, 3)
    index = 0
    for stage in STAGES:
        for place in range(stage.blocks):
            stride = stage.stride if place == 0 else 1
            block = _bottleneck(row, stage, stride, projected=place == 0, activation=activation, norm=norm)
            row.layers[f"block{index}"] = Bottleneck(*block, made("sum_activation", sum_activation))
            index += 1
    row.flatten()
    row.linear(classes, name="head")
    model = nn.Sequential(row.layers)
    if initialization == "variance-preserving":
        return _variance_preserving(model, generator)
    return initialised(model, initialization, generator)


def _unlinked(sum_activation: Activation) -> Activation:
    """The factory itself, having seen that what it makes keeps the number of channels."""
    probe = made("sum_activation", sum_activation)
    if channels_per_unit(probe) != 1:
        raise UnsupportedModelError(
            f"sum_activation= made a {type(probe).__name__}, which widens the sum, so that the next block's identity "
            "shortcut cannot be added to its branch; give the unlinked base, and the linked one as activation="
        )
    return sum_activation


def _bottleneck(
    row: Row, stage: Stage, stride: int, *, projected: bool, activation: Activation, norm: Norm | None
) -> tuple[nn.Sequential, nn.Module]:
    """Branch and shortcut of a block that reads what ``row`` ends in; the row then ends in what the block gives."""
    branch = Row(row.channels, row.side, activation=activation, norm=norm)
    branch.convolution(stage.inner, 1, stride=stride)
    branch.convolution(stage.inner, 3)
    branch.convolution(stage.outer, 1, active=False)
    beside: nn.Module = nn.Identity()
    if projected:
        shortcut = Row(row.channels, row.side, activation=activation, norm=norm)
        shortcut.convolution(stage.outer, 1, stride=stride, active=False)
        beside = nn.Sequential(shortcut.layers)
    row.channels, row.side = branch.channels, branch.side
    return nn.Sequential(branch.layers), beside


def _variance_preserving(model: nn.Sequential, generator: torch.Generator | None) -> nn.Sequential:
    """Each straight stretch of the net by itself, fed by the activation before it."""
    blocks = [part for part in model if isinstance(part, Bottleneck)]
    stem = [part for name, part in model.named_children() if name in ("conv0", "norm0")]
    variance_preserving_(nn.Sequential(*stem), generator=generator)
    feed = model.get_submodule("act0")
    for block in blocks:
        variance_preserving_(nn.Sequential(feed, block.branch), generator=generator)
        if isinstance(block.shortcut, nn.Sequential):
            variance_preserving_(nn.Sequential(feed, block.shortcut), generator=generator)
        last = cast(nn.Conv2d, block.branch.get_submodule("conv2"))
        with torch.no_grad():
            last.weight.div_(len(blocks) ** 0.5)
        feed = block.activation
    variance_preserving_(
        nn.Sequential(feed, model.get_submodule("flatten"), model.get_submodule("head")), generator=generator
    )
    return model
