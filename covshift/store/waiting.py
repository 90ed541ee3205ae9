"""Rows that wait in memory to be folded, and which of them a fold takes.

A fold takes whole chunks where it can: a chunk that is written in part has to be written again, and the first copy
stays in its shard as waste. An aged fold takes part of a chunk only if that at least doubles what the chunk held, so
that waste never exceeds data.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto

from covshift import schema
from covshift.exceptions import InvalidArgumentError
from covshift.schema import Row
from covshift.store import layout
from covshift.store.frames import Numbered, Record
from covshift.store.rows import size_in_bytes


class Reason(Enum):
    """Why rows are folded: enough wait, some wait for long, or none may be left waiting."""

    MANY = auto()
    AGED = auto()
    ALL = auto()


@dataclass(frozen=True)
class _Entry:
    """One row: which one of a record, and its size."""

    record: Record
    position: int
    bytes: int

    @property
    def numbered(self) -> Numbered:
        return self.record.rows[self.position]


class Waiting:
    """Rows by group, in order, each with its number in the group."""

    def __init__(self, committed: Mapping[str, int], last_steps: Mapping[str, int], *, granule: int) -> None:
        self.last_steps = dict(last_steps)
        self.bytes = 0
        self._granule = granule
        self._entries: dict[str, list[_Entry]] = {path: [] for path in committed}
        self._next = dict(committed)
        # Rows are added by the loop and dropped by the thread that folds.
        self._lock = threading.Lock()

    def numbered(self, rows: Sequence[Row]) -> list[Numbered]:
        """Rows with the numbers they would have in their groups.

        Raises
        ------
        InvalidArgumentError
            If a step does not come after its group's last.
        """
        last, numbers = dict(self.last_steps), dict(self._next)
        taken = []
        for row in rows:
            if row.step <= last[row.group]:
                raise InvalidArgumentError(
                    f"{row.group}: step={row.step}: expected a step after {last[row.group]}, the last one of the group"
                )
            last[row.group] = row.step
            taken.append(Numbered(numbers[row.group], row))
            numbers[row.group] += 1
        return taken

    def add(self, taken: Sequence[Numbered], record: Record) -> None:
        """Take the rows of a record, which numbers them as their groups go on; ``taken`` themselves are not kept."""
        sizes = [size_in_bytes(numbered.row) for numbered in taken]
        with self._lock:
            for position, (numbered, size) in enumerate(zip(taken, sizes, strict=True)):
                row = numbered.row
                self._entries[row.group].append(_Entry(record, position, size))
                self._next[row.group] += 1
                self.last_steps[row.group] = row.step
                self.bytes += size

    @property
    def count(self) -> int:
        """Rows that wait."""
        return sum(map(len, self._entries.values()))

    @property
    def most(self) -> int:
        """Rows that wait in the group where most do."""
        return max(map(len, self._entries.values()))

    def divided(self, reason: Reason) -> tuple[dict[str, list[_Entry]], list[_Entry]]:
        """Rows that a fold takes, the first ones of each group, and rows that it leaves."""
        with self._lock:
            counts = {path: self._count(path, reason) for path, entries in self._entries.items() if entries}
            chosen = {path: self._entries[path][:count] for path, count in counts.items() if count}
            return chosen, [one for path, count in counts.items() for one in self._entries[path][count:]]

    def _count(self, path: str, reason: Reason) -> int:
        waiting = len(self._entries[path])
        granule = min(layout.CHUNKS.get(schema.group_of(path).name, {}).get("step", 1), self._granule)
        folded = self._next[path] - waiting
        if reason is Reason.ALL or (reason is Reason.AGED and waiting >= folded % granule):
            return waiting
        return max(0, self._next[path] // granule * granule - folded)

    def drop(self, chosen: Mapping[str, Sequence[_Entry]]) -> None:
        """Forget rows that were folded."""
        with self._lock:
            for path, entries in chosen.items():
                del self._entries[path][: len(entries)]
                self.bytes -= sum(entry.bytes for entry in entries)
