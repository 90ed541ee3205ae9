"""Figures that set runs side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

from covshift.analysis.arguments import demand_result
from covshift.diagnosis.wording import plural
from covshift.exceptions import InvalidArgumentError
from covshift.plots import style
from covshift.plots.axes import (
    as_plain_text,
    label_amounts,
    label_layers,
    layer_height,
    log_limits,
    mark_edge,
    title,
    unlabel_rows,
    wrapped,
)
from covshift.plots.effects import draw_effects, look_of_run
from covshift.plots.labels import amount, elide, share, short_names

FloatArray = NDArray[np.float64]

BULK = 0.005
"""Share of the points of curves that may lie beyond either end of their axis."""

NOTE_CHARACTER = 4.6
"""Points that a character of the note on matching takes at most, on average."""

ENDS = ("low", "high")
SPREAD = 0.5
"""Rows between the first and the last run's mark of one layer where marks have intervals."""

MEASURES = {
    "gradient_zero_rate": ("gradient zeros", "share"),
    "structural_rate": ("structural zeros", "share"),
    "gradient_rms": ("gradient rms", "log"),
    "activation_sd": ("activation sd", "log"),
    "w1": ("shift, sd", "log"),
}
"""Words and axis of each measure of :func:`covshift.analysis.comparison.paired_layers`."""


def plot_comparison(
    paired: xr.Dataset,
    curves: Mapping[str, xr.DataArray | xr.Dataset] | None = None,
    *,
    effects: xr.Dataset | None = None,
    measures: Sequence[str] | None = None,
    ax: style.Target = None,
) -> Figure | SubFigure:
    """Draw what sets the runs apart: their curves over the steps, and each layer of one beside the same of the other.

    Parameters
    ----------
    paired : Dataset
        From :func:`covshift.analysis.comparison.paired_layers`: dims ``(run, layer)``, and the attribute ``matching``,
        a note on how layers were paired that heads the key. Or the same from
        :func:`covshift.analysis.seeds.over_seeds`, whose runs are groups of seeds: then every mark has the interval of
        its mean.
    curves : mapping of str to DataArray or Dataset, optional
        Logged scalars by name, each from :func:`covshift.analysis.comparison.scalars` with dims ``(run, step)``; or a
        Dataset from :func:`~covshift.analysis.seeds.over_seeds` that holds it, then with a band.
    effects : Dataset, optional
        From :func:`covshift.analysis.effects.effect_sizes` of the runs of ``paired``: what sets the groups of seeds
        apart, layer by layer.
    measures : sequence of str, optional
        Variables of ``paired`` to draw; all that have a number by default.
    ax : Axes, Figure or SubFigure, optional
        Where to draw; a new figure by default.

    Returns
    -------
    Figure or SubFigure
        Above, one Axes for each curve; below, one for each measure, in which every layer is a row with one mark a run,
        its interval over seeds where there is one, and a line from the lowest mark to the highest; on logarithmic axes
        an exact zero is an arrow on the left edge. Where ``effects`` are given, a row of panels below: each group minus
        the first with its interval, filled where that leaves 0 out, as a key below them says; arrows for those beyond
        the axis, as where one side alone is exactly zero. A run keeps its colour and its marker throughout. A panel
        without a number says so.

    Raises
    ------
    InvalidArgumentError
        If ``paired`` lacks a measure; the message lists those it has.
    """
    demand_result("paired", paired, ("run", "layer"), of="covshift.analysis.comparison.paired_layers")
    chosen = _chosen_measures(paired, measures)
    runs = [str(run) for run in paired["run"].values]
    curves = curves or {}
    with style.context():
        rows_height = layer_height(paired.sizes["layer"], row=0.13, most=8.0)
        heights = [*([2.9] if curves else []), rows_height, *([rows_height] if effects is not None else [])]
        figure = style.figure_on(ax, width=max(3.1 * max(len(chosen), len(curves)), 6.4), height=sum(heights))
        bands = _bands_of(figure, heights)
        upper, lower = bands[0], bands[bool(curves)]
        if curves:
            for ax, (name, values) in zip(style.panels(upper, len(curves)), curves.items(), strict=True):
                _curves(ax, values, name=name, runs=runs)
        if effects is not None and chosen:
            draw_effects(bands[-1], effects, {name: MEASURES.get(name, (name, "linear")) for name in chosen}, runs)
        axes = style.panels(lower, max(len(chosen), 1), sharey=True)
        if not chosen:
            style.message(axes[0], "paired layers: nothing was measured in both runs")
        for position, (ax, measure) in enumerate(zip(axes, chosen, strict=False)):
            _pairs(ax, paired, measure, first=position == 0)
        _run_key(upper, runs, paired)
    return figure


