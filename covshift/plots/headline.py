"""Findings in pictures: the sentence above a figure, and the step since when beside a layer.

A title says what the rules found, in the words of the loudest finding; a picture without findings has none to tell.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from covshift.diagnosis import Finding
from covshift.diagnosis.finding import SEVERITY, WHOLE_RUN, of_layers
from covshift.diagnosis.thresholds import THRESHOLDS
from covshift.diagnosis.wording import plural
from covshift.plots import style
from covshift.plots.labels import elide

NAME_WIDTH = 40
SINCE = "onset of the finding"


def flagged(findings: Iterable[Finding]) -> list[Finding]:
    """Findings to watch or worse: the loudest first, then causes before what they explain, then the earliest."""
    loud = [finding for finding in findings if finding.verdict in ("bad", "watch")]
    return sorted(loud, key=lambda one: (SEVERITY.index(one.verdict), bool(one.explained_by), _begun(one)))


def _begun(finding: Finding) -> float:
    return float("inf") if finding.since_step is None else finding.since_step


def headline(
    findings: Iterable[Finding],
    words: Callable[[Finding], str],
    *,
    foremost: str = "",
    drawn: Collection[str] = (),
) -> str:
    """The loudest finding in ``words``, what it follows from, and how many more layers are flagged.

    Of consequences equally loud, those of the check ``foremost`` come first. Findings of the layers ``drawn`` go before
    all others: a picture must show what its title tells. Empty where none is flagged.
    """
    loud = flagged(findings)
    if loud and loud[0].explained_by:
        loud.sort(key=lambda one: (SEVERITY.index(one.verdict), one.check != foremost))
    loud.sort(key=lambda one: one.layer not in drawn)
    if not loud:
        return ""
    others = {finding.layer for finding in loud} - {loud[0].layer}
    more = len(of_layers(sorted(others)))
    cause = f"; follows from {loud[0].explained_by}" if loud[0].explained_by else ""
    return words(loud[0]) + cause + (f" (and {plural(more, 'more layer')})" if more else "")


def named(finding: Finding) -> str:
    """The layer of a finding as the subject of a sentence."""
    return "The run" if finding.layer == WHOLE_RUN else f"Layer '{elide(finding.layer, NAME_WIDTH)}'"


def over_time(finding: Finding) -> str:
    """What a finding says of the steps, to be put after its value: ``" since step 60"``, or what was crossed when."""
    if not finding.history or finding.history.startswith("since"):
        return f" {finding.history}".rstrip()
    return f"; {finding.history}"


def rows_of(values: xr.DataArray) -> dict[str, int]:
    """Row of every layer in a picture of ``values``, also by the name of the ``producer`` under which it was judged."""
    labels = [values[name].values for name in ("producer", "layer") if name in values.coords]
    return {str(name): row for names in labels for row, name in enumerate(names)}


def mark_since(ax: Axes, findings: Iterable[Finding], values: xr.DataArray, *, rules: Collection[str]) -> Line2D | None:
    """Mark on each layer's row the onset of what is found there: the step since which its reason counts.

    Parameters
    ----------
    ax : Axes
        With one row for each layer of ``values`` and steps along x.
    findings : iterable of Finding
        Those to watch or worse are marked.
    values : DataArray
        With the coordinate ``layer``, and perhaps ``producer``: the layer under whose name the row was judged.
    rules : collection of str
        Names in :data:`THRESHOLDS` of the rules on what the cells show. A finding by another rule is not marked, as the
        cells would deny it.

    Returns
    -------
    Line2D or None
        The marks, labelled :data:`SINCE`; None where there is nothing to mark.
    """
    rows, drawn = rows_of(values), [THRESHOLDS[rule] for rule in rules]
    low, high = sorted(ax.get_xlim())
    begun: dict[int, int] = {}
    for finding in flagged(findings):
        if finding.layer in rows and finding.since_step is not None and finding.threshold in drawn:
            row = rows[finding.layer]
            begun[row] = min(finding.since_step, begun.get(row, finding.since_step))
    if not begun:
        return None
    look = style.look()
    size = float(np.clip(200.0 / max(values.sizes["layer"], 1), 2.4, 5.0))
    at = np.clip(np.array(list(begun.values()), dtype=np.float64), low, high)
    (marks,) = ax.plot(
        at,
        list(begun),
        linestyle="",
        marker=">",
        markersize=size,
        color=look.accent,
        markeredgecolor=look.paper,
        markeredgewidth=0.5,
        clip_on=False,
        zorder=5,
        label=SINCE,
    )
    return marks
