"""One layer's distribution over steps, binned for the eye: counts on a display axis, quantiles, and what lies beyond.

The recorded bins are cut from the bits of floats, hundreds an axis and densest at zero. A picture needs few, even
cells on an axis that holds the bulk of every step. Here the counts are moved onto such cells, each recorded bin spread
evenly over its width; quantiles are read off the recorded bins themselves, never off the cells. This room refuses to
smooth.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from covshift.analysis import rows
from covshift.exceptions import InvalidArgumentError, SignalNotRecorded
from covshift.grid import VALUES, Grid

FloatArray = NDArray[np.float64]

PROBABILITIES = (0.01, 0.25, 0.5, 0.75, 0.99)

OF_STEP = {"count": ("cell",), "quantile": ("probability",)}
"""Dimensions of a river's variables beside ``step``."""

DISPLAY_MARGIN = 0.03
"""Share of the axis left free beyond the outermost quantiles, so that an atom at the end of the range is seen."""

SYMLOG_SPAN = 100.0
"""Ratio of the widest step to the narrowest from which the display axis is symmetric-logarithmic: two decades."""

SYMLOG_DECADES = 6.0
"""Most decades a symmetric-logarithmic axis shows on one side of its linear part."""


@dataclass(frozen=True)
class DisplayAxis:
    """A monotone map from values to an even axis: linear, or symmetric-logarithmic outside ``±linear_within``.

    ``forward`` is ``v / linear_within`` inside and ``sign(v) (1 + log10(|v| / linear_within))`` outside, so the linear
    part is as long as a decade. ``linear_within`` is infinite for a linear axis.
    """

    low: float
    high: float
    linear_within: float = np.inf

    @property
    def scale(self) -> str:
        """``"linear"`` or ``"symlog"``."""
        return "linear" if np.isinf(self.linear_within) else "symlog"

    def forward(self, values: FloatArray) -> FloatArray:
        """Position of ``values`` on the even axis."""
        if np.isinf(self.linear_within):
            return values
        scaled = np.abs(values) / self.linear_within
        return np.asarray(np.sign(values) * np.where(scaled <= 1, scaled, 1 + np.log10(np.maximum(scaled, 1))))

    def backward(self, positions: FloatArray) -> FloatArray:
        """Inverse of :meth:`forward`."""
        if np.isinf(self.linear_within):
            return positions
        size = np.abs(positions)
        return np.asarray(np.sign(positions) * self.linear_within * np.where(size <= 1, size, 10.0 ** (size - 1)))

    def edges(self, cells: int) -> FloatArray:
        """Edges of ``cells`` even cells between ``low`` and ``high``, in values."""
        ends = self.forward(np.array([self.low, self.high]))
        return self.backward(np.linspace(ends[0], ends[1], cells + 1))


def river(
    recording: xr.DataTree,
    *,
    layer: str,
    signal: str = "activation",
    stream: str = "train",
    cells: int = 120,
) -> xr.Dataset:
    """Distribution of one layer's values at every step that has a histogram, ready to be drawn.

    Parameters
    ----------
    recording : DataTree
        Needs ``histograms/value_histogram``; see :mod:`covshift.schema`.
    layer : str
        Name on the ``layer`` axis.
    signal : str, default "activation"
        ``"input"``, ``"preactivation"`` (read under the layer that produced it where it was recorded there) or
        ``"activation"``.
    stream : str, default "train"
        ``"train"``, or ``"evaluation"`` for the rows recorded while the model was merely evaluated.
    cells : int, default 120
        Even cells on the display axis.

    Returns
    -------
    Dataset
        ``count`` (step, cell): elements in each display cell, fractional where a recorded bin was cut; ``quantile``
        (step, probability): at 1, 25, 50, 75 and 99 %, in the values' own unit, linear within a recorded bin (beyond
        2^16, where bins end, 2^16), NaN where no finite element was recorded; ``below``, ``above`` (step): finite
        elements outside the axis; ``nan``, ``infinite``, ``zero``, ``finite`` (step): elements of that kind.
        Coordinates ``lower``, ``upper`` (cell). The attributes name ``layer``, ``signal``, ``stream``, ``scale``
        ("linear" or "symlog") and ``linear_within``, the
        half-width of a symlog axis's linear part. The axis runs from the least 1 % to the greatest 99 % quantile of
        any step and is symlog where the widest step exceeds the narrowest a hundredfold. ``step`` is empty where the
        layer was never recorded.

    Raises
    ------
    SignalNotRecorded
        If there are no histograms, or no such layer or signal; the message names those there are.
    InvalidArgumentError
        If ``cells`` is less than 2.
    """
    if cells < 2:
        raise InvalidArgumentError(f"cells={cells}: expected at least 2 cells on the display axis")
    counts = _layer_histogram(recording, layer=layer, signal=signal, stream=stream)
    recorded = counts.isel(step=np.flatnonzero(counts.sum("value_bin").values > 0)).transpose("step", "value_bin")
    values = recorded.values.astype(np.float64)
    return display(values, recorded["step"].values, cells=cells, layer=layer, signal=signal, stream=stream)


