"""The size of gradients over time and against the range of their dtype, and of parameters against their gradients.

Sizes are exact for the recorded batches. A single spike is ordinary (gradients are heavy-tailed), so growth is measured
against the median of the records before, and it takes several records to mean anything.
"""

from __future__ import annotations

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from covshift.analysis import rows
from covshift.exceptions import InvalidArgumentError, SignalNotRecorded
from covshift.grid import GRADIENTS

Floats = NDArray[np.float64]

TRAILING = 20

_LARGEST = {"float16": 65504.0, "bfloat16": 3.3895313892515355e38}
"""Largest finite number."""
_SMALLEST_EXPONENT = {"float16": -24, "bfloat16": -126}
"""Power of two below which a magnitude is flushed to zero; bfloat16 has subnormals that most hardware does not keep."""


def growth_over_time(
    recording: xr.DataTree, *, signal: str = "activation_grad", stream: str = "train", trailing: int = TRAILING
) -> xr.DataArray:
    """Decades by which each record's gradient exceeds what it typically was before.

    Parameters
    ----------
    recording : DataTree
        Needs the group ``layers``.
    signal : str, default "activation_grad"
        One of :data:`covshift.schema.SIGNALS`.
    stream : {"train", "evaluation", "probe"}
        Which rows.
    trailing : int, default 20
        Records whose median is the standard of comparison; fewer at the start, at least 3.

    Returns
    -------
    DataArray
        Dims ``(step, layer)``: ``log10(rms / median of the rms of the records before)``. NaN for the first 3 records,
        where nothing was recorded, and where either is 0.

    Raises
    ------
    InvalidArgumentError
        If ``trailing`` is below 3.
    SignalNotRecorded
        If the signal was not recorded.
    """
    if trailing < 3:
        raise InvalidArgumentError(f"trailing={trailing}: expected at least 3 records")
    rms = rows.moments(recording, signal=signal, stream=stream)["rms"]
    logs = np.log10(np.where(rms.values > 0, rms.values, np.nan))
    grown = np.full(logs.shape, np.nan)
    for index in range(3, len(logs)):
        grown[index] = logs[index] - rows.median(logs[max(index - trailing, 0) : index])
    return xr.DataArray(grown, rms.coords, rms.dims, "growth", {"units": "decades"}).reset_coords(drop=True)


def trust_ratio(recording: xr.DataTree) -> xr.DataArray:
    """Length of every parameter relative to its gradient: what layer-wise learning rates (LARS) are made of.

    Parameters
    ----------
    recording : DataTree
        Needs the group ``parameters``.

    Returns
    -------
    DataArray
        Dims ``(step, parameter)``, >= 0; NaN where no gradient was measured or it was all zero. Weight decay is not
        recorded, so it is that of LARS without it.

    Raises
    ------
    SignalNotRecorded
        If no parameters were recorded.

    References
    ----------
    You, Gitman & Ginsburg (2017), arXiv 1708.03888.
    """
    parameters = rows.group(recording, "parameters")
    gradient = parameters["gradient_norm"]
    ratio = parameters["weight_norm"] / gradient.where(gradient > 0)
    return ratio.rename("trust_ratio").assign_attrs(units="1").reset_coords(drop=True)


def clip_factor(recording: xr.DataTree) -> xr.DataArray:
    """Share of the gradient's length that was left of it between the backward pass and the optimizer step.

    Parameters
    ----------
    recording : DataTree
        Needs the group ``parameters``.

    Returns
    -------
    DataArray
        Dims ``(step,)``, in [0, 1] where gradients are clipped by their norm, 1 where nothing shortened them: length at
        the step over length after the backward pass, of all parameters of which both were measured together. NaN where
        none was.

    Raises
    ------
    SignalNotRecorded
        If no parameters were recorded.
    """
    parameters = rows.group(recording, "parameters")
    before, after = (parameters[name].values for name in ("gradient_norm_preclip", "gradient_norm"))
    both = np.isfinite(before) & np.isfinite(after)
    squares = [np.where(both, norm, 0.0) ** 2 for norm in (after, before)]
    factor = np.sqrt(rows.ratio(squares[0].sum(axis=1), squares[1].sum(axis=1)))
    return xr.DataArray(factor, {"step": parameters["step"].values}, ("step",), "clip_factor", {"units": "1"})


