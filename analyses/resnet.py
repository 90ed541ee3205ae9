"""Table R and claim C6: ResNet-50 scaled to CIFAR, with Batch Normalization, eight ways.

python analyses/resnet.py --data DIR --preset cpu
"""

from __future__ import annotations

import sys
from dataclasses import replace

import torch
from torch import nn

from common.experiment import Experiment
from common.jobs import Job
from common.networks import built, residual_options
from common.plan import Optimizer, Plan, epochs, smoke
from common.training import Trainer
from common.variants import EIGHT, VARIANTS
from covshift.datasets import ImageSplit
from covshift.models import resnet50

PAPER = Plan(
    dataset="cifar10",
    variants=EIGHT,
    axes=(),
    seeds=3,
    steps=epochs(2_000, batch_size=128),
    batch_size=128,
    optimizer=Optimizer("adam", 1e-3, decay=1e-6),
    shuffled=True,
    augmented=True,
    evaluate_every=epochs(1, batch_size=128),
)
CPU = replace(
    PAPER,
    variants=("relu", "linked-relu", "selu", "linked-selu"),
    steps=150,
    batch_norm_momentum=0.1,
    evaluate_every=75,
    test_examples=1_000,
    final_examples=2_000,
    watched_examples=500,
    record_every=10,
)
SMOKE = smoke(CPU, ("linked-relu",), steps=4, batch_size=8, evaluate_every=2, record_every=1, test_examples=20)


def build(job: Job, data: ImageSplit, generator: torch.Generator) -> nn.Module:
    """The ResNet-50 of a variant, with Batch Normalization."""
    return built(resnet50, job, data, generator, **residual_options(VARIANTS[job.variant], normed=True))


EXPERIMENT = Experiment(
    "resnet",
    "ResNet-50 with Batch Normalization (table R; claim C6)",
    {"smoke": SMOKE, "cpu": CPU, "paper": PAPER},
    Trainer(build),
)

if __name__ == "__main__":
    sys.exit(EXPERIMENT.main())
