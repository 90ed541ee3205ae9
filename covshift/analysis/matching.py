"""Which layer of one run stands beside which of another: by name, or by depth where the names have little in common."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import xarray as xr

from covshift.analysis import rows

SHARED_NAMES = 0.5
"""Least share of a run's layers that the first run must have by name for names to be trusted."""


def common_names(recordings: Mapping[str, xr.DataTree]) -> tuple[dict[str, dict[str, str]], dict[str, int]]:
    """What each layer of each run is called where runs are compared.

    A run that shares at least half of its layers' names with the first keeps its names. In another, the k-th
    nonlinearity by depth takes the name of the first run's k-th, and the k-th other layer that of its k-th other; what
    is left over keeps its own name, marked "(own)".

    Parameters
    ----------
    recordings : mapping of str to DataTree
        Runs by name.

    Returns
    -------
    dict of str to dict of str to str
        Name to compare under, by run and layer, in the order of the run.
    dict of str to int
        Runs that were matched by depth, and how many of their layers found a counterpart.
    """
    names: dict[str, dict[str, str]] = {}
    by_depth: dict[str, int] = {}
    first: xr.Dataset | None = None
    for run, recording in recordings.items():
        layers = rows.group(recording, "layers")
        first = layers if first is None else first
        own, known = rows.names(layers).tolist(), rows.names(first).tolist()
        if len(set(own) & set(known)) >= SHARED_NAMES * len(own):
            names[run] = {name: name for name in own}
            continue
        pairs = _pairs(layers, first)
        by_depth[run] = len(pairs)
        names[run] = {name: pairs.get(name, f"{name} (own)") for name in own}
    return names, by_depth


def _pairs(layers: xr.Dataset, first: xr.Dataset) -> dict[str, str]:
    """Name in ``first`` of each layer that has a counterpart there."""
    pairs: dict[str, str] = {}
    for nonlinear in (True, False):
        own, known = (_of_kind(one, nonlinear) for one in (layers, first))
        pairs.update(zip(own, known, strict=False))
    return pairs


def _of_kind(layers: xr.Dataset, nonlinear: bool) -> list[str]:
    chosen = np.flatnonzero(rows.nonlinear(layers) == nonlinear)
    ordered = chosen[np.argsort(layers["depth"].values[chosen], kind="stable")]
    return [str(name) for name in rows.names(layers)[ordered]]
