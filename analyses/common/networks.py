"""What every network of the trial is given: the shape of the data, the parts of its variant, how its weights start."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from common.jobs import Job
from common.variants import VARIANTS, Variant, batch_norm
from covshift.datasets import ImageSplit

SQRT2 = math.sqrt(2)


def shape_of(data: ImageSplit) -> dict[str, int]:
    """Arguments of a network's builder that follow from the data."""
    _, channels, size, _ = data.train_images.shape
    return {"in_channels": channels, "image_size": size, "classes": data.classes}


def parts_of(variant: Variant) -> dict[str, Any]:
    """Arguments of a network's builder that follow from the variant."""
    return {"activation": variant.activation, "norm": variant.norm}


def built(
    builder: Callable[..., nn.Module], job: Job, data: ImageSplit, generator: torch.Generator, **options: Any
) -> nn.Module:
    """A network of a job's variant; weights start as its condition says, else as in Keras."""
    chosen = shape_of(data) | parts_of(VARIANTS[job.variant])
    chosen["initialization"] = job.condition.get("initialization", "keras")
    model = builder(**chosen | options, generator=generator)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = job.plan.batch_norm_momentum
    return model


def width_factor(variant: Variant) -> float:
    """Factor on the units of a network: sqrt(2) for the wide control."""
    return SQRT2 if variant.is_wide else 1.0


def residual_options(variant: Variant, *, normed: bool) -> dict[str, Any]:
    """Arguments of the ResNet: linked inside the branches, the base outside, with Batch Normalization or not."""
    return {
        "activation": variant.activation,
        "sum_activation": variant.base_activation,
        "norm": batch_norm if normed else None,
    }
