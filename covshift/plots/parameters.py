"""Update ratio: whether the step size is right, parameter by parameter."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import NDArray

from covshift.analysis.arguments import demand_result
from covshift.diagnosis import Finding
from covshift.diagnosis.finding import ROOT
from covshift.diagnosis.thresholds import THRESHOLDS
from covshift.diagnosis.wording import plural
from covshift.plots import palette, style
from covshift.plots.axes import isolated, key_below, label_amounts, label_steps, mark_edge, title
from covshift.plots.headline import flagged, headline, named, over_time
from covshift.plots.labels import amount, short_names

FloatArray = NDArray[np.float64]

GUIDE = 1e-3
"""A. Karpathy's rule of thumb for a good ratio; the band around it is the rule's."""

NAMED = 4
"""Flagged parameters drawn in colours of their own."""

KEYED = 6
"""Parameters of which all are in the key; of more, the flagged ones, or the ends of the rest."""

BULK = 0.01
"""Share of the ratios left beyond either end of the axis, and marked there."""


def plot_update_ratio(ratio: xr.DataArray, *, findings: Iterable[Finding] = (), ax: style.Target = None) -> Axes:
    """Draw the length of every update relative to the parameter it moves.

    Parameters
    ----------
    ratio : DataArray
        From :func:`covshift.analysis.gradient_health.update_ratio`, dims ``(step, parameter)``.
    findings : iterable of Finding
        Of the check ``"update ratio"``: the loudest is the title, and the parameters of the flagged layers are named.
    ax : Axes, Figure or SubFigure, optional
        Where to draw; a new figure by default.

    Returns
    -------
    Axes
        One line a parameter, labelled by its name, pale at the input and dark at the output, on a logarithmic axis,
        with a mark at each record without a neighbour; the band inside which the rule says ok, its outer limits, and a
        guide at 1e-3. Updates of exactly zero are arrows on the lower edge; triangles mark steps beyond the axis. Where
        nothing was measured, the Axes says so instead.
    """
    demand_result("ratio", ratio, ("step", "parameter"), of="covshift.gradient_health.update_ratio", kind=xr.DataArray)
    found = list(findings)
    with style.context():
        ax = style.axes_on(ax, width=7.6, height=4.0)
        values = ratio.transpose("step", "parameter")
        sizes = values.values.astype(np.float64)
        if not np.isfinite(sizes).any():
            return style.message(ax, "update ratio: not measured (updates= records it)")
        ax.set_yscale("log")
        low, high = _limits(sizes, flagged(found))
        loud = _loud(values, found)
        _lines(ax, values, loud)
        _targets(ax)
        _edges(ax, values["step"].values, sizes, low, high)
        ax.set_ylim(low, high)
        label_amounts(ax.yaxis)
        label_steps(ax, values["step"].values)
        ax.set_ylabel("update norm / weight norm")
        title(ax, headline(found, _words) or _summary(values))
        _key(ax, values, loud)
    return ax


def _limits(sizes: FloatArray, findings: Iterable[Finding]) -> tuple[float, float]:
    """Ends of the axis: the bulk of the ratios, the band of the rule, and what findings are about."""
    band = THRESHOLDS["update_ratio"].watch
    ends = list(band) if isinstance(band, tuple) else [GUIDE]
    positive = sizes[np.isfinite(sizes) & (sizes > 0)]
    ends += [finding.value for finding in findings if 0 < finding.value < np.inf]
    if positive.size:
        ends += np.quantile(positive, [BULK, 1.0 - BULK]).tolist()
    return min(ends) / 2.5, max(ends) * 2.5


def _loud(values: xr.DataArray, findings: list[Finding]) -> dict[int, int]:
    """Positions of the parameters of flagged layers, and the rank of each among them."""
    layers = [str(name).rpartition(".")[0] or ROOT for name in values["parameter"].values]
    wanted = list(dict.fromkeys(finding.layer for finding in flagged(findings)))[:NAMED]
    chosen = [position for layer in wanted for position, own in enumerate(layers) if own == layer]
    return {position: rank for rank, position in enumerate(chosen[:NAMED])}


def _lines(ax: Axes, values: xr.DataArray, loud: dict[int, int]) -> None:
    look, count = style.look(), values.sizes["parameter"]
    shades = look.sequence(count)
    for position in range(count):
        series = values.isel(parameter=position)
        rank = loud.get(position)
        positive = np.where(series.values > 0, series.values, np.nan)
        marked, lone = _marked(series.size, rank), isolated(positive)
        ax.plot(
            series["step"],
            positive,
            color=shades[position] if rank is None else look.runs[(1, 3, 5, 7)[rank]],
            linewidth=0.8 if rank is None else 1.6,
            marker=("o" if lone else "") if rank is None else palette.RUN_MARKERS[rank],
            markevery=sorted({*marked, *lone}),
            zorder=2 if rank is None else 3,
            label=str(series["parameter"].values),
            rasterized=values.size > style.VECTOR_POINTS,
        )


def _marked(records: int, rank: int | None) -> range:
    """Records at which the line of a flagged parameter has a mark, whatever is beside them."""
    return range(0) if rank is None else range(rank, records, max(records // 6, 1))


def _targets(ax: Axes) -> None:
    """Band, guide and outer limits of the rule."""
    look, threshold = style.look(), THRESHOLDS["update_ratio"]
    if isinstance(threshold.watch, tuple):
        ax.axhspan(*threshold.watch, color=look.target, alpha=0.1, linewidth=0, zorder=0)
    ax.axhline(GUIDE, color=look.target, linewidth=1.0, linestyle=(0, (5, 3)), label="_guide")
    for end in threshold.bad if isinstance(threshold.bad, tuple) else ():
        ax.axhline(end, color=look.verdicts["bad"].color, linewidth=0.9, linestyle=(0, (1, 2)), label="_bad")


def _edges(ax: Axes, steps: NDArray[np.generic], sizes: FloatArray, low: float, high: float) -> None:
    """Marks on the edges at steps where a parameter's ratio is exactly zero or beyond the axis."""
    marks = (
        ((sizes == 0).any(axis=1), 0.0, "v", "an update of exactly 0", style.look().ink),
        (((sizes > 0) & (sizes < low)).any(axis=1), 0.03, "v", "beyond the axis", "none"),
        ((sizes > high).any(axis=1), 0.985, "^", "beyond the axis", "none"),
    )
    for where, height, marker, meaning, face in marks:
        mark_edge(ax, steps[where], edge=height, marker=marker, along="x", label=f"_{meaning}", markerfacecolor=face)


