"""Rules about values: numbers that are none, linkages that do not link."""

from __future__ import annotations

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from covshift import schema
from covshift.analysis import linkage, rows
from covshift.diagnosis.finding import WHOLE_RUN, Finding, not_measured
from covshift.diagnosis.judgement import Judgement, Steps, conclude, judge, onset
from covshift.diagnosis.thresholds import THRESHOLDS
from covshift.diagnosis.wording import percent, plural, quoted

Counts = NDArray[np.uint64]

_START_UP = 100

_OVERFLOW = (
    "look at what grew in the layers and steps just before the first that has them; a lower learning rate or gradient "
    "clipping keeps values in range, at the price of slower learning; float32 or bfloat16 widen the range, at the "
    "price of memory or precision"
)
_NOT_LINKED = (
    "choose members of which one has a derivative at every z (a mirrored ReLU, SELU or SiLU; not tanh or ReLU6); where "
    "z is exactly 0, a bias or standardised input moves it off; both are further parameters or work on the data"
)


def non_finite(recording: xr.DataTree) -> list[Finding]:
    """Whether any activation or gradient was NaN or infinite, in the whole recording.

    Any such activation is ``bad``. Isolated gradients are allowed, because loss scaling makes and skips them. Layers
    without a number have no finding; where that are all of them, the run's says so.
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
    return [
        _of_numbers(layer, steps[seen[:, index]], values[seen[:, index], index], gradients[seen[:, index], index])
        for index, layer in enumerate(rows.names(layers).tolist())
        if seen[:, index].any()
    ]


def _of_numbers(layer: str, steps: Steps, values: Counts, gradients: Counts) -> Finding:
    late = steps > _START_UP if (steps > _START_UP).any() else np.ones(len(steps), dtype=bool)
    broken_values, broken_gradients = values > 0, gradients > 0
    first = int(steps[broken_values.argmax()]) if broken_values.any() else None
    begun = onset(steps, broken_gradients, late)
    share, run = float(broken_gradients[late].mean()), float(_longest_run(broken_gradients[late]))
    most = "in most records since step"
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
