"""Claim C4, half the training time of Batch Normalization: whole steps of each way, timed in pairs.

    python analyses/step_time.py --preset cpu --variants all-cnn,resnet

A step is forward, backward and update. Blocks of steps of all arms take turns within one process and are compared block
by block, by processor time; ratios are medians over rounds with 90 % bootstrap intervals. The paper timed whole
trainings of one ResNet (table N).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import covshift
from common.evidence import evidence
from common.experiment import Experiment
from common.files import digits_of
from common.jobs import RECORDING, Job, Session, write_summary
from common.networks import residual_options, shape_of, width_factor
from common.paired import interleave, ratio
from common.plan import Optimizer, Plan
from common.variants import VARIANTS, batch_norm
from common.workloads import Trainer
from covshift.datasets import ImageSplit
from covshift.models import all_cnn, depth_net, extended_cnn, resnet50

PAPER = Plan(
    dataset="digits-32",
    variants=("depth", "extended", "all-cnn", "resnet"),
    axes=(("rounds", (40,)),),
    seeds=3,
    steps=40,
    batch_size=128,
    optimizer=Optimizer("adam", 1e-3),
    evaluate_every=1,
)
CPU = replace(PAPER, batch_size=32, axes=(("rounds", (30,)),), seeds=1, steps=2)
SMOKE = replace(PAPER, variants=("depth",), batch_size=4, axes=(("rounds", (4,)),), seeds=1, steps=1)
RECORDED_STEPS = 12
"""Steps of the linked net that are recorded after timing, so that what was timed can be judged."""

Maker = Callable[[str, bool, dict[str, int]], nn.Module]


@dataclass(frozen=True)
class Arm:
    """A variant of a network, with Batch Normalization or not."""

    variant: str
    normed: bool


ARMS = {
    "ReLU": Arm("relu", False),
    "ReLU sqrt2": Arm("relu-wide", False),
    "LK-ReLU": Arm("linked-relu", False),
    "ReLU, BN": Arm("relu", True),
    "LK-ReLU, BN": Arm("linked-relu", True),
}
RATIOS = (("LK-ReLU, BN", "LK-ReLU"), ("ReLU, BN", "LK-ReLU"), ("ReLU, BN", "ReLU"), ("ReLU sqrt2", "LK-ReLU"))
"""The paper's 2.08 is the first; the second compares the two remedies."""


def _sequential(
    builder: Callable[..., nn.Module], widened: str | None, name: str, normed: bool, shape: dict[str, int]
) -> nn.Module:
    variant = VARIANTS[name]
    wide = {"width_factor": width_factor(variant)} if widened == "factor" else {"width": 6 if variant.is_wide else 4}
    return builder(**shape, **wide, activation=variant.activation, norm=batch_norm if normed else None)


def _residual(name: str, normed: bool, shape: dict[str, int]) -> nn.Module:
    return resnet50(**shape, **residual_options(VARIANTS[name], normed=normed))


NETWORKS: Mapping[str, Maker] = {
    "depth": partial(_sequential, depth_net, "units"),
    "extended": partial(_sequential, extended_cnn, "factor"),
    "all-cnn": partial(_sequential, all_cnn, "factor"),
    "resnet": _residual,
}


def arms_of(network: str) -> dict[str, Arm]:
    """Arms of a network; the ResNet has no sqrt(2) wide control in the paper."""
    return {name: arm for name, arm in ARMS.items() if network != "resnet" or arm.variant != "relu-wide"}


def trainers(job: Job, data: ImageSplit, device: str) -> dict[str, Trainer]:
    """A trainer for each arm, all on the same batch."""
    images, labels = (part[: job.plan.batch_size].to(device) for part in (data.train_images, data.train_labels))
    made = {}
    for name, arm in arms_of(job.variant).items():
        torch.manual_seed(job.seed)
        model = NETWORKS[job.variant](arm.variant, arm.normed, shape_of(data)).to(device)
        made[name] = Trainer(model, job.plan.optimizer.make(model), images, labels)
    return made


def perform(job: Job, folder: Path, data: ImageSplit, session: Session) -> dict[str, Any]:
    """Time the arms of a network, then record some steps of the linked one; returns the summary."""
    folder.mkdir(parents=True, exist_ok=True)
    begun = time.process_time(), time.perf_counter()
    made = trainers(job, data, session.device)
    blocks = {name: partial(_block, trainer, job.plan.steps, session.device) for name, trainer in made.items()}
    timed = interleave(blocks, rounds=job.condition["rounds"])
    _record(made["LK-ReLU"], folder / RECORDING, job)
    summary = job.describe(data, session.device) | {
        "complete": True,
        "steps": job.plan.steps,
        "parameters": _parameters(made["LK-ReLU"].model),
        "arms": {
            name: {
                "ms": digits_of(1e3 * float(np.median(times.cpu)) / job.plan.steps),
                "parameters": _parameters(made[name].model),
            }
            for name, times in timed.items()
        },
        "ratios": {
            f"{arm} / {base}": vars(ratio(timed[arm].cpu, timed[base].cpu)) for arm, base in RATIOS if arm in timed
        },
        "seconds": {"cpu": time.process_time() - begun[0], "wall": time.perf_counter() - begun[1]},
        **evidence(covshift.open(folder / RECORDING), distinct_examples=job.plan.batch_size),
    }
    write_summary(folder, summary)
    return summary


def _block(trainer: Trainer, steps: int, device: str) -> None:
    trainer.steps(steps)
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def _record(trainer: Trainer, path: Path, job: Job) -> None:
    with covshift.record(trainer.model, path, every=1, name=job.name, overwrite=True):
        trainer.steps(RECORDED_STEPS)


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


EXPERIMENT = Experiment(
    "step_time",
    "Step time: Batch Normalization against linked and sqrt(2) wide nets, in pairs (claim C4)",
    {"smoke": SMOKE, "cpu": CPU, "paper": PAPER},
    perform,
)

if __name__ == "__main__":
    sys.exit(EXPERIMENT.main())
