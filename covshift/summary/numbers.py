"""The row of numbers that stands for a tensor, and the law by which two rows become one.

Every count is below 2**53, so that one float64 row holds counts and moments exactly: rows of all layers form one
array, which is merged, copied from a device or sent between ranks as a whole. This module imports numpy only.

References
----------
T. F. Chan, G. H. Golub & R. J. LeVeque, Algorithms for computing the sample variance (1983), for two moments;
P. Pebay, Formulas for robust, one-pass parallel computation of covariances and arbitrary-order statistical moments,
SAND2008-6212 (2008), equations 3.1, for the third and fourth.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]
Value = TypeVar("Value", float, Numbers)

COUNTS = (
    "count",
    "example_count",
    "zero_count",
    "negative_count",
    "nan_count",
    "posinf_count",
    "neginf_count",
    "subnormal_count",
)
COLUMNS = (*COUNTS, "mean", "m2", "m3", "m4", "min", "max")
"""What a row holds, in this order: counts of elements (and of examples), moments and extremes of finite elements."""

COUNT, EXAMPLE_COUNT, ZERO, NEGATIVE, NAN, POSINF, NEGINF, SUBNORMAL = range(len(COUNTS))
MEAN, M2, M3, M4, MIN, MAX = range(len(COUNTS), len(COLUMNS))


def pooled_moments(
    n_a: Value, a: tuple[Value, Value, Value, Value], n_b: Value, b: tuple[Value, Value, Value, Value]
) -> tuple[Value, Value, Value, Value]:
    """Mean, m2, m3 and m4 of two streams together (Pebay 2008, equations 3.1).

    Parameters
    ----------
    n_a, n_b : float or ndarray
        Finite elements of each stream, not both 0.
    a, b : tuple
        Mean, and sums of second to fourth powers of deviations from it, of each.
    """
    (mean_a, m2_a, m3_a, m4_a), (mean_b, m2_b, m3_b, m4_b) = a, b
    share_a, share_b = n_a / (n_a + n_b), n_b / (n_a + n_b)
    delta = mean_b - mean_a
    cross = delta * delta * n_a * share_b
    return (
        mean_a + delta * share_b,
        m2_a + m2_b + cross,
        m3_a + m3_b + cross * delta * (share_a - share_b) + 3.0 * delta * (share_a * m2_b - share_b * m2_a),
        m4_a
        + m4_b
        + cross * delta * delta * (share_a**2 - share_a * share_b + share_b**2)
        + 6.0 * delta * delta * (share_a**2 * m2_b + share_b**2 * m2_a)
        + 4.0 * delta * (share_a * m3_b - share_b * m3_a),
    )


def finite_count(rows: Numbers) -> Numbers:
    """Finite elements of each row; ``rows`` has shape ``(..., 14)``, the result ``(...)``."""
    finite: Numbers = rows[..., COUNT] - rows[..., NAN] - rows[..., POSINF] - rows[..., NEGINF]
    return finite


def empty_rows(count: int) -> Numbers:
    """Rows of nothing, the identity of :func:`pooled`; shape ``(count, 14)``."""
    rows = np.zeros((count, len(COLUMNS)))
    rows[:, MIN], rows[:, MAX] = np.inf, -np.inf
    return rows


def pooled(a: Numbers, b: Numbers) -> Numbers:
    """Rows of both streams together, row by row; shapes ``(rows, 14)``."""
    n_a, n_b = finite_count(a), finite_count(b)
    rows = np.empty_like(a)
    rows[:, : len(COUNTS)] = a[:, : len(COUNTS)] + b[:, : len(COUNTS)]
    # A stream without finite elements has no mean to pool: the other's moments stand as they are, to the last bit.
    only_a, only_b = n_b == 0, n_a == 0
    with np.errstate(all="ignore"):
        moments = pooled_moments(n_a, tuple(a[:, MEAN:MIN].T), n_b, tuple(b[:, MEAN:MIN].T))
    rows[:, MEAN:MIN] = np.stack(moments, axis=1)
    rows[only_b, MEAN:MIN] = b[only_b, MEAN:MIN]
    rows[only_a, MEAN:MIN] = a[only_a, MEAN:MIN]
    rows[:, MIN] = np.minimum(a[:, MIN], b[:, MIN])
    rows[:, MAX] = np.maximum(a[:, MAX], b[:, MAX])
    return rows


def pooled_by_key(keys: NDArray[np.int64], rows: Numbers) -> tuple[NDArray[np.int64], Numbers]:
    """Rows with the same key pooled into one.

    Parameters
    ----------
    keys : ndarray of int64
        One a row, shape ``(rows,)``.
    rows : ndarray
        Shape ``(rows, 14)``.

    Returns
    -------
    tuple of ndarray
        Distinct keys, ascending, and one row for each.
    """
    distinct, place, repeats = np.unique(keys, return_inverse=True, return_counts=True)
    if len(distinct) == len(keys):
        return distinct, rows[np.argsort(keys)]
    pooled_rows = empty_rows(len(distinct))
    order = np.argsort(place, kind="stable")
    first = np.cumsum(repeats) - repeats
    for turn in range(int(repeats.max())):
        # The turn-th row of every key that has so many: one vectorised merge instead of one for each row.
        due = np.flatnonzero(repeats > turn)
        pooled_rows[due] = pooled(pooled_rows[due], rows[order[first[due] + turn]])
    return distinct, pooled_rows


def rescaled(rows: Numbers, scale: float) -> Numbers:
    """Rows of the same elements divided by ``scale``, a positive number; kinds and counts stay as they were seen."""
    divided = rows.copy()
    with np.errstate(over="ignore", under="ignore"):
        divided[:, [MEAN, MIN, MAX]] /= scale
        for power, column in enumerate((M2, M3, M4), start=2):
            divided[:, column] /= scale**power
    return divided
