"""Which units fired, record by record, and what records of whole layers tell of the units between them.

Units are recorded less often than layers. Where all that a layer gave in a record was zero, so was all of each of its
units: such a record is evidence about every unit, whether units were due or not. The same goes for a record without one
finite element. Nothing else in a layer's row says what a unit of it did, and nothing else is read off it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from covshift.analysis import rows
from covshift.analysis.unit_columns import unit_columns

NEVER = np.iinfo(np.int64).max


@dataclass(frozen=True)
class UnitActivity:
    """Which units fired on how many examples, members of a linkage joined; arrays of shape (step, unit).

    ``examples`` are 0 where a unit was not recorded or, ``not_finite``, some member gave no finite element.
    """

    steps: NDArray[np.int64]
    layer: NDArray[np.str_]
    owner: NDArray[np.int64]
    unit_in_layer: NDArray[np.int64]
    members: NDArray[np.int64]
    active: NDArray[np.int64]
    examples: NDArray[np.int64]
    not_finite: NDArray[np.bool_]
    gaps: Gaps

    @classmethod
    def of(
        cls, recording: xr.DataTree, *, layers: str | Sequence[str] | None, signal: str, stream: str
    ) -> UnitActivity:
        """Units of ``layers`` (all nonlinearities for None) that were ever recorded."""
        units = rows.group(recording, "units", stream=stream)
        owners = rows.layer_rows(recording, signal=signal, stream=stream)
        columns = unit_columns(units, owners, layers)
        chosen = units.sel(signal=signal)
        counts, active = (
            chosen[name].values[:, columns.order].astype(np.int64) for name in ("unit_count", "unit_active_examples")
        )
        # The mean of a unit's finite elements is NaN exactly where it has none.
        finite = ~np.isnan(chosen["unit_mean"].values[:, columns.order])
        examples = owners["example_count"].reindex(step=units["step"], fill_value=0).values.astype(np.int64)
        seen = examples[:, columns.owner] * columns.smallest(counts > 0)
        kept = (seen > 0).any(axis=0)
        numbers = columns.smallest(finite)[:, kept]
        return cls(
            units["step"].values.astype(np.int64),
            rows.names(owners)[columns.owner[kept]],
            columns.owner[kept],
            columns.unit[kept],
            columns.members[kept],
            columns.largest(active)[:, kept],
            seen[:, kept] * numbers,
            (seen[:, kept] > 0) & ~numbers,
            Gaps.between(owners, units["step"].values.astype(np.int64)),
        )

    @property
    def recorded(self) -> NDArray[np.bool_]:
        """Where there is something to say whether a unit fired."""
        return np.asarray(self.examples > 0)

    @property
    def silent(self) -> NDArray[np.bool_]:
        """Where no member gave anything but zero."""
        return np.asarray(self.recorded & (self.active == 0))


@dataclass(frozen=True)
class Gaps:
    """What records of layers tell of all their units before each record of units, and after the last of them.

    Arrays of shape (gap, layer), one gap more than there are records of units: ``examples`` and ``records`` of a layer
    that gave only zeros, ``first`` the step of the first of these (:data:`NEVER` for none), ``silent`` and
    ``not_finite`` what the last record says that tells of all units. ``end`` is the last step at which any does after
    the last record of units, -1 for none.
    """

    examples: NDArray[np.int64]
    records: NDArray[np.int64]
    first: NDArray[np.int64]
    silent: NDArray[np.bool_]
    not_finite: NDArray[np.bool_]
    end: int

    @classmethod
    def between(cls, owners: xr.Dataset, unit_steps: NDArray[np.int64]) -> Gaps:
        """From the rows of one signal, and the steps at which units were recorded."""
        steps = owners["step"].values.astype(np.int64)
        between = ~np.isin(steps, unit_steps)
        steps, count = steps[between], owners["count"].values[between]
        silent = (count > 0) & (owners["zero_count"].values[between] == count)
        broken = (count > 0) & (rows.finite_count(owners)[between] == 0)
        gap = np.searchsorted(unit_steps, steps)
        shape = (len(unit_steps) + 1, count.shape[1])
        examples, records = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
        np.add.at(examples, gap, np.where(silent, owners["example_count"].values[between], 0).astype(np.int64))
        np.add.at(records, gap, silent)
        first, last_silent, last_broken = np.full(shape, NEVER), np.full(shape, -1), np.full(shape, -1)
        np.minimum.at(first, gap, np.where(silent, steps[:, None], NEVER))
        np.maximum.at(last_silent, gap, np.where(silent, steps[:, None], -1))
        np.maximum.at(last_broken, gap, np.where(broken, steps[:, None], -1))
        end = int(np.maximum(last_silent[-1], last_broken[-1]).max(initial=-1))
        return cls(examples, records, first, last_silent > last_broken, last_broken > last_silent, end)
