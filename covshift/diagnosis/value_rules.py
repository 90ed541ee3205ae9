"""Rules about values: distributions that shift, numbers that are none, linkages that do not link.

A shift is judged after its sampling noise has been taken off; where that noise cannot be known (batch norm in training
mode) the answer is ``not measured``, not a guess.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from covshift import schema
from covshift.analysis import linkage, rows, shift
from covshift.diagnosis.finding import Finding, not_measured
from covshift.diagnosis.judgement import Floats, Judgement, Steps, conclude, judge, onset, typical
from covshift.diagnosis.thresholds import THRESHOLDS
from covshift.diagnosis.wording import between, number, percent, plural

Counts = NDArray[np.uint64]

FEWEST_PAIRS = 3
"""Pairs of histograms in the window below which a shift has no interval, hence no verdict."""

_START_UP = 100

_SHIFTS = (
    "a shift may be learning itself: set it against the loss; a lower learning rate or a normalisation layer damps "
    "it, at the price of slower learning or of examples tied together"
)
_OVERFLOW = (
    "find the first layer and step that has them; a lower learning rate or gradient clipping keeps values in range, at "
    "the price of slower learning; float32 or bfloat16 widen the range, at the price of memory or precision"
)
_NOT_LINKED = (
    "choose members of which one has a derivative at every z (a mirrored ReLU, SELU or SiLU; not tanh or ReLU6); where "
    "z is exactly 0, a bias or standardised input moves it off; both are further parameters or work on the data"
)


def distribution_shift(recording: xr.DataTree) -> list[Finding]:
    """Whether each layer's distribution still moves from one histogram to the next, in the last window.

    The noise-corrected squared distance, which is unbiased, is averaged over the pairs of the window, and its root
    reported as an equivalent shift of the mean. Where the bins cannot resolve a layer (mean beyond 8 sd) the squared
    standardised mean difference stands in, less ``2 / n``, the most that sampling ``n`` independent examples can add.
    """
    moved = shift.between_steps(recording)
    steps, window = moved["step"].values, rows.last_window(moved.sizes["step"])
    normalised = _normalised_below(recording, moved, window)
    squares, noise = _squared_shift(moved)
    ran = np.asarray((rows.layer_rows(recording, signal="activation")["count"].values > 0).any(axis=0))
    off_centre = np.asarray(moved["off_centre"].values[window].any(axis=0))
    examples = np.median(moved["n_examples"].values[window], axis=0)
    findings = []
    for index, layer in enumerate(rows.names(moved).tolist()):
        known: NDArray[np.bool_] = np.isfinite(squares[window, index])
        if normalised[index] and known.any():
            findings.append(_under_batch_norm(layer))
        elif known.sum() >= FEWEST_PAIRS:
            moves = _Moves(squares[:, index], noise[:, index], int(examples[index]), bool(off_centre[index]))
            findings.append(moves.finding(layer, steps, window))
        elif ran[index]:
            findings.append(_too_few_pairs(layer, int(known.sum())))
    return findings


def _squared_shift(moved: xr.Dataset) -> tuple[Floats, Floats]:
    """Estimates of the squared shift in sd and of their noise, shape (step, layer); off centre from moments."""
    examples = moved["n_examples"].values.astype(np.float64)
    of_mean = np.divide(2.0, examples, out=np.full(examples.shape, np.nan), where=examples > 0)
    off_centre = moved["off_centre"].values
    squares = np.where(off_centre, moved["smd"].values ** 2 - of_mean, moved["u"].values / shift.CRAMER_OF_SMALL_SHIFT)
    # A normal's squared Cramer distance carries twice the variance of its mean.
    return squares, np.where(off_centre, 2 * of_mean, moved["u_noise"].values / shift.CRAMER_OF_SMALL_SHIFT)


def _normalised_below(recording: xr.DataTree, moved: xr.Dataset, window: slice) -> NDArray[np.bool_]:
    """Layers at or after the first batch norm, if the window ran in training mode."""
    layers = rows.group(recording, "layers")
    mode = rows.group(recording, "histograms")["mode"].sel(step=moved["step"].values[window])
    depth = layers["depth"].values
    norms = depth[np.char.find(rows.names(layers, "module_type"), "BatchNorm") >= 0]
    if not norms.size or not (mode == schema.Mode.TRAIN).any():
        return np.zeros(len(depth), dtype=bool)
    return np.asarray(depth >= norms.min())


def _under_batch_norm(layer: str) -> Finding:
    reason = (
        f"{layer}: batch norm in training mode, here or before, normalises the example groups together, so the "
        "sampling noise of its output is not known"
    )
    needed = (
        "record passes over a fixed set of examples, in eval mode, with recorder.evaluation(), and compare them with "
        'covshift.shift.between_steps(recording, stream="evaluation")'
    )
    return not_measured("shift", layer, reason, needed)


def _too_few_pairs(layer: str, pairs: int) -> Finding:
    reason = f"{layer}: {plural(pairs, 'pair')} of histograms with a known noise floor in the last window"
    need = (
        f"at least {FEWEST_PAIRS} such pairs: a smaller histograms_every=, batches of 2 examples or more, a known "
        "example axis, and an output that is no constant"
    )
    return not_measured("shift", layer, reason, need)


@dataclass(frozen=True)
class _Moves:
    """Squared shifts of one layer and their noise over steps, from batches of ``examples``."""

    squares: Floats
    noise: Floats
    examples: int
    off_centre: bool

    def finding(self, layer: str, steps: Steps, window: slice) -> Finding:
        known: NDArray[np.bool_] = np.isfinite(self.squares[window])
        mean, noise = self.squares[window][known].mean(), self.noise[window][known].mean()
        gap = plural(int(np.median(np.diff(steps)[window.start - len(steps) :])), "step")
        margin = _margin(mean, noise, int(known.sum()))
        value, low, high = (float(np.sqrt(max(square, 0.0))) for square in (mean, mean - margin, mean + margin))
        reason = (
            f"moved by {number(value)} sd {between((low, high))} from one histogram to the next, {gap} apart; mean of "
            f"{plural(int(known.sum()), 'pair')} with {plural(self.examples, 'example')} a side"
        )
        if self.off_centre:
            reason += ", by moments: its mean lies beyond 8 sd from 0, where bins are too wide"
        threshold = THRESHOLDS["shift"]
        exceeded = threshold.exceeded(np.sqrt(np.maximum(self.squares, 0.0)))
        begun = onset(steps, exceeded, np.isfinite(self.squares))
        if threshold.verdict(value) != "ok" and low == 0:
            need = "more pairs or larger batches: sampling alone may explain this"
            return not_measured("shift", layer, f"{layer}: {reason}", need, threshold=threshold)
        return conclude(layer, reason, [Judgement(threshold, value, begun, _SHIFTS, (low, high))])


def _margin(square: float, noise: float, pairs: int) -> float:
    """Half-width of the 90 % interval of a mean of noise-corrected squares.

    Without a shift their 95 % point is about ``3 noise / sqrt(pairs)`` (measured for 4 example groups, elements of an
    example independent or not); a shift adds the variance ``2 square noise`` of the cross term.
    """
    return float(np.sqrt((9 * noise**2 + 1.645**2 * 2 * max(square, 0.0) * noise) / pairs))


def non_finite(recording: xr.DataTree) -> list[Finding]:
    """Whether any activation or gradient was NaN or infinite, in the whole recording.

    Any such activation is ``bad``. Isolated gradients are allowed, because loss scaling makes and skips them.
    """
    layers = rows.group(recording, "layers")
    counts = {name: layers[name].values for name in ("count", "nan_count", "posinf_count", "neginf_count")}
    broken = counts["nan_count"] + counts["posinf_count"] + counts["neginf_count"]
    of_values = np.isin(rows.names(layers, "signal"), schema.VALUE_SIGNALS)
    values, gradients = broken[..., of_values].sum(axis=-1), broken[..., ~of_values].sum(axis=-1)
    seen, steps = np.asarray(counts["count"].any(axis=-1)), layers["step"].values
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
    run = float(_longest_run(broken_gradients[late]))
    judged = [
        Judgement(THRESHOLDS["non_finite_values"], float(broken_values.mean()), first, _OVERFLOW),
        Judgement(THRESHOLDS["non_finite_gradients"], float(broken_gradients[late].mean()), begun, _OVERFLOW),
        Judgement(THRESHOLDS["non_finite_run"], run, begun, _OVERFLOW),
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
            reason = f"{layer}: where its members' derivatives are zero has no closed form here, or z was not recorded"
            need = "covshift.linked.audit tells it for the activation by itself; record with preactivation in signals="
            findings.append(not_measured("linkage", layer, reason, need))
            continue
        atom = float(typical(rates["zero_atom_rate"].values[window, index]))
        records = plural(int(np.isfinite(series[window]).sum()), "record")
        reason = (
            f"no member has a derivative at {percent(float(typical(series[window])))} of its input z, and z is exactly "
            f"0 at {percent(atom)}; median of the last {records}"
        )
        findings.append(conclude(layer, reason, [judge("linkage", series, steps, window, _NOT_LINKED)]))
    return findings
