"""Whether gradients keep their direction from step to step, and how much of them is signal.

A cosine near 0 is ordinary: the noise of two batches has no common direction. A cosine that stays well below 0 says
that steps undo one another, as they do where the learning rate is too high for the curvature. Both numbers were
measured on a fixed sample of each parameter while training ran; see docs/concepts/gradient_health.md.
"""

from __future__ import annotations

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from covshift.analysis import rows, turns
from covshift.exceptions import SignalNotRecorded

Floats = NDArray[np.float64]


def gradient_turn(recording: xr.DataTree) -> xr.Dataset:
    """Cosine of every gradient to that of the record before.

    Parameters
    ----------
    recording : DataTree
        Needs the group ``parameters``.

    Returns
    -------
    Dataset
        ``cosine`` (step, parameter)
            In [-1, 1]; NaN at the first record, where either gradient is missing, zero, sparse or sharded, and where
            the record before was another optimizer's turn: adversaries' losses pull against each other by design.
        ``run_cosine`` (step)
            The same of all gradients together: cosines weighted by the product of the two lengths. Parameters without
            a cosine are left out.
        ``gap`` (step)
            Steps since the record before, 0 at the first. Only where it is 1 does a cosine below 0 tell of steps that
            undo one another: an oscillation of period two looks like progress at every second step.

    Raises
    ------
    SignalNotRecorded
        If no parameters were recorded, or by a covshift that did not measure this.
    """
    parameters = rows.group(recording, "parameters")
    kind = turns.kinds(recording, parameters["step"].values)
    is_other = np.diff(kind, prepend=kind[:1]) != 0
    cosine = np.where(is_other[:, None], np.nan, _variable(parameters, "gradient_cosine"))
    length = parameters["gradient_norm"].values.astype(np.float64)
    before = np.concatenate([np.full_like(length[:1], np.nan), length[:-1]])
    known = np.isfinite(cosine) & np.isfinite(length) & np.isfinite(before)
    dot, now, then = (
        np.where(known, part, 0.0).sum(axis=1) for part in (cosine * length * before, length**2, before**2)
    )
    steps = parameters["step"].values.astype(np.int64)
    return xr.Dataset(
        {
            "cosine": (("step", "parameter"), cosine, {"units": "1"}),
            "run_cosine": ("step", np.clip(rows.ratio(dot, np.sqrt(now) * np.sqrt(then)), -1.0, 1.0), {"units": "1"}),
            "gap": ("step", np.diff(steps, prepend=steps[:1]), {"units": "steps"}),
        },
        coords={"step": steps, "parameter": rows.names(parameters, "parameter")},
    )


def signal_to_noise(recording: xr.DataTree) -> xr.Dataset:
    """Squared length of the expected gradient over that of its sampling noise, where steps accumulate micro-batches.

    With the accumulated gradient G and the length n of its noise, from the scatter of the micro-batches, it is
    ``(|G|^2 - n^2) / n^2``: noise adds ``n^2`` to ``|G|^2`` on average, which is taken off. Its inverse is the noise
    scale of McCandlish et al. relative to the batch of the step.

    Parameters
    ----------
    recording : DataTree
        Needs the group ``parameters``.

    Returns
    -------
    Dataset
        ``signal_to_noise`` (step, parameter)
            Unitless, of the gradient of one step; negative where sampling makes it so. NaN without micro-batches (two
            or more backward passes a step, one for each forward pass), or with a noise of 0.
        ``run_signal_to_noise`` (step)
            The same of all gradients together.

    Raises
    ------
    SignalNotRecorded
        If no parameters were recorded, or by a covshift that did not measure this.

    References
    ----------
    McCandlish, Kaplan, Amodei et al. (2018), An Empirical Model of Large-Batch Training; Liu et al. (2020), arXiv
    2001.07384, for the ratio by parameter.
    """
    parameters = rows.group(recording, "parameters")
    noise = _variable(parameters, "gradient_noise_norm") ** 2
    square = parameters["gradient_norm_preclip"].values.astype(np.float64) ** 2
    known = np.isfinite(noise) & np.isfinite(square)
    signal, noise = (np.where(known, part, 0.0) for part in (square - noise, noise))
    return xr.Dataset(
        {
            "signal_to_noise": (("step", "parameter"), rows.ratio(signal, noise), {"units": "1"}),
            "run_signal_to_noise": ("step", rows.ratio(signal.sum(axis=1), noise.sum(axis=1)), {"units": "1"}),
        },
        coords={"step": parameters["step"].values, "parameter": rows.names(parameters, "parameter")},
    )


def _variable(parameters: xr.Dataset, name: str) -> Floats:
    if name not in parameters:
        raise SignalNotRecorded(f"recording: 'parameters' has no '{name}': it was made by an earlier covshift")
    return np.asarray(parameters[name].values, dtype=np.float64)
