"""The verdict grid: where to look, at a glance."""

from __future__ import annotations

from collections import Counter

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from covshift.diagnosis.diagnosis import WHOLE_RUN, Diagnosis
from covshift.diagnosis.finding import of_layers
from covshift.diagnosis.wording import plural
from covshift.exceptions import InvalidArgumentError
from covshift.plots import style
from covshift.plots.axes import key_below, label_layers, layer_height, title, wrapped

LOUDNESS = ("bad", "watch", "ok", "not measured")


def plot_verdict_grid(diagnosis: Diagnosis, *, rows: int = 60, ax: style.Target = None) -> Axes:
    """Draw the verdict of every check on every layer.

    A verdict is a shape, a colour and a word: a filled square is bad, a triangle watch, a disc ok, a ring not measured.

    Parameters
    ----------
    diagnosis : Diagnosis
        From :func:`covshift.diagnosis.diagnose`. Checks that apply to no layer are left out and named in the key.
    rows : int, default 60
        At most so many layers. Where there are more, those with the worst verdicts are kept, in the order of the
        network, and the title says how many are left out.
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
    if rows < 1:
        raise InvalidArgumentError(f"rows={rows}: expected at least 1 layer to draw")
    grid = diagnosis.grid().transpose("layer", "check")
    idle = [str(check) for check in grid["check"].values if not (grid.sel(check=check) != "").any()]
    shown = _worst(grid, rows).drop_sel(check=idle)
    with style.context():
        height = layer_height(shown.sizes["layer"], row=0.165, least=2.0, most=12.0)
        ax = style.axes_on(ax, width=2.6 + 0.95 * shown.sizes["check"], height=height)
        if not shown.size:
            return style.message(ax, "verdicts: no layer was judged")
        _marks(ax, shown)
        _columns(ax, [str(check) for check in shown["check"].values])
        label_layers(ax, shown["layer"].values, every=True)
        title(ax, _finding(grid, left_out=grid.sizes["layer"] - shown.sizes["layer"]))
        without = [Line2D([], [], linestyle="", label=f"does not apply here: {', '.join(idle)}")] if idle else []
        key_below(ax, [*(_handle(verdict) for verdict in LOUDNESS), *without], columns=5, drop=8.0)
    return ax


def _worst(grid: xr.DataArray, rows: int) -> xr.DataArray:
    """The ``rows`` layers with the loudest verdicts, in their own order; the row of the whole run always stays."""
    loudness = np.stack([(grid.values == verdict).sum(axis=1) for verdict in LOUDNESS[:2]], axis=1)
    order = np.lexsort((-loudness[:, 1], -loudness[:, 0], grid["layer"].values != WHOLE_RUN))
    return grid.isel(layer=np.sort(order[:rows]))


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


def _finding(grid: xr.DataArray, *, left_out: int) -> str:
    layers = grid.isel(layer=of_layers(grid["layer"].values.tolist()))
    worst = Counter(next((v for v in LOUDNESS if v in row), "not measured") for row in layers.values.tolist())
    parts = [f"{worst[verdict]} {verdict}" for verdict in LOUDNESS if worst[verdict]]
    found = f"{plural(layers.sizes['layer'], 'layer')} by their worst check: {', '.join(parts)}"
    return f"{found} ({plural(left_out, 'quieter layer')} left out)" if left_out else found
