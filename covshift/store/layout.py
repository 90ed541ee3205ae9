"""How a recording lies on disk: paths, arrays, chunks, codecs, attributes and the commit record.

A recording is one Zarr v3 directory with a group per cadence. Its root ``zarr.json`` holds the consolidated metadata
of every group and array, so replacing that one file publishes new shapes of all arrays at once: it is the commit
record, and readers believe nothing else. This room decides where things go; it holds no rows and no state.

Arrays of rows are sharded: one file holds many chunks and an index of them. :mod:`covshift.store.chunks` says why a
reader never meets an index that does not fit the chunks. What is no Zarr (lock, journal, a copy of the commit record)
lies in the hidden directory :data:`HIDDEN`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from covshift import schema
from covshift.exceptions import InvalidArgumentError, RecordingError

ROOT = "zarr.json"
HIDDEN = ".covshift"
SUPERSEDED = "superseded"
SUFFIX = ".zarr"
VERSION_ATTRIBUTE = "covshift_schema_version"
COMMIT_ATTRIBUTE = "covshift_commit"
RESUMES_ATTRIBUTE = "covshift_resumes"
MODEL_ATTRIBUTE = "covshift_model"
"""Root attribute that says which model was recorded, one line of text per module."""

PATHS = schema.paths()
"""Every group a recording may hold."""

GROWING = ("layer", "unit", "parameter")
"""Axes that grow while recording, besides ``step``."""

STEP = schema.Variable("step", ("step",), "i8", "optimizer step, counted from 0", units="1")

CHUNKS: Mapping[str, Mapping[str, int]] = {
    "layers": {"step": 64, "layer": 16},
    "histograms": {"step": 8, "layer": 8, "value_signal": 1, "gradient_signal": 1},
    "units": {"step": 8, "unit": 2048},
    "parameters": {"step": 64, "parameter": 256},
}
"""Chunk lengths by group and dimension; a dimension left out is not cut. Dense, a chunk holds at most 0.7 MB.
Histograms and units, recorded about every tenth record, are short on ``step`` so that few of their rows wait for a
chunk to fill; histograms are cut by signal because most layers have one of each kind, and chunks without counts are
not written."""

SHARDS: Mapping[str, Mapping[str, int]] = {
    "layers": {"step": 256, "layer": 256},
    "histograms": {"step": 64, "layer": 256},
    "units": {"step": 64, "unit": 65536},
    "parameters": {"step": 256, "parameter": 4096},
}
"""Shard lengths by group and dimension, multiples of the chunk's; a dimension left out is not cut. 64 rows of
histograms or units are about 540 records."""

LINE_PER_CHUNK = 4096
"""Chunk length of one-dimensional arrays."""

_LABEL_MEANINGS = {
    "layer": "call site: module path, '#k' for repeated calls",
    "parameter": "name of the parameter",
    "signal": "tensor of the batch that was summarised",
    "value_signal": "tensor of the batch that was summarised",
    "gradient_signal": "tensor of the batch that was summarised",
    "group": "example index modulo the number of groups",
    "value_bin": "bin of the value grid, ordered by value, NaN last",
    "gradient_bin": "bin of the gradient grid, ordered by value, NaN last",
}


def recording_path(path: str | os.PathLike[str]) -> Path:
    """The directory meant by ``path``: its name ends in ``.zarr``, by which xarray recognises it.

    Examples
    --------
    >>> recording_path("runs/plain").name
    'plain.zarr'
    """
    given = Path(path)
    if given.name in ("", ".."):
        raise InvalidArgumentError(f"path={os.fspath(path)!r}: expected the name of a recording, such as 'runs/a.zarr'")
    return given if given.suffix == SUFFIX else given.with_name(given.name + SUFFIX)


def place_of(path: str | os.PathLike[str]) -> Path:
    """The same, absolute: a recording stays where it was begun, wherever the process goes from here.

    Raises
    ------
    InvalidArgumentError
        If ``path`` names no recording.
    RecordingError
        If the system takes no such path.
    """
    place = recording_path(path).absolute()
    try:
        place.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return place
    except (OSError, ValueError) as error:
        raise RecordingError(f"path={os.fspath(path)!r} cannot be used ({error}): choose another path") from None
    return place


def has_source_and_mode(path: str) -> bool:
    """Whether rows of the group at ``path`` can come from elsewhere than training, and say so."""
    return schema.group_of(path).name in schema.EVALUATION_GROUPS


def stream_of(path: str) -> str:
    """Stream of the group at ``path``, one of :data:`covshift.schema.STREAMS`: "" for training.

    Examples
    --------
    >>> stream_of("evaluation/layers"), stream_of("layers")
    ('evaluation', '')
    """
    return path.rpartition("/")[0]


def step_variables(path: str) -> tuple[schema.Variable, ...]:
    """Coordinates on ``step`` of the group at ``path``, ``step`` itself first."""
    return (STEP, *schema.STEP_COORDINATES) if has_source_and_mode(path) else (STEP,)


def label_variables(path: str) -> tuple[schema.Variable, ...]:
    """Coordinates on the other axes of the group at ``path``; ``unit`` has no labels of its own."""
    group = schema.group_of(path)
    labels = [_label(dim, group.labels) for dim in group.dims if dim in _LABEL_MEANINGS]
    return (*labels, *group.coordinates)


def _label(dim: str, labels: Mapping[str, tuple[Any, ...]]) -> schema.Variable:
    text = dim not in labels or isinstance(labels[dim][0], str)
    return schema.Variable(dim, (dim,), "str" if text else "i4", _LABEL_MEANINGS[dim], units="1")


def data_variables(path: str) -> tuple[schema.Variable, ...]:
    """Variables of the group at ``path``, with ``step`` among their dimensions."""
    return tuple(stepped(variable) for variable in schema.group_of(path).variables)


def stepped(variable: schema.Variable) -> schema.Variable:
    """The variable as it is stored: one more dimension, ``step``, before those of a row."""
    return schema.Variable(
        variable.name, ("step", *variable.dims), variable.dtype, variable.long_name, variable.units, variable.flags
    )


def logged_scalar(name: str) -> schema.Variable:
    """Variable of the ``scalars`` group for a value logged under ``name``.

    Raises
    ------
    InvalidArgumentError
        If the name could not be the name of an array: a slash makes a group, a leading dot or ``__`` is reserved.
    """
    taken = {STEP.name, ROOT}
    if not re.fullmatch(r"(?!__|\.)[^/\\\x00-\x1f]+", name) or name in taken:
        raise InvalidArgumentError(
            f"scalars: the name {name!r} cannot be stored: expected no slash or control character, no leading '.' or "
            f"'__', and not one of {sorted(taken)}; rename it, for example with '.' for '/'"
        )
    return schema.Variable(name, (), "f8", f"{name}, as logged", units="1")


def fixed_lengths(path: str) -> dict[str, int]:
    """Lengths of the axes of the group at ``path`` that never grow."""
    return {dim: len(labels) for dim, labels in schema.group_of(path).labels.items()}


@dataclass(frozen=True)
class Tiling:
    """How an array is cut and coded: chunk, shard (None: each chunk is a file), axis order and shuffle in a chunk."""

    chunk: tuple[int, ...]
    shard: tuple[int, ...] | None
    order: tuple[int, ...]
    shuffle: Literal["shuffle", "bitshuffle"]


def tiling_of(path: str, variable: schema.Variable) -> Tiling:
    """Tiling of a variable of the group at ``path``; the step axis lies last in a chunk, which packs 16 % smaller."""
    lengths = fixed_lengths(path)
    if len(variable.dims) == 1:
        return Tiling((lengths.get(variable.dims[0], LINE_PER_CHUNK),), None, (), _shuffle(path))
    name = schema.group_of(path).name
    chunk, shard = (tuple(cuts[name].get(dim) or lengths[dim] for dim in variable.dims) for cuts in (CHUNKS, SHARDS))
    return Tiling(chunk, shard, (*range(1, len(variable.dims)), 0), _shuffle(path))


def _shuffle(path: str) -> Literal["shuffle", "bitshuffle"]:
    """Per-unit floats come out 4 % smaller by bits; all else is packed in half the time, as small, by bytes."""
    return "bitshuffle" if schema.group_of(path) is schema.UNITS else "shuffle"


def fill_value(variable: schema.Variable) -> float | int | str:
    """What a cell reads that was never written."""
    if variable.dtype == "str":
        return ""
    return -1 if variable.name == STEP.name else variable.fill_value
