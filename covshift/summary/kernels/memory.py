"""From a tensor's memory to a block: any strides, and 16-bit floats widened exactly to float32."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from covshift.summary.kernels.jit import array_at, exact, pointer, reinterpret

Array = NDArray[Any]

NATIVE, BFLOAT16, FLOAT16 = range(3)

# Places in a plan, an array of int64 made by covshift.summary.cpu.plan_walk. Lengths and steps count elements.
EXAMPLES, UNITS, OUTER, INNER, EXAMPLE_STEP, UNIT_STEP, OUTER_STEP, INNER_STEP = range(8)
ACROSS, KIND, TOP, INFINITY, NORMAL, EXAMPLE_COUNT = range(8, 14)


class Part(NamedTuple):
    """Which part of the tensor a block holds: first and number of examples, positions and units."""

    example: int
    examples: int
    position: int
    positions: int
    unit: int
    units: int


@exact
def copy_run(source: Array, start: int, step: int, target: Array, at: int, to_step: int, count: int) -> None:
    """Copy ``count`` items. Indices are unsigned, for numba would test signed ones for counting from the end."""
    cast = target.dtype.type
    if step == 1 and to_step == 1:
        for i in range(count):
            target[np.uint64(at + i)] = cast(source[np.uint64(start + i)])
    else:
        for i in range(count):
            target[np.uint64(at + i * to_step)] = cast(source[np.uint64(start + i * step)])


@exact
def copy_runs(source: Array, start: int, steps: Any, target: Array, at: int, to_steps: Any, counts: Any) -> None:
    """Copy ``counts`` of (tables, runs, items), which lie ``steps`` apart in the source, ``to_steps`` in the target."""
    for table in range(counts[0]):
        for run in range(counts[1]):
            first = start + table * steps[0] + run * steps[1]
            to = at + table * to_steps[0] + run * to_steps[1]
            copy_run(source, first, steps[2], target, to, to_steps[2], counts[2])


@exact
def copy_tables(
    address: int, native: bool, start: int, steps: Any, target: Array, at: int, counts: Any, gap: int
) -> None:
    """Copy ``counts`` of (tables, rows, units) to C-contiguous tables ``gap`` apart, by whichever axis lies closer."""
    tables, rows, units = counts
    table_step, row_step, step = steps
    to_steps = gap, units, 1
    if row_step == units * step:
        steps, counts = (table_step, 0, step), (tables, 1, rows * units)
    elif units == 1 or row_step < step:
        steps, counts, to_steps = (table_step, step, row_step), (tables, units, rows), (gap, 1, units)
    if native:
        copy_runs(array_at(pointer(address, target.dtype), 1), start, steps, target, at, to_steps, counts)
    else:
        copy_runs(array_at(pointer(address, np.uint16), 1), start, steps, target, at, to_steps, counts)


@exact
def copy_part(address: int, plan: Array, part: Part, stride: int, target: Array) -> None:
    """Copy a part of the tensor, every ``stride``-th example, as a table of (example, position) by unit."""
    native, inner, step = plan[KIND] == NATIVE, plan[INNER], plan[UNIT_STEP]
    example_step = stride * plan[EXAMPLE_STEP]
    start = part.example * plan[EXAMPLE_STEP] + part.unit * step
    if plan[OUTER] * inner == 1:
        copy_tables(address, native, start, (0, example_step, step), target, 0, (1, part.examples, part.units), 0)
        return
    gap = part.positions * part.units
    done = 0
    while done < part.positions:
        outer = (part.position + done) // inner
        offset = part.position + done - outer * inner
        rows = min(part.positions - done, inner - offset)
        first = start + outer * plan[OUTER_STEP] + offset * plan[INNER_STEP]
        steps, counts = (example_step, plan[INNER_STEP], step), (part.examples, rows, part.units)
        copy_tables(address, native, first, steps, target, done * part.units, counts, gap)
        done += rows


@exact
def widen_bfloat16(bits: Array, count: int) -> None:
    """From bfloat16 to float32 bits, in place."""
    cast = bits.dtype.type
    for i in range(count):
        bits[i] = cast(bits[i] << 16)


@exact
def widen_float16(bits: Array, count: int) -> None:
    """From float16 to float32 bits, in place; a subnormal is its mantissa as an integer, times 2**-24."""
    cast = bits.dtype.type
    for i in range(count):
        half = bits[i]
        magnitude = cast(half & 0x7FFF)
        wide = cast(cast(magnitude << 13) + cast(112 << 23))
        wide = cast(wide + cast(112 << 23)) if magnitude >= 0x7C00 else wide
        subnormal = cast(reinterpret(np.float32(magnitude), np.int32) - cast(24 << 23)) if magnitude > 0 else cast(0)
        bits[i] = cast((subnormal if magnitude < 0x400 else wide) | cast(cast(half & 0x8000) << 16))


@exact
def load(address: int, plan: Array, part: Part, stride: int, bits: Array) -> int:
    """Fill a block's bits from the tensor at ``address``; returns how many elements it holds."""
    copy_part(address, plan, part, stride, bits)
    count = part.examples * part.positions * part.units
    if plan[KIND] == BFLOAT16:
        widen_bfloat16(bits, count)
    elif plan[KIND] == FLOAT16:
        widen_float16(bits, count)
    return count
