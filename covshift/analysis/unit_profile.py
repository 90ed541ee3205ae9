"""What units do that are not silent: fire always, stay constant, saturate, or do next to nothing beside their layer.

The test for silence misses units that are stuck at an output other than 0 (a tanh at 1, a ReLU6 at 6), so constancy
and the derivative are looked at by themselves. Everything here follows exactly from the counts and moments of the last
window, or is a bound that does; where neither holds the answer is NaN.

References
----------
tau-dormant: Sokar et al. (2023), arXiv 2302.12902. Gradient-dormant: Liu et al. (2025), arXiv 2505.24061. Always on
("linearised"): Lyle et al. (2024), arXiv 2402.18762.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from covshift.analysis import rows
from covshift.analysis.unit_columns import UnitColumns, unit_columns

Floats = NDArray[np.float64]

CONSTANT_VARIANCE = 1e-6
"""Variance, relative to the median unit of the layer, up to which a unit's output is called constant."""

_SIGN_KEEPING = ("ReLU", "ReLU6", "LeakyReLU", "PReLU", "RReLU", "ELU", "SELU", "CELU", "LinkedReLU", "LinkedPReLU")
"""Activations whose output is positive exactly where z is, and (ReLU6 beyond 6 apart) linear there."""

_MEAN_DERIVATIVE: Mapping[str, Callable[[Floats, Floats], Floats]] = {
    "Tanh": lambda mean, square: 1 - square,
    "Sigmoid": lambda mean, square: 4 * (mean - square),
}
"""Mean derivative relative to its maximum, from the mean and the mean square of the output."""


def unit_profile(
    recording: xr.DataTree, *, layers: str | Sequence[str] | None = None, stream: str = "train"
) -> xr.Dataset:
    """Activity of every unit over the last window of records of units.

    Parameters
    ----------
    recording : DataTree
        Needs the groups ``units`` and ``layers``.
    layers : str or sequence of str, optional
        Look at these layers' units; all nonlinearities by default.
    stream : {"train", "evaluation", "probe"}
        Which rows.

    Returns
    -------
    Dataset
        Dims ``(unit,)`` with the coordinates ``layer``, ``unit_in_layer`` and ``members`` as of
        :func:`covshift.analysis.dead_units.dead_units`, whose units these are. A linkage is one unit.

        ``positive_rate``
            Share of elements above 0; of a linkage, of its most positive member. Above 0.99 a rectifier is "always
            on", that is, linear. NaN where the output's sign is not that of z, and where nothing was recorded.
        ``constant``
            In no record did the output of any member vary by more than 1e-6 of the variance of the layer's median unit.
            False where a variance is not known: of elements that are not finite, or beyond float32.
        ``stuck``
            Constant, and some member a number other than 0 throughout: a unit that fires once in a while, and hardly,
            is not, nor one that gives NaN.
        ``mean_derivative``
            Mean derivative relative to its maximum, exact from the moments of tanh and sigmoid units; NaN for others.
            By Markov's inequality at most ten times this share of elements has a derivative above a tenth of the
            maximum, so at 0.01 at least 90 % of elements are saturated.
        ``dormancy``
            Mean size of the output relative to the mean of the layer's units; 0 where all units of the layer are 0.
            Known where the output never changes sign, else NaN; a NaN among the output has no known sign.
        ``gradient_dormancy``
            The same for the root mean square of dL/d(output), which stands in for its mean size; NaN without gradients.
        ``examples``
            Examples of the window.

    Raises
    ------
    SignalNotRecorded
        If no units or no such signal were recorded, or a name in ``layers`` has no units.
    """
    units = rows.group(recording, "units", stream=stream)
    owners = rows.layer_rows(recording, signal="activation", stream=stream)
    columns = unit_columns(units, owners, layers)
    window = rows.last_window(units.sizes["step"])
    recent = units.isel(step=window)
    output = _Pooled.of(recent, "activation", columns)
    kind = rows.names(owners, "activation")[columns.owner]
    constant = _constant(output, columns)
    positive = np.where(np.isin(kind, _SIGN_KEEPING), columns.largest(rows.ratio(output.positive, output.n)), np.nan)
    size = np.where(columns.smallest(output.one_sided), columns.total(np.abs(output.mean)), np.nan)
    seen = owners["example_count"].reindex(step=recent["step"], fill_value=0).values.sum(axis=0).astype(np.int64)
    found = xr.Dataset(
        {
            "positive_rate": ("unit", positive, {"units": "1"}),
            "constant": ("unit", constant),
            "stuck": ("unit", constant & columns.largest(output.never_zero & (output.mean != 0))),
            "mean_derivative": ("unit", _derivative(output, columns, kind), {"units": "1"}),
            "dormancy": ("unit", _relative(size, columns), {"units": "1"}),
            "gradient_dormancy": ("unit", _gradient_dormancy(recent, columns), {"units": "1"}),
            "examples": ("unit", seen[columns.owner], {"units": "count"}),
        },
        coords={
            "layer": ("unit", rows.names(owners)[columns.owner]),
            "unit_in_layer": ("unit", columns.unit),
            "members": ("unit", columns.members),
        },
    )
    return found.isel(unit=np.flatnonzero(columns.smallest(output.n > 0)))


