"""What a chart of a layer's section holds: series, axes and cells as JSON types, small enough to embed by the thousand.

The script of the page draws these as they stand; it computes nothing but pixels. Numbers are kept to three digits, and
a heat map to 32 levels, one character a cell, which deflates well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

LEVELS = 31
"""The highest level of a heat map; 0 is an empty cell."""

_FIRST_CHARACTER = 48


def rounded(values: Any) -> list[float | None]:
    """Numbers with three significant digits; None for NaN and infinities.

    Examples
    --------
    >>> rounded([0.12345, float("nan"), 12345.0])
    [0.123, None, 12300.0]
    """
    exact = np.asarray(values, dtype=np.float64)
    sizes = np.abs(exact)
    # Within these, powers of ten are exact, so that what is divided by one is the number nearest to its three digits.
    plain = (sizes > 1e-19) & (sizes < 1e19)
    digits = np.floor(np.log10(np.where(plain, sizes, 1.0))) - 2
    up, down = 10.0 ** np.maximum(digits, 0.0), 10.0 ** np.maximum(-digits, 0.0)
    found: list[float | None] = (np.round(np.where(plain, exact, 0.0) * down / up) * up / down).tolist()
    for at in np.flatnonzero(~plain).tolist():
        found[at] = float(f"{exact[at]:.3g}") if np.isfinite(exact[at]) else None
    return found


def packed_levels(levels: NDArray[np.int64]) -> str:
    """Levels of 0 to 31 as one character each, row after row, beginning with ``"0"``.

    Examples
    --------
    >>> packed_levels(np.array([[0, 1], [31, 10]]))
    '01O:'
    """
    return (levels.astype(np.uint8) + _FIRST_CHARACTER).tobytes().decode("ascii")


def log_levels(counts: Floats) -> NDArray[np.int64]:
    """Level of each count on a logarithmic scale up to the largest; 0 only where there is nothing.

    Examples
    --------
    >>> log_levels(np.array([[0.0, 0.5, 1000.0]]))
    array([[ 0,  2, 31]])
    """
    top = np.log1p(counts.max(initial=0.0))
    if top == 0:
        return np.zeros(counts.shape, dtype=np.int64)
    return np.asarray(np.ceil(LEVELS * np.log1p(counts) / top).astype(np.int64))


def line(label: str, values: Any, role: str, **look: Any) -> dict[str, Any]:
    """A line: legend, values, role of its colour; ``dash``, ``points``, ``width``, or ``aside`` to leave the legend."""
    return {"label": label, "values": rounded(values), "role": role, **look}


@dataclass(frozen=True)
class Axis:
    """An axis of values: what it counts, how it is scaled, and where it ends where that is fixed.

    ``scale`` is "linear", "log" or "symlog", the last linear within ``within`` of 0.
    """

    label: str
    scale: str = "linear"
    low: float | None = None
    high: float | None = None
    within: float | None = None

    def told(self) -> dict[str, Any]:
        """The axis as JSON types; ticks of a symlog axis are given, others are the chart's own."""
        told: dict[str, Any] = {"label": self.label, "scale": self.scale}
        if self.low is not None and self.high is not None:
            told["range"] = [self.low, self.high]
        if self.within is not None:
            told |= {"within": self.within, "ticks": self._ticks()}
        return told

    def centres(self, count: int) -> Floats:
        """Middles of ``count`` equal parts of an axis whose ends are fixed, as it is scaled.

        Examples
        --------
        >>> Axis("z", low=0.0, high=4.0).centres(2)
        array([1., 3.])
        >>> Axis("z", "symlog", -100.0, 100.0, within=1.0).centres(6).round(2)
        array([-31.62,  -3.16,  -0.5 ,   0.5 ,   3.16,  31.62])
        """
        assert self.low is not None
        assert self.high is not None
        low, high = (self._place(end) for end in (self.low, self.high))
        places = low + (np.arange(count) + 0.5) * (high - low) / count
        if self.within is None:
            return places
        beyond = 10.0 ** np.maximum(np.abs(places) - 1, 0)
        return np.asarray(np.sign(places) * self.within * np.where(np.abs(places) <= 1, np.abs(places), beyond))

    def _place(self, value: float) -> float:
        """Where ``value`` lies: linear within ``within``, a unit a decade beyond; the script has the same."""
        if self.within is None:
            return value
        size = abs(value) / self.within
        return float(np.sign(value) * (size if size <= 1 else 1 + np.log10(size)))

    def _ticks(self) -> list[float]:
        assert self.low is not None
        assert self.high is not None
        assert self.within is not None
        reach = max(abs(self.low), abs(self.high))
        decades = max(int(np.floor(np.log10(reach / self.within))), 0)
        sizes = [float(f"{self.within * 10.0**power:.1g}") for power in range(0, decades + 1, decades // 4 + 1)]
        return [tick for tick in [*(-size for size in reversed(sizes)), 0.0, *sizes] if self.low <= tick <= self.high]


def side_curve(label: str, values: Any, marks: Sequence[tuple[float, float]]) -> dict[str, Any] | None:
    """A curve >= 0 over the centres of the axis of values; ``marks`` are its first and its last point of interest.

    A mark is a place on the axis and the curve's value there. None where a value is unknown, or all are 0.
    """
    known = np.asarray(values)
    if not np.isfinite(known).all() or not known.max() > 0:
        return None
    most = float(known.max())
    return {"label": label, "most": most, "values": rounded(known), "marks": [list(mark) for mark in marks]}


def chart(
    key: str,
    title: str,
    *,
    x: str | dict[str, Any],
    y: Axis,
    lines: Sequence[dict[str, Any]] = (),
    ribbons: Sequence[tuple[int, int]] = (),
    guides: Sequence[tuple[float, str]] = (),
    shades: Sequence[tuple[float | None, float | None]] = (),
    cells: str | None = None,
    curve: dict[str, Any] | None = None,
) -> dict[str, Any] | None:
    """A chart, or None where no line and no cell holds a number.

    Parameters
    ----------
    key : str
        Its name among the charts of a layer.
    title : str
        What it shows, as a statement; also what stands in for the picture.
    x : str or dict
        Name of a step axis of the run, or an axis with its number of ``centres``, evenly spread over its scale.
    y : Axis
        The axis of values.
    lines : sequence of dict
        From :func:`line`, each as long as the x axis.
    ribbons : sequence of (int, int)
        Positions of lines between which the area is filled.
    guides : sequence of (float, str)
        Values to mark across the chart, and what they mean.
    shades : sequence of (float or None, float or None)
        Intervals of values to shade; None is the end of the axis.
    cells : str, optional
        Levels of a heat map from :func:`packed_levels`: for each x, the cells from low to high.
    curve : dict, optional
        From :func:`side_curve`: what belongs to the values of ``y`` whatever x is, drawn in the margin.
    """
    if cells is None and all(value is None for one in lines for value in one["values"]):
        return None
    told: dict[str, Any] = {"key": key, "title": title, "cells": cells, "x": x, "y": y.told(), "lines": list(lines)}
    if curve:
        told["curve"] = curve
    for name, marks in (("ribbons", ribbons), ("guides", guides), ("shades", shades)):
        if marks:
            told[name] = [list(mark) for mark in marks]
    return told
