"""Intervals over seeds: few runs make wide ones, and fewer than three make none."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

FEWEST_SEEDS = 3
"""With fewer runs of a kind nothing is said of other seeds."""


@dataclass(frozen=True)
class Interval:
    """A number with the ends of its interval, NaN where too few runs were made, and how many those were."""

    value: float
    low: float
    high: float
    runs: int

    @property
    def known(self) -> bool:
        """Whether there are ends."""
        return math.isfinite(self.low) and math.isfinite(self.high)


def mean_interval(values: Sequence[float], *, confidence: float = 0.95) -> Interval:
    """Mean over runs with Student's interval.

    Equal values give an interval without width: runs that all ended at chance tell no more than that.
    """
    return _interval(values, confidence, lambda n: 1 / n)


def prediction_interval(values: Sequence[float], *, confidence: float = 0.95) -> Interval:
    """Mean over runs with the interval in which one more run would lie, by Student's t, cut to [0, 1]."""
    found = _interval(values, confidence, lambda n: 1 + 1 / n)
    return Interval(found.value, *np.clip([found.low, found.high], 0, 1).tolist(), found.runs)


def _interval(values: Sequence[float], confidence: float, factor: object) -> Interval:
    known = np.asarray([value for value in values if value is not None and math.isfinite(value)], dtype=np.float64)
    if len(known) == 0:
        return Interval(math.nan, math.nan, math.nan, 0)
    mean = float(known.mean())
    if len(known) < FEWEST_SEEDS:
        return Interval(mean, math.nan, math.nan, len(known))
    spread = float(known.std(ddof=1)) * math.sqrt(factor(len(known)))  # type: ignore[operator]
    reach = float(stats.t.ppf((1 + confidence) / 2, len(known) - 1)) * spread
    return Interval(mean, mean - reach, mean + reach, len(known))


def ratio_interval(numerators: Sequence[float], denominators: Sequence[float]) -> Interval:
    """Geometric mean of paired ratios with its interval; pairs in which either is not above 0 are left out."""
    logs = [
        math.log(a / b)
        for a, b in zip(numerators, denominators, strict=True)
        if a is not None and b is not None and a > 0 and b > 0
    ]
    found = mean_interval(logs)
    return Interval(*(math.exp(end) for end in (found.value, found.low, found.high)), found.runs)
