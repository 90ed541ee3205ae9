"""Files that a recording must have and has not: Zarr would read fill values where they were, and say nothing.

Every chunk file and shard within the committed shapes is written, one without any count as its index alone; so a file
that is not there, or is empty, was lost. Chunks that are there but damaged (:mod:`covshift.store.integrity`) are lost
in the same way.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, TypeAlias

import xarray as xr
from numpy.typing import NDArray

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
    """One file that is missing, or the part of it that is damaged.

    Attributes
    ----------
    key : str
        The array it belongs to.
    place : tuple of int
        Its position among the files of the array.
    cells : dict
        First and last position it holds on every axis that is cut, by dimension.
    chunk : tuple of int
        Where only a chunk of a shard is lost, its position in the shard.
    is_damaged : bool
        Whether it is there, but does not have its checksum.
    """

    key: str
    place: tuple[int, ...]
    cells: Mapping[str, tuple[int, int]]
    chunk: tuple[int, ...] = ()
    is_damaged: bool = False

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
        with metadata_of(key, folder):
            if node["node_type"] == "array":
                lost += _lost_of(folder, key, node)
    return lost


@contextmanager
def metadata_of(key: str, folder: Path) -> Iterator[None]:
    """Tell what fails because the metadata of ``key`` are not those of an array: RecordingDamaged."""
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise RecordingDamaged(
            f"recording '{folder}' is damaged: the metadata of '{key}' make no sense ({error!r}); try `covshift "
            "recover`, or restore it from a copy"
        ) from None


def _lost_of(folder: Path, key: str, node: Mapping[str, Any]) -> list[Lost]:
    return [
        Lost(key, place, cells_of(node, place) or {})
        for place in places_of(node)
        if not _is_there(f"{folder}/{file_of(key, place)}")
    ]


def places_of(node: Mapping[str, Any]) -> Iterable[tuple[int, ...]]:
    """Positions of the files within the committed shape of an array."""
    shape, cuts = node["shape"], node["chunk_grid"]["configuration"]["chunk_shape"]
    counts = [-(-length // cut) for length, cut in zip(shape, cuts, strict=True)]
    if min(shape) < 0 or min(cuts) < 1 or math.prod(counts) > _MOST:
        raise ValueError(f"shape {shape} in chunks of {cuts}")
    return product(*map(range, counts))


def file_of(key: str, place: Iterable[int]) -> str:
    """The file of an array at a position."""
    return f"{key}/c/{'/'.join(map(str, place))}"


def cells_of(
    node: Mapping[str, Any], place: Sequence[int], chunk: Sequence[int] = ()
) -> dict[str, tuple[int, int]] | None:
    """First and last position that a file, or one chunk of it, holds on every axis longer than 1.

    None where it holds nothing within the committed shape.
    """
    cuts = node["chunk_grid"]["configuration"]["chunk_shape"]
    lengths = documents.tiling_in(node)[0] if chunk else cuts
    parts = zip(place, cuts, chunk or [0] * len(place), lengths, strict=True)
    starts = [k * cut + within * length for k, cut, within, length in parts]
    axes = list(zip(node["dimension_names"], node["shape"], starts, lengths, strict=True))
    if any(first >= size for _, size, first, _ in axes):
        return None
    return {dim: (first, min(first + length, size) - 1) for dim, size, first, length in axes if size > 1}


def _is_there(file: str) -> bool:
    try:
        return os.stat(file).st_size > 0
    except (FileNotFoundError, NotADirectoryError):
        return False


Labels: TypeAlias = Mapping[str, Mapping[str, NDArray[Any]]]
"""Labels of the axes of every group, by its path and dimension."""


def labels_of(recording: xr.DataTree) -> Labels:
    """Labels that a recording holds in memory since it was opened."""
    return {
        path.strip("/"): {str(dim): index.values for dim, index in recording[path].indexes.items()}
        for path in recording.groups
    }


def in_words(lost: Sequence[Lost], labels: Labels | None) -> str:
    """What the files held, by variable, steps and layers; by positions where ``labels`` is None."""
    kinds = {
        "data files are missing or empty": [one for one in lost if not one.is_damaged],
        "data do not have their checksum": [one for one in lost if one.is_damaged],
    }
    return "; ".join(_told(what, ones, labels) for what, ones in kinds.items() if ones)


def _told(what: str, lost: Sequence[Lost], labels: Labels | None) -> str:
    told = "; ".join(f"'{one.key}'{_cells(one, labels)}" for one in lost[:_SHOWN])
    more = f"; and {len(lost) - _SHOWN} more" if len(lost) > _SHOWN else ""
    return f"{what} ({len(lost)}): {told}{more}"


def _cells(one: Lost, labels: Labels | None) -> str:
    parts = []
    for dim in ("step", "layer", "unit", "parameter"):
        if dim in one.cells:
            first, last = one.cells[dim]
            known = (labels or {}).get(one.group, {})
            if dim in known:
                first, last = (known[dim][k] for k in (first, last))
            parts.append(f"{'row' if dim == 'step' and dim not in known else dim}s {first} to {last}")
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


def bereft_groups(lost: Iterable[Lost]) -> dict[str, list[Lost]]:
    """Steps and labels that are lost, by group: without them its rows do not say any more which rows they are."""
    bereft: dict[str, list[Lost]] = {}
    for one in lost:
        if len(one.place) == 1 and not _is_scalar(one.key):
            bereft.setdefault(one.group, []).append(one)
    return bereft


def _is_scalar(key: str) -> bool:
    group, _, name = key.rpartition("/")
    return schema.group_of(group) is schema.SCALARS and name != layout.STEP.name


def marked_absent(medium: Directory, nodes: Mapping[str, Any], lost: Sequence[Lost], *, aside: Path) -> None:
    """Have rows and layers of which a file, or a chunk, is lost read as absent in every variable of their group.

    A count that reads 0 beside a sum that is there would be a number, and a false one. The files of the other variables
    are kept below ``aside``, not deleted.
    """
    shards: dict[tuple[str, int, int], set[tuple[int, ...]]] = {}
    for one in lost:
        if len(one.place) == 1:
            variable = layout.stepped(layout.logged_scalar(one.key.rpartition("/")[2]))
            keep(medium, file_of(one.key, one.place), aside=aside)
            StoredArray(medium, one.group, variable).blank(one.place[0])
        else:
            shards.setdefault((one.group, one.place[0], one.place[1]), set()).add(one.chunk[:2])
    for (group, row, column), chunks in shards.items():
        for key, node in nodes.items():
            if key.rpartition("/")[0] == group and len(node.get("shape", ())) > 1:
                keep(medium, f"{key}/c/{row}/{column}", aside=aside)
                _blank(medium, key, node, (row, column), chunks)


def _blank(
    medium: Directory, key: str, node: Mapping[str, Any], place: tuple[int, int], chunks: set[tuple[int, ...]]
) -> None:
    """Empty a shard, or what it holds in the rows and columns of some of its chunks."""
    cut, shard = documents.tiling_in(node)
    blanked = Shard(medium, key, place, layout.Tiling(cut, shard, (), "shuffle"))
    if () not in chunks:
        blanked.keep((shard or cut)[0])
        for step, column in chunks:
            blanked.forget(step, column)
    blanked.publish()


def keep(medium: Directory, name: str, *, aside: Path) -> None:
    """Copy a file, or all files below a name, to ``aside``; nothing happens where there is none."""
    source, target = medium.root / name, aside / name
    if source.is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True)
    elif source.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target)
