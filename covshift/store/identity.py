"""Whether a resumed recording goes on with the model it was begun with.

The recorder describes a model as one line of text per module, by name (``layout.MODEL_ATTRIBUTE``). Equal lines are the
same model; numbers of different ones never go into one recording, since nobody could tell them apart later.
"""

from __future__ import annotations

from collections.abc import Mapping

from covshift.exceptions import ResumeMismatch

_SHOWN = 3


def demand_same_model(stored: Mapping[str, str], came: Mapping[str, str], *, place: object) -> None:
    """Demand that the model that ``came`` is the one ``stored``, module by module.

    A shape ``[?]``, of a lazy parameter that was not initialised yet, equals every shape.

    Raises
    ------
    ResumeMismatch
        Naming the first modules that differ, as recorded and as they came, and the way out.
    """
    names = dict.fromkeys([*stored, *came])
    differing = [name for name in names if not _equal(stored.get(name), came.get(name))]
    if not differing:
        return
    shown = "; ".join(
        f"'{name}': recorded {stored.get(name, 'nothing')}, came {came.get(name, 'nothing')}"
        for name in differing[:_SHOWN]
    )
    more = f"; and {len(differing) - _SHOWN} more" if len(differing) > _SHOWN else ""
    raise ResumeMismatch(
        f"resume=True: recording '{place}' is of another model, {len(differing)} of {len(names)} modules differ: "
        f"{shown}{more}. Resume with the model it was begun with, record this one into another path, or replace the "
        "recording with overwrite=True; nothing was changed"
    )


def _equal(stored: object, came: object) -> bool:
    if not isinstance(stored, str) or not isinstance(came, str) or "[?]" not in stored + came:
        return stored == came
    words = stored.split(" "), came.split(" ")
    return len(words[0]) == len(words[1]) and all(map(_equal_words, *words))


def _equal_words(stored: str, came: str) -> bool:
    if "[?]" in stored or "[?]" in came:
        return stored.partition("[")[0] == came.partition("[")[0]
    return stored == came
