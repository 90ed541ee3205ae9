"""Whose turn each record was, where optimizers step in turns: a critic's step and a generator's are not of one kind.

The two are fed differently and follow different losses, so that from one to the next a distribution may move, or a
gradient reverse, although nothing of the sort happens in training. Comparisons of neighbours ask here which are alike.
"""

from __future__ import annotations

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from covshift.analysis import rows
from covshift.exceptions import SignalNotRecorded


def kinds(recording: xr.DataTree, steps: NDArray[np.int64], *, stream: str = "train") -> NDArray[np.int64]:
    """Number of the turn of the record at each of ``steps``; all 0 where nobody takes turns, or it is not known.

    Told by the parameters whose update was looked for, once there had been one: before its optimizer is known, a
    parameter reads as unmoved. A record with some of the parameters of another is of its kind: some optimizers of one
    step may sit out. With ``updates="off"`` nothing is known.
    """
    kind = np.zeros(len(steps), dtype=np.int64)
    if stream != "train":
        return kind
    try:
        parameters = rows.group(recording, "parameters")
    except SignalNotRecorded:
        return kind
    here = np.isin(steps, parameters["step"].values)
    has_moved = np.logical_or.accumulate(parameters["update_norm"].values > 0, axis=0)
    known = np.isfinite(parameters["sampled_share"].values) & has_moved
    looked_for = np.zeros((len(steps), known.shape[1]), dtype=bool)
    looked_for[here] = known[np.searchsorted(parameters["step"].values, steps[here])]
    patterns, which = np.unique(looked_for, axis=0, return_inverse=True)
    return _by_largest(patterns)[which.reshape(-1)]


def _by_largest(patterns: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Of each pattern the number of the first that holds all of it, the largest first."""
    whole: list[NDArray[np.bool_]] = []
    kind = np.zeros(len(patterns), dtype=np.int64)
    for index in np.argsort(-patterns.sum(axis=1), kind="stable"):
        holding = [number for number, other in enumerate(whole) if not (patterns[index] & ~other).any()]
        if not holding:
            whole.append(patterns[index])
        kind[index] = holding[0] if holding else len(whole) - 1
    return kind


def before(kind: NDArray[np.int64]) -> NDArray[np.int64]:
    """Position of the last earlier record of the same kind, -1 for none.

    Examples
    --------
    >>> before(np.array([0, 1, 1, 0])).tolist()
    [-1, -1, 1, 0]
    """
    last: dict[int, int] = {}
    found = np.full(len(kind), -1, dtype=np.int64)
    for place, one in enumerate(kind.tolist()):
        found[place] = last.get(one, -1)
        last[one] = place
    return found


def left(kind: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many records of the same kind there are from each record on, itself among them.

    Examples
    --------
    >>> left(np.array([0, 1, 1, 0])).tolist()
    [2, 2, 1, 1]
    """
    found: list[int] = []
    counts: dict[int, int] = {}
    for one in kind.tolist()[::-1]:
        counts[one] = counts.get(one, 0) + 1
        found.append(counts[one])
    return np.array(found[::-1], dtype=np.int64)