def _key(ax: Axes, values: xr.DataArray, loud: dict[int, int]) -> None:
    names, lines = short_names(values["parameter"].values, width=30), ax.get_lines()
    keys: list[Line2D | Patch] = []
    chosen = _keyed(values, loud)
    for position in chosen:
        drawn = lines[position]
        marker, color = drawn.get_marker(), drawn.get_color()
        keys.append(Line2D([], [], color=color, marker=marker, linewidth=drawn.get_linewidth(), label=names[position]))
    keys.append(Patch(color=style.look().target, alpha=0.1, label="ok"))
    keys.append(Line2D([], [], color=style.look().target, linestyle=(0, (5, 3)), label=f"guide {GUIDE:g}"))
    low, high = sorted(ax.get_ylim())
    if any(low < np.asarray(line.get_ydata())[0] < high for line in lines if line.get_label() == "_bad"):
        bad = style.look().verdicts["bad"].color
        keys.append(Line2D([], [], color=bad, linestyle=(0, (1, 2)), label="bad beyond"))
    seen = {
        str(line.get_label())[1:]: line
        for line in lines
        if line.get_label() in ("_an update of exactly 0", "_beyond the axis")
    }
    for label, line in seen.items():
        look = {"color": line.get_color(), "markerfacecolor": line.get_markerfacecolor()}
        keys.append(Line2D([], [], linestyle="", marker=line.get_marker(), markersize=4.5, label=label, **look))  # type: ignore[arg-type]
    key_below(ax, keys, columns=3)


def _keyed(values: xr.DataArray, loud: dict[int, int]) -> list[int]:
    """Positions of parameters in the key, all with a line: of few all, else the loud ones or the ends of the rest.

    Of a parameter that never moved there is no line, only an arrow on the edge, whose key says what it means.
    """
    drawn = np.flatnonzero((values.values > 0).any(axis=0)).tolist()
    quiet = [position for position in drawn if position not in loud]
    shown = [position for position in loud if position in drawn]
    if len(drawn) <= KEYED:
        return [*shown, *quiet]
    return shown if len(shown) == len(loud) > 0 else [*shown, *sorted({quiet[0], quiet[-1]} if quiet else set())]


def _summary(values: xr.DataArray) -> str:
    known = np.flatnonzero(np.isfinite(values.values).any(axis=1))
    last = values.isel(step=int(known[-1]))
    low, high = float(last.min()), float(last.max())
    weights = plural(int(last.notnull().sum()), "weight")
    return f"An update moves {weights} by {amount(low)} to {amount(high)} of their length at step {int(last['step'])}"


def _words(finding: Finding) -> str:
    if finding.value == 0 and finding.reached_step is None:
        return f"{named(finding)}: most updates move no weight{over_time(finding)}"
    if finding.value == 0:
        return f"{named(finding)}: updates no longer move a weight{over_time(finding)}"
    if finding.threshold == THRESHOLDS["update_jump"]:
        return f"{named(finding)}: updates of {amount(finding.value)} of a weight's length{over_time(finding)}"
    return f"{named(finding)}: an update moves a weight by {amount(finding.value)} of its length{over_time(finding)}"
