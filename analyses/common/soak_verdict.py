"""What a soak's samples must show: memory that stops growing, no handle left open, steps that do not get slower.

Pure arithmetic on series, so that a planted leak can test it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import theilslopes

MOST_SLOPE = 1.0
"""MB a minute that resident memory may grow over the last two thirds, by the design targets."""

MOST_GROWTH = 1.05
"""Most that resident memory at the end may be of what it was at a sixth of the time, by the design targets."""

LEAST_SAMPLES = 12
"""Below, a third of the series holds fewer than four samples, and neither a slope nor a spread is worth its name."""


@dataclass(frozen=True)
class Series:
    """Samples of one soak, arrays of shape ``(samples,)``.

    Attributes
    ----------
    minutes : ndarray
        Since the start.
    resident : ndarray
        Resident memory, MB (2**20 bytes).
    handles : ndarray
        Open file descriptors.
    step_ms : ndarray
        Shape ``(samples, 3)``: quartiles of the processor time of the steps since the last sample, ms.
    """

    minutes: NDArray[np.float64]
    resident: NDArray[np.float64]
    handles: NDArray[np.int64]
    step_ms: NDArray[np.float64]


@dataclass(frozen=True)
class Check:
    """One demand: what was found, the most that was allowed, and whether it holds."""

    name: str
    found: float
    limit: float
    passed: bool


def verdict(series: Series) -> list[Check]:
    """Four checks of a soak.

    Raises
    ------
    ValueError
        If there are too few samples to judge by, or the arrays differ in length.
    """
    count = len(series.minutes)
    if count < LEAST_SAMPLES or any(len(part) != count for part in (series.resident, series.handles, series.step_ms)):
        raise ValueError(f"series: expected at least {LEAST_SAMPLES} samples, as many of each kind, not {count}")
    start = series.minutes[0]
    share = (series.minutes - start) / (series.minutes[-1] - start)
    return [
        _slope(series, share >= 1 / 3),
        _growth(series, share),
        _handles(series, share),
        _step_time(series, share),
    ]


def _slope(series: Series, late: NDArray[np.bool_]) -> Check:
    """Growth of memory, as the median slope of all pairs (Sen, 1968), which one spike does not move."""
    slope = float(theilslopes(series.resident[late], series.minutes[late]).slope)
    return Check("resident memory, slope over the last two thirds, MB/min", slope, MOST_SLOPE, slope < MOST_SLOPE)


def _growth(series: Series, share: NDArray[np.float64]) -> Check:
    """Memory at the end against a sixth of the time, each the median of three samples."""
    early = int(np.argmin(np.abs(share - 1 / 6)))
    grown = float(np.median(series.resident[-3:]) / np.median(series.resident[max(early - 1, 0) : early + 2]))
    return Check("resident memory, end / at a sixth of the time", grown, MOST_GROWTH, grown <= MOST_GROWTH)


def _handles(series: Series, share: NDArray[np.float64]) -> Check:
    """Whether more stay open than before.

    Medians, because the store opens files for a moment while it folds, and closes one when it begins a journal.
    """
    before = series.handles[(share >= 1 / 6) & (share < 1 / 3)]
    opened = float(np.median(series.handles[share >= 5 / 6]) - np.median(before))
    return Check("file handles, median of the last sixth - of the second", opened, 0.0, opened <= 0)


def _step_time(series: Series, share: NDArray[np.float64]) -> Check:
    """Typical step of the last third against the upper quartile of the first third, of which a sixth is warm-up.

    Only slower is a fault: on a shared machine steps get faster when others leave.
    """
    early = (share >= 1 / 6) & (share <= 1 / 3)
    last = float(np.median(series.step_ms[share >= 2 / 3, 1]))
    upper = float(np.median(series.step_ms[early, 2]))
    return Check("median step of the last third, ms (limit: upper quartile of the first)", last, upper, last <= upper)
