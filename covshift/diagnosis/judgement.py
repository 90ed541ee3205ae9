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
from covshift.diagnosis.thresholds import THRESHOLDS, Threshold, Verdict
from covshift.diagnosis.wording import quoted

Floats = NDArray[np.float64]
Steps = NDArray[np.int64]

WARM_UP_SHARE = 0.1
"""Records at the start of a run that no verdict on sizes over time rests on."""


@dataclass(frozen=True)
class Judgement:
    """One quantity of one layer set against its threshold; ``advice`` says what to try if it is exceeded."""

    threshold: Threshold
    value: float
    since_step: int | None
    advice: str
    interval: tuple[float, float] | None = None

    @property
    def verdict(self) -> Verdict:
        """The threshold's verdict on the value."""
        return self.threshold.verdict(self.value)


def judge(name: str, series: Floats, steps: Steps, window: slice, advice: str) -> Judgement:
    """Judgement of the median of ``series`` (step,) over ``window`` by the threshold called ``name``."""
    threshold = THRESHOLDS[name]
    value = float(rows.median(series[window]))
    return Judgement(threshold, value, onset(steps, threshold.exceeded(series), np.isfinite(series)), advice)


def conclude(layer: str, reason: str, judgements: Sequence[Judgement]) -> Finding:
    """Finding by the worst of several judgements of one layer, the first of equals.

    ``reason`` goes without the layer, which is put before it, and without the step since when, which is put after it
    where a threshold is exceeded. What was not measured decides only where nothing else was.
    """
    known = [one for one in judgements if one.verdict != "not measured"]
    chosen = min(known or judgements, key=lambda one: SEVERITY.index(one.verdict))
    flagged = chosen.verdict in ("watch", "bad")
    begun = chosen.since_step if flagged else None
    return Finding(
        chosen.threshold.check,
        layer,
        chosen.verdict,
        begun,
        chosen.value,
        chosen.interval,
        chosen.threshold,
        f"{quoted(layer)}: {reason}" + ("" if begun is None else f"; since step {begun}"),
        chosen.advice if chosen.verdict != "ok" else "",
    )


def onset(steps: Steps, exceeded: NDArray[np.bool_], measured: NDArray[np.bool_] | None = None) -> int | None:
    """First step from which on a threshold was mostly exceeded, None where it never was.

    It opens the stretch to the end of the recording in which exceeding records outnumber the others by most, so one
    good record does not reset it, nor does one bad record long before start it.

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
