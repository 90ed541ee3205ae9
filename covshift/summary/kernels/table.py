"""Blocks whose columns are units: statistics of all columns at once, in the lanes of vector registers.

A table narrower than a strip is read as one whose rows are several rows long, so that its columns repeat the units.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from covshift.summary.kernels.block import Block, Limits, Tally, Whole, add_finite, all_finite
from covshift.summary.kernels.jit import difference, exact, reordered
from covshift.summary.kernels.memory import ACROSS, UNITS, Array
from covshift.summary.kernels.units import Columns, merge_unit

STRIP = 128  # columns: enough to fill vector registers, few enough for 16 rows of float64 in a block
LANES = 8  # rows added at once, in registers


class Strip(NamedTuple):
    """Statistics of the columns of one table.

    ``total`` is their sum and becomes their mean, about which ``first`` to ``fourth`` are sums of powers.
    """

    total: Array
    first: Array
    second: Array
    third: Array
    fourth: Array
    low: Array
    high: Array
    positive: Array
    zero: Array


@exact
def tiling(plan: Array, capacity: int) -> tuple[int, int, int]:
    """Units in a block, how often its columns repeat them, and the most rows of units it holds."""
    if not plan[ACROSS]:
        return 1, 1, capacity
    strips = (plan[UNITS] + STRIP - 1) // STRIP
    tile = (plan[UNITS] + strips - 1) // strips
    repeats = STRIP // tile if strips == 1 else 1
    return tile, repeats, capacity // (tile * repeats) * repeats


@exact
def new_strip(width: int, bits: Array) -> Strip:
    """Room for the columns of one table."""
    low, high = np.zeros(width, bits.dtype), np.zeros(width, bits.dtype)
    positive, zero = np.zeros(width, bits.dtype), np.zeros(width, bits.dtype)
    total, first, second = np.zeros(width), np.zeros(width), np.zeros(width)
    return Strip(total, first, second, np.zeros(width), np.zeros(width), low, high, positive, zero)


@exact
def clear(strip: Strip, width: int, top: Any) -> None:
    """Begin a table."""
    cast = strip.low.dtype.type
    for j in range(width):
        strip.total[j], strip.first[j], strip.second[j], strip.third[j], strip.fourth[j] = 0.0, 0.0, 0.0, 0.0, 0.0
        strip.positive[j], strip.zero[j] = cast(0), cast(0)
        strip.low[j], strip.high[j] = top, cast(-top - 1)


@reordered
def tally_rows(strip: Strip, block: Block, start: int, lanes: int, width: int, limits: Limits) -> Any:
    """Add ``lanes`` rows to the columns' counts, extremes and sums; returns elements below the smallest normal."""
    bits, values = block
    top, _, normal = limits
    cast = bits.dtype.type
    small = cast(0)
    for j in range(width):
        low, high = strip.low[j], strip.high[j]
        positive, zero, total = strip.positive[j], strip.zero[j], strip.total[j]
        for lane in range(lanes):
            i = np.uint64(start + lane * width + j)
            b = bits[i]
            magnitude = cast(b & top)
            key = cast(b ^ top) if b < 0 else b
            low, high = min(low, key), max(high, key)
            positive = cast(positive + cast(key > 0))
            zero = cast(zero + cast(magnitude == 0))
            small = cast(small + cast(magnitude < normal))
            total += np.float64(values[i])
        strip.low[j], strip.high[j] = low, high
        strip.positive[j], strip.zero[j], strip.total[j] = positive, zero, total
    return small


@reordered
def power_rows(strip: Strip, values: Array, start: int, lanes: int, width: int) -> None:
    """Add ``lanes`` rows to the columns' sums of powers of deviations from their means."""
    for j in range(width):
        mean, first, second = strip.total[j], strip.first[j], strip.second[j]
        third, fourth = strip.third[j], strip.fourth[j]
        for lane in range(lanes):
            deviation = difference(np.float64(values[np.uint64(start + lane * width + j)]), mean)
            square = deviation * deviation
            first += deviation
            second += square
            third += square * deviation
            fourth += square * square
        strip.first[j], strip.second[j], strip.third[j], strip.fourth[j] = first, second, third, fourth


@reordered
def powers_of(strip: Strip, width: int, rows: int, partial: int, mean: float) -> tuple[float, float, float, float]:
    """Sums of powers of all deviations from ``mean``, moved there from the means of the columns."""
    s1, s2, s3, s4 = 0.0, 0.0, 0.0, 0.0
    for j in range(width):
        count = np.float64(rows + (j < partial))
        first, second, third = strip.first[j], strip.second[j], strip.third[j]
        shift = difference(strip.total[j], mean)
        square = shift * shift
        s1 += first + count * shift
        s2 += second + 2.0 * shift * first + count * square
        s3 += third + 3.0 * shift * second + 3.0 * square * first + count * square * shift
        s4 += strip.fourth[j] + 4.0 * shift * third + 6.0 * square * second + 4.0 * square * shift * first
        s4 += count * square * square
    return s1, s2, s3, s4


@reordered
def total_of(strip: Strip, width: int, count: int, small: int, top: Any) -> Tally:
    """Sum of the columns' tallies."""
    cast = strip.low.dtype.type
    low, high = top, cast(-top - 1)
    positive, zero = cast(0), cast(0)
    total = 0.0
    for j in range(width):
        low, high = min(low, strip.low[j]), max(high, strip.high[j])
        positive, zero = cast(positive + strip.positive[j]), cast(zero + strip.zero[j])
        total += strip.total[j]
    return Tally(low, high, positive, count - positive - zero, small - zero, total)


@exact
def merge_columns(columns: Columns, at: int, strip: Strip, width: int, rows: int, partial: int) -> None:
    """Add a table's columns to the running columns from ``at``; the first ``partial`` have one row more."""
    for j in range(width):
        k = np.uint64(at + j)
        kept = np.float64(rows + (j < partial))
        rest = strip.first[j] * (longer if j < partial else shorter)
        merge_unit(columns, k, kept, strip.total[j], rest, strip.second[j] - rest * strip.first[j])
        columns.low[k], columns.high[k] = min(columns.low[k], strip.low[j]), max(columns.high[k], strip.high[j])
        columns.positive[k] += strip.positive[j]
        columns.zero[k] += strip.zero[j]


@exact
def add_table(
    whole: Whole, columns: Columns, at: int, block: Block, count: int, width: int, limits: Limits, strip: Strip
) -> bool:
    """Add a table to its columns and to the whole; False, and nothing added, unless all its elements are finite.

    The table has ``width`` columns and ``count`` elements: its last row may be shorter.
    """
    rows = count // width
    partial = count - rows * width
    filled = width if rows > 0 else partial
    laned = rows // LANES * LANES
    clear(strip, filled, limits.top)
    small = 0
    for row in range(0, laned, LANES):
        small += tally_rows(strip, block, row * width, LANES, width, limits)
    for row in range(laned, rows + 1):
        small += tally_rows(strip, block, row * width, 1, width if row < rows else partial, limits)
    tallied = total_of(strip, filled, count, small, limits.top)
    if not all_finite(tallied.low, tallied.high, limits):
        return False
    for j in range(filled):
        strip.total[j] *= shorter if j >= partial else longer
    for row in range(0, laned, LANES):
        power_rows(strip, block.values, row * width, LANES, width)
    for row in range(laned, rows + 1):
        power_rows(strip, block.values, row * width, 1, width if row < rows else partial)
    mean = tallied.total / count
    add_finite(whole, count, tallied, mean, powers_of(strip, filled, rows, partial, mean))
    merge_columns(columns, at, strip, filled, rows, partial)
    return True
