"""How a recording lies on disk: paths, arrays, chunks, codecs, attributes and the commit record.

A recording is one Zarr v3 directory with a group per cadence. Its root ``zarr.json`` holds the consolidated metadata
of every group and array, so replacing that one file publishes new shapes of all arrays at once: it is the commit
record, and readers believe nothing else. This room decides where things go; it holds no rows and no state.

Chunks are whole files, never parts of a shard: a shard is read index first and data second, so a reader that meets a
writer replacing it decodes bytes with the wrong index (seen as blosc errors in reads during partial flushes).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any, Literal

import zarr
from zarr.abc.buffer import Buffer
from zarr.abc.store import Store
from zarr.buffer import cpu
from zarr.codecs import BloscCodec, TransposeCodec

from covshift import schema
from covshift.exceptions import InvalidArgumentError

ROOT = "zarr.json"
SUFFIX = ".zarr"
VERSION_ATTRIBUTE = "covshift_schema_version"
COMMIT_ATTRIBUTE = "covshift_commit"

PATHS = tuple(
    f"{stream}/{name}".lstrip("/")
    for stream in schema.STREAMS
    for name in (schema.EVALUATION_GROUPS if stream else schema.GROUPS)
)
"""Every group a recording may hold."""

GROWING = ("layer", "unit", "parameter")
"""Axes that grow while recording, besides ``step``."""

STEP = schema.Variable("step", ("step",), "i8", "optimizer step, counted from 0", units="1")

CHUNKS: Mapping[str, Mapping[str, int]] = {
    "layers": {"step": 64, "layer": 128},
    "histograms": {"step": 8, "layer": 32, "value_signal": 1, "gradient_signal": 1},
    "units": {"step": 8, "unit": 4096},
    "parameters": {"step": 64, "parameter": 256},
}
"""Chunk lengths by group and dimension; a dimension left out is not cut. Dense, a chunk holds at most 2.7 MB.
Histograms and units, recorded about every tenth record, are short on ``step`` so that a flush of 64 records
rewrites few earlier rows; histograms are cut by signal because most layers have one of each kind, and chunks without
counts are not written."""

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


def has_source_and_mode(path: str) -> bool:
    """Whether rows of the group at ``path`` can come from elsewhere than training, and say so."""
    return schema.group_of(path).name in schema.EVALUATION_GROUPS


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


def create_group(store: Store, path: str) -> dict[str, Any]:
    """Create the empty group at ``path``, replacing an uncommitted leftover; returns its metadata document.

    The attribute ``coordinates`` tells xarray which variables are coordinates although no dimension has their name.
    """
    names = [variable.name for variable in (*step_variables(path), *label_variables(path))]
    coordinates = [name for name in names if name not in schema.group_of(path).dims]
    attributes = {"coordinates": " ".join(coordinates)} if coordinates else {}
    zarr.create_group(store, path=path, zarr_format=3, attributes=attributes, overwrite=True)
    return _group_document(attributes)


def create_array(store: Store, path: str, variable: schema.Variable) -> zarr.Array[Any]:
    """Create the array of ``variable`` in the group at ``path``, of length 0 on every axis that grows."""
    lengths = {"step": 0, **dict.fromkeys(GROWING, 0), **fixed_lengths(path)}
    return zarr.create_array(
        store,
        name=f"{path}/{variable.name}",
        shape=tuple(lengths[dim] for dim in variable.dims),
        dtype=str if variable.dtype == "str" else variable.dtype,
        chunks=_chunks(path, variable, lengths),
        filters=[TransposeCodec(order=(*range(1, len(variable.dims)), 0))] if len(variable.dims) > 1 else None,
        compressors=BloscCodec(cname="zstd", clevel=3, shuffle=_shuffle(path)),
        fill_value=_fill_value(variable),
        dimension_names=variable.dims,
        attributes=variable.attrs,
        overwrite=True,
    )


def _chunks(path: str, variable: schema.Variable, lengths: Mapping[str, int]) -> tuple[int, ...]:
    if len(variable.dims) == 1:
        return (lengths[variable.dims[0]] or LINE_PER_CHUNK,)
    cuts = CHUNKS[schema.group_of(path).name]
    return tuple(cuts.get(dim, lengths[dim]) for dim in variable.dims)


def _shuffle(path: str) -> Literal["shuffle", "bitshuffle"]:
    """Histograms, mostly zeros, come out 5 % smaller by bytes; per-unit counts 15 % smaller by bits."""
    return "shuffle" if schema.group_of(path) is schema.HISTOGRAMS else "bitshuffle"


def _fill_value(variable: schema.Variable) -> float | int | str:
    if variable.dtype == "str":
        return ""
    return -1 if variable.name == STEP.name else variable.fill_value


def _group_document(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {"attributes": dict(attributes), "zarr_format": 3, "node_type": "group"}


def root_document(attributes: Mapping[str, Any], nodes: Mapping[str, Any]) -> bytes:
    """The commit record: root attributes and the metadata of every group and array in ``nodes``, by path."""
    parents = {path.rpartition("/")[0] for path in nodes} - set(nodes) - {""}
    members = {**{parent: _group_document({}) for parent in parents}, **nodes}
    document = _group_document(attributes)
    document["consolidated_metadata"] = {
        "kind": "inline",
        "must_understand": False,
        "metadata": dict(sorted(members.items())),
    }
    return json.dumps(document).encode()


def commit(target: Path | MutableMapping[str, Buffer], document: bytes) -> None:
    """Publish ``document`` as the root metadata in one step: a reader sees the old recording or the new one."""
    if isinstance(target, Path):
        partial = target / f"{ROOT}.partial"
        partial.write_bytes(document)
        partial.replace(target / ROOT)
    else:
        target[ROOT] = cpu.Buffer.from_bytes(document)


def read_root(path: Path) -> dict[str, Any]:
    """The committed root metadata of the recording at ``path``.

    Raises
    ------
    OSError
        If there is no root ``zarr.json``.
    ValueError
        If it is no JSON object.
    """
    document = json.loads((path / ROOT).read_bytes())
    if not isinstance(document, dict) or not isinstance(document.get("attributes", {}), dict):
        raise ValueError(f"{path / ROOT} is not the metadata of a Zarr group")
    return document


def is_recording(path: Path) -> bool:
    """Whether the directory at ``path`` says of itself that it is a covshift recording."""
    try:
        return VERSION_ATTRIBUTE in read_root(path).get("attributes", {})
    except (OSError, ValueError):
        return False
