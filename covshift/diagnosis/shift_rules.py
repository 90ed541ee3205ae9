"""The rule about shift: whether a layer's distribution moves by more than sampling explains.

A shift is judged after its sampling noise has been taken off; where that noise cannot be known (batch norm in training
mode) the answer is ``not measured``, not a guess.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from covshift import schema
from covshift.analysis import rows, shift
from covshift.analysis.shift_records import batch_normalised
from covshift.diagnosis.finding import Finding, not_measured
from covshift.diagnosis.judgement import Floats, Judgement, Steps, conclude, onset
from covshift.diagnosis.thresholds import THRESHOLDS
from covshift.diagnosis.wording import between, number, plural
from covshift.exceptions import SignalNotRecorded

LEVEL = 0.05
"""Largest adjusted p-value with which a layer is listed as shifting."""

FEWEST_PAIRS = 3
"""Pairs of histograms in the window below which a shift has no interval, hence no verdict."""

_SHIFTS = (
    "a shift may be learning itself: set it against the loss; a lower learning rate or a normalisation layer damps "
    "it, at the price of slower learning or of examples tied together"
)


def distribution_shift(recording: xr.DataTree) -> list[Finding]:
    """Whether each layer's distribution still moves from one histogram to the next, in the last window.

    The noise-corrected squared distance, which is unbiased, is averaged over the pairs of the window, and its root
    reported as an equivalent shift of the mean. Where the bins cannot resolve a layer (mean beyond 8 sd) the squared
    standardised mean difference stands in, less ``2 / n``, the most that sampling ``n`` independent examples can add.
    Units that move against one another, which the pooled distribution hides, are judged by their own means. Where at
    least ten disjoint pairs were tested, a layer is flagged only if its adjusted p-value (Benjamini and Hochberg over
    the layers) is at most 5 %, too.
    """
    moved = shift.between_steps(recording)
    units = _unit_movement(recording, rows.names(moved))
    steps, window = moved["step"].values, rows.last_window(moved.sizes["step"])
    squares, noise = _squared_shift(moved)
    ran = np.asarray((rows.layer_rows(recording, signal="activation")["count"].values > 0).any(axis=0))
    tested = {name: moved[name].values[-1] for name in ("p", "q", "pairs")}
    unknown = _noise_unknown(recording, moved, window)
    off_centre = np.asarray(moved["off_centre"].values[window].any(axis=0))
    examples = np.median(moved["n_examples"].values[window], axis=0)
    findings = []
    for index, layer in enumerate(rows.names(moved).tolist()):
        known: NDArray[np.bool_] = np.isfinite(squares[window, index])
        if unknown[index] and known.any():
            findings.append(_under_batch_norm(layer))
        elif known.sum() >= FEWEST_PAIRS:
            moves = _Moves(
                squares[:, index],
                noise[:, index],
                int(examples[index]),
                bool(off_centre[index]),
                float(tested["p"][index]),
                float(tested["q"][index]),
                int(tested["pairs"]),
            )
            findings.append(moves.finding(layer, steps, window, units.get(layer)))
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


def _noise_unknown(recording: xr.DataTree, moved: xr.Dataset, window: slice) -> NDArray[np.bool_]:
    """Layers whose examples batch norm ties together anywhere in the window."""
    mode = rows.group(recording, "histograms")["mode"].sel(step=moved["step"].values[window]).values
    return batch_normalised(rows.group(recording, "layers")) & bool((mode == schema.Mode.TRAIN).any())


@dataclass(frozen=True)
class _UnitMovement:
    """Squared movement of a layer's units, noise taken off, over the steps at which units were recorded."""

    excess: Floats
    steps: Steps
    units: int

    @property
    def judgement(self) -> Judgement:
        """Root of the mean over the last window against its threshold, with a 90 % interval over its records."""
        threshold, window = THRESHOLDS["unit_shift"], rows.last_window(len(self.steps))
        recent = self.excess[window]
        recent = recent[np.isfinite(recent)]
        if len(recent) < FEWEST_PAIRS or self.units < 2:
            return Judgement(threshold, math.nan, None, _SHIFTS)
        mean, error = float(recent.mean()), float(recent.std(ddof=1)) / math.sqrt(len(recent) / 2)
        low, value, high = (math.sqrt(max(end, 0.0)) for end in (mean - 1.645 * error, mean, mean + 1.645 * error))
        begun = onset(self.steps, threshold.exceeded(np.sqrt(np.maximum(self.excess, 0.0))), np.isfinite(self.excess))
        # What sampling may explain is no evidence; neighbouring comparisons share a record, hence half their number.
        return Judgement(threshold, value if low > 0 else 0.0, begun, _SHIFTS, (low, high))


