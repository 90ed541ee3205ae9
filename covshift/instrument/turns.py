"""Optimizers that take turns: which steps after a due one are recorded so that each of them is in the record.

Where a critic and a generator each end steps of their own, a schedule may be due in the steps of the same one for ever.
So a due step opens a window for those whose turn it was not. What is recorded follows from the schedule and from which
optimizer stepped in which step alone, never from what was recorded: ranks pause apart, and their records must pair.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

from torch.optim import Optimizer

from covshift.instrument.incidents import Incidents, listed

REMEMBERED = 100
"""Steps over which it is remembered how long an optimizer lets others go first, and that a window may look ahead."""
MOST_STEPS = 20
"""Steps that are recorded for one optimizer in one window, at most."""
OFTEN = 5
"""Steps that were due while an optimizer was at work, from which on it is worth a word that none was its turn."""


@dataclass
class _Turns:
    """Steps of one optimizer: the last ones, how many, whether any was recorded, and how often others' were instead."""

    steps: deque[int] = field(default_factory=deque)
    count: int = 0
    is_recorded: bool = False
    missed: int = 0

    def take(self, step: int) -> None:
        """It has stepped in ``step``."""
        steps = self.steps
        if not steps or steps[-1] != step:
            steps.append(step)
        # One before what is remembered stays: from it the longest pause may reach in.
        while len(steps) > 2 and steps[1] < step - REMEMBERED:
            steps.popleft()

    def next(self) -> range:
        """Steps of which the next turn is one if pauses are as they were; none before there were two turns."""
        if len(self.steps) < 2:
            return range(0)
        pauses = [later - earlier for earlier, later in pairwise(self.steps)]
        return range(self.steps[-1] + min(pauses), self.steps[-1] + max(pauses) + 1)


class Turns:
    """Tells which steps are recorded beside those that are due, because the turn of an optimizer is awaited.

    Parameters
    ----------
    is_due : callable
        Whether a step is due by the schedule.
    """

    def __init__(self, is_due: Callable[[int], bool]) -> None:
        self._is_due = is_due
        self._known: weakref.WeakKeyDictionary[Optimizer, _Turns] = weakref.WeakKeyDictionary()
        self._awaited: weakref.WeakKeyDictionary[Optimizer, range] = weakref.WeakKeyDictionary()

    def extends(self, step: int) -> bool:
        """Whether a step that is not due is recorded because it may be the turn of an optimizer that is awaited."""
        return bool(self._awaited) and any(step in steps for steps in self._awaited.values())

    def took(self, optimizer: Optimizer, step: int, *, is_recorded: bool) -> None:
        """An optimizer has stepped in ``step``, whether it ended it or followed another that did."""
        turns = self._known.get(optimizer)
        if turns is None:
            turns = self._known[optimizer] = _Turns()
        turns.take(step)
        turns.count += 1
        turns.is_recorded |= is_recorded
        if optimizer in self._awaited and (self.extends(step) or self._is_due(step)):
            del self._awaited[optimizer]

    def ended(self, step: int, *, is_recorded: bool) -> None:
        """The step has ended; where it was due, the turns of all others that have stepped are awaited."""
        if len(self._known) > 1 and self._is_due(step):
            self._awaited.clear()
            for optimizer, turns in self._known.items():
                turns.missed += is_recorded
                steps = self._recordable(turns.next(), step)
                if steps and turns.steps[-1] < step:
                    self._awaited[optimizer] = steps

    def _recordable(self, steps: range, due: int) -> range:
        """Those after the due step; none where they are too many, too far, or the next due step comes before the last.

        One whose turn should have come by now may have stopped: its phase of the training is over.
        """
        after = range(max(steps.start, due + 1), steps.stop)
        if len(after) > MOST_STEPS or after.stop > due + REMEMBERED:
            return range(0)
        return range(0) if any(map(self._is_due, range(due + 1, after.stop))) else after

    def name_passed_over(
        self, never_called: list[str], modules_of: Callable[[Optimizer], list[str]], incidents: Incidents
    ) -> list[str]:
        """Name optimizers of which no step was recorded although steps were due, or whose layers were never called.

        ``modules_of`` tells the modules whose parameters an optimizer holds. Returned are the modules, of those never
        called, that none of this explains.
        """
        for optimizer, turns in self._known.items():
            modules = [] if turns.is_recorded else modules_of(optimizer)
            # Beside a linear layer that an unrecorded step called stands a nonlinearity that it called, too.
            parents = {name.rpartition(".")[0] for name in modules} - {""}
            theirs = [name for name in never_called if name in modules or name.rpartition(".")[0] in parents]
            if modules and (theirs or turns.missed >= OFTEN):
                never_called = [name for name in never_called if name not in theirs]
                _warn(incidents, listed(modules), turns.count)
        return never_called


def _warn(incidents: Incidents, modules: str, steps: int) -> None:
    incidents.warn_once(
        "passed over",
        modules,
        f"the optimizer of {modules} made {steps} steps, none of which was recorded: whenever one was due, it was "
        "another's turn, or recording was paused. Record more steps: every=1, or pairs such as "
        "every=covshift.every(10) | covshift.at_steps(*range(1, 10_000, 10))",
    )
