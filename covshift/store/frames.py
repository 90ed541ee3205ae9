"""Records as bytes: the frames of a journal, each with its length and checksums, and the rows inside.

A frame is a header (magic, length and CRC-32C of the payload, CRC-32C of the header itself) and a payload. The payload
is a JSON text that says what follows, then the arrays as they lie in memory. What does not have its checksum is never
believed; what ends before its length is the mark of a writer killed in the middle.
"""

from __future__ import annotations

import dataclasses
import json
import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from covshift import schema
from covshift.schema import Mode, Row, Source, SparseCounts

_HEADER = struct.Struct("<4sQI")
_CRC = struct.Struct("<I")
_MAGIC = b"CVJ1"
_HEADER_BYTES = _HEADER.size + _CRC.size
_ALIGNMENT = 8
_SMALL = 1024
_LAYER_FIELDS = tuple(field.name for field in dataclasses.fields(schema.Layer))


@dataclass(frozen=True)
class Numbered:
    """A row and its number in its group, counted from 0 over the whole recording."""

    number: int
    row: Row


class Record:
    """Rows that were acknowledged together, kept as the bytes that went to the journal until they are needed."""

    def __init__(self, payload: bytes) -> None:
        self._payload = payload

    @cached_property
    def rows(self) -> list[Numbered]:
        """The rows; their arrays are read-only views of the bytes."""
        return _rows(self._payload, *_description(self._payload))


@dataclass(frozen=True)
class AxesFrame:
    """Every layer and parameter declared so far, and the life of the recording that the frames behind belong to."""

    layers: Sequence[schema.Layer]
    parameters: Sequence[schema.Parameter]
    life: str


def header_of(payload: bytes) -> bytes:
    """What goes before a payload to make it a frame."""
    header = _HEADER.pack(_MAGIC, len(payload), google_crc32c.value(payload))
    return header + _CRC.pack(google_crc32c.value(header))


def payloads(data: bytes) -> Iterator[bytes | None]:
    """Payloads of the whole frames at the beginning of ``data``; None last where a checksum is wrong.

    A frame that merely ends too early, as a killed writer leaves it, ends the sequence without None.
    """
    start = 0
    while len(data) - start >= _HEADER_BYTES:
        header, check = data[start : start + _HEADER.size], data[start + _HEADER.size : start + _HEADER_BYTES]
        magic, length, crc = _HEADER.unpack(header)
        if magic != _MAGIC or _CRC.pack(google_crc32c.value(header)) != check:
            yield None
            return
        payload = data[start + _HEADER_BYTES : start + _HEADER_BYTES + length]
        if len(payload) < length:
            return
        if google_crc32c.value(payload) != crc:
            yield None
            return
        yield payload
        start += _HEADER_BYTES + length


def axes_payload(layers: Sequence[schema.Layer], parameters: Sequence[schema.Parameter], life: str) -> bytes:
    """Payload of an :class:`AxesFrame`."""
    described = {
        "layers": [[getattr(layer, name) for name in _LAYER_FIELDS] for layer in layers],
        "parameters": [[one.name, one.size, one.ndim] for one in parameters],
        "life": life,
    }
    return _joined(described, [])


def rows_payload(rows: Sequence[Numbered]) -> bytes:
    """Payload of rows that are acknowledged together."""
    parts: list[Part] = []
    described = []
    for numbered in rows:
        row = numbered.row
        cells = [_described(name, one, parts) for name, one in row.variables.items()]
        described.append((row.group, numbered.number, row.step, int(row.source), int(row.mode), cells))
    return _joined({"rows": described}, parts)


Part: TypeAlias = "bytes | NDArray[Any]"


def _described(name: str, cells: NDArray[Any] | SparseCounts, parts: list[Part]) -> tuple[Any, ...]:
    if isinstance(cells, SparseCounts):
        _add(cells.index, parts)
        _add(cells.counts, parts)
        return name, cells.counts.dtype.str, cells.shape, cells.index.dtype.str, len(cells.index)
    _add(cells, parts)
    return name, cells.dtype.str, cells.shape


def _add(array: NDArray[Any], parts: list[Part]) -> None:
    """Large arrays that lie in one piece are copied once, when all parts are joined."""
    parts.append(array if array.nbytes > _SMALL and array.flags.c_contiguous else array.tobytes())
    if array.nbytes % _ALIGNMENT:
        parts.append(bytes(-array.nbytes % _ALIGNMENT))


def _joined(described: Mapping[str, Any], parts: Sequence[Part]) -> bytes:
    text = json.dumps(described).encode()
    # Blanks after JSON mean nothing, and arrays begin where the processor likes them.
    text += b" " * (-(len(text) + 4) % _ALIGNMENT)
    pieces: list[Any] = [_CRC.pack(len(text)), text, *parts]
    return b"".join(pieces)


def content(payload: bytes) -> AxesFrame | list[Numbered]:
    """What a payload holds; arrays are read-only views of it."""
    described, start = _description(payload)
    if "rows" in described:
        return _rows(payload, described, start)
    return AxesFrame(
        [schema.Layer(*values) for values in described["layers"]],
        [schema.Parameter(*values) for values in described["parameters"]],
        described["life"],
    )


def _description(payload: bytes) -> tuple[dict[str, Any], int]:
    (length,) = _CRC.unpack_from(payload)
    return json.loads(payload[_CRC.size : _CRC.size + length]), _CRC.size + length


def _rows(payload: bytes, described: Mapping[str, Any], start: int) -> list[Numbered]:
    source = _Arrays(payload, start)
    return [
        Numbered(
            number, Row(group, step, {one[0]: source.cells(*one[1:]) for one in cells}, Source(origin), Mode(mode))
        )
        for group, number, step, origin, mode, cells in described["rows"]
    ]


class _Arrays:
    """Takes arrays off a payload, one behind the other."""

    def __init__(self, payload: bytes, start: int) -> None:
        self._payload, self._start = payload, start

    def cells(
        self, dtype: str, shape: Sequence[int], index: str | None = None, length: int = 0
    ) -> NDArray[Any] | SparseCounts:
        if index is None:
            return self._take(dtype, math.prod(shape)).reshape(shape)
        taken = self._take(index, length)
        return SparseCounts(tuple(shape), taken, self._take(dtype, length))

    def _take(self, dtype: str, count: int) -> NDArray[Any]:
        array: NDArray[Any] = np.frombuffer(self._payload, dtype, count, self._start)
        self._start += array.nbytes + -array.nbytes % _ALIGNMENT
        return array