def _unit_movement(recording: xr.DataTree, layers: NDArray[np.str_]) -> dict[str, _UnitMovement]:
    try:
        moved = shift.between_units(recording)
    except SignalNotRecorded:
        return {}
    excess, units = moved["excess"].values, moved["units"].values.max(axis=0, initial=0)
    steps = moved["step"].values
    return {str(name): _UnitMovement(excess[:, i], steps, int(units[i])) for i, name in enumerate(layers)}


def _under_batch_norm(layer: str) -> Finding:
    reason = (
        f"{layer}: batch norm in training mode, here or before, normalises the example groups together, so the "
        "sampling noise of its output is not known"
    )
    needed = (
        "record passes over a fixed set of examples, in eval mode, with recorder.evaluation(), and compare them with "
        'covshift.shift.between_steps(recording, stream="evaluation", same_examples=True)'
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
    """Squared shifts of one layer and their noise over steps, from batches of ``examples``, and what the test said."""

    squares: Floats
    noise: Floats
    examples: int
    off_centre: bool
    p: float
    q: float
    pairs_tested: int

    def finding(self, layer: str, steps: Steps, window: slice, units: _UnitMovement | None) -> Finding:
        known: NDArray[np.bool_] = np.isfinite(self.squares[window])
        mean, noise = float(self.squares[window][known].mean()), float(self.noise[window][known].mean())
        value, (low, high) = math.sqrt(max(mean, 0.0)), shift.equivalent_interval(mean, noise, int(known.sum()))
        reason = self._words(steps, window, value, (low, high), int(known.sum()))
        threshold = THRESHOLDS["shift"]
        begun = onset(steps, threshold.exceeded(np.sqrt(np.maximum(self.squares, 0.0))), np.isfinite(self.squares))
        of_units = None if units is None else units.judgement
        if of_units is not None and of_units.verdict == "watch" and of_units.interval is not None:
            reason += f"; its units by {number(of_units.value)} sd each {between(of_units.interval)}"
        explained = low == 0 or self.q > LEVEL
        if threshold.verdict(value) != "ok" and explained and (of_units is None or of_units.verdict != "watch"):
            need = "more pairs or larger batches: sampling alone may explain this"
            return not_measured("shift", layer, f"{layer}: {reason}", need, threshold=threshold)
        pooled = Judgement(threshold, 0.0 if explained else value, begun, _SHIFTS, (low, high))
        judged = [pooled] if of_units is None else [pooled, of_units]
        return conclude(layer, reason, judged)

    def _words(self, steps: Steps, window: slice, value: float, interval: tuple[float, float], pairs: int) -> str:
        gap = plural(int(np.median(np.diff(steps)[window.start - len(steps) :])), "step")
        reason = (
            f"moved by {number(value)} sd {between(interval)} from one histogram to the next, {gap} apart; mean of "
            f"{plural(pairs, 'pair')} with {plural(self.examples, 'example')} a side"
        )
        if self.off_centre:
            reason += ", by moments: its mean lies beyond 8 sd from 0, where bins are too wide"
        if math.isfinite(self.p):
            reason += f"; p = {number(self.p)} over {self.pairs_tested} disjoint pairs"
        return reason
