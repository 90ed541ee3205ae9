"""Units through time: how many were alive, silent, dead from the start, dead since, or back, at each step.

The rules are those of :mod:`covshift.analysis.dead_units`, applied to what was known at each record and never to what
came later: silence becomes death only when the examples seen by then bound the firing rate.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from covshift.analysis.dead_units import DEAD_RATE, DEAD_WINDOWS, SILENCE_RATE, rate_upper_bound
from covshift.exceptions import InvalidArgumentError

FATES = ("alive", "revived", "silent", "died", "born dead", "not recorded")
"""What a unit can be at a step, see :func:`unit_history`."""


def unit_history(
    dead: xr.Dataset, *, layers: Sequence[str] | None = None, distinct_examples: int | None = None, alpha: float = 0.05
) -> xr.Dataset:
    """Units by fate at every record.

    Parameters
    ----------
    dead : Dataset
        From :func:`covshift.analysis.dead_units.dead_units`.
    layers : sequence of str, optional
        Count the units of these layers only.
    distinct_examples, alpha
        As given to :func:`~covshift.analysis.dead_units.dead_units`.

    Returns
    -------
    Dataset
        ``count`` (step, fate), whole numbers that add up to ``units`` at every step:

        ``"alive"``
            Fired at this record.
        ``"revived"``
            Fired, and an earlier silence of at least 3 records had bounded its firing rate by 1 %.
        ``"silent"``
            Did not fire, on too few examples to call it dead.
        ``"died"``
            Silent for at least 3 records that bound the firing rate by 0.1 % over all units; fired before.
        ``"born dead"``
            The same, and never fired.
        ``"not recorded"``
            No example of the unit in this record.

        ``examples`` (step)
            Median examples of a record. The attribute ``units`` counts units, ``needed_examples`` those that bound the
            rate by 0.1 %.

    Raises
    ------
    InvalidArgumentError
        If a layer has no units.
    """
    names = dead["layer"].values.astype(str)
    missing = sorted(set(layers or ()) - set(names.tolist()))
    if missing:
        raise InvalidArgumentError(f"layers={list(layers or ())}: {missing} have no units in the result")
    kept = np.isin(names, list(layers)) if layers is not None else np.ones(len(names), dtype=bool)
    silent, examples = dead["silent"].values[:, kept], dead["examples"].values[:, kept]
    tests = max(len(names), 1)
    fates = _fates(silent, examples, tests, distinct_examples, alpha)
    counts = (fates[:, :, None] == np.arange(len(FATES))).sum(axis=1)
    seen = np.where(examples > 0, examples, np.nan)
    typical = [float(np.median(row[np.isfinite(row)])) if np.isfinite(row).any() else 0.0 for row in seen]
    needed = int(np.ceil(np.log(alpha / tests) / np.log1p(-DEAD_RATE)))
    return xr.Dataset(
        {
            "count": (("step", "fate"), counts, {"units": "count"}),
            "examples": ("step", np.array(typical), {"units": "count"}),
        },
        coords={"step": dead["step"].values, "fate": list(FATES)},
        attrs={"units": int(kept.sum()), "needed_examples": needed, "layers": len(set(names[kept].tolist()))},
    )


def _fates(
    silent: NDArray[np.bool_], examples: NDArray[np.int64], tests: int, distinct: int | None, alpha: float
) -> NDArray[np.int64]:
    """Position in :data:`FATES` of every unit at every record."""
    units = silent.shape[1]
    records, seen = np.zeros(units, dtype=np.int64), np.zeros(units, dtype=np.int64)
    fired, revived = np.zeros(units, dtype=bool), np.zeros(units, dtype=bool)
    fates = np.empty(silent.shape, dtype=np.int64)
    for row, (quiet, here) in enumerate(zip(silent, examples, strict=True)):
        there = here > 0
        fires = there & ~quiet
        bound = rate_upper_bound(np.minimum(seen, distinct or np.inf), tests=tests, alpha=alpha)
        revived |= fires & (records >= DEAD_WINDOWS) & (bound <= SILENCE_RATE)
        records, seen = np.where(fires, 0, records + there), np.where(fires, 0, seen + here)
        fired |= fires
        bound = rate_upper_bound(np.minimum(seen, distinct or np.inf), tests=tests, alpha=alpha)
        dead = (records >= DEAD_WINDOWS) & (bound <= DEAD_RATE)
        names = np.select(
            [~there, fires & revived, fires, dead & fired, dead],
            ["not recorded", "revived", "alive", "died", "born dead"],
            "silent",
        )
        fates[row] = [FATES.index(name) for name in names.tolist()]
    return fates
