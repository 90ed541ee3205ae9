"""The rule about parameters: whether the optimizer moves them by a sensible share of their size."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import xarray as xr

from covshift import schema
from covshift.analysis import gradient_health, gradient_scale, rows, turns
from covshift.diagnosis.finding import Finding, not_measured
from covshift.diagnosis.judgement import WARM_UP_SHARE, Floats, Judgement, Steps, conclude, holds_since, judge
from covshift.diagnosis.step_sizes import StepSizes, dtype, owner
from covshift.diagnosis.thresholds import THRESHOLDS
from covshift.diagnosis.wording import number, plural, quoted
from covshift.exceptions import SignalNotRecorded

_JUMP, _FEWEST_BEFORE = 10.0, 3
"""How many times the median of the records before makes a jump, and of how many at least."""

_SHRUNK = 1e-3
"""Part of its first length below which a weight's is worth a word; no verdict rests on it."""

_STEP_SIZE = (
    "the learning rate scales it: a higher one learns faster and may diverge, a lower one is slower and steadier; "
    "weight decay and the weights' own size matter too"
)
_JUMPED = (
    "look at what happened at that step: a learning rate raised, a group of parameters added, an odd batch; clipping "
    "bounds such steps at the price of slower learning; what the layer had learned may be gone: take up a checkpoint "
    "from before"
)
_STARVED = (
    "find where the gradient ends: the first layer after this one that the checks gradient arrives and units name"
)
_NO_INPUT = (
    "a gradient arrives at its output, so what its weights multiply was 0: look at the input of the model, and for a "
    "layer before this one that is dead or whose weights are 0"
)
_UNFREEZE = "unfreeze it, if it is meant to learn"
_USE = "let the loss depend on it, or unfreeze it, if it is meant to learn"
_STUCK = (
    "check that the optimizer holds this very parameter, that its learning rate is not 0 and, in half precision, that "
    "the update does not round away (float32 master weights cost memory)"
)
_LOST = (
    "find what makes its gradient so small: see scale over depth and, in half precision, precision; a learning rate "
    "that moves this weight is likely to be too high for the others"
)


def is_untrained(finding: Finding) -> bool:
    """Whether a finding says that a weight got no gradient at all: a fact about it, though no ratio was measured."""
    unmeasured = finding.check == "update ratio" and finding.verdict == "not measured"
    return unmeasured and finding.advice in (_UNFREEZE, _USE)


def is_frozen(finding: Finding) -> bool:
    """Whether a weight got no gradient although nothing cuts its layer off: it requires none."""
    return is_untrained(finding) and finding.advice == _UNFREEZE


def is_still(finding: Finding) -> bool:
    """Whether a finding says that a weight never moves, in no record from ``reached_step`` on."""
    flagged = finding.check == "update ratio" and finding.verdict in ("watch", "bad")
    return flagged and finding.value == 0 and finding.reached_step is not None


def update_ratio(recording: xr.DataTree) -> list[Finding]:
    """Whether updates are too small or too large for the parameters of two or more axes.

    The median of the last window decides. Too small counts only if it was so since the warm-up as well, since learning
    rates are lowered on purpose; a parameter that gets a gradient and never moves is ``bad`` in any case, and so is one
    that an update of its own length has overrun at any time after the warm-up.
    """
    parameters = rows.group(recording, "parameters")
    ratios = gradient_health.update_ratio(recording)
    # A norm that is NaN is of a gradient with NaN in it, which is no missing one.
    norm = np.nan_to_num(parameters["gradient_norm"].values, nan=np.inf, posinf=np.inf)
    gradient = np.where(parameters["gradient_measured"].values > 0, norm, np.nan)
    matrix = parameters["parameter_ndim"].values >= 2
    names, steps = rows.names(parameters, "parameter").tolist(), ratios["step"].values
    own = np.isfinite(parameters["sampled_share"].values)
    if not turns.kinds(recording, steps).any():
        own[:] = True
    # Of optimizers that take turns, a parameter's last window is one of its own optimizer's records.
    own[:, ~own.any(axis=0)] = True
    known, weight = _Known.of(recording, gradient), parameters["weight_norm"].values
    return [
        _with_shrinking(
            _of_parameter(names[index], ratios.values[mine, index], gradient[mine, index], steps[mine], known),
            weight[mine, index],
        )
        for index in np.flatnonzero(matrix)
        for mine in [own[:, index]]
    ]


@dataclass(frozen=True)
class _Known:
    """What tells why a weight has no gradient, or does not move.

    Layers that a gradient other than 0 has ``reached``, and those whose output has ``unrequired`` ones; by parameter,
    in words, what rounding leaves no update of, ``lost``.
    """

    reached: frozenset[str]
    unrequired: frozenset[str]
    lost: Mapping[str, str]

    @classmethod
    def of(cls, recording: xr.DataTree, gradient: Floats) -> _Known:
        reached = _reached(recording)
        return cls(
            reached,
            _unrequired(recording) | (reached if (~np.isnan(gradient)).any() else frozenset()),
            {
                name: f"makes steps of at most {number(due)} of its length, too small for a {dtype(recording, name)} "
                "weight to notice"
                for name, due in StepSizes.of(recording).lost.items()
            },
        )


