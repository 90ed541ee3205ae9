"""Summaries of tensors in CPU memory: from a torch tensor to the one kernel that walks its memory, and back.

A tensor is described to the kernel by its address and a plan: lengths and steps of its axes. What cannot be described
so is refused (None is returned), by its layout alone: other devices, subclasses, lazily negated tensors, tensors of
2**32 elements and more, and tensors whose positions do not join into two axes. Strides of zero, and strides that
overlap, are read like any others.

numba is imported, and its kernels loaded or compiled, when the first tensor arrives or :func:`prepare` is called.
"""

from __future__ import annotations

import logging
import os
import time
import warnings
from collections.abc import Iterable
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from covshift.exceptions import CovshiftWarning, InvalidArgumentError
from covshift.grid import FLOAT32, FLOAT64, FloatFormat, Grid
from covshift.summary.numbers import COLUMNS
from covshift.summary.summary import Histogram, Summary, UnitSummary, example_count

Integers = NDArray[np.int64]

FEWEST = 64  # elements of a unit below which units are taken side by side, whatever their order in memory
MOST = 2**32  # elements that the kernel's 32-bit bin tables can count

_logger = logging.getLogger("covshift")


class Form(NamedTuple):
    """How a dtype is read: the kernel's name for it, the format it is computed in, and its smallest normal number."""

    kind: int
    layout: FloatFormat
    normal: int
    like: tuple[NDArray[Any], NDArray[Any]]


_SINGLE = np.empty(0, np.int32), np.empty(0, np.float32)
_DOUBLE = np.empty(0, np.int64), np.empty(0, np.float64)

FORMS = {
    torch.float32: Form(0, FLOAT32, 1 << 23, _SINGLE),
    torch.bfloat16: Form(1, FLOAT32, 1 << 23, _SINGLE),
    torch.float16: Form(2, FLOAT32, (127 - 14) << 23, _SINGLE),
    torch.float64: Form(0, FLOAT64, 1 << 52, _DOUBLE),
}

_NO_BINS = np.zeros(3, np.int64)
_NO_COUNTS = np.zeros((1, 0), np.int64)
_NO_UNITS = np.zeros((5, 0), np.int64), np.zeros((4, 0))


class Walk(NamedTuple):
    """How to summarise tensors of one shape, strides and dtype; made by :func:`walk_of`."""

    kernel: Any
    plan: Integers
    bins: Integers
    grid: Grid | None
    groups: int
    grouped: bool
    units: int | None
    by_example: bool
    like: tuple[NDArray[Any], NDArray[Any]]

    def __call__(
        self, tensor: torch.Tensor, rows: NDArray[np.float64], row: int
    ) -> tuple[Histogram | None, UnitSummary | None]:
        """Fill ``rows[row]``, as :mod:`covshift.summary.numbers` says, and return what is not of fixed size.

        Raises
        ------
        InvalidArgumentError
            If the tensor has elements but no memory.
        """
        address = tensor.data_ptr()
        if not address:
            raise InvalidArgumentError(
                f"tensor: shape {tuple(tensor.shape)}, but its memory has been released; summarise it before it is "
                "freed"
            )
        grid, units = self.grid, self.units
        if grid is None and units is None:
            self.kernel(address, self.plan, self.bins, _NO_COUNTS, *_NO_UNITS, rows, row, *self.like)
            return None, None
        counts = np.zeros((self.groups, grid.size), np.int64) if grid is not None else _NO_COUNTS
        integers, floats = _NO_UNITS
        if units is not None:
            integers, floats = np.empty((5, units), np.int64), np.empty((4, units))
        grouped = counts if self.grouped else counts[:1]
        self.kernel(address, self.plan, self.bins, grouped, integers, floats, rows, row, *self.like)
        if not self.by_example:
            integers[4] = 0
        histogram = Histogram(grid, counts) if grid is not None else None
        return histogram, UnitSummary(*integers, *floats) if units is not None else None


def walk_of(
    tensor: torch.Tensor,
    *,
    unit_axis: int | None,
    example_axis: int | None,
    grid: Grid | None,
    groups: int,
    units: bool,
) -> Walk | None:
    """How to summarise ``tensor`` and all others of its shape, strides and dtype; None where no kernel can walk it.

    Parameters as in :func:`covshift.summary.summarize`.
    """
    unit = unit_axis if units else None
    example = example_axis if unit is not None or (grid is not None and groups > 1) else None
    examples = example_count(tensor.shape, example_axis)
    binned = groups if grid is not None else 1
    plan = plan_walk(tensor.shape, tensor.stride(), tensor.dtype, unit, example, binned, examples)
    form = FORMS[tensor.dtype]
    double = form.layout is FLOAT64
    kernel = _compiled(double) if plan is not None else None
    if plan is None or kernel is None:
        return None
    return Walk(
        kernel,
        plan,
        bin_fields(grid, double) if grid is not None else _NO_BINS,
        grid,
        groups,
        example is not None,
        tensor.shape[unit] if unit is not None else None,
        example_axis is not None,
        form.like,
    )


def summarize_by_kernel(
    tensor: torch.Tensor,
    *,
    unit_axis: int | None,
    example_axis: int | None,
    grid: Grid | None,
    groups: int,
    units: bool,
) -> Summary | None:
    """Summary of one tensor, or None where no kernel can walk it; parameters as in :func:`covshift.summary.summarize`.

    Raises
    ------
    InvalidArgumentError
        If the tensor has elements but no memory.
    """
    if not can_walk(tensor):
        return None
    if not tensor.numel():
        return Summary()
    walk = walk_of(tensor, unit_axis=unit_axis, example_axis=example_axis, grid=grid, groups=groups, units=units)
    if walk is None:
        return None
    rows = np.empty((1, len(COLUMNS)))
    histogram, by_unit = walk(tensor, rows, 0)
    return Summary.of(rows[0], histogram=histogram, units=by_unit)