def _bands_of(figure: Figure | SubFigure, heights: list[float]) -> Sequence[SubFigure | Figure]:
    if len(heights) == 1:
        return [figure]
    grid = figure.add_gridspec(len(heights), 1, height_ratios=heights)
    return [figure.add_subfigure(grid[at]) for at in range(len(heights))]


def _chosen_measures(paired: xr.Dataset, measures: Sequence[str] | None) -> list[str]:
    ends = {f"{name}{end}" for name in paired.data_vars for end in ("_low", "_high")}
    there = [str(name) for name in paired.data_vars if set(paired[name].dims) == {"run", "layer"} and name not in ends]
    missing = [name for name in measures or () if name not in there]
    if missing:
        raise InvalidArgumentError(f"measures: no {', '.join(missing)} in the comparison; it has {', '.join(there)}")
    if measures is not None:
        return list(measures)
    return [name for name in there if np.isfinite(paired[name].values.astype(float)).any()]


def _curves(ax: Axes, values: xr.DataArray | xr.Dataset, *, name: str, runs: Sequence[str]) -> None:
    ends: list[tuple[float, str]] = []
    middle = values[name] if isinstance(values, xr.Dataset) else values
    for run, label in enumerate(runs):
        curve = middle.sel(run=label).dropna("step")
        if curve.size:
            _curve(ax, curve, run=run)
            if isinstance(values, xr.Dataset):
                _band(ax, values.sel(run=label), name=name, run=run)
            ends.append((float(curve[-1]), label))
    if not ends:
        style.message(ax, f"{name}: not logged")
        return
    low, high = min(ends), max(ends)
    _hold(ax, middle.values.astype(np.float64))
    ax.grid(axis="y")
    ax.set_xlabel("optimizer step")
    words = name.replace("_", " ")
    ax.set_ylabel(words, parse_math=False)
    span = f"{amount(low[0])} ({elide(low[1], 18)}) to {amount(high[0])} ({elide(high[1], 18)})"
    title(ax, f"{words} at the end: {span if len(ends) > 1 else amount(low[0])}", size=9.0)


