"""Table N and claim C2: the ResNet-50 of resnet.py without Batch Normalization; with it, the runs are those there.

python analyses/no_batchnorm.py --data DIR --preset cpu
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
from common.training import Trainer
from common.variants import VARIANTS
from covshift.datasets import ImageSplit
from covshift.models import resnet50

THREE = ("linked-relu", "selu", "linked-selu")
PAPER, CPU = replace(resnet.PAPER, variants=THREE), replace(resnet.CPU, variants=THREE)
SMOKE = replace(resnet.SMOKE, variants=THREE[:1])


def build(job: Job, data: ImageSplit, generator: torch.Generator) -> nn.Module:
    """The ResNet-50 of a variant, without Batch Normalization."""
    return built(resnet50, job, data, generator, **residual_options(VARIANTS[job.variant], normed=False))


EXPERIMENT = Experiment(
    "no_batchnorm",
    "ResNet-50 without Batch Normalization (table N; claim C2)",
    {"smoke": SMOKE, "cpu": CPU, "paper": PAPER},
    Trainer(build),
)

if __name__ == "__main__":
    sys.exit(EXPERIMENT.main())
