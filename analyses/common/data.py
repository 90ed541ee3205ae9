"""The data sets of the experiments, and how their pixels reach the network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from covshift.datasets import ImageSplit, cifar10, digits, fashion_mnist


class Affine(NamedTuple):
    """What is done to pixels before the network, by channel: ``scale * pixel + offset``, shapes ``(1, C, 1, 1)``."""

    scale: Tensor
    offset: Tensor

    def __call__(self, images: Tensor) -> Tensor:
        """The images as the network sees them."""
        return images * self.scale + self.offset


def unit(data: ImageSplit, *, scale: float = 1.0) -> Affine:
    """Pixels from 0 to ``scale``; 1 is the paper's input."""
    channels = data.train_images.shape[1]
    return Affine(torch.full((1, channels, 1, 1), scale), torch.zeros(1, channels, 1, 1))


def standardised(data: ImageSplit, *, scale: float = 1.0, shift: float = 0.0) -> Affine:
    """Mean ``shift`` and standard deviation ``scale`` in each channel, over the training images."""
    sd, mean = torch.std_mean(data.train_images, dim=(0, 2, 3), keepdim=True, correction=0)
    return Affine(scale / sd, shift - scale * mean / sd)


def _enlarged_digits(folder: Path, download: bool) -> ImageSplit:
    """The bundled digits as 32x32 images of three channels, each pixel four by four: what needs no download."""
    data = digits()

    def enlarge(images: Tensor) -> Tensor:
        return images.repeat_interleave(4, 2).repeat_interleave(4, 3).expand(-1, 3, -1, -1).contiguous()

    return replace(
        data,
        train_images=enlarge(data.train_images),
        test_images=enlarge(data.test_images),
        name="digits-32",
        description=f"{data.description} Here every pixel is drawn four by four, in three equal channels.",
    )


DATASETS: Mapping[str, Callable[[Path, bool], ImageSplit]] = {
    "cifar10": lambda folder, download: cifar10(folder, download=download),
    "fashion-mnist": lambda folder, download: fashion_mnist(folder, download=download),
    "digits-32": _enlarged_digits,
}

TRAINING_IMAGES = {"cifar10": 50_000, "fashion-mnist": 60_000, "digits-32": 1_400}
"""How many each data set has."""


@cache
def load(name: str, folder: Path, *, download: bool) -> ImageSplit:
    """A data set by name, read once a process."""
    return DATASETS[name](folder, download)
