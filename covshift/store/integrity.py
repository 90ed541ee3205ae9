"""Checksums of a recording's data: which files, and which chunks of them, do not have theirs.

Every chunk, and the index of every shard, ends in its CRC-32C. Copies of chunks that later ones superseded, and rows
beyond the committed ones, belong to nobody and are not looked at.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from covshift.store import documents
from covshift.store.chunks import EMPTY, has_checksum, index_of
from covshift.store.completeness import Lost, cells_of, file_of, metadata_of, places_of


def damaged_files(folder: Path, nodes: Mapping[str, Any]) -> list[Lost]:
    """What is damaged of the arrays below ``folder`` that a commit record lists; files that are not there are not.

    Raises
    ------
    RecordingDamaged
        If what it lists is not the metadata of arrays.
    """
    damaged = []
    for key, node in nodes.items():
        with metadata_of(key, folder):
            for place in places_of(node) if node["node_type"] == "array" else ():
                file = folder / file_of(key, place)
                data = file.read_bytes() if file.is_file() else b""
                damaged += damaged_in(data, key, place, node) if data else []
    return damaged


def damaged_in(data: bytes, key: str, place: tuple[int, ...], node: Mapping[str, Any]) -> list[Lost]:
    """What is damaged of the file at ``place`` of an array, chunk by chunk where its index is whole."""
    whole = Lost(key, place, cells_of(node, place) or {}, is_damaged=True)
    lengths, shard = documents.tiling_in(node)
    if shard is None:
        return [] if has_checksum(data) else [whole]
    index = index_of(data, [cut // length for cut, length in zip(shard, lengths, strict=True)])
    if index is None:
        return [whole]
    content = np.frombuffer(data, dtype="u1")
    damaged = []
    for chunk in map(tuple, np.argwhere(index[..., 0] != EMPTY).tolist()):
        start, length = map(int, index[chunk])
        cells = cells_of(node, place, chunk)
        if cells is not None and not has_checksum(content[start : start + length]):
            damaged.append(Lost(key, place, cells, chunk, is_damaged=True))
    return damaged
