"""The writer of a recording: acknowledges rows with one write to a journal, and folds them into the arrays later.

A row is safe when :meth:`Writer.append` returns: it lies in the journal, which the next writer and ``covshift.open``
read. Folding (encoding, writing and committing chunks) goes on in a thread of its own beside the training loop.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from zarr.storage import MemoryStore

from covshift import schema
from covshift.exceptions import CovshiftWarning, InvalidArgumentError, RecordingError
from covshift.schema import Row
from covshift.store import endings, frames, layout
from covshift.store.folding import Cadence, Folding, fold_of
from covshift.store.frames import Record
from covshift.store.journal import Journal
from covshift.store.medium import Memory, in_words
from covshift.store.opening import Opened, opened_for_writing
from covshift.store.placement import Placement
from covshift.store.rows import checked
from covshift.store.waiting import Reason, Waiting

MAX_MEMORY = 2**30
"""Bytes that a recording in memory may take."""


class Writer:
    """Writes one recording, to a directory, to memory, or to an fsspec URL.

    Parameters
    ----------
    path : path-like, str or None
        Directory of the recording; ``.zarr`` is added where it is missing. None keeps the recording in memory. Text
        with ``://`` is an fsspec URL; lock and journal then lie in a local directory.
    attrs : mapping
        Root attributes, anything JSON can hold.
    overwrite : bool, default False
        Replace a covshift recording that stands at ``path``. Anything else that stands there is never deleted.
    resume : bool, default False
        Continue the recording that stands at ``path``, or begin one where nothing does. :meth:`resume_at` must say
        where before rows are appended.
    flush_records : int, default 64
        Fold when any group has this many rows waiting.
    flush_seconds : float, default 60
        Fold when the last fold is longer ago than this and a row arrives.
    background : bool, default True
        Fold in a thread beside the caller's. Recordings in memory are always folded in the caller's.
    fsync : bool, default False
        Bring every record and every fold to the device, so that a power failure loses no acknowledged record either.
    journal_directory : path-like, optional
        Local directory of lock and journal for an fsspec URL; by default in a directory of the user's own below
        the system's temporary one.
    max_memory : int, default 1 GiB
        Most bytes a recording in memory may take; rows beyond are left out, with one warning.

    Raises
    ------
    RecordingExists
        If a recording stands at ``path`` and neither ``overwrite`` nor ``resume`` is true.
    StoreLocked
        If another writer has it open.
    ResumeMismatch
        If a recording to be resumed is of another model, as far as ``attrs`` name one (``covshift_model``).
    RecordingError
        If something else stands there, or the directory cannot be made.
    RecordingDamaged
        If a recording to be resumed is damaged; ``covshift recover`` names and saves what can be saved.

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
        resume: bool = False,
        flush_records: int = 64,
        flush_seconds: float = 60.0,
        background: bool = True,
        fsync: bool = False,
        journal_directory: str | os.PathLike[str] | None = None,
        max_memory: int = MAX_MEMORY,
    ) -> None:
        self._cadence = Cadence(records=flush_records, seconds=flush_seconds)
        self._fsync, self._max_memory, self.warn = fsync, max_memory, _warn_caller
        self._opened: Opened = opened_for_writing(
            path, attrs=attrs, overwrite=overwrite, resume=resume, fsync=fsync, hidden=journal_directory
        )
        self.path = self._opened.path
        self._archive, self._placement = self._opened.archive, Placement(self._opened.axes)
        self._needs_step = self._opened.resumed
        self._resumed_at, self._kept_there = -1, set[str]()
        self._begin()
        self._folding = Folding(background=background and path is not None)
        self._closed = self._has_said_full = False
        self._calls, self._pid = 0, os.getpid()
        if self.path is not None or self._journal is not None:
            endings.watch(self)

    def _begin(self) -> None:
        """Count and journal rows from the archive's present state on."""
        self._waiting = Waiting(self._archive.committed, self._archive.last_steps(), granule=self._cadence.records)
        hidden, life, in_place = self._opened.hidden, self._archive.life, self._opened.demand_in_place
        self._journal = Journal(hidden, life=life, fsync=self._fsync, demand_in_place=in_place) if hidden else None
        self._cadence.begin()

    @property
    def target(self) -> Path | MemoryStore | str:
        """What :func:`covshift.store.open` takes to read the recording."""
        return self._opened.target

    @property
    def buffered_bytes(self) -> int:
        """Memory held by the rows that wait to be folded."""
        return self._waiting.bytes

    @property
    def resumed(self) -> bool:
        """Whether a recording stood at the path and is continued."""
        return self._opened.resumed

    @property
    def last_steps(self) -> dict[str, int]:
        """Last step of every group, -1 where it has no row."""
        return dict(self._waiting.last_steps)

    @property
    def stored_layers(self) -> tuple[schema.Layer, ...]:
        """Layers the recording holds, those of earlier processes included."""
        return self._placement.stored.layers

    @property
    def is_busy(self) -> bool:
        """Whether a call of a method is under way, in any thread."""
        return self._calls > 0

    def resume_at(self, step: int) -> dict[str, int]:
        """Continue at ``step``: rows at this step and later move to ``superseded/attempt_<k>``, in one commit.

        Evaluations and probes at ``step`` itself, which lie behind the resumed training, stay until they are made
        again: rows of their stream at that step then move in the same way.

        Returns
        -------
        dict of str to int
            Rows moved, by group.

        Raises
        ------
        InvalidArgumentError
            If ``step`` is no whole number from 0.
        RecordingError
            If the writer was not opened with ``resume=True``, or rows were appended before, or the disk refuses.
        """
        if isinstance(step, bool) or not isinstance(step, int) or step < 0:
            raise InvalidArgumentError(f"step={step!r}: expected the whole number of optimizer steps done, 0 or more")
        if not self._needs_step:
            if not self.resumed and not self._waiting.count:
                return {}
            raise RecordingError("resume_at() comes once, before the first row, on a writer made with resume=True")
        with self._calling(), in_words(self._place, "the recording stays as it was"):
            moved = self._archive.supersede(step, self._placement.stored)
        self._needs_step = False
        self._begin()
        self._resumed_at = step
        self._kept_there = {layout.stream_of(path) for path, last in self.last_steps.items() if last == step}
        return moved

    def declare_layers(self, layers: Sequence[schema.Layer]) -> None:
        """Append layers to the layer axis, and their units to the unit axis.

        In rows recorded before, a later layer reads as absent: status 0, counts 0, floats NaN. A resumed recording
        knows its layers; declared again, in any order, they keep their places.

        Raises
        ------
        InvalidArgumentError
            If a name is declared twice, or with another number of units than it was recorded with; nothing is
            declared then.
        """
        self._declare(layers=layers)

    def declare_parameters(self, parameters: Sequence[schema.Parameter]) -> None:
        """Append parameters to the parameter axis; a name declared twice raises InvalidArgumentError."""
        self._declare(parameters=parameters)

    def _declare(self, **described: Any) -> None:
        self._demand_open()
        with self._calling():
            known = self._placement.stored
            self._placement.declare(**described)
            if self._journal is not None and self._placement.stored is not known:
                # The next segment begins with the axes as they are by then.
                self._journal.rotate()

    def append(self, rows: Sequence[Row]) -> None:
        """Take rows, all or none; when this returns, they are acknowledged.

        Arrays are copied: the caller may use them again at once. Groups without the coordinates ``source`` and
        ``mode`` (``parameters``, ``scalars``) drop both.

        Raises
        ------
        InvalidArgumentError
            If a row does not fit the schema or what was declared, or its step does not come after its group's last.
        RecordingError
            If the journal cannot be written, as on a full disk. No row is taken then, and the same rows may be
            appended again.

        Warns
        -----
        CovshiftWarning
            If folding failed, once until it succeeds again: the rows are safe in the journal. If a recording in memory
            is full, once: the rows are left out.
        """
        self._demand_open()
        with self._calling():
            fitting = [checked(row, self._placement.declared) for row in rows]
            self._supersede_made_again(fitting)
            ordered = self._waiting.numbered(fitting)
            taken = [self._placement.placed(one) for one in ordered]
            if not taken or self._is_full():
                return
            payload = frames.rows_payload(taken)
            self._acknowledge(payload)
            self._waiting.add(taken, Record(payload))
            reason = self._cadence.due(self._waiting, self._folding)
            fold = None if reason is None else self._fold(reason)
            if fold is not None:
                self._folding.run(fold)
            self._report_failure()

    def _supersede_made_again(self, rows: Sequence[Row]) -> None:
        """Make room for an evaluation or a probe at the step resumed at, where the recording has one already."""
        again = self._kept_there & {layout.stream_of(row.group) for row in rows if row.step == self._resumed_at}
        if not again:
            return
        self._fold_now(closed=False)
        with in_words(self._place, "the record was not taken; make room or mend the disk, then append it again"):
            self._opened.demand_in_place()
            self._archive.supersede_again(again, self._resumed_at, self._placement.stored)
        self._kept_there -= again
        self._begin()

    def _is_full(self) -> bool:
        """Whether a recording in memory may grow no further; says so once."""
        medium = self._opened.medium
        if not isinstance(medium, Memory) or medium.bytes + self._waiting.bytes < self._max_memory:
            return False
        if not self._has_said_full:
            self._has_said_full = True
            self.warn(
                f"the recording in memory has reached {self._max_memory / 1e9:.3g} GB and takes no more: record to a "
                "disk with path=, or fewer layers, or more rarely"
            )
        return True

    def _acknowledge(self, payload: bytes) -> None:
        if self._journal is None:
            return
        with in_words(self._place, "the record was not taken; make room or mend the disk, then append it again"):
            self._journal.append(self._placement.stored, payload)

    def _fold(self, reason: Reason, *, closed: bool = False) -> Callable[[], None] | None:
        self._cadence.begin()
        return fold_of(
            self._waiting, self._archive, self._journal, axes=self._placement.stored, reason=reason, closed=closed
        )

    def _report_failure(self) -> None:
        if (failure := self._folding.unreported_failure()) is not None:
            self.warn(
                f"{self._place}: folding failed ({failure}); every record is safe in the journal and folding is tried "
                "again: make room or mend the disk"
            )

    def flush(self) -> None:
        """Fold and commit everything that waits; without anything to write, do nothing.

        Rows need no flush to be safe, nor for ``covshift.open`` to see them.

        Raises
        ------
        RecordingError
            If the disk refuses. Readers keep the last commit, the rows wait on, and flush can be repeated.
        """
        if not self._closed:
            with self._calling():
                self._fold_now(closed=False)

    def _fold_now(self, *, closed: bool) -> None:
        self._folding.wait()
        fold = self._fold(Reason.ALL, closed=closed)
        if fold is None:
            return
        left = f"readers keep the last commit and {self._waiting.count} rows wait on"
        with in_words(self._place, f"{left}: make room or mend the disk, then flush again"):
            fold()
        self._folding.forget_failure()

    @property
    def is_forked(self) -> bool:
        """Whether this process is a forked child of the one that writes the recording."""
        return os.getpid() != self._pid

    def keep_warnings(self, messages: Sequence[str]) -> None:
        """Keep what could not be recorded, and why, in the root attribute ``warnings``, each message once.

        Readers see them from the next commit on: a kill before it leaves the rows and loses the messages.
        """
        self._archive.warn(messages)

    def close(self) -> None:
        """Write what waits, mark the recording closed and let go of it; closing twice does nothing.

        Raises
        ------
        RecordingError
            As :meth:`flush`; the writer then stays open, so that closing can be repeated.
        """
        if self._closed or self.is_forked:
            return
        with self._calling():
            self._fold_now(closed=True)
            self._closed = True
            self._folding.end()
            self._opened.release()
            endings.dismiss(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @contextmanager
    def _calling(self) -> Iterator[None]:
        self._calls += 1
        try:
            yield
        finally:
            self._calls -= 1

    @property
    def _place(self) -> str:
        return f"recording {self.path or 'in memory'}"

    def _demand_open(self) -> None:
        if self._closed:
            raise RecordingError(f"{self._place} is closed: record again into another one")
        if self.is_forked:
            raise RecordingError(f"{self._place} was opened by process {self._pid}: a forked process cannot write it")
        if self._needs_step:
            raise RecordingError(f"{self._place} is resumed, but nobody said at which step: call resume_at(step) first")


def _warn_caller(message: str) -> None:
    """The caller of :meth:`Writer.append`, unless its owner has put another way of telling in place of this one."""
    warnings.warn(message, CovshiftWarning, stacklevel=4)
