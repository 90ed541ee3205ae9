"""Pure rules from a step (or record) number to "record or not".

A schedule is a callable ``int -> bool`` that can be joined with ``|`` and prints as the expression that made it, so
that a recording's attributes say how it was sampled. Nothing here knows models or clocks.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, count, takewhile
from math import lcm, log10
from typing import NamedTuple

from covshift.exceptions import InvalidArgumentError


@dataclass(frozen=True)
class Due:
    """Steps as a set that is counted without asking for each.

    Attributes
    ----------
    prefix : int
        The first so many steps.
    periods : frozenset of int
        All multiples of these.
    others : tuple of callable
        Further steps: those below a step, for any such step.
    """

    prefix: int = 0
    periods: frozenset[int] = frozenset()
    others: tuple[Callable[[int], Iterable[int]], ...] = ()

    def __or__(self, other: Due) -> Due:
        """Steps of either."""
        return Due(max(self.prefix, other.prefix), self.periods | other.periods, (*self.others, *other.others))

    def below(self, stop: int) -> int:
        """How many steps before ``stop`` there are."""
        first = min(self.prefix, stop)
        others = {step for steps in self.others for step in steps(stop) if step >= first}
        alone = sum(all(step % period for period in self.periods) for step in others)
        periods = [one for one in self.periods if not any(one % other == 0 for other in self.periods - {one})]
        return first + _multiples(periods, stop) - _multiples(periods, first) + alone


def _multiples(periods: Sequence[int], stop: int, step: int = 1) -> int:
    """Multiples of ``step`` from 0 and below ``stop`` that are multiples of one of the periods, too.

    By inclusion and exclusion, which ends where only 0 is left: at common multiples from ``stop`` on.
    """
    if step >= stop:
        return min(stop, len(periods), 1)
    commons = [lcm(step, period) for period in periods]
    return sum(-(-stop // one) - _multiples(periods[:k], stop, one) for k, one in enumerate(commons))


@dataclass(frozen=True)
class Schedule:
    """A rule that says which steps to record, its text, and its steps as a set where they can be counted as one."""

    rule: Callable[[int], bool]
    text: str
    due: Due | None = None

    def __call__(self, step: int) -> bool:
        """Whether ``step`` (counted from 0) is to be recorded."""
        return self.rule(step)

    def __or__(self, other: Schedule) -> Schedule:
        """Steps that either rule records."""
        if not isinstance(other, Schedule):
            return NotImplemented
        due = self.due | other.due if self.due is not None and other.due is not None else None
        return Schedule(lambda step: self.rule(step) or other.rule(step), f"{self.text} | {other.text}", due)

    def __str__(self) -> str:
        """The expression that makes this schedule."""
        return self.text

    def below(self, stop: int) -> int:
        """How many steps before ``stop`` are due; a rule of the user's own is asked for every one."""
        return sum(map(self.rule, range(stop))) if self.due is None else self.due.below(stop)

    def between(self, start: int, stop: int) -> tuple[int, int, int] | None:
        """Number, first and last of the steps due from ``start`` to before ``stop``; None where none is."""
        counted = self.due
        if counted is None:
            due = [step for step in range(start, stop) if self.rule(step)]
            return (len(due), due[0], due[-1]) if due else None
        before, total = counted.below(start), counted.below(stop)
        if total <= before:
            return None
        # The k-th step due, from 1, is the first before whose successor k steps are due.
        first, last = (
            start + bisect_left(range(start, stop), k, key=lambda step: counted.below(step + 1))
            for k in (before + 1, total)
        )
        return total - before, first, last


def every(n: int) -> Schedule:
    """Steps 0, n, 2n, ...

    Examples
    --------
    >>> [step for step in range(8) if (first(2) | every(3))(step)]
    [0, 1, 3, 6]
    """
    _positive("every", n)
    return Schedule(lambda step: step % n == 0, f"every({n})", Due(periods=frozenset({n})))


def first(n: int) -> Schedule:
    """The first ``n`` steps."""
    _positive("first", n)
    return Schedule(lambda step: step < n, f"first({n})", Due(prefix=n))


def at_steps(*steps: int) -> Schedule:
    """Exactly these steps."""
    if not steps or any(not isinstance(step, int) or step < 0 for step in steps):
        raise InvalidArgumentError(
            f"at_steps({', '.join(map(repr, steps))}): expected at least one whole step number, none below 0; of a "
            "list, at_steps(*steps)"
        )
    chosen = frozenset(steps)

    def before(stop: int) -> Iterable[int]:
        return (step for step in chosen if step < stop)

    return Schedule(chosen.__contains__, f"at_steps({', '.join(map(str, sorted(chosen)))})", Due(others=(before,)))


def logarithmic(per_decade: int = 10) -> Schedule:
    """Step 0 and about ``per_decade`` steps in every decade thereafter, evenly spaced on a log axis."""
    _positive("logarithmic", per_decade)

    def rule(step: int) -> bool:
        if step < 1:
            return True
        # A step is due when it is the nearest integer to some 10**(k / per_decade).
        nearest = round(per_decade * log10(step))
        return any(round(10 ** (k / per_decade)) == step for k in (nearest - 1, nearest, nearest + 1))

    def before(stop: int) -> Iterable[int]:
        steps = (round(10 ** (k / per_decade)) for k in count())
        return chain(range(min(stop, 1)), takewhile(lambda step: step < stop, steps))

    return Schedule(rule, f"logarithmic({per_decade})", Due(others=(before,)))


class Cadences(NamedTuple):
    """What of a training is due.

    Attributes
    ----------
    steps : Schedule
        Steps to record, by their number.
    histograms, units : Schedule
        Records that hold histograms, and units, by the record's number.
    """

    steps: Schedule
    histograms: Schedule
    units: Schedule


def as_schedule(value: int | Schedule, *, name: str) -> Schedule:
    """``value`` as a schedule; an int ``n`` means ``every(n)``.

    Raises
    ------
    InvalidArgumentError
        Naming the argument ``name`` if ``value`` is neither, or below 1.
    """
    if isinstance(value, Schedule):
        return value
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InvalidArgumentError(
            f"{name}={value!r}: expected a whole number from 1, or a schedule such as every(10) | first(20)"
        )
    return every(value)


def _positive(name: str, n: int) -> None:
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise InvalidArgumentError(f"{name}({n!r}): expected a whole number from 1")


DEFAULT = every(10)
SLOW = first(10) | every(10)
"""Cadence of histograms and units, counted in records: bytes are dominated by them."""
PROBES = every(100)
"""Cadence of probes, in steps done: each costs a forward pass."""
