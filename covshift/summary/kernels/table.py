"""Blocks whose columns are units: statistics of all columns at once, in the lanes of vector registers.

A table narrower than a strip is read as one whose rows are several rows long, so that its columns repeat the units.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from covshift.summary.kernels.block import Block, Limits, Tally, Whole, add_finite, all_finite
from covshift.summary.kernels.jit import difference, exact, reordered
from covshift.summary.kernels.memory import ACROSS, UNITS, Array
from covshift.summary.kernels.units import STRIP, Columns, merge_kinds, merge_unit, place

LANES = 4  # rows added at once, in registers

# Fields lie STRIP apart, as those of units do. TOTAL becomes a mean, about which FIRST to FOURTH are sums of powers.
TOTAL, FIRST, SECOND, THIRD, FOURTH = 0, STRIP, 2 * STRIP, 3 * STRIP, 4 * STRIP
LOW, HIGH, POSITIVE, ZERO = 0, STRIP, 2 * STRIP, 3 * STRIP


class Strip(NamedTuple):
    """Statistics of the columns of one table."""

    sums: Array
    kinds: Array


@exact
def tiling(plan: Array, capacity: int) -> tuple[int, int, int]:
    """Units in a block, how often its columns repeat them, and the most rows of units it holds."""
    if not plan[ACROSS]:
        return 1, 1, capacity
    tile = min(plan[UNITS], STRIP)
    repeats = STRIP // tile
    return tile, repeats, capacity // (tile * repeats) * repeats


@exact
def new_strip(bits: Array) -> Strip:
    """Room for the columns of one table."""
    return Strip(np.zeros(5 * STRIP), np.zeros(4 * STRIP, bits.dtype))


@exact
def clear(strip: Strip, top: Any) -> None:
    """Begin a table."""
    strip.sums[:] = 0.0
    strip.kinds[:] = 0
    strip.kinds[LOW : LOW + STRIP] = top
    strip.kinds[HIGH : HIGH + STRIP] = -top - 1


@reordered
def tally_rows(strip: Strip, block: Block, start: int, lanes: int, width: int, limits: Limits) -> Any:
    """Add ``lanes`` rows to the columns' counts, extremes and sums; returns elements below the smallest normal."""
    bits, values = block
    sums, kinds = strip
    top, _, normal = limits
    cast = bits.dtype.type
    small = cast(0)
    for j in range(width):
        low, high = kinds[np.uint64(j + LOW)], kinds[np.uint64(j + HIGH)]
        positive, zero = kinds[np.uint64(j + POSITIVE)], kinds[np.uint64(j + ZERO)]
        total = sums[np.uint64(j + TOTAL)]
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
        kinds[np.uint64(j + LOW)], kinds[np.uint64(j + HIGH)] = low, high
        kinds[np.uint64(j + POSITIVE)], kinds[np.uint64(j + ZERO)] = positive, zero
        sums[np.uint64(j + TOTAL)] = total
    return small


@reordered
def power_rows(sums: Array, values: Array, start: int, lanes: int, width: int) -> None:
    """Add ``lanes`` rows to the columns' sums of powers of deviations from their means."""
    for j in range(width):
        mean, first, second = sums[np.uint64(j + TOTAL)], sums[np.uint64(j + FIRST)], sums[np.uint64(j + SECOND)]
        third, fourth = sums[np.uint64(j + THIRD)], sums[np.uint64(j + FOURTH)]
        for lane in range(lanes):
            deviation = difference(np.float64(values[np.uint64(start + lane * width + j)]), mean)
            square = deviation * deviation
            first += deviation
            second += square
            third += square * deviation
            fourth += square * square
        sums[np.uint64(j + FIRST)], sums[np.uint64(j + SECOND)] = first, second
        sums[np.uint64(j + THIRD)], sums[np.uint64(j + FOURTH)] = third, fourth


