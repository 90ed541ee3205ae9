"""Table A and claim C6: All-CNN, eight ways.

    python analyses/allcnn.py --data DIR --preset cpu

The paper trained for 3,000 epochs at the better of two rates, not saying which; the schedule is that of its text. Here
SELU and its linkage take the smaller one: at 0.01 LK-SELU was NaN within ten steps in three of three runs.
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
from covshift.models import all_cnn

MILESTONES = tuple((epochs(epoch), factor) for epoch, factor in ((500, 0.75), (2000, 0.5), (2350, 0.1), (2750, 0.05)))

PAPER = Plan(
    dataset="cifar10",
    variants=EIGHT,
    axes=(),
    seeds=3,
    steps=epochs(3_000),
    batch_size=32,
    linked_batch_size=128,
    optimizer=Optimizer("nesterov", 0.01, decay=1e-6, milestones=MILESTONES),
    shuffled=True,
    augmented=True,
    evaluate_every=epochs(1),
)
CPU = replace(
    PAPER,
    variants=("relu", "linked-relu", "selu", "linked-selu"),
    steps=100,
    linked_batch_size=None,
    optimizer=Optimizer("nesterov", 0.01, decay=1e-6),
    rates=(("selu", 0.001), ("linked-selu", 0.001)),
    evaluate_every=50,
    test_examples=1_000,
    final_examples=2_000,
    watched_examples=500,
    record_every=10,
)
SMOKE = smoke(CPU, ("linked-relu",), steps=4, batch_size=8, evaluate_every=2, record_every=1, test_examples=20)


def build(job: Job, data: ImageSplit, generator: torch.Generator) -> nn.Module:
    """The All-CNN of a variant."""
    return built(all_cnn, job, data, generator)


EXPERIMENT = Experiment(
    "allcnn",
    "All-CNN: nine convolutions without pooling (table A; claim C6)",
    {"smoke": SMOKE, "cpu": CPU, "paper": PAPER},
    Trainer(build),
)

if __name__ == "__main__":
    sys.exit(EXPERIMENT.main())
