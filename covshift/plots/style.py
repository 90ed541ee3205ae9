"""How every figure of covshift looks: one palette, one map for amounts, one mark for each verdict.

Nothing here changes matplotlib's global settings: :func:`context` is entered by each plot function for the time it
draws. Colours are named by role, so that the report can give each role a second value for dark pages. Colour never
stands alone: a verdict is a shape, a colour and a word; a run is a colour and a marker.

References
----------
B. Ottosson, A perceptual color space for image processing (2020), for OKLab, in which the map for amounts is evenly
spaced. The run colours are those of M. Okabe & K. Ito, Color universal design (2008), without their yellow.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib.colors import ListedColormap, to_rgb
from matplotlib.figure import Figure, SubFigure
from numpy.typing import NDArray

from covshift.exceptions import InvalidArgumentError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK = "#1d2429"
MUTED = "#5d6975"
LINE = "#d9dee3"
PAPER = "#ffffff"
WITHIN_FLOOR = "#e9e8e6"
NOT_MEASURED = "#ffffff"
HATCH = "/////"
ACCENT = "#c2410c"
SECOND = "#2c7294"
ZERO = "#0f766e"
"""Roles: text and axes, secondary text, grid lines, background, cells inside a noise floor, cells without a number
(hatched), the line that matters most, the one after it, and the line at zero."""

VECTOR_MARKS, VECTOR_POINTS = 450, 5000
"""Marks and points of a line beyond which an Axes draws them as an image, so that a vector file stays small."""

RUN_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#4b5563", "#8c6d46")
RUN_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")


@dataclass(frozen=True)
class VerdictMark:
    """How one verdict word is shown: a colour, a matplotlib marker, its size in points, and whether it is filled."""

    color: str
    marker: str
    size: float
    filled: bool = True


VERDICTS = {
    "bad": VerdictMark("#b3261e", "s", 5.6),
    "watch": VerdictMark("#d97f00", "^", 5.6),
    "ok": VerdictMark("#4d8a99", "o", 3.6),
    "not measured": VerdictMark("#8a95a0", "o", 3.6, filled=False),
}
"""Marks of the four verdict words, loudest first."""


def _oklab(colors: NDArray[np.float64]) -> NDArray[np.float64]:
    """OKLab coordinates of sRGB colours, both ``(n, 3)``."""
    linear = np.where(colors <= 0.04045, colors / 12.92, ((colors + 0.055) / 1.055) ** 2.4)
    return np.asarray(np.cbrt(linear @ _TO_CONE.T) @ _CONE_TO_LAB.T)


def _srgb(lab: NDArray[np.float64]) -> NDArray[np.float64]:
    """Inverse of :func:`_oklab`, clipped to what a screen can show."""
    linear = (lab @ np.linalg.inv(_CONE_TO_LAB).T) ** 3 @ np.linalg.inv(_TO_CONE).T
    gamma = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * np.maximum(linear, 0.0) ** (1 / 2.4) - 0.055)
    return np.clip(gamma, 0.0, 1.0)


_TO_CONE = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_CONE_TO_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)


def _even_colormap(name: str, anchors: tuple[str, ...], *, size: int = 256) -> ListedColormap:
    """Colour map through ``anchors`` whose neighbours are equally far apart in OKLab."""
    corners = _oklab(np.array([to_rgb(anchor) for anchor in anchors]))
    reached = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(corners, axis=0), axis=1))])
    along = np.linspace(0.0, reached[-1], size)
    lab = np.stack([np.interp(along, reached, corner) for corner in corners.T], axis=1)
    return ListedColormap(_srgb(lab).tolist(), name=name)


AMOUNT = _even_colormap("covshift_amount", ("#dcebee", "#86b9c4", "#2c7294", "#0e2c49"))
"""The map for amounts: pale where there is little, dark where there is much; even steps, lightness monotone."""

SETTINGS: Mapping[str, Any] = {
    "font.family": "sans-serif",
    "font.size": 9.0,
    "axes.titlepad": 10.0,
    "axes.unicode_minus": True,
    "figure.facecolor": PAPER,
    "hatch.color": LINE,
    "hatch.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8.0,
    "legend.labelcolor": INK,
    "lines.linewidth": 1.4,
    "lines.markersize": 4.0,
    "text.color": INK,
}
"""matplotlib settings in force while a figure is drawn; what is created later, :func:`dress` sets on the Axes."""


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
    settings: Any = SETTINGS  # the stubs list every key as a literal
    return matplotlib.rc_context(settings)


def axes_or_new(ax: Axes | None, *, width: float, height: float) -> Axes:
    """``ax``, or the only Axes of a new pyplot figure of ``width`` x ``height`` inches; dressed either way."""
    if ax is None:
        ax = figure_or_new(None, width=width, height=height).subplots()
    dress(ax)
    return ax


def panels(figure: Figure | SubFigure, columns: int, *, sharey: bool = False) -> list[Axes]:
    """``columns`` dressed Axes side by side in ``figure``."""
    axes = figure.subplots(1, columns, sharey=sharey, squeeze=False)[0].tolist()
    for ax in axes:
        dress(ax)
    return list(axes)


def dress(ax: Axes) -> None:
    """Give ``ax`` the look of :data:`SETTINGS`, whoever made it.

    An Axes made outside :func:`context` has the settings of its maker, and ticks made when the figure is drawn have
    those in force then; both follow what is set on the Axes itself.
    """
    ax.set_facecolor(PAPER)
    ax.set_axisbelow(True)
    ax.tick_params(labelsize=8.0, labelcolor=MUTED, color=MUTED, length=3.0, width=0.7)
    ax.tick_params(grid_color=LINE, grid_linewidth=0.6)
    ax.tick_params(which="minor", color=LINE, length=2.0, width=0.5)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        ax.spines[side].set(color=MUTED, linewidth=0.7)
    for axis in (ax.xaxis, ax.yaxis):
        axis.label.set(color=MUTED, fontsize=9.0)


def figure_or_new(figure: Figure | SubFigure | None, *, width: float, height: float) -> Figure | SubFigure:
    """``figure``, or a new pyplot figure of ``width`` x ``height`` inches with constrained layout.

    pyplot is imported only here, so whoever passes a figure of their own never touches its state or backend.

    Raises
    ------
    InvalidArgumentError
        If ``figure`` is neither None nor a matplotlib figure, for example an Axes.
    """
    if figure is None:
        from matplotlib import pyplot

        return pyplot.figure(figsize=(width, height), layout="constrained")
    if not isinstance(figure, Figure | SubFigure):
        raise InvalidArgumentError(
            f"figure={figure!r}: expected a matplotlib Figure or SubFigure to fill with panels, or None for a new one"
        )
    return figure


def message(ax: Axes, text: str) -> Axes:
    """Say in the middle of ``ax`` why nothing is drawn there, without ticks or frame."""
    ax.set_axis_off()
    ax.text(0.5, 0.5, text, transform=ax.transAxes, ha="center", va="center", color=MUTED, parse_math=False)
    return ax
