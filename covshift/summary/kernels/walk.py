"""The walk through a tensor, block by block: the one kernel that Python calls."""

from __future__ import annotations

import numpy as np

from covshift.summary.kernels.bins import COPIES, RUN, collect_bins, count_bins
from covshift.summary.kernels.block import (
    HIGH,
    LOW,
    NAN,
    NEGATIVE,
    NEGINF,
    POSINF,
    POSITIVE,
    SUBNORMAL,
    Block,
    Limits,
    Whole,
    float_of,
)
from covshift.summary.kernels.jit import entry, exact
from covshift.summary.kernels.memory import (
    EXAMPLE_COUNT,
    EXAMPLES,
    INFINITY,
    INNER,
    NORMAL,
    OUTER,
    TOP,
    UNITS,
    Array,
    Part,
    copy_run,
    load,
)
from covshift.summary.kernels.table import Strip, add_table, new_strip, tiling
from covshift.summary.kernels.units import Columns, add_active, add_unit, join_repeats, new_columns, write_units

BLOCK_BYTES = 16384  # half of a first-level cache; bin tables and columns need the other half


@exact
def new_block(like_bits: Array, like: Array) -> Block:
    """Room for a block."""
    bits = np.empty(BLOCK_BYTES // like_bits.itemsize, like_bits.dtype)
    return Block(bits, bits.view(like.dtype))


@exact
def add_block(
    whole: Whole, columns: Columns, block: Block, spare: Block, part: Part, repeats: int, limits: Limits, strip: Strip
) -> None:
    """Add the statistics of a block to its units and to the whole; may move the block's elements."""
    rows = part.examples * part.positions
    width = part.units * repeats
    if width == 1:
        add_unit(whole, columns, part.unit, block, rows, limits)
    elif not add_table(whole, columns, part.unit, block, rows * part.units, width, limits, strip):
        for j in range(part.units):
            copy_run(block.bits, j, part.units, spare.bits, 0, 1, rows)
            add_unit(whole, columns, part.unit + j, spare, rows, limits)


@exact
def write_numbers(whole: Whole, plan: Array, limits: Limits, block: Block, numbers: Array) -> None:
    """Fill a row of numbers, in the order of :data:`covshift.summary.numbers.COLUMNS`."""
    totals, moments = whole
    count = plan[EXAMPLES] * plan[UNITS] * plan[OUTER] * plan[INNER]
    finite = moments[0] > 0
    numbers[0], numbers[1] = count, plan[EXAMPLE_COUNT]
    numbers[2] = count - totals[POSITIVE] - totals[NEGATIVE] - totals[NAN]
    numbers[3], numbers[4] = totals[NEGATIVE], totals[NAN]
    numbers[5], numbers[6], numbers[7] = totals[POSINF], totals[NEGINF], totals[SUBNORMAL]
    numbers[8], numbers[9] = moments[1] + moments[2], moments[3]
    numbers[10], numbers[11] = moments[4], moments[5]
    numbers[12] = float_of(totals[LOW], limits.top, block) if finite else np.inf
    numbers[13] = float_of(totals[HIGH], limits.top, block) if finite else -np.inf


@entry
def walk(
    address: int,
    plan: Array,
    grid: Array,
    counts: Array,
    integers: Array,
    floats: Array,
    numbers: Array,
    row: int,
    like_bits: Array,
    like: Array,
) -> None:
    """Summarise the tensor at ``address``.

    Examples are taken in groups, ``i mod groups``, so that all bins of a block belong to one group's tables.

    Parameters
    ----------
    address : int
        Of the element with index 0 along every axis.
    plan : ndarray of int64
        Lengths and steps, in elements, of the tensor's axes, and patterns of its dtype; see
        :mod:`covshift.summary.kernels.memory`.
    grid : ndarray of int64
        Shift, first octave and bins of one side; not looked at where ``counts`` has no bins.
    counts : ndarray of int64
        Zeros of shape ``(groups, bins)``, to which the histogram is added. No bins, no histogram.
    integers, floats : ndarray
        Shapes ``(5, units)`` and ``(4, units)``, filled with the fields of a UnitSummary, or ``(5, 0)`` and ``(4, 0)``.
    numbers : ndarray of float64
        Its row ``row`` is filled, in the order of :data:`covshift.summary.numbers.COLUMNS`.
    like_bits, like : ndarray
        Empty; their dtypes are the integer and float to compute in: int32 and float32, or int64 and float64.
    """
    cast = like_bits.dtype.type
    limits = Limits(cast(plan[TOP]), cast(plan[INFINITY]), cast(plan[NORMAL]))
    block, spare = new_block(like_bits, like), new_block(like_bits, like)
    whole = Whole(np.zeros(8, np.int64), np.zeros(6))
    whole.totals[LOW], whole.totals[HIGH] = limits.top, -limits.top - 1
    groups, size = counts.shape
    ids, tables = np.empty(RUN, np.int32), np.zeros(groups * COPIES * size, np.uint32)
    examples, units, positions = plan[EXAMPLES], plan[UNITS], plan[OUTER] * plan[INNER]
    tile, repeats, rows = tiling(plan, block.bits.size)
    columns = new_columns(max(units, tile * repeats), limits.top, like_bits)
    strip = new_strip(like_bits)
    batch, chunk = max(1, rows // positions), min(positions, rows)
    for first in range(0, examples, batch * groups):
        for group in range(min(groups, examples - first)):
            taken = min(batch, (examples - first - group + groups - 1) // groups)
            for position in range(0, positions, chunk):
                length = min(chunk, positions - position)
                for unit in range(0, units, tile):
                    part = Part(first + group, taken, position, length, unit, min(tile, units - unit))
                    count = load(address, plan, part, groups, block.bits)
                    if size:
                        count_bins(block.bits, count, limits, grid, ids, tables, group * COPIES * size, size)
                    if positions > 1 and integers.size:
                        last = position + length == positions
                        add_active(columns, block.bits, part, repeats, limits.top, last)
                    add_block(whole, columns, block, spare, part, repeats, limits, strip)
    collect_bins(tables, counts)
    if integers.size:
        join_repeats(columns, units, tile * repeats)
        write_units(columns, plan, limits.top, block, integers, floats)
    write_numbers(whole, plan, limits, block, numbers[row])
