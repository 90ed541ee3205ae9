"""Table D and claims C1 and C2: fifty narrow convolutions, thirteen ways: who trains, who dies, and of what.

    python analyses/depth.py --data DIR --preset cpu --variants relu,linked-relu --seeds 1

``--depth 10,20,100`` gives other depths, ``--initialization keras`` the paper's Glorot weights alone.
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
from common.variants import THIRTEEN, VARIANTS
from covshift.datasets import ImageSplit
from covshift.models import depth_net

PAPER = Plan(
    dataset="cifar10",
    variants=THIRTEEN,
    axes=(("initialization", ("keras",)), ("depth", (50,))),
    seeds=3,
    steps=epochs(200),
    batch_size=32,
    optimizer=Optimizer("adam", 1e-3, decay=1e-6),
    evaluate_every=epochs(1),
)
CPU = replace(
    PAPER,
    axes=(("initialization", ("variance-preserving", "keras")), ("depth", (50,))),
    steps=1_500,
    shuffled=True,
    evaluate_every=250,
    test_examples=2_000,
    watched_examples=2_000,
    record_every=20,
)
SMOKE = smoke(
    CPU,
    ("relu", "linked-relu"),
    axes=(("initialization", ("variance-preserving",)), ("depth", (10,))),
    steps=24,
    evaluate_every=8,
    record_every=4,
)
WIDTH, WIDE = 4, 6
"""Units of a layer; sqrt(2) times as many are 5.7."""


def build(job: Job, data: ImageSplit, generator: torch.Generator) -> nn.Module:
    """The depth net of a variant."""
    width = WIDE if VARIANTS[job.variant].is_wide else WIDTH
    return built(depth_net, job, data, generator, depth=job.condition["depth"], width=width)


EXPERIMENT = Experiment(
    "depth",
    "Depth: fifty convolutions of four units, thirteen ways (table D; claims C1, C2)",
    {"smoke": SMOKE, "cpu": CPU, "paper": PAPER},
    Trainer(build),
)

if __name__ == "__main__":
    sys.exit(EXPERIMENT.main())
