"""A tensor's fixed-size summary: mergeable moments and counts, never averages of averages.

Everything kept is a count, a sum, an extreme or a sum of powers of deviations from the row's own mean, so the summary
of a stream does not depend on where the stream was cut. This module imports numpy only; the summaries themselves are
made from tensors by :mod:`covshift.summary.cpu` (fused kernels) and :mod:`covshift.summary.device` (torch operations).

References
----------
T. F. Chan, G. H. Golub & R. J. LeVeque, Algorithms for computing the sample variance (1983), for two moments;
P. Pebay, SAND2008-6212 (2008), equations 3.1, for the third and fourth (:mod:`covshift.summary.numbers`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from covshift.exceptions import InvalidArgumentError
from covshift.grid import Grid
from covshift.summary import numbers

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]


def example_count(shape: tuple[int, ...], example_axis: int | None) -> int:
    """Length of the example axis, 0 where it is unknown; a tensor without axes is one example."""
    if not shape:
        return 1
    return 0 if example_axis is None else shape[example_axis]


@dataclass(frozen=True)
class Moments:
    """Count, mean and centred power sums of every finite value seen.

    Attributes
    ----------
    count : int
        Finite values.
    mean : float
        Their mean; 0 where ``count`` is 0.
    m2, m3, m4 : float
        Sums of the second, third and fourth powers of deviations from the mean.
    """

    count: int = 0
    mean: float = 0.0
    m2: float = 0.0
    m3: float = 0.0
    m4: float = 0.0

    def merge(self, other: Moments) -> Moments:
        """Moments of both streams together (Pebay 2008, equations 3.1)."""
        if not self.count or not other.count:
            return other if not self.count else self
        a, b = ((part.mean, part.m2, part.m3, part.m4) for part in (self, other))
        return Moments(self.count + other.count, *numbers.pooled_moments(float(self.count), a, float(other.count), b))


@dataclass(frozen=True)
class UnitSummary:
    """Counts and moments of each unit (channel, feature): arrays of shape ``(units,)``.

    ``count``, ``zero_count``, ``positive_count`` count elements, non-finite ones included in ``count``;
    ``active_examples`` counts examples in which any element of the unit is not zero (NaN is not zero);
    ``finite_count``, ``mean``, ``m2``, ``min``, ``max`` concern finite elements; ``min > max`` (inf, -inf) where there
    is none.
    """

    count: Counts
    finite_count: Counts
    zero_count: Counts
    positive_count: Counts
    active_examples: Counts
    mean: Floats
    m2: Floats
    min: Floats
    max: Floats

    def merge(self, other: UnitSummary) -> UnitSummary:
        """Summary of both streams (Chan, Golub & LeVeque 1983).

        Raises
        ------
        InvalidArgumentError
            If the two have different numbers of units.
        """
        if self.count.shape != other.count.shape:
            raise InvalidArgumentError(
                f"units: cannot merge summaries of {self.count.size} and {other.count.size} units; "
                "the unit axis changed its length, record the calls as separate layers"
            )
        count = self.finite_count + other.finite_count
        share = other.finite_count / np.maximum(count, 1)
        # Beyond float64 squares are infinite, or vanish, whatever the user has numpy do then.
        with np.errstate(all="ignore"):
            # A stream without finite elements has no mean to differ from: infinity times none of them would be NaN.
            delta = np.where((self.finite_count == 0) | (other.finite_count == 0), 0.0, other.mean - self.mean)
            mean, cross = self.mean + delta * share, delta**2 * self.finite_count * share
            m2 = self.m2 + other.m2 + cross
        return UnitSummary(
            self.count + other.count,
            count,
            self.zero_count + other.zero_count,
            self.positive_count + other.positive_count,
            self.active_examples + other.active_examples,
            np.where(self.finite_count == 0, other.mean, mean),
            m2,
            np.minimum(self.min, other.min),
            np.maximum(self.max, other.max),
        )


@dataclass(frozen=True)
class Histogram:
    """Counts on a grid, one row for each example group: ``counts`` has shape ``(groups, grid.size)``."""

    grid: Grid
    counts: Counts

    def merge(self, other: Histogram) -> Histogram:
        """Sum of both; the finer grid is coarsened to the other's mantissa bits.

        Raises
        ------
        InvalidArgumentError
            If the exponent ranges or the numbers of groups differ.
        """
        if self.grid == other.grid and self.counts.shape == other.counts.shape:
            return Histogram(self.grid, self.counts + other.counts)
        ranges = [(h.grid.min_exponent, h.grid.max_exponent, h.counts.shape[0]) for h in (self, other)]
        if ranges[0] != ranges[1]:
            raise InvalidArgumentError(
                f"histograms: cannot merge (min_exponent, max_exponent, groups) {ranges[0]} with {ranges[1]}; "
                "record both with the same grid and groups"
            )
        bits = min(self.grid.mantissa_bits, other.grid.mantissa_bits)
        return self.coarsen(bits).merge(other.coarsen(bits))

    def moved_on(self, groups: int) -> Histogram:
        """The same counts, each example group taken for the one so many ``groups`` later, the last before the first."""
        return Histogram(self.grid, np.roll(self.counts, groups, axis=0))

    def coarsen(self, mantissa_bits: int) -> Histogram:
        """The same counts on the grid with fewer mantissa bits."""
        grid = replace(self.grid, mantissa_bits=mantissa_bits)
        return Histogram(grid, self.grid.coarsen(self.counts, mantissa_bits))


@dataclass(frozen=True)
class Summary:
    """Everything recorded of one tensor, or of any number of tensors merged.

    Attributes
    ----------
    count : int
        Elements, non-finite ones included.
    example_count : int
        Examples (entries along the example axis); 0 where that axis is unknown.
    zero_count, negative_count, nan_count, posinf_count, neginf_count, subnormal_count : int
        Elements of each kind. ``-0.0`` is zero; ``-inf`` is negative; NaN is neither.
    moments : Moments
        Of the finite elements, accumulated in float64 whatever the tensor's dtype.
    min, max : float
        Over finite elements; ``inf`` and ``-inf`` where there is none.
    histogram : Histogram or None
        None where the schedule did not ask for it.
    units : UnitSummary or None
        None where the schedule did not ask for it or the unit axis is unknown.

    Examples
    --------
    >>> from covshift.summary import summarize
    >>> import torch
    >>> both = summarize(torch.tensor([[1.0, -2.0]])).merge(summarize(torch.tensor([[0.0, 4.0]])))
    >>> both.count, both.zero_count, both.negative_count, both.moments.mean, both.max
    (4, 1, 1, 0.75, 4.0)
    """

    count: int = 0
    example_count: int = 0
    zero_count: int = 0
    negative_count: int = 0
    nan_count: int = 0
    posinf_count: int = 0
    neginf_count: int = 0
    subnormal_count: int = 0
    moments: Moments = Moments()
    min: float = math.inf
    max: float = -math.inf
    histogram: Histogram | None = None
    units: UnitSummary | None = None

    @classmethod
    def of(
        cls, row: numbers.Numbers, *, histogram: Histogram | None = None, units: UnitSummary | None = None
    ) -> Summary:
        """The summary of a row of :data:`covshift.summary.numbers.COLUMNS`, shape ``(14,)``."""
        if not row[numbers.COUNT]:
            return cls()
        counts = dict(zip(numbers.COUNTS, row[: len(numbers.COUNTS)].astype(int).tolist(), strict=True))
        moments = Moments(int(numbers.finite_count(row)), *row[numbers.MEAN : numbers.MIN].tolist())
        low, high = row[numbers.MIN :].tolist()
        return cls(**counts, moments=moments, min=low, max=high, histogram=histogram, units=units)

    @property
    def sum(self) -> float:
        """Sum of the finite elements."""
        return self.moments.mean * self.moments.count

    @property
    def positive_count(self) -> int:
        """Elements above zero, +inf included."""
        return self.count - self.zero_count - self.negative_count - self.nan_count

    def merge(self, other: Summary) -> Summary:
        """Summary of both streams: associative, commutative, with ``Summary()`` as identity.

        Parts that only one side has (a histogram, units) are kept where the other side is empty and dropped otherwise:
        half a histogram would not be the histogram of the stream.
        """
        if not self.count or not other.count:
            return other if not self.count else self
        return Summary(
            self.count + other.count,
            self.example_count + other.example_count,
            self.zero_count + other.zero_count,
            self.negative_count + other.negative_count,
            self.nan_count + other.nan_count,
            self.posinf_count + other.posinf_count,
            self.neginf_count + other.neginf_count,
            self.subnormal_count + other.subnormal_count,
            self.moments.merge(other.moments),
            min(self.min, other.min),
            max(self.max, other.max),
            self.histogram.merge(other.histogram) if self.histogram and other.histogram else None,
            self.units.merge(other.units) if self.units and other.units else None,
        )
