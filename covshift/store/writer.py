"""The writer of a recording: takes rows, keeps them a while, and commits them in one stroke.

Rows wait in memory and are written together. Chunk data go beyond the committed lengths first, the shapes of the
arrays next, the root ``zarr.json`` last: before that one replacement readers see the old recording, after it the new.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from zarr.abc.buffer import Buffer
from zarr.storage import LocalStore, MemoryStore

import covshift
from covshift import schema
from covshift.exceptions import InvalidArgumentError, RecordingError, RecordingExists
from covshift.schema import Row
from covshift.store import layout
from covshift.store.axes import Axes
from covshift.store.group import StoredGroup
from covshift.store.rows import checked

BUFFER_BYTES = 32 * 2**20
"""Rows are written once they hold this much memory, however few they are."""

_FIXED_ATTRIBUTES = ("Conventions", layout.VERSION_ATTRIBUTE, layout.COMMIT_ATTRIBUTE)


class Writer:
    """Writes one recording, to a directory or to memory.

    Parameters
    ----------
    path : path-like or None
        Directory of the recording; ``.zarr`` is added where it is missing. None keeps the recording in memory.
    attrs : mapping
        Root attributes, anything JSON can hold.
    overwrite : bool, default False
        Replace a covshift recording that stands at ``path``. Anything else that stands there is never deleted.
    flush_records : int, default 64
        Write when any group has this many rows waiting.
    flush_seconds : float, default 60
        Write when the last write is longer ago than this and a row arrives.

    Raises
    ------
    RecordingExists
        If a recording stands at ``path`` and ``overwrite`` is false.
    RecordingError
        If something else stands there, or the directory cannot be made.

    Examples
    --------
    >>> import numpy as np
    >>> from covshift.store import open
    >>> with Writer(None, attrs={"title": "one layer"}) as writer:
    ...     writer.declare_layers([schema.Layer("fc", module_type="Linear", depth=0)])
    ...     writer.append([Row("layers", step=0, variables={"count": np.full((1, 5), 32, dtype="u8")})])
    >>> int(open(writer.target)["layers/count"].sel(step=0, layer="fc", signal="activation"))
    32
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None,
        *,
        attrs: Mapping[str, Any],
        overwrite: bool = False,
        flush_records: int = 64,
        flush_seconds: float = 60.0,
    ) -> None:
        if flush_records < 1 or not flush_seconds > 0:
            raise InvalidArgumentError(
                f"flush_records={flush_records}, flush_seconds={flush_seconds}: expected at least 1 and more than 0"
            )
        self.path = None if path is None else layout.recording_path(path)
        self._attrs = _root_attributes(attrs)
        self._flush_records, self._flush_seconds = flush_records, flush_seconds
        self._memory: dict[str, Buffer] = {}
        self._store = MemoryStore(self._memory) if self.path is None else LocalStore(self.path)
        self._axes = Axes()
        self._groups = {path: StoredGroup(self._store, path, self._axes) for path in layout.PATHS}
        self._sequence = 0
        self._written_at = time.monotonic()
        self._closed = False
        self._start(overwrite)

    def _start(self, overwrite: bool) -> None:
        """Claim the path with an empty root first, so that from its first instant it is known for a recording."""
        try:
            if self.path is not None:
                _demand_free(self.path, overwrite)
                self.path.mkdir(parents=True, exist_ok=True)
            self._commit(closed=False)
            if self.path is not None:
                _clear(self.path)
            self._groups[schema.LAYERS.name].create()
            self._commit(closed=False)
        except RecordingError:
            raise
        except OSError as error:
            raise RecordingError(
                f"path='{self.path}': the recording cannot be created ({error}); choose a directory you may write to"
            ) from error

    @property
    def target(self) -> Path | MemoryStore:
        """What :func:`covshift.store.open` takes to read what has been committed."""
        return self._store if isinstance(self._store, MemoryStore) else Path(self._store.root)

    @property
    def buffered_bytes(self) -> int:
        """Memory held by the rows that wait to be written."""
        return sum(group.buffered_bytes for group in self._groups.values())

    def declare_layers(self, layers: Sequence[schema.Layer]) -> None:
        """Append layers to the layer axis, and their units to the unit axis.

        In rows recorded before, a later layer reads as absent: status 0, counts 0, floats NaN.

        Raises
        ------
        InvalidArgumentError
            If a name is declared twice; nothing is declared then.
        """
        self._demand_open()
        self._axes.add_layers(layers)

    def declare_parameters(self, parameters: Sequence[schema.Parameter]) -> None:
        """Append parameters to the parameter axis; a name declared twice raises InvalidArgumentError."""
        self._demand_open()
        self._axes.add_parameters(parameters)

    def append(self, rows: Sequence[Row]) -> None:
        """Take rows, all or none, and write when enough wait.

        Arrays are kept until then, not copied: do not write into them. Groups without the coordinates ``source``
        and ``mode`` (``parameters``, ``scalars``) drop both.

        Raises
        ------
        InvalidArgumentError
            If a row does not fit the schema or what was declared, or its step does not come after its group's last.
        RecordingError
            If writing failed. The rows are taken all the same and are written by the next flush that succeeds.
        """
        self._demand_open()
        taken = [checked(row, self._axes) for row in rows]
        self._demand_order(taken)
        for row in taken:
            self._groups[row.group].append(row)
        if self._is_due():
            self.flush()

    def _demand_order(self, rows: Sequence[Row]) -> None:
        last = {path: group.last_step for path, group in self._groups.items()}
        for row in rows:
            if row.step <= last[row.group]:
                raise InvalidArgumentError(
                    f"{row.group}: step={row.step}: expected a step after {last[row.group]}, the last one of the group"
                )
            last[row.group] = row.step

    def _is_due(self) -> bool:
        waiting = max(len(group.rows) for group in self._groups.values())
        overdue = waiting > 0 and time.monotonic() - self._written_at >= self._flush_seconds
        return waiting >= self._flush_records or overdue or self.buffered_bytes >= BUFFER_BYTES

    def flush(self) -> None:
        """Write and commit everything that waits; without anything to write, do nothing.

        Raises
        ------
        RecordingError
            If the disk refuses. Readers keep the last commit, the rows stay in memory, and flush can be repeated.
        """
        if any(group.is_behind for group in self._groups.values()):
            self._write(closed=False)

    def close(self) -> None:
        """Write what waits and mark the recording closed; closing twice does nothing.

        Raises
        ------
        RecordingError
            As :meth:`flush`; the writer then stays open, so that closing can be repeated.
        """
        if not self._closed:
            self._write(closed=True)
            self._closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _demand_open(self) -> None:
        if self._closed:
            raise RecordingError(f"recording {self.path or 'in memory'} is closed: record again into another one")

    def _write(self, *, closed: bool) -> None:
        try:
            self._write_and_commit(closed=closed)
        except OSError as error:
            waiting = sum(len(group.rows) for group in self._groups.values())
            raise RecordingError(
                f"recording {self.path}: writing failed ({error}); readers keep the last commit and {waiting} rows "
                "stay in memory: make room or mend the disk, then flush again"
            ) from error

    def _write_and_commit(self, *, closed: bool) -> None:
        behind = [group for group in self._groups.values() if group.is_behind]
        for group in behind:
            group.write()
        self._commit(closed=closed)
        for group in behind:
            group.settle()
        self._written_at = time.monotonic()

    def _commit(self, *, closed: bool) -> None:
        stored = [group for group in self._groups.values() if group.exists]
        commit = {
            "seq": self._sequence,
            "time_utc": _now(),
            "records": {group.path: group.length for group in stored},
            "closed": closed,
        }
        nodes = {path: node for group in stored for path, node in group.documents().items()}
        document = layout.root_document({**self._attrs, layout.COMMIT_ATTRIBUTE: commit}, nodes)
        layout.commit(self._memory if self.path is None else self.path, document)
        self._sequence += 1


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


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
    described = {"title": "covshift recording", "created": _now(), "covshift_version": covshift.__version__}
    return {"Conventions": "CF-1.11", layout.VERSION_ATTRIBUTE: schema.VERSION, **described, **given}


def _demand_free(path: Path, overwrite: bool) -> None:
    if not path.exists():
        return
    if not path.is_dir():
        raise RecordingError(f"path='{path}' is a file: expected a new directory; choose another path")
    if layout.is_recording(path):
        if not overwrite:
            raise RecordingExists(
                f"path='{path}' holds a recording: overwrite=True replaces it; or choose another path"
            )
    elif any(path.iterdir()):
        raise RecordingError(
            f"path='{path}' is a directory but no covshift recording, and is not deleted even with overwrite=True; "
            "choose another path or remove it yourself"
        )


def _clear(path: Path) -> None:
    """Delete a replaced recording, all but the root that has already taken its place."""
    for child in path.iterdir():
        if child.name == layout.ROOT:
            continue
        if child.is_dir() and not child.is_symlink():
            shutil.rmtree(child)
        else:
            child.unlink()
