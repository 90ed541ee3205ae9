"""The ridgeline: whether layers are alike, and whether one layer always was as it is now."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import NDArray

from covshift.analysis.arguments import demand_result
from covshift.plots import style
from covshift.plots.axes import key_below, label_layers, layer_height, mark_edge, symlog_ticks, title
from covshift.plots.labels import amount, elide, share, short_names

FloatArray = NDArray[np.float64]

MOST_ROWS = 60
"""Ridges drawn at most: of more layers every k-th, the first and the last among them."""

OVERLAP = 1.7
"""Height of the highest ridge, and of a spike of 100 %, in rows."""

BULK = 0.9
"""Share of the ridges drawn in full; the peaks of the others are cut off at full height."""

WITH_NUMBERS = 24
"""Rows up to which mean, sd and share of zeros are written beside each ridge."""

OUTSIDE = 0.01
"""Share of a tensor's elements beyond an end of the axis from which that end is marked."""


def plot_ridgeline(ridges: xr.Dataset, *, ax: style.Target = None) -> Axes:
    """Draw the distributions of many layers at one step, or of one layer at several, one above the other.

    Parameters
    ----------
    ridges : Dataset
        From :func:`covshift.analysis.ridges.ridges`, dims ``(step, layer, cell)``. With one layer every step is a row;
        with several every layer is one, filled at the last step, its outline at the first.
    ax : Axes, Figure or SubFigure, optional
        Where to draw; a new figure by default.

    Returns
    -------
    Axes
        Every ridge has the same scale, on which the highest tenth is cut off. A spike at zero is the share of exact
        zeros, a bar the mean and one standard deviation either side, triangles at the ends mean that more than 1 % of
        the elements lie beyond. Where no row holds an element, the Axes says so instead.
    """
    demand_result("ridges", ridges, ("density", "elements"), of="covshift.analysis.ridges.ridges")
    with style.context():
        rows = _rows(ridges)
        ax = style.axes_on(ax, width=7.6, height=layer_height(rows.sizes["row"], row=0.17, least=2.6, most=10.0))
        if not bool((rows["elements"] > 0).any()):
            return style.message(ax, f"distributions of the {ridges.attrs['signal']}: not measured")
        _value_axis(ax, ridges)
        _draw(ax, rows, _first(ridges))
        what = "layer" if ridges.sizes["layer"] > 1 or ridges.sizes["step"] == 1 else "step"
        names = rows["row"].values
        label_layers(ax, names, what=what, every=rows.sizes["row"] <= WITH_NUMBERS)
        ax.set_ylim(len(names) - 0.5, -OVERLAP)
        ax.spines["left"].set_visible(False)
        ax.set_ylabel(_row_words(ridges, rows, what))
        title(ax, _finding(ridges, rows, what))
        _key(ax, ridges)
    return ax


def _rows(ridges: xr.Dataset) -> xr.Dataset:
    """The ridges to fill, along one dim ``row``; thinned."""
    if ridges.sizes["layer"] == 1 and ridges.sizes["step"] > 1:
        rows = ridges.isel(layer=0, drop=True).rename(step="row")
        rows = rows.assign_coords(row=[f"step {step}" for step in rows["row"].values])
    else:
        rows = ridges.isel(step=-1, drop=True).rename(layer="row") if ridges.sizes["step"] else _none(ridges)
    return rows.isel(row=_kept(rows.sizes["row"]))


def _none(ridges: xr.Dataset) -> xr.Dataset:
    return ridges.isel(layer=slice(0)).rename(layer="row").sum("step")


def _kept(rows: int) -> NDArray[np.int64]:
    stride = max(int(np.ceil(rows / MOST_ROWS)), 1)
    kept = np.arange(0, rows, stride)
    if kept.size > 1:
        kept[-1] = rows - 1
    return kept


def _first(ridges: xr.Dataset) -> FloatArray | None:
    """Densities of the first step, row by row, where layers are compared at two steps."""
    if ridges.sizes["layer"] < 2 or ridges.sizes["step"] < 2:
        return None
    density = ridges["density"].isel(step=0).transpose("layer", "cell").values
    return np.asarray(density[_kept(len(density))])


def _draw(ax: Axes, rows: xr.Dataset, first: FloatArray | None) -> None:
    density = rows["density"].transpose("row", "cell").values
    seen = [density] if first is None else [density, first]
    highest = _scale(seen)
    look, count = style.look(), len(density)
    centres = _centres(rows)
    width = float(np.clip(30.0 / max(count, 1), 0.5, 1.0))
    raster = sum(part.size for part in seen) > style.VECTOR_POINTS
    for row in range(count):
        order = 1.5 + 0.4 * row / count  # below the spines, so that one image holds all ridges
        ridge = row - OVERLAP * np.minimum(np.nan_to_num(density[row]) / highest, 1.0)
        ax.fill_between(
            centres, ridge, row, color=look.second, alpha=0.55, linewidth=0, zorder=order, rasterized=raster
        )
        ax.plot(
            centres, ridge, color=look.paper, linewidth=width, zorder=order, label=f"_ridge {row}", rasterized=raster
        )
        if first is not None and np.isfinite(first[row]).any():
            outline = row - OVERLAP * np.minimum(np.nan_to_num(first[row]) / highest, 1.0)
            ax.plot(
                centres,
                outline,
                color=look.muted,
                linewidth=0.6,
                zorder=order,
                label=f"_first {row}",
                rasterized=raster,
            )
    _ticks(ax, rows)