def can_walk(tensor: torch.Tensor) -> bool:
    """Whether the elements of a tensor lie in memory as they are, and few enough for 32-bit bin tables."""
    plain = type(tensor) in (torch.Tensor, torch.nn.Parameter) and tensor.is_cpu and not tensor.is_neg()
    return plain and tensor.numel() < MOST


@lru_cache(maxsize=4096)
def plan_walk(
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    dtype: torch.dtype,
    unit_axis: int | None,
    example_axis: int | None,
    groups: int,
    example_count: int = 0,
) -> Integers | None:
    """How to walk a tensor: fields as in :mod:`covshift.summary.kernels.memory`; None where there is no way.

    All axes but those of examples and units are positions, which are joined into an outer and an inner axis. Where
    neither examples nor units are asked for, positions may take their place.
    """
    named = [None if axis is None else axis % len(shape) for axis in (example_axis, unit_axis)]
    positions = _joined((shape[axis], strides[axis]) for axis in range(len(shape)) if axis not in named)
    (examples, example_step), (units, unit_step) = (
        (shape[axis], strides[axis]) if axis is not None else positions.pop(0) if len(positions) > 2 else (1, 0)
        for axis in named
    )
    if len(positions) > 2:
        return None
    (outer, outer_step), (inner, inner_step) = [(1, 0)] * (2 - len(positions)) + positions
    finest = inner_step if positions else example_step
    together = -(-examples // groups) * outer * inner
    across = unit_axis is not None and units > 1 and (unit_step < finest or together < FEWEST)
    lengths_and_steps = examples, units, outer, inner, example_step, unit_step, outer_step, inner_step
    form = FORMS[dtype]
    patterns = form.kind, form.layout.magnitude_mask, form.layout.infinity, form.normal
    return np.array([*lengths_and_steps, across, *patterns, example_count], np.int64)


def _joined(axes: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Axes as (length, step), longest step first, neighbours in memory joined; order among positions has no meaning."""
    joined: list[tuple[int, int]] = []
    for length, step in sorted(axes, key=lambda axis: -axis[1]):
        if length == 1:
            continue
        if joined and joined[-1][1] == step * length:
            joined[-1] = joined[-1][0] * length, step
        else:
            joined.append((length, step))
    return joined


@lru_cache(maxsize=64)
def bin_fields(grid: Grid, double: bool) -> Integers:
    """Shift, first octave and bins of one side, for the kernel's integer arithmetic."""
    layout = FLOAT64 if double else FLOAT32
    first = (grid.min_exponent + layout.exponent_bias) << grid.mantissa_bits
    return np.array([layout.mantissa_width - grid.mantissa_bits, first, grid.side], np.int64)


def prepare(dtype: torch.dtype = torch.float32) -> None:
    """Load the kernels of a dtype, or compile them, now instead of in the first recorded step.

    Parameters
    ----------
    dtype : torch.dtype, default torch.float32
        float32, bfloat16 and float16 share their kernels; float64 has its own.
    """
    _compiled(FORMS[dtype].layout is FLOAT64)


@cache
def _compiled(double: bool) -> Any:
    """The kernel, compiled for one of its two formats, or None without numba; the log tells what a compilation cost."""
    walk = _kernel()
    if walk is None:
        return None
    compiled, start = sum(walk.stats.cache_misses.values()), time.perf_counter()
    one = torch.ones(1, dtype=torch.float64 if double else torch.float32, device="cpu")
    plan = plan_walk(one.shape, one.stride(), one.dtype, None, None, 1)
    like = _DOUBLE if double else _SINGLE
    walk(one.data_ptr(), plan, _NO_BINS, _NO_COUNTS, *_NO_UNITS, np.empty((1, len(COLUMNS))), 0, *like)
    if sum(walk.stats.cache_misses.values()) > compiled:
        seconds, kept = time.perf_counter() - start, walk.stats.cache_path or "this process only"
        _logger.warning("covshift compiled its %s kernels in %.0f s; they are kept in %s", one.dtype, seconds, kept)
    return walk


@cache
def _kernel() -> Any:
    """The kernel that numba will compile, or None with a warning where numba cannot be imported."""
    try:
        from covshift.summary.kernels import walk
    except ImportError as error:
        warnings.warn(
            f"numba cannot be imported ({error}): tensors are summarised by torch operations, some fifty times slower; "
            "install numba",
            CovshiftWarning,
            stacklevel=2,
        )
        return None
    if not keep_compiled(walk.walk, Path(walk.__file__)):
        warnings.warn(
            "numba finds no cache directory that it can write to: kernels are compiled, for about ten seconds, in "
            "every process; set the environment variable NUMBA_CACHE_DIR to a directory",
            CovshiftWarning,
            stacklevel=2,
        )
    return walk.walk


def is_available() -> bool:
    """Whether there are kernels at all."""
    return _kernel() is not None


def keep_compiled(function: Any, source: Path) -> bool:
    """Have numba keep what it compiles of a kernel; whether there is a directory to keep it in."""
    from covshift.summary.kernels import jit

    writable = can_write(jit.cache_directories(source))
    if writable:
        function.enable_caching()
    return writable


def can_write(directories: Iterable[Path]) -> bool:
    """Whether any of the directories can be written to, or made where it is missing."""
    existing = (next(path for path in (each, *each.parents) if path.exists()) for each in directories)
    return any(path.is_dir() and os.access(path, os.W_OK) for path in existing)
