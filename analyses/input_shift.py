"""Claim C5, no need to standardise inputs: the same nets on raw, unit, standardised and shifted pixels.

    python analyses/input_shift.py --data DIR --preset cpu --input raw,standardised

The paper claims it without an experiment; the network and the training are those of its table E.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import partial

import torch
from torch import nn

from common.data import Affine, standardised, unit
from common.experiment import Experiment
from common.jobs import Job
from common.networks import built, width_factor
from common.plan import Optimizer, Plan, epochs, smoke
from common.training import Trainer
from common.variants import VARIANTS
from covshift.datasets import ImageSplit
from covshift.models import extended_cnn

INPUTS = {
    "standardised": standardised,
    "unit": unit,
    "raw": partial(unit, scale=255.0),
    "shifted-1": partial(standardised, shift=1.0),
    "shifted-3": partial(standardised, shift=3.0),
}
"""What the network sees: mean 0 and sd 1 in each channel, [0, 1], [0, 255], and standardised plus so many sd."""

PAPER = Plan(
    dataset="cifar10",
    variants=("relu", "relu-wide", "linked-relu", "selu", "linked-selu", "batch-norm"),
    axes=(("input", tuple(INPUTS)),),
    seeds=3,
    steps=epochs(200),
    batch_size=32,
    optimizer=Optimizer("rmsprop", 1e-4, decay=1e-6),
    evaluate_every=epochs(1),
)
CPU = replace(
    PAPER,
    variants=("relu", "relu-wide", "linked-relu", "batch-norm"),
    steps=400,
    batch_norm_momentum=0.1,
    shuffled=True,
    evaluate_every=100,
    test_examples=1_000,
    watched_examples=1_000,
    final_examples=5_000,
    record_every=25,
)
SMOKE = smoke(
    CPU, ("linked-relu",), axes=(("input", ("standardised", "raw")),), batch_size=16, steps=6, evaluate_every=3
)


def build(job: Job, data: ImageSplit, generator: torch.Generator) -> nn.Module:
    """The extended CNN of a variant, started as in table E."""
    factor = width_factor(VARIANTS[job.variant])
    return built(extended_cnn, job, data, generator, width_factor=factor, initialization="glorot-normal")


def inputs(job: Job, data: ImageSplit) -> Affine:
    """What is done to the pixels of a job."""
    return INPUTS[job.condition["input"]](data)


EXPERIMENT = Experiment(
    "input_shift",
    "Input shift: raw, unit, standardised and shifted pixels (claim C5)",
    {"smoke": SMOKE, "cpu": CPU, "paper": PAPER},
    Trainer(build, inputs),
)

if __name__ == "__main__":
    sys.exit(EXPERIMENT.main())
