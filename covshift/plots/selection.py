"""Picking by name: one layer of a recording, and a word about names that are not there."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

from covshift.exceptions import InvalidArgumentError

MOST_NAMED = 5


def chosen(name: str, known: Iterable[str], *, what: str = "layer") -> str:
    """``name``, if it is among those ``known``.

    Raises
    ------
    InvalidArgumentError
        If it is not; the message names near matches, or the first of those there are.

    Examples
    --------
    >>> chosen("conv31", ["conv30", "conv31"])
    'conv31'
    """
    names = list(known)
    if name in names:
        return name
    some = ", ".join(repr(one) for one in names[:MOST_NAMED]) + (", ..." if len(names) > MOST_NAMED else "")
    there = near(name, names) or f"; there are {some or 'none'}"
    raise InvalidArgumentError(f"{what}={name!r}: not in the recording ({len(names)} {what}s){there}")


def near(name: str, known: Iterable[str]) -> str:
    """Near matches of ``name`` as the end of a sentence; nothing where there are none.

    Examples
    --------
    >>> near("riverr", ["river", "shift"])
    ", did you mean 'river'?"
    """
    lowered = {one.lower(): one for one in reversed(list(known))}
    found = [lowered[match] for match in get_close_matches(name.lower(), lowered, n=MOST_NAMED, cutoff=0.6)]
    parts = [one for low, one in lowered.items() if name.lower() in low and one not in found] if name else []
    matches = [*found, *sorted(parts)][:MOST_NAMED]
    return f", did you mean {' or '.join(map(repr, matches))}?" if matches else ""
