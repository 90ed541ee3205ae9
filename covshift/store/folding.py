"""When rows are folded, and where: one fold at a time, beside the training loop or in it.

What went wrong in a fold is remembered until somebody is told.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait

from covshift.exceptions import InvalidArgumentError
from covshift.store.archive import Archive
from covshift.store.axes import Axes
from covshift.store.journal import Journal, remove
from covshift.store.lock import DisplacedError
from covshift.store.waiting import Reason, Waiting

BUFFER_BYTES = 16 * 2**20
"""Rows are folded once they hold this much memory, however few they are. 64 records of 150 kB, what 100 layers and
10,000 units come to on average, stay below it and are folded as whole chunks; the first, richer ones may not."""

RETRY_SECONDS = 10.0
"""A fold that failed is tried again after this time."""


def _begin() -> None:
    """Nothing: a thread begins with the first thing it is given."""


class Folding:
    """Where folds run.

    Parameters
    ----------
    background : bool
        In a thread of its own, begun now so that no record has to wait for it; else in the caller's.
    """

    def __init__(self, *, background: bool) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="covshift fold") if background else None
        self._running: Future[None] | None = self._thread.submit(_begin) if self._thread else None
        self._failure: str | None = None
        self._reported = False
        self._retry_at = 0.0

    @property
    def is_running(self) -> bool:
        """Whether a fold is under way."""
        return self._running is not None and not self._running.done()

    @property
    def may_run(self) -> bool:
        """Whether no failure is so fresh that another try would be a waste."""
        return not self._retry_at or time.monotonic() >= self._retry_at

    def run(self, fold: Callable[[], None]) -> None:
        """Run ``fold``, or begin to; a failure is kept for :meth:`unreported_failure`."""
        if self._thread is None:
            self._attempt(fold)
        else:
            self._running = self._thread.submit(self._attempt, fold)

    def _attempt(self, fold: Callable[[], None]) -> None:
        try:
            fold()
        except DisplacedError:
            # With its journal: the next record, which begins a segment of it, is refused and says so.
            self._retry_at = time.monotonic() + RETRY_SECONDS
        except Exception as error:  # noqa: BLE001 - whatever ends a fold, its rows wait on and the user is told
            self._failure, self._retry_at = str(error), time.monotonic() + RETRY_SECONDS
        else:
            self.forget_failure()

    def wait(self) -> None:
        """Return when no fold is under way."""
        if self._running is not None:
            wait([self._running])

    def forget_failure(self) -> None:
        """A fold succeeded: the next failure is news again."""
        self._failure, self._reported, self._retry_at = None, False, 0.0

    def unreported_failure(self) -> str | None:
        """What ended the last fold, once; None where it succeeded or this was asked before."""
        if self._failure is None or self._reported:
            return None
        self._reported = True
        return self._failure

    def end(self) -> None:
        """Let go of the thread."""
        if self._thread is not None:
            self._thread.shutdown()


class Cadence:
    """When rows that wait are folded.

    Parameters
    ----------
    records : int
        Once any group has this many rows waiting.
    seconds : float
        Once the last fold is longer ago than this.

    Raises
    ------
    InvalidArgumentError
        If ``records`` is below 1 or ``seconds`` not above 0.
    """

    def __init__(self, *, records: int, seconds: float) -> None:
        if records < 1 or not seconds > 0:
            raise InvalidArgumentError(
                f"flush_records={records}, flush_seconds={seconds}: expected at least 1 and more than 0"
            )
        self.records, self._seconds = records, seconds
        self.begin()

    def begin(self) -> None:
        """Count the seconds from now."""
        self._folded_at = time.monotonic()

    def due(self, waiting: Waiting, folding: Folding) -> Reason | None:
        """Why rows are to be folded now, None where they may wait; blocks where a running fold lets too many wait."""
        if folding.is_running:
            if waiting.bytes < 2 * BUFFER_BYTES:
                return None
            folding.wait()
        if not folding.may_run:
            return None
        if waiting.bytes >= BUFFER_BYTES:
            return Reason.ALL
        if waiting.most >= self.records:
            return Reason.MANY
        return Reason.AGED if time.monotonic() - self._folded_at >= self._seconds else None


def fold_of(
    waiting: Waiting, archive: Archive, journal: Journal | None, *, axes: Axes, reason: Reason, closed: bool
) -> Callable[[], None] | None:
    """What folds the rows that ``reason`` chooses now; None where there is nothing to do.

    Rows appended while it runs are none of its business: the journal begins a new segment for them here.
    """
    chosen, left = waiting.divided(reason)
    if not (chosen or closed or archive.is_behind(axes)):
        return None
    old = [] if journal is None else journal.rotate()

    def fold() -> None:
        if journal is not None:
            journal.demand_in_place()
        rows = {path: [entry.numbered.row for entry in entries] for path, entries in chosen.items()}
        archive.fold(rows, axes, closed=closed)
        waiting.drop(chosen)
        if left and journal is not None:
            journal.carry(axes, [entry.numbered for entry in left])
        remove(old)

    return fold
