"""Paired timing: arms run in interleaved blocks within one process, and are compared block by block.

A ratio of medians from separate runs moves with whatever else the machine does; the ratio of neighbouring blocks does
not. Each round runs one block of every arm, in an order that changes from round to round.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SPARSE = 3
"""A sparse arm runs in every third round."""

Block = Callable[[], "tuple[float, float] | None"]
"""Runs one block; may return processor and wall seconds of it that are accounted for elsewhere."""


@dataclass(frozen=True)
class Blocks:
    """Seconds of each block of one arm, shape ``(rounds,)``: processor time of the process, and wall time.

    NaN in rounds that a sparse arm sat out.
    """

    cpu: NDArray[np.float64]
    wall: NDArray[np.float64]


@dataclass(frozen=True)
class Ratio:
    """Median (or mean) over rounds of arm / base, with a 90 % bootstrap interval over rounds."""

    central: float
    low: float
    high: float

    def __str__(self) -> str:
        """Central value and interval."""
        return f"{self.central:.3f}x [{self.low:.3f}, {self.high:.3f}]"


def interleave(
    arms: Mapping[str, Block], *, rounds: int, warm_up: int = 1, sparse: Collection[str] = ()
) -> dict[str, Blocks]:
    """Run one block of every arm in each round; the first ``warm_up`` rounds are not counted.

    Arms in ``sparse`` run in the warm-up and in every third round: they are context, at a third of the time.
    """
    order = random.Random(0)
    seconds = {name: np.full((rounds, 2), np.nan) for name in arms}
    for index in range(-warm_up, rounds):
        due = [name for name in arms if index < 0 or name not in sparse or index % SPARSE == 0]
        for name in order.sample(due, len(due)):
            cpu, wall = time.process_time(), time.perf_counter()
            elsewhere = arms[name]() or (0.0, 0.0)
            taken = time.process_time() - cpu - elsewhere[0], time.perf_counter() - wall - elsewhere[1]
            if index >= 0:
                seconds[name][index] = taken
    return {name: Blocks(*taken.T) for name, taken in seconds.items()}


def ratio(
    arm: NDArray[np.float64],
    base: NDArray[np.float64],
    *,
    statistic: Callable[..., NDArray[np.float64]] = np.median,
    resamples: int = 2000,
) -> Ratio:
    """Ratio of paired blocks of equal shape ``(rounds,)``, over the rounds in which both ran.

    ``statistic`` is ``np.median``, or ``np.mean`` where an arm has costs that fall into few of its blocks, which a
    median would pass over.
    """
    ratios = arm / base
    ratios = ratios[np.isfinite(ratios)]
    generator = np.random.default_rng(0)
    resampled = statistic(ratios[generator.integers(len(ratios), size=(resamples, len(ratios)))], axis=1)
    low, high = np.quantile(resampled, [0.05, 0.95])
    return Ratio(float(statistic(ratios, axis=0)), float(low), float(high))
