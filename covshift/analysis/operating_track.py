"""Where on its nonlinearity a layer lives, step by step: mean and spread of z beside the derivative there."""

from __future__ import annotations

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from covshift.analysis import rows
from covshift.analysis.active_mass import FLAT, active_mass
from covshift.analysis.derivatives import derivative
from covshift.exceptions import SignalNotRecorded

SPREAD = 3.0
"""Standard deviations about the mean that the curve reaches: 99.7 % of a normal z."""

ROOM = 0.15
"""Share of its own length that the axis reaches beyond zero on either side: where most nonlinearities bend."""

ROBUST = 0.02
"""Share of the records whose reach may lie beyond the axis, so that an early outlier does not flatten the rest."""


def operating_track(recording: xr.DataTree, *, layer: str, stream: str = "train", points: int = 401) -> xr.Dataset:
    """Path of one nonlinearity's pre-activation z over training, and its derivative over the range it visited.

    Parameters
    ----------
    recording : DataTree
        Needs the group ``layers``.
    layer : str
        A nonlinearity.
    stream : {"train", "evaluation", "probe"}
        Which rows.
    points : int, default 401
        Points of the curve.

    Returns
    -------
    Dataset
        ``mean``, ``sd`` (step)
            Exact moments of the finite elements of z; NaN where nothing was recorded.
        ``active_mass`` (step)
            Share of z with a usable derivative, see :func:`covshift.analysis.active_mass.active_mass`; NaN where it
            is not known.
        ``derivative_at_mean`` (step), ``derivative`` (z)
            ``|g'|`` at the mean and at every z of the axis, by :func:`covshift.analysis.derivatives.derivative`; NaN
            for an unknown kind.
        ``flat`` (z)
            Where that is below a tenth of its maximum on the axis.

        ``z`` covers mean +- 3 sd of all but the 2 % farthest records at either end, and both sides of zero. Attributes:
        ``layer``, ``activation``.

    Raises
    ------
    SignalNotRecorded
        If the recording holds no nonlinearity of this name, or no pre-activation; the message names those it holds.
    """
    z = rows.layer_rows(recording, signal="preactivation", stream=stream)
    names, kinds = rows.names(z), rows.names(z, "activation")
    found = np.flatnonzero((names == layer) & (kinds != ""))
    if not len(found):
        there = ", ".join(names[kinds != ""][:8]) or "none"
        raise SignalNotRecorded(f"layer {layer!r}: not among the nonlinearities; there are {there}")
    moments = rows.moments(recording, signal="preactivation", stream=stream).isel(layer=int(found[0]))
    mean, sd = moments["mean"].values, moments["sd"].values
    mass = active_mass(recording, stream=stream).sel(layer=layer).values
    grid = np.linspace(*_reach(mean, sd), points)
    curve = derivative(str(kinds[found[0]]), grid)
    highest = float(np.max(curve, initial=0.0, where=np.isfinite(curve)))
    return xr.Dataset(
        {
            "mean": ("step", mean, {"units": "1"}),
            "sd": ("step", sd, {"units": "1"}),
            "active_mass": ("step", mass, {"units": "1"}),
            "derivative_at_mean": ("step", derivative(str(kinds[found[0]]), mean), {"units": "1"}),
            "derivative": ("z", curve, {"units": "1"}),
            "flat": ("z", curve < FLAT * highest),
        },
        coords={"step": z["step"].values, "z": grid},
        attrs={"layer": layer, "activation": str(kinds[found[0]])},
    )


def _reach(mean: NDArray[np.float64], sd: NDArray[np.float64]) -> tuple[float, float]:
    known = np.isfinite(mean) & np.isfinite(sd)
    if not known.any():
        return -1.0, 1.0
    low = np.quantile(mean[known] - SPREAD * sd[known], ROBUST, method="lower")
    high = np.quantile(mean[known] + SPREAD * sd[known], 1 - ROBUST, method="higher")
    free = ROOM * float(high - low)
    if not free:
        return float(min(low, -1.0)), float(max(high, 1.0))
    return float(min(low, -free)), float(max(high, free))
