"""How far the parameters that a layer's distribution depends on have moved.

Which parameters lie upstream of a layer is told by depth, the order in which modules first ran: exact in a chain, an
over-count where branches run side by side.
"""

from __future__ import annotations

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from covshift.analysis import rows
from covshift.exceptions import SignalNotRecorded

Floats = NDArray[np.float64]


def upstream(recording: xr.DataTree, layers: xr.Dataset, *, start: int = 0) -> tuple[Floats, Floats]:
    """Relative weight path and largest typical update of the parameters up to each layer's depth, from ``start`` on.

    Parameters
    ----------
    recording : DataTree
        Needs the group ``parameters``, else everything is NaN.
    layers : Dataset
        Rows of the group ``layers``, for names and depths.
    start : int, default 0
        First step that counts.

    Returns
    -------
    path : ndarray, shape (layer,)
        ``sum ||update|| / ||weight||`` over the steps of the window, by the root mean square of the recorded updates
        of all parameters together; steps between records are taken to be like those recorded. NaN where no parameter
        lies upstream, or none was measured.
    largest : ndarray, shape (layer,)
        Largest median relative update of any of them; NaN likewise.
    """
    blank = np.full(layers.sizes["layer"], np.nan)
    try:
        parameters = rows.group(recording, "parameters").sel(step=slice(start, None))
    except SignalNotRecorded:
        return blank, blank.copy()
    steps = parameters["step"].values
    if not len(steps):
        return blank, blank.copy()
    weight, update = (parameters[name].values.astype(np.float64) for name in ("weight_norm", "update_norm"))
    measured = np.isfinite(weight) & np.isfinite(update) & (weight > 0)
    ratios = np.where(measured, update / np.where(measured, weight, 1.0), np.nan)
    known, typical = np.asarray(measured.any(axis=0)), rows.median(ratios)
    depth = parameter_depths(rows.names(parameters, "parameter"), layers)
    before = (depth[None, :] <= layers["depth"].values[:, None]) & known
    weights, updates = (np.where(measured, part**2, 0.0).sum(axis=0) for part in (weight, update))
    relative = np.sqrt(rows.ratio(before @ updates, before @ weights))
    largest = np.where(before, np.nan_to_num(typical), -np.inf).max(axis=1, initial=-np.inf)
    span = steps[-1] - steps[0] + 1
    return relative * span, np.where(before.any(axis=1), largest, np.nan)


def module_of(layer: str) -> str:
    """The module whose output a layer is, be it one of several or of several calls.

    Examples
    --------
    >>> module_of("rnn:1"), module_of("blocks.0.act#2"), module_of("head")
    ('rnn', 'blocks.0.act', 'head')
    """
    return layer.partition(":")[0].partition("#")[0]


def parameter_depths(parameters: NDArray[np.str_], layers: xr.Dataset) -> NDArray[np.int64]:
    """Depth of the first call of the module that owns each parameter, shape ``(parameter,)``.

    A parameter whose owner is no layer (a container's own) takes the depth of the first layer inside its owner, else 0.
    """
    calls = [module_of(name) for name in rows.names(layers).tolist()]
    first: dict[str, int] = {}
    for call, depth in zip(calls, layers["depth"].values.tolist(), strict=True):
        parts = call.split(".")
        for end in range(len(parts) + 1):
            owner = ".".join(parts[:end])
            first[owner] = min(depth, first.get(owner, depth))
    return np.array([first.get(name.rpartition(".")[0], 0) for name in parameters.tolist()], dtype=np.int64)
