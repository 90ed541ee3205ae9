"""The shift map: how far every layer moved between steps, and when."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.patches import Patch

from covshift.analysis.arguments import demand_result
from covshift.diagnosis import Finding
from covshift.diagnosis.thresholds import THRESHOLDS
from covshift.plots import style
from covshift.plots.axes import (
    colorbar,
    flat_cells,
    key_below,
    layer_cells,
    layer_height,
    mark_edge,
    mark_limit,
    title,
    unmeasured_key,
)
from covshift.plots.headline import headline, mark_since, named, over_time
from covshift.plots.labels import amount, count, short_names

BULK = 0.03
"""Share of a step's layers, and below of all distances, left beyond the ends of the colour scale."""

EARLY = 0.25
"""Share of the steps that may lie beyond the colour scale as a whole: training moves far in its first few."""

ABOVE, BELOW = (10.0, 100.0), 1000.0
"""The colour scale ends within so many times the limit of the rule, and begins at most so far below it.

Where distances go beyond the limit there is room to tell by how much, but not so much that all else would be pale.
"""


BEYOND = "beyond the scale"


def plot_shift_map(shift: xr.Dataset, *, findings: Iterable[Finding] = (), ax: style.Target = None) -> Axes:
    """Draw which layers shifted, and when.

    One cell for each step and layer: the first Wasserstein distance to the reference distribution, in standard
    deviations of the reference, on a logarithmic scale over the bulk of them. Cells at or below their noise floor are
    grey: two halves of the same examples are as far apart. Cells whose mean lies too far from zero for the bins to
    resolve a shift (``off_centre``) count as not measured.

    Parameters
    ----------
    shift : Dataset
        From :func:`covshift.analysis.shift.between_steps`: ``w1``, ``noise_floor`` and ``off_centre`` with
        dims ``(step, layer)``.
    findings : iterable of Finding
        Of the check ``"shift"``: the loudest is the title, and each marks the step since when.
    ax : Axes, Figure or SubFigure, optional
        Where to draw; a new figure by default.

    Returns
    -------
    Axes
        With the distances as its first collection and the cells within the noise floor as its second. The threshold of
        the rule is a line on the colour bar; arrows on the upper edge mark steps with a distance beyond its
        colours. Where no cell has a number, the Axes says so instead.
    """
    demand_result("shift", shift, ("w1", "noise_floor", "off_centre"), of="covshift.shift.between_steps")
    found = list(findings)
    with style.context():
        ax = style.axes_on(ax, width=7.6, height=layer_height(shift.sizes["layer"]))
        w1 = shift["w1"].where(~shift["off_centre"]).transpose("step", "layer")
        measured = w1.notnull()
        if not bool(measured.any()):
            return style.message(ax, f"shift: not measured ({_why(shift)})")
        moved = measured & (w1 > shift["noise_floor"].fillna(0.0))
        colors = _norm(w1.where(moved))
        mesh = layer_cells(ax, w1.where(moved), norm=colors)
        flat_cells(ax, measured & ~moved, color=style.look().within_floor)
        bar = colorbar(mesh, ax, label="W1, sd of the reference", extend="both")
        limits = mark_limit(bar, THRESHOLDS["shift"])
        far = (w1.where(moved) > (colors.vmax or np.inf)).any("layer").values
        mark_edge(ax, w1["step"].values[far], edge=0.99, marker="^", along="x", label=BEYOND)
        beyond = [line for line in ax.get_lines() if line.get_label() == BEYOND]
        keys: list[object] = [Patch(facecolor=style.look().within_floor, label="within the noise floor")]
        marks = mark_since(ax, found, w1, rules=("shift",))
        key_below(ax, [*keys, unmeasured_key(), *limits, *([marks] if marks else []), *beyond])
        title(ax, _title(w1, moved, found))
    return ax


def _why(shift: xr.Dataset) -> str:
    """Why no cell has a number."""
    if shift.sizes["step"] < 2:
        return "a shift needs histograms at two steps"
    until = int(shift.attrs.get("finite_until", shift["step"].values[-1]))
    if until < shift["step"].values[1]:
        return f"no finite value after step {until}" if until >= 0 else "no finite value"
    if bool((shift["off_centre"] & shift["w1"].notnull()).any()):
        return "the bins are too wide for the distributions"
    return "no layer has a spread at two steps with histograms"


def _norm(moved: xr.DataArray) -> LogNorm:
    """Colour scale over the bulk of the layers at most steps, and the limit of the rule; its ends hold the rest.

    The upper end is a quantile over time of a quantile over layers: one column of extreme cells may be more than any
    share of all cells that one would cut off, and must not make the rest pale.
    """
    table = moved.transpose("step", "layer").values
    steps = [row[np.isfinite(row) & (row > 0)] for row in table]
    known = [row for row in steps if row.size]
    if not known:
        return LogNorm(0.1, 1.0)
    values = np.concatenate(known)
    least = float(np.quantile(values, BULK))
    most = float(np.quantile([np.quantile(row, 1.0 - BULK) for row in known], 1.0 - EARLY))
    limit = THRESHOLDS["shift"].watch
    if isinstance(limit, float):
        least = min(max(least, limit / BELOW), 0.9 * limit)
        most = float(np.clip(most, min(max(values.max(), 1.1 * limit), ABOVE[0] * limit), ABOVE[1] * limit))
    return LogNorm(least, max(most, 2.0 * least))


def _title(w1: xr.DataArray, moved: xr.DataArray, findings: list[Finding]) -> str:
    cells, above = int(np.isfinite(w1.values).sum()), int(moved.values.sum())
    told = headline(findings, _words)
    if not above:
        return told or f"No layer shifted beyond its noise floor ({count(cells)} cells)"
    share = f"{count(above)} of {count(cells)} cells above noise"
    if told:
        return f"{told}; {share}"
    step, layer = np.unravel_index(int(np.nanargmax(w1.where(moved).values)), w1.shape)
    name, when = short_names(w1["layer"].values)[layer], w1["step"].values[step]
    furthest = amount(float(w1.values[step, layer]))
    return f"Furthest: {name} by {furthest} sd at step {when}; {share}"


def _words(finding: Finding) -> str:
    """A finding about single units says so: the map shows whole layers, and may show none of it."""
    if finding.threshold == THRESHOLDS["unit_shift"]:
        moved = f"units shift by {amount(finding.value)} sd each from one record of units to the next (not drawn)"
        return f"{named(finding)}: {moved}{over_time(finding)}"
    return f"{named(finding)} shifts by {amount(finding.value)} sd from one histogram to the next{over_time(finding)}"