def _with_shrinking(finding: Finding, weight: Floats) -> Finding:
    """The finding, and in its reason how small the weight has become, where that is much smaller than it was."""
    known = weight[weight > 0]
    left = known[-1] / known[0] if len(known) else 1.0
    if finding.verdict == "not measured" or left >= _SHRUNK:
        return finding
    words = f"the weight has shrunk to {number(float(left))} of its length at the first record (weight decay?)"
    return replace(finding, reason=f"{finding.reason}; {words}")


def _unrequired(recording: xr.DataTree) -> frozenset[str]:
    """Layers whose output requires no gradient in the last window, which it would if weights of theirs did."""
    try:
        status = rows.layer_rows(recording, signal="activation_grad")["status"]
    except SignalNotRecorded:
        return frozenset()
    last = status.values[rows.last_window(status.sizes["step"])]
    return frozenset(rows.names(status)[(last == schema.Status.NO_GRAD_REQUIRED).any(axis=0)].tolist())


def _reached(recording: xr.DataTree) -> frozenset[str]:
    """Layers at whose output a gradient other than 0 arrives in the last window, be it NaN."""
    try:
        gradient = rows.layer_rows(recording, signal="activation_grad")
    except SignalNotRecorded:
        return frozenset()
    window = rows.last_window(gradient.sizes["step"])
    arrived = gradient["zero_count"].values[window] < gradient["count"].values[window]
    return frozenset(rows.names(gradient)[arrived.any(axis=0)].tolist())


def _jump(ratio: Floats, steps: Steps) -> Judgement | None:
    """The largest ratio after the warm-up that is out of line with those before; one such update is no mere spike."""
    threshold, warm = THRESHOLDS["update_jump"], max(math.ceil(WARM_UP_SHARE * len(steps)), _FEWEST_BEFORE)
    known = np.where(np.isfinite(ratio), ratio, np.nan)
    large = warm + np.flatnonzero(threshold.exceeded(known[warm:]))
    jumps = [at for at in large if known[at] >= _JUMP * rows.median(known[max(at - gradient_scale.TRAILING, 0) : at])]
    if not jumps:
        return None
    crossed = f"first {threshold.beyond}, {_JUMP:g} times what it was, at step"
    return Judgement(threshold, float(known[jumps].max()), int(steps[jumps[0]]), _JUMPED, crossed=crossed)


def _why_still(gradient: Floats, lost: str, *, is_reached: bool) -> tuple[str, str]:
    """Why a weight of this gradient does not move, as the end of a clause, and what to try."""
    if not np.nanmax(gradient):
        return ": its gradient was exactly zero in all of them", _NO_INPUT if is_reached else _STARVED
    if lost:
        return f": its gradient ({number(float(rows.median(gradient)))}) {lost}", _LOST
    return " though it had a gradient", _STUCK


def _of_parameter(name: str, ratio: Floats, gradient: Floats, steps: Steps, known: _Known) -> Finding:
    layer = owner(name)
    window = rows.last_window(len(steps))
    measured = int(np.isfinite(ratio[window]).sum())
    if measured < rows.WINDOW_RECORDS:
        reason = f"{quoted(layer)}: the update of '{name}' was measured in {measured} of the last records"
        need = f"at least {rows.WINDOW_RECORDS} records with updates= on, and weights that are not all 0"
        return not_measured("update ratio", layer, reason, need)
    records = f"the last {plural(measured, 'record')}"
    if np.isnan(gradient[window]).all():
        is_frozen_here = layer in {name.partition(":")[0] for name in known.unrequired}
        why, advice = ("frozen", _UNFREEZE) if is_frozen_here else ("frozen, or not used", _USE)
        reason = f"{quoted(layer)}: '{name}' had no gradient in {records} ({why})"
        return not_measured("update ratio", layer, reason, advice)
    judged = judge("update_ratio", ratio, steps, window, _STEP_SIZE)
    if judged.value == 0:
        why, advice = _why_still(gradient[window], known.lost.get(name, ""), is_reached=layer in known.reached)
        still = int((ratio[window] == 0).sum())
        told = records if still == measured else f"{still} of {records}"
        return conclude(layer, f"'{name}' did not move in {told}{why}", [replace(judged, advice=advice)])
    jumped = _jump(ratio, steps)
    overall = float(rows.median(ratio[math.ceil(WARM_UP_SHARE * len(steps)) :]))
    reason = f"an update moves '{name}' by {judged.threshold.amount(judged.value)} of its length; median of {records}"
    if jumped is not None:
        reason = f"an update moved '{name}' by {jumped.threshold.amount(jumped.value)} of its length"
        reason += f", {judged.threshold.amount(judged.value)} in the median of {records}"
        # Too small now is no fault of its own: a step size may well be lowered after that.
        return conclude(layer, reason, [jumped] if judged.threshold.falls_short(judged.value) else [jumped, judged])
    if not judged.threshold.falls_short(judged.value):
        return conclude(layer, reason, [judged])
    reason += f", {number(overall)} since the warm-up"
    stated = max(judged.value, overall)
    finding = conclude(
        layer, reason, [replace(judged, value=stated, reached_step=holds_since(steps, ratio, stated, window))]
    )
    if judged.threshold.falls_short(overall):
        return finding
    return Finding(
        "update ratio", layer, "ok", None, judged.value, None, judged.threshold, f"{quoted(layer)}: {reason}", ""
    )
