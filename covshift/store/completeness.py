"""Files that a recording must have and has not: Zarr would read fill values where they were, and say nothing.

Every chunk file and shard within the committed shapes is written, one without any count as its index alone; so a file
that is not there, or is empty, was lost.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import xarray as xr

from covshift import schema
from covshift.exceptions import RecordingDamaged
from covshift.store import documents, layout
from covshift.store.chunks import Shard, StoredArray
from covshift.store.medium import Directory

REMEDY = "restore them from a copy, or `covshift recover` marks what they held as absent"

_SHOWN = 3

_MOST = 10**6
"""Files that no array of a recording has."""


@dataclass(frozen=True)
class Lost:
    """One file that is missing.

    Attributes
    ----------
    key : str
        The array it belongs to.
    place : tuple of int
        Its position among the files of the array.
    cells : dict
        First and last position it holds on every axis that is cut, by dimension.
    """

    key: str
    place: tuple[int, ...]
    cells: Mapping[str, tuple[int, int]]

    @property
    def group(self) -> str:
        """Path of the array's group."""
        return self.key.rpartition("/")[0]


def lost_files(folder: Path, nodes: Mapping[str, Any]) -> list[Lost]:
    """Files missing below ``folder`` of the arrays that a commit record lists.

    Raises
    ------
    RecordingDamaged
        If what it lists is not the metadata of arrays.
    """
    lost = []
    for key, node in nodes.items():
        try:
            if node["node_type"] == "array":
                lost += _lost_of(folder, key, node)
        except (AttributeError, KeyError, TypeError, ValueError, ArithmeticError) as error:
            raise RecordingDamaged(
                f"recording '{folder}' is damaged: the metadata of '{key}' make no sense ({error!r}); try `covshift "
                "recover`, or restore it from a copy"
            ) from None
    return lost


def _lost_of(folder: Path, key: str, node: Mapping[str, Any]) -> list[Lost]:
    shape, cuts = node["shape"], node["chunk_grid"]["configuration"]["chunk_shape"]
    counts = [-(-length // cut) for length, cut in zip(shape, cuts, strict=True)]
    if min(shape) < 0 or min(cuts) < 1 or math.prod(counts) > _MOST:
        raise ValueError(f"shape {shape} in chunks of {cuts}")
    axes = list(zip(node["dimension_names"], shape, cuts, strict=True))
    return [
        Lost(
            key,
            place,
            {
                dim: (k * cut, min((k + 1) * cut, length) - 1)
                for k, (dim, length, cut) in zip(place, axes, strict=True)
                if length > 1
            },
        )
        for place in product(*map(range, counts))
        if not _is_there(f"{folder}/{key}/c/{'/'.join(map(str, place))}")
    ]


def _is_there(file: str) -> bool:
    try:
        return os.stat(file).st_size > 0
    except (FileNotFoundError, NotADirectoryError):
        return False


def in_words(lost: Sequence[Lost], recording: xr.DataTree | None) -> str:
    """What the files held, by variable, steps and layers; by positions where ``recording`` is None."""
    told = "; ".join(f"'{one.key}'{_cells(one, recording)}" for one in lost[:_SHOWN])
    more = f"; and {len(lost) - _SHOWN} more" if len(lost) > _SHOWN else ""
    return f"data files are missing or empty ({len(lost)}): {told}{more}"


def _cells(one: Lost, recording: xr.DataTree | None) -> str:
    parts = []
    for dim in ("step", "layer", "unit", "parameter"):
        if dim in one.cells:
            first, last = one.cells[dim]
            labels: Mapping[Any, Any] = recording[one.group].coords if recording is not None else {}
            if dim in labels:
                first, last = (labels[dim].values[k] for k in (first, last))
            parts.append(f"{dim}s {first} to {last}")
    return f" ({', '.join(parts)})" if parts else ""


def demand_complete(folder: Path, nodes: Mapping[str, Any]) -> None:
    """Demand that no file is missing of a recording that is to be continued.

    Raises
    ------
    RecordingDamaged
        Naming the first files that are.
    """
    lost = lost_files(folder, nodes)
    if lost:
        raise RecordingDamaged(
            f"recording '{folder}' is damaged: {in_words(lost, None)}; {REMEDY}; nothing was changed"
        )


def can_be_marked(lost: Iterable[Lost]) -> bool:
    """Whether rows without what is lost still say which rows they are: no label, and no coordinate, is among it."""
    return all(len(one.place) > 1 or _is_scalar(one.key) for one in lost)


def _is_scalar(key: str) -> bool:
    group, _, name = key.rpartition("/")
    return schema.group_of(group) is schema.SCALARS and name != layout.STEP.name


def marked_absent(medium: Directory, nodes: Mapping[str, Any], lost: Sequence[Lost], *, aside: Path) -> None:
    """Have rows and layers of which a file is lost read as absent in every variable of their group.

    A count that reads 0 beside a sum that is there would be a number, and a false one. The files of the other variables
    are moved below ``aside``, not deleted.
    """
    for group, place in dict.fromkeys((one.group, one.place[:2]) for one in lost):
        for key, node in nodes.items():
            if key.rpartition("/")[0] == group and len(node.get("shape", ())) > 1:
                cut, shard = documents.tiling_in(node)
                _move(medium.root / key / "c" / "/".join(map(str, place)), aside / key / "/".join(map(str, place)))
                Shard(medium, key, (place[0], place[1]), layout.Tiling(cut, shard, (), "shuffle")).publish()
    for one in lost:
        if len(one.place) == 1:
            variable = layout.stepped(layout.logged_scalar(one.key.rpartition("/")[2]))
            StoredArray(medium, one.group, variable).blank(one.place[0])


def _move(source: Path, target: Path) -> None:
    if source.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        source.rename(target)
