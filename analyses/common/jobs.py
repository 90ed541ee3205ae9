"""One run of an experiment: what it is, where it lies, and what is written about it when it ends."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

import covshift
from common.files import LARGEST_SUMMARY, read_json, write_json
from common.plan import Plan, decisive, distance
from common.variants import VARIANTS
from covshift.datasets import ImageSplit

SUMMARY, RECORDING, CHECKPOINT = "summary.json", "recording.zarr", "checkpoint.pt"


class Progress(Protocol):
    """Told how far a run is."""

    def __call__(self, job: Job, step: int, accuracy: float) -> None:
        """Called at every evaluation."""


@dataclass(frozen=True)
class Session:
    """How runs are made today, which decides nothing about their numbers but the last bits.

    Attributes
    ----------
    device : str
        torch device.
    resume : bool
        Continue from the last checkpoint instead of anew.
    deadline : float
        ``time.monotonic()`` from which on runs stop at their next evaluation.
    progress : callable
    """

    device: str
    resume: bool
    deadline: float
    progress: Progress


@dataclass(frozen=True)
class Job:
    """One run.

    Attributes
    ----------
    experiment, preset : str
        Names; of a preset whose numbers were overridden, with what was.
    variant : str
        Of the plan's variants.
    condition : mapping
        Value of every axis.
    seed : int
    plan, paper : Plan
        What is done, and the paper's protocol.
    """

    experiment: str
    preset: str
    variant: str
    condition: Mapping[str, Any]
    seed: int
    plan: Plan
    paper: Plan

    @property
    def name(self) -> str:
        """Name of the run, fit for a folder."""
        condition = [f"{name}-{value}" for name, value in self.condition.items()]
        return "_".join([self.experiment, self.preset, *condition, self.variant, f"seed-{self.seed}"])

    @property
    def title(self) -> str:
        """Title of the variant, as in the paper where it has one."""
        return VARIANTS[self.variant].title if self.variant in VARIANTS else self.variant

    def key(self, data: ImageSplit) -> str:
        """Hash of all that decides the run's numbers: runs with one key are the same run."""
        plan = decisive(self.plan.to_dict())
        content = [self.experiment, self.variant, dict(self.condition), self.seed, plan, data.sha256]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    def finished(self, folder: Path, data: ImageSplit) -> dict[str, Any] | None:
        """The summary, if the folder holds that of this very run and the run reached its end."""
        found = read_json(folder / SUMMARY)
        return found if found and found["complete"] and found["key"] == self.key(data) else None

    def describe(self, data: ImageSplit, device: str) -> dict[str, Any]:
        """What a summary says of a run before anything is measured."""
        return {
            "covshift_results_version": 1,
            "key": self.key(data),
            "experiment": self.experiment,
            "preset": self.preset,
            "variant": self.variant,
            "title": self.title,
            "condition": dict(self.condition),
            "seed": self.seed,
            "plan": self.plan.to_dict(),
            "distance_from_paper": distance(self.plan, self.paper),
            "data": {"name": data.name, "sha256": data.sha256, "description": data.description},
            "machine": machine(device),
        }


def write_summary(folder: Path, summary: dict[str, Any]) -> None:
    """Write a run's summary, whose size is bounded.

    Raises
    ------
    ValueError
        If it is larger than :data:`common.files.LARGEST_SUMMARY`.
    """
    write_json(folder / SUMMARY, summary)
    size = (folder / SUMMARY).stat().st_size
    if size > LARGEST_SUMMARY:
        raise ValueError(f"{folder / SUMMARY}: {size:,} bytes, at most {LARGEST_SUMMARY:,} are to be; keep less")


def machine(device: str) -> dict[str, Any]:
    """On what a run ran: software, hardware and commit."""
    return {
        "covshift": covshift.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else "cpu",
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "commit": commit(),
    }


def parameter_hash(model: nn.Module) -> str:
    """SHA-256 of all parameters and buffers: equal for runs that are equal bit for bit."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().numpy().tobytes())
    return digest.hexdigest()


def commit() -> str:
    """Commit of these scripts, with a plus sign where files differ from it; "" outside a checkout."""
    here = Path(__file__).parent
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--dirty=+"],
            cwd=here,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
