"""Every layer's distribution over steps at once: what enters a nonlinearity, what leaves any other layer.

:func:`covshift.analysis.distributions.river` reads one layer; reading a hundred of them that way decompresses every
chunk of histograms a hundred times. Here the histograms of a few steps are read once for all layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from covshift.analysis import rows
from covshift.analysis.distributions import OF_STEP, PROBABILITIES, displayed
from covshift.exceptions import InvalidArgumentError

VARIABLES = ("count", "quantile", "below", "above", "nan", "infinite", "zero", "finite")

_AT_ONCE = 16
"""Steps read at a time: a multiple of a stored chunk's 8, so that none is decompressed twice."""


def rivers(
    recording: xr.DataTree, *, records: Sequence[int] | None = None, cells: int = 64, stream: str = "train"
) -> xr.Dataset:
    """The river of every layer that has a histogram.

    Parameters
    ----------
    recording : DataTree
        Needs the groups ``histograms`` and ``layers``.
    records : sequence of int, optional
        Positions on the step axis of ``histograms``; all by default.
    cells : int, default 64
        Even cells on each layer's display axis.
    stream : {"train", "evaluation", "probe"}
        Which rows.

    Returns
    -------
    Dataset
        The variables of :func:`covshift.analysis.distributions.river` with the first dims ``(layer, step)``: 0 and NaN
        where a layer has no count at a step. Layers without a count at these records are left out. Coordinates
        ``lower``, ``upper`` (layer, cell), and of each layer ``scale``, ``linear_within`` and ``signal``:
        ``"preactivation"`` for a nonlinearity, ``"activation"`` for another layer, ``"input"`` for one that has only
        that.

    Raises
    ------
    SignalNotRecorded
        If there are no histograms.
    InvalidArgumentError
        If ``cells`` is less than 2.
    """
    if cells < 2:
        raise InvalidArgumentError(f"cells={cells}: expected at least 2 cells on the display axis")
    stored = rows.group(recording, "histograms", stream=stream)["value_histogram"]
    chosen = np.arange(stored.sizes["step"]) if records is None else np.asarray(records, dtype=np.int64)
    sources = _sources(rows.group(recording, "layers", stream=stream))
    counts = _counts(stored, chosen, sources)
    held = np.asarray(counts.any(axis=2))
    layers = np.flatnonzero(held.any(axis=0))
    sizes = {"layer": layers.size, "step": chosen.size, "cell": cells, "probability": len(PROBABILITIES)}
    values = {name: _blank(name, sizes) for name in VARIABLES}
    edges, axes = np.zeros((layers.size, cells + 1)), []
    for row, layer in enumerate(layers):
        at = held[:, layer]
        axis, edges[row], columns = displayed(counts[at, layer].astype(np.float64), cells=cells)
        axes.append(axis)
        for name, column in columns.items():
            values[name][row, at] = column
    return xr.Dataset(
        {name: (_dims(name), column) for name, column in values.items()},
        coords={
            "layer": rows.names(stored)[layers],
            "step": stored["step"].values[chosen],
            "probability": list(PROBABILITIES),
            "lower": (("layer", "cell"), edges[:, :-1]),
            "upper": (("layer", "cell"), edges[:, 1:]),
            "scale": ("layer", np.array([axis.scale for axis in axes], dtype=str)),
            "linear_within": ("layer", np.array([axis.linear_within for axis in axes])),
            "signal": ("layer", np.array([sources[layer].label for layer in layers], dtype=str)),
        },
        attrs={"stream": stream},
    )


def _dims(name: str) -> tuple[str, ...]:
    return ("layer", "step", *OF_STEP.get(name, ()))


def _blank(name: str, sizes: Mapping[str, int]) -> NDArray[np.float64]:
    return np.full([sizes[dim] for dim in _dims(name)], np.nan if name == "quantile" else 0.0)


@dataclass(frozen=True)
class _Source:
    """Where a layer's histogram stands: a row of a signal; ``label`` says what it is to the layer."""

    label: str
    signal: str
    row: int


def _sources(layers: xr.Dataset) -> list[_Source]:
    """What to draw of each layer; a pre-activation stands under its producer unless it was recorded as its own."""
    nonlinear, producer = rows.nonlinear(layers), rows.producer_index(layers)
    counted = np.asarray((layers["count"].transpose("signal", "step", "layer").values > 0).any(axis=1))
    ran = dict(zip(rows.names(layers, "signal").tolist(), counted, strict=True))
    sources = []
    for row in range(len(nonlinear)):
        if nonlinear[row] and (ran["preactivation"][row] or producer[row] < 0):
            sources.append(_Source("preactivation", "preactivation", row))
        elif nonlinear[row]:
            sources.append(_Source("preactivation", "activation", int(producer[row])))
        else:
            signal = "activation" if ran["activation"][row] else "input"
            sources.append(_Source(signal, signal, row))
    return sources


def _counts(stored: xr.DataArray, chosen: NDArray[np.int64], sources: Sequence[_Source]) -> NDArray[Any]:
    """Counts of every layer over all example groups, shape ``(record, layer, bin)``."""
    counts = np.zeros((len(chosen), len(sources), stored.sizes["value_bin"]), dtype=np.uint32)
    for signal in dict.fromkeys(source.signal for source in sources):
        into = [layer for layer, source in enumerate(sources) if source.signal == signal]
        source = np.array([sources[layer].row for layer in into])
        part = slice(int(source.min()), int(source.max()) + 1)
        of_signal = stored.sel(value_signal=signal).isel(layer=part).transpose("step", "layer", "group", "value_bin")
        for first in sorted(set((chosen // _AT_ONCE * _AT_ONCE).tolist())):
            block = of_signal.isel(step=slice(first, first + _AT_ONCE)).values
            for at in np.flatnonzero((chosen >= first) & (chosen < first + _AT_ONCE)):
                counts[at, into] = block[chosen[at] - first].sum(axis=1, dtype=counts.dtype)[source - part.start]
    return counts
