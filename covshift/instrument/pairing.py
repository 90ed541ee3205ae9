"""Which records of several ranks belong together: those of one step and stream, once no rank can add to them.

Ranks need not record the same things: one evaluates alone, one is paused, one ends early. So records are never paired
by the order in which they arrive. Each rank says below which step it has given everything, and a step is written once
all have passed it. This room holds records and refuses to know how they came.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from covshift.instrument.rows import Record

MOST_HELD = 16
"""Steps whose records may wait for a rank. Ranks of one schedule are one apart, so more means that they count
differently, and waiting would take memory without end."""


class Pairing:
    """Records of all ranks by step and stream, held until they are complete.

    Parameters
    ----------
    begin : int, default 0
        First step of the recording; what is given of earlier ones comes too late.
    most : int, default MOST_HELD
        Steps to hold at most; of the oldest beyond them, what is there is given away.

    Attributes
    ----------
    late : int
        Records that came when theirs had been given away already.
    overrun : bool
        Whether any was given away before all ranks had passed its step.
    """

    def __init__(self, *, begin: int = 0, most: int = MOST_HELD) -> None:
        self._held: dict[tuple[int, str], list[Record]] = {}
        self._begin, self._most = begin, most
        self.late, self.overrun = 0, False

    def add(self, records: Iterable[Record]) -> None:
        """Take what ranks have given, in the order of ranks."""
        for record in records:
            if record.step < self._begin:
                self.late += 1
            else:
                self._held.setdefault((record.step, record.stream), []).append(record)

    def taken(self, below: int) -> Iterator[list[Record]]:
        """Give away the records of steps before ``below``, step by step, those of one step and stream together."""
        steps = sorted({step for step, _ in self._held})
        if len(steps) > self._most and steps[-self._most - 1] >= below:
            below, self.overrun = steps[-self._most - 1] + 1, True
        self._begin = max(self._begin, below)
        for key in sorted(key for key in self._held if key[0] < below):
            yield self._held.pop(key)
