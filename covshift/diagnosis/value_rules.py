"""Rules about values: numbers that are none, linkages that do not link."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from covshift import schema
from covshift.analysis import linkage, rows
from covshift.diagnosis.finding import WHOLE_RUN, Finding, not_measured
from covshift.diagnosis.judgement import Judgement, Steps, conclude, crossing, judge, onset
from covshift.diagnosis.thresholds import THRESHOLDS
from covshift.diagnosis.wording import percent, plural, quoted
from covshift.exceptions import SignalNotRecorded
from covshift.schema import is_model_input

Counts = NDArray[np.uint64]

_START_UP = 100
_FEWEST_BROKEN = 2
"""Records with broken gradients below which they are isolated, whatever their share of a short recording."""

_OVERFLOW = (
    "look at what grew in the layers and steps just before the first that has them; a lower learning rate or gradient "
    "clipping keeps values in range, at the price of slower learning; float32 or bfloat16 widen the range, at the "
    "price of memory or precision"
)
_NOT_LINKED = (
    "choose members of which one has a derivative at every z (a mirrored ReLU, SELU or SiLU; not tanh or ReLU6); where "
    "z is exactly 0, a bias or standardised input moves it off; both are further parameters or work on the data"
)


CONSTANT = "one and the same value in every element of every record"
"""What the reason of an input's finding ends in, where it is so."""

_ROUNDING = 1e-9


def is_constant(finding: Finding) -> bool:
    """Whether a finding says that an input of the model never varied."""
    return finding.check == "non-finite" and finding.reason.endswith(CONSTANT)


def _constant_inputs(recording: xr.DataTree) -> list[str]:
    """Inputs of the model that never vary, neither within a record nor from one to the next."""
    try:
        inputs = rows.moments(recording, signal="input")
    except SignalNotRecorded:
        return []
    found = []
    for index, name in enumerate(rows.names(inputs).tolist()):
        count, mean, spread = (inputs[part].values[:, index] for part in ("n", "mean", "sd"))
        known = count > 0
        if is_model_input(name) and count.max(initial=0) > 1:
            allowed = _ROUNDING * float(np.abs(mean[known]).max())
            if spread[known].max() <= allowed and np.ptp(mean[known]) <= allowed:
                found.append(name)
    return found


def non_finite(recording: xr.DataTree) -> list[Finding]:
    """Whether any activation or gradient was NaN or infinite, in the whole recording.

    Any such activation is ``bad``. Isolated gradients are allowed, because loss scaling makes and skips them: those of
    a single record, those of the first 100 steps, and in a recording of no more steps those of steps that are logged
    as skipped. Layers without a number have no finding; where that are all of them, the run's says so. That of an input
    of the model says in passing if it never varies.
    """
    layers = rows.group(recording, "layers")
    counts = {name: layers[name].values for name in ("count", "nan_count", "posinf_count", "neginf_count")}
    broken = counts["nan_count"] + counts["posinf_count"] + counts["neginf_count"]
    of_values = np.isin(rows.names(layers, "signal"), schema.VALUE_SIGNALS)
    values, gradients = broken[..., of_values].sum(axis=-1), broken[..., ~of_values].sum(axis=-1)
    seen, steps = np.asarray(counts["count"].any(axis=-1)), layers["step"].values
    if len(steps) and not seen.any():
        reason = f"{WHOLE_RUN}: {plural(len(steps), 'record')} with no number of any layer"
        need = "`covshift info` tells why: rows lost and marked absent, or layers that no recorded step has called"
        return [not_measured("non-finite", WHOLE_RUN, reason, need)]
    counted, constant = _counted(recording, steps), _constant_inputs(recording)
    findings = []
    for index, layer in enumerate(rows.names(layers).tolist()):
        ran = seen[:, index]
        if ran.any():
            found = _of_numbers(layer, steps[ran], values[ran, index], gradients[ran, index], counted[ran])
            findings.append(replace(found, reason=f"{found.reason}; {CONSTANT}") if layer in constant else found)
    return findings


def _counted(recording: xr.DataTree, steps: Steps) -> NDArray[np.bool_]:
    """Records in which broken gradients count."""
    late = np.asarray(steps > _START_UP)
    if late.any():
        return late
    try:
        skipped = rows.group(recording, "scalars")["step_skipped"].reindex(step=steps).values == 1
    except (SignalNotRecorded, KeyError):
        return ~late
    return np.asarray(~skipped)


def _of_numbers(layer: str, steps: Steps, values: Counts, gradients: Counts, counted: NDArray[np.bool_]) -> Finding:
    broken_values, broken_gradients = values > 0, gradients > 0
    first = int(steps[broken_values.argmax()]) if broken_values.any() else None
    judged_gradients = broken_gradients[counted]
    begun = onset(steps, broken_gradients, counted)
    run, isolated = float(_longest_run(judged_gradients)), judged_gradients.sum() < _FEWEST_BROKEN
    share = 0.0 if isolated else float(judged_gradients.mean())
    most = crossing("non-finite", steps, begun, broken_gradients, counted)
    judged = [
        Judgement(
            THRESHOLDS["non_finite_values"], float(broken_values.mean()), first, _OVERFLOW, crossed="first at step"
        ),
        Judgement(THRESHOLDS["non_finite_gradients"], share, begun, _OVERFLOW, crossed=most),
        Judgement(THRESHOLDS["non_finite_run"], run, begun, _OVERFLOW, crossed=most),
    ]
    kinds = {"activations": values, "gradients": gradients}
    found = [
        f"{int(counts.sum()):,} NaN or infinite {kind} in {int((counts > 0).sum())} of {plural(len(steps), 'record')}"
        for kind, counts in kinds.items()
        if counts.any()
    ]
    return conclude(layer, ", ".join(found) or f"no NaN or infinity in {plural(len(steps), 'record')}", judged)


def _longest_run(flags: NDArray[np.bool_]) -> int:
    ends = np.flatnonzero(np.diff(flags.astype(np.int8), prepend=0, append=0))
    return int((ends[1::2] - ends[::2]).max(initial=0))


def linkage_holds(recording: xr.DataTree) -> list[Finding]:
    """Whether every linked unit had a live member, in the last window; nothing where the model has no linkage.

    Only elements of z at which no member has a derivative count. Zeros of the gradient that pooling, dropout or
    underflow make are no violation.
    """
    layers = rows.group(recording, "layers")
    linked = rows.names(layers)[layers["linkage_members"].values > 0].tolist()
    if not linked:
        return []
    rates = linkage.violation_rate(recording).sel(layer=linked)
    window, steps = rows.last_window(rates.sizes["step"]), rates["step"].values
    findings = []
    for index, layer in enumerate(linked):
        series = rates["structural_rate"].values[:, index]
        if not np.isfinite(series[window]).any():
            why = "where its members' derivatives are zero has no closed form here, or z was not recorded"
            reason = f"{quoted(layer)}: {why}"
            need = "covshift.linked.audit tells it for the activation by itself; record with preactivation in signals="
            findings.append(not_measured("linkage", layer, reason, need))
            continue
        atom = float(rows.median(rates["zero_atom_rate"].values[window, index]))
        records = plural(int(np.isfinite(series[window]).sum()), "record")
        reason = (
            f"no member has a derivative at {percent(float(rows.median(series[window])))} of its input z, and z is "
            f"exactly 0 at {percent(atom)}; median of the last {records}"
        )
        findings.append(conclude(layer, reason, [judge("linkage", series, steps, window, _NOT_LINKED)]))
    return findings
