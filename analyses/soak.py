"""Thirty minutes of training as people do it, recorded throughout, to see whether anything grows.

Run ``python analyses/soak.py --minutes 30 --json soak.json``; it exits with 1 when a check fails. Training at every
step, evaluation passes, checkpoints, pauses and exceptions thrown in the middle of forward passes take turns, under one
recorder with a store on disk. Every ten seconds resident memory, open files and the processor time of a step are
sampled. Linux only: both are read from ``/proc/self``.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import covshift
from common.process_memory import resident
from common.soak_verdict import LEAST_SAMPLES, Check, Series, verdict

SAMPLE_SECONDS = 10.0
CYCLE = {"train": 40, "evaluate": 4, "raise": 1, "pause": 5}
"""Batches of each kind in a cycle; each cycle ends with a checkpoint."""


class Fuse(nn.Module):
    """Passes its input on, or raises when armed."""

    def __init__(self) -> None:
        super().__init__()
        self.armed = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``x`` itself."""
        if self.armed:
            raise ValueError("the fuse is armed")
        return x


class Training:
    """A small convolutional network with normalisation and dropout, and all that happens around its training."""

    def __init__(self, folder: Path) -> None:
        torch.manual_seed(0)
        self.fuse = Fuse()
        self.model = nn.Sequential(
            *self._stage(3, 16),
            *self._stage(16, 32),
            self.fuse,
            *self._stage(32, 32),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Dropout(0.2),
            nn.Linear(32, 10),
        )
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3)
        self._checkpoint = folder / "checkpoint.pt"

    @staticmethod
    def _stage(inputs: int, outputs: int) -> list[nn.Module]:
        convolution = nn.Conv2d(inputs, outputs, 3, padding=1)
        return [convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True), nn.MaxPool2d(2)]

    def loss(self) -> torch.Tensor:
        """Loss of a fresh random batch."""
        return F.cross_entropy(self.model(torch.randn(16, 3, 16, 16)), torch.randint(10, (16,)))

    def step(self) -> float:
        """One training step; returns its loss."""
        loss = self.loss()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item()

    def evaluate(self, batches: int) -> None:
        """Forward passes in evaluation mode."""
        self.model.eval()
        with torch.no_grad():
            for _ in range(batches):
                self.loss()
        self.model.train()

    def fail(self) -> None:
        """A training step whose forward pass throws, as a user's loop survives it."""
        self.fuse.armed = True
        try:
            self.step()
        except ValueError:
            self.optimizer.zero_grad()
        finally:
            self.fuse.armed = False

    def save(self) -> None:
        """A checkpoint over the last one."""
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        torch.save(state, self._checkpoint)


def cycles(training: Training, recorder: covshift.Recorder) -> Iterator[float]:
    """Run for ever; yields processor seconds of each recorded training step."""
    while True:
        for _ in range(CYCLE["train"]):
            start = time.process_time()
            recorder.log(loss=training.step())
            yield time.process_time() - start
        with recorder.evaluation():
            training.evaluate(CYCLE["evaluate"])
        for _ in range(CYCLE["raise"]):
            training.fail()
        with recorder.pause():
            for _ in range(CYCLE["pause"]):
                training.step()
        training.save()


def soak(minutes: float, *, report: Callable[[str], None]) -> Series:
    """Samples of a soak of some minutes."""
    every = min(SAMPLE_SECONDS, minutes * 60 / (2 * LEAST_SAMPLES))
    samples: list[tuple[float, float, int, list[float]]] = []
    with tempfile.TemporaryDirectory() as name:
        training = Training(Path(name))
        with covshift.record(training.model, Path(name) / "run", every=1) as recorder:
            start = time.perf_counter()
            taken: list[float] = []
            for seconds in cycles(training, recorder):
                taken.append(seconds)
                now = time.perf_counter() - start
                if now >= every * (len(samples) + 1):
                    samples.append(_sample(now, taken))
                    taken.clear()
                    report(_line(samples[-1]))
                if now >= minutes * 60:
                    break
            report(f"{recorder.step_count} steps; warnings: {recorder.warnings or 'none'}")
    columns = [np.array(column) for column in zip(*samples, strict=True)]
    return Series(*columns)


def _sample(seconds: float, taken: list[float]) -> tuple[float, float, int, list[float]]:
    handles = len(list(Path("/proc/self/fd").iterdir()))
    quartiles = np.quantile(taken, [0.25, 0.5, 0.75]) * 1e3
    return seconds / 60, resident("VmRSS") / 2**20, handles, quartiles.tolist()


def _line(sample: tuple[float, float, int, list[float]]) -> str:
    minutes, memory, handles, (low, median, high) = sample
    return f"{minutes:8.2f} {memory:12.1f} {handles:8d} {median:10.1f} [{low:.1f}, {high:.1f}]"


def show(checks: list[Check]) -> None:
    """Print the verdict."""
    print(f"\n{'':74} {'found':>9} {'limit':>9}")
    for check in checks:
        print(f"{check.name:74} {check.found:9.3f} {check.limit:9.3f}  {'passed' if check.passed else 'FAILED'}")


def main(arguments: list[str] | None = None) -> int:
    """Soak, print, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--minutes", type=float, default=30.0, help="how long (30)")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write samples and verdict here")
    options = parser.parse_args(arguments)
    if not options.minutes >= 0.5:
        parser.error(f"--minutes {options.minutes}: expected at least 0.5, or steps are too few to judge by")
    torch.set_num_threads(1)
    print(f"{'minutes':>8} {'resident, MB':>12} {'handles':>8} {'step, CPU ms [quartiles]':>24}", flush=True)
    series = soak(options.minutes, report=lambda line: print(line, flush=True))
    checks = verdict(series)
    show(checks)
    if options.json:
        options.json.write_text(json.dumps(_document(series, checks), indent=1) + "\n")
    return 0 if all(check.passed for check in checks) else 1


def _document(series: Series, checks: list[Check]) -> dict[str, Any]:
    samples = {name: values.tolist() for name, values in asdict(series).items()}
    return {"torch": torch.__version__, "samples": samples, "checks": [asdict(check) for check in checks]}


if __name__ == "__main__":
    sys.exit(main())
