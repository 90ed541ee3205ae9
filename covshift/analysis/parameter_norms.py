"""Lengths of the parameters' gradients over depth, as the backward pass left them and as the optimizer saw them."""

from __future__ import annotations

import xarray as xr

from covshift.analysis import rows
from covshift.analysis.gradient_scale import clip_factor


def parameter_norms(recording: xr.DataTree) -> xr.Dataset:
    """Gradient norms of the parameters of two or more axes, before and after clipping.

    Parameters
    ----------
    recording : DataTree
        Needs the group ``parameters``.

    Returns
    -------
    Dataset
        ``before``, ``after`` (step, parameter): L2 norms, unscaled, of the gradient at the end of the backward pass and
        at the optimizer step; >= 0, NaN where not measured. ``clip_factor`` (step): see
        :func:`covshift.analysis.gradient_scale.clip_factor`. Parameters stand in the order of the model.

    Raises
    ------
    SignalNotRecorded
        If no parameters were recorded.
    """
    parameters = rows.group(recording, "parameters")
    matrices = parameters.isel(parameter=parameters["parameter_ndim"].values >= 2)
    norms = {"before": matrices["gradient_norm_preclip"], "after": matrices["gradient_norm"]}
    return xr.Dataset({**norms, "clip_factor": clip_factor(recording)}).reset_coords(drop=True)
