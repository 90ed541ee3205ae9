"""Table E and claim C6: linked nets against single ones sqrt(2) times as wide, which have as many parameters.

python analyses/parameter_matched.py --data DIR --preset cpu
"""

from __future__ import annotations

import sys
from dataclasses import replace

import torch
from torch import nn

from common.experiment import Experiment
from common.jobs import Job
from common.networks import built, width_factor
from common.plan import Optimizer, Plan, epochs, smoke
from common.training import Trainer
from common.variants import TWELVE, VARIANTS
from covshift.datasets import ImageSplit
from covshift.models import extended_cnn

PAPER = Plan(
    dataset="cifar10",
    variants=TWELVE,
    axes=(("initialization", ("glorot-normal",)),),
    seeds=3,
    steps=epochs(200),
    batch_size=32,
    optimizer=Optimizer("rmsprop", 1e-4, decay=1e-6),
    evaluate_every=epochs(1),
)
CPU = replace(
    PAPER,
    steps=500,
    shuffled=True,
    evaluate_every=250,
    test_examples=1_000,
    final_examples=5_000,
    watched_examples=1_000,
    record_every=25,
)
SMOKE = smoke(CPU, ("relu-wide", "linked-relu"), batch_size=16, steps=6, evaluate_every=3)


def build(job: Job, data: ImageSplit, generator: torch.Generator) -> nn.Module:
    """The extended CNN of a variant."""
    return built(extended_cnn, job, data, generator, width_factor=width_factor(VARIANTS[job.variant]))


EXPERIMENT = Experiment(
    "parameter_matched",
    "Parameter-matched: single, sqrt(2) wide and linked with equal numbers of parameters (table E; claim C6)",
    {"smoke": SMOKE, "cpu": CPU, "paper": PAPER},
    Trainer(build),
)

if __name__ == "__main__":
    sys.exit(EXPERIMENT.main())
