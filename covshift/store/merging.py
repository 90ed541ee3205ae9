"""Rows of one group from several ranks added up, cell by cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce

import numpy as np
import xarray as xr

from covshift import schema

_ADDED = {
    variable.name
    for group in (schema.LAYERS, schema.HISTOGRAMS, schema.UNITS)
    for variable in group.variables
    if variable.dtype in ("u4", "u8")
}


def merged_group(path: str, datasets: Sequence[xr.Dataset]) -> xr.Dataset:
    """Aligned datasets of one group as one; counts ``uint64``, moments ``float64``."""
    moments = {"layers": _layer_moments, "units": _unit_moments}.get(schema.group_of(path).name)
    merged: dict[str, xr.DataArray] = {}
    for name in map(str, datasets[0].data_vars):
        columns = [dataset[name] for dataset in datasets]
        if name in _ADDED:
            merged[name] = reduce(_sum, [column.astype(np.uint64) for column in columns])
        elif name == "min":
            merged[name] = reduce(_smaller, columns)
        elif name == "max":
            merged[name] = reduce(_larger, columns)
        elif name == "status":
            merged[name] = _status(datasets)
    if moments is not None:
        merged |= moments(datasets)
    first = datasets[0]
    return first.assign({name: array.assign_attrs(first[name].attrs) for name, array in merged.items()})


def _sum(a: xr.DataArray, b: xr.DataArray) -> xr.DataArray:
    return a + b


def _smaller(a: xr.DataArray, b: xr.DataArray) -> xr.DataArray:
    return a.where((a <= b) | b.isnull(), b)


def _larger(a: xr.DataArray, b: xr.DataArray) -> xr.DataArray:
    return a.where((a >= b) | b.isnull(), b)


def _status(datasets: Sequence[xr.Dataset]) -> xr.DataArray:
    """Status of the first rank that has numbers, else of the first that says anything."""
    status = datasets[0]["status"]
    for dataset in datasets[1:]:
        status = status.where(status != schema.Status.ABSENT, dataset["status"])
    for dataset in reversed(datasets):
        status = dataset["status"].where(dataset["count"] > 0, status)
    return status.astype("u1")


def _layer_moments(datasets: Sequence[xr.Dataset]) -> Mapping[str, xr.DataArray]:
    parts: list[Moments] = []
    for dataset in datasets:
        finite = dataset["count"].astype(float)
        for name in ("nan_count", "posinf_count", "neginf_count"):
            finite = finite - dataset[name]
        total = dataset["sum"].where(finite > 0, 0.0)
        m2, m3, m4 = (dataset[name].where(finite > 0, 0.0) for name in ("m2", "m3", "m4"))
        parts.append((finite, total / finite.where(finite > 0, 1.0), m2, m3, m4))
    _, _, m2, m3, m4 = reduce(_pebay, parts)
    measured = reduce(_sum, [dataset["sum"].notnull() for dataset in datasets])
    total = reduce(_sum, [dataset["sum"].fillna(0.0) for dataset in datasets])
    return {name: one.where(measured) for name, one in {"sum": total, "m2": m2, "m3": m3, "m4": m4}.items()}


def _unit_moments(datasets: Sequence[xr.Dataset]) -> Mapping[str, xr.DataArray]:
    """Means weighted by the units' element counts, which is exact where all elements are finite.

    Squared deviations that one side does not know are not known of both.
    """
    parts, unknown = [], xr.DataArray(False)
    for dataset in datasets:
        mean = dataset["unit_mean"].astype(float)
        count = dataset["unit_count"].astype(float).where(mean.notnull(), 0.0)
        unknown = unknown | (dataset["unit_m2"].isnull() & (dataset["unit_count"] > 0))
        zero = xr.zeros_like(mean.fillna(0.0))
        parts.append((count, mean.fillna(0.0), dataset["unit_m2"].astype(float).fillna(0.0), zero, zero))
    count, mean, m2, _, _ = reduce(_pebay, parts)
    return {"unit_mean": mean.where(count > 0), "unit_m2": m2.where((count > 0) & ~unknown)}


Moments = tuple[xr.DataArray, xr.DataArray, xr.DataArray, xr.DataArray, xr.DataArray]


def _pebay(a: Moments, b: Moments) -> Moments:
    """Count, mean and centred power sums of both streams together (Pebay 2008, equations 3.1)."""
    n = (a[0] + b[0]).where(a[0] + b[0] > 0, 1.0)
    share_a, share_b = a[0] / n, b[0] / n
    delta = b[1] - a[1]
    cross = delta**2 * a[0] * share_b
    return (
        a[0] + b[0],
        a[1] + delta * share_b,
        a[2] + b[2] + cross,
        a[3] + b[3] + cross * delta * (share_a - share_b) + 3.0 * delta * (share_a * b[2] - share_b * a[2]),
        a[4]
        + b[4]
        + cross * delta**2 * (share_a**2 - share_a * share_b + share_b**2)
        + 6.0 * delta**2 * (share_a**2 * b[2] + share_b**2 * a[2])
        + 4.0 * delta * (share_a * b[3] - share_b * a[3]),
    )