def range_risk(recording: xr.DataTree, *, dtype: object = "float16", stream: str = "train") -> xr.Dataset:
    """How near values and gradients are to the ends of a dtype's range, whether or not it is the one in use.

    Gradients are taken as recorded, that is, after any loss scaling.

    Parameters
    ----------
    recording : DataTree
        Needs the group ``layers``, and ``histograms`` for gradients of a wider dtype.
    dtype : {"float16", "bfloat16"} or torch.dtype
        Whose range.
    stream : {"train", "evaluation", "probe"}
        Which rows.

    Returns
    -------
    Dataset
        Dims ``(step, layer)``.

        ``underflow_share``
            Share of the nonzero elements of dL/d(output) that the dtype would flush to zero. What is recorded in the
            dtype itself has lost them already: there it is the share that is subnormal. NaN where no gradient, or for
            a wider dtype no histogram, was recorded.
        ``overflow_share``
            Largest magnitude of the output relative to the largest finite number; NaN where nothing finite was
            recorded.

    Raises
    ------
    InvalidArgumentError
        If ``dtype`` is another.
    SignalNotRecorded
        If no activation was recorded.
    """
    dtype = str(dtype).removeprefix("torch.")
    if dtype not in _SMALLEST_EXPONENT:
        raise InvalidArgumentError(f"dtype={dtype!r}: expected one of {', '.join(_SMALLEST_EXPONENT)}")
    output = rows.layer_rows(recording, signal="activation", stream=stream)
    reach = np.fmax(np.abs(output["min"].values), np.abs(output["max"].values)) / _LARGEST[dtype]
    dims = ("step", "layer")
    coords = {"step": output["step"].values, "layer": rows.names(output)}
    return xr.Dataset(
        {
            "underflow_share": (dims, _flushed(recording, output, dtype, stream), {"units": "1"}),
            "overflow_share": (dims, reach, {"units": "1"}),
        },
        coords=coords,
    )


def native(output: xr.Dataset, dtype: str) -> NDArray[np.bool_]:
    """Layers whose output has this dtype, shape ``(layer,)``."""
    return np.asarray(
        np.char.endswith(rows.names(output, "dtype"), f".{dtype}") | (rows.names(output, "dtype") == dtype)
    )


def _flushed(recording: xr.DataTree, output: xr.Dataset, dtype: str, stream: str) -> Floats:
    try:
        gradient = rows.layer_rows(recording, signal="activation_grad", stream=stream)
    except SignalNotRecorded:
        return np.full((output.sizes["step"], output.sizes["layer"]), np.nan)
    count, zeros, subnormal = (
        gradient[name].values.astype(np.float64) for name in ("count", "zero_count", "subnormal_count")
    )
    found = np.where(native(output, dtype), rows.ratio(subnormal, count - zeros), np.nan)
    try:
        stored = rows.group(recording, "histograms", stream=stream)
    except SignalNotRecorded:
        return found
    counts = stored["gradient_histogram"].sel(gradient_signal="activation_grad").values.astype(np.float64)
    flushed = _below(2.0 ** _SMALLEST_EXPONENT[dtype])
    nonzero = np.ones(GRADIENTS.size)
    nonzero[[0, GRADIENTS.zero, GRADIENTS.nan - 1, GRADIENTS.nan]] = 0.0
    share = rows.ratio(counts @ flushed, counts @ nonzero)
    where = np.searchsorted(output["step"].values, stored["step"].values)
    wider = ~native(output, dtype)
    for row, values in zip(where, share, strict=True):
        found[row, wider] = values[wider]
    return found


def _below(limit: float) -> Floats:
    """1 for the bins of nonzero magnitudes below ``limit``, which is an edge of the grid."""
    outer = np.maximum(np.abs(GRADIENTS.lower), np.abs(GRADIENTS.upper))
    below = np.nan_to_num(outer, nan=np.inf) <= limit
    below[GRADIENTS.zero] = False
    return below.astype(np.float64)


def half_precision(recording: xr.DataTree, *, stream: str = "train") -> dict[str, NDArray[np.bool_]]:
    """Layers by half-precision dtype of their outputs, shape ``(layer,)``; a dtype that no layer has is left out."""
    output = rows.group(recording, "layers", stream=stream)
    found = {dtype: native(output, dtype) for dtype in _SMALLEST_EXPONENT}
    return {dtype: mask for dtype, mask in found.items() if mask.any()}
