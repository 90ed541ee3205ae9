"""The Zarr store that a recording is read from: the files as one commit describes them, or an error, never other rows.

Rows are read when somebody asks for them. By then the files may be gone, for which Zarr would read fill values, hold
rows of another recording or attempt, or be damaged, which Zarr would say in its own words.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from zarr.abc.buffer import Buffer, BufferPrototype
from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.buffer import default_buffer_prototype
from zarr.storage import WrapperStore

from covshift.exceptions import RecordingDamaged, RecordingError
from covshift.store import documents, layout
from covshift.store.chunks import has_checksum
from covshift.store.completeness import REMEDY, Labels, in_words
from covshift.store.integrity import damaged_in


class CommittedStore(WrapperStore[Store]):
    """The recording at ``place``, read only.

    Parameters
    ----------
    store : Store
        Its files.
    place : Path or str
        A directory, in which every file read is held to be of this recording; or a URL, where asking costs too much
        and only files that are gone are noticed.
    document : bytes or None
        The root that was committed; None takes the one that is there when it is first read.

    Attributes
    ----------
    labels : mapping
        In whose words damage is told, once they are known.
    """

    def __init__(self, store: Store, place: Path | str, document: bytes | None = None) -> None:
        super().__init__(store)
        self.labels: Labels | None = None
        self._place = place
        self._document = document
        self._nodes = _nodes_in(document)
        self._stamp: tuple[int, int, int] | None = None

    def with_read_only(self, read_only: bool = False) -> Self:
        """Itself: there is nothing to write here."""
        return self

    async def get(
        self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Bytes of an object; the root's are those of the commit.

        Raises
        ------
        RecordingError
            If it held rows and is no file of this recording any more.
        RecordingDamaged
            If it cannot be read, or rows in it do not have their checksum.
        """
        prototype = prototype or default_buffer_prototype()
        if key == layout.ROOT:
            return await self._root(prototype)
        # The names of chunks, alone, end in numbers.
        if not key.rpartition("/")[2].isdigit():
            return await self._store.get(key, prototype, byte_range)
        try:
            found = await self._part(key, prototype, byte_range)
        except OSError as error:
            raise self._damaged(f"'{key}' cannot be read ({error})") from error
        # Every file within the committed shapes was there.
        if found is None or not self._is_unchanged():
            raise RecordingError(
                f"recording '{self._place}' was moved, deleted, replaced or resumed since it was opened, so '{key}' "
                "cannot be read any more: open it again"
            )
        if byte_range is None or not has_checksum(found.as_numpy_array()):
            whole = found if byte_range is None else await self._part(key, prototype, None)
            self._demand_whole(key, b"" if whole is None else whole.to_bytes())
        return found

    async def _part(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None) -> Buffer | None:
        """Bytes of an object; None where there is none.

        A file is read here: to hand a chunk of a few kilobytes to another thread, as Zarr does, takes longer than that.
        """
        if not isinstance(self._place, Path):
            return await self._store.get(key, prototype, byte_range)
        try:
            return prototype.buffer.from_bytes(_bytes_of(self._place / key, byte_range))
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            return None

    async def _root(self, prototype: BufferPrototype) -> Buffer | None:
        if self._document is None:
            found = await self._store.get(layout.ROOT, prototype)
            if found is None:
                return None
            self._document = found.to_bytes()
            self._nodes = _nodes_in(self._document)
        return prototype.buffer.from_bytes(self._document)

    def _is_unchanged(self) -> bool:
        """Whether the file just read is one of this recording. Whoever replaces one says so in the root first."""
        if not isinstance(self._place, Path):
            return True
        root = self._place / layout.ROOT
        try:
            present = root.stat()
            stamp = present.st_ino, present.st_mtime_ns, present.st_size
            if stamp != self._stamp and _life_in(root.read_bytes()) != _life_in(self._document):
                return False
        except (OSError, ValueError):
            return False
        self._stamp = stamp
        return True

    def _demand_whole(self, key: str, data: bytes) -> None:
        """Demand that the rows of a file have their checksums; ranges read may span several chunks, so ask of each."""
        array, _, place = key.rpartition("/c/")
        node = self._nodes.get(array)
        if node is None:
            return
        damaged = damaged_in(data, array, tuple(map(int, place.split("/"))), node)
        if damaged:
            raise self._damaged(in_words(damaged, self.labels))

    def _damaged(self, problem: str) -> RecordingDamaged:
        remedy = REMEDY if isinstance(self._place, Path) else "restore them from a copy"
        return RecordingDamaged(f"recording '{self._place}' is damaged: {problem}; {remedy}")


def _bytes_of(path: Path, byte_range: ByteRequest | None) -> bytes:
    with path.open("rb") as file:
        match byte_range:
            case RangeByteRequest(start, end):
                file.seek(start)
                return file.read(end - start)
            case OffsetByteRequest(offset):
                file.seek(offset)
            case SuffixByteRequest(suffix):
                file.seek(max(path.stat().st_size - suffix, 0))
        return file.read()


def _life_in(document: bytes | None) -> str:
    return documents.life_of(documents.root_of(document).get("attributes", {}))


def _nodes_in(document: bytes | None) -> Mapping[str, Any]:
    return {} if document is None else documents.nodes_of(documents.root_of(document)) or {}
