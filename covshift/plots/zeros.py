"""Gradient zeros: where they are exactly zero, layer by layer, and beside it how many units are still alive."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import numpy as np
import xarray as xr
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import Normalize
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import Patch
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

from covshift.analysis.arguments import demand_result
from covshift.diagnosis import Finding
from covshift.diagnosis.thresholds import THRESHOLDS
from covshift.diagnosis.wording import plural
from covshift.plots import palette, style
from covshift.plots.axes import (
    colorbar,
    isolated,
    key_of_figure,
    label_steps,
    layer_cells,
    layer_height,
    mark_limit,
    title,
    unlabel_rows,
    unmeasured_key,
    wrapped,
)
from covshift.plots.headline import NAME_WIDTH, headline, mark_since, named, over_time, rows_of
from covshift.plots.labels import elide, share, short_names

NAMED_CURVES = 4
"""Layers named in the survival panel: those in which fewest units fire at the end."""

LIMIT_DASHES = {"watch": (0, (1, 1.5)), "bad": (0, (6, 2))}
"""Dots and dashes tell the limits of the rule on dead units apart, in the key as well."""

RULES = ("gradient_missing", "structural_zeros", "gradient_zeros")
"""Those on shares of elements, as the maps show them; the rules on units count what no cell shows."""


def plot_gradient_zeros(
    zero_rate: xr.DataArray,
    survival: xr.DataArray | None = None,
    *,
    structural: xr.DataArray | None = None,
    findings: Iterable[Finding] = (),
    ax: style.Target = None,
) -> Figure | SubFigure:
    """Draw where gradients are exactly zero and, beside it, how many units are still alive.

    Parameters
    ----------
    zero_rate : DataArray
        From :func:`covshift.analysis.gradient_health.zero_rate`: share of exact zeros, dims ``(step, layer)``. A
        coordinate ``producer`` names the layer under which a row was judged, where that is another.
    survival : DataArray, optional
        From :func:`covshift.analysis.dead_units.survival`: share of units not silent, dims ``(step, layer)``.
    structural : DataArray, optional
        Share of structural zeros, dims ``(step, layer)``: elements at which the nonlinearity has no derivative. Drawn
        apart, since a zero of another origin says nothing about the nonlinearity.
    findings : iterable of Finding
        Of the checks ``"gradient arrives"`` and ``"gradient zeros"``: the loudest of a layer drawn is the title, and
        each by a rule on shares of elements marks the step since when.
    ax : Axes, Figure or SubFigure, optional
        Where to draw; a new figure by default.

    Returns
    -------
    Figure or SubFigure
        One Axes for each panel: all zeros, structural ones, survival; a panel without a number says so. The limits of
        the rules are lines on the colour bar and in the panel of survival, whose title says how many layers have silent
        units at the end, and in how many of these fewer fire then than at the first record.
    """
    demand_result("zero_rate", zero_rate, ("step", "layer"), of="covshift.gradient_health.zero_rate", kind=xr.DataArray)
    found = list(findings)
    maps = {"all exact zeros": zero_rate}
    if structural is not None:
        maps["structural zeros alone"] = structural
    columns = len(maps) + (survival is not None)
    with style.context():
        figure = style.figure_on(ax, width=2.6 + 3.1 * columns, height=layer_height(zero_rate.sizes["layer"]))
        axes = style.panels(figure, columns)
        keys = _zero_maps(axes[: len(maps)], maps, found)
        if survival is not None:
            keys.extend(_survival_curves(axes[-1], survival))
        if keys:
            key_of_figure(figure, keys)
        text = wrapped(
            _told(zero_rate, found) or _zero_finding(zero_rate),
            width=50 * columns,
        )
        figure.suptitle(text, x=0.01, ha="left", fontsize=10, fontweight="bold", parse_math=False)
    return figure


def _told(zero_rate: xr.DataArray, findings: list[Finding]) -> str:
    rows = {name: str(zero_rate["layer"].values[row]) for name, row in rows_of(zero_rate).items()}
    words = partial(_words, first_step=_first_step(zero_rate), rows=rows)
    return headline(findings, words, foremost="gradient arrives", drawn=rows)


def _zero_maps(axes: list[Axes], maps: dict[str, xr.DataArray], findings: list[Finding]) -> list[Artist]:
    """Maps of shares side by side on one colour scale, the layers named on the first that is drawn; their key."""
    drawn: list[tuple[Axes, QuadMesh]] = []
    limits: list[Artist] = []
    for ax, (name, values) in zip(axes, maps.items(), strict=True):
        if not np.isfinite(values.values).any():
            style.message(ax, f"{name}: not measured")
            continue
        mesh = layer_cells(ax, values, norm=Normalize(0.0, 1.0), width=20)
        title(ax, name[0].upper() + name[1:], size=9.0)
        if drawn:
            unlabel_rows(ax)
        marks = None if drawn else mark_since(ax, findings, values, rules=RULES)
        limits.extend([marks] if marks else [])
        if not np.isfinite(values.values).all() and not any(isinstance(one, Patch) for one in limits):
            limits.append(unmeasured_key())
        drawn.append((ax, mesh))
    if drawn:
        share_of = PercentFormatter(1.0, symbol=" %")
        bar = colorbar(drawn[0][1], [ax for ax, _ in drawn], label="share of elements", formatter=share_of)
        if len(maps) > 1:
            limits.extend(mark_limit(bar, THRESHOLDS["structural_zeros"]))
    return limits


def _survival_curves(ax: Axes, survival: xr.DataArray) -> list[Artist]:
    by_step = survival.transpose("step", "layer")
    known = by_step.isel(layer=np.flatnonzero(np.isfinite(by_step.values).any(axis=0)))
    if not known.size:
        style.message(ax, "units: not measured")
        return []
    first, last = _last_known(known.values[::-1]), _last_known(known.values)
    worst = [int(row) for row in np.argsort(last, kind="stable")[:NAMED_CURVES] if last[row] < 1.0]
    _quiet_curves(ax, known.isel(layer=[row for row in range(last.size) if row not in worst]))
    names = short_names(known["layer"].values)
    for rank, row in enumerate(worst):
        _named_curve(ax, known.isel(layer=row), rank=rank, label=f"{names[row]} ({share(float(last[row]))})")
    _alive_limits(ax)
    ax.set_ylim(-0.02, 1.02)
    ax.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
    ax.grid(axis="y")
    label_steps(ax, known["step"].values)
    ax.set_ylabel("units alive")
    title(ax, _silent_units(first, last) + _no_longer_finite(known), size=9.0)
    return list(ax.get_legend_handles_labels()[0])


def _silent_units(first: NDArray[np.float64], last: NDArray[np.float64]) -> str:
    """Layers with silent units at the end, and those in which more fired at first: others had them from the start."""
    silent, lost = int((last < 1.0).sum()), int((last < first).sum())
    words = f"{silent} of {plural(last.size, 'layer')} {'has' if silent == 1 else 'have'} silent units (one line each)"
    return f"{words}; fewer fire than at first in {lost}" if lost else words


def _no_longer_finite(known: xr.DataArray) -> str:
    """Which curves end because nothing finite came any more, and where the first of them does."""
    broken = np.flatnonzero(known["broken"].values) if "broken" in known.coords else np.zeros(0, dtype=np.int64)
    if not broken.size:
        return ""
    measured = np.isfinite(known.values[:, broken])
    ends = known["step"].values[len(measured) - 1 - measured[::-1].argmax(axis=0)]
    return f"; no finite value in {broken.size} after step {int(ends.min())}"


def _alive_limits(ax: Axes) -> None:
    """The limits of the rule about dead units, as shares alive; named in the key, where no word covers a curve."""
    for word, dashes in LIMIT_DASHES.items():
        limit = getattr(THRESHOLDS["dead_units"], word)
        if isinstance(limit, float):
            color, label = (
                style.look().verdicts[word].color,
                f"{word} below {share(1.0 - limit)} alive, if the rest is dead",
            )
            ax.axhline(1.0 - limit, color=color, linewidth=1.0, linestyle=dashes, label=label)


def _quiet_curves(ax: Axes, survival: xr.DataArray) -> None:
    """One faint line for each layer, the fainter the more there are; equal ones are one line, as strong as all."""
    if not survival.size:
        return
    values = survival.transpose("step", "layer").values
    faint = float(np.clip(8.0 / survival.sizes["layer"], 0.1, 0.4))
    distinct = np.unique(np.nan_to_num(values, nan=-1.0), axis=1, return_index=True, return_counts=True)
    for layer, alike in zip(*distinct[1:], strict=True):
        ax.plot(
            survival["step"].values,
            values[:, layer],
            color=style.look().muted,
            alpha=1.0 - (1.0 - faint) ** int(alike),
            linewidth=0.9,
            marker="o",
            markevery=isolated(values[:, layer]),
            drawstyle="steps-post",
            rasterized=survival.size > style.VECTOR_POINTS,
        )


def _named_curve(ax: Axes, survival: xr.DataArray, *, rank: int, label: str) -> None:
    """The line of a layer with silent units; its colour is none of a run's."""
    marked = range(min(rank, survival.size - 1), survival.size, max(survival.size // 6, 1))
    ax.plot(
        survival["step"],
        survival,
        color=(style.look().accent, style.look().second, style.look().ink, style.look().muted)[rank],
        linewidth=1.1,
        marker=palette.RUN_MARKERS[rank],
        markevery=sorted({*marked, *isolated(survival.values)}),
        drawstyle="steps-post",
        label=label,
    )


def _last_known(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Last finite number of every column, each of which has one; the first of a table turned upside down."""
    backwards = values[::-1]
    return np.asarray(backwards[np.isfinite(backwards).argmax(axis=0), np.arange(values.shape[1])])


def _zero_finding(zero_rate: xr.DataArray) -> str:
    values = zero_rate.transpose("step", "layer")
    known = np.flatnonzero(np.isfinite(values.values).any(axis=1))
    if not known.size:
        return "Gradient zeros: not measured"
    last = values.isel(step=known[-1])
    most = int(np.nanargmax(last.values))
    silent = int((last.values == 1.0).sum())
    where = f"most in {short_names(last['layer'].values)[most]}, {share(float(last.values[most]))} of elements"
    if silent:
        where = f"{plural(silent, 'layer')} receive{'s' if silent == 1 else ''} no gradient at all"
    return f"Gradient zeros at step {int(last['step'])}: {where}"


def _first_step(zero_rate: xr.DataArray) -> int:
    return int(zero_rate["step"].values[0]) if zero_rate.sizes["step"] else 0


def _words(finding: Finding, *, first_step: int, rows: dict[str, str]) -> str:
    subject = _subject(finding, rows)
    if finding.check == "gradient arrives":
        if finding.reached_step is None:
            return f"{subject} hardly receives a gradient{over_time(finding)}"
        if finding.reached_step <= first_step:
            return f"{subject} receives no gradient"
        earlier = f" ({_before(finding)})" if finding.since_step != finding.reached_step else ""
        return f"{subject} stops receiving gradient at step {finding.reached_step}{earlier}"
    quantity = finding.threshold.quantity if finding.threshold is not None else "share of zeros"
    return f"{subject}: {quantity} is {share(finding.value)}{over_time(finding)}"


def _subject(finding: Finding, rows: dict[str, str]) -> str:
    """The layer of a finding, and in which row to look where that has another name or there is none."""
    row = rows.get(finding.layer)
    if row is None:
        return f"{named(finding)} (not drawn)"
    return named(finding) + (f" (row {elide(row, NAME_WIDTH)})" if row != finding.layer else "")


def _before(finding: Finding) -> str:
    """What a finding tells of the time before its value held."""
    return finding.history.rpartition(", ")[0]