def _curve(ax: Axes, curve: xr.DataArray, *, run: int) -> None:
    color, marker = look_of_run(run)
    ax.plot(
        curve["step"],
        curve,
        color=color,
        marker=marker,
        markevery=(min(run * 3 % 7, curve.size - 1), max(curve.size // 6, 1)),
        linewidth=1.1,
        rasterized=curve.size > style.VECTOR_POINTS,
    )


def _hold(ax: Axes, values: FloatArray) -> None:
    """Limit the y axis to the bulk of the curves: an interval over two seeds, or one spike, would flatten them."""
    least, most = np.nanquantile(values, [BULK, 1.0 - BULK]).tolist()
    ends = [value for curve in values for value in curve[np.isfinite(curve)][-1:]]
    least, most = min(least, *ends), max(most, *ends)
    free = 0.1 * (most - least) or 0.1 * abs(most) or 1.0
    ax.set_ylim(least - free, most + free)


def _band(ax: Axes, values: xr.Dataset, *, name: str, run: int) -> None:
    """Interval of a mean curve over seeds, where there are several."""
    low, high = (values[f"{name}_{end}"].values.astype(np.float64) for end in ("low", "high"))
    if np.isfinite(low).any():
        ax.fill_between(values["step"].values, low, high, color=look_of_run(run)[0], alpha=0.18, linewidth=0)


def _pairs(ax: Axes, paired: xr.Dataset, measure: str, *, first: bool) -> None:
    values = paired[measure].transpose("run", "layer")
    words, scale = MEASURES.get(measure, (measure, "linear"))
    numbers = values.values.astype(np.float64)
    if scale == "log" and (numbers > 0).any():
        _mark_zeros(ax, numbers)
        numbers = np.where(numbers > 0, numbers, np.nan)
        ax.set_xscale("log")
        ax.set_xlim(log_limits([numbers], margin=0.15))
    elif scale == "share":
        ax.set_xlim(-0.03, 1.03)
        ax.xaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
    ends = [paired[f"{measure}_{end}"].transpose("run", "layer").values for end in ENDS if f"{measure}_{end}" in paired]
    _dumbbells(ax, numbers, spread=SPREAD if ends else 0.0)
    if ends:
        _intervals(ax, *ends)
    if ax.get_xscale() == "log":
        label_amounts(ax.xaxis)
    label_layers(ax, values["layer"].values, width=20)
    if not first:
        unlabel_rows(ax)
    ax.grid(axis="x")
    title(ax, f"{words}\n{_furthest_apart(values, scale=scale)}", size=9.0)


def _dumbbells(ax: Axes, numbers: FloatArray, *, spread: float) -> None:
    """One mark for each run and layer of ``numbers`` (run, layer).

    A line goes from the lowest to the highest. Where marks have intervals, they lie at most ``spread`` rows apart, so
    that intervals do not cover one another, and the line leans.
    """
    rows = np.arange(numbers.shape[1])
    known = np.flatnonzero(np.isfinite(numbers).any(axis=0))
    ends = (np.nanargmin(numbers[:, known], axis=0), np.nanargmax(numbers[:, known], axis=0))
    heights = np.array([_offset(run, len(numbers), spread) for run in range(len(numbers))])
    points = [np.column_stack([numbers[end, known], known + heights[end]]) for end in ends]
    ax.add_collection(LineCollection(list(np.stack(points, axis=1)), color=style.look().line, zorder=1))
    for run, along in enumerate(numbers):
        color, marker = look_of_run(run)
        ax.plot(
            along,
            rows + _offset(run, len(numbers), spread),
            linestyle="",
            marker=marker,
            markersize=_mark_size(rows.size),
            color=color,
            alpha=0.9,
            rasterized=numbers.size > style.VECTOR_MARKS,
        )


def _offset(run: int, runs: int, spread: float) -> float:
    return spread * (run / (runs - 1) - 0.5) if runs > 1 else 0.0


def _intervals(ax: Axes, low: FloatArray, high: FloatArray) -> None:
    """Intervals over seeds, one thin line a run and layer; the part below an axis of logarithms is cut off."""
    lower, rows = ax.get_xlim()[0], np.arange(low.shape[1])
    for run in range(len(low)):
        known = np.isfinite(low[run]) & np.isfinite(high[run]) & (high[run] > lower)
        color = look_of_run(run)[0]
        ends = np.maximum(low[run][known], lower), high[run][known]
        ax.hlines(
            rows[known] + _offset(run, len(low), SPREAD), *ends, color=color, linewidth=0.9, alpha=0.7, zorder=1.5
        )


def _mark_zeros(ax: Axes, numbers: FloatArray) -> None:
    """Arrows on the left edge for exact zeros, which a logarithmic axis cannot hold."""
    for run, along in enumerate(numbers):
        look = {"color": look_of_run(run)[0], "markersize": _mark_size(along.size)}
        mark_edge(ax, np.flatnonzero(along == 0), edge=0.0, marker="<", along="y", label="_zero", **look)


def _mark_size(layers: int) -> float:
    return 4.0 if layers <= 60 else 2.2


def _furthest_apart(values: xr.DataArray, *, scale: str) -> str:
    """The layer in which the runs differ most, in words."""
    numbers = values.values.astype(np.float64)
    both = np.isfinite(numbers).sum(axis=0) > 1
    if not both.any():
        return "in no layer two runs to compare" if len(numbers) > 1 else "one run, or one group of runs, only"
    high = np.where(both, np.nanmax(np.where(both, numbers, 0.0), axis=0), np.nan)
    low = np.where(both, np.nanmin(np.where(both, numbers, 0.0), axis=0), np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        apart = high / low if scale == "log" else high - low
    at = int(np.nanargmax(np.where(np.isnan(apart), -1.0, apart)))
    words = share if scale == "share" else amount
    name = short_names(values["layer"].values, width=14)[at]
    return f"{name}: {words(float(low[at]))} to {words(float(high[at]))}"


def _run_key(figure: Figure | SubFigure, runs: Sequence[str], paired: xr.Dataset) -> None:
    handles = []
    seeds = paired["seeds"].values if "seeds" in paired.coords else [1] * len(runs)
    for run, name in enumerate(runs):
        color, marker = look_of_run(run)
        label = elide(name, 28) + (f" ({plural(int(seeds[run]), 'seed')})" if seeds[run] > 1 else "")
        handles.append(Line2D([], [], color=color, marker=marker, label=label))
    if max(seeds, default=1) > 1:
        muted = style.look().muted
        handles.append(Line2D([], [], color=muted, linewidth=0.9, label="90 % interval of the mean over seeds"))
    note = wrapped(
        str(paired.attrs.get("matching", "")), width=int(figure.bbox.width * 72.0 / figure.dpi / NOTE_CHARACTER)
    )
    legend = figure.legend(
        handles=handles, loc="outside upper left", ncols=min(len(runs), 5), title=note or None, alignment="left"
    )
    legend.get_title().set(fontsize=8, parse_math=False)
    as_plain_text(legend)
