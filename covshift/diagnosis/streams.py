"""Which rows a rule may rest on besides those of training: probes and evaluation passes, and whether they are recent.

A probe repeats its examples by construction. Evaluation passes repeat theirs where the model's input had the same
moments in every pass, to nine digits: no two sets of examples agree so far by chance.
"""

from __future__ import annotations

import numpy as np
import xarray as xr

from covshift.analysis import rows
from covshift.exceptions import SignalNotRecorded

OTHERS = ("probe", "evaluation")
"""Streams besides training, the one that says more first."""

ROW_NAMES = {"train": "histogram", "probe": "probe", "evaluation": "evaluation pass"}

_SAME = 1e-9


def is_recorded(recording: xr.DataTree, stream: str, group: str) -> bool:
    """Whether a stream has any row of a group."""
    try:
        return bool(rows.group(recording, group, stream=stream).sizes["step"])
    except SignalNotRecorded:
        return False


def is_recent(recording: xr.DataTree, stream: str, group: str) -> bool:
    """Whether the last row of a stream lies in the last window of training, or there was no training."""
    if not is_recorded(recording, stream, group):
        return False
    last = rows.group(recording, group, stream=stream)["step"].values[-1]
    trained = rows.group(recording, "layers")["step"].values
    return not len(trained) or bool(last >= trained[rows.last_window(len(trained))][0])


def has_same_examples(recording: xr.DataTree, stream: str) -> bool:
    """Whether every row of a stream saw the same examples, as far as the model's input tells; False where it does not.

    Inputs that are no floating-point numbers are not recorded, and so tell nothing.
    """
    if stream == "probe":
        return True
    try:
        inputs = rows.moments(recording, signal="input", stream=stream)
    except SignalNotRecorded:
        return False
    known = inputs.isel(layer=np.flatnonzero((inputs["n"].values > 0).all(axis=0)))
    if not known.sizes["layer"] or known.sizes["step"] < 2:
        return False
    spread, mean = known["sd"].values, known["mean"].values
    scale = np.maximum(spread[:1], np.finfo(np.float64).tiny)
    same_count = (known["n"].values == known["n"].values[:1]).all()
    moved = np.maximum(np.abs(mean - mean[:1]), np.abs(spread - spread[:1])) / scale
    return bool(same_count and moved.max() <= _SAME)
