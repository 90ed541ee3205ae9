"""Shifts of every layer in one stream of rows, with all that a verdict on them needs: noise, tests, units."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from covshift import schema
from covshift.analysis import rows, shift
from covshift.analysis.shift_records import batch_normalised
from covshift.diagnosis import streams
from covshift.diagnosis.judgement import Floats, Judgement, Steps, crossing, onset
from covshift.diagnosis.threshold import Threshold
from covshift.diagnosis.thresholds import THRESHOLDS
from covshift.exceptions import SignalNotRecorded

FEWEST_PAIRS = 3
"""Pairs of histograms in the window below which a shift has no interval, hence no verdict."""

SHIFTS = (
    "a shift may be learning itself: set it against the loss; a lower learning rate or a normalisation layer damps "
    "it, at the price of slower learning or of examples tied together"
)


@dataclass(frozen=True)
class UnitMovement:
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
            return Judgement(threshold, math.nan, None, SHIFTS)
        mean, (low, high) = float(recent.mean()), interval_over_pairs(recent)
        begun, crossed = onset_of_squares(threshold, self.steps, self.excess)
        # What sampling may explain is no evidence.
        value = math.sqrt(max(mean, 0.0)) if low > 0 else 0.0
        return Judgement(threshold, value, begun, SHIFTS, (low, high), crossed=crossed)


def onset_of_squares(threshold: Threshold, steps: Steps, squares: Floats) -> tuple[int | None, str]:
    """Step since when roots of ``squares`` (step,) exceed a threshold, and in which words."""
    exceeded, known = threshold.exceeded(np.sqrt(np.maximum(squares, 0.0))), np.isfinite(squares)
    begun = onset(steps, exceeded, known)
    return begun, crossing(threshold.beyond, steps, begun, exceeded, known, counted="pairs of records")


def interval_over_pairs(squares: Floats) -> tuple[float, float]:
    """90 % interval of a root mean square, by the scatter of the squares over pairs of records.

    Neighbouring pairs share a record, hence half their number.
    """
    mean, error = float(squares.mean()), float(squares.std(ddof=1)) / math.sqrt(len(squares) / 2)
    return math.sqrt(max(mean - 1.645 * error, 0.0)), math.sqrt(max(mean + 1.645 * error, 0.0))


@dataclass(frozen=True)
class Comparison:
    """Shift of every layer from one row of a stream to the next.

    Attributes
    ----------
    stream : str
        Whose rows.
    same_examples : bool
        Whether all rows saw the same examples, so that there is no sampling noise.
    modes : str
        The model's mode in the last window, in words.
    place : dict
        Position of each layer in the arrays.
    steps, window
        Of the rows, and which of them a verdict rests on.
    squares, noise : ndarray, shape (step, layer)
        Squared shifts in sd^2, noise taken off, and what was taken off.
    examples, off_centre, tied : ndarray, shape (layer,)
        Median of the examples of a side; whether bins are too wide; whether batch norm ties the examples together.
    p, q, p_holm : ndarray, shape (layer,)
        Of "nothing moved" in the last window of disjoint pairs: by itself, after Benjamini & Hochberg, after Holm.
    pairs_tested : int
        Disjoint pairs behind each.
    units : dict
        Movement of the units, by layer.
    """

    stream: str
    same_examples: bool
    modes: str
    place: dict[str, int]
    steps: Steps
    window: slice
    squares: Floats
    noise: Floats
    examples: NDArray[np.int64]
    off_centre: NDArray[np.bool_]
    tied: NDArray[np.bool_]
    p: Floats
    q: Floats
    p_holm: Floats
    pairs_tested: int
    units: dict[str, UnitMovement]

    @classmethod
    def of(cls, recording: xr.DataTree, stream: str, *, moved: xr.Dataset | None = None) -> Comparison:
        """Comparison of neighbouring histograms of a stream; ``moved`` is that of different examples, if known.

        Raises
        ------
        SignalNotRecorded
            If the stream has no histograms.
        """
        same = streams.has_same_examples(recording, stream)
        if moved is None or same:
            moved = shift.between_steps(recording, stream=stream, same_examples=same, js=False)
        window = rows.last_window(moved.sizes["step"])
        names = rows.names(moved)
        training = rows.group(recording, "histograms", stream=stream)["mode"].sel(step=moved["step"].values[window])
        in_training = training.values == schema.Mode.TRAIN
        normalised = batch_normalised(rows.group(recording, "layers", stream=stream))
        tests = {name: moved[name].values[-1] for name in ("p", "q", "p_holm", "pairs")}
        squares, noise = _squared_shift(moved, same_examples=same)
        return cls(
            stream,
            same,
            "training mode" if in_training.all() else "evaluation mode" if not in_training.any() else "either mode",
            {name: index for index, name in enumerate(names.tolist())},
            moved["step"].values,
            window,
            squares,
            noise,
            np.median(moved["n_examples"].values[window], axis=0).astype(np.int64),
            np.asarray(moved["off_centre"].values[window].any(axis=0)),
            normalised & bool(in_training.any()) & (not same),
            tests["p"],
            tests["q"],
            tests["p_holm"],
            int(tests["pairs"]),
            _unit_movement(recording, names, stream, same_examples=same),
        )

    def known(self, layer: str) -> NDArray[np.bool_]:
        """Rows of the window that have a squared shift of the layer."""
        place = self.place.get(layer)
        missing = np.zeros(len(self.steps[self.window]), dtype=bool)
        return missing if place is None else np.asarray(np.isfinite(self.squares[self.window, place]))

    def is_tied(self, layer: str) -> bool:
        """Whether batch norm hides the sampling noise of the layer."""
        return layer in self.place and bool(self.tied[self.place[layer]])

    def tells_of(self, layer: str) -> bool:
        """Whether there are enough pairs of rows with a known noise."""
        return not self.is_tied(layer) and int(self.known(layer).sum()) >= FEWEST_PAIRS

    def size(self, layer: str) -> float:
        """Shift of the layer in the window, in sd; NaN where it is not known."""
        known = self.known(layer)
        if not self.tells_of(layer):
            return math.nan
        return math.sqrt(max(float(self.squares[self.window, self.place[layer]][known].mean()), 0.0))

    def interval(self, layer: str) -> tuple[float, float]:
        """90 % interval of :meth:`size`: for sampling noise, or over the pairs where there is none."""
        place, known = self.place[layer], self.known(layer)
        squares = self.squares[self.window, place][known]
        if self.same_examples:
            return interval_over_pairs(squares)
        noise = float(self.noise[self.window, place][known].mean())
        return shift.equivalent_interval(float(squares.mean()), noise, len(squares))


def _squared_shift(moved: xr.Dataset, *, same_examples: bool) -> tuple[Floats, Floats]:
    """Estimates of the squared shift in sd and of their noise, shape (step, layer); off centre from moments."""
    examples = moved["n_examples"].values.astype(np.float64)
    of_mean = rows.ratio(np.full(examples.shape, 0.0 if same_examples else 2.0), examples)
    off_centre = moved["off_centre"].values
    squares = np.where(off_centre, moved["smd"].values ** 2 - of_mean, moved["u"].values / shift.CRAMER_OF_SMALL_SHIFT)
    # A normal's squared Cramer distance carries twice the variance of its mean.
    return squares, np.where(off_centre, 2 * of_mean, moved["u_noise"].values / shift.CRAMER_OF_SMALL_SHIFT)


def _unit_movement(
    recording: xr.DataTree, layers: NDArray[np.str_], stream: str, *, same_examples: bool
) -> dict[str, UnitMovement]:
    try:
        moved = shift.between_units(recording, stream=stream)
    except SignalNotRecorded:
        return {}
    excess = moved["excess"].values + (moved["noise"].values if same_examples else 0.0)
    units, steps = moved["units"].values.max(axis=0, initial=0), moved["step"].values
    return {str(name): UnitMovement(excess[:, i], steps, int(units[i])) for i, name in enumerate(layers)}
