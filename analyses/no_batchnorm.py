"""Table N and claims C2 and C4: the same ResNet-50 with Batch Normalization and without.

python analyses/no_batchnorm.py --data DIR --preset cpu --norm none
"""

from __future__ import annotations

import sys
from dataclasses import replace

import torch
from torch import nn

import resnet
from common.experiment import Experiment
from common.jobs import Job
from common.networks import built, residual_options
from common.plan import Plan
from common.training import Trainer
from common.variants import VARIANTS
from covshift.datasets import ImageSplit
from covshift.models import resnet50

THREE = ("linked-relu", "selu", "linked-selu")
AXES = (("norm", ("batch-norm", "none")),)


def _both(plan: Plan, variants: tuple[str, ...] = THREE) -> Plan:
    """A plan of the ResNet with Batch Normalization and without."""
    return replace(plan, variants=variants, axes=AXES)


PAPER, CPU, SMOKE = _both(resnet.PAPER), _both(resnet.CPU), _both(resnet.SMOKE, THREE[:1])


def build(job: Job, data: ImageSplit, generator: torch.Generator) -> nn.Module:
    """The ResNet-50 of a variant, with Batch Normalization or not."""
    options = residual_options(VARIANTS[job.variant], normed=job.condition["norm"] == "batch-norm")
    return built(resnet50, job, data, generator, **options)


EXPERIMENT = Experiment(
    "no_batchnorm",
    "ResNet-50 with and without Batch Normalization (table N; claims C2, C4)",
    {"smoke": SMOKE, "cpu": CPU, "paper": PAPER},
    Trainer(build),
)

if __name__ == "__main__":
    sys.exit(EXPERIMENT.main())
