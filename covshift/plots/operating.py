"""The operating-point track: where on its nonlinearity a layer lives, and how it got there."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import NDArray

from covshift.analysis.arguments import demand_result
from covshift.plots import style
from covshift.plots.axes import isolated, key_of_figure, label_steps, mark_edge, title, wrapped
from covshift.plots.labels import amount, elide, share

FloatArray = NDArray[np.float64]


def plot_operating_track(track: xr.Dataset, *, ax: style.Target = None) -> Figure | SubFigure:
    """Draw the path of one layer's pre-activation z beside the derivative of its nonlinearity.

    Parameters
    ----------
    track : Dataset
        From :func:`covshift.analysis.operating_track.operating_track`.
    ax : Axes, Figure or SubFigure, optional
        Where to draw; a new figure by default.

    Returns
    -------
    Figure or SubFigure
        Two Axes that share the axis of z. Left: mean of z over the steps, with one standard deviation either side as a
        ribbon; right: the derivative at z. What is flat (below a tenth of the largest derivative) is shaded in both,
        and start and end are marked. Triangles on an edge are records whose mean lies beyond the axis. Without any
        recorded z the left one says so; for a nonlinearity whose derivative is not known the right one does.
    """
    demand_result("track", track, ("mean",), of="covshift.analysis.operating_track.operating_track")
    with style.context():
        figure = style.figure_on(ax, width=7.6, height=4.0)
        path, curve = style.panels(figure, 2, sharey=True, width_ratios=(3.2, 1.0))
        name = elide(str(track.attrs["layer"]), 40)
        known = np.flatnonzero(np.isfinite(track["mean"].values))
        if not known.size:
            style.message(path, f"z of {name}: not measured")
            style.message(curve, "")
            return figure
        for panel in (path, curve):
            _shade(panel, track)
        _path(path, track, known)
        _curve(curve, track, known)
        path.set_ylim(float(track["z"].values[0]), float(track["z"].values[-1]))
        _key(figure, path, track)
        figure.suptitle(
            wrapped(_finding(track, name, known), width=92),
            x=0.01,
            ha="left",
            fontsize=10,
            fontweight="bold",
            parse_math=False,
        )
    return figure


def _shade(ax: Axes, track: xr.Dataset) -> None:
    """Shade the runs of z at which the derivative is flat."""
    z, flat = track["z"].values, track["flat"].values.astype(bool)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flat, [False]]).astype(int)))
    for start, stop in zip(edges[::2], edges[1::2], strict=True):
        ax.axhspan(z[start], z[stop - 1], color=style.look().within_floor, linewidth=0, zorder=0, label="_flat")


def _path(ax: Axes, track: xr.Dataset, known: NDArray[np.int64]) -> None:
    look, steps = style.look(), track["step"].values
    mean, sd = track["mean"].values, track["sd"].values
    ax.fill_between(steps, mean - sd, mean + sd, color=look.second, alpha=0.3, linewidth=0, label="mean ± sd")
    lone = isolated(mean)
    ax.vlines(steps[lone], (mean - sd)[lone], (mean + sd)[lone], color=look.second, alpha=0.3, label="_lone sd")
    ax.plot(
        steps,
        mean,
        color=look.second,
        marker="o" if lone else "",
        markevery=lone,
        label="mean of z",
        rasterized=mean.size > style.VECTOR_POINTS,
    )
    ax.axhline(0.0, color=look.zero, linewidth=0.9, linestyle=(0, (5, 3)))
    for index, label, color in _ends(known):
        ax.plot(steps[index], mean[index], marker=label[1], color=color, markersize=7, label=label[0], linestyle="")
    _beyond(ax, track)
    label_steps(ax, steps)
    ax.set_ylabel("pre-activation z")


def _ends(known: NDArray[np.int64]) -> list[tuple[int, tuple[str, str], str]]:
    """First and last known record, with label, marker and colour."""
    look = style.look()
    last = (int(known[-1]), ("end", "s"), look.accent)
    return [last] if known.size == 1 else [(int(known[0]), ("start", "o"), look.ink), last]


def _beyond(ax: Axes, track: xr.Dataset) -> None:
    """Triangles on the edge where the mean lies beyond it."""
    low, high = float(track["z"].values[0]), float(track["z"].values[-1])
    mean, steps = track["mean"].values, track["step"].values
    mark_edge(ax, steps[mean > high], edge=0.985, marker="^", along="x", label="beyond the axis")
    mark_edge(ax, steps[mean < low], edge=0.015, marker="v", along="x", label="beyond the axis")


def _curve(ax: Axes, track: xr.Dataset, known: NDArray[np.int64]) -> None:
    look, z, slope = style.look(), track["z"].values, track["derivative"].values
    kind = elide(str(track.attrs["activation"]), 24)
    if not np.isfinite(slope).any():
        style.message(ax, f"derivative of {kind}: not known")
        return
    ax.plot(slope, z, color=look.ink, linewidth=1.2, label="derivative")
    for index, label, color in _ends(known):
        mean, sd = float(track["mean"].values[index]), float(track["sd"].values[index])
        height = float(track["derivative_at_mean"].values[index])
        ax.plot([height, height], [mean - sd, mean + sd], color=color, linewidth=1.2)
        ax.plot(height, mean, marker=label[1], color=color, markersize=7, linestyle="", label=label[0])
    ax.set_xlim(left=min(0.0, float(np.nanmin(slope))) - 0.04, right=float(np.nanmax(slope)) * 1.12 + 0.02)
    ax.tick_params(axis="y", labelleft=False)
    ax.set_xlabel("|derivative|")
    title(ax, kind, size=9.0)


def _key(figure: Figure | SubFigure, ax: Axes, track: xr.Dataset) -> None:
    handles = [line for line in ax.get_lines() if line.get_label() in ("mean of z", "start", "end", "beyond the axis")]
    distinct = {str(line.get_label()): line for line in handles}
    keys: list[Line2D | Patch] = list(distinct.values())
    keys.insert(1, Patch(color=style.look().second, alpha=0.3, label="± sd"))
    if track["flat"].values.any():
        keys.append(Patch(color=style.look().within_floor, label="derivative below a tenth of its maximum"))
    key_of_figure(figure, keys)


def _finding(track: xr.Dataset, name: str, known: NDArray[np.int64]) -> str:
    mean, sd, steps = track["mean"].values, track["sd"].values, track["step"].values
    first, last = (f"{amount(float(mean[at]))} ± {amount(float(sd[at]))}" for at in known[[0, -1]])
    moved = f"z of '{name}' is {last} at step {steps[known[-1]]}"
    if known.size > 1:
        moved += f" (at step {steps[known[0]]}: {first})"
    mass = track["active_mass"].values
    measured = mass[np.isfinite(mass)]
    if not measured.size:
        return moved
    kind = elide(str(track.attrs["activation"]), 24)
    return f"{moved}; {kind} passes a usable derivative at {share(float(measured[-1]))} of it"
