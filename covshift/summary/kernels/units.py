"""Running statistics of every unit, and in how many examples it was active."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from covshift.summary.kernels.block import (
    NEGATIVE,
    NEGINF,
    POSINF,
    POSITIVE,
    Block,
    Limits,
    Whole,
    add_finite,
    all_finite,
    compact,
    float_of,
    powers,
    tally,
)
from covshift.summary.kernels.jit import exact
from covshift.summary.kernels.memory import EXAMPLES, INNER, OUTER, UNITS, Array, Part

STRIP = 128  # units stored together, and columns of a table: enough for vector registers, few enough for a block
FIELDS = 4

# Fields of a strip lie STRIP apart, a distance the compiler can see: it need not test whether they overlap.
SEEN, MEAN, REST, M2 = 0, STRIP, 2 * STRIP, 3 * STRIP
ABOVE, ZERO, ACTIVE = 0, STRIP, 2 * STRIP
LOWEST, HIGHEST, FLAG = 0, STRIP, 2 * STRIP


class Columns(NamedTuple):
    """Running statistics of every unit, or of every column of a table whose columns repeat the units.

    ``floats`` hold the number of finite elements seen, their mean and its rest, and m2; ``counts`` the positive and
    zero elements and the active examples; ``keys`` the extremes, and a flag that is not 0 where the current example has
    an element that is not zero. All have ``FIELDS`` fields for each strip of units.
    """

    floats: Array
    counts: Array
    keys: Array


@exact
def place(unit: int) -> int:
    """Where the fields of a unit begin."""
    return unit // STRIP * (FIELDS * STRIP) + unit % STRIP


@exact
def new_columns(units: int, top: Any, bits: Array) -> Columns:
    """Columns that have seen nothing."""
    size = (units + STRIP - 1) // STRIP * (FIELDS * STRIP)
    keys = np.zeros(size, bits.dtype)
    for strip in range(0, size, FIELDS * STRIP):
        keys[strip + LOWEST : strip + LOWEST + STRIP] = top
        keys[strip + HIGHEST : strip + HIGHEST + STRIP] = -top - 1
    return Columns(np.zeros(size), np.zeros(size, np.int64), keys)


@exact
def merge_unit(floats: Array, at: Any, kept: float, mean: float, rest: float, m2: float) -> None:
    """Add ``kept`` finite elements to the mean and m2 of the unit at ``at`` (Chan, Golub & LeVeque 1983)."""
    seen = floats[np.uint64(at + SEEN)]
    mean_a = floats[np.uint64(at + MEAN)] if seen > 0 else mean
    rest_a = floats[np.uint64(at + REST)] if seen > 0 else rest
    share = kept / (seen + kept)
    delta = (mean - mean_a) + (rest - rest_a)
    moved = rest_a + delta * share
    floats[np.uint64(at + SEEN)] = seen + kept
    floats[np.uint64(at + MEAN)] = mean_a + moved
    floats[np.uint64(at + REST)] = moved - ((mean_a + moved) - mean_a)
    floats[np.uint64(at + M2)] += m2 + delta * delta * seen * share


@exact
def merge_kinds(columns: Columns, at: Any, low: Any, high: Any, positive: int, zero: int) -> None:
    """Add extremes and counts to the unit at ``at``."""
    keys, counts = columns.keys, columns.counts
    keys[np.uint64(at + LOWEST)] = min(keys[np.uint64(at + LOWEST)], low)
    keys[np.uint64(at + HIGHEST)] = max(keys[np.uint64(at + HIGHEST)], high)
    counts[np.uint64(at + ABOVE)] += positive
    counts[np.uint64(at + ZERO)] += zero


@exact
def add_unit(whole: Whole, columns: Columns, unit: int, block: Block, count: int, limits: Limits) -> None:
    """Add a block of one unit to that unit and to the whole; may move the block's elements."""
    at = place(unit)
    tallied = tally(block, count, limits)
    if not all_finite(tallied.low, tallied.high, limits):
        totals = whole.totals
        posinf, neginf = totals[POSINF], totals[NEGINF]
        count = compact(block.bits, count, limits, totals)
        tallied = tally(block, count, limits)
        columns.counts[at + ABOVE] += totals[POSINF] - posinf
        totals[POSITIVE] += totals[POSINF] - posinf
        totals[NEGATIVE] += totals[NEGINF] - neginf
    if count == 0:
        return
    mean = tallied.total / count
    rest, m2 = add_finite(whole, count, tallied, mean, powers(block.values, count, mean))
    merge_unit(columns.floats, at, np.float64(count), mean, rest, m2)
    zero = count - tallied.positive - tallied.negative
    merge_kinds(columns, at, tallied.low, tallied.high, tallied.positive, zero)


