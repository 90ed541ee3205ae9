"""Axes that every figure shares: layers from top to bottom, steps from left to right, cells between them.

Layers stand in the order data meets them. Their labels are thinned to what the height of the Axes can hold and their
names shortened, so that 5 and 200 layers are both readable. Steps are drawn where they are: a gap in the record is a
wide cell, not a shift of all that follows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.collections import QuadMesh
from matplotlib.colorbar import Colorbar
from matplotlib.colors import Colormap, ListedColormap, Normalize
from matplotlib.figure import Figure, SubFigure
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import (
    FixedLocator,
    Formatter,
    LogLocator,
    MaxNLocator,
    NullFormatter,
    NullLocator,
)
from matplotlib.transforms import ScaledTranslation
from numpy.typing import ArrayLike, NDArray

from covshift.diagnosis.threshold import Threshold
from covshift.diagnosis.wording import percent
from covshift.plots import palette, style
from covshift.plots.labels import short_names, tick_amount, tick_amounts
from covshift.plots.row_labels import RowFormatter, RowLocator, size_in_points

FloatArray = NDArray[np.float64]

CHARACTER_WIDTH = 0.66
"""Width of a bold character on average, in its own size."""

MANY = 1e3
"""Ratio of the ends of a logarithmic axis from which on only its numbered ticks are drawn."""

LEAST_DECADES = 0.7
"""Decades that a logarithmic axis spans at least: fewer have no room for round ticks."""

KEY_CHARACTER, KEY_HANDLE = 4.4, 30.0
"""Points that a character of a key takes on average, and its handle with the gaps around it."""

KEY_DROP = 36.0
"""Points between an x axis and the key below its tick labels and name."""


def layer_height(layers: int, *, row: float = 0.1, least: float = 3.0, most: float = 6.6) -> float:
    """Height in inches of a figure with one row, ``row`` inches high, for each of ``layers``."""
    return float(np.clip(1.5 + row * layers, least, most))


def unlabel_rows(ax: Axes) -> None:
    """Leave the rows of ``ax`` without names: those of an Axes beside it hold for them, too."""
    ax.set_ylabel("")
    ax.tick_params(axis="y", left=False, labelleft=False)  # nothing of a tick is left, so none is made


def label_layers(
    ax: Axes, names: Iterable[object], *, width: int = 24, every: bool = False, what: str = "layer"
) -> None:
    """Put ``names`` on the y axis of ``ax``, one row each, the first on top; ``every`` one or as many as fit."""
    short = short_names(names, width=width)
    ax.yaxis.set_major_locator(RowLocator(len(short), every=every))
    ax.yaxis.set_major_formatter(RowFormatter(short, ax.yaxis))
    ax.set_ylim(len(short) - 0.5, -0.5)
    ax.tick_params(axis="y", length=0, left=False)
    ax.set_ylabel(name_of_rows(ax, str(len(short)), what=what))


def name_of_rows(ax: Axes, number: str, *, what: str = "layer") -> str:
    """What the rows of ``ax`` are and how many, in as many words as its height has room for."""
    tall = size_in_points(ax)[1] > 200.0
    return f"{what}, input side on top (n = {number})" if tall else f"{what} (n = {number})"


def label_steps(ax: Axes, steps: ArrayLike) -> None:
    """Limit the x axis of ``ax`` to ``steps`` and name it; ticks are whole steps."""
    edges = step_edges(steps)
    ax.set_xlim(edges[0], edges[-1])
    ax.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    ax.set_xlabel(f"optimizer step (n = {edges.size - 1} records)")


def isolated(values: ArrayLike) -> list[int]:
    """Positions of finite numbers without a finite neighbour, of which a line shows nothing unless they are marked.

    Examples
    --------
    >>> nan = float("nan")
    >>> isolated([1.0, nan, 2.0, 3.0, nan, 4.0]), isolated([nan])
    ([0, 5], [])
    """
    known = np.pad(np.isfinite(np.asarray(values, dtype=np.float64)), 1)
    return [int(at) for at in np.flatnonzero(known[1:-1] & ~known[:-2] & ~known[2:])]


def step_edges(steps: ArrayLike) -> FloatArray:
    """Edges of one cell for each step: halfway between neighbours, half a gap beyond the ends.

    Examples
    --------
    >>> step_edges([0, 10, 20]).tolist(), step_edges([7]).tolist()
    ([-5.0, 5.0, 15.0, 25.0], [6.5, 7.5])
    """
    at = np.asarray(steps, dtype=np.float64)
    if at.size < 2:
        return np.array([at[0] - 0.5, at[0] + 0.5])
    middle = (at[1:] + at[:-1]) / 2
    return np.concatenate([[at[0] - (middle[0] - at[0])], middle, [at[-1] + (at[-1] - middle[-1])]])


def layer_cells(
    ax: Axes, values: xr.DataArray, *, norm: Normalize, cmap: Colormap | None = None, width: int = 24
) -> QuadMesh:
    """Draw ``values`` with dims ``(step, layer)`` as cells; a cell without a number shows the background."""
    cells = values.transpose("layer", "step")
    hatch_unmeasured(ax)
    mesh = ax.pcolormesh(
        step_edges(cells["step"].values),
        np.arange(cells.sizes["layer"] + 1) - 0.5,
        np.ma.masked_invalid(cells.values.astype(np.float64)),
        norm=norm,
        cmap=cmap or style.look().amount,
        rasterized=True,
    )
    label_steps(ax, cells["step"].values)
    label_layers(ax, cells["layer"].values, width=width)
    return mesh


def hatch_unmeasured(ax: Axes) -> None:
    """Hatch the background of ``ax``, which shows where a cell has no number."""
    ax.patch.set(facecolor=style.look().not_measured, edgecolor=style.look().line, hatch=palette.HATCH, linewidth=0.0)


def flat_cells(ax: Axes, where: xr.DataArray, *, color: str) -> QuadMesh:
    """Fill the cells of ``where`` (bool, dims ``(step, layer)``) that are True with one ``color``."""
    cells = where.transpose("layer", "step")
    mesh = ax.pcolormesh(
        step_edges(cells["step"].values),
        np.arange(cells.sizes["layer"] + 1) - 0.5,
        np.ma.masked_equal(cells.values.astype(np.float64), 0.0),
        cmap=ListedColormap([color]),
        rasterized=True,
    )
    mesh.set_visible(bool(cells.any()))  # an empty one would be rendered as an image all the same
    return mesh


def colorbar(
    mesh: QuadMesh,
    beside: Axes | Sequence[Axes],
    *,
    label: str,
    formatter: Formatter | None = None,
    extend: Literal["neither", "both"] = "neither",
    fill: bool = False,
) -> Colorbar:
    """A thin colour bar beside one Axes or several, or one that lies in an Axes and takes all of it (``fill``).

    Its label says quantity and unit, ``extend`` that values go on.
    """
    axes = [beside] if isinstance(beside, Axes) else list(beside)
    figure = axes[0].get_figure()
    assert isinstance(figure, Figure | SubFigure)
    place: dict[str, Any] = {"cax": axes[0], "orientation": "horizontal"} if fill else {"ax": axes, "pad": 0.02}
    bar = figure.colorbar(mesh, **place, aspect=32, format=formatter, extend=extend, extendfrac=0.02)
    if formatter is None:
        label_amounts(bar.ax.xaxis if fill else bar.ax.yaxis)
    bar.set_label(label, color=style.look().muted, fontsize=9.0)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8.0, labelcolor=style.look().muted, color=style.look().muted, length=2.0, width=0.7)
    bar.ax.tick_params(which="minor", color=style.look().muted, length=1.5, width=0.5)
    if bar.solids is not None:
        bar.solids.set_rasterized(True)
    return bar


def mark_limit(bar: Colorbar, threshold: Threshold) -> list[Line2D]:
    """Draw the limits of ``threshold`` that lie on the scale of ``bar``; handles that say what they are."""
    low, high = sorted(bar.ax.get_ylim())
    keys: list[Line2D] = []
    for word, limit in (("watch", threshold.watch), ("bad", threshold.bad)):
        for at in limit if isinstance(limit, tuple) else () if limit is None else (limit,):
            if low <= at <= high:
                mark = style.look().verdicts[word]
                bar.ax.axhline(at, color=style.look().paper, linewidth=2.4)
                bar.ax.axhline(at, color=mark.color, linewidth=1.2, label=f"{word} above {at:g}")
                place = bar.ax.get_yaxis_transform()
                bar.ax.plot(-0.35, at, mark.marker, color=mark.color, markersize=4, transform=place, clip_on=False)
                amount = percent(at) if threshold.unit == "share" else f"{at:g} {threshold.unit}"
                look = {"marker": mark.marker, "color": mark.color, "markersize": 4.0}
                keys.append(Line2D([], [], linestyle="", label=f"rule: {word} above {amount}", **look))  # type: ignore[arg-type]
    return keys


def unmeasured_key() -> Patch:
    """Legend handle of the cells without a number."""
    return Patch(
        facecolor=style.look().not_measured, edgecolor=style.look().line, hatch=palette.HATCH, label="not measured"
    )


def key_below(ax: Axes, handles: Sequence[Any], *, columns: int = 4, drop: float = KEY_DROP) -> None:
    """A legend ``drop`` points below ``ax``, under the name of its x axis, where it can cover no data.

    It has at most so many ``columns`` as fit side by side.
    """
    figure = ax.get_figure(root=True)
    assert figure is not None
    legend = ax.legend(
        handles=list(handles),
        loc="upper left",
        bbox_to_anchor=(0.0, 0.0),
        bbox_transform=ax.transAxes + ScaledTranslation(0.0, -drop / 72.0, figure.dpi_scale_trans),
        ncols=_fitting_columns(handles, most=columns, room=ax.get_window_extent().width * 72.0 / figure.dpi),
        borderaxespad=0.0,
        handlelength=1.2,
        columnspacing=1.4,
    )
    as_plain_text(legend)


def key_of_figure(figure: Figure | SubFigure, handles: Sequence[Any], *, columns: int = 6) -> None:
    """A legend below all panels of ``figure``, in at most so many ``columns`` as its width holds."""
    ncols = _fitting_columns(handles, most=columns, room=figure.bbox.width * 72.0 / figure.dpi)
    legend = figure.legend(handles=list(handles), loc="outside lower left", ncols=ncols, handlelength=1.2)
    as_plain_text(legend)


def _fitting_columns(handles: Sequence[Any], *, most: int, room: float) -> int:
    """Most columns, filled one after the other as those of a legend, that ``room`` points hold side by side."""
    sizes = [KEY_CHARACTER * len(str(handle.get_label())) + KEY_HANDLE for handle in handles]
    for columns in range(min(most, len(sizes)), 1, -1):
        if sum(part.max() for part in np.array_split(sizes, columns)) <= room:
            return columns
    return 1


def as_plain_text(legend: Legend) -> None:
    """Keep ``$`` in the entries of ``legend`` from starting a formula: names are data."""
    for text in legend.get_texts():
        text.set_parse_math(False)


def log_limits(sizes: Iterable[FloatArray], *, margin: float = 0.06) -> tuple[float, float]:
    """Ends of a logarithmic axis that holds every positive one of ``sizes``: matplotlib's own fail on equal ones."""
    logs = np.concatenate([np.log10(part[np.isfinite(part) & (part > 0)]) for part in sizes])
    low, high = (float(logs.min()), float(logs.max())) if logs.size else (0.0, 0.0)
    free = max(margin * (high - low), (LEAST_DECADES - (high - low)) / 2)
    return 10.0 ** (low - free), 10.0 ** (high + free)


