"""The figures of the report: each drawn on a figure of its own and handed over as inline SVG with words around it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from covshift import plots
from covshift.analysis import comparison, distributions, rows
from covshift.exceptions import SignalNotRecorded
from covshift.plots import style
from covshift.plots.axes import layer_height
from covshift.reporting.results import Results
from covshift.reporting.svg import inline_svg

WIDTH = 11.2
RIVERS = 3
"""Layers whose distribution is drawn: those the diagnosis flagged first, then the first, middle and last."""

CURVES = ("loss", "accuracy")
"""Logged scalars whose curves are compared: every name that holds one of these words, or else the first logged."""

MOST_CURVES = 3


@dataclass(frozen=True)
class Picture:
    """A figure of the page: markup, and how to read it."""

    svg: str
    caption: str


def run_pictures(result: Results, *, prefix: str) -> dict[str, list[Picture]]:
    """Pictures of one run by section; a section that was not recorded has none."""
    sections: dict[str, list[Picture]] = {"shift": [], "gradient": []}
    if result.shift is not None:
        sections["shift"].append(_shift_map(result.shift, prefix=f"{prefix}-shift"))
        sections["shift"].extend(_rivers(result, prefix=f"{prefix}-river"))
    if result.zero_rate is not None:
        sections["gradient"].append(_gradient_zeros(result, result.zero_rate, prefix=f"{prefix}-zeros"))
    if result.profile is not None and result.profile.sizes["layer"]:
        sections["gradient"].append(_norm_profile(result.profile, prefix=f"{prefix}-norm"))
    return sections


def comparison_picture(recordings: Mapping[str, xr.DataTree], paired: xr.Dataset) -> Picture:
    """Curves of the runs above, paired layers below."""
    curves = {name: comparison.scalars(recordings, name) for name in _compared_scalars(recordings)}
    height = layer_height(paired.sizes["layer"], row=0.13, most=8.0) + 2.9 * bool(curves)
    return _picture(
        lambda figure: plots.plot_comparison(paired, curves, ax=figure),
        (WIDTH, height),
        prefix="comparison",
        caption="Above: logged scalars of every run. Below: each layer is a row, each run a mark on it, the line joins "
        "the lowest and the highest; medians over the last window of each run.",
    )


def _picture(draw: Callable[[Figure], object], size: tuple[float, float], *, prefix: str, caption: str) -> Picture:
    with style.context():
        figure = Figure(figsize=size, layout="constrained")
    draw(figure)
    return Picture(inline_svg(figure, prefix=prefix, label=f"{_titles(figure)}. {caption}"), caption)


def _titles(figure: Figure) -> str:
    """Every title on ``figure``, which states a finding: what a reader who cannot see the picture needs first."""
    texts = [figure.get_suptitle(), *(ax.get_title(loc="left") for ax in figure.get_axes())]
    return ". ".join(" ".join(text.split()) for text in texts if text)


def _shift_map(shift: xr.Dataset, *, prefix: str) -> Picture:
    return _picture(
        lambda figure: plots.plot_shift_map(shift, ax=figure.subplots()),
        (WIDTH, layer_height(shift.sizes["layer"])),
        prefix=prefix,
        caption="Distance (W1) of every layer's activations from the previous histogram, in standard deviations. The "
        "darker a cell, the further the layer moved; grey is what sampling alone shows.",
    )


def _rivers(result: Results, *, prefix: str) -> Iterator[Picture]:
    for position, (layer, signal) in enumerate(_drawn_layers(result)):
        try:
            river = distributions.river(result.recording, layer=layer, signal=signal)
        except SignalNotRecorded:
            continue
        yield _river(river, prefix=f"{prefix}-{position}")


def _river(river: xr.Dataset, *, prefix: str) -> Picture:
    return _picture(
        lambda figure: plots.plot_activation_river(river, ax=figure.subplots()),
        (WIDTH, 3.4),
        prefix=prefix,
        caption=f"Distribution of the {river.attrs['signal']} of {river.attrs['layer']} over the steps: the darker, "
        "the more elements; lines at the 1, 25, 50, 75 and 99 % quantiles and at zero.",
    )


def _drawn_layers(result: Results) -> list[tuple[str, str]]:
    """Layers to draw, in order, and the signal of each: what enters a nonlinearity, what leaves another layer."""
    layers = rows.group(result.recording, "layers")
    names, nonlinear = rows.names(layers).tolist(), rows.nonlinear(layers)
    inside = np.flatnonzero(nonlinear) if nonlinear.any() else np.arange(len(names))
    flagged = [f.layer for f in result.diagnosis.findings if f.verdict in ("bad", "watch") and f.layer in names]
    spread = [names[inside[at]] for at in (0, len(inside) // 2, len(inside) - 1)]
    chosen = list(dict.fromkeys([*flagged[:1], *spread]))[:RIVERS]
    return [
        (name, "preactivation" if nonlinear[names.index(name)] else "activation") for name in names if name in chosen
    ]


def _gradient_zeros(result: Results, zero_rate: xr.DataArray, *, prefix: str) -> Picture:
    """Zeros of dL/dz at the nonlinearities where they are known, else of the gradient at every layer's output."""
    rates, structural, where = zero_rate, None, "at the output of every layer"
    if result.linkage is not None and bool(result.linkage["gradient_zero_rate"].notnull().any()):
        rates, structural = result.linkage["gradient_zero_rate"], result.linkage["structural_rate"]
        where = "at the input z of every nonlinearity; structural zeros (it has no derivative there) apart"
    return _picture(
        lambda figure: plots.plot_gradient_zeros(rates, result.survival, structural=structural, ax=figure),
        (WIDTH, layer_height(rates.sizes["layer"])),
        prefix=prefix,
        caption=f"Share of gradient elements that are exactly zero, {where}. Beside it the share of units that fire.",
    )


def _norm_profile(profile: xr.Dataset, *, prefix: str) -> Picture:
    return _picture(
        lambda figure: plots.plot_norm_profile(profile, ax=figure.subplots()),
        (WIDTH, layer_height(profile.sizes["layer"])),
        prefix=prefix,
        caption="Size of the gradient over depth at the first, the middle and the last step. A straight slanted line "
        "means that every layer shrinks or amplifies it by the same factor.",
    )


def _compared_scalars(recordings: Mapping[str, xr.DataTree]) -> Sequence[str]:
    """Logged scalars that have a course, not merely a value: those of :data:`CURVES` where there are any."""
    logged: dict[str, None] = {}
    for recording in recordings.values():
        try:
            scalars = rows.group(recording, "scalars").drop_vars("wall_time", errors="ignore")
        except SignalNotRecorded:
            continue
        logged |= dict.fromkeys(str(name) for name, values in scalars.items() if int(values.notnull().sum()) > 1)
    chosen = [name for name in logged if any(word in name for word in CURVES)]
    return (chosen or list(logged))[:MOST_CURVES]