@dataclass(frozen=True)
class _Pooled:
    """Numbers of each column over a window, shape (column,).

    ``mean`` and ``square`` are of the records whose variance is known. ``within`` is the largest variance inside one
    record, NaN where that of any is not known; ``never_zero`` is true where no element was 0, ``one_sided``
    where all elements are known to be 0 or more, or none of them above 0.
    """

    n: Floats
    mean: Floats
    square: Floats
    within: Floats
    positive: Floats
    never_zero: NDArray[np.bool_]
    one_sided: NDArray[np.bool_]

    @classmethod
    def of(cls, recent: xr.Dataset, signal: str, columns: UnitColumns) -> _Pooled:
        here = recent.sel(signal=signal)
        count, zero, positive, mean, m2 = (
            here[f"unit_{name}"].values[:, columns.order].astype(np.float64)
            for name in ("count", "zero_count", "positive_count", "mean", "m2")
        )
        known = np.isfinite(m2)
        weight, middle, squares = (np.where(known, part, 0.0) for part in (count, mean, m2))
        total = weight.sum(axis=0)
        return cls(
            count.sum(axis=0),
            rows.ratio((weight * middle).sum(axis=0), total),
            rows.ratio((weight * middle**2 + squares).sum(axis=0), total),
            np.where(count > 0, rows.ratio(m2, count), 0.0).max(axis=0, initial=0.0),
            positive.sum(axis=0),
            zero.sum(axis=0) == 0,
            (zero + positive == count).all(axis=0) | (positive == 0).all(axis=0),
        )


def _constant(output: _Pooled, columns: UnitColumns) -> NDArray[np.bool_]:
    largest = columns.largest(output.within)
    typical = _by_layer(largest, columns, rows.median)
    return np.asarray((largest <= CONSTANT_VARIANCE * typical) & (columns.smallest(output.n) > 0))


def _derivative(output: _Pooled, columns: UnitColumns, kind: NDArray[np.str_]) -> Floats:
    mean, square = output.mean[columns.starts], output.square[columns.starts]
    found = np.full(len(kind), np.nan)
    for name, derivative in _MEAN_DERIVATIVE.items():
        mine = (kind == name) & (columns.members == 1)
        found[mine] = np.maximum(derivative(mean[mine], square[mine]), 0.0)
    return found


def _gradient_dormancy(recent: xr.Dataset, columns: UnitColumns) -> Floats:
    if not bool((recent["unit_count"].sel(signal="activation_grad") > 0).any()):
        return np.full(len(columns.starts), np.nan)
    return _relative(np.sqrt(columns.total(_Pooled.of(recent, "activation_grad", columns).square)), columns)


def _relative(size: Floats, columns: UnitColumns) -> Floats:
    """Size over the mean size of the layer's units; 0 where that mean is 0."""
    mean = _by_layer(size, columns, np.mean)
    return np.where(mean == 0, 0.0, rows.ratio(size, mean))


def _by_layer(values: Floats, columns: UnitColumns, summary: Callable[[Floats], np.floating | Floats]) -> Floats:
    """``summary`` of each layer's units, repeated for each of them; units stand layer by layer."""
    out = np.full(len(values), np.nan)
    for owner in np.unique(columns.owner):
        mine = columns.owner == owner
        out[mine] = summary(values[mine])
    return out
