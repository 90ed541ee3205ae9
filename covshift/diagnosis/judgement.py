"""From a series of records to a verdict: the typical value of a window, its threshold, and since when.

A rule gathers the judgements of one layer, writes the evidence in words, and :func:`conclude` makes the finding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from covshift.analysis import rows
from covshift.diagnosis.finding import SEVERITY, Finding
from covshift.diagnosis.threshold import Threshold, Verdict
from covshift.diagnosis.thresholds import THRESHOLDS
from covshift.diagnosis.wording import quoted

Floats = NDArray[np.float64]
Steps = NDArray[np.int64]

WARM_UP_SHARE = 0.1
"""Records at the start of a run that no verdict on sizes over time rests on."""


@dataclass(frozen=True)
class Judgement:
    """One quantity of one layer set against its threshold; ``advice`` says what to try if it is exceeded.

    ``crossed`` leads up to ``since_step`` in words, by default that the threshold is mostly exceeded since then;
    ``reached`` says what has held without exception from ``reached_step`` on, by default ``value``.
    """

    threshold: Threshold
    value: float
    since_step: int | None
    advice: str
    interval: tuple[float, float] | None = None
    reached_step: int | None = None
    crossed: str = ""
    reached: str = ""

    @property
    def history(self) -> str:
        """What was crossed, and since when ``value`` itself holds; empty where nothing was crossed.

        Examples
        --------
        >>> dead = THRESHOLDS["dead_units"]
        >>> Judgement(dead, 0.75, 30, "").history
        'mostly above 10 % since step 30'
        >>> Judgement(dead, 1.0, 30, "", reached_step=150).history
        'mostly above 10 % since step 30, 100 % since step 150'
        >>> Judgement(dead, 1.0, 30, "", reached_step=30).history
        'since step 30'
        """
        if self.since_step is None:
            return ""
        if self.reached_step is not None and self.reached_step <= self.since_step:
            return f"since step {self.since_step}"
        begun = f"{self.crossed or f'mostly {self.threshold.beyond} since step'} {self.since_step}"
        if self.reached_step is None:
            return begun
        return f"{begun}, {self.reached or self.threshold.amount(self.value)} since step {self.reached_step}"

    @property
    def verdict(self) -> Verdict:
        """The threshold's verdict on the value."""
        return self.threshold.verdict(self.value)


def judge(name: str, series: Floats, steps: Steps, window: slice, advice: str) -> Judgement:
    """Judgement of the median of ``series`` (step,) over ``window`` by the threshold called ``name``."""
    threshold = THRESHOLDS[name]
    value = float(rows.median(series[window]))
    begun = onset(steps, threshold.exceeded(series), np.isfinite(series))
    return Judgement(threshold, value, begun, advice, reached_step=holds_since(steps, series, value, window))


def conclude(layer: str, reason: str, judgements: Sequence[Judgement]) -> Finding:
    """Finding by the worst of several judgements of one layer, the first of equals.

    ``reason`` goes without the layer, which is put before it, and without what happened when, which is put after it
    where a threshold is exceeded. What was not measured decides only where nothing else was.
    """
    known = [one for one in judgements if one.verdict != "not measured"]
    chosen = min(known or judgements, key=lambda one: SEVERITY.index(one.verdict))
    flagged = chosen.verdict in ("watch", "bad")
    history = chosen.history if flagged else ""
    return Finding(
        chosen.threshold.check,
        layer,
        chosen.verdict,
        chosen.since_step if flagged else None,
        chosen.value,
        chosen.interval,
        chosen.threshold,
        f"{quoted(layer)}: {reason}" + (f"; {history}" if history else ""),
        chosen.advice if chosen.verdict != "ok" else "",
        reached_step=chosen.reached_step if flagged else None,
        history=history,
    )


def crossing(
    what: str,
    steps: Steps,
    begun: int | None,
    exceeded: NDArray[np.bool_],
    measured: NDArray[np.bool_],
    *,
    counted: str = "records",
) -> str:
    """What leads up to the step of an :func:`onset`: ``what`` mostly held since then, or in how many records it did.

    Where a number comes of several records, ``counted`` says of which, as in "pairs of records".

    Examples
    --------
    >>> steps, none = np.arange(0, 50, 10), np.zeros(5, dtype=bool)
    >>> crossing("above 2", steps, 10, np.array([0, 1, 0, 1, 1], dtype=bool), ~none)
    'mostly above 2 since step'
    >>> crossing("above 2", steps, 10, np.array([0, 1, 0, 0, 0], dtype=bool), ~none)
    'above 2 in 1 of 4 records since step'
    """
    since = measured & (steps >= (0 if begun is None else begun))
    number, times = int(since.sum()), int((since & exceeded).sum())
    return f"mostly {what} since step" if 2 * times > number else f"{what} in {times} of {number} {counted} since step"


def holds_since(steps: Steps, series: Floats, value: float, window: slice) -> int | None:
    """First step from which on every number of ``series`` is exactly ``value``; None where not all of ``window`` are.

    Examples
    --------
    >>> series = np.array([1.0, 0.5, np.nan, 1.0, np.nan, 1.0])
    >>> holds_since(np.arange(0, 60, 10), series, 1.0, slice(-2, None)), holds_since(
    ...     np.arange(0, 60, 10), series, 1.0, slice(0, None)
    ... )
    (30, None)
    """
    known = np.isfinite(series)
    other = known & (series != value)
    if not known[window].any() or other[window].any():
        return None
    known[: np.flatnonzero(other).max(initial=-1) + 1] = False
    return int(steps[known.argmax()])


def onset(steps: Steps, exceeded: NDArray[np.bool_], measured: NDArray[np.bool_] | None = None) -> int | None:
    """First step from which on a threshold was mostly exceeded, None where it never was exceeded.

    It opens the stretch to the end of the recording in which exceeding records outnumber the others by most, or are
    outnumbered by least, so one good record does not reset it, nor does one bad record long before start it.
    :func:`crossing` says which.

    Parameters
    ----------
    steps : array of int, shape (step,)
        Recorded steps.
    exceeded : array of bool, shape (step,)
        Whether the threshold was exceeded.
    measured : array of bool, shape (step,), optional
        Records that count at all.

    Examples
    --------
    >>> onset(np.arange(0, 70, 10), np.array([1, 0, 0, 1, 1, 0, 1], dtype=bool))
    30
    """
    counted = np.ones_like(exceeded) if measured is None else measured
    exceeding = np.flatnonzero(exceeded & counted)
    if not len(exceeding):
        return None
    excess = np.cumsum((np.where(exceeded, 1, -1) * counted)[::-1])[::-1][exceeding]
    return int(steps[exceeding[excess.argmax()]])
