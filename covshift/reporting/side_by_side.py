"""Runs side by side, seeds of one variant taken together: rows of numbers, and which findings come, go or move."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean, median
from typing import Any

import numpy as np

from covshift.analysis.differences import welch
from covshift.analysis.matching import Matching
from covshift.diagnosis.thresholds import THRESHOLDS
from covshift.diagnosis.wording import plural

Run = Mapping[str, Any]
Row = tuple[str, str, list[Any]]

LEVEL = 0.9
"""Of the intervals of differences between groups."""

CHECKS = tuple(dict.fromkeys(threshold.check for threshold in THRESHOLDS.values()))


def comparison_content(
    runs: Sequence[Run],
    *,
    groups: Mapping[str, str],
    positions: Sequence[int],
    matched: Matching,
) -> dict[str, Any]:
    """Groups of runs, their numbers with intervals over seeds, and what became of the first group's findings.

    Parameters
    ----------
    runs : sequence of mapping
        From :func:`covshift.reporting.content.run_content`.
    groups : mapping of str to str
        Group of every run, by the run's name.
    positions : sequence of int
        Where each of ``runs`` stands among all runs of the report.
    matched : Matching
        From :func:`covshift.analysis.matching.matched_layers`.

    Returns
    -------
    dict
        ``groups``: ``name``, ``seeds``, positions of the ``runs``, and whether the layers of the first of them were
        matched ``by_depth``; ``rows``: ``name``, ``kind`` (how to print it) and per group the mean of its ``values``,
        the ``low``est and the ``high``est of them, None where unknown, and under ``effects`` its ``difference`` to the
        first group with the ``low`` and ``high`` end of Welch's 90 % interval, None where either side has fewer than
        two values; rows without any value left out; ``sentence``: how many runs are well; ``findings``: a row a check
        and group, against the first group; ``matching``: how layers were paired, in words.
    """
    named = list(dict.fromkeys(groups[run["name"]] for run in runs))
    members = {name: [run for run in runs if groups[run["name"]] == name] for name in named}
    places = {run["name"]: position for run, position in zip(runs, positions, strict=True)}
    found = [*_logged(runs), *_verdicts(runs), *_units(runs), *_gradients(runs)]
    found.append(("wall time", "duration", [run["facts"]["wall_seconds"] for run in runs]))
    kept = [row for row in found if any(value is not None for value in row[2])]
    return {
        "groups": [
            {
                "name": name,
                "seeds": len(of_group),
                "runs": [places[run["name"]] for run in of_group],
                "by_depth": of_group[0]["name"] in matched.by_depth,
            }
            for name, of_group in members.items()
        ],
        "rows": _rows(kept, {name: [at for at, run in enumerate(runs) if run in members[name]] for name in named}),
        "findings": [
            change
            for name in named[1:]
            for change in _changes(members[named[0]], members[name], group=name, names=matched.names)
        ],
        "matching": matched.note,
        "sentence": _sentence(runs),
    }


def _sentence(runs: Sequence[Run]) -> str:
    """How many runs are unhealthy, to watch, healthy."""
    words = {"bad": "unhealthy", "watch": "to watch", "ok": "healthy", "not measured": "not judged"}
    found = {said: [run["name"] for run in runs if run["verdict"] == verdict] for verdict, said in words.items()}
    parts = [
        f"{len(names)} {said}{_named(names) if said == 'unhealthy' else ''}" for said, names in found.items() if names
    ]
    return f"Of {plural(len(runs), 'run')}: {', '.join(parts)}."


def _named(names: Sequence[str]) -> str:
    return f" ({', '.join(names)})"


def _rows(found: Sequence[Row], members: Mapping[str, Sequence[int]]) -> list[dict[str, Any]]:
    """Mean, least and greatest of each group; ``members`` are positions in the values of a row."""
    rows = []
    for name, kind, values in found:
        known = [[values[at] for at in of_group if values[at] is not None] for of_group in members.values()]
        ends = {
            part: [summary(group) if group else None for group in known]
            for part, summary in (("values", fmean), ("low", min), ("high", max))
        }
        effects = [None, *(_effect(known[0], group) for group in known[1:])]
        rows.append({"name": name, "kind": kind} | ends | {"effects": effects})
    return rows


def _effect(before: Sequence[float], here: Sequence[float]) -> dict[str, float] | None:
    """Difference of two groups' means with its interval."""
    if min(len(before), len(here)) < 2:
        return None
    sides = [np.array(side, dtype=np.float64) for side in (before, here)]
    difference, low, high = (float(part) for part in welch(sides[0], sides[1], LEVEL))
    return {"difference": difference, "low": low, "high": high}


