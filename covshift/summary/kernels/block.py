"""Statistics of one block of finite elements, and of the whole tensor as blocks are added to it.

Bits are compared through keys: the signed integers that order floats as their values are ordered, with -0.0 just below
0.0, and infinities and NaN outside. Means are kept as an unevaluated sum of two float64, ``mean + rest``, so that
higher moments stay exact where the mean is millions of standard deviations away from zero.

References
----------
T. F. Chan, G. H. Golub & R. J. LeVeque, Algorithms for computing the sample variance (1983), for the corrected
two-pass sums of a block; P. Pebay, SAND2008-6212 (2008), equations 3.1, for merging moments; T. J. Dekker, A
floating-point technique for extending the available precision (1971), for ``rest``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from covshift.summary.kernels.jit import difference, exact, reinterpret, reordered
from covshift.summary.kernels.memory import Array

# Places in the running totals, an array of int64.
POSITIVE, NEGATIVE, SUBNORMAL, NAN, POSINF, NEGINF, LOW, HIGH = range(8)


class Block(NamedTuple):
    """One piece of memory seen as integers and as floats."""

    bits: Array
    values: Array


class Limits(NamedTuple):
    """Magnitude bits: the largest pattern, infinity, and the smallest normal number of the tensor's own dtype."""

    top: Any
    infinity: Any
    normal: Any


class Whole(NamedTuple):
    """Running totals of the tensor, and its moments as (count, mean, rest, m2, m3, m4)."""

    totals: Array
    moments: Array


class Tally(NamedTuple):
    """Keys of the extremes, numbers of elements of each kind, and the sum."""

    low: Any
    high: Any
    positive: Any
    negative: Any
    subnormal: Any
    total: float


@reordered
def tally(block: Block, count: int, limits: Limits) -> Tally:
    """Count and add; only the extremes can be trusted unless all elements are finite, as they tell."""
    bits, values = block
    top, _, normal = limits
    cast = bits.dtype.type
    low, high = top, cast(-top - 1)
    positive, negative, small = cast(0), cast(0), cast(0)
    total = 0.0
    for i in range(count):
        b = bits[i]
        key = cast(b ^ top) if b < 0 else b
        low, high = min(low, key), max(high, key)
        positive = cast(positive + cast(key > 0))
        negative = cast(negative + cast(key < -1))
        small = cast(small + cast(cast(b & top) < normal))
        total += np.float64(values[i])
    return Tally(low, high, positive, negative, small - (count - positive - negative), total)


@exact
def all_finite(low: Any, high: Any, limits: Limits) -> bool:
    """Whether extremes are those of finite elements."""
    return bool(high < limits.infinity and low >= -limits.infinity)


@reordered
def powers(values: Array, count: int, mean: float) -> tuple[float, float, float, float]:
    """Sums of the first four powers of deviations from ``mean``."""
    s1, s2, s3, s4 = 0.0, 0.0, 0.0, 0.0
    for i in range(count):
        deviation = difference(np.float64(values[i]), mean)
        square = deviation * deviation
        s1 += deviation
        s2 += square
        s3 += square * deviation
        s4 += square * square
    return s1, s2, s3, s4


@exact
def compact(bits: Array, count: int, limits: Limits, totals: Array) -> int:
    """Move finite elements to the front, count the others, and return how many are finite."""
    kept = 0
    for i in range(count):
        b = bits[i]
        magnitude = b & limits.top
        if magnitude < limits.infinity:
            bits[kept] = b
            kept += 1
        elif magnitude > limits.infinity:
            totals[NAN] += 1
        elif b > 0:
            totals[POSINF] += 1
        else:
            totals[NEGINF] += 1
    return kept


@exact
def merge_moments(
    moments: Array, n_b: float, mean_b: float, rest_b: float, m2_b: float, m3_b: float, m4_b: float
) -> None:
    """Add a block's moments to ``moments`` (Pebay's equations 3.1)."""
    n_a = moments[0]
    mean_a, rest_a = (moments[1], moments[2]) if n_a > 0 else (mean_b, rest_b)
    m2_a, m3_a, m4_a = moments[3], moments[4], moments[5]
    a, b = n_a / (n_a + n_b), n_b / (n_a + n_b)
    delta = (mean_b - mean_a) + (rest_b - rest_a)
    cross = delta * delta * n_a * b
    moments[5] = m4_a + m4_b + cross * delta * delta * (a * a - a * b + b * b)
    moments[5] += 6.0 * delta * delta * (a * a * m2_b + b * b * m2_a) + 4.0 * delta * (a * m3_b - b * m3_a)
    moments[4] = m3_a + m3_b + cross * delta * (a - b) + 3.0 * delta * (a * m2_b - b * m2_a)
    moments[3] = m2_a + m2_b + cross
    rest = rest_a + delta * b
    moments[1] = mean_a + rest
    moments[2] = rest - (moments[1] - mean_a)
    moments[0] = n_a + n_b


@exact
def add_finite(whole: Whole, count: int, tallied: Tally, mean: float, sums: Any) -> tuple[float, float]:
    """Add a block of finite elements to the whole; returns the rest of the block's mean, and its m2.

    ``sums`` are sums of powers about ``mean``, which is rounded; the corrections move them to the mean itself.
    """
    totals = whole.totals
    totals[LOW], totals[HIGH] = min(totals[LOW], tallied.low), max(totals[HIGH], tallied.high)
    totals[POSITIVE] += tallied.positive
    totals[NEGATIVE] += tallied.negative
    totals[SUBNORMAL] += tallied.subnormal
    s1, s2, s3, s4 = sums
    rest = s1 / count
    m2 = s2 - rest * s1
    m3 = s3 - 3.0 * rest * s2 + 2.0 * rest * rest * s1
    m4 = s4 - 4.0 * rest * s3 + 6.0 * rest * rest * s2 - 3.0 * rest * rest * rest * s1
    merge_moments(whole.moments, np.float64(count), mean, rest, m2, m3, m4)
    return rest, m2


@exact
def float_of(key: int, top: Any, block: Block) -> float:
    """The value that a key stands for; -0.0 becomes 0.0."""
    cast = block.bits.dtype.type
    return np.float64(reinterpret(cast(key ^ top) if key < 0 else cast(key), block.values.dtype)) + 0.0
