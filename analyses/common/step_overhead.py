"""What recording adds to a training step, against bare training and against what people do otherwise.

Every arm trains its own copy of a network; blocks are interleaved. Copies differ in where their memory lies, which can
be worth some per cent on its own: a second bare copy shows how much, and no ratio is known better than that.

What does not fall evenly into blocks is treated apart, so that the figures are those of a long run:

* The first ten records are richer than later ones. They are made on four examples, before any timing.
* Of later records every tenth carries histograms and numbers of units. Blocks of ``every=1`` are multiples of 20 steps
  and hold their share; of ``every=10`` it falls into one block of five, so there the mean of the ratios is judged,
  not the median, over a multiple of five rounds.
* The store acknowledges each record at once and folds 64 of them into its arrays in a thread beside the loop. A block
  ends when that thread has nothing left to do, so that its processor time is the block's own; blocks in which a fold
  falls are dearer than others, so the mean of the ratios is judged for every recording arm.
"""

from __future__ import annotations

import math
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

import covshift
from common import rivals
from common.paired import Block, Blocks, Ratio, interleave, ratio
from common.workloads import PAUSED, RECORDED_EVERY_STEP, RECORDED_EVERY_TENTH, STEP_WORKLOADS, Trainer, Workload

BLOCK_SECONDS = 0.3
"""Least length of a block."""

AGAIN = "bare, another copy"
"""The arm that does what the bare one does."""

RECORDED = {RECORDED_EVERY_STEP: 1, RECORDED_EVERY_TENTH: 10}
"""Recording arms, with their cadence."""


def block_steps(step_seconds: float) -> int:
    """Steps of a block: the least multiple of 20 that takes long enough."""
    return 20 * max(1, math.ceil(BLOCK_SECONDS / (20 * step_seconds)))


def measure(*, quick: bool, model: str) -> dict[str, Any]:
    """Ratios of every arm to bare training of ``model``, and what they rest on: 5 rounds for a look, 30 for a claim."""
    workload, rounds = STEP_WORKLOADS[model], 5 if quick else 30
    bare = workload.make()
    step_seconds = _step_seconds(bare)
    steps = block_steps(step_seconds)
    others, skipped = rivals.available()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        again = workload.make()
        arms: dict[str, Block] = {"bare": lambda: bare.steps(steps), AGAIN: lambda: again.steps(steps)}
        recorders = {
            name: stack.enter_context(_Recorded(workload.make(), Path(folder) / f"every{every}", every))
            for name, every in RECORDED.items()
        }
        paused = stack.enter_context(_Recorded(workload.make(), Path(folder) / "paused", 1))
        arms |= {name: _recording_block(recorded, steps) for name, recorded in recorders.items()}
        arms[PAUSED] = lambda: paused.paused(steps)
        arms |= {name: _rival_block(rival, workload.make(), steps, stack) for name, rival in others.items()}
        blocks = interleave(arms, rounds=rounds, sparse=others)
    return {
        "title": workload.title,
        "steps": steps,
        "rounds": rounds,
        "rows": {name: _row(name, blocks, workload, steps) for name in arms},
        "skipped": skipped,
    }


class _Recorded:
    """A trainer under a recorder that listens only while its own blocks run."""

    def __init__(self, trainer: Trainer, path: Path, every: int) -> None:
        self._trainer, self._every = trainer, every
        self._recorder = covshift.record(trainer.model, path, every=every)

    def __enter__(self) -> _Recorded:
        self._recorder.__enter__()
        # The records that are richer than those of a long run: ten of them, on little data.
        self._trainer.steps(10 * self._every, examples=4)
        self._deaf()
        return self

    def __exit__(self, *error: Any) -> None:
        self._recorder.__exit__(None, None, None)

    def recorded(self, steps: int) -> None:
        """Train for some steps, recorded."""
        self._listen()
        self._trainer.steps(steps)
        self._deaf()

    def paused(self, steps: int) -> None:
        """Train for some steps with the recorder attached and paused."""
        self._listen()
        with self._recorder.pause():
            self._trainer.steps(steps)
        self._deaf()

    def settle(self) -> None:
        """Wait until no fold is under way."""
        writer = self._recorder._handover.writer
        if writer is not None:
            writer._folding.wait()

    # Global hooks would also slow the other arms' blocks.
    def _listen(self) -> None:
        self._recorder._hooks.install()
        self._recorder._steps.clock.install()

    def _deaf(self) -> None:
        self._recorder._hooks.remove()
        self._recorder._steps.clock.remove()


def _recording_block(recorded: _Recorded, steps: int) -> Block:
    def block() -> None:
        recorded.recorded(steps)
        recorded.settle()

    return block


def _rival_block(rival: rivals.Rival, trainer: Trainer, steps: int, stack: ExitStack) -> Block:
    after = rival(trainer, stack)
    return lambda: trainer.steps(steps, after=after)


def _step_seconds(trainer: Trainer) -> float:
    """Median processor time of a bare step."""
    taken = []
    for _ in range(5):
        start = time.process_time()
        trainer.steps(1)
        taken.append(time.process_time() - start)
    return float(np.median(taken))


def _row(name: str, blocks: dict[str, Blocks], workload: Workload, steps: int) -> dict[str, Any]:
    statistic = np.mean if name in RECORDED else np.median
    own, bare = blocks[name], blocks["bare"]
    cpu, wall = (ratio(a, b, statistic=statistic) for a, b in ((own.cpu, bare.cpu), (own.wall, bare.wall)))
    target = workload.targets.get(name)
    return {
        "cpu_ms_per_step": float(np.nanmedian(own.cpu)) / steps * 1e3,
        "cpu": asdict(cpu),
        "wall": asdict(wall),
        "target": target,
        "met": None if target is None else cpu.high < target,
    }


def show(table: dict[str, Any]) -> None:
    """Print the table of one network."""
    print(
        "\nA training step, one core; all layers, signals and summaries, parameters and a store on disk on. Ratio to "
        "bare training, median over\ninterleaved rounds (mean for recording arms, whose richer records and folds fall "
        "into few blocks) [90 % bootstrap interval]. First ten\nrecords not counted; folds of the store counted where "
        "they fall. A target is met when processor time's upper end is below it.\nWhat another bare copy "
        "differs from 1 is not recording's."
    )
    print(f"\n{table['title']}: {table['rounds']} rounds of {table['steps']} steps (rivals: every third round)")
    print(f"{'':26} {'CPU ms a step':>14} {'CPU time':>24} {'wall time':>24} {'target':>7}")
    for name, row in table["rows"].items():
        cpu, wall = Ratio(**row["cpu"]), Ratio(**row["wall"])
        said = "" if row["target"] is None else f"{row['target']:.2f}x  {'met' if row['met'] else 'MISSED'}"
        print(f"{name:26} {row['cpu_ms_per_step']:14.1f} {cpu!s:>24} {wall!s:>24}   {said}")
    for name, reason in table["skipped"].items():
        print(f"{name:26} skipped: {reason}")