class AmountFormatter(Formatter):
    """Amounts in one notation for all ticks that the axis shows."""

    def __call__(self, value: float, pos: int | None = None) -> str:
        """One amount by itself, in its own notation."""
        return tick_amount(value)

    def format_ticks(self, values: Sequence[float]) -> list[str]:
        """All of them; a locator gives ticks beyond the ends as well, which have no say."""
        low, high = sorted(self.axis.get_view_interval()) if self.axis is not None else (-np.inf, np.inf)
        shown = dict.fromkeys(value for value in values if low <= value <= high)
        words = dict(zip(shown, tick_amounts(shown), strict=True))
        return [words.get(value, "") for value in values]


def label_amounts(axis: Axis) -> None:
    """Print the ticks of a logarithmic ``axis`` as the report prints amounts, more of them where it spans little.

    All are plain, or all powers of ten. Where it spans many decades there are no ticks without a number: the grid has
    no line for them, and each costs as much to draw as one with.
    """
    low, high = sorted(axis.get_view_interval())
    if low > 0 and high < 100 * low:
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    if low > 0 and high > MANY * low:
        axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(AmountFormatter())
    axis.set_minor_formatter(NullFormatter())


def mark_edge(
    ax: Axes, at: ArrayLike, *, edge: float, marker: str, along: Literal["x", "y"], label: str, **options: Any
) -> None:
    """Marks on an edge of ``ax`` for what its scale cannot hold.

    ``at`` are positions on the axis ``along``, ``edge`` is the position across it, from 0 to 1. Nothing is drawn for
    no position: an empty line that is not clipped would count as lying at the figure's corner.
    """
    places = np.asarray(at, dtype=np.float64)
    if not places.size:
        return
    across = np.full(places.size, edge)
    look: dict[str, Any] = {"color": style.look().ink, "markersize": 4.0, "clip_on": False} | options
    if along == "x":
        ax.plot(places, across, marker, transform=ax.get_xaxis_transform(), label=label, **look)
    else:
        ax.plot(across, places, marker, transform=ax.get_yaxis_transform(), label=label, **look)