def _scale(seen: list[FloatArray]) -> float:
    """Density drawn at full height: that of nearly the highest ridge, so that one narrow peak flattens no other."""
    peaks = np.concatenate([part.max(axis=1, initial=0.0) for part in seen])
    peaks = peaks[np.isfinite(peaks) & (peaks > 0)]
    return float(np.quantile(peaks, BULK)) if peaks.size else 1.0


def _centres(rows: xr.Dataset) -> FloatArray:
    return np.asarray((rows["lower"].values + rows["upper"].values) / 2)


def _ticks(ax: Axes, rows: xr.Dataset) -> None:
    """Spikes at zero, means with one standard deviation, marks of what lies outside, numbers."""
    look, at = style.look(), np.arange(rows.sizes["row"])
    low, high = float(rows["lower"].values[0]), float(rows["upper"].values[-1])
    zero, mean, sd = (rows[name].values for name in ("zero_share", "mean", "sd"))
    spiked = np.flatnonzero(zero > 0)
    if low <= 0 <= high and spiked.size:
        ax.vlines(np.zeros(spiked.size), at[spiked] - OVERLAP * zero[spiked], at[spiked], color=look.accent, zorder=4)
    known = np.isfinite(mean) & np.isfinite(sd)
    ends = np.clip([mean - sd, mean + sd], low, high)[:, known]
    ax.hlines(at[known] + 0.12, ends[0], ends[1], color=look.ink, linewidth=0.9, zorder=4)
    inside = known & (mean >= low) & (mean <= high)
    ax.plot(mean[inside], at[inside] + 0.12, "|", color=look.ink, markersize=4, zorder=4, label="mean")
    for name, edge, marker in (("below_share", 0.0, "<"), ("above_share", 1.0, ">")):
        beyond = np.flatnonzero(rows[name].values > OUTSIDE)
        mark_edge(ax, beyond, edge=edge, marker=marker, along="y", label=name, markersize=3.5)
    if at.size <= WITH_NUMBERS:
        for row in at[known]:
            words = f"sd {amount(float(sd[row]))}, zeros {share(float(zero[row]))}"
            place = ax.get_yaxis_transform()
            ax.text(1.01, row, words, transform=place, fontsize=7, color=look.muted, va="center", clip_on=False)


def _value_axis(ax: Axes, ridges: xr.Dataset) -> None:
    low, high = float(ridges["lower"].values[0]), float(ridges["upper"].values[-1])
    within = float(ridges.attrs["linear_within"])
    name = str(ridges.attrs["signal"])
    ax.set_xlabel(f"value of the {name}")
    if ridges.attrs["scale"] == "symlog":
        ax.set_xscale("symlog", linthresh=within, linscale=0.9)
        symlog_ticks(ax.xaxis, linear_within=within, low=low, high=high)
        ax.set_xlabel(f"value of the {name}, logarithmic beyond ±{amount(within)}")
    ax.set_xlim(low, high)


def _row_words(ridges: xr.Dataset, rows: xr.Dataset, what: str) -> str:
    layers = ridges.sizes["layer"]
    if what == "step":
        return f"optimizer step (n = {rows.sizes['row']})"
    if rows.sizes["row"] < layers:
        return f"layer, input side on top ({rows.sizes['row']} of n = {layers} drawn)"
    return f"layer, input side on top (n = {layers})" if layers > 8 else f"layer (n = {layers})"


def _finding(ridges: xr.Dataset, rows: xr.Dataset, what: str) -> str:
    """Widest and narrowest row, or the row's movement."""
    sd = rows["sd"].values
    known = np.flatnonzero(np.isfinite(sd))
    if not known.size:
        return "No row holds a finite element"
    names = short_names(rows["row"].values)
    broken = np.flatnonzero(rows["non_finite_share"].values == 1.0)
    none = f"; no finite value {'at' if what == 'step' else 'in'} {', '.join(names[row] for row in broken[:3])}"
    rest = f" and {broken.size - 3} more" if broken.size > 3 else ""
    ended = f"{none}{rest}" if broken.size else ""
    if what == "step":
        layer = elide(str(ridges["layer"].values[0]), 40)
        known_at = [f"{amount(float(sd[row]))} at {names[row]}" for row in sorted({known[0], known[-1]})]
        return f"{layer} {ridges.attrs['signal']}: sd {', '.join(known_at)}{ended}"
    step = int(ridges["step"].values[-1])
    low, high = known[np.argmin(sd[known])], known[np.argmax(sd[known])]
    if low == high:
        return f"{names[low]} at step {step}: sd {amount(float(sd[low]))}{ended}"
    ends = f"{amount(float(sd[low]))} ({names[low]}) to {amount(float(sd[high]))} ({names[high]})"
    return f"sd of the {ridges.attrs['signal']} from {ends} at step {step}{ended}"


def _key(ax: Axes, ridges: xr.Dataset) -> None:
    look = style.look()
    keys: list[Patch | Line2D] = [Patch(color=look.second, alpha=0.55, label="density, one scale")]
    if ridges.sizes["layer"] > 1 and ridges.sizes["step"] > 1:
        first = int(ridges["step"].values[0])
        keys.append(Line2D([], [], color=look.muted, linewidth=0.8, label=f"at step {first}"))
    if bool((ridges["zero_share"] > 0).any()):
        keys.append(Line2D([], [], color=look.accent, label=f"exact zeros, 100 % = {OVERLAP:g} rows"))
    keys.append(Line2D([], [], color=look.ink, marker="|", label="mean ± sd"))
    if any(line.get_label() in ("below_share", "above_share") for line in ax.get_lines()):
        keys.append(Line2D([], [], color=look.ink, linestyle="", marker=">", label="more than 1 % beyond"))
    key_below(ax, keys, columns=3)
