"""Names of rows beside an Axes: as many as fit, as ticks or, where a page draws many figures, as one artist."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backend_bases import RendererBase
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.text import Text
from matplotlib.textpath import text_to_path
from matplotlib.ticker import Formatter, Locator, NullLocator
from matplotlib.transforms import Bbox
from numpy.typing import NDArray

LABEL_HEIGHT = 9.6
"""Points of height that one tick label needs."""


def size_in_points(ax: Axes) -> tuple[float, float]:
    """Width and height of ``ax`` as it stands now, before layout has taken room for titles and labels."""
    figure = ax.get_figure(root=True)
    assert figure is not None
    return ax.bbox.width * 72.0 / figure.dpi, ax.bbox.height * 72.0 / figure.dpi


def label_positions(rows: int, *, points: float) -> NDArray[np.int64]:
    """Rows to label where ``rows`` rows share ``points`` of height: every k-th, the first and the last among them."""
    stride = max(int(np.ceil(rows * LABEL_HEIGHT / max(points, LABEL_HEIGHT))), 1)
    kept = np.arange(0, rows, stride)
    if kept.size > 1:
        kept[-1] = rows - 1
    return kept


class RowLocator(Locator):
    """Ticks at the rows that the height of the Axes has room to label, whenever it is asked: layout comes late."""

    def __init__(self, rows: int, *, every: bool = False) -> None:
        self.rows, self.every = rows, every

    def __call__(self) -> list[float]:
        """Positions of the labelled rows."""
        ax = self.axis.axes if isinstance(self.axis, Axis) else None
        if self.every or not isinstance(ax, Axes):
            return [float(row) for row in range(self.rows)]
        low, high = sorted(ax.get_ylim())
        share = self.rows / max(high - low, 1.0)
        return [float(row) for row in label_positions(self.rows, points=size_in_points(ax)[1] * share)]

    def tick_values(self, vmin: float, vmax: float) -> list[float]:
        """The same for any view."""
        return self()


class RowFormatter(Formatter):
    """Names of the rows on ``axis``, of which only the first, the last and the widest drawn take part in the layout.

    The block of labels is no larger than these make it, and layout and drawing measure each label several times. Axes
    that share their rows share the formatter, whose own ``axis`` is the last of them, hence the argument.
    """

    def __init__(self, names: Sequence[str], axis: Axis) -> None:
        self.names, self.labelled = names, axis

    def __call__(self, x: float, pos: int | None = None) -> str:
        """Name of the row at a tick."""
        return _name_at(self.names, x)

    def format_ticks(self, values: Sequence[float]) -> list[str]:
        """Names of the rows at all ticks."""
        labels = super().format_ticks(values)  # type: ignore[arg-type]
        if labels:
            bounding = {0, int(np.argmax([_text_width(label) for label in labels])), len(labels) - 1}
            for at, tick in enumerate(self.labelled.get_major_ticks(len(labels))):
                tick.label1.set_in_layout(at in bounding)
        return labels


class RowLabels(Text):
    """The names of all labelled rows of an Axes in one artist, which looks like a tick label wherever one would stand.

    A tick is five artists, and to make, to place and to draw one for each row takes a sixth of the time of a page.

    Attributes
    ----------
    names : sequence of str
        Of all rows, from the top.
    room : float
        Points that the names take beside the Axes.
    """

    def __init__(self, ax: Axes, names: Sequence[str]) -> None:
        super().__init__()
        self.names = names
        self._locator = ax.yaxis.get_major_locator()
        pattern = ax.yaxis.get_major_ticks(1)[0].label1
        self.update_from(pattern)
        self.set(transform=pattern.get_transform(), parse_math=False, clip_on=False)
        widest = max((_text_width(names[row]) for row in self.shown), default=0.0)
        pad = ax.yaxis.get_tick_params().get("pad", rcParams["ytick.major.pad"])
        self.room = float(pad) + widest * float(self.get_fontsize()) / LABEL_HEIGHT

    @property
    def shown(self) -> list[int]:
        """Rows that are labelled, at the height that the Axes has now."""
        return [round(row) for row in self._locator()]

    def draw(self, renderer: RendererBase) -> None:
        """Draw the name of every labelled row."""
        font, height = self.get_fontproperties(), renderer.get_canvas_width_height()[1]
        _, tall, descent = renderer.get_text_width_height_descent("lp", font, False)
        scale = np.asarray(
            renderer.points_to_pixels(float(self.get_fontsize()) / LABEL_HEIGHT), dtype=np.float64
        ).item()
        style = renderer.new_gc()
        style.set_foreground(self.get_color())
        for row in self._each(self.shown):
            # As Text does for centred labels, but it would measure the same names again in every figure.
            x, y = self.get_transform().transform(self.get_unitless_position())
            x, y = x - scale * _text_width(self.names[row]), y - (tall - descent) / 2
            y = height - y if renderer.flipy() else y
            renderer.draw_text(style, x, y, self.names[row], font, 0.0, ismath=False, mtext=self)
        style.restore()

    def get_window_extent(self, renderer: RendererBase | None = None, dpi: float | None = None) -> Bbox:
        """The box around all names."""
        shown = self.shown
        if not shown:
            return Bbox.null()
        widest = max(shown, key=lambda row: _text_width(self.names[row]))
        bounding = self._each((shown[0], widest, shown[-1]))
        return Bbox.union([super(RowLabels, self).get_window_extent(renderer, dpi) for _ in bounding])

    def _each(self, rows: Sequence[int]) -> Iterator[int]:
        for row in rows:
            self.set(position=(0.0, row), text=self.names[row])
            yield row


def as_one_artist(figure: Figure) -> None:
    """Have each Axes of ``figure`` whose ticks name rows show :class:`RowLabels` instead."""
    labelled = []
    for ax in figure.get_axes():
        formatter = ax.yaxis.get_major_formatter()
        if isinstance(formatter, RowFormatter) and ax.yaxis.get_tick_params().get("labelleft", True):
            labelled.append((ax, RowLabels(ax, formatter.names)))
    for ax, labels in labelled:
        ax.add_artist(labels)
        ax.yaxis.set_major_locator(NullLocator())
        # The name of the axis keeps off ticks by itself, and off other artists by its distance alone.
        ax.yaxis.labelpad += labels.room


@lru_cache(maxsize=4096)
def _text_width(text: str) -> float:
    """Width of a label in the font of all labels, in a unit of its own."""
    width, _, _ = text_to_path.get_text_width_height_descent(text, FontProperties(size=LABEL_HEIGHT), False)
    return float(width)


def _name_at(names: Sequence[str], at: float) -> str:
    """Name of the row at a tick, so written that a tick made when the figure is drawn takes it for no formula."""
    row = round(at)
    if not 0 <= row < len(names) or abs(at - row) > 1e-6:
        return ""
    dollars = names[row].count("$") - names[row].count(r"\$")
    return names[row].replace("$", r"\$") if dollars and dollars % 2 == 0 else names[row]
