"""Opening a recording for writing: claims the path, and brings what an earlier writer left into order.

What an interrupted writer leaves is harmless: half-written files, chunk data beyond the commit, and a journal. They
are removed, cut off and folded, in this order, before the first new row. Nothing that was not folded is deleted.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import uuid
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zarr.storage import MemoryStore

import covshift
from covshift import schema
from covshift.exceptions import (
    CovshiftWarning,
    InvalidArgumentError,
    RecordingDamaged,
    RecordingError,
    RecordingExists,
)
from covshift.store import documents, journal, layout
from covshift.store.archive import Archive, now
from covshift.store.axes import Axes
from covshift.store.completeness import demand_complete
from covshift.store.identity import demand_same_model
from covshift.store.lock import Lock
from covshift.store.medium import Directory, Medium, Memory, Remote

LOCK = "lock"
ASIDE = "set-aside"

_FIXED_ATTRIBUTES = (
    "Conventions",
    layout.VERSION_ATTRIBUTE,
    layout.COMMIT_ATTRIBUTE,
    layout.RESUMES_ATTRIBUTE,
    "run_id",
)


_OWN = ("run_id", "created", layout.MODEL_ATTRIBUTE)
"""Attributes that every process has of its own, or that a resume has compared."""


@dataclass
class Opened:
    """A recording that this process may write."""

    archive: Archive
    axes: Axes
    medium: Medium
    path: Path | None
    target: Path | MemoryStore | str
    hidden: Path | None
    lock: Lock | None
    resumed: bool = False

    def demand_in_place(self) -> None:
        """See :meth:`Lock.demand_in_place`; at a URL there is nothing to ask."""
        if self.lock is not None and self.path is not None:
            self.lock.demand_in_place()

    def release(self) -> None:
        """Let the next writer in."""
        if self.lock is not None:
            self.lock.release()


def is_url(path: object) -> bool:
    """Whether ``path`` is an fsspec URL."""
    return isinstance(path, str) and "://" in path


def opened_for_writing(
    path: str | os.PathLike[str] | None,
    *,
    attrs: Mapping[str, Any],
    overwrite: bool,
    resume: bool,
    fsync: bool,
    hidden: str | os.PathLike[str] | None,
) -> Opened:
    """See :class:`covshift.store.writer.Writer`, which has these arguments."""
    _demand_one_way(overwrite=overwrite, resume=resume)
    described = _root_attributes(attrs)
    if path is None:
        memory = Memory()
        opened = Opened(Archive(memory, described), Axes(), memory, None, memory.store, None, None)
        opened.archive.create()
        return opened
    opened = _claimed(path, described, overwrite=overwrite, resume=resume, fsync=fsync, hidden=hidden)
    try:
        if opened.resumed:
            _take_up(opened)
        else:
            _begin(opened)
    except OSError as error:
        opened.release()
        if isinstance(error, RecordingError):
            raise
        raise RecordingError(
            f"path='{path}': the recording cannot be created ({error}); choose a directory you may write to"
        ) from error
    except BaseException:
        opened.release()
        raise
    return opened


def _demand_one_way(*, overwrite: bool, resume: bool) -> None:
    if overwrite and resume:
        raise InvalidArgumentError("overwrite=True and resume=True: expected one of them, they exclude each other")


def demand_writable(
    path: str | os.PathLike[str] | None, *, attrs: Mapping[str, Any], overwrite: bool, resume: bool
) -> Path | None:
    """Raise what a writer of these arguments would raise now, without touching anything.

    Returns
    -------
    Path or None
        Where the recording will lie; None in memory and at a URL.
    """
    _demand_one_way(overwrite=overwrite, resume=resume)
    described = _root_attributes(attrs)
    if path is None:
        return None
    if is_url(path):
        url = _recording_url(os.fspath(path))
        _demand_welcome(Remote(url), url, described, overwrite=overwrite, resume=resume)
        return None
    place = layout.place_of(path)
    _demand_free(place)
    _demand_welcome(Directory(place), place, described, overwrite=overwrite, resume=resume)
    return place


def _demand_welcome(medium: Medium, place: object, given: Mapping[str, Any], *, overwrite: bool, resume: bool) -> None:
    if overwrite or not medium.get(layout.ROOT):
        return
    if not resume:
        raise _exists(place)
    archive, _ = loaded(medium, place)
    _demand_same_model(archive.attrs, given, place)


def _exists(place: object) -> RecordingExists:
    return RecordingExists(
        f"path='{place}' holds a recording: resume=True continues it, overwrite=True replaces it; or choose another "
        "path"
    )


def _demand_same_model(attrs: Mapping[str, Any], given: Mapping[str, Any], place: object) -> None:
    stored, came = (one.get(layout.MODEL_ATTRIBUTE) for one in (attrs, given))
    if isinstance(stored, dict) and isinstance(came, dict):
        demand_same_model(stored, came, place=place)


def _claimed(
    path: str | os.PathLike[str],
    attrs: Mapping[str, Any],
    *,
    overwrite: bool,
    resume: bool,
    fsync: bool,
    hidden: str | os.PathLike[str] | None,
) -> Opened:
    if is_url(path):
        url = _recording_url(os.fspath(path))
        remote = Remote(url)
        local = Path(hidden) if hidden is not None else local_directory(url)
        lock = _lock_of_url(url, local, is_ours=hidden is None)
        stands = _stands_at(remote, url, overwrite=overwrite, resume=resume, lock=lock)
        return Opened(Archive(remote, attrs), Axes(), remote, None, url, local, lock, resumed=stands and resume)
    place = layout.place_of(path)
    hidden_path = place / layout.HIDDEN
    try:
        _demand_free(place)
        place.mkdir(parents=True, exist_ok=True)
        lock = Lock(hidden_path / LOCK)
    except OSError as error:
        if isinstance(error, RecordingError):
            raise
        raise RecordingError(
            f"path='{place}': the recording cannot be created ({error}); choose a directory you may write to"
        ) from error
    directory = Directory(place, fsync=fsync)
    stands = _stands_at(directory, place, overwrite=overwrite, resume=resume, lock=lock)
    return Opened(Archive(directory, attrs), Axes(), directory, place, place, hidden_path, lock, stands and resume)


def _stands_at(medium: Medium, place: Path | str, *, overwrite: bool, resume: bool, lock: Lock) -> bool:
    stands = bool(medium.get(layout.ROOT))
    if stands and not (overwrite or resume):
        lock.release()
        raise _exists(place)
    return stands


def _lock_of_url(url: str, local: Path, *, is_ours: bool) -> Lock:
    """The lock in the directory ``local``; where that ``is_ours``, the one around it is made for this user alone."""
    try:
        if is_ours:
            local.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return Lock(local / LOCK)
    except OSError as error:
        raise RecordingError(
            f"path='{url}': its lock and journal cannot be kept in '{local}' ({error}); name a directory you may write "
            "to in the environment variable TMPDIR, or give the writer journal_directory="
        ) from error


def _recording_url(url: str) -> str:
    url = url.rstrip("/")
    return url if url.endswith(layout.SUFFIX) else url + layout.SUFFIX


def local_directory(url: str) -> Path:
    """Where lock and journal of a recording at an fsspec URL lie unless told otherwise.

    In a directory of each user's own: the temporary one may be everybody's, but Windows gives every user another.
    """
    name = f"{url.rsplit('/', 1)[-1]}-{hashlib.sha256(url.encode()).hexdigest()[:12]}"
    user = f"covshift-{os.getuid()}" if hasattr(os, "getuid") else "covshift"
    return Path(tempfile.gettempdir()) / user / name


def _demand_free(path: Path) -> None:
    if not path.exists():
        return
    if not path.is_dir():
        raise RecordingError(f"path='{path}' is a file: expected a new directory; choose another path")
    if not documents.is_recording(path) and any(child.name != layout.HIDDEN for child in path.iterdir()):
        raise RecordingError(
            f"path='{path}' is a directory but no covshift recording, and is not deleted even with overwrite=True; "
            "choose another path or remove it yourself"
        )


def _begin(opened: Opened) -> None:
    """Claim the path with an empty root first, so that from its first instant it is known for a recording."""
    hidden = opened.hidden
    if hidden is not None:
        journal.remove(journal.segments(hidden))
    opened.archive.commit(closed=False)
    for name in opened.medium.names(""):
        if name not in (layout.ROOT, layout.HIDDEN):
            opened.medium.delete(name)
    opened.archive.create()


def _take_up(opened: Opened) -> None:
    """Fold what the journal holds beyond the commit.

    Raises
    ------
    RecordingDamaged
        If the commit record cannot be read, a data file is missing, or rows are missing between the commit and the
        journal. Nothing is deleted.
    ResumeMismatch
        If it was recorded of another model. Nothing is changed.
    """
    given = opened.archive.attrs
    archive, axes = loaded(opened.medium, opened.target)
    assert opened.hidden is not None
    _demand_same_model(archive.attrs, given, opened.target)
    tail = journal.tail(opened.hidden, archive.committed, life=archive.life)
    if tail.gaps:
        raise RecordingDamaged(
            f"recording '{opened.target}': {'; '.join(tail.gaps)}; nothing was changed: `covshift recover` keeps what "
            "is whole and sets the rest aside"
        )
    opened.archive, opened.axes = archive, journal.longer(axes, tail.axes)
    aside = fold_tail(opened, tail)
    if aside is not None:
        warnings.warn(
            f"recording '{opened.target}': {'; '.join(tail.damaged)}; the damaged journal is kept in '{aside}'",
            CovshiftWarning,
            stacklevel=2,
        )
    archive.changed_attrs = {
        name: value for name, value in given.items() if name not in _OWN and archive.attrs.get(name) != value
    }


def loaded(medium: Medium, place: object) -> tuple[Archive, Axes]:
    """The archive at ``medium``, all of it readable by this covshift.

    Raises
    ------
    RecordingDamaged
        If its commit record cannot be read, or is of a newer schema, or a data file is missing.
    """
    try:
        root = documents.root_of(medium.get(layout.ROOT))
    except ValueError as error:
        raise RecordingDamaged(
            f"recording '{place}' is damaged: its {layout.ROOT} cannot be read ({error}); `covshift recover` mends it"
        ) from None
    schema.check_version(root.get("attributes", {}))
    if isinstance(medium, Directory):
        demand_complete(medium.root, documents.nodes_of(root) or {})
    try:
        return Archive.loaded(medium, root)
    except RecordingError:
        raise
    except Exception as error:  # noqa: BLE001 - damaged metadata fail in any library's words, and are owed one line
        raise RecordingDamaged(
            f"recording '{place}' is damaged: its metadata make no sense ({error!r}); try `covshift recover`, or "
            "restore it from a copy"
        ) from None


def fold_tail(opened: Opened, tail: journal.Tail) -> Path | None:
    """Fold the journal's rows, cut off what lies beyond the commit, and remove the segments.

    Returns
    -------
    Path or None
        Where the segments were put instead of being removed, as parts of them could not be folded.
    """
    hidden, archive = opened.hidden, opened.archive
    assert hidden is not None
    if isinstance(opened.medium, Directory):
        opened.medium.sweep()
    archive.trim()
    rows = {path: [one.row for one in numbered] for path, numbered in tail.rows.items() if numbered}
    if rows or archive.is_behind(opened.axes):
        archive.fold(rows, opened.axes)
    aside = set_aside(hidden) if tail.damaged or tail.gaps else None
    journal.remove(journal.segments(hidden))
    return aside


def set_aside(hidden: Path) -> Path:
    """Move all segments where no writer looks for them, and say where."""
    aside = hidden / f"{ASIDE}-{uuid.uuid4().hex[:8]}"
    aside.mkdir()
    for path in journal.segments(hidden):
        path.rename(aside / path.name)
    return aside


def _root_attributes(attrs: Mapping[str, Any]) -> dict[str, Any]:
    taken = [name for name in _FIXED_ATTRIBUTES if name in attrs]
    if taken:
        raise InvalidArgumentError(f"attrs: {', '.join(taken)} are set by the writer; choose other names")
    try:
        given = json.loads(json.dumps(dict(attrs), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise InvalidArgumentError(
            f"attrs cannot be stored as JSON ({error}): expected text, finite Python numbers, booleans, None, "
            "and lists and dicts of them"
        ) from error
    described = {"title": "covshift recording", "created": now(), "covshift_version": covshift.__version__}
    identity = {"Conventions": "CF-1.11", layout.VERSION_ATTRIBUTE: schema.VERSION, "run_id": uuid.uuid4().hex}
    return {**identity, **described, **given}