def symlog_ticks(axis: Axis, *, linear_within: float, low: float, high: float, most: int = 9) -> None:
    """Ticks of a symmetric-logarithmic ``axis``: zero, and powers of ten outside its linear part."""
    first = int(np.ceil(np.log10(linear_within)))
    powers = 10.0 ** np.arange(first, first + 80)
    ticks = np.concatenate([-powers[powers <= -low][::-1], [0.0], powers[powers <= high]])
    stride = int(np.ceil(ticks.size / most))
    zero = int(np.flatnonzero(ticks == 0.0)[0])
    axis.set_major_locator(FixedLocator(ticks[zero % stride :: stride].tolist()))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(AmountFormatter())


def title(ax: Axes, text: str, *, size: float = 10.0) -> None:
    """Title of ``ax``: the finding, in lines as long as ``ax`` is wide."""
    width = int(size_in_points(ax)[0] / (CHARACTER_WIDTH * size))
    look = {"fontsize": size, "fontweight": "bold", "color": style.look().ink}
    clear = isinstance(ax.yaxis.get_major_formatter(), RowFormatter) and ax.xaxis.get_ticks_position() == "bottom"
    # where nothing stands above ax, its top is the place: to look for a better one, layout measures all labels again
    place = 1.0 if clear else None
    ax.set_title(wrapped(text, width=max(width, 16)), look, loc="left", pad=10.0, y=place, parse_math=False)


def wrapped(text: str, *, width: int) -> str:
    """``text`` in lines of at most ``width`` characters; its own line breaks are kept, a per cent sign its number."""
    return "\n".join(_filled(line.replace(" %", "\N{NO-BREAK SPACE}%"), width=width) for line in text.split("\n"))


def _filled(text: str, *, width: int) -> str:
    lines: list[str] = []
    for word in text.split(" "):
        if lines and len(lines[-1]) + 1 + len(word) <= width:
            lines[-1] = f"{lines[-1]} {word}"
        else:
            lines.append(word)
    return "\n".join(lines)
