"""The ICS panel: whether what lies below a layer changes what the layer should do."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from covshift.analysis.arguments import demand_result
from covshift.plots import palette, style
from covshift.plots.axes import (
    key_of_figure,
    label_amounts,
    label_layers,
    layer_height,
    log_limits,
    mark_edge,
    title,
    unlabel_rows,
    wrapped,
)
from covshift.plots.labels import amount, share, short_names

FloatArray = NDArray[np.float64]

NORMS = {
    "ics": ("change by the layers below", "o", "accent"),
    "gradient_noise": ("change by another minibatch (floor)", "|", "ink"),
    "gradient_norm": ("the gradient itself", "s", "second"),
}
"""Norms set side by side, with words, marker and role."""


def plot_gradient_ics(
    ics: xr.Dataset, attribution: xr.Dataset | None = None, *, ax: style.Target = None
) -> Figure | SubFigure:
    """Draw how much the movement of the layers below changes each layer's gradient.

    Parameters
    ----------
    ics : Dataset
        From :func:`covshift.probe.gradient_ics`, dims ``(layer,)``.
    attribution : Dataset, optional
        From :func:`covshift.probe.shift_attribution`: how far a layer's output was moved from below and by itself.
    ax : Axes, Figure or SubFigure, optional
        Where to draw; a new figure by default.

    Returns
    -------
    Figure or SubFigure
        Rows are layers. First Axes: the norm of the change, of the gradient itself, and, as the floor, of the change
        that another minibatch makes. Second: the cosine between the gradients before and after. Third, where
        ``attribution`` is given: its own and upstream parts, in sd. Exact zeros are arrows on the left edge. A panel
        without a number says so.

    References
    ----------
    Santurkar et al. (2018), arXiv 1805.11604, definition 2.1.
    """
    demand_result("ics", ics, ("cosine",), of="covshift.probe.gradient_ics")
    columns = 2 if attribution is None else 3
    with style.context():
        height = layer_height(ics.sizes["layer"], row=0.13, least=3.0)
        figure = style.figure_on(ax, width=3.6 * columns, height=height)
        axes = style.panels(figure, columns)
        _norms(axes[0], ics)
        _cosines(axes[1], ics)
        if attribution is not None:
            _parts(axes[2], attribution)
        handles = {str(one.get_label()): one for panel in axes for one in panel.get_legend_handles_labels()[0]}
        if handles:
            key_of_figure(figure, list(handles.values()))
        text = wrapped(_finding(ics), width=44 * columns)
        figure.suptitle(text, x=0.01, ha="left", fontsize=10, fontweight="bold", parse_math=False)
    return figure


def _norms(ax: Axes, ics: xr.Dataset) -> None:
    look, rows = style.look(), np.arange(ics.sizes["layer"])
    sizes = {name: ics[name].values.astype(np.float64) for name in NORMS}
    if not any((values > 0).any() for values in sizes.values()):
        measured = any(np.isfinite(values).any() for values in sizes.values())
        style.message(ax, f"change of the gradient: {'exactly 0' if measured else 'not measured'}")
        return
    ax.set_xscale("log")
    ax.set_xlim(log_limits(sizes.values()))
    for name, (words, marker, role) in NORMS.items():
        color, positive = getattr(look, role), np.where(sizes[name] > 0, sizes[name], np.nan)
        size = 8.0 if marker == "|" else 4.0 if rows.size <= 60 else 2.4
        if np.isfinite(sizes[name]).any():
            ax.plot(positive, rows, linestyle="", marker=marker, markersize=size, color=color, label=words)
    both = (sizes["ics"] > 0) & (sizes["gradient_noise"] > 0)
    ax.hlines(rows[both], sizes["ics"][both], sizes["gradient_noise"][both], color=look.line, zorder=1)
    zero = np.flatnonzero(sizes["ics"] == 0)
    mark_edge(ax, zero, edge=0.0, marker="<", along="y", label="exactly zero", color=look.accent)
    label_amounts(ax.xaxis)
    label_layers(ax, ics["layer"].values, width=20)
    ax.grid(axis="x")
    ax.set_xlabel("L2 norm, loss / parameter")
    title(ax, "Change of the gradient", size=9.0)


def _cosines(ax: Axes, ics: xr.Dataset) -> None:
    cosine, rows = ics["cosine"].values.astype(np.float64), np.arange(ics.sizes["layer"])
    known = np.isfinite(cosine)
    if not known.any():
        style.message(ax, "cosine: not measured")
        return
    look = style.look()
    ax.hlines(rows[known], cosine[known], 1.0, color=look.line, zorder=1)
    ax.plot(cosine, rows, linestyle="", marker="o", markersize=4.0 if rows.size <= 60 else 2.4, color=look.accent)
    ax.axvline(1.0, color=look.target, linewidth=0.9, linestyle=(0, (4, 2)), label="_unchanged")
    least = float(cosine[known].min())
    ax.set_xlim(min(least - 0.05 * (1.05 - least), 0.98), 1.0 + 0.05 * max(1.0 - least, 0.02))
    label_layers(ax, ics["layer"].values, width=20)
    unlabel_rows(ax)
    ax.grid(axis="x")
    ax.xaxis.set_major_locator(MaxNLocator(4))
    ax.set_xlabel("cosine of before and after (1: unchanged)")
    title(ax, "Direction of the gradient", size=9.0)


def _parts(ax: Axes, attribution: xr.Dataset) -> None:
    rows, look = np.arange(attribution.sizes["layer"]), style.look()
    parts = {"upstream": look.accent, "own": look.second}
    sizes = {name: attribution[f"{name}_rms"].values.astype(np.float64) for name in parts}
    if not any(np.isfinite(values).any() for values in sizes.values()):
        style.message(ax, "upstream and own movement: not measured")
        return
    for offset, (name, color) in zip((-0.2, 0.2), parts.items(), strict=True):
        values = np.nan_to_num(sizes[name])
        ax.barh(rows + offset, values, height=0.4, color=color, label=f"{name} part")
    for row in rows[~np.isfinite(sizes["upstream"])]:
        hatched: dict[str, Any] = {
            "facecolor": look.not_measured,
            "edgecolor": look.line,
            "hatch": palette.HATCH,
            "linewidth": 0.0,
        }
        ax.axhspan(row - 0.4, row + 0.4, zorder=0, label="not measured", **hatched)
    label_layers(ax, attribution["layer"].values, width=20)
    ax.grid(axis="x")
    ax.set_xlim(0.0, 1.05 * max(np.nanmax(values, initial=0.0) for values in sizes.values()) or 1.0)
    ax.set_xlabel("movement of z, sd of each unit before")
    title(ax, "Who moved the layer", size=9.0)


def _finding(ics: xr.Dataset) -> str:
    relative = ics["relative_ics"].values.astype(np.float64)
    if not np.isfinite(relative).any():
        return "Change of gradients by the layers below: not measured"
    at = int(np.nanargmax(relative))
    if relative[at] == 0:
        return f"Movement below changes no gradient (n = {ics.sizes['layer']} layers)"
    name = short_names(ics["layer"].values)[at]
    words = f"Movement below changes the gradient most in '{name}': by {share(float(relative[at]))} of its norm"
    noise = float(ics["ics_to_noise"].values[at])
    if np.isfinite(noise):
        words += f", {amount(noise)} times what another minibatch changes"
    return f"{words} (n = {ics.sizes['layer']} layers)"
