"""What a GradScaler does to a run: the scale that gradients carry, and the steps it skips.

The scaler is only asked what its documented methods tell. It calls no hook when it skips a step, but lowers its scale
at the ``update()`` that follows, and at no other time.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch

from covshift.grid import Grid
from covshift.instrument.block import ACTIVATION_GRAD, PREACTIVATION_GRAD, SIGNAL_COUNT
from covshift.summary import numbers
from covshift.summary.summary import Counts, Histogram, UnitSummary
from covshift.summary.table import Pooled


class Scaler(Protocol):
    """A ``torch.amp.GradScaler`` or what acts like one."""

    def get_scale(self) -> float:
        """The scale now in force, 1 where scaling is switched off."""


def told_to_skip(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the scaler left it to the optimizer, which must be a fused one, to skip the step just made."""
    found = getattr(optimizer, "found_inf", None)
    return found is not None and bool(found)


def handed_scale(optimizer: torch.optim.Optimizer) -> float:
    """What the optimizer will divide gradients by: some fused ones are handed the loss scale by the scaler.

    NaN for a scale of 0, by which nothing can be divided.
    """
    scale = getattr(optimizer, "grad_scale", None)
    return 1.0 if scale is None else float(scale) or math.nan


class LossScale:
    """The scale of the loss, step by step."""

    def __init__(self, scaler: Scaler | None) -> None:
        self._scaler = scaler
        self._begun = self._ended = math.nan

    @property
    def is_known(self) -> bool:
        """Whether there is a scaler to ask."""
        return self._scaler is not None

    def begin(self) -> None:
        """A forward pass begins, whose loss will be scaled."""
        self._begun, self._ended = self._now(), math.nan

    def skipped(self) -> bool:
        """Whether the scaler skipped the step now open, of which a forward pass has begun."""
        return not math.isnan(self._begun) and self._now() < self._begun

    def skipped_after_end(self) -> bool:
        """Whether the scaler skipped an optimizer that was to follow the one at whose step the step ended."""
        return not math.isnan(self._ended) and self._now() < self._ended

    def _now(self) -> float:
        """The scaler's own word, NaN without one."""
        if self._scaler is None:
            return math.nan
        scale = float(self._scaler.get_scale())
        # A scaler halves its scale at every step that it skips: float32 reaches 0, and stays there.
        if not 0 <= scale < math.inf:
            raise ValueError(f"scaler.get_scale() gave {scale}: expected a number from 0")
        return scale

    def end(self, *, skipped: bool = False) -> None:
        """The step has ended: that the scale falls later tells nothing more of it if it was ``skipped``."""
        self._begun, self._ended = math.nan, math.nan if skipped else self._begun

    @property
    def in_force(self) -> float:
        """The scale that gradients of the step now open carry, 1 without a scaler."""
        return 1.0 if self._scaler is None or math.isnan(self._begun) else self._begun

    @property
    def divisor(self) -> float:
        """What unscales gradients of the step now open: the scale, or NaN where that is 0 and has left nothing."""
        return self.in_force or math.nan


def unscaled(pooled: Pooled, scale: float) -> Pooled:
    """The same rows with gradients divided by the scale of the loss; NaN leaves their moments not measured.

    Kinds of elements stay as they were seen: an element that underflowed under the scale is a zero. Histograms move by
    whole octaves, which powers of two do exactly; for any other scale those of gradients are left out.
    """
    if scale == 1.0:
        return pooled
    is_gradient = np.isin(pooled.keys % SIGNAL_COUNT, (ACTIVATION_GRAD, PREACTIVATION_GRAD))
    rows = pooled.rows.copy()
    rows[is_gradient] = numbers.rescaled(rows[is_gradient], scale)
    gradients = set(pooled.keys[is_gradient].tolist())
    mantissa, exponent = math.frexp(scale)
    histograms = {
        key: _moved(histogram, exponent - 1) if key in gradients else histogram
        for key, histogram in pooled.histograms.items()
        if key not in gradients or mantissa == 0.5
    }
    units = {key: _divided(unit, scale) if key in gradients else unit for key, unit in pooled.units.items()}
    return Pooled(pooled.keys, rows, histograms, units)


def _moved(histogram: Histogram, octaves: int) -> Histogram:
    return Histogram(histogram.grid, moved(histogram.counts, histogram.grid, octaves))


def moved(counts: Counts, grid: Grid, octaves: int) -> Counts:
    """Counts of the same values divided by ``2**octaves``; what leaves the grid joins its underflow or overflow bin."""
    bins = octaves << grid.mantissa_bits
    rank = np.arange(1, grid.side + 3)
    # Rank 1 is underflow, the last one overflow; values there have no octave to move by.
    inner = np.clip(rank - bins, 1, grid.side + 2)
    target = np.where((rank == 1) | (rank == grid.side + 2), rank, inner)
    result = counts.copy()
    for side in (1, -1):
        places = grid.zero + side * rank
        result[..., places] = 0
        for group in np.ndindex(*counts.shape[:-1]):
            np.add.at(result[group], grid.zero + side * target, counts[group][places])
    return result


def _divided(units: UnitSummary, scale: float) -> UnitSummary:
    with np.errstate(over="ignore", under="ignore"):
        mean, m2, low, high = units.mean / scale, units.m2 / scale**2, units.min / scale, units.max / scale
    return replace(units, mean=mean, m2=m2, min=low, max=high)
