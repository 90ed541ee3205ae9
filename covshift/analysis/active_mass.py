"""Share of a layer's pre-activations at which its nonlinearity still passes a usable derivative.

A unit whose derivative is small is as good as stuck although nothing is exactly zero, which is how bounded activations
fail. The share is exact for piecewise linear activations, read off a histogram of z for tanh and sigmoid, and not
measured for others.
"""

from __future__ import annotations

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from covshift import schema
from covshift.analysis import rows
from covshift.analysis.distribution_functions import widths
from covshift.analysis.shift_records import View
from covshift.exceptions import SignalNotRecorded
from covshift.grid import Grid

Floats = NDArray[np.float64]

FLAT = 0.1
"""A derivative below this part of its maximum counts as flat."""

_EXACT = ("ReLU", "ReLU6", "Hardtanh", "LinkedReLU")
"""Activations whose derivative is either zero or the largest there is: not flat is not structurally zero."""

_HALF_WIDTH = {"Tanh": float(np.arctanh(np.sqrt(1 - FLAT))), "Sigmoid": 2 * float(np.arctanh(np.sqrt(1 - FLAT)))}
"""``|z|`` up to which the derivative is at least a tenth of its maximum: tanh' = 1 - tanh^2, and sigmoid'(z) is
tanh'(z / 2) up to a factor. 1.82 and 3.64."""


def active_mass(recording: xr.DataTree, *, stream: str = "train") -> xr.DataArray:
    """Share of z at which ``|g'(z)|`` is at least a tenth of the largest derivative, of any member of a linkage.

    Parameters
    ----------
    recording : DataTree
        Needs the group ``layers``, and ``histograms`` for tanh and sigmoid.
    stream : {"train", "evaluation", "probe"}
        Which rows.

    Returns
    -------
    DataArray
        Dims ``(step, layer)``, the layers being the nonlinearities, in [0, 1]. ReLU, ReLU6, Hardtanh and linked ReLU
        are exact at every record; tanh and sigmoid are known where there is a histogram of z, to within the share of
        one bin at each end. NaN elsewhere, where no element of z is finite, and for other activations.

    Raises
    ------
    SignalNotRecorded
        If the recording holds no nonlinearity, or no pre-activation of one.
    """
    z = rows.layer_rows(recording, signal="preactivation", stream=stream)
    chosen = rows.nonlinearities(z)
    kind = rows.names(z, "activation")
    exact = np.isin(kind, _EXACT) & (z["structural_measured"].values == 1)
    share = 1 - rows.ratio(z["structural_zero_count"].values.astype(np.float64), z["count"].values.astype(np.float64))
    share = np.where(exact & (rows.finite_count(z) > 0), share, np.nan)
    binned = np.flatnonzero(np.isin(kind, list(_HALF_WIDTH)))
    if len(binned):
        _fill_from_histograms(share, recording, z["step"].values, binned, kind, stream)
    coords = {"step": z["step"].values, "layer": rows.names(z)[chosen]}
    return xr.DataArray(share[:, chosen], coords, ("step", "layer"), "active_mass", {"units": "1"})


def _fill_from_histograms(
    share: Floats,
    recording: xr.DataTree,
    steps: NDArray[np.int64],
    layers: NDArray[np.int64],
    kind: NDArray[np.str_],
    stream: str,
) -> None:
    try:
        view = View.of(recording, "preactivation", stream)
    except SignalNotRecorded:
        return
    bounds = np.array([_HALF_WIDTH[str(kind[layer])] for layer in layers])
    for step, counts in zip(view.steps, view.counts(layers), strict=True):
        share[np.searchsorted(steps, step), layers] = within(counts, bounds, schema.grid_of("value_histogram"))


def within(counts: NDArray[np.int64], bounds: Floats, grid: Grid) -> Floats:
    """Share of finite elements with ``|x| <= bound``, bins spread evenly over their width.

    Parameters
    ----------
    counts : array of int, shape (rows, grid.size)
        Histograms.
    bounds : ndarray, shape (rows,)
        One bound a row.
    grid : Grid
        Their bins.

    Returns
    -------
    ndarray of float64, shape (rows,)
        NaN where a row holds no finite element.
    """
    finite = slice(1, grid.nan - 1)
    lower = np.minimum(np.abs(grid.lower[finite]), np.abs(grid.upper[finite]))
    width = widths(grid)[finite]
    reach = bounds[:, None] - lower
    covered = np.where(width > 0, np.clip(reach / np.where(width > 0, width, 1.0), 0.0, 1.0), reach >= 0)
    held = counts[:, finite].astype(np.float64)
    return rows.ratio((held * covered).sum(axis=1), held.sum(axis=1))
