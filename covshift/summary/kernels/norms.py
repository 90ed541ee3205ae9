"""Sums over many small arrays in one call: squares, zeros, non-finite elements, and squares of changes.

A deep net has hundreds of parameters of a few elements each; one call for each would cost more than the sums.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from covshift.summary.kernels.jit import array_at, entry, pointer, reordered
from covshift.summary.kernels.memory import Array

INFINITY, MAGNITUDE = 0x7F800000, 0x7FFFFFFF


@reordered
def sum_squares(values: Array, count: int) -> float:
    """Sum of squares, in float64."""
    total = 0.0
    for i in range(count):
        wide = np.float64(values[np.uint64(i)])
        total += wide * wide
    return total


@reordered
def count_kinds(bits: Array, count: int) -> tuple[Any, Any]:
    """Elements that are zero, and elements that are NaN or infinite."""
    zeros, others = np.int64(0), np.int64(0)
    for i in range(count):
        magnitude = np.int32(bits[np.uint64(i)] & np.int32(MAGNITUDE))
        zeros += magnitude == 0
        others += magnitude >= np.int32(INFINITY)
    return zeros, others


@reordered
def sum_squared_changes(values: Array, step: int, kept: Array, start: int, count: int) -> float:
    """Sum of squared differences between every ``step``-th value and what was kept of it, in float64."""
    total = 0.0
    for i in range(count):
        change = np.float64(values[np.uint64(i * step)]) - np.float64(kept[np.uint64(start + i)])
        total += change * change
    return total


@reordered
def sum_products(first: Array, start: int, second: Array, other: int, count: int) -> tuple[Any, Any, Any]:
    """Sums of products of two runs of elements, and of the squares of each, in float64."""
    both, one, two = 0.0, 0.0, 0.0
    for i in range(count):
        a, b = np.float64(first[np.uint64(start + i)]), np.float64(second[np.uint64(other + i)])
        both += a * b
        one += a * a
        two += b * b
    return both, one, two


@entry
def measure(addresses: Array, sizes: Array, results: Array, like: Array) -> None:
    """Fill ``results``, shape ``(arrays, 3)``: sum of squares, zeros, non-finite elements of each float32 array.

    ``like`` is empty and of dtype float32.
    """
    for k in range(len(sizes)):
        values = array_at(pointer(addresses[k], like.dtype), 1)
        results[k, 0] = sum_squares(values, sizes[k])
        bits: Any = array_at(pointer(addresses[k], np.int32), 1)
        results[k, 1], results[k, 2] = count_kinds(bits, sizes[k])


@entry
def keep(addresses: Array, counts: Array, steps: Array, starts: Array, kept: Array) -> None:
    """Copy every ``steps[k]``-th of each float32 array's elements, ``counts[k]`` of them, to ``starts[k]``."""
    for k in range(len(counts)):
        values = array_at(pointer(addresses[k], kept.dtype), 1)
        for i in range(counts[k]):
            kept[np.uint64(starts[k] + i)] = values[np.uint64(i * steps[k])]


@entry
def measure_changes(addresses: Array, counts: Array, steps: Array, starts: Array, kept: Array, results: Array) -> None:
    """Fill ``results``, shape ``(arrays,)``: sum of squared differences to what :func:`keep` has copied."""
    for k in range(len(counts)):
        values = array_at(pointer(addresses[k], kept.dtype), 1)
        results[k] = sum_squared_changes(values, steps[k], kept, starts[k], counts[k])


@entry
def measure_products(first: Array, starts: Array, second: Array, others: Array, counts: Array, results: Array) -> None:
    """Fill ``results``, shape ``(arrays, 3)``: :func:`sum_products` of what :func:`keep` has copied twice."""
    for k in range(len(counts)):
        results[k, 0], results[k, 1], results[k, 2] = sum_products(first, starts[k], second, others[k], counts[k])
