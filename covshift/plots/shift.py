"""Figures of how far layers moved between steps."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.patches import Patch

from covshift.plots import style
from covshift.plots.axes import colorbar, flat_cells, key_below, layer_cells, layer_height, title, unmeasured_key
from covshift.plots.labels import amount, count, short_names

BULK = 0.03
"""Share of the distances left beyond either end of the colour scale: training moves far in its first few steps."""


def plot_shift_map(shift: xr.Dataset, *, ax: style.Target = None) -> Axes:
    """Draw which layers shifted, and when.

    One cell for each step and layer: the first Wasserstein distance to the reference distribution, in standard
    deviations of the reference, on a logarithmic scale over the bulk of them. Cells at or below their noise floor are
    grey: two halves of the same examples are as far apart. Cells whose mean lies too far from zero for the bins to
    resolve a shift (``off_centre``) count as not measured.

    Parameters
    ----------
    shift : Dataset
        From :func:`covshift.analysis.shift.between_steps`: ``w1``, ``noise_floor`` and ``off_centre`` with
        dims ``(step, layer)``.
    ax : Axes, Figure or SubFigure, optional
        Where to draw; a new figure by default.

    Returns
    -------
    Axes
        With the distances as its first collection and the cells within the noise floor as its second. Where no cell has
        a number, the Axes says so instead.
    """
    with style.context():
        ax = style.axes_on(ax, width=7.6, height=layer_height(shift.sizes["layer"]))
        w1 = shift["w1"].where(~shift["off_centre"]).transpose("step", "layer")
        measured = w1.notnull()
        if not bool(measured.any()):
            return style.message(ax, "shift: not measured (a shift needs histograms at two steps)")
        moved = measured & (w1 > shift["noise_floor"].fillna(0.0))
        mesh = layer_cells(ax, w1.where(moved), norm=_norm(w1.where(moved)))
        flat_cells(ax, measured & ~moved, color=style.look().within_floor)
        colorbar(mesh, ax, label="W1, sd of the reference", extend="both")
        title(ax, _finding(w1, moved))
        key_below(ax, [Patch(facecolor=style.look().within_floor, label="within the noise floor"), unmeasured_key()])
    return ax


def _norm(moved: xr.DataArray) -> LogNorm:
    """Colour scale over the bulk of the distances; those few beyond it take the colours of its ends."""
    values = moved.values[np.isfinite(moved.values) & (moved.values > 0)]
    if not values.size:
        return LogNorm(0.1, 1.0)
    least, most = np.quantile(values, [BULK, 1.0 - BULK]).tolist()
    return LogNorm(least, max(most, 2.0 * least))


def _finding(w1: xr.DataArray, moved: xr.DataArray) -> str:
    cells, above = int(np.isfinite(w1.values).sum()), int(moved.values.sum())
    if not above:
        return f"No layer shifted beyond its noise floor ({count(cells)} cells)"
    step, layer = np.unravel_index(int(np.nanargmax(w1.where(moved).values)), w1.shape)
    name, when = short_names(w1["layer"].values)[layer], w1["step"].values[step]
    furthest = amount(float(w1.values[step, layer]))
    return f"Furthest: {name} by {furthest} sd at step {when}; {count(above)} of {count(cells)} cells above noise"
