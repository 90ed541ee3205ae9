"""Exact merge of what the ranks of torch.distributed have collected, at the boundary of a record.

Nothing is sent inside hooks. When a step that is due has ended, every rank gives what it collected, or an empty
contribution where it recorded nothing, and rank 0 pools all of them: counts, sums and moments are those of one summary
of all ranks' tensors together. A process group of its own keeps these messages apart from those of the training.

Gradients are those of each rank's local loss. Whether they add up to the gradient of one loss over the whole batch
depends on how the loss reduces; world size and reduction are attributes of the recording.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from functools import reduce
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from covshift import schema
from covshift.instrument.rows import Collected, Record, arranged
from covshift.summary import numbers
from covshift.summary.table import Pooled


def is_distributed() -> bool:
    """Whether this process is one of several that train together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    """Rank of this process, 0 where it trains alone."""
    return dist.get_rank() if is_distributed() else 0


class Ranks:
    """The ranks that record one model together; every rank must make one at the same point of its program."""

    def __init__(self) -> None:
        # Of the same time limit as the group that trains: a rank that died is found out when the training finds out.
        self._group = dist.new_group(backend="gloo", timeout=_time_limit())
        self._size, self._rank = dist.get_world_size(), dist.get_rank()

    @property
    def is_first(self) -> bool:
        """Whether this rank receives what the others have collected."""
        return self._rank == 0

    def gather(self, mine: Record | None) -> list[Record]:
        """Give this rank's contribution to a record, None where it has recorded nothing.

        Returns
        -------
        list of Record
            On rank 0 those of all ranks that have one, in the order of ranks; none on other ranks.

        Raises
        ------
        RuntimeError
            If a rank does not answer within the group's time limit.
        """
        self._all_have_ended(False)
        return self._gathered(mine)

    def gather_last(self) -> list[Record] | None:
        """Take part in a record of the ranks that still run, with nothing; None once all have ended.

        On ranks other than 0 the list is empty.
        """
        return None if self._all_have_ended(True) else self._gathered(None)

    def leave(self) -> None:
        """Let go of the group, after the last message."""
        dist.destroy_process_group(self._group)

    def _all_have_ended(self, ended: bool) -> bool:
        flag = torch.tensor(int(ended), device="cpu")
        dist.all_reduce(flag, dist.ReduceOp.MIN, group=self._group)
        return bool(flag)

    def _gathered(self, mine: Record | None) -> list[Record]:
        found: list[Record | None] | None = [None] * self._size if self.is_first else None
        dist.gather_object(mine, found, dst=0, group=self._group)
        return [given for given in found or [] if given is not None]


def _time_limit() -> timedelta | None:
    group: Any = dist.group.WORLD
    options = group._get_backend(group._device_types[0]).options
    return getattr(options, "_timeout", None)


def merged(records: Sequence[Record]) -> Record:
    """One record that holds what several do; a single one is returned as it is.

    Layers keep the order of their first appearance, record by record.

    Raises
    ------
    ValueError
        If there is none, or they are of different steps or streams.
    """
    first = records[0] if records else None
    if first is None or any((one.step, one.stream) != (first.step, first.stream) for one in records):
        raise ValueError(f"records of steps {[one.step for one in records]}: expected some, of one step")
    if len(records) == 1:
        return first
    layers: dict[str, schema.Layer] = {}
    for one in records:
        for layer in one.layers:
            layers.setdefault(layer.name, layer)
    together = list(layers.values())
    parts = [arranged(one, together).collected for one in records]
    parameters = _parameters(records)
    return replace(first, layers=together, collected=_together(parts), parameters=parameters)


def _together(parts: Sequence[Collected]) -> Collected:
    keys, rows = numbers.pooled_by_key(
        np.concatenate([part.pooled.keys for part in parts]), np.concatenate([part.pooled.rows for part in parts])
    )
    have = [set(part.pooled.keys.tolist()) for part in parts]
    pooled = Pooled(
        keys,
        rows,
        _merged_parts([part.pooled.histograms for part in parts], have),
        _merged_parts([part.pooled.units for part in parts], have),
    )
    statuses = parts[0].statuses
    structural: dict[int, int] = {}
    for part in parts:
        # A rank that measured something says more of the row than one that says why it did not.
        statuses = np.where((statuses == 0) | (part.statuses == schema.Status.OK), part.statuses, statuses)
        for layer, count in part.structural_zeros.items():
            structural[layer] = structural.get(layer, 0) + count
    return Collected(pooled, statuses, structural)


def _merged_parts(parts: Sequence[Mapping[int, Any]], have: Sequence[set[int]]) -> dict[int, Any]:
    """Histograms, or units, of all ranks by key; none where a rank has numbers of the key without them."""
    result: dict[int, Any] = {}
    for key in set().union(*parts):
        if all(key in part for part, keys in zip(parts, have, strict=True) if key in keys):
            held = [part[key] for part in parts if key in part]
            result[key] = reduce(lambda whole, part: whole.merge(part), held)
    return result


_NORMS = ("weight_norm", "gradient_norm", "gradient_norm_preclip", "update_norm")
_COUNTS = ("gradient_zero_count", "gradient_nonfinite_count")


def _parameters(records: Sequence[Record]) -> Mapping[str, NDArray[Any]]:
    """Parameters as the first rank has them; of sharded ones, norms and counts over the parts of all ranks."""
    having = [one for one in records if one.parameters]
    if not having:
        return {}
    first, sharded = having[0].parameters, having[0].sharded
    if sharded is None or not sharded.any():
        return first
    row = dict(first)
    for name in _NORMS:
        whole = np.sqrt(np.sum([one.parameters[name] ** 2 for one in having], axis=0))
        row[name] = np.where(sharded, whole, first[name])
    for name in _COUNTS:
        row[name] = np.where(sharded, np.sum([one.parameters[name] for one in having], axis=0), first[name])
    return row
