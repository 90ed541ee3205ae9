"""Whether gradients reach every layer, how large they are over depth, and how far each update moves the parameters.

Zero rates and norms are exact statements about the recorded batches. The slope over depth is a description of one
step's norms, with an interval of the fit; it is not a test.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from covshift.analysis import rows
from covshift.analysis.dead_units import dead_units
from covshift.analysis.gradient_scale import clip_factor, growth_over_time, range_risk, trust_ratio
from covshift.analysis.unit_profile import unit_profile

__all__ = [
    "clip_factor",
    "dead_units",
    "growth_over_time",
    "norm_profile",
    "range_risk",
    "trust_ratio",
    "unit_profile",
    "update_ratio",
    "zero_rate",
]

MIN_LAYERS = 5
"""Fewest layers a slope over depth is fitted to."""


def zero_rate(recording: xr.DataTree, *, signal: str = "activation_grad", stream: str = "train") -> xr.DataArray:
    """Share of recorded elements that are exactly zero, -0.0 included.

    A gradient can be zero because a derivative is (see :func:`covshift.analysis.linkage.violation_rate`), because
    max-pooling or dropout masked it, or because it underflowed; the rate does not tell which.

    Parameters
    ----------
    recording : DataTree
        Needs the group ``layers``.
    signal : str, default "activation_grad"
        One of :data:`covshift.schema.SIGNALS`; pre-activations are the joined view of
        :func:`covshift.analysis.rows.layer_rows`.
    stream : {"train", "evaluation"}
        Which rows.

    Returns
    -------
    DataArray
        Dims ``(step, layer)``, in [0, 1]; NaN where nothing was recorded. NaN elements count as not zero.

    Raises
    ------
    SignalNotRecorded
        If the signal was not recorded; the message lists the signals that were.
    """
    found = rows.layer_rows(recording, signal=signal, stream=stream)
    rate = found["zero_count"] / found["count"].where(found["count"] > 0)
    return rate.rename("zero_rate").assign_attrs(units="1", signal=signal)


def norm_profile(recording: xr.DataTree, *, signal: str = "activation_grad", stream: str = "train") -> xr.Dataset:
    """Size of the gradient over depth, and the slope at which it shrinks or grows, at every step.

    The layers are the nonlinearities where at least five were recorded, else all: tensors of one kind, ordered by
    depth. The slope is the least-squares slope of ``log10(rms)`` on a layer's position among them. Layers whose
    gradient is exactly zero in every element keep their position but are left out of the fit and counted in
    ``vanished``: the logarithm of an underflow would pass for a slope.

    Parameters
    ----------
    recording : DataTree
        Needs the group ``layers``.
    signal : str, default "activation_grad"
        ``"activation_grad"`` or ``"preactivation_grad"``.
    stream : {"train", "evaluation"}
        Which rows.

    Returns
    -------
    Dataset
        ``rms`` (step, layer)
            Root mean square of the finite gradient elements; NaN where not recorded.
        ``slope`` (step)
            Decades per layer; positive when the gradient shrinks towards the input.
        ``slope_low``, ``slope_high`` (step)
            90 % interval of the fit (Student t). Neighbouring layers are not independent, so it is on the narrow side.
        ``total_decades`` (step)
            Fitted change from the first to the last layer of the fit, with the sign of the slope.
        ``n_layers`` (step)
            Layers in the fit. Below five, slope, interval and total are NaN.
        ``vanished`` (step)
            Layers with an exactly zero gradient.

    Raises
    ------
    SignalNotRecorded
        If the signal was not recorded.
    """
    rms = rows.moments(recording, signal=signal, stream=stream)["rms"]
    rms = rms.isel(layer=_one_kind(recording, rms, stream))
    sizes = rms.values
    fit = _slopes(np.log10(np.where(sizes > 0, sizes, np.nan)))
    per_step = {name: ("step", values) for name, values in fit.items()}
    vanished = xr.DataArray((sizes == 0).sum(axis=1), dims="step")
    return xr.Dataset({"rms": rms, **per_step, "vanished": vanished}, coords={"step": rms["step"]}).reset_coords(
        drop=True
    )


def update_ratio(recording: xr.DataTree) -> xr.DataArray:
    """Length of the optimizer's step relative to the parameter it moves.

    Parameters
    ----------
    recording : DataTree
        Needs the group ``parameters``.

    Returns
    -------
    DataArray
        Dims ``(step, parameter)``: ``update_norm / weight_norm``, unitless, >= 0; NaN where either was not measured or
        the parameter was all zero.

    Raises
    ------
    SignalNotRecorded
        If no parameters were recorded.
    """
    parameters = rows.group(recording, "parameters")
    weight = parameters["weight_norm"]
    ratio = parameters["update_norm"] / weight.where(weight > 0)
    return ratio.rename("update_ratio").assign_attrs(units="1").reset_coords(drop=True)


def _one_kind(recording: xr.DataTree, rms: xr.DataArray, stream: str) -> NDArray[np.int64]:
    layers = rows.group(recording, "layers", stream=stream)
    recorded = rms.notnull().any("step").values
    nonlinear = recorded & rows.nonlinear(layers)
    chosen = np.flatnonzero(nonlinear if nonlinear.sum() >= MIN_LAYERS else recorded)
    return np.asarray(chosen[np.argsort(layers["depth"].values[chosen], kind="stable")])


def _slopes(logs: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """Least squares of every row of ``logs`` (step, layer) on the position, over the entries that are not NaN."""
    from scipy.special import stdtrit

    there = np.isfinite(logs)
    n = there.sum(axis=1)
    enough = n >= MIN_LAYERS
    known = there[enough]
    position = np.broadcast_to(np.arange(logs.shape[1]), known.shape)
    x, y = _centred(position, known), _centred(logs[enough], known)
    xx = (x**2).sum(axis=1)
    slope = (x * y).sum(axis=1) / xx
    residual = ((y - slope[:, None] * x) ** 2 * known).sum(axis=1)
    margin = stdtrit(n[enough] - 2, 0.95) * np.sqrt(residual / (n[enough] - 2) / xx)
    span = x.max(axis=1, initial=0) - x.min(axis=1, initial=0)
    columns = {"slope": slope, "slope_low": slope - margin, "slope_high": slope + margin, "total_decades": slope * span}
    full = {name: np.full(len(logs), np.nan) for name in columns}
    for name, values in columns.items():
        full[name][enough] = values
    return {**full, "n_layers": n}


def _centred(values: NDArray[Any], known: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Deviations from the row's mean over the known entries, 0 elsewhere."""
    filled = np.where(known, values, 0.0)
    mean = filled.sum(axis=1, keepdims=True) / known.sum(axis=1, keepdims=True)
    return np.where(known, filled - mean, 0.0)
