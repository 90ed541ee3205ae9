"""Pure rules from a step (or record) number to "record or not".

A schedule is a callable ``int -> bool`` that can be joined with ``|`` and prints as the expression that made it, so
that a recording's attributes say how it was sampled. Nothing here knows models or clocks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import log10

from covshift.exceptions import InvalidArgumentError


@dataclass(frozen=True)
class Schedule:
    """A rule that says which steps to record, and its text."""

    rule: Callable[[int], bool]
    text: str

    def __call__(self, step: int) -> bool:
        """Whether ``step`` (counted from 0) is to be recorded."""
        return self.rule(step)

    def __or__(self, other: Schedule) -> Schedule:
        """Steps that either rule records."""
        if not isinstance(other, Schedule):
            return NotImplemented
        return Schedule(lambda step: self.rule(step) or other.rule(step), f"{self.text} | {other.text}")

    def __str__(self) -> str:
        """The expression that makes this schedule."""
        return self.text


def every(n: int) -> Schedule:
    """Steps 0, n, 2n, ...

    Examples
    --------
    >>> [step for step in range(8) if (first(2) | every(3))(step)]
    [0, 1, 3, 6]
    """
    _positive("every", n)
    return Schedule(lambda step: step % n == 0, f"every({n})")


def first(n: int) -> Schedule:
    """The first ``n`` steps."""
    _positive("first", n)
    return Schedule(lambda step: step < n, f"first({n})")


def at_steps(*steps: int) -> Schedule:
    """Exactly these steps."""
    chosen = frozenset(steps)
    if not chosen or any(not isinstance(step, int) or step < 0 for step in chosen):
        raise InvalidArgumentError(f"at_steps{steps}: expected at least one whole step number, none below 0")
    return Schedule(chosen.__contains__, f"at_steps({', '.join(map(str, sorted(chosen)))})")


def logarithmic(per_decade: int = 10) -> Schedule:
    """Step 0 and about ``per_decade`` steps in every decade thereafter, evenly spaced on a log axis."""
    _positive("logarithmic", per_decade)

    def rule(step: int) -> bool:
        if step < 1:
            return True
        # A step is due when it is the nearest integer to some 10**(k / per_decade).
        nearest = round(per_decade * log10(step))
        return any(round(10 ** (k / per_decade)) == step for k in (nearest - 1, nearest, nearest + 1))

    return Schedule(rule, f"logarithmic({per_decade})")


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
