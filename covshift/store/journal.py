"""The journal: rows that are acknowledged but not yet folded into the arrays, in append-only segments.

A record is acknowledged when one write has appended its frame. Segments are numbered files; each begins with the axes,
so it can be read without the ones before. Folding goes by the number of a row in its group, never by segment: rows
that the commit record already counts are skipped, so a row may lie in two segments and is still taken once.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from covshift.store import frames
from covshift.store.axes import Axes
from covshift.store.frames import Numbered
from covshift.store.medium import sync_directory

PREFIX = "journal-"


class Journal:
    """Segments in ``directory``, written by one process.

    Parameters
    ----------
    directory : Path
        Made if missing.
    life : str
        See :attr:`covshift.store.archive.Archive.life`; segments of another one are stale.
    fsync : bool
        Bring every record to the device before it is acknowledged, which a power failure then cannot take.
    demand_in_place : callable, optional
        Called before a segment is begun, and for whoever asks before a fold; raises ``DisplacedError`` where the
        directory is not this writer's any more.
    """

    def __init__(
        self,
        directory: Path,
        *,
        life: str,
        fsync: bool = False,
        demand_in_place: Callable[[], None] = lambda: None,
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.demand_in_place = demand_in_place
        self._directory, self._life, self._fsync = directory, life, fsync
        self._next = 1 + max((_number(path) for path in segments(directory)), default=-1)
        self._numbering = threading.Lock()
        self._descriptor: int | None = None
        self._size = 0

    def append(self, axes: Axes, payload: bytes) -> None:
        """Append a record; it is acknowledged when this returns.

        Raises
        ------
        OSError
            If the disk refuses. What was written of the record is taken back.
        """
        if self._descriptor is None:
            self._descriptor, _ = self._opened(axes)
            self._size = os.fstat(self._descriptor).st_size
        self._write(payload)

    def _opened(self, axes: Axes) -> tuple[int, Path]:
        self.demand_in_place()
        # The thread that folds opens segments too, to carry rows over.
        with self._numbering:
            path = self._directory / f"{PREFIX}{self._next:012d}"
            self._next += 1
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND | getattr(os, "O_BINARY", 0))
        try:
            _write_frame(descriptor, self._axes_payload(axes))
        except OSError:
            os.close(descriptor)
            path.unlink(missing_ok=True)
            raise
        if self._fsync:
            sync_directory(self._directory)
        return descriptor, path

    def _axes_payload(self, axes: Axes) -> bytes:
        return frames.axes_payload(axes.layers, axes.parameters, self._life)

    def _write(self, payload: bytes) -> None:
        assert self._descriptor is not None
        try:
            written = _write_frame(self._descriptor, payload)
            if self._fsync:
                getattr(os, "fdatasync", os.fsync)(self._descriptor)
        except OSError:
            self._take_back()
            raise
        self._size += written

    def _take_back(self) -> None:
        """Cut off what was written in part; where even that fails, nothing more goes behind it."""
        assert self._descriptor is not None
        try:
            os.ftruncate(self._descriptor, self._size)
        except OSError:
            self.rotate()

    def rotate(self) -> list[Path]:
        """Let the next record begin a new segment; the segments there are now."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
        return segments(self._directory)

    def carry(self, axes: Axes, rows: Sequence[Numbered]) -> None:
        """Write rows that stay unfolded to a segment of their own, so that the ones they came in can go."""
        descriptor, path = self._opened(axes)
        try:
            _write_frame(descriptor, frames.rows_payload(rows))
            if self._fsync:
                os.fsync(descriptor)
        except OSError:
            path.unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)


def _write_frame(descriptor: int, payload: bytes) -> int:
    """Append a frame with one call of the system; returns its length."""
    header = frames.header_of(payload)
    if hasattr(os, "writev"):
        written = os.writev(descriptor, (header, payload))
    else:
        written = os.write(descriptor, header + payload)
    length = len(header) + len(payload)
    if written != length:
        # The system took what fitted; the rest says why no more does.
        os.write(descriptor, (header + payload)[written:])
        raise OSError(f"only {written} of {length} bytes were taken")
    return length


def segments(directory: Path) -> list[Path]:
    """Segments in ``directory``, in the order they were begun."""
    return sorted(directory.glob(f"{PREFIX}*"))


def remove(paths: Iterable[Path]) -> None:
    """Remove segments, the oldest first, so that what is left has no gap at its end."""
    for path in paths:
        path.unlink(missing_ok=True)


def _number(path: Path) -> int:
    return int(path.name.removeprefix(PREFIX))


@dataclass
class Tail:
    """What the journal holds beyond a commit.

    Attributes
    ----------
    rows : dict of str to list of Row numbers
        By group: the rows that continue the committed ones, in order and without a gap.
    axes : Axes or None
        As last declared; None where there is no segment.
    damaged : list of str
        What could not be believed, in words.
    gaps : list of str
        Where rows are missing between the commit and what a journal holds, in words.
    """

    rows: dict[str, list[Numbered]] = field(default_factory=dict)
    axes: Axes | None = None
    damaged: list[str] = field(default_factory=list)
    gaps: list[str] = field(default_factory=list)


def tail(directory: Path, committed: Mapping[str, int], *, life: str) -> Tail:
    """Rows of all segments that the commit does not count yet.

    Raises
    ------
    FileNotFoundError
        If a segment was folded and removed meanwhile: read the commit again.
    """
    found = Tail()
    rows: dict[str, dict[int, Numbered]] = {}
    for path in segments(directory):
        for one in _contents(path, found, life):
            group = one.row.group
            if one.number >= committed.get(group, 0):
                rows.setdefault(group, {})[one.number] = one
    for group, numbered in rows.items():
        first = committed.get(group, 0)
        found.rows[group] = list(_consecutive(numbered, first))
        if len(found.rows[group]) < len(numbered):
            beyond = min(number for number in numbered if number >= first + len(found.rows[group]))
            found.gaps.append(
                f"the journal continues '{group}' at record {beyond}, but {first + len(found.rows[group])} are there"
            )
    return found


def _contents(path: Path, found: Tail, life: str) -> Iterator[Numbered]:
    current = False
    for payload in frames.payloads(path.read_bytes()):
        if payload is None:
            found.damaged.append(f"{path.name} is damaged: what follows the first damaged record is not read")
            return
        content = frames.content(payload)
        if isinstance(content, frames.AxesFrame):
            current = content.life == life
            if current:
                found.axes = longer(Axes(content.layers, content.parameters), found.axes)
        elif current:
            yield from content


def longer(axes: Axes, other: Axes | None) -> Axes:
    """Whichever axes hold more; axes of one recording only ever grow."""
    sizes = [len(one.layers) + len(one.parameters) for one in (axes, other) if one is not None]
    return axes if other is None or sizes[0] >= sizes[1] else other


def _consecutive(rows: Mapping[int, Numbered], first: int) -> Iterable[Numbered]:
    while first in rows:
        yield rows[first]
        first += 1
