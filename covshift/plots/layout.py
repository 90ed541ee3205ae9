"""The layout of figures: matplotlib's constrained layout, for less than half of its price."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.transforms import Bbox
from numpy.typing import NDArray


class MeasuredOnce(ConstrainedLayoutEngine):
    """Constrained layout that measures what surrounds each Axes once.

    It lays a figure out twice, in case labels change as Axes move, and measures a colour bar four times; to measure
    tick labels is most of what drawing costs. The labels of covshift's figures change next to nothing.
    """

    def execute(self, fig: Figure) -> None:
        """Lay ``fig`` out."""
        with _measured_once(fig):
            super().execute(fig)


@contextmanager
def _measured_once(figure: Figure) -> Iterator[None]:
    """Inside the ``with``, what an Axes of ``figure`` takes beyond its frame stays what it was at first."""
    axes = figure.get_axes()
    for ax in axes:
        ax.get_tightbbox = _Measure(ax)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for ax in axes:
            del ax.get_tightbbox


class _Measure:
    """``get_tightbbox`` of an Axes: its frame where it stands now, and around it the margins of the first call."""

    def __init__(self, ax: Axes) -> None:
        self.ax, self.ask = ax, ax.get_tightbbox
        self.margins: NDArray[np.float64] | None = None

    def __call__(self, renderer: Any = None, **options: Any) -> Bbox | None:
        """The box; None for an Axes that is not seen."""
        if self.margins is None:
            box = self.ask(renderer, **options)
            if box is None:
                return None
            self.margins = np.subtract(box.extents, self.ax.get_window_extent(renderer).extents)
        locator = self.ax.get_axes_locator()
        self.ax.apply_aspect(None if locator is None else locator(self.ax, renderer))
        return Bbox.from_extents(*np.add(self.ax.get_window_extent(renderer).extents, self.margins))