def _changes(
    before: Sequence[Run], here: Sequence[Run], *, group: str, names: Mapping[str, Mapping[str, str]]
) -> Iterator[dict[str, Any]]:
    """A row for each check that flags other layers here than before."""
    for check in CHECKS:
        old, new = _flagged(before, check, names), _flagged(here, check, names)
        gone, come = [layer for layer in old if layer not in new], [layer for layer in new if layer not in old]
        if gone or come:
            change = "appears" if not old else "vanishes" if not new else "moves"
            sizes = {"before": len(old), "here": len(new)}
            yield {"check": check, "group": group, "change": change, **sizes, "gone": gone, "new": come}


def _flagged(runs: Sequence[Run], check: str, names: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Layers, by the name they are compared under, that ``check`` calls watch or bad in more than half of ``runs``."""
    counts: Counter[str] = Counter()
    for run in runs:
        found = [f["layer"] for f in run["findings"] if f["check"] == check and f["verdict"] in ("watch", "bad")]
        counts.update(list(dict.fromkeys(_compared_as(layer, names[run["name"]]) for layer in found)))
    return [layer for layer, count in counts.items() if 2 * count > len(runs)]


def _compared_as(found: str, names: Mapping[str, str]) -> str:
    """What a layer, or a parameter of one, is called where runs are compared."""
    owner, _, parameter = found.rpartition(".")
    return names.get(found) or (f"{names[owner]}.{parameter}" if owner in names else found)


def _by_name(run: Run, section: str, value: str) -> dict[str, Any]:
    return {entry["name"]: entry[value] for entry in run[section]}


def _kind(name: str, values: Sequence[Any]) -> str:
    """How to print a logged number: an accuracy in per cent, others to three digits."""
    known = [value for value in values if value is not None]
    return "accuracy" if "accuracy" in name and all(0 <= value <= 1 for value in known) else "amount3"


def _logged(runs: Sequence[Run]) -> Iterator[Row]:
    tables = [_by_name(run, "logged", "last") for run in runs]
    names = {name for table in tables for name in table}
    for name in sorted(names, key=_importance):
        values = [table.get(name) for table in tables]
        yield f"{name.replace('_', ' ')}, last logged", _kind(name, values), values


def _importance(name: str) -> tuple[int, str]:
    """Order of logged numbers: how well the run does on data it has not seen, then accuracies, losses, the rest."""
    unseen = any(word in name for word in ("test", "val"))
    ranks = (unseen and "accuracy" in name, unseen and "loss" in name, "accuracy" in name, "loss" in name, True)
    return ranks.index(True), name


def _verdicts(runs: Sequence[Run]) -> Iterator[Row]:
    for verdict in ("bad", "watch"):
        yield f"layers whose worst check is {verdict}", "count", [run["layers_by_verdict"][verdict] for run in runs]


def _units(runs: Sequence[Run]) -> Iterator[Row]:
    words = {"units": "units of nonlinearities", "dead": "dead units", "silent": "silent units, short of evidence"}
    for name, said in words.items():
        yield said, "count", [None if run["units"] is None else run["units"][name] for run in runs]
    members = {
        "one_member_silent": "linked units with a silent member",
        "all_members_silent": "linked units, all members silent",
    }
    for name, said in members.items():
        yield said, "count", [_total(run["linkage"], name) for run in runs]


def _gradients(runs: Sequence[Run]) -> Iterator[Row]:
    rates = {"gradient_zero_rate": "gradient zeros", "structural_rate": "structural zeros"}
    for name, said in rates.items():
        yield f"{said} at z, median nonlinearity", "share", [_median(run["linkage"], name) for run in runs]
    for name, said, kind in (
        ("slope", "gradient slope over layers of one kind at the last record, decades per layer", "amount"),
        ("total_decades", "the same over the whole depth, all-zero layers left out", "amount"),
        ("vanished", "layers of that kind with an all-zero gradient at the last record", "count"),
    ):
        yield said, kind, [None if run["depth"] is None else run["depth"][name] for run in runs]


def _total(entries: Sequence[Mapping[str, Any]], name: str) -> int | None:
    known = [entry[name] for entry in entries if entry[name] is not None]
    return sum(known) if known else None


def _median(entries: Sequence[Mapping[str, Any]], name: str) -> float | None:
    known = [entry[name] for entry in entries if entry[name] is not None]
    return median(known) if known else None
