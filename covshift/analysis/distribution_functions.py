"""Distribution functions of counts on a grid of bins, and the gap between two of them.

All are cut to the bins between the first and the last that any side holds: elsewhere they agree, and most of a grid is
empty. Counts are added up before they are divided, so a distribution function ends at 1 exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from covshift.exceptions import InvalidArgumentError
from covshift.grid import Grid

ROWS_AT_ONCE = 32
"""Rows of counts compared together, of which each may hold several groups."""

Counts = NDArray[Any]
Floats = NDArray[np.float64]


def occupied(grid: Grid, *sides: Counts) -> slice:
    """Bins of finite values from the first to the last that any row of any side holds; one bin where none does.

    Raises
    ------
    InvalidArgumentError
        If the last axis of a side is not ``grid.size`` long.
    """
    held = np.zeros(grid.size, dtype=bool)
    for counts in sides:
        if counts.shape[-1:] != (grid.size,):
            raise InvalidArgumentError(f"counts have shape {counts.shape}: expected the last axis to be {grid.size}")
        held |= counts.reshape(-1, grid.size).any(axis=0)
    held[[0, grid.nan - 1, grid.nan]] = False
    known = np.flatnonzero(held)
    return slice(int(known[0]), int(known[-1]) + 1) if known.size else slice(grid.zero, grid.zero + 1)


def widths(grid: Grid) -> Floats:
    """Width of every bin, shape ``(grid.size,)``; 0 for zero, overflow, infinities and NaN."""
    finite = np.isfinite(grid.lower) & np.isfinite(grid.upper)
    return np.where(finite, np.where(finite, grid.upper, 0.0) - np.where(finite, grid.lower, 0.0), 0.0)


def cumulated(counts: Counts, bins: slice) -> Floats:
    """Elements up to the upper edge of every one of ``bins``, shape ``(..., bins)``; exact below 2**53 elements."""
    return np.cumsum(counts[..., bins], axis=-1, dtype=np.float64)


def shares(below: Floats) -> Floats:
    """Distribution functions from :func:`cumulated` counts; NaN where there is no element."""
    with np.errstate(invalid="ignore"):  # nothing of nothing is NaN
        return np.asarray(below / below[..., -1:])


def in_blocks(rows: NDArray[np.bool_]) -> list[NDArray[np.int64]]:
    """Positions of the ``rows`` that are True, a few at a time: arrays that stay in a processor's cache."""
    chosen = np.flatnonzero(rows)
    return np.array_split(chosen, -(-chosen.size // ROWS_AT_ONCE)) if chosen.size else []


def beside(width: Floats) -> Floats:
    """Width of the two bins that each upper edge stands between; beyond the last one nothing differs."""
    return np.asarray(width + np.append(width[1:], 0.0))


@dataclass(frozen=True)
class Gap:
    """``F - G`` between two distribution functions, and three measures of it, each of shape ``(...)``.

    Attributes
    ----------
    upper : ndarray, shape (..., bins)
        At the upper edge of every bin. It is a straight line within a bin, and 0 below the first; at zero, which has no
        width, it jumps.
    width : ndarray, shape (bins,)
        Of the bins.
    """

    upper: Floats
    width: Floats

    @classmethod
    def of(cls, a: Counts, b: Counts, grid: Grid) -> Gap:
        """Between two sides, whose leading axes broadcast; NaN where either is empty."""
        bins = occupied(grid, a, b)
        return cls(shares(cumulated(a, bins)) - shares(cumulated(b, bins)), widths(grid)[bins])

    @property
    def largest(self) -> Floats:
        """``max |F - G|`` at an edge."""
        return np.asarray(np.abs(self.upper).max(axis=-1))

    @property
    def area(self) -> Floats:
        """``int |F - G| dx``.

        Over a bin it is the mean of both ends, less ``|l r| / (|l| + |r|)`` where the line from ``l`` to ``r`` crosses
        zero.
        """
        size = np.abs(self.upper)
        product = self.upper[..., :-1] * self.upper[..., 1:]
        # of numbers that small, both ends, the product is 0
        excess = np.minimum(product, 0.0) / np.maximum(size[..., :-1] + size[..., 1:], np.finfo(np.float64).tiny)
        return np.asarray(size @ beside(self.width) / 2 + excess @ self.width[1:])

    @property
    def squared_area(self) -> Floats:
        """``int (F - G)^2 dx``, which is ``(l^2 + l r + r^2) / 3`` over a bin."""
        product = self.upper[..., :-1] * self.upper[..., 1:]
        return np.asarray((self.upper**2 @ beside(self.width) + product @ self.width[1:]) / 3)
