"""Bins of a block, counted by integer arithmetic on its bits."""

from __future__ import annotations

import numpy as np

from covshift.summary.kernels.block import Limits
from covshift.summary.kernels.jit import exact, shifted
from covshift.summary.kernels.memory import Array

COPIES = 4  # tables written in turn: a run of equal values must not wait for its own last store
RUN = 1024  # elements whose bins are found before they are counted


@exact
def locate(bits: Array, start: int, count: int, limits: Limits, grid: Array, ids: Array) -> None:
    """Bin ids as :meth:`covshift.grid.Grid.ids` defines them; ``grid`` holds (shift, first octave, side)."""
    cast = bits.dtype.type
    first, side = cast(grid[1]), cast(grid[2])
    zero, nan = cast(side + 3), cast(2 * side + 7)
    for i in range(count):
        b = bits[np.uint64(start + i)]
        magnitude = cast(b & limits.top)
        rank = cast(shifted(magnitude, grid[0]) - first)
        rank = cast(min(max(rank, cast(-1)), side) + 2)
        rank = cast(0) if magnitude == 0 else rank
        rank = cast(side + 3) if magnitude == limits.infinity else rank
        rank = cast(zero - rank) if b < 0 else cast(zero + rank)
        ids[i] = np.int32(nan if magnitude > limits.infinity else rank)


@exact
def count_bins(
    bits: Array, count: int, limits: Limits, grid: Array, ids: Array, tables: Array, start: int, size: int
) -> None:
    """Add a block's bins to the ``COPIES`` tables of its example group, of ``size`` bins each, from ``start``."""
    one = np.uint32(1)
    for at in range(0, count, RUN):
        run = min(RUN, count - at)
        locate(bits, at, run, limits, grid, ids)
        whole = run // COPIES * COPIES
        for i in range(0, whole, COPIES):
            for copy in range(COPIES):
                tables[np.uint64(start + copy * size + ids[np.uint64(i + copy)])] += one
        for i in range(whole, run):
            tables[np.uint64(start + ids[np.uint64(i)])] += one


@exact
def collect_bins(tables: Array, counts: Array) -> None:
    """Add what the tables hold to ``counts``, shape ``(groups, bins)``."""
    groups, size = counts.shape
    for row in range(groups * COPIES):
        for i in range(size):
            counts[row // COPIES, i] += tables[np.uint64(row * size + i)]
