"""Effect sizes: what groups of runs have more or less than the first of them, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

from covshift.diagnosis.wording import percent
from covshift.plots import palette, style
from covshift.plots.axes import key_of_figure, label_layers, mark_edge, title, unlabel_rows
from covshift.plots.labels import amount, elide, short_names

SPREAD = 0.5
"""Rows between the first and the last group's mark of one layer."""

BULK = 0.01
"""Share of the ends of intervals that may lie beyond either end of the axis."""


def look_of_run(run: int) -> tuple[str, str]:
    """Colour and marker of a run; together they tell 56 runs apart."""
    colors, markers = len(style.look().runs), len(palette.RUN_MARKERS)
    return style.look().runs[run % colors], palette.RUN_MARKERS[(run + run // colors) % markers]


def draw_effects(
    figure: Figure | SubFigure, effects: xr.Dataset, measures: Mapping[str, tuple[str, str]], runs: Sequence[str]
) -> None:
    """Fill ``figure`` with a panel for each measure.

    Parameters
    ----------
    figure : Figure or SubFigure
        Where to draw.
    effects : Dataset
        From :func:`covshift.analysis.effects.effect_sizes`, dims ``(group, layer)``.
    measures : mapping of str to (str, str)
        Words and kind (``"share"``, ``"log"`` or another) of each variable to draw.
    runs : sequence of str
        All groups, whose places say their colours.
    """
    panels = style.panels(figure, len(measures), sharey=True)
    for position, (ax, (name, (words, kind))) in enumerate(zip(panels, measures.items(), strict=True)):
        _panel(ax, effects, name, kind=kind, runs=runs)
        if position:
            unlabel_rows(ax)
        told = _furthest(effects, name, kind=kind)
        title(ax, f"{words}, minus {elide(str(effects.attrs['reference']), 18)}\n{told}", size=9.0)
    if handles := _key(effects, list(measures)):
        key_of_figure(figure, handles)


def _key(effects: xr.Dataset, measures: Sequence[str]) -> list[Line2D]:
    """What filled and hollow marks say, of those that are drawn."""
    parts = [np.stack([effects[f"{name}{end}"].values for name in measures]) for end in ("", "_low", "_high")]
    values, low, high = (part.astype(np.float64) for part in parts)
    known = np.isfinite(low) & np.isfinite(high)
    sure = known & ((low > 0) | (high < 0))
    interval = f"{percent(float(effects.attrs['level']))} interval"
    found = (
        (sure.any(), "full", f"{interval} of the difference leaves 0 out"),
        ((known & ~sure).any(), "none", f"hollow: {interval} covers 0"),
        ((np.isfinite(values) & ~known).any(), "none", "hollow without a line: one seed on either side, no interval"),
    )
    look = {"color": style.look().muted, "marker": "o", "linestyle": "", "markersize": 4.0}
    return [Line2D([], [], fillstyle=fill, label=label, **look) for there, fill, label in found if there]  # type: ignore[arg-type]


def _panel(ax: Axes, effects: xr.Dataset, name: str, *, kind: str, runs: Sequence[str]) -> None:
    parts = [effects[f"{name}{end}"].transpose("group", "layer").values for end in ("", "_low", "_high")]
    values, low, high = (part.astype(np.float64) for part in parts)
    if not np.isfinite(values).any():
        style.message(ax, "no difference: not measured on both sides")
        return
    rows = np.arange(values.shape[1])
    ax.axvline(0.0, color=style.look().zero, linewidth=0.9, zorder=0, label="_no difference")
    for at, group in enumerate(effects["group"].values):
        color, marker = look_of_run(list(runs).index(str(group)))
        offset = SPREAD * (at / (len(values) - 1) - 0.5) if len(values) > 1 else 0.0
        known = np.isfinite(low[at]) & np.isfinite(high[at])
        ax.hlines(rows[known] + offset, low[at][known], high[at][known], color=color, linewidth=0.9, alpha=0.7)
        sure = known & ((low[at] > 0) | (high[at] < 0))
        size = 4.0 if rows.size <= 60 else 2.2
        for chosen, face in ((sure, color), (~sure & np.isfinite(values[at]), "none")):
            ax.plot(
                values[at][chosen],
                rows[chosen] + offset,
                linestyle="",
                color=color,
                marker=marker,
                markersize=size,
                markerfacecolor=face,
                label=f"_{group}",
            )
    left, right = _limits(np.concatenate([values.ravel(), low.ravel(), high.ravel()]))
    ax.set_xlim(left, right)
    for beyond, edge, arrow in ((values < left, 0.0, "<"), (values > right, 1.0, ">")):
        mark_edge(ax, rows[beyond.any(axis=0)], edge=edge, marker=arrow, along="y", label="_beyond")
    if kind == "share":
        ax.xaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
    ax.set_xlabel({"share": "difference of shares", "log": "difference, decades"}.get(kind, "difference"))
    label_layers(ax, effects["layer"].values, width=20)
    ax.grid(axis="x")


def _limits(ends: NDArray[np.float64]) -> tuple[float, float]:
    """Ends of the axis: the bulk of marks and intervals, and 0."""
    known = ends[np.isfinite(ends)]
    low, high = min(float(np.quantile(known, BULK)), 0.0), max(float(np.quantile(known, 1.0 - BULK)), 0.0)
    free = 0.08 * (high - low) or 1.0
    return low - free, high + free


def _furthest(effects: xr.Dataset, name: str, *, kind: str) -> str:
    """How many differences have an interval without 0, and the largest of those in words."""
    value, low, high = (effects[f"{name}{end}"].transpose("group", "layer").values for end in ("", "_low", "_high"))
    known = np.isfinite(low) & np.isfinite(high)
    if not known.any():
        return "one seed a side: no interval"
    sure = known & ((low > 0) | (high < 0))
    if not sure.any():
        return "every 90 % interval covers 0".replace("90", f"{100 * float(effects.attrs['level']):.0f}")
    group, layer = np.unravel_index(int(np.argmax(np.where(sure, np.abs(value), -1.0))), value.shape)
    said = [_words(float(part[group, layer]), kind) for part in (value, low, high)]
    layer_name = short_names(effects["layer"].values, width=14)[int(layer)]
    return f"{layer_name}: {said[0]} ({said[1]} to {said[2]}); {int(sure.sum())} of {int(known.sum())} leave 0 out"


def _words(value: float, kind: str) -> str:
    return f"{amount(100 * value)} %" if kind == "share" else amount(value)
