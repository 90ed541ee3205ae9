"""Difference heatmaps: where, layer by layer and step by step, one group of runs lies above or below another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import Normalize
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator

from covshift.analysis.arguments import demand_result
from covshift.diagnosis.wording import percent, plural
from covshift.plots import style
from covshift.plots.axes import (
    colorbar,
    flat_cells,
    key_of_figure,
    layer_cells,
    layer_height,
    title,
    unlabel_rows,
    unmeasured_key,
    wrapped,
)
from covshift.plots.labels import amount, count, elide, short_names

SCALES = 0.9
"""Inches that the colour scales and the key take below the panels."""

BULK = 0.02
"""Share of the differences left beyond the ends of a colour scale: runs differ most in their first few steps."""

MEASURES = {
    "structural_rate": ("Structural zeros at z", "points"),
    "gradient_rms": ("Gradient rms", "decades"),
    "activation_sd": ("Activation sd", "decades"),
}
"""Words and unit of each measure of :func:`covshift.analysis.differences.group_differences`."""


def plot_differences(differences: xr.Dataset, *, ax: style.Target = None) -> Figure | SubFigure:
    """Draw how far groups of runs lie from the first, at every step and in every layer.

    Parameters
    ----------
    differences : Dataset
        From :func:`covshift.analysis.differences.group_differences`: dims ``(group, step, layer)``.
    ax : Axes, Figure or SubFigure, optional
        Where to draw; a new figure by default.

    Returns
    -------
    Figure or SubFigure
        A row of panels for each group, a panel for each measure; a measure has one colour scale throughout, drawn once
        below all of its panels, centred on 0, over the bulk of its differences. In each Axes of a panel the differences
        are the first collection and the cells whose interval covers 0, grey, the second; with one seed in either group
        nothing is grey, and the title says so.
        An infinite difference of logarithms, one group being exactly zero, has the colour of the scale's end.
        Layers without a number of a measure are left out of its panels. A panel without a number says so.
    """
    demand_result("differences", differences, ("group",), of="covshift.analysis.differences.group_differences")
    groups = [str(group) for group in differences["group"].values]
    with style.context():
        shown = {measure: _shown(differences, measure) for measure in MEASURES}
        most = max((values.sizes["layer"] for values in shown.values()), default=0)
        heights = [layer_height(most) + 0.5] * max(len(groups), 1) + [SCALES]
        figure = style.figure_on(ax, width=3.6 * len(MEASURES), height=sum(heights))
        norms = {measure: _norm(values) for measure, values in shown.items()}
        if not groups:
            style.message(style.panels(figure, 1)[0], "differences: not measured (one group of runs only)")
            return figure
        *bands, below = figure.subfigures(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
        meshes: dict[str, QuadMesh] = {}
        for band, group in zip(bands, groups, strict=True):
            here = differences.sel(group=group)
            named: list[str] = []
            for panel, measure in zip(style.panels(band, len(MEASURES)), MEASURES, strict=True):
                layers = shown[measure]["layer"].values.tolist()
                mesh = _map(panel, here, measure, layers=layers, norm=norms[measure])
                if mesh is None:
                    continue
                meshes[measure] = mesh
                if layers == named:
                    unlabel_rows(panel)
                named = layers
            text = wrapped(_title(here, group), width=44 * len(MEASURES))
            band.suptitle(text, x=0.01, ha="left", fontsize=10, fontweight="bold", parse_math=False)
        _scales(below, meshes)
        key_of_figure(below, _key(differences))
    return figure


def _shown(differences: xr.Dataset, measure: str) -> xr.DataArray:
    """Differences of the layers that have any."""
    values = differences[measure].transpose("group", "step", "layer")
    known = ~np.isnan(values.values).all(axis=(0, 1))
    return values.isel(layer=np.flatnonzero(known))


def _norm(values: xr.DataArray) -> Normalize:
    """Colour scale centred on 0 over the bulk of the differences; its ends stand for what lies beyond."""
    sizes = np.abs(values.values[np.isfinite(values.values)])
    limit = float(np.quantile(sizes, 1.0 - BULK)) if sizes.size else 0.0
    limit = limit or float(sizes.max(initial=0.0)) or 1.0
    return Normalize(-limit, limit)


def _map(ax: Axes, here: xr.Dataset, measure: str, *, layers: Sequence[str], norm: Normalize) -> QuadMesh | None:
    words, unit = MEASURES[measure]
    values, low, high = (here[f"{measure}{end}"].sel(layer=layers) for end in ("", "_low", "_high"))
    if not bool(values.notnull().any()):
        style.message(ax, f"{words}: not measured in both groups at a shared step")
        return None
    covers = (low <= 0) & (high >= 0)
    mesh = layer_cells(ax, _drawable(values.where(~covers), norm), norm=norm, cmap=style.look().change, width=16)
    flat_cells(ax, covers, color=style.look().line)
    ax.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    found = _zero_in_one(values, here) or _furthest(values, covers, unit=unit, level=here.attrs["level"])
    title(ax, f"{words}\n{found}", size=9.0)
    return mesh


def _scales(below: SubFigure, meshes: Mapping[str, QuadMesh]) -> None:
    """The colour scale of every measure, side by side in the order of the panels."""
    panels = style.panels(below, len(MEASURES), gridspec_kw={"wspace": 0.1})
    for ax, (measure, (words, unit)) in zip(panels, MEASURES.items(), strict=True):
        if measure not in meshes:
            ax.set_axis_off()
            continue
        formatter = FuncFormatter(lambda value, _: _signed(value, "points")) if unit == "points" else None
        label = f"{words}: difference, points" if unit == "points" else f"{words}: difference of log10"
        colorbar(meshes[measure], ax, label=label, formatter=formatter, extend="both", fill=True)


def _drawable(values: xr.DataArray, norm: Normalize) -> xr.DataArray:
    """``values`` with infinite ones beyond all others, at an end of the scale."""
    sizes = np.abs(values.values[np.isfinite(values.values)])
    beyond = 2.0 * max(float(norm.vmax or 0.0), float(sizes.max(initial=0.0)))
    return values.where(~np.isinf(values), np.sign(values) * beyond)


def _signed(value: float, unit: str) -> str:
    sign = "\N{MINUS SIGN}" if value < 0 else "+" if value > 0 else ""
    return f"{sign}{amount(abs(value) * (100 if unit == 'points' else 1))}"


def _zero_in_one(values: xr.DataArray, here: xr.Dataset) -> str:
    """In how many cells the one group is exactly zero, and the other is not; nothing where that is in none."""
    cells = int(values.notnull().sum())
    for infinite, name in ((np.inf, here.attrs["reference"]), (-np.inf, here["group"].item())):
        if found := int((values == infinite).sum()):
            return f"{count(found)} of {count(cells)} cells exactly zero in {elide(str(name), 18)} alone"
    return ""


def _furthest(values: xr.DataArray, covers: xr.DataArray, *, unit: str, level: float) -> str:
    """The largest difference that is drawn in colour, where more cells are than chance colours."""
    apart = np.where(covers.values, np.nan, values.values)
    colored, cells = int(np.isfinite(apart).sum()), int(np.isfinite(values.values).sum())
    if not colored or not np.nanmax(np.abs(apart)):
        return "no difference" if not colored and cells else "equal in all cells"
    if colored < cells and colored <= (1.0 - level) * cells:
        return f"{count(colored)} of {count(cells)} cells not grey: no more than chance"
    step, layer = np.unravel_index(int(np.nanargmax(np.abs(apart))), apart.shape)
    name, when = short_names(values["layer"].values, width=14)[layer], values["step"].values[step]
    most = f"{name} {_signed(float(apart[step, layer]), unit)} {unit}, step {when}"
    return most if colored == cells else f"{most}; {count(colored)} of {count(cells)} cells not grey"


def _title(here: xr.Dataset, group: str) -> str:
    """Which groups, how many seeds, and what could not be set side by side."""
    seeds, others = int(here["seeds"]), int(here.attrs["reference_seeds"])
    reference = elide(str(here.attrs["reference"]), 28)
    if seeds == others == 1:
        evidence = "one seed each: an illustration"
    elif min(seeds, others) == 1:
        evidence = f"one seed of {elide(group, 28) if seeds == 1 else reference}: an illustration"
    else:
        evidence = f"{seeds} and {plural(others, 'seed')}"
    left_out = [
        plural(number, what)
        for number, what in ((int(here["steps_left_out"]), "step"), (int(here.attrs["layers_left_out"]), "layer"))
        if number
    ]
    note = f"; left out as unmatched: {' and '.join(left_out)}" if left_out else ""
    return f"{elide(group, 28)} minus {reference} ({evidence}{note})"


def _key(differences: xr.Dataset) -> list[Patch]:
    blank = unmeasured_key()
    if any(differences[measure].attrs.get("exact_zeros", 0) for measure in MEASURES):
        blank.set_label("not measured, or exactly zero in both")
    handles = [blank]
    ends = ((-np.inf, 0.0, "another group"), (np.inf, 1.0, elide(str(differences.attrs["reference"]), 18)))
    for infinite, at, name in ends:
        if any((differences[measure].values == infinite).any() for measure in MEASURES):
            label = f"beyond the scale, or exactly zero in {name} alone"
            handles.insert(0, Patch(facecolor=style.look().change(at), label=label))
    level = float(differences.attrs["level"])
    if any(np.isfinite(differences[f"{measure}_low"].values).any() for measure in MEASURES):
        handles.insert(0, Patch(facecolor=style.look().line, label=f"{percent(level)} interval over seeds covers 0"))
    return handles