@exact
def any_nonzero(bits: Array, start: int, count: int, top: Any) -> bool:
    """Whether any element of a run is not zero."""
    seen = bits.dtype.type(0)
    for i in range(count):
        seen |= bits[np.uint64(start + i)]
    return bool((seen & top) != 0)


@exact
def flag_rows(keys: Array, at: int, bits: Array, start: int, count: int, width: int, top: Any) -> None:
    """Set the flag of every column that has an element which is not zero, in rows of ``width``."""
    cast = bits.dtype.type
    for row in range(start, start + count, width):
        for j in range(min(width, start + count - row)):
            keys[np.uint64(at + FLAG + j)] |= cast(bits[np.uint64(row + j)] & top)


@exact
def close_example(columns: Columns, at: int, units: int, repeats: int) -> None:
    """Count an example as active for every unit with a flag; flags of a unit's repeats are joined by halving."""
    keys, counts = columns.keys, columns.counts
    while repeats > 1:
        half = (repeats + 1) // 2
        for j in range(at + FLAG, at + FLAG + (repeats - half) * units):
            keys[np.uint64(j)] |= keys[np.uint64(j + half * units)]
            keys[np.uint64(j + half * units)] = 0
        repeats = half
    for j in range(at, at + units):
        counts[np.uint64(j + ACTIVE)] += keys[np.uint64(j + FLAG)] != 0
        keys[np.uint64(j + FLAG)] = 0


@exact
def add_active(columns: Columns, bits: Array, part: Part, repeats: int, top: Any, last: bool) -> None:
    """Note in which examples of a block each unit has an element that is not zero; ``last`` closes the examples."""
    segment, width, at = part.positions * part.units, part.units * repeats, place(part.unit)
    for example in range(part.examples):
        if width == 1:
            columns.keys[at + FLAG] |= any_nonzero(bits, example * segment, segment, top)
        else:
            flag_rows(columns.keys, at, bits, example * segment, segment, width, top)
        if last:
            close_example(columns, at, part.units, repeats)


@exact
def join_repeats(columns: Columns, units: int, width: int) -> None:
    """Add the columns of a table that repeat the units to the units' own."""
    floats, counts, keys = columns
    for j in range(units, width):
        k = j % units
        if floats[j + SEEN] > 0:
            merge_unit(floats, k, floats[j + SEEN], floats[j + MEAN], floats[j + REST], floats[j + M2])
        merge_kinds(columns, k, keys[j + LOWEST], keys[j + HIGHEST], counts[j + ABOVE], counts[j + ZERO])


@exact
def write_units(columns: Columns, plan: Array, top: Any, block: Block, integers: Array, floats: Array) -> None:
    """Fill the arrays of a :class:`covshift.summary.UnitSummary`, a row for each field."""
    positions = plan[OUTER] * plan[INNER]
    count = plan[EXAMPLES] * positions
    for unit in range(plan[UNITS]):
        at = place(unit)
        seen, zero = columns.floats[at + SEEN], columns.counts[at + ZERO]
        integers[0, unit] = count
        integers[1, unit] = np.int64(seen)
        integers[2, unit] = zero
        integers[3, unit] = columns.counts[at + ABOVE]
        integers[4, unit] = columns.counts[at + ACTIVE] if positions > 1 else count - zero
        floats[0, unit] = columns.floats[at + MEAN] + columns.floats[at + REST]
        floats[1, unit] = columns.floats[at + M2]
        floats[2, unit] = float_of(columns.keys[at + LOWEST], top, block) if seen > 0 else np.inf
        floats[3, unit] = float_of(columns.keys[at + HIGHEST], top, block) if seen > 0 else -np.inf
