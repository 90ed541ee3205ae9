"""How recorded units make units of judgement: the members of one linkage are one unit.

A linked unit is dead only when all its members are, so columns of the unit axis are reduced linkage by linkage before
anything is said about them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from covshift.analysis import arguments, rows
from covshift.exceptions import SignalNotRecorded


@dataclass(frozen=True)
class UnitColumns:
    """How columns of the unit axis make units: ``order`` puts members side by side, ``starts`` opens each unit.

    ``owner`` is the position of each unit's layer, ``unit`` its number there (the linkage's for linked units).
    """

    order: NDArray[np.int64]
    starts: NDArray[np.int64]
    owner: NDArray[np.int64]
    unit: NDArray[np.int64]

    @property
    def members(self) -> NDArray[np.int64]:
        """Columns behind each unit."""
        return np.diff(self.starts, append=len(self.order))

    def largest(self, values: NDArray[Any]) -> NDArray[Any]:
        """Largest value of any member along the last axis, whose columns stand in ``order``."""
        return np.maximum.reduceat(values, self.starts, axis=-1) if len(self.starts) else values

    def smallest(self, values: NDArray[Any]) -> NDArray[Any]:
        """Smallest value of any member along the last axis, whose columns stand in ``order``."""
        return np.minimum.reduceat(values, self.starts, axis=-1) if len(self.starts) else values

    def total(self, values: NDArray[Any]) -> NDArray[Any]:
        """Sum over members along the last axis, whose columns stand in ``order``."""
        return np.add.reduceat(values, self.starts, axis=-1) if len(self.starts) else values


def unit_columns(units: xr.Dataset, owners: xr.Dataset, layers: str | Sequence[str] | None) -> UnitColumns:
    """Columns of the units of ``layers`` (all nonlinearities for None) on the unit axis of the group ``units``.

    Raises
    ------
    SignalNotRecorded
        If a name in ``layers`` has no units; the message lists those that have.
    """
    names = rows.names(owners)
    owner = units["layer_index"].values.astype(np.int64)
    layers = arguments.listed(layers)
    if layers is None:
        wanted = np.flatnonzero(rows.nonlinear(owners))
    else:
        with_units = set(names[np.unique(owner)])
        missing = [name for name in layers if name not in with_units]
        if missing:
            raise SignalNotRecorded(
                f"layers={missing}: no units recorded; recorded for {', '.join(sorted(with_units))}"
            )
        wanted = np.flatnonzero(np.isin(names, layers))
    linked = units["linked_unit"].values
    unit = np.where(linked >= 0, linked, units["unit_in_layer"].values).astype(np.int64)
    columns = np.flatnonzero(np.isin(owner, wanted))
    order = columns[np.lexsort((unit[columns], owner[columns]))]
    keys = np.stack([owner[order], unit[order]])
    starts = np.flatnonzero(np.any(np.diff(keys, axis=1, prepend=-1) != 0, axis=0))
    return UnitColumns(order, starts, owner[order][starts], unit[order][starts])
