"""Whether anything moved at all: noise-corrected distances of disjoint pairs, tested by relabelling example groups.

One pair is a poor test, so pairs are pooled in windows of at least ten. What cannot be tested is NaN.
"""

from __future__ import annotations

import math

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from covshift.analysis import divergence, inference, rows
from covshift.analysis.distribution_functions import in_blocks
from covshift.analysis.shift_records import Record, View
from covshift.grid import Grid

Floats = NDArray[np.float64]

CRAMER_OF_SMALL_SHIFT = 1 / (2 * math.sqrt(math.pi))
"""Squared Cramer distance of two normals of standard deviation 1 a small ``d`` apart, divided by ``d ** 2``."""


def relabelled(before: Record, now: Record, grid: Grid) -> Floats:
    """Noise-corrected distance of a pair under each relabelling, shape ``(ways, layer)``.

    The scale is the standard deviation of both sides together, which no relabelling changes.
    """
    ways = inference.relabellings(before.groups.shape[1])
    variance = (before.sd**2 + now.sd**2) / 2 + (now.mean - before.mean) ** 2 / 4
    known = before.noise_known & now.noise_known & (variance > 0)
    table = np.full((len(ways), len(known)), np.nan)
    for layers in in_blocks(known):
        distances = divergence.relabelled_cramer(before.groups[layers], now.groups[layers], ways, grid)
        table[:, layers] = distances.T / np.sqrt(variance[layers])
    return table


def windows(tables: list[Floats], view: View, *, pairs_per_window: int) -> xr.Dataset:
    """Tests over disjoint pairs, which end at the last record; where there are too few, one window of NaN.

    Parameters
    ----------
    tables : list of ndarray
        From :func:`relabelled`, one of each pair.
    view : View
        What the pairs are of.
    pairs_per_window : int
        Pairs that one p-value pools; 0 where nothing is to be tested.

    Returns
    -------
    Dataset
        The variables with the dimension ``window`` of :func:`covshift.analysis.shift.between_steps`.
    """
    count = len(tables) // pairs_per_window if pairs_per_window else 0
    parts = np.array_split(np.arange(len(tables)), count) if count else [np.arange(len(tables))]
    first = len(view.steps) - 2 * len(tables)
    rows_of_windows = [_window([tables[pair] for pair in part], len(view.layers)) for part in parts]
    starts = [view.steps[first + 2 * part[0]] if len(part) else view.steps[0] for part in parts]
    ends = [view.steps[first + 2 * part[-1] + 1] if len(part) else view.steps[-1] for part in parts]
    units = {"p": "1", "p_holm": "1", "q": "1", "pooled_shift": "sd of both sides"}
    columns = {name: np.array([row[name] for row in rows_of_windows]) for name in units}
    return xr.Dataset(
        {name: (("window", "layer"), column, {"units": units[name]}) for name, column in columns.items()},
        coords={
            "layer": view.layers,
            "window_start": ("window", starts),
            "window_end": ("window", ends),
            "pairs": ("window", [len(part) for part in parts]),
        },
    )


def _window(tables: list[Floats], layers: int) -> dict[str, Floats]:
    if not tables:
        return dict.fromkeys(("p", "p_holm", "q", "pooled_shift"), np.full(layers, np.nan))
    stacked = np.stack(tables)
    p = inference.relabelling_p_value(stacked)
    known = np.isfinite(stacked[:, 0]).sum(axis=0)
    mean = rows.ratio(np.nan_to_num(stacked[:, 0]).sum(axis=0), known)
    shift = np.sqrt(np.maximum(mean, 0.0) / CRAMER_OF_SMALL_SHIFT)
    return {
        "p": p,
        "p_holm": inference.holm(p),
        "q": inference.benjamini_hochberg(p),
        "pooled_shift": np.where(known >= inference.MIN_PAIRS, shift, np.nan),
    }