def display(counts: FloatArray, steps: NDArray[Any], *, cells: int = 120, **attrs: str) -> xr.Dataset:
    """Histograms of one tensor as :func:`river` returns them.

    Parameters
    ----------
    counts : ndarray
        Shape ``(step, VALUES.size)``.
    steps : ndarray
        Shape ``(step,)``.
    cells : int, default 120
        Even cells on the display axis.
    **attrs : str
        What the counts are of: ``layer``, ``signal`` and ``stream``.

    Returns
    -------
    Dataset
        See :func:`river`.
    """
    axis, edges, values = displayed(counts, cells=cells)
    return xr.Dataset(
        {name: (("step", *OF_STEP.get(name, ())), column) for name, column in values.items()},
        coords={
            "step": steps,
            "probability": list(PROBABILITIES),
            "lower": ("cell", edges[:-1]),
            "upper": ("cell", edges[1:]),
        },
        attrs={**attrs, "scale": axis.scale, "linear_within": axis.linear_within},
    )


def displayed(counts: FloatArray, *, cells: int) -> tuple[DisplayAxis, FloatArray, dict[str, FloatArray]]:
    """Axis, edges of its cells and variables of :func:`display`, each with the step as first dimension."""
    occupied = _Occupied.of(counts, VALUES)
    quantile = occupied.quantiles(PROBABILITIES)
    axis = display_axis(quantile)
    edges = axis.edges(cells)
    values = {"count": occupied.rebinned(edges), "quantile": quantile, **_kinds(counts, occupied, axis)}
    return axis, edges, values


def quantiles(counts: FloatArray, probabilities: tuple[float, ...], *, grid: Grid = VALUES) -> FloatArray:
    """Quantiles of histograms on ``grid``, linear within a bin.

    One beyond the last edge of the grid reads as that edge, one below the first between 0 and that.

    Parameters
    ----------
    counts : ndarray
        Shape ``(rows, grid.size)``. Infinite and NaN elements are left out.
    probabilities : tuple of float
        Each in [0, 1].
    grid : Grid, default VALUES
        The grid of ``counts``.

    Returns
    -------
    ndarray
        Shape ``(rows, probabilities)``; NaN in rows without a finite element.
    """
    return _Occupied.of(counts, grid).quantiles(probabilities)


def rebinned(counts: FloatArray, edges: FloatArray, *, grid: Grid = VALUES, closed: bool = True) -> FloatArray:
    """Counts of ``grid`` moved onto the cells between ``edges``, each bin spread evenly over its width.

    Parameters
    ----------
    counts : ndarray
        Shape ``(rows, grid.size)``.
    edges : ndarray
        Rising, shape ``(cells + 1,)``. What lies outside is left out. Zero and overflow, which have no width, belong to
        the cell that starts at or below them.
    closed : bool, default True
        Whether the last edge belongs to the last cell.

    Returns
    -------
    ndarray
        Shape ``(rows, cells)``; a row sums to its finite elements inside the edges.
    """
    return _Occupied.of(counts, grid).rebinned(edges, closed=closed)


