"""Rules about scale: gradients over depth and time, parameters against gradients, and the range of a dtype.

Sizes that change are judged by decades. What is normal (spikes, a gentle slope of a deep normalised net, loss scales
that are found by overflowing) is allowed for in the thresholds.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from covshift.analysis import gradient_health, gradient_scale, rows
from covshift.diagnosis.finding import SEVERITY, WHOLE_RUN, Finding, not_measured, of_layers
from covshift.diagnosis.judgement import WARM_UP_SHARE, Floats, Judgement, Steps, conclude, holds_since, judge, onset
from covshift.diagnosis.thresholds import THRESHOLDS
from covshift.diagnosis.wording import between, number, percent, plural

CLIPPED = 1e-4
"""Part of its length that a gradient must lose to count as clipped; less is rounding."""

SUSTAINED = 3
"""Records in a row that a growth must last: single spikes are ordinary."""

_RESCALE = (
    "variance-preserving initialisation, residual connections or a normalisation layer hold the scale; normalisation "
    "costs time and ties examples of a batch together"
)
_GROWS = (
    "a lower learning rate or gradient clipping bounds the steps, at the price of slower learning; look at the loss "
    "and at the data of the step where it began"
)
_SPREAD = (
    "a learning rate per layer (LARS, LAMB) or an adaptive optimizer evens it out, at the price of state and tuning; a "
    "variance-preserving initialisation does so at the start only"
)
_CLIPS = (
    "a higher limit lets gradients tell steps apart again, at the risk of large steps; a lower learning rate does so "
    "too, at the price of speed; a normalised optimizer makes the limit moot"
)
_UNDERFLOWS = (
    "a larger loss scale lifts gradients into range, at the risk of overflow; bfloat16 has the range of float32, at "
    "the price of precision"
)
_NEAR_TOP = (
    "normalisation or a smaller initialisation keeps values in range; bfloat16 or float32 widen it, at the price of "
    "precision or memory"
)


def scale_over_depth(recording: xr.DataTree) -> list[Finding]:
    """Whether the gradient vanishes or explodes over depth, in the last window of records.

    Slope and total change must both exceed their thresholds. Layers whose gradient is exactly zero have left the scale
    altogether and are ``bad`` by themselves.
    """
    profile = gradient_health.norm_profile(recording)
    window, steps = rows.last_window(profile.sizes["step"]), profile["step"].values
    now = {str(name): float(rows.median(values.values[window])) for name, values in profile.drop_vars("rms").items()}
    records = plural(len(steps[window]), "record")
    if now["vanished"] >= 1:
        return [_vanished(profile, steps, window)]
    if np.isnan(now["slope"]):
        reason = f"{WHOLE_RUN}: {plural(profile.sizes['layer'], 'layer')} with a gradient in the last {records}"
        need = f"a slope needs at least {gradient_health.MIN_LAYERS} layers of one kind with a gradient other than zero"
        return [not_measured("scale over depth", WHOLE_RUN, reason, need)]
    low, high = now["slope_low"], now["slope_high"]
    direction, interval = ("shrinks", (low, high)) if now["slope"] > 0 else ("grows", (-high, -low))
    reason = (
        f"gradient rms {direction} towards the input by {number(abs(now['slope']))} decades a layer "
        f"{between(interval)}, {number(abs(now['total_decades']))} decades over {int(now['n_layers'])} layers; median "
        f"of the last {records}"
    )
    slope = judge("depth_slope", np.abs(profile["slope"].values), steps, window, _RESCALE)
    total = judge("depth_total", np.abs(profile["total_decades"].values), steps, window, _RESCALE)
    # Both must fire, so the milder of the two decides.
    if SEVERITY.index(total.verdict) > SEVERITY.index(slope.verdict):
        return [replace(conclude(WHOLE_RUN, reason, [total]), value=now["total_decades"])]
    return [replace(conclude(WHOLE_RUN, reason, [slope]), value=now["slope"], interval=(low, high))]


def _vanished(profile: xr.Dataset, steps: Steps, window: slice) -> Finding:
    count, zero = profile["vanished"].values, profile["rms"].values[window] == 0
    reason = (
        f"the gradient is exactly zero, cut off or below the range of its dtype, in {int(rows.median(count[window]))} "
        f"of {plural(profile.sizes['layer'], 'layer')} (first '{rows.names(profile)[zero.any(axis=0)][0]}'); median of "
        f"the last {plural(len(zero), 'record')}"
    )
    begun = onset(steps, count > 0)
    beyond = Judgement(THRESHOLDS["depth_total"], np.inf, begun, _RESCALE, crossed="mostly some layer since step")
    return conclude(WHOLE_RUN, reason, [beyond])


def scale_over_time(recording: xr.DataTree) -> list[Finding]:
    """Whether gradients exploded after the warm-up: beyond what they were before, for three records in a row."""
    growth = gradient_health.growth_over_time(recording)
    steps, warm = growth["step"].values, int(np.ceil(WARM_UP_SHARE * growth.sizes["step"]))
    judged = _sustained(growth.values)[warm:]
    if not np.isfinite(judged).any():
        reason = f"{WHOLE_RUN}: {plural(len(steps), 'record')} of gradients"
        need = f"{SUSTAINED} records in a row after at least {SUSTAINED} others and the warm-up (first tenth)"
        return [not_measured("scale over time", WHOLE_RUN, reason, need)]
    layers, threshold = rows.names(growth), THRESHOLDS["gradient_growth"]
    largest = np.where(np.isfinite(judged), judged, -np.inf).max(axis=0)
    most, over = int(largest.argmax()), int(threshold.exceeded(largest).sum())
    begun = np.flatnonzero(threshold.exceeded(judged).any(axis=1))
    over_before = f"over the {gradient_scale.TRAILING} records before"
    reason = (
        f"gradient rms rose by at most {threshold.amount(float(largest[most]))} {over_before} and stayed there for "
        f"{SUSTAINED}, most in '{layers[most]}'"
    )
    if largest[most] <= 0:
        reason = f"gradient rms rose in no layer {over_before} and stayed there for {SUSTAINED}"
    if over:
        reason += f"; too much in {over} of {plural(len(of_layers(layers.tolist())), 'layer')}"
    first = int(steps[warm + begun[0]]) if len(begun) else None
    crossed = f"first {threshold.beyond} at step"
    return [conclude(WHOLE_RUN, reason, [Judgement(threshold, float(largest[most]), first, _GROWS, crossed=crossed)])]


def _sustained(growth: Floats) -> Floats:
    """Growth that a record and the two after it all reach, at each record; NaN where one is unknown."""
    padded = np.concatenate([growth, np.full((SUSTAINED - 1, growth.shape[1]), np.nan)])
    return np.asarray(np.min([padded[lag : lag + len(growth)] for lag in range(SUSTAINED)], axis=0))


def trust_spread(recording: xr.DataTree) -> list[Finding]:
    """Whether one learning rate can suit all weights: how far apart their lengths relative to their gradients are."""
    ratios = gradient_health.trust_ratio(recording)
    matrix = rows.group(recording, "parameters")["parameter_ndim"].values >= 2
    window, steps = rows.last_window(ratios.sizes["step"]), ratios["step"].values
    logs = np.log10(np.where(ratios.values > 0, ratios.values, np.nan))[:, matrix]
    middle = rows.median(logs[window])
    known = np.flatnonzero(np.isfinite(middle))
    if len(known) < 2:
        reason = f"{WHOLE_RUN}: {plural(len(known), 'weight')} of two or more axes with a gradient"
        return [not_measured("trust ratio", WHOLE_RUN, reason, "at least two such weights with a gradient")]
    names = rows.names(ratios, "parameter")[matrix]
    least, most = known[middle[known].argmin()], known[middle[known].argmax()]
    reason = (
        f"weight over gradient spans {number(float(middle[most] - middle[least]))} decades, from '{names[least]}' to "
        f"'{names[most]}'; median of the last {plural(len(steps[window]), 'record')}"
    )
    return [
        conclude(WHOLE_RUN, reason, [judge("trust_spread", logs[:, most] - logs[:, least], steps, window, _SPREAD)])
    ]


def clipping(recording: xr.DataTree) -> list[Finding]:
    """Whether nearly every gradient is clipped, so that the learning rate is set by the limit."""
    factor = gradient_health.clip_factor(recording)
    window, steps, values = rows.last_window(factor.sizes["step"]), factor["step"].values, factor.values
    known = np.isfinite(values[window])
    if not known.any():
        reason = f"{WHOLE_RUN}: no gradient was measured both after the backward pass and at the optimizer step"
        need = "an engine in which the recorder can tell the two apart, or log what clip_grad_norm_ returns"
        return [not_measured("clipping", WHOLE_RUN, reason, need)]
    clipped = np.where(np.isfinite(values), values < 1 - CLIPPED, np.nan)
    share = float(np.nanmean(clipped[window]))
    reason = (
        f"gradients were clipped in {percent(share)} of the last {plural(int(known.sum()), 'record')}, to a median of "
        f"{percent(min(float(rows.median(values[window])), 1.0))} of their length"
    )
    begun = onset(steps, clipped == 1, np.isfinite(values))
    always = holds_since(steps, clipped, 1.0, window)
    most = "most of them clipped since step"
    judged = Judgement(THRESHOLDS["clipped_steps"], share, begun, _CLIPS, reached_step=always, crossed=most)
    return [conclude(WHOLE_RUN, reason, [judged])]


def precision(recording: xr.DataTree) -> list[Finding]:
    """Whether half-precision layers come near the ends of their dtype's range; nothing where there are none."""
    return [
        finding
        for dtype, mask in gradient_scale.half_precision(recording).items()
        for finding in _of_dtype(gradient_health.range_risk(recording, dtype=dtype), dtype, np.flatnonzero(mask))
    ]


def _of_dtype(risk: xr.Dataset, dtype: str, layers: NDArray[np.int64]) -> list[Finding]:
    window, steps, names = rows.last_window(risk.sizes["step"]), risk["step"].values, rows.names(risk)
    findings = []
    for index in layers:
        judged = [
            judge("underflow", risk["underflow_share"].values[:, index], steps, window, _UNDERFLOWS),
            judge("overflow", risk["overflow_share"].values[:, index], steps, window, _NEAR_TOP),
        ]
        reason = (
            f"in {dtype}, {percent(judged[0].value)} of its nonzero gradients are subnormal and its largest value is "
            f"{percent(judged[1].value)} of the largest number; median of the last "
            f"{plural(len(steps[window]), 'record')}"
        )
        findings.append(conclude(names[index], reason, judged))
    return findings
