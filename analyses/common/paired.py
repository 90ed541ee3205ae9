"""Paired timing: arms run in interleaved blocks within one process, and are compared block by block.

A ratio of medians from separate runs moves with whatever else the machine does; the ratio of neighbouring blocks does
not. Each round runs one block of every arm, in an order that changes from round to round.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Blocks:
    """Seconds of each block of one arm, shape ``(rounds,)``: processor time of the process, and wall time."""

    cpu: NDArray[np.float64]
    wall: NDArray[np.float64]


@dataclass(frozen=True)
class Ratio:
    """Median over rounds of arm / base, with a 90 % bootstrap interval over rounds."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        """Median and interval."""
        return f"{self.median:.3f}x [{self.low:.3f}, {self.high:.3f}]"


def interleave(arms: Mapping[str, Callable[[], None]], *, rounds: int, warm_up: int = 1) -> dict[str, Blocks]:
    """Run one block of every arm in each round; the first ``warm_up`` rounds are not counted."""
    order = random.Random(0)
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in arms}
    for index in range(warm_up + rounds):
        for name in order.sample(list(arms), len(arms)):
            cpu, wall = time.process_time(), time.perf_counter()
            arms[name]()
            taken = time.process_time() - cpu, time.perf_counter() - wall
            if index >= warm_up:
                seconds[name].append(taken)
    return {name: Blocks(*np.array(taken).T) for name, taken in seconds.items()}


def ratio(arm: NDArray[np.float64], base: NDArray[np.float64], *, resamples: int = 2000) -> Ratio:
    """Ratio of paired blocks of equal shape ``(rounds,)``."""
    ratios = arm / base
    generator = np.random.default_rng(0)
    medians = np.median(ratios[generator.integers(len(ratios), size=(resamples, len(ratios)))], axis=1)
    low, high = np.quantile(medians, [0.05, 0.95])
    return Ratio(float(np.median(ratios)), float(low), float(high))