@dataclass(frozen=True)
class _Occupied:
    """Histograms cut to the bins of finite values that any of them holds, with the edges of those bins."""

    counts: FloatArray
    lower: FloatArray
    upper: FloatArray

    @classmethod
    def of(cls, counts: FloatArray, grid: Grid) -> _Occupied:
        finite = _finite_bins(grid)
        held = finite.start + np.flatnonzero(counts[:, finite].any(axis=0))
        return cls(counts[:, held], _closed(grid.lower[held], grid), _closed(grid.upper[held], grid))

    def quantiles(self, probabilities: tuple[float, ...]) -> FloatArray:
        """See :func:`quantiles`."""
        bins = self.counts.shape[1]
        if not bins:
            return np.full((len(self.counts), len(probabilities)), np.nan)
        reached = np.cumsum(self.counts, axis=1)
        ranks = reached[:, -1:] * np.asarray(probabilities)
        held = self.counts > 0
        first, last = held.argmax(axis=1), bins - 1 - held[:, ::-1].argmax(axis=1)
        # The bin in which a rank is reached holds some element, but for rounding at the ends.
        hit = np.clip((reached[:, None, :] < ranks[..., None]).sum(axis=2), first[:, None], last[:, None])
        over = np.take_along_axis(reached, hit, axis=1) - ranks
        inside = np.clip(1.0 - rows.ratio(over, np.take_along_axis(self.counts, hit, axis=1)), 0.0, 1.0)
        return np.asarray(self.lower[hit] + inside * (self.upper[hit] - self.lower[hit]))

    def rebinned(self, edges: FloatArray, *, closed: bool = True) -> FloatArray:
        """See :func:`rebinned`."""
        return np.diff(self.below(edges, closed=closed), axis=1)

    def below(self, edges: FloatArray, *, closed: bool = False) -> FloatArray:
        """Elements below each of ``edges``, shape ``(rows, edges)``, and if ``closed`` also those at the last."""
        width = self.upper - self.lower
        at_atom = np.isin(edges, self.lower[width == 0])
        if closed:
            at_atom[-1] = False
        whole = np.searchsorted(self.upper, edges, side="right") - at_atom
        reached = np.pad(np.cumsum(self.counts, axis=1), ((0, 0), (1, 0)))
        if not width.size:
            return reached[:, whole]
        cut = np.minimum(whole, width.size - 1)
        part = np.nan_to_num(rows.ratio(edges - self.lower[cut], width[cut])).clip(0.0, 1.0)
        return np.asarray(reached[:, whole] + self.counts[:, cut] * np.where(whole < width.size, part, 0.0))


def display_axis(quantile: FloatArray) -> DisplayAxis:
    """Axis that holds the 1-99 % range of every step; ``quantile`` has shape ``(step, probability)``."""
    known = quantile[np.isfinite(quantile).all(axis=1)]
    if not known.size:
        return DisplayAxis(-1.0, 1.0)
    low, high = float(known[:, 0].min()), float(known[:, -1].max())
    if low == high:
        margin = abs(low) / 2 or 1.0
        return DisplayAxis(low - margin, high + margin)
    reach = np.abs(known[:, [0, -1]]).max(axis=1)
    widest, narrowest = float(reach.max()), float(reach[reach > 0].min())
    within = np.inf if widest <= SYMLOG_SPAN * narrowest else max(narrowest, widest / 10.0**SYMLOG_DECADES)
    ends = DisplayAxis(low, high, within).forward(np.array([low, high]))
    margin = DISPLAY_MARGIN * (ends[1] - ends[0])
    low, high = DisplayAxis(low, high, within).backward(ends + np.array([-margin, margin])).tolist()
    return DisplayAxis(low, high, within)


def _kinds(counts: FloatArray, occupied: _Occupied, axis: DisplayAxis) -> dict[str, FloatArray]:
    """Elements of each row that are zero, finite, NaN, infinite, or outside ``axis``."""
    finite = occupied.counts.sum(axis=1)
    ends = occupied.below(np.array([axis.low, axis.high]), closed=True)
    return {
        "below": ends[:, 0],
        "above": np.maximum(finite - ends[:, 1], 0.0),
        "nan": counts[:, VALUES.nan],
        "infinite": counts[:, 0] + counts[:, VALUES.nan - 1],
        "zero": counts[:, VALUES.zero],
        "finite": finite,
    }


def _finite_bins(grid: Grid) -> slice:
    """Bins of finite values: all but the two infinities at the ends and NaN."""
    return slice(1, grid.nan - 1)


def _closed(edges: FloatArray, grid: Grid) -> FloatArray:
    """``edges`` with overflow standing at its finite edge, as in :mod:`covshift.analysis.divergence`."""
    far = np.ldexp(1.0, grid.max_exponent)
    return np.clip(edges, -far, far)


def _layer_histogram(recording: xr.DataTree, *, layer: str, signal: str, stream: str) -> xr.DataArray:
    """Counts (step, value_bin) over all example groups; an input is read under its producer if need be."""
    histogram = rows.group(recording, "histograms", stream=stream)["value_histogram"]
    for dim, label in (("layer", layer), ("value_signal", signal)):
        known = rows.names(histogram, dim)
        if label not in known:
            raise SignalNotRecorded(f"{dim} {label!r}: not in the histograms; recorded there: {', '.join(known)}")
    own = histogram.sel(layer=layer, value_signal=signal).sum("group")
    if signal not in rows.PRODUCER_SIGNAL or bool(own.any()):
        return own
    layers = rows.group(recording, "layers", stream=stream)
    producers = dict(zip(rows.names(layers).tolist(), rows.names(layers, "preactivation_of").tolist(), strict=True))
    producer = producers.get(layer, "")
    if producer not in rows.names(histogram):
        return own
    return histogram.sel(layer=producer, value_signal=rows.PRODUCER_SIGNAL[signal]).sum("group")
