"""Figures of one layer's distribution over steps."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import LogNorm
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from covshift.analysis.arguments import demand_result
from covshift.plots import style
from covshift.plots.axes import colorbar, isolated, key_below, label_steps, step_edges, symlog_ticks, title
from covshift.plots.labels import amount, elide

OUTSIDE = 0.01
"""Share of a step's elements beyond an edge of the axis from which that edge is marked."""


def plot_activation_river(river: xr.Dataset, *, ax: style.Target = None) -> Axes:
    """Draw how one layer's values moved over the steps.

    A heat map of counts (logarithmic) over step and value, with lines at the 1, 25, 50, 75 and 99 % quantiles and at
    zero. Ticks on the top edge mark steps with NaN or infinite elements; triangles mark steps of which more than 1 % of
    the elements lie beyond the axis. A narrow band hides no outliers: they are counted, not clipped.

    Parameters
    ----------
    river : Dataset
        From :func:`covshift.analysis.distributions.river`.
    ax : Axes, Figure or SubFigure, optional
        Where to draw; a new figure by default.

    Returns
    -------
    Axes
        With the heat map as its first collection. Where no step holds a finite element, the Axes says so instead.
    """
    demand_result("river", river, ("count", "quantile"), of="covshift.analysis.distributions.river")
    with style.context():
        ax = style.axes_on(ax, width=7.6, height=3.6)
        name = f"{elide(str(river.attrs['layer']), 40)} {river.attrs['signal']}"
        if not river.sizes["step"] or not np.isfinite(river["quantile"].values).any():
            return style.message(ax, f"{name}: no finite values recorded")
        mesh = _heat(ax, river)
        _scale(ax, river)
        ax.axhline(0.0, color=style.look().zero, linewidth=0.9, linestyle=(0, (5, 3)))
        _quantile_lines(ax, river)
        _edge_marks(ax, river)
        label_steps(ax, river["step"].values)
        colorbar(mesh, ax, label="elements per cell")
        title(ax, f"{name}: {_movement(river)}")
        _key(ax)
    return ax


def _heat(ax: Axes, river: xr.Dataset) -> QuadMesh:
    counts = river["count"].transpose("cell", "step").values
    most = max(float(counts.max()), 1.0)
    least = max(most / 1e5, min(1.0, most / 10.0))
    return ax.pcolormesh(
        step_edges(river["step"].values),
        np.append(river["lower"].values, river["upper"].values[-1]),
        np.ma.masked_less_equal(counts, least / 10.0),
        norm=LogNorm(least, max(most, least * 10.0)),
        cmap=style.look().amount,
        rasterized=True,
    )


def _scale(ax: Axes, river: xr.Dataset) -> None:
    low, high = float(river["lower"].values[0]), float(river["upper"].values[-1])
    within = float(river.attrs["linear_within"])
    ax.set_ylabel("value")
    if river.attrs["scale"] == "symlog":
        # linscale 0.9 makes matplotlib's linear part as long as one decade, the axis on which the cells are even
        ax.set_yscale("symlog", linthresh=within, linscale=0.9)
        symlog_ticks(ax.yaxis, linear_within=within, low=low, high=high)
        ax.set_ylabel(f"value, logarithmic beyond ±{amount(within)}")
    ax.set_ylim(low, high)


def _quantile_lines(ax: Axes, river: xr.Dataset) -> None:
    middle = len(river["probability"]) // 2
    for position, probability in enumerate(river["probability"].values):
        distance = abs(position - middle)
        values = river["quantile"].isel(probability=position).values
        ax.plot(
            river["step"].values,
            values,
            color=style.look().accent,
            linewidth=(1.8, 1.0, 0.8)[min(distance, 2)],
            linestyle=("-", "-", (0, (2, 1.5)))[min(distance, 2)],
            marker="o",
            markevery=isolated(values),
            label=f"{probability:.0%}",
        )


def _edge_marks(ax: Axes, river: xr.Dataset) -> None:
    """Marks in Axes height: what the heat map cannot show at the step where it happened."""
    across = ax.get_xaxis_transform()
    steps, finite = river["step"].values, np.maximum(river["finite"].values, 1.0)
    marks: tuple[tuple[NDArray[np.bool_], float, str, str], ...] = (
        (river["above"].values > OUTSIDE * finite, 0.985, "^", "more than 1 % above"),
        (river["below"].values > OUTSIDE * finite, 0.015, "v", "more than 1 % below"),
        ((river["nan"] + river["infinite"]).values > 0, 1.0, "|", "NaN or infinite elements"),
    )
    for where, height, marker, meaning in marks:
        if where.any():
            color = style.look().verdicts["bad"].color if marker == "|" else style.look().ink
            at = np.full(int(where.sum()), height)
            ax.plot(steps[where], at, marker, transform=across, color=color, markersize=6, clip_on=False, label=meaning)


def _movement(river: xr.Dataset) -> str:
    """The 1-99 % range and the median at the first and the last step with a finite value, in words."""
    known = np.isfinite(river["quantile"].transpose("step", ...).values).any(axis=1)
    ended = "; no finite value after it" if not known[-1] else ""
    river = river.isel(step=np.flatnonzero(known))
    first, last = river["quantile"].values[0], river["quantile"].values[-1]
    now = f"median {amount(last[2])}, 1-99 % in {amount(last[0])} to {amount(last[-1])}"
    if river.sizes["step"] == 1:
        return f"{now} at step {river['step'].values[0]}{ended}"
    before = f"{amount(first[2])}, {amount(first[0])} to {amount(first[-1])}"
    return f"{now} at step {river['step'].values[-1]} (at step {river['step'].values[0]}: {before}){ended}"


def _key(ax: Axes) -> None:
    color = style.look().accent
    lines = [
        Line2D([], [], color=color, linewidth=1.8, label="median"),
        Line2D([], [], color=color, linewidth=1.0, label="25 and 75 %"),
        Line2D([], [], color=color, linewidth=0.8, linestyle=(0, (2, 1.5)), label="1 and 99 %"),
        Line2D([], [], color=style.look().zero, linewidth=0.9, linestyle=(0, (5, 3)), label="zero"),
    ]
    named = [line for line in ax.get_lines() if line.get_marker() in ("^", "v", "|")]
    key_below(ax, [*lines, *named], columns=7)
