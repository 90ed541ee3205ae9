"""Rules about the direction of gradients: steps that undo one another, and steps that are mostly noise."""

from __future__ import annotations

import math

import numpy as np
import xarray as xr

from covshift.analysis import gradient_health, rows
from covshift.diagnosis.finding import WHOLE_RUN, Finding, not_measured
from covshift.diagnosis.judgement import Floats, Judgement, conclude, judge, onset
from covshift.diagnosis.thresholds import THRESHOLDS
from covshift.diagnosis.wording import between, number, percent, plural

_OSCILLATES = (
    "a lower learning rate or momentum damps the oscillation, at the price of slower learning; a schedule that lowers "
    "the rate does so late only"
)
_NOISY = (
    "larger batches or more micro-batches raise the signal, at the price of time a step; a lower learning rate "
    "averages over more steps instead, at the price of speed"
)


def gradient_turn(recording: xr.DataTree) -> list[Finding]:
    """Whether the gradient keeps reversing between neighbouring steps, in the last window of those.

    Records whose predecessor is not the step before are left out: at every second step an oscillation of period two
    looks like progress.
    """
    turn = gradient_health.gradient_turn(recording)
    neighbours = (turn["gap"].values == 1) & np.isfinite(turn["run_cosine"].values)
    if neighbours.sum() < rows.WINDOW_RECORDS:
        reason = (
            f"{WHOLE_RUN}: {plural(int(neighbours.sum()), 'record')} of a gradient right after that of the step before"
        )
        need = (
            f"at least {rows.WINDOW_RECORDS} pairs of neighbouring steps: every=1, or pairs such as "
            "every=covshift.every(10) | covshift.at_steps(*range(1, 10_000, 10)); and updates= on"
        )
        return [not_measured("gradient turn", WHOLE_RUN, reason, need)]
    steps, series = turn["step"].values[neighbours], turn["run_cosine"].values[neighbours]
    window = rows.last_window(len(steps))
    each = rows.median(turn["cosine"].values[neighbours][window])
    judged = judge("gradient_turn", series, steps, window, _OSCILLATES)
    reason = (
        f"cosine of the gradient to that of the step before {number(judged.value)}, below 0 in "
        f"{percent(float((series[window] < 0).mean()))} of them; median of the last "
        f"{plural(len(series[window]), 'pair')} of neighbouring steps; lowest in "
        f"'{rows.names(turn, 'parameter')[np.nanargmin(each)]}' ({number(float(np.nanmin(each)))})"
    )
    return [conclude(WHOLE_RUN, reason, [judged])]


def gradient_noise(recording: xr.DataTree) -> list[Finding]:
    """Whether steps are nearly all noise, in the last window; nothing where no step accumulates micro-batches.

    Judged by the noise scale, the batch at which signal and noise are equal, in units of the batch of a step. Where the
    90 % interval over the window's records reaches the threshold, more records are needed.
    """
    found = gradient_health.signal_to_noise(recording)
    known = np.isfinite(found["run_signal_to_noise"].values)
    if not known.any():
        return []
    steps, series = found["step"].values[known], found["run_signal_to_noise"].values[known]
    window = rows.last_window(len(steps))
    threshold, most = THRESHOLDS["gradient_noise"], THRESHOLDS["gradient_noise"].watch
    assert isinstance(most, float)
    value, (low, high) = _noise_scale(series[window])
    scale = f"the noise scale is {number(value)} batches of a step" if value < math.inf else "no signal above the noise"
    reason = (
        f"{scale} {between((low, high))}, a signal-to-noise ratio of {number(float(series[window].mean()))}; mean of "
        f"the last {plural(len(series[window]), 'record')}, noise from the micro-batches of each"
    )
    if threshold.verdict(value) != threshold.verdict(low):
        need = f"more records, or more micro-batches a step: the interval reaches {number(most)}"
        return [not_measured("gradient noise", WHOLE_RUN, f"{WHOLE_RUN}: {reason}", need, threshold=threshold)]
    begun = onset(steps, series < 1 / most)
    return [conclude(WHOLE_RUN, reason, [Judgement(threshold, value, begun, _NOISY, (low, high))])]


def _noise_scale(ratios: Floats) -> tuple[float, tuple[float, float]]:
    """Inverse of the mean signal-to-noise ratio, and its 90 % interval (Student's t over records); may be infinite."""
    from scipy.special import stdtrit

    mean, count = float(ratios.mean()), len(ratios)
    margin = stdtrit(count - 1, 0.95) * float(ratios.std(ddof=1)) / math.sqrt(count) if count > 1 else math.inf
    value, low, high = (math.inf if end <= 0 else 1 / end for end in (mean, mean + margin, mean - margin))
    return value, (low, high)
