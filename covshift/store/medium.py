"""Where the bytes of a recording lie: a directory, this process's memory, or a file system that fsspec reaches.

Every medium replaces an object in one step: whoever reads it gets the old bytes or the new ones, never some of both.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, MutableMapping
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any, Protocol

from zarr.abc.buffer import Buffer
from zarr.abc.store import Store
from zarr.buffer import cpu
from zarr.storage import LocalStore, MemoryStore

from covshift.exceptions import RecordingError

PARTIAL = ".partial"


class Medium(Protocol):
    """Named objects of bytes, and the Zarr store over the same objects."""

    @property
    def store(self) -> Store:
        """The same objects for zarr."""

    def get(self, key: str) -> bytes | None:
        """Bytes of an object; None where there is none."""

    def put(self, key: str, data: bytes) -> None:
        """Make or replace an object in one step."""

    def extend(self, key: str, keep: int, data: bytes) -> None:
        """Replace an object, in one step, by its first ``keep`` bytes and ``data``."""

    def delete(self, key: str) -> None:
        """Remove an object, or every object below ``key``; nothing happens where there is none."""

    def names(self, key: str) -> list[str]:
        """Names directly below ``key``."""


class Directory:
    """Files below ``root``; with ``fsync`` every one is on the device before it takes its name."""

    def __init__(self, root: Path, *, fsync: bool = False) -> None:
        self.root = root
        self._fsync = fsync
        self.store = LocalStore(root)

    def get(self, key: str) -> bytes | None:
        """See :class:`Medium`."""
        try:
            return (self.root / key).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def put(self, key: str, data: bytes) -> None:
        """See :class:`Medium`."""
        self._replace(key, (data,))

    def extend(self, key: str, keep: int, data: bytes) -> None:
        """See :class:`Medium`."""
        with (self.root / key).open("rb") as present:
            self._replace(key, (present.read(keep), data))

    def _replace(self, key: str, parts: Iterable[bytes]) -> None:
        path = self.root / key
        partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}{PARTIAL}")
        try:
            with _made(partial) as sink:
                for part in parts:
                    write_all(sink.fileno(), part)
                if self._fsync:
                    os.fsync(sink.fileno())
            partial.replace(path)
        except OSError:
            partial.unlink(missing_ok=True)
            raise
        if self._fsync:
            sync_directory(path.parent)

    def delete(self, key: str) -> None:
        """See :class:`Medium`."""
        path = self.root / key
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)

    def names(self, key: str) -> list[str]:
        """See :class:`Medium`."""
        try:
            return os.listdir(self.root / key)
        except (FileNotFoundError, NotADirectoryError):
            return []

    def sweep(self) -> None:
        """Remove what a killed writer left half written."""
        for partial in self.root.rglob(f"*{PARTIAL}"):
            partial.unlink(missing_ok=True)


def _made(path: Path) -> FileIO:
    try:
        return FileIO(path, "wb")
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        return FileIO(path, "wb")


@contextmanager
def in_words(place: str, remedy: str) -> Iterator[None]:
    """Name the recording, and what to do, where a medium refuses to write: OSError becomes RecordingError."""
    try:
        yield
    except OSError as error:
        raise RecordingError(f"{place}: writing failed ({error}); {remedy}") from error


def write_all(descriptor: int, data: bytes) -> None:
    """Write all bytes, however many a single call of the system takes."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def sync_directory(path: Path) -> None:
    """Bring the names in a directory to the device, where the system can: Windows opens no directories."""
    if os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Memory:
    """Objects in this process's memory."""

    def __init__(self) -> None:
        self._objects: MutableMapping[str, Buffer] = {}
        self.store = MemoryStore(self._objects)

    def get(self, key: str) -> bytes | None:
        """See :class:`Medium`."""
        found = self._objects.get(key)
        return None if found is None else found.to_bytes()

    def put(self, key: str, data: bytes) -> None:
        """See :class:`Medium`."""
        self._objects[key] = cpu.Buffer.from_bytes(data)

    def extend(self, key: str, keep: int, data: bytes) -> None:
        """See :class:`Medium`."""
        self.put(key, (self.get(key) or b"")[:keep] + data)

    def delete(self, key: str) -> None:
        """See :class:`Medium`."""
        for name in [name for name in self._objects if name == key or name.startswith(f"{key}/")]:
            del self._objects[name]

    @property
    def bytes(self) -> int:
        """Memory the objects take."""
        return sum(map(len, self._objects.values()))

    def names(self, key: str) -> list[str]:
        """See :class:`Medium`."""
        below = f"{key}/" if key else ""
        return list({name[len(below) :].split("/")[0] for name in self._objects if name.startswith(below)})


class Remote:
    """Objects below an fsspec URL such as ``s3://bucket/run.zarr``; an upload takes effect when it is complete."""

    def __init__(self, url: str) -> None:
        import fsspec
        from zarr.storage import FsspecStore

        if url.startswith(("file://", "local://")):
            raise RecordingError(f"path='{url}': give a local directory as a path, '{url.partition('://')[2]}'")
        self.url = url
        self._files: Any
        try:
            self._files, self._root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise RecordingError(f"path='{url}': fsspec cannot reach it ({error})") from error
        self.store: Store = FsspecStore.from_url(url)

    def _path(self, key: str) -> str:
        return f"{self._root}/{key}" if key else self._root

    def get(self, key: str) -> bytes | None:
        """See :class:`Medium`."""
        try:
            return bytes(self._files.cat_file(self._path(key)))
        except FileNotFoundError:
            return None

    def put(self, key: str, data: bytes) -> None:
        """See :class:`Medium`."""
        self._files.pipe_file(self._path(key), data)

    def extend(self, key: str, keep: int, data: bytes) -> None:
        """See :class:`Medium`."""
        self.put(key, (self.get(key) or b"")[:keep] + data)

    def delete(self, key: str) -> None:
        """See :class:`Medium`."""
        if self._files.exists(self._path(key)):
            self._files.rm(self._path(key), recursive=True)

    def names(self, key: str) -> list[str]:
        """See :class:`Medium`."""
        if not self._files.isdir(self._path(key)):
            return []
        return [str(name).rstrip("/").rsplit("/", 1)[-1] for name in self._files.ls(self._path(key), detail=False)]
