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
from covshift.analysis.gradient_direction import gradient_turn, signal_to_noise
from covshift.analysis.gradient_scale import clip_factor, growth_over_time, range_risk, trust_ratio
from covshift.analysis.unit_profile import unit_profile

__all__ = [
    "clip_factor",
    "dead_units",
    "gradient_turn",
    "growth_over_time",
    "norm_profile",
    "range_risk",
    "signal_to_noise",
    "trust_ratio",
    "unit_profile",
    "update_ratio",
    "zero_rate",
]

MIN_LAYERS = 5
"""Fewest layers a slope over depth is fitted to."""

_RESCALING = ("Pool", "Flatten", "Dropout", "Norm", "Pad", "Upsample", "Shuffle", "Identity")
"""Parts of the names of modules that change the scale of a gradient, or the number of its elements, by construction."""


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
    stream : {"train", "evaluation", "probe"}
        Which rows.

    Returns
    -------
    DataArray
        Dims ``(step, layer)``, in [0, 1]; NaN where nothing finite was recorded. Beside finite elements, those that are
        NaN or infinite count as not zero.

    Raises
    ------
    SignalNotRecorded
        If the signal was not recorded; the message lists the signals that were.
    """
    found = rows.layer_rows(recording, signal=signal, stream=stream)
    rate = found["zero_count"] / found["count"].where(rows.finite_count(found) > 0)
    return rate.rename("zero_rate").assign_attrs(units="1", signal=signal)


def norm_profile(recording: xr.DataTree, *, signal: str = "activation_grad", stream: str = "train") -> xr.Dataset:
    """Size of the gradient over depth, and the slope at which it shrinks or grows, at every step.

    The layers are the nonlinearities where at least five were recorded, else all but those that change the scale by
    construction (pooling, flattening, dropout, normalisation, padding, resampling): tensors of one kind, ordered by
    depth. The slope is the least-squares slope of ``log10(rms)`` on a layer's position among them, with an intercept
    for each number of positions a unit has (``H W`` of a convolution, 1 of a linear layer): global average pooling
    over 64 positions makes the gradient of every element before it 64 times smaller, and strides do likewise, which is
    no vanishing. Layers whose gradient is exactly zero in every element keep their position but are left out of the fit
    and counted in ``vanished``: the logarithm of an underflow would pass for a slope.

    Parameters
    ----------
    recording : DataTree
        Needs the group ``layers``.
    signal : str, default "activation_grad"
        ``"activation_grad"`` or ``"preactivation_grad"``.
    stream : {"train", "evaluation", "probe"}
        Which rows.

    Returns
    -------
    Dataset
        ``rms`` (step, layer)
            Root mean square of the finite gradient elements, of several ranks under one loss
            (:mod:`covshift.analysis.local_loss`); NaN where not recorded, and where beside NaN or infinities all were
            zero.
        ``slope`` (step)
            Decades per layer; positive when the gradient shrinks towards the input.
        ``slope_low``, ``slope_high`` (step)
            90 % interval of the fit (Student t). Neighbouring layers are not independent, so it is on the narrow side.
        ``total_decades`` (step)
            Fitted change from the first to the last layer of the fit, with the sign of the slope: what the slope makes,
            without the jumps between intercepts.
        ``n_layers`` (step)
            Layers in the fit. Below five, or with fewer than three more than intercepts, slope, interval and total are
            NaN.
        ``vanished`` (step)
            Layers with an exactly zero gradient, without NaN or infinities in it.

    Raises
    ------
    SignalNotRecorded
        If the signal was not recorded.
    """
    rms = rows.moments(recording, signal=signal, stream=stream)["rms"]
    chosen = _one_kind(recording, rms, stream)
    broken = rows.is_broken(rows.layer_rows(recording, signal=signal, stream=stream))
    rms = rms.isel(layer=chosen).where(~broken[:, chosen])
    sizes = rms.values
    fit = _slopes(np.log10(np.where(sizes > 0, sizes, np.nan)), _positions(recording, signal, stream)[chosen])
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
    types = rows.names(layers, "module_type")
    rescaling = np.any([np.char.find(types, kind) >= 0 for kind in _RESCALING], axis=0)
    chosen = np.flatnonzero(nonlinear if nonlinear.sum() >= MIN_LAYERS else recorded & ~rescaling)
    return np.asarray(chosen[np.argsort(layers["depth"].values[chosen], kind="stable")])


def _positions(recording: xr.DataTree, signal: str, stream: str) -> NDArray[np.float64]:
    """Elements of a unit in one example, shape ``(layer,)``, to six digits; NaN where examples or units are unknown."""
    found = rows.layer_rows(recording, signal=signal, stream=stream)
    elements, examples = (found[name].values.astype(np.float64).sum(axis=0) for name in ("count", "example_count"))
    units = rows.group(recording, "layers", stream=stream)["unit_count_of_layer"].values
    return np.array([float(f"{each:.6g}") for each in rows.ratio(elements, examples * units)])


def _slopes(logs: NDArray[np.float64], positions: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """Least squares of every row of ``logs`` (step, layer) on the place, over the entries that are not NaN.

    Layers of equal ``positions`` share an intercept, by which both sides are centred; unknown ones share one as well.
    """
    from scipy.special import stdtrit

    there = np.isfinite(logs)
    _, group = np.unique(positions, return_inverse=True)
    members = group == np.arange(group.max(initial=0) + 1)[:, None]
    n, intercepts = there.sum(axis=1), (there[:, None, :] & members).any(axis=2).sum(axis=1)
    enough = (n >= MIN_LAYERS) & (n - intercepts >= MIN_LAYERS - 2)
    known = there[enough]
    place = np.broadcast_to(np.arange(logs.shape[1]), known.shape)
    x, y = _centred(place, known, members), _centred(logs[enough], known, members)
    xx = (x**2).sum(axis=1)
    slope = rows.ratio((x * y).sum(axis=1), xx)
    residual = ((y - slope[:, None] * x) ** 2 * known).sum(axis=1)
    degrees = n[enough] - intercepts[enough] - 1
    margin = stdtrit(degrees, 0.95) * np.sqrt(rows.ratio(residual / degrees, xx))
    last = np.where(known, place, -np.inf).max(axis=1, initial=-np.inf)
    span = last - np.where(known, place, np.inf).min(axis=1, initial=np.inf)
    columns = {"slope": slope, "slope_low": slope - margin, "slope_high": slope + margin, "total_decades": slope * span}
    full = {name: np.full(len(logs), np.nan) for name in columns}
    for name, values in columns.items():
        full[name][enough] = values
    return {**full, "n_layers": n}


def _centred(values: NDArray[Any], known: NDArray[np.bool_], members: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Deviations from the mean of the row's known entries in the same group, 0 elsewhere."""
    centred = np.zeros(values.shape)
    for group in members:
        here = known & group
        filled = np.where(here, values, 0.0)
        mean = filled.sum(axis=1, keepdims=True) / np.maximum(here.sum(axis=1, keepdims=True), 1)
        centred += np.where(here, filled - mean, 0.0)
    return centred
