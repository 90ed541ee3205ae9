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


class Columns(NamedTuple):
    """Running statistics, an entry for each unit, or for each column of a table whose columns repeat the units.

    ``mean``, ``rest`` and ``m2`` are of the ``seen`` finite elements, ``low`` and ``high`` are keys; ``active`` counts
    examples, and ``flag`` is not 0 where the current one has an element that is not zero.
    """

    seen: Array
    mean: Array
    rest: Array
    m2: Array
    positive: Array
    zero: Array
    active: Array
    low: Array
    high: Array
    flag: Array


@exact
def new_columns(size: int, top: Any, bits: Array) -> Columns:
    """Columns that have seen nothing."""
    low, high = np.empty(size, bits.dtype), np.empty(size, bits.dtype)
    low[:] = top
    high[:] = -top - 1
    seen, mean, rest, m2 = np.zeros(size), np.zeros(size), np.zeros(size), np.zeros(size)
    positive, zero, active = np.zeros(size, np.int64), np.zeros(size, np.int64), np.zeros(size, np.int64)
    return Columns(seen, mean, rest, m2, positive, zero, active, low, high, np.zeros(size, bits.dtype))


@exact
def merge_unit(columns: Columns, at: Any, kept: float, mean: float, rest: float, m2: float) -> None:
    """Add ``kept`` finite elements to the mean and m2 of column ``at`` (Chan, Golub & LeVeque 1983)."""
    seen = columns.seen[at]
    mean_a = columns.mean[at] if seen > 0 else mean
    rest_a = columns.rest[at] if seen > 0 else rest
    share = kept / (seen + kept)
    delta = (mean - mean_a) + (rest - rest_a)
    moved = rest_a + delta * share
    columns.mean[at] = mean_a + moved
    columns.rest[at] = moved - (columns.mean[at] - mean_a)
    columns.m2[at] += m2 + delta * delta * seen * share
    columns.seen[at] = seen + kept


@exact
def add_unit(whole: Whole, columns: Columns, at: int, block: Block, count: int, limits: Limits) -> None:
    """Add a block of one unit to that unit and to the whole; may move the block's elements."""
    tallied = tally(block, count, limits)
    totals = whole.totals
    if not all_finite(tallied.low, tallied.high, limits):
        posinf, neginf = totals[POSINF], totals[NEGINF]
        count = compact(block.bits, count, limits, totals)
        tallied = tally(block, count, limits)
        columns.positive[at] += totals[POSINF] - posinf
        totals[POSITIVE] += totals[POSINF] - posinf
        totals[NEGATIVE] += totals[NEGINF] - neginf
    if count == 0:
        return
    mean = tallied.total / count
    rest, m2 = add_finite(whole, count, tallied, mean, powers(block.values, count, mean))
    merge_unit(columns, at, np.float64(count), mean, rest, m2)
    columns.low[at], columns.high[at] = min(columns.low[at], tallied.low), max(columns.high[at], tallied.high)
    columns.positive[at] += tallied.positive
    columns.zero[at] += count - tallied.positive - tallied.negative


@exact
def any_nonzero(bits: Array, start: int, count: int, top: Any) -> bool:
    """Whether any element of a run is not zero."""
    seen = bits.dtype.type(0)
    for i in range(count):
        seen |= bits[np.uint64(start + i)]
    return bool((seen & top) != 0)


@exact
def flag_rows(flag: Array, at: int, bits: Array, start: int, count: int, width: int, top: Any) -> None:
    """Set the flag of every column that has an element which is not zero, in rows of ``width``."""
    cast = bits.dtype.type
    for row in range(start, start + count, width):
        for j in range(min(width, start + count - row)):
            flag[np.uint64(at + j)] |= cast(bits[np.uint64(row + j)] & top)


@exact
def close_example(columns: Columns, at: int, units: int, repeats: int) -> None:
    """Count an example as active for every unit with a flag; flags of a unit's repeats are joined by halving."""
    flag, active = columns.flag, columns.active
    while repeats > 1:
        half = (repeats + 1) // 2
        for j in range(at, at + (repeats - half) * units):
            flag[np.uint64(j)] |= flag[np.uint64(j + half * units)]
            flag[np.uint64(j + half * units)] = 0
        repeats = half
    for j in range(at, at + units):
        active[np.uint64(j)] += flag[np.uint64(j)] != 0
        flag[np.uint64(j)] = 0


@exact
def add_active(columns: Columns, bits: Array, part: Part, repeats: int, top: Any, last: bool) -> None:
    """Note in which examples of a block each unit has an element that is not zero; ``last`` closes the examples."""
    segment, width = part.positions * part.units, part.units * repeats
    for example in range(part.examples):
        if width == 1:
            columns.flag[part.unit] |= any_nonzero(bits, example * segment, segment, top)
        else:
            flag_rows(columns.flag, part.unit, bits, example * segment, segment, width, top)
        if last:
            close_example(columns, part.unit, part.units, repeats)


@exact
def join_repeats(columns: Columns, units: int) -> None:
    """Add the columns of a table that repeat the units to the units' own."""
    for j in range(units, columns.seen.size):
        k = j % units
        if columns.seen[j] > 0:
            merge_unit(columns, k, columns.seen[j], columns.mean[j], columns.rest[j], columns.m2[j])
        columns.positive[k] += columns.positive[j]
        columns.zero[k] += columns.zero[j]
        columns.low[k] = min(columns.low[k], columns.low[j])
        columns.high[k] = max(columns.high[k], columns.high[j])


@exact
def write_units(columns: Columns, plan: Array, top: Any, block: Block, integers: Array, floats: Array) -> None:
    """Fill the arrays of a :class:`covshift.summary.UnitSummary`, a row for each field."""
    positions = plan[OUTER] * plan[INNER]
    count = plan[EXAMPLES] * positions
    for k in range(plan[UNITS]):
        seen = columns.seen[k]
        integers[0, k] = count
        integers[1, k] = np.int64(seen)
        integers[2, k] = columns.zero[k]
        integers[3, k] = columns.positive[k]
        integers[4, k] = columns.active[k] if positions > 1 else count - columns.zero[k]
        floats[0, k] = columns.mean[k] + columns.rest[k]
        floats[1, k] = columns.m2[k]
        floats[2, k] = float_of(columns.low[k], top, block) if seen > 0 else np.inf
        floats[3, k] = float_of(columns.high[k], top, block) if seen > 0 else -np.inf
