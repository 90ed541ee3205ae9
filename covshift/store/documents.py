"""Zarr v3 metadata as JSON: of arrays, of groups, and of the root, which is the commit record.

Written here rather than by zarr-python, whose machinery is no longer to be had when a process ends, which is when the
last rows are folded.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from covshift import schema
from covshift.store import layout

COMPRESSION_LEVEL = 1
"""Of zstd: 3 % larger than level 3 on moments, in a third of the time."""


EMPTY_GROUP: Mapping[str, Any] = {"attributes": {}, "zarr_format": 3, "node_type": "group"}
"""Metadata of a group that only holds groups."""


def group_document(path: str) -> dict[str, Any]:
    """Metadata of the group at ``path``.

    The attribute ``coordinates`` tells xarray which variables are coordinates although no dimension has their name.
    """
    names = [variable.name for variable in (*layout.step_variables(path), *layout.label_variables(path))]
    coordinates = [name for name in names if name not in schema.group_of(path).dims]
    return _group({"coordinates": " ".join(coordinates)} if coordinates else {})


def _group(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {**EMPTY_GROUP, "attributes": dict(attributes)}


def array_document(path: str, variable: schema.Variable) -> dict[str, Any]:
    """Metadata of an array of the group at ``path``, of length 0 on every axis that grows."""
    lengths = {"step": 0, **dict.fromkeys(layout.GROWING, 0), **layout.fixed_lengths(path)}
    tiling = layout.tiling_of(path, variable)
    fill = layout.fill_value(variable)
    return {
        "shape": [lengths[dim] for dim in variable.dims],
        "data_type": "string" if variable.dtype == "str" else np.dtype(variable.dtype).name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(tiling.shard or tiling.chunk)}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": "NaN" if isinstance(fill, float) and math.isnan(fill) else fill,
        "codecs": _codecs(variable, tiling),
        "attributes": variable.attrs,
        "dimension_names": list(variable.dims),
        "zarr_format": 3,
        "node_type": "array",
        "storage_transformers": [],
    }


def _codecs(variable: schema.Variable, tiling: layout.Tiling) -> list[dict[str, Any]]:
    little: dict[str, Any] = {"name": "bytes", "configuration": {"endian": "little"}}
    text = variable.dtype == "str"
    to_bytes = {"name": "bytes"} if variable.dtype == "u1" else little
    packed: dict[str, Any] = {"typesize": 1 if text else np.dtype(variable.dtype).itemsize, "blocksize": 0}
    packed |= {"cname": "zstd", "clevel": COMPRESSION_LEVEL, "shuffle": tiling.shuffle}
    codecs: list[dict[str, Any]] = [
        {"name": "vlen-utf8", "configuration": {}} if text else to_bytes,
        {"name": "blosc", "configuration": packed},
        {"name": "crc32c"},
    ]
    if tiling.order:
        codecs.insert(0, {"name": "transpose", "configuration": {"order": list(tiling.order)}})
    if tiling.shard is None:
        return codecs
    sharding = {"chunk_shape": list(tiling.chunk), "codecs": codecs, "index_location": "end"}
    return [{"name": "sharding_indexed", "configuration": {**sharding, "index_codecs": [little, {"name": "crc32c"}]}}]


def tiling_in(document: Mapping[str, Any]) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
    """Chunk and shard lengths that the metadata of an array state."""
    outer = tuple(document["chunk_grid"]["configuration"]["chunk_shape"])
    for codec in document["codecs"]:
        if codec["name"] == "sharding_indexed":
            return tuple(codec["configuration"]["chunk_shape"]), outer
    return outer, None


def root_document(attributes: Mapping[str, Any], nodes: Mapping[str, Any]) -> bytes:
    """The commit record: root attributes and the metadata of every group and array in ``nodes``, by path."""
    parents = {str(parent) for path in nodes for parent in PurePosixPath(path).parents} - set(nodes) - {"."}
    members = {**{parent: _group({}) for parent in parents}, **nodes}
    document = _group(attributes)
    document["consolidated_metadata"] = {
        "kind": "inline",
        "must_understand": False,
        "metadata": dict(sorted(members.items())),
    }
    return as_json(document)


def as_json(document: Mapping[str, Any]) -> bytes:
    """A metadata document as it is stored."""
    return json.dumps(document).encode()


def root_of(data: bytes | None) -> dict[str, Any]:
    """The root metadata stored as ``data``.

    Raises
    ------
    ValueError
        If there are none, or they are no JSON object with the metadata of a group.
    """
    if data is None:
        raise ValueError("it is missing")
    document = json.loads(data)
    if not isinstance(document, dict) or not isinstance(document.get("attributes", {}), dict):
        raise ValueError("it is not the metadata of a Zarr group")
    return document


def nodes_of(root: Mapping[str, Any]) -> dict[str, Any] | None:
    """Metadata of every group and array, by path; None where the root has lost them."""
    consolidated = root.get("consolidated_metadata")
    nodes = consolidated.get("metadata") if isinstance(consolidated, dict) else None
    return nodes if isinstance(nodes, dict) else None


def is_commit(commit: object) -> bool:
    """Whether a commit attribute says what the writer says in it."""
    if not isinstance(commit, dict) or not isinstance(commit.get("records"), dict):
        return False
    counts = [commit.get("seq"), commit.get("attempt"), *commit["records"].values()]
    return set(commit["records"]) <= set(layout.PATHS) and all(type(count) is int and count >= 0 for count in counts)


def life_of(attributes: Mapping[str, Any]) -> str:
    """See :attr:`covshift.store.archive.Archive.life`: what rows a recording holds changes with it, else only grows."""
    return f"{attributes.get('run_id', '')}-{attributes.get(layout.COMMIT_ATTRIBUTE, {}).get('attempt', 0)}"


def is_recording(path: Path) -> bool:
    """Whether the directory at ``path`` says of itself that it is a covshift recording."""
    try:
        return layout.VERSION_ATTRIBUTE in root_of((path / layout.ROOT).read_bytes()).get("attributes", {})
    except (OSError, ValueError):
        return False
