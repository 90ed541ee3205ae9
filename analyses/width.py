"""Table W: one layer of convolutions, 50 or 400 units wide: what linking gives where there is no depth.

python analyses/width.py --data DIR --preset cpu --width 50
"""

from __future__ import annotations

import sys
from dataclasses import replace

import torch
from torch import nn

from common.experiment import Experiment
from common.jobs import Job
from common.networks import built
from common.plan import Optimizer, Plan, epochs, smoke
from common.training import Trainer
from common.variants import EIGHT
from covshift.datasets import ImageSplit
from covshift.models import width_net

PAPER = Plan(
    dataset="cifar10",
    variants=EIGHT,
    axes=(("width", (50, 400)),),
    seeds=3,
    steps=epochs(200),
    batch_size=32,
    optimizer=Optimizer("sgd", 0.01),
    evaluate_every=epochs(1),
)
CPU = replace(
    PAPER,
    axes=(("width", (50,)),),
    steps=epochs(3),
    shuffled=True,
    evaluate_every=epochs(1),
    test_examples=2_000,
    watched_examples=2_000,
)
SMOKE = smoke(CPU, ("relu", "linked-relu"), axes=(("width", (8,)),))


def build(job: Job, data: ImageSplit, generator: torch.Generator) -> nn.Module:
    """The width net of a variant."""
    return built(width_net, job, data, generator, width=job.condition["width"])


EXPERIMENT = Experiment(
    "width",
    "Width: one convolution of 50 or 400 units (table W; claim C6)",
    {"smoke": SMOKE, "cpu": CPU, "paper": PAPER},
    Trainer(build),
)

if __name__ == "__main__":
    sys.exit(EXPERIMENT.main())
