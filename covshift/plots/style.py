"""How every figure of covshift looks, and where it is drawn: settings, theme, and the Axes or Figure it goes to.

Nothing here changes matplotlib's global settings: :func:`context` is entered by each plot function for the time it
draws. :func:`theme` chooses light or dark, :func:`detached` keeps new figures from pyplot.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from covshift.exceptions import InvalidArgumentError
from covshift.plots.layout import MeasuredOnce
from covshift.plots.palette import LIGHT, PALETTES, Palette

VECTOR_MARKS, VECTOR_POINTS = 450, 5000
"""Marks and points of a line beyond which an Axes draws them as an image, so that a vector file stays small."""

INK, MUTED, LINE, PAPER = LIGHT.ink, LIGHT.muted, LIGHT.line, LIGHT.paper
WITHIN_FLOOR, ACCENT, SECOND, ZERO = LIGHT.within_floor, LIGHT.accent, LIGHT.second, LIGHT.zero
TARGET = LIGHT.target
VERDICTS, RUN_COLORS, AMOUNT = LIGHT.verdicts, LIGHT.runs, LIGHT.amount
"""The light palette's roles by name, for whoever translates colours into a page's own."""

Target = Axes | Figure | SubFigure | None
"""Where a figure may be drawn."""

_PALETTE: ContextVar[Palette] = ContextVar("covshift_palette", default=LIGHT)
_DETACHED: ContextVar[tuple[float | None] | None] = ContextVar("covshift_detached", default=None)

SETTINGS: Mapping[str, Any] = {
    "font.family": "sans-serif",
    "font.size": 9.0,
    "axes.titlepad": 10.0,
    "axes.unicode_minus": True,
    "hatch.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8.0,
    "lines.linewidth": 1.4,
    "lines.markersize": 4.0,
}
"""matplotlib settings in force while a figure is drawn; what is created later, :func:`dress` sets on the Axes."""


def look() -> Palette:
    """The palette in force."""
    return _PALETTE.get()


@contextmanager
def theme(name: str) -> Iterator[Palette]:
    """Draw in ``"light"`` (the default) or ``"dark"`` colours inside the ``with``.

    Raises
    ------
    InvalidArgumentError
        If there is no such theme.

    Examples
    --------
    >>> with theme("dark") as palette:
    ...     palette is look(), palette.paper
    (True, '#14181c')
    """
    if name not in PALETTES:
        raise InvalidArgumentError(f"theme={name!r}: expected one of {', '.join(map(repr, PALETTES))}")
    token = _PALETTE.set(PALETTES[name])
    try:
        yield PALETTES[name]
    finally:
        _PALETTE.reset(token)


@contextmanager
def detached(*, width: float | None = None) -> Iterator[None]:
    """Make new figures inside the ``with`` plain ones that pyplot knows nothing of, ``width`` inches wide.

    A program that draws many figures, or draws them in a thread, is spared pyplot's list of open figures and its
    backend. ``width`` is that of each figure by default; heights follow from what is drawn.
    """
    token = _DETACHED.set((width,))
    try:
        yield
    finally:
        _DETACHED.reset(token)


def context() -> AbstractContextManager[None]:
    """Context in which covshift draws; the settings before it are restored on leaving.

    Examples
    --------
    >>> import matplotlib
    >>> before = matplotlib.rcParams["font.size"]
    >>> with context():
    ...     inside = matplotlib.rcParams["font.size"]
    >>> inside, matplotlib.rcParams["font.size"] == before
    (9.0, True)
    """
    palette = look()
    colors = {"figure.facecolor": palette.paper, "hatch.color": palette.line, "text.color": palette.ink}
    settings: Any = {**SETTINGS, **colors, "legend.labelcolor": palette.ink}  # the stubs list every key as a literal
    return matplotlib.rc_context(settings)


def axes_on(ax: Target, *, width: float, height: float) -> Axes:
    """One dressed Axes: ``ax`` itself, one in the Figure ``ax``, or that of a new figure of these inches."""
    if ax is None or isinstance(ax, Figure | SubFigure):
        ax = figure_on(ax, width=width, height=height).subplots()
    if not isinstance(ax, Axes):
        raise _no_target(ax)
    dress(ax)
    return ax


def figure_on(ax: Target, *, width: float, height: float) -> Figure | SubFigure:
    """A figure to fill with panels: ``ax`` itself, a SubFigure in the place of the Axes ``ax``, or a new one.

    A new one has ``width`` x ``height`` inches and constrained layout. It is pyplot's, which is imported only here,
    except inside :func:`detached`.

    Raises
    ------
    InvalidArgumentError
        If ``ax`` is nothing to draw on, or an Axes that stands in no grid and so has no place to give.
    """
    if ax is None:
        return _new_figure(width, height)
    if isinstance(ax, Figure | SubFigure):
        return ax
    if not isinstance(ax, Axes):
        raise _no_target(ax)
    place, figure = ax.get_subplotspec(), ax.get_figure()
    if place is None or figure is None:
        raise InvalidArgumentError(
            "ax: this figure has several panels and needs the place of a subplot; expected an Axes made by subplots(), "
            "a Figure or a SubFigure"
        )
    ax.remove()
    return figure.add_subfigure(place)


def _no_target(ax: object) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"ax={ax!r}: expected a matplotlib Axes, Figure or SubFigure to draw on, or None for a new figure"
    )


def _new_figure(width: float, height: float) -> Figure:
    apart = _DETACHED.get()
    if apart is not None:
        return Figure(figsize=(apart[0] or width, height), layout=MeasuredOnce())
    from matplotlib import pyplot

    return pyplot.figure(figsize=(width, height), layout=MeasuredOnce())


def root(drawn: Axes | Figure | SubFigure) -> Figure:
    """The Figure that everything drawn belongs to."""
    figure = drawn.get_figure(root=True)
    assert isinstance(figure, Figure)
    return figure


def titles_of(figure: Figure) -> list[str]:
    """Everything that stands in ``figure`` as a title, its own and those of its parts before those of Axes."""
    heads = [part.get_suptitle() for part in (figure, *figure.subfigs)]
    return [text for text in (*heads, *(ax.get_title(loc="left") for ax in figure.get_axes())) if text]


def panels(figure: Figure | SubFigure, columns: int, *, sharey: bool = False, **options: Any) -> list[Axes]:
    """``columns`` dressed Axes side by side in ``figure``; ``options`` are those of its ``subplots``."""
    axes = figure.subplots(1, columns, sharey=sharey, squeeze=False, **options)[0].tolist()
    for ax in axes:
        dress(ax)
    return list(axes)


def dress(ax: Axes) -> None:
    """Give ``ax`` the look of :data:`SETTINGS`, whoever made it.

    An Axes made outside :func:`context` has the settings of its maker, and ticks made when the figure is drawn have
    those in force then; both follow what is set on the Axes itself.
    """
    palette = look()
    ax.set_facecolor(palette.paper)
    ax.set_axisbelow(True)
    ax.tick_params(labelsize=8.0, labelcolor=palette.muted, color=palette.muted, length=3.0, width=0.7)
    ax.tick_params(grid_color=palette.line, grid_linewidth=0.6)
    ax.tick_params(which="minor", color=palette.line, length=2.0, width=0.5)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        ax.spines[side].set(color=palette.muted, linewidth=0.7)
    for axis in (ax.xaxis, ax.yaxis):
        axis.label.set(color=palette.muted, fontsize=9.0)


def message(ax: Axes, text: str) -> Axes:
    """Say in the middle of ``ax`` why nothing is drawn there, without ticks or frame."""
    ax.set_axis_off()
    words = textwrap.fill(text, 44)
    ax.text(0.5, 0.5, words, transform=ax.transAxes, ha="center", va="center", color=look().muted, parse_math=False)
    return ax
