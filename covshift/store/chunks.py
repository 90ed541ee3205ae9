"""Chunks and shards of one array: rows become bytes here, and a published shard is only ever extended.

zarr-python reads the index of a shard and its chunks in separate requests, so a reader may hold the index of an older
file when it reads from a newer one. Whatever an index ever pointed to therefore stays where it is: the new file
begins with the bytes of the old one, adds chunks behind them and a new index at the end, and takes the old one's name
in one step. A chunk that was not full when written is superseded by a later copy; the copy before it becomes waste.

Every file within the committed shape is written, even if no chunk is in it: a file that is not there was lost, and is
never taken for cells without counts (:mod:`covshift.store.completeness`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from typing import Any, TypeAlias

import google_crc32c
import numpy as np
from numcodecs.blosc import BITSHUFFLE, SHUFFLE, Blosc
from numcodecs.vlen import VLenUTF8
from numpy.typing import NDArray

from covshift.schema import Row, Variable
from covshift.store import layout
from covshift.store.documents import COMPRESSION_LEVEL
from covshift.store.medium import Medium
from covshift.store.rows import stacked

EMPTY = np.iinfo(np.uint64).max
"""Where a chunk of nothing but fill values begins, by the index of its shard."""

_CHECKSUM_BYTES = 4

Position: TypeAlias = tuple[int, ...]


class StoredArray:
    """The array at ``key``: takes rows from a committed length on and never touches what lies before it.

    Parameters
    ----------
    medium : Medium
        Where its files lie.
    path : str
        Group of the array.
    variable : Variable
        With ``step`` as its first dimension.
    """

    def __init__(self, medium: Medium, path: str, variable: Variable) -> None:
        self.key = f"{path}/{variable.name}"
        self.variable = variable
        self.tiling = layout.tiling_of(path, variable)
        self._medium = medium
        self._row = Variable(variable.name, variable.dims[1:], variable.dtype, variable.long_name)
        self._fill = layout.fill_value(variable)
        shuffle = SHUFFLE if self.tiling.shuffle == "shuffle" else BITSHUFFLE
        self._blosc = Blosc(cname="zstd", clevel=COMPRESSION_LEVEL, shuffle=shuffle)
        self._dtype = np.dtype(object if variable.dtype == "str" else variable.dtype)

    def write_line(self, committed: int, values: NDArray[Any]) -> None:
        """Write ``values`` behind the first ``committed`` ones of a one-dimensional array, whose chunks are files."""
        length = self.tiling.chunk[0]
        for number, first, last in _cuts(committed, len(values), length):
            chunk = np.full(length, self._fill, dtype=self._dtype)
            key = f"{self.key}/c/{number}"
            if first % length:
                chunk[: first % length] = self._decoded(present(self._medium, key))[: first % length]
            chunk[first % length : (last - 1) % length + 1] = values[first - committed : last - committed]
            self._medium.put(key, self._encoded(chunk))

    def blank(self, number: int) -> None:
        """Fill chunk ``number`` of a one-dimensional array with its fill value."""
        self._medium.put(f"{self.key}/c/{number}", self._encoded(np.full(self.tiling.chunk, self._fill, self._dtype)))

    def write(self, committed: int, rows: Sequence[Row], width: int) -> None:
        """Write rows behind the first ``committed`` ones, the growing axis ``width`` long.

        A step's cells are made dense one chunk at a time; chunks of nothing but fill values are not written.
        """
        if not self.tiling.shard:
            self.write_line(committed, stacked(rows, self._row, ()))
            return
        steps, columns = self.tiling.shard[:2]
        for number, first, last in _cuts(committed, len(rows), steps):
            for column in range(-(-width // columns)):
                shard = Shard(self._medium, self.key, (number, column), self.tiling)
                shard.keep(max(0, first - number * steps))
                own = rows[first - committed : last - committed]
                inside = range(column * columns, min(width, (column + 1) * columns))
                if any(self.variable.name in row.variables for row in own):
                    for position, chunk in self._chunks(shard, own, first, inside):
                        shard.add(position, self._encoded(chunk))
                shard.publish()

    def widen(self, committed: int, before: int, width: int) -> None:
        """Have files for the first ``committed`` rows where the growing axis, ``before`` long, becomes ``width`` long.

        Rows of a scalar that was never logged before are NaN.
        """
        if not self.tiling.shard:
            self.write_line(0, np.full(committed, self._fill, dtype=self._dtype))
            return
        steps, columns = self.tiling.shard[:2]
        for number, column in product(
            range(-(-committed // steps)), range(-(-before // columns), -(-width // columns))
        ):
            Shard(self._medium, self.key, (number, column), self.tiling).publish()

    def _chunks(
        self, shard: Shard, rows: Sequence[Row], first: int, columns: range
    ) -> Iterator[tuple[Position, NDArray[Any]]]:
        """Every chunk that the rows touch and that holds anything, complete with the rows before them."""
        height, width, *rest = self.tiling.chunk
        fixed = [layout.fixed_lengths(self.key.rpartition("/")[0])[dim] for dim in self.variable.dims[2:]]
        for number, start, stop in _cuts(first, len(rows), height):
            within = rows[start - first : stop - first]
            for left in range(columns.start, columns.stop, width):
                cells = stacked(within, self._row, (min(width, columns.stop - left), *fixed), start=left)
                for part in product(*(range(-(-length // cut)) for length, cut in zip(fixed, rest, strict=True))):
                    position = shard.position(number, left // width, part)
                    cuts = [slice(k * cut, (k + 1) * cut) for k, cut in zip(part, rest, strict=True)]
                    chunk = self._completed(shard, position, cells[(slice(None), slice(None), *cuts)], start % height)
                    if chunk is not None:
                        yield position, chunk

    def trim(self, committed: int) -> None:
        """Remove whatever lies beyond the first ``committed`` rows."""
        steps = (self.tiling.shard or self.tiling.chunk)[0]
        for name in self._medium.names(f"{self.key}/c"):
            if name.isdecimal() and int(name) * steps >= committed:
                self._medium.delete(f"{self.key}/c/{name}")
        number, rows = divmod(committed, steps)
        if not rows:
            return
        if not self.tiling.shard:
            self.write_line(committed, np.full(steps - rows, self._fill, dtype=self.variable.dtype))
            return
        for column in self._medium.names(f"{self.key}/c/{number}"):
            if column.isdecimal():
                self._trim_shard(Shard(self._medium, self.key, (number, int(column)), self.tiling), rows)

    def _trim_shard(self, shard: Shard, rows: int) -> None:
        shard.keep(rows)
        number, offset = divmod(rows, self.tiling.chunk[0])
        for position in shard.chunks_at(number) if offset else ():
            chunk = self._decoded(shard.chunk(position) or b"")
            if not _holds_nothing(chunk[offset:], self._fill):
                kept = np.full_like(chunk, self._fill)
                kept[:offset] = chunk[:offset]
                shard.add(position, self._encoded(kept))
        shard.publish()

    def _completed(self, shard: Shard, position: Position, cells: NDArray[Any], offset: int) -> NDArray[Any] | None:
        """A full chunk with ``cells`` from row ``offset`` on and the committed rows before; None where nothing is."""
        earlier = shard.chunk(position) if offset else None
        if earlier is None and _holds_nothing(cells, self._fill):
            return None
        chunk = np.full(self.tiling.chunk, self._fill, dtype=self.variable.dtype)
        if earlier is not None:
            chunk[:offset] = self._decoded(earlier)[:offset]
        chunk[(slice(offset, offset + len(cells)), *(slice(length) for length in cells.shape[1:]))] = cells
        return chunk

    def _encoded(self, chunk: NDArray[Any]) -> bytes:
        if chunk.dtype == object:
            data = VLenUTF8().encode(chunk)
        else:
            data = np.ascontiguousarray(chunk.transpose(self.tiling.order or (0,)))
        packed = bytes(self._blosc.encode(data))
        return packed + checksum(packed)

    def _decoded(self, data: bytes) -> NDArray[Any]:
        if not has_checksum(data):
            raise OSError(f"{self.key}: a chunk with committed rows does not have its checksum")
        packed = data[:-_CHECKSUM_BYTES]
        order = self.tiling.order or (0,)
        values = np.frombuffer(self._blosc.decode(packed), dtype=self._dtype)
        return values.reshape([self.tiling.chunk[axis] for axis in order]).transpose(np.argsort(order))


class Shard:
    """One shard file: an older one's chunks, those added now, and the index of both."""

    def __init__(self, medium: Medium, array: str, place: tuple[int, int], tiling: layout.Tiling) -> None:
        assert tiling.shard is not None
        self._counts = tuple(s // c for s, c in zip(tiling.shard, tiling.chunk, strict=True))
        self._place = place
        self._steps = tiling.chunk[0]
        self._medium = medium
        rest = "/0" * (len(self._counts) - 2)
        self._key = f"{array}/c/{place[0]}/{place[1]}{rest}"
        self._index = np.full((*self._counts, 2), EMPTY, dtype="<u8")
        self._old = b""
        self._kept_bytes = self._end = 0
        self._added: list[bytes] = []
        self._changed = False

    def keep(self, rows: int) -> None:
        """Keep the first ``rows`` of what is there; a file of uncommitted rows alone counts as not there.

        Raises
        ------
        OSError
            If the file of rows that were committed is missing or damaged.
        """
        if not rows:
            return
        self._old = present(self._medium, self._key)
        found = index_of(self._old, self._counts)
        if found is None:
            raise OSError(f"{self._key}: the index of a shard with committed rows does not have its checksum")
        kept = -(-rows // self._steps)
        self._index[:kept] = found[:kept]
        self._changed = bool((found[kept:] != EMPTY).any())
        self._end = self._kept_bytes = len(self._old) - self._index.nbytes - _CHECKSUM_BYTES

    def position(self, step: int, column: int, rest: Position) -> Position:
        """Place in this shard of a chunk by its place in the array."""
        steps, columns = self._counts[:2]
        return (step - self._place[0] * steps, column - self._place[1] * columns, *rest)

    def chunks_at(self, step: int) -> list[Position]:
        """Places of the chunks that were kept in row ``step`` of the shard's chunks."""
        return [(step, *map(int, place)) for place in np.argwhere(self._index[step, ..., 0] != EMPTY)]

    def chunk(self, position: Position) -> bytes | None:
        """Bytes of a chunk that was kept."""
        start, length = (int(number) for number in self._index[position])
        return None if start == EMPTY else self._old[start : start + length]

    def add(self, position: Position, data: bytes) -> None:
        """Add a chunk, or supersede one that was kept."""
        self._index[position] = self._end, len(data)
        self._end += len(data)
        self._added.append(data)

    def forget(self, step: int, column: int) -> None:
        """Have no chunk in row ``step`` and column ``column`` of the shard's chunks."""
        self._index[step, column] = EMPTY
        self._changed = True

    def publish(self) -> None:
        """Put the shard in its place in one step, behind the bytes of the old one."""
        index = self._index.tobytes()
        tail = b"".join(self._added) + index + checksum(index)
        if self._old:
            if self._added or self._changed:
                self._medium.extend(self._key, self._kept_bytes, tail)
        else:
            self._medium.put(self._key, tail)


def present(medium: Medium, key: str) -> bytes:
    """Bytes of an object that holds committed rows.

    Raises
    ------
    OSError
        If there is none, or it is empty.
    """
    data = medium.get(key)
    if not data:
        raise OSError(f"{key}: a file with committed rows is missing or empty")
    return data


def checksum(data: bytes | NDArray[np.uint8]) -> bytes:
    """CRC-32C as Zarr stores it: four bytes, little-endian."""
    return int(google_crc32c.value(data)).to_bytes(_CHECKSUM_BYTES, "little")


def has_checksum(data: bytes | NDArray[np.uint8]) -> bool:
    """Whether ``data`` end in the checksum of what comes before it."""
    return checksum(data[:-_CHECKSUM_BYTES]) == bytes(data[-_CHECKSUM_BYTES:])


def index_of(data: bytes, counts: Sequence[int]) -> NDArray[np.uint64] | None:
    """Start and length of every chunk of a shard of ``counts`` chunks; None where the index is damaged."""
    size = 2 * 8 * math.prod(counts) + _CHECKSUM_BYTES
    index = data[-size:]
    if len(index) < size or not has_checksum(index):
        return None
    return np.frombuffer(index[:-_CHECKSUM_BYTES], dtype="<u8").reshape(*counts, 2)


def _cuts(first: int, count: int, length: int) -> Iterable[tuple[int, int, int]]:
    """Pieces of the rows ``first`` to ``first + count`` by blocks of ``length``: block number, start and stop."""
    for number in range(first // length, -(-(first + count) // length)):
        yield number, max(first, number * length), min(first + count, (number + 1) * length)


def _holds_nothing(cells: NDArray[Any], fill: Any) -> bool:
    if isinstance(fill, float) and math.isnan(fill):
        return bool(np.isnan(cells).all())
    return bool((cells == fill).all()) if fill else not cells.any()
