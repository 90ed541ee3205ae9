"""How far every unit's mean and spread moved: the view in which units that trade places are seen.

A layer's histogram pools its units, so two channels that swap their means leave it as it was. Units are recorded as
exact moments without example groups; what sampling can add to a shift of mean is therefore bounded, not estimated.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from covshift import schema
from covshift.analysis import rows, turns
from covshift.exceptions import InvalidArgumentError

Floats = NDArray[np.float64]

COARSE = 0.1
"""Means are stored in float32: rounded by half the distance of two numbers, which may be this many sd at most."""


def between_units(
    recording: xr.DataTree,
    *,
    reference: Literal["previous", "first"] | int = "previous",
    signal: str = "activation",
    stream: str = "train",
) -> xr.Dataset:
    """Standardised movement of every unit, and its size per layer.

    Parameters
    ----------
    recording : DataTree
        Needs the groups ``units`` and ``layers``.
    reference : {"previous", "first"} or int, default "previous"
        Compare with the record of units before (where optimizers take turns, that of the same one's turn before), with
        the first, or with the one at this step.
    signal : {"activation", "activation_grad"}
        Which tensor.
    stream : {"train", "evaluation", "probe"}
        Which rows.

    Returns
    -------
    Dataset
        ``smd`` (step, unit)
            Standardised mean difference, ``(mean - mean_ref) / sqrt((var + var_ref) / 2)``; NaN where both variances
            are 0 or a side is not known: not recorded, with an element that was not finite, with variances beyond
            1e-38 or 1e38, or so far from 0 that float32 rounds the mean by more than 0.05 sd.
        ``log_var_ratio`` (step, unit)
            ``ln(var / var_ref)``; NaN where either is 0.
        ``shift`` (step, layer)
            ``sqrt(max(mean of smd^2 over units - noise, 0))``, in sd. A lower bound, because ``noise`` is an upper one.
        ``excess`` (step, layer)
            ``mean of smd^2 over units - noise``, which may be negative; average this over steps, not ``shift``.
        ``noise`` (step, layer)
            ``2 / n`` of the smaller side's ``n`` examples: the most that sampling independent examples can add,
            reached where all elements of an example move together.
        ``units`` (step, layer)
            Units compared.

        Coordinates on ``unit``: ``unit_layer``, the layer that owns it, and ``unit_in_layer``. Steps are those of the
        unit rows.

    Raises
    ------
    InvalidArgumentError
        If ``signal`` is not recorded per unit or ``reference`` is no step with units.
    SignalNotRecorded
        If no units or no such signal were recorded.
    """
    if signal not in schema.UNIT_SIGNALS:
        raise InvalidArgumentError(f"signal={signal!r}: units are recorded for {' and '.join(schema.UNIT_SIGNALS)}")
    units = rows.group(recording, "units", stream=stream)
    owners = rows.layer_rows(recording, signal=signal, stream=stream)
    steps = units["step"].values.astype(np.int64)
    mean, variance = unit_moments(units, signal)
    before = _before(reference, steps, turns.kinds(recording, steps, stream=stream))
    earlier = before >= 0
    with np.errstate(divide="ignore", invalid="ignore"):
        pooled = (variance + variance[before]) / 2
        smd = np.where(pooled > 0, (mean - mean[before]) / np.sqrt(pooled), np.nan)
        ratio = np.log(variance / variance[before])
    smd = np.where(earlier[:, None], smd, np.nan)
    ratio = np.where(earlier[:, None] & np.isfinite(ratio), ratio, np.nan)
    owner = units["layer_index"].values.astype(np.int64)
    examples = owners["example_count"].reindex(step=steps, fill_value=0).values.astype(np.float64)
    noise = rows.ratio(np.full(examples.shape, 2.0), np.minimum(examples, examples[before]))
    compared, square = (
        sum_by_layer(part, owner, owners.sizes["layer"]) for part in (np.isfinite(smd), np.nan_to_num(smd) ** 2)
    )
    excess = np.where(earlier[:, None], rows.ratio(square, compared) - noise, np.nan)
    return xr.Dataset(
        {
            "smd": (("step", "unit"), smd, {"units": "pooled sd"}),
            "log_var_ratio": (("step", "unit"), ratio, {"units": "1"}),
            "shift": (("step", "layer"), np.sqrt(np.maximum(excess, 0.0)), {"units": "sd"}),
            "excess": (("step", "layer"), excess, {"units": "sd^2"}),
            "noise": (("step", "layer"), noise, {"units": "sd^2"}),
            "units": (("step", "layer"), compared.astype(np.int64), {"units": "count"}),
        },
        coords={
            "step": steps,
            "layer": rows.names(owners),
            "unit_layer": ("unit", rows.names(owners)[owner]),
            "unit_in_layer": ("unit", units["unit_in_layer"].values),
        },
    )


def unit_moments(units: xr.Dataset, signal: str) -> tuple[Floats, Floats]:
    """Mean and population variance of every unit, shape ``(step, unit)``; NaN where they are not known.

    That is: where the unit was not recorded, had an element that was not finite, or leaves the range of float32. Of a
    unit so far from 0 that neighbouring float32 numbers are more than :data:`COARSE` of its sd apart, the mean is not
    known, either.
    """
    here = units.sel(signal=signal)
    stored = here["unit_mean"].values
    variance = rows.ratio(here["unit_m2"].values.astype(np.float64), here["unit_count"].values.astype(np.float64))
    with np.errstate(invalid="ignore"):
        apart = np.spacing(np.abs(stored)).astype(np.float64)
        known = np.isfinite(variance) & ~((variance > 0) & (apart > COARSE * np.sqrt(variance)))
    return np.where(known, stored.astype(np.float64), np.nan), variance


def sum_by_layer(values: NDArray[np.generic], owner: NDArray[np.int64], layers: int) -> Floats:
    """Sum of values (step, unit) over each layer's units, shape ``(step, layer)``; units stand layer by layer."""
    sums = np.zeros((len(values), layers))
    if len(owner):
        starts = np.flatnonzero(np.diff(owner, prepend=-1))
        sums[:, owner[starts]] = np.add.reduceat(values.astype(np.float64), starts, axis=1)
    return sums


def _before(reference: object, steps: NDArray[np.int64], kind: NDArray[np.int64]) -> NDArray[np.int64]:
    """Position of each record's reference, -1 for none."""
    position = np.arange(len(steps))
    if reference == "previous":
        return turns.before(kind)
    if reference == "first":
        return np.where(position > 0, 0, -1)
    if isinstance(reference, (int, np.integer)) and reference in steps:
        anchor = int(np.searchsorted(steps, reference))
        return np.where(position != anchor, anchor, -1)
    raise InvalidArgumentError(f"reference={reference!r}: expected 'previous', 'first' or a step with units")