@reordered
def powers_of(sums: Array, width: int, rows: int, partial: int, mean: float) -> tuple[float, float, float, float]:
    """Sums of powers of all deviations from ``mean``, moved there from the means of the columns."""
    s1, s2, s3, s4 = 0.0, 0.0, 0.0, 0.0
    for j in range(width):
        count = np.float64(rows + (j < partial))
        first, second, third = sums[np.uint64(j + FIRST)], sums[np.uint64(j + SECOND)], sums[np.uint64(j + THIRD)]
        shift = difference(sums[np.uint64(j + TOTAL)], mean)
        square = shift * shift
        s1 += first + count * shift
        s2 += second + 2.0 * shift * first + count * square
        s3 += third + 3.0 * shift * second + 3.0 * square * first + count * square * shift
        s4 += sums[np.uint64(j + FOURTH)] + 4.0 * shift * third + 6.0 * square * second
        s4 += 4.0 * square * shift * first + count * square * square
    return s1, s2, s3, s4


@reordered
def total_of(strip: Strip, width: int, count: int, small: int, top: Any) -> Tally:
    """Sum of the columns' tallies."""
    sums, kinds = strip
    cast = kinds.dtype.type
    low, high = top, cast(-top - 1)
    positive, zero = cast(0), cast(0)
    total = 0.0
    for j in range(width):
        low, high = min(low, kinds[np.uint64(j + LOW)]), max(high, kinds[np.uint64(j + HIGH)])
        positive = cast(positive + kinds[np.uint64(j + POSITIVE)])
        zero = cast(zero + kinds[np.uint64(j + ZERO)])
        total += sums[np.uint64(j + TOTAL)]
    return Tally(low, high, positive, count - positive - zero, small - zero, total)


@exact
def merge_columns(columns: Columns, at: int, strip: Strip, width: int, rows: int, partial: int) -> None:
    """Add a table's columns to the running columns from ``at``; the first ``partial`` have one row more."""
    sums, kinds = strip
    shorter, longer = 1.0 / rows, 1.0 / (rows + 1)
    for j in range(width):
        first = sums[np.uint64(j + FIRST)]
        rest = first * (longer if j < partial else shorter)
        m2 = sums[np.uint64(j + SECOND)] - rest * first
        merge_unit(columns.floats, at + j, np.float64(rows + (j < partial)), sums[np.uint64(j + TOTAL)], rest, m2)
    for j in range(width):
        low, high = kinds[np.uint64(j + LOW)], kinds[np.uint64(j + HIGH)]
        merge_kinds(columns, at + j, low, high, kinds[np.uint64(j + POSITIVE)], kinds[np.uint64(j + ZERO)])


@exact
def add_table(
    whole: Whole, columns: Columns, unit: int, block: Block, count: int, width: int, limits: Limits, strip: Strip
) -> bool:
    """Add a table to its columns and to the whole; False, and nothing added, unless all its elements are finite.

    The table has ``width`` columns and ``count`` elements: its last row may be shorter.
    """
    rows = count // width
    partial = count - rows * width
    filled = width if rows > 0 else partial
    laned = rows // LANES * LANES
    clear(strip, limits.top)
    small = 0
    for row in range(0, laned, LANES):
        small += tally_rows(strip, block, row * width, LANES, width, limits)
    for row in range(laned, rows + 1):
        small += tally_rows(strip, block, row * width, 1, width if row < rows else partial, limits)
    tallied = total_of(strip, filled, count, small, limits.top)
    if not all_finite(tallied.low, tallied.high, limits):
        return False
    shorter, longer = 1.0 / rows, 1.0 / (rows + 1)
    for j in range(filled):
        strip.sums[np.uint64(j + TOTAL)] *= longer if j < partial else shorter
    for row in range(0, laned, LANES):
        power_rows(strip.sums, block.values, row * width, LANES, width)
    for row in range(laned, rows + 1):
        power_rows(strip.sums, block.values, row * width, 1, width if row < rows else partial)
    mean = tallied.total / count
    add_finite(whole, count, tallied, mean, powers_of(strip.sums, filled, rows, partial, mean))
    merge_columns(columns, place(unit), strip, filled, rows, partial)
    return True
