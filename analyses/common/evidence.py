"""What a summary keeps of a recording: dead units, gradients over depth, findings, by public functions alone.

A recording has megabytes and stays where it was made; these numbers are what the results page can be rebuilt from.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

import covshift
from common.files import digits_of, thinned
from covshift.exceptions import SignalNotRecorded

SIGNALS = ("activation", "activation_grad")
MOST_PASSES = 40
"""Evaluation passes of which a summary keeps the numbers of every layer."""

_MOST_CAUSES = 12
_LONGEST_REASON = 300


def evidence(recording: xr.DataTree, *, distinct_examples: int) -> dict[str, Any]:
    """Everything that a summary keeps of a recording, as JSON types.

    Parameters
    ----------
    recording : DataTree
        Of a finished run.
    distinct_examples : int
        Training images the batches are drawn from.

    Returns
    -------
    dict
        ``units``, ``profiles`` and ``diagnosis``; the first two are None where nothing of the kind was recorded.
    """
    return {
        "units": _units(recording),
        "profiles": {signal: _profile(recording, signal) for signal in SIGNALS},
        "diagnosis": _diagnosis(recording, distinct_examples),
    }


def _units(recording: xr.DataTree) -> dict[str, Any] | None:
    """Units of each activation that were silent on every watched image, at every evaluation pass."""
    try:
        found = covshift.gradient_health.dead_units(recording, stream="evaluation")
    except SignalNotRecorded:
        return None
    owner = found["layer"].values
    layers = list(dict.fromkeys(owner.tolist()))
    silent = found["silent"].values
    return {
        "layers": layers,
        "units": [int((owner == layer).sum()) for layer in layers],
        "step": thinned(found["step"].values.tolist(), MOST_PASSES),
        "examples": int(found["examples"].values[-1].max()),
        "silent": thinned([[int(row[owner == layer].sum()) for layer in layers] for row in silent], MOST_PASSES),
    }


def _profile(recording: xr.DataTree, signal: str) -> dict[str, Any] | None:
    """Size, share of zeros and slope over depth of one signal in the first and the last record."""
    try:
        found = covshift.gradient_health.norm_profile(recording, signal=signal)
        zeros = covshift.gradient_health.zero_rate(recording, signal=signal).sel(layer=found["layer"])
    except SignalNotRecorded:
        return None
    ends = [0, -1]
    return {
        "layers": found["layer"].values.tolist(),
        "step": found["step"].values[ends].tolist(),
        "rms": [_short(row) for row in found["rms"].values[ends]],
        "zero_rate": [_short(row) for row in zeros.values[ends]],
        "slope": _short(found["slope"].values[ends]),
        "vanished": found["vanished"].values[ends].tolist(),
    }


def _diagnosis(recording: xr.DataTree, distinct_examples: int) -> dict[str, Any]:
    """The sentence, how many layers got which verdict by which check, and the causes."""
    diagnosis = covshift.diagnose(recording, distinct_examples=distinct_examples)
    counted: dict[str, Counter[str]] = {}
    for finding in diagnosis.findings:
        counted.setdefault(finding.check, Counter())[finding.verdict] += 1
    causes = [
        {"check": cause.check, "layer": cause.layer, "verdict": cause.verdict, "since_step": cause.since_step}
        | {"reason": cause.reason[:_LONGEST_REASON]}
        for cause in diagnosis.causes[:_MOST_CAUSES]
    ]
    checks = {check: dict(counts) for check, counts in counted.items()}
    return {
        "sentence": diagnosis.sentence,
        "worst": diagnosis.worst,
        "checks": checks,
        "cause_count": len(diagnosis.causes),
        "causes": causes,
    }


def _short(values: NDArray[np.floating[Any]]) -> list[float]:
    return [digits_of(float(value)) for value in values]
