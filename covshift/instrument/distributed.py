"""Exact merge of what the ranks of torch.distributed have collected, at the boundary of a record.

Nothing is sent inside hooks, or where one rank may come alone, such as the end of an evaluation: a rank that waited
there for the others, while they wait for it in a collective of the training, would wait for ever. When a step that is
due has ended, every rank gives what it collected since it last did, be it nothing, and rank 0 pools what belongs
together: counts, sums and moments are those of one summary of all ranks' tensors. A process group of its own keeps
these messages apart from those of the training.

Gradients are those of each rank's local loss. How they compare with those of one loss over the whole batch depends on
how the loss reduces: world size and reduction are attributes of the recording, and analysis rescales by them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from functools import reduce
from typing import Any, NamedTuple

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


ENDED = 2**62
"""Below which step a rank has given everything once it has ended; steps are fewer."""


class Exchange(NamedTuple):
    """What one exchange brought.

    Attributes
    ----------
    records : list of Record
        On rank 0 those that the ranks have given, in the order of ranks; none on others.
    complete : int
        Below this step every rank has given everything; :data:`ENDED` once all have ended.
    """

    records: list[Record]
    complete: int


class Ranks:
    """The ranks that record one model together; every rank must make one at the same point of its program.

    Attributes
    ----------
    size : int
        How many there are.
    """

    def __init__(self) -> None:
        # Of the same time limit as the group that trains: a rank that died is found out when the training finds out.
        self._group = dist.new_group(backend="gloo", timeout=_time_limit())
        self.size, self._rank = dist.get_world_size(), dist.get_rank()

    @property
    def is_first(self) -> bool:
        """Whether this rank receives what the others have collected."""
        return self._rank == 0

    def exchange(self, mine: Sequence[Record], *, complete: int) -> Exchange:
        """Give what this rank has collected, and wait until every other has given something or nothing.

        An exchange pairs with the next one of every other rank, whatever step that rank is at: it waits for their
        training, never for a record of theirs. Ranks that have ended go on until :data:`ENDED` is the answer.

        Parameters
        ----------
        mine : sequence of Record
            Records of this rank that it has not given yet.
        complete : int
            Below this step nothing more will come from this rank.

        Raises
        ------
        RuntimeError
            If a rank does not answer within the group's time limit.
        """
        lowest = torch.tensor(complete, dtype=torch.int64, device="cpu")
        dist.all_reduce(lowest, dist.ReduceOp.MIN, group=self._group)
        found: list[list[Record]] | None = [[] for _ in range(self.size)] if self.is_first else None
        dist.gather_object(list(mine), found, dst=0, group=self._group)
        return Exchange([record for given in found or [] for record in given], int(lowest))

    def leave(self) -> None:
        """Let go of the group, after the last message."""
        dist.destroy_process_group(self._group)


def _time_limit() -> timedelta | None:
    group: Any = dist.group.WORLD
    options = group._get_backend(group._device_types[0]).options
    return getattr(options, "_timeout", None)


def merged(records: Sequence[Record], *, ranks: int | None = None) -> Record:
    """One record that holds what several do; a single one is returned as it is.

    Layers keep the order of their first appearance, record by record. Histograms and units are kept where all records
    are due for them. Of parameters that are sharded over more ``ranks`` than have given their part, nothing is known.

    Raises
    ------
    ValueError
        If there is none, or they are of different steps or streams.
    """
    first = records[0] if records else None
    if first is None or any((one.step, one.stream) != (first.step, first.stream) for one in records):
        raise ValueError(f"records of steps {[one.step for one in records]}: expected some, of one step")
    parameters = _parameters(records, ranks=len(records) if ranks is None else ranks)
    if len(records) == 1 and parameters is first.parameters:
        return first
    layers: dict[str, schema.Layer] = {}
    for one in records:
        for layer in one.layers:
            layers.setdefault(layer.name, layer)
    together = list(layers.values())
    parts = [arranged(one, together).collected for one in records]
    return replace(
        first,
        histograms=all(one.histograms for one in records),
        units=all(one.units for one in records),
        layers=together,
        collected=_together(parts),
        parameters=parameters,
    )


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
_MEASURED = "gradient_measured"


def _parameters(records: Sequence[Record], *, ranks: int) -> Mapping[str, NDArray[Any]]:
    """Parameters as the first rank has them; of sharded ones, norms and counts over the parts of all ``ranks``."""
    having = [one for one in records if one.parameters]
    if not having:
        return records[0].parameters
    first, sharded = having[0].parameters, having[0].sharded
    if sharded is None or not sharded.any():
        return first
    row = dict(first)
    if len(having) < ranks:
        return row | _unknown(first, sharded)
    for name in _NORMS:
        whole = np.sqrt(np.sum([one.parameters[name] ** 2 for one in having], axis=0))
        row[name] = np.where(sharded, whole, first[name])
    for name in _COUNTS:
        row[name] = np.where(sharded, np.sum([one.parameters[name] for one in having], axis=0), first[name])
    return row


def _unknown(row: Mapping[str, NDArray[Any]], sharded: NDArray[np.bool_]) -> dict[str, NDArray[Any]]:
    """The row's norms and counts without those of sharded parameters: the part of one rank is no norm of the whole."""
    norms = {name: np.where(sharded, np.nan, row[name]) for name in _NORMS}
    return norms | {name: np.where(sharded, 0, row[name]).astype(row[name].dtype) for name in (*_COUNTS, _MEASURED)}
