"""Every layer's distribution over steps at once: what enters a nonlinearity, what leaves any other layer.

:func:`covshift.analysis.distributions.river` reads one layer; reading a hundred of them that way decompresses every
chunk of histograms a hundred times. Here the histograms of a few steps are read once for all layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from covshift import schema
from covshift.analysis import distributions, rows
from covshift.exceptions import InvalidArgumentError

_AT_ONCE = 16
"""Steps read at a time: a multiple of a stored chunk's 8, so that none is decompressed twice."""


def rivers(
    recording: xr.DataTree, *, records: Sequence[int] | None = None, cells: int = 64, stream: str = "train"
) -> dict[str, xr.Dataset]:
    """The river of every layer that has a histogram, by name.

    Parameters
    ----------
    recording : DataTree
        Needs the groups ``histograms`` and ``layers``.
    records : sequence of int, optional
        Positions on the step axis of ``histograms``; all by default.
    cells : int, default 64
        Even cells on each layer's display axis.
    stream : {"train", "evaluation"}
        Which rows.

    Returns
    -------
    dict of str to Dataset
        As :func:`covshift.analysis.distributions.river` of the layer and the signal its attributes name:
        ``"preactivation"`` for a nonlinearity, ``"activation"`` for another layer, ``"input"`` for one that has only
        that. Layers without a count at these records are left out, and so is a step from a layer without one there.

    Raises
    ------
    SignalNotRecorded
        If there are no histograms.
    InvalidArgumentError
        If ``cells`` is less than 2.
    """
    if cells < 2:
        raise InvalidArgumentError(f"cells={cells}: expected at least 2 cells on the display axis")
    layers = rows.group(recording, "layers", stream=stream)
    stored = rows.group(recording, "histograms", stream=stream)["value_histogram"]
    chosen = np.arange(stored.sizes["step"]) if records is None else np.asarray(records, dtype=np.int64)
    steps = stored["step"].values[chosen]
    of_signal = np.moveaxis(_counts(stored, chosen), 2, 0)
    signal, counts = _drawn(layers, dict(zip(schema.VALUE_SIGNALS, of_signal, strict=True)))
    found = {}
    for position, name in enumerate(rows.names(stored).tolist()):
        held = counts[:, position].any(axis=1)
        if held.any():
            values = counts[held, position].astype(np.float64)
            labels = {"layer": name, "signal": signal[position], "stream": stream}
            found[name] = distributions.display(values, steps[held], cells=cells, **labels)
    return found


def _counts(stored: xr.DataArray, chosen: NDArray[np.int64]) -> NDArray[Any]:
    """Counts over all example groups, shape ``(record, layer, signal, bin)``."""
    ordered = stored.transpose("step", "layer", "value_signal", "group", "value_bin")
    counts = np.zeros((len(chosen), *ordered.shape[1:3], ordered.shape[4]), dtype=np.uint32)
    for first in range(0, ordered.sizes["step"], _AT_ONCE):
        wanted = np.flatnonzero((chosen >= first) & (chosen < first + _AT_ONCE))
        for signal in range(ordered.sizes["value_signal"]) if wanted.size else ():
            block = np.asarray(ordered.isel(step=slice(first, first + _AT_ONCE), value_signal=signal).values)
            for at in wanted if block.any() else ():
                block[chosen[at] - first].sum(axis=1, dtype=counts.dtype, out=counts[at, :, signal])
    return counts


def _drawn(layers: xr.Dataset, counts: dict[str, NDArray[Any]]) -> tuple[list[str], NDArray[Any]]:
    """The signal to draw of each layer, and its counts; a pre-activation is read under its producer if need be."""
    nonlinear, source = rows.nonlinear(layers), rows.producer_index(layers)
    signals, drawn = [], counts["activation"].copy()
    for layer in range(len(nonlinear)):
        if nonlinear[layer]:
            signals.append("preactivation")
            own = counts["preactivation"][:, layer]
            drawn[:, layer] = own if own.any() or source[layer] < 0 else counts["activation"][:, source[layer]]
        elif drawn[:, layer].any():
            signals.append("activation")
        else:
            signals.append("input")
            drawn[:, layer] = counts["input"][:, layer]
    return signals, drawn
