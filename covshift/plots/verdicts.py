"""The verdict grid: where to look, at a glance."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from covshift.analysis.arguments import demand_result
from covshift.diagnosis.diagnosis import Diagnosis
from covshift.diagnosis.finding import of_layers, worst
from covshift.diagnosis.wording import plural
from covshift.exceptions import InvalidArgumentError
from covshift.plots import style
from covshift.plots.axes import key_below, label_layers, layer_height, name_of_rows, title, wrapped

LOUDNESS = ("bad", "watch", "ok", "not measured")


def plot_verdict_grid(diagnosis: Diagnosis, *, rows: int = 60, ax: style.Target = None) -> Axes:
    """Draw the verdict of every check on every layer.

    A verdict is a shape, a colour and a word: a filled square is bad, a triangle watch, a disc ok, a ring not measured.

    Parameters
    ----------
    diagnosis : Diagnosis
        From :func:`covshift.diagnosis.diagnose`. Checks that apply to no layer are left out and named in the key.
    rows : int, default 60
        At most so many layers; the whole run and the model's input, which are none, come in addition. Where there are
        more, those whose worst verdict is worst are kept, of these first the ones that are bad of themselves and not
        by what another finding explains, then those with most loud verdicts. They stand in the order of the network,
        and the title says how many of which verdict are left out.
    ax : Axes, Figure or SubFigure, optional
        Where to draw; a new figure by default.

    Returns
    -------
    Axes
        With one line artist a verdict word, labelled by it. Where nothing was judged, the Axes says so instead.

    Raises
    ------
    InvalidArgumentError
        If ``rows`` is less than 1.
    """
    demand_result("diagnosis", diagnosis, of="covshift.diagnose", kind=Diagnosis)
    if rows < 1:
        raise InvalidArgumentError(f"rows={rows}: expected at least 1 layer to draw")
    grid = diagnosis.grid().transpose("layer", "check")
    idle = [str(check) for check in grid["check"].values if not (grid.sel(check=check) != "").any()]
    kept = _kept(grid, rows, causes={(finding.layer, finding.verdict) for finding in diagnosis.causes})
    shown = grid.isel(layer=kept).drop_sel(check=idle)
    with style.context():
        height = layer_height(shown.sizes["layer"], row=0.165, least=2.3, most=12.0)
        ax = style.axes_on(ax, width=2.6 + 0.95 * shown.sizes["check"], height=height)
        if not shown.size:
            return style.message(ax, "verdicts: no layer was judged")
        _marks(ax, shown)
        _columns(ax, [str(check) for check in shown["check"].values])
        label_layers(ax, shown["layer"].values, every=True)
        ax.set_ylabel(_rows_drawn(ax, grid, shown))
        title(ax, _finding(grid, left_out=np.delete(np.arange(grid.sizes["layer"]), kept)))
        without = [Line2D([], [], linestyle="", label=f"does not apply here: {', '.join(idle)}")] if idle else []
        key_below(ax, [*(_handle(verdict) for verdict in LOUDNESS), *without], columns=5, drop=8.0)
    return ax


def _kept(grid: xr.DataArray, rows: int, *, causes: Collection[tuple[str, str]]) -> NDArray[np.int64]:
    """Positions of the ``rows`` layers with the worst verdicts and of all rows that are no layer, in their order."""
    names = grid["layer"].values.tolist()
    layers = np.array(of_layers(names), dtype=np.int64)
    cells = grid.values[layers]
    bad, watch = ((cells == verdict).sum(axis=1) for verdict in LOUDNESS[:2])
    ranks = _ranks(cells)
    explained = [(names[at], LOUDNESS[rank]) not in causes for at, rank in zip(layers, ranks, strict=True)]
    order = np.lexsort((-watch, -bad, np.array(explained, dtype=bool), ranks))
    others = np.setdiff1d(np.arange(len(names)), layers)
    return np.sort(np.concatenate([others, layers[order[:rows]]]))


def _ranks(cells: NDArray[np.str_]) -> NDArray[np.int64]:
    """How loud the worst verdict of every row is, 0 the loudest."""
    return np.array([LOUDNESS.index(worst(row)) for row in cells.tolist()], dtype=np.int64)


def _marks(ax: Axes, grid: xr.DataArray) -> None:
    for verdict in LOUDNESS:
        mark = style.look().verdicts[verdict]
        row, column = np.nonzero(grid.values == verdict)
        ax.plot(
            column,
            row,
            linestyle="",
            marker=mark.marker,
            markersize=mark.size,
            color=mark.color,
            markerfacecolor=mark.color if mark.filled else "none",
            label=verdict,
        )
        for x, y in zip(column.tolist(), row.tolist(), strict=True):
            loud = verdict in ("bad", "watch")
            color, weight = (style.look().ink, "bold") if loud else (style.look().muted, "normal")
            ax.text(x + 0.1, y, verdict, va="center", fontsize=7, color=color, fontweight=weight)
    ax.set_yticks(np.arange(grid.sizes["layer"]) + 0.5, minor=True)
    ax.tick_params(axis="y", which="minor", length=0)
    ax.grid(axis="y", which="minor", linewidth=0.4)


def _columns(ax: Axes, checks: list[str]) -> None:
    ax.xaxis.tick_top()
    words = [wrapped(check, width=10) for check in checks]
    ax.set_xticks(np.arange(len(checks)) - 0.06, words, ha="left", parse_math=False)
    ax.tick_params(axis="x", length=0)
    ax.set_xlim(-0.2, len(checks) - 0.2)
    for side in ("left", "bottom"):
        ax.spines[side].set_visible(False)


def _handle(verdict: str) -> Line2D:
    mark = style.look().verdicts[verdict]
    face = mark.color if mark.filled else "none"
    return Line2D(
        [],
        [],
        linestyle="",
        marker=mark.marker,
        markersize=mark.size,
        color=mark.color,
        markerfacecolor=face,
        label=verdict,
    )


def _rows_drawn(ax: Axes, grid: xr.DataArray, shown: xr.DataArray) -> str:
    """What the rows are: how many layers of how many, and what else."""
    names = shown["layer"].values.tolist()
    drawn, there = of_layers(names), len(of_layers(grid["layer"].values.tolist()))
    number = str(there) if len(drawn) == there else f"{len(drawn)} of {there}"
    others = [name for at, name in enumerate(names) if at not in drawn]
    return name_of_rows(ax, number) + (f"\nno layer: {', '.join(others)}" if others else "")


def _finding(grid: xr.DataArray, *, left_out: NDArray[np.int64]) -> str:
    layers = of_layers(grid["layer"].values.tolist())
    found = f"{plural(len(layers), 'layer')} by their worst check: {_counted(grid.values[layers])}"
    hidden = f" ({left_out.size} of them left out: {_counted(grid.values[left_out])})" if left_out.size else ""
    return found + hidden


def _counted(cells: NDArray[np.str_]) -> str:
    """How many rows there are of each worst verdict."""
    ranks = Counter(_ranks(cells).tolist())
    return ", ".join(f"{ranks[rank]} {verdict}" for rank, verdict in enumerate(LOUDNESS) if ranks[rank])
