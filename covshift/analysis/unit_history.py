"""Units through time: how many were alive, silent, dead from the start, dead since, or back, at each step.

The account is that of :mod:`covshift.analysis.dead_units`, read at each record of units and never by what came later:
silence becomes death only when the examples seen by then bound the firing rate. Its last step says what
:func:`~covshift.analysis.dead_units.dead_units` says of the end.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from covshift.analysis import arguments
from covshift.analysis.dead_units import DEAD_RATE, Silence, silences
from covshift.analysis.unit_activity import UnitActivity
from covshift.exceptions import InvalidArgumentError

FATES = ("alive", "revived", "silent", "died", "born dead", "not finite", "not recorded")
"""What a unit can be at a step, see :func:`unit_history`."""


def unit_history(
    recording: xr.DataTree,
    *,
    layers: str | Sequence[str] | None = None,
    distinct_examples: int | None = None,
    alpha: float = 0.05,
) -> xr.Dataset:
    """Units of nonlinearities by fate at every record of units in training.

    Parameters
    ----------
    recording : DataTree
        Needs the groups ``units`` and ``layers``.
    layers : str or sequence of str, optional
        Count the units of these layers only; the bounds on firing rates are over all units all the same.
    distinct_examples, alpha
        As of :func:`~covshift.analysis.dead_units.dead_units`.

    Returns
    -------
    Dataset
        ``count`` (step, fate), whole numbers that add up to ``units`` at every step:

        ``"alive"``
            Fired at this record, or is silent for no longer than its own earlier rate makes likely.
        ``"revived"``
            The same, and an earlier silence of at least 3 records had bounded its firing rate by 1 %.
        ``"silent"``
            Did not fire, on too few examples to call it dead.
        ``"died"``
            Silent for at least 3 records that bound the firing rate by 0.1 % over all units; fired before.
        ``"born dead"``
            The same, and never fired.
        ``"not finite"``
            Gave nothing finite when last recorded, itself or its whole layer.
        ``"not recorded"``
            No example of the unit in this record.

        Steps are those of records of units, and a last one where records of layers, silent or without a finite element
        throughout, tell more after these. Such records between two of units count at the second. The attribute
        ``units`` counts units, ``unit_records`` the records of units, ``needed_examples`` those that bound the rate by
        0.1 %, ``finite_until`` is the last step at which a unit that gives nothing finite at the end still did (-1 for
        none or never).

    Raises
    ------
    SignalNotRecorded
        If no units were recorded.
    InvalidArgumentError
        If a layer has no units.
    """
    activity = UnitActivity.of(recording, layers=None, signal="activation", stream="train")
    names = activity.layer
    layers = arguments.listed(layers)
    missing = sorted(set(layers or ()) - set(names.tolist()))
    if missing:
        raise InvalidArgumentError(f"layers={layers}: {missing} have no units in the recording")
    kept = np.isin(names, layers) if layers is not None else np.ones(len(names), dtype=bool)
    steps, counts = [], []
    fates = np.zeros(0, dtype=np.int64)
    for known in silences(activity, distinct_examples=distinct_examples, alpha=alpha):
        fates = _fates(known, distinct_examples, alpha)[kept]
        steps.append(known.step)
        counts.append(np.bincount(fates, minlength=len(FATES)))
    needed = int(np.ceil(np.log(alpha / max(len(names), 1)) / np.log1p(-DEAD_RATE)))
    broken = fates == FATES.index("not finite")
    finite = activity.recorded[:, kept][:, broken].any(axis=1) if len(fates) else np.zeros(len(activity.steps), bool)
    return xr.Dataset(
        {"count": (("step", "fate"), np.array(counts, dtype=np.int64).reshape(-1, len(FATES)), {"units": "count"})},
        coords={"step": np.array(steps, dtype=np.int64), "fate": list(FATES)},
        attrs={
            "units": int(kept.sum()),
            "unit_records": len(activity.steps),
            "needed_examples": needed,
            "layers": len(set(names[kept].tolist())),
            "finite_until": int(activity.steps[finite][-1]) if finite.any() else -1,
        },
    )


def _fates(known: Silence, distinct_examples: int | None, alpha: float) -> NDArray[np.int64]:
    """Position in :data:`FATES` of every unit."""
    state = known.judged(distinct_examples, alpha=alpha, exact=False)
    chosen = [
        (~known.told, "not recorded"),
        (state == "not finite", "not finite"),
        (state == "silent", "silent"),
        ((state == "dead") & known.fired, "died"),
        (state == "dead", "born dead"),
        (known.revivals > 0, "revived"),
    ]
    return np.select([where for where, _ in chosen], [FATES.index(fate) for _, fate in chosen], FATES.index("alive"))
