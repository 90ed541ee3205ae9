"""Runs side by side: one row a number, one column a run, from the runs' own content and nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import Any

Run = Mapping[str, Any]
Row = tuple[str, str, list[Any]]


def comparison_content(runs: Sequence[Run]) -> dict[str, Any]:
    """Names of the runs, and rows of ``name``, ``kind`` (how to print it) and ``values`` in the order of the runs.

    Parameters
    ----------
    runs : sequence of mapping
        From :func:`covshift.reporting.content.run_content`.

    Returns
    -------
    dict
        ``runs`` and ``rows``. A value is None where a run has none; a row without any value is left out.
    """
    found = [*_logged(runs), *_verdicts(runs), *_units(runs), *_gradients(runs)]
    found.append(("wall time", "duration", [run["facts"]["wall_seconds"] for run in runs]))
    return {
        "runs": [run["name"] for run in runs],
        "rows": [
            {"name": name, "kind": kind, "values": values}
            for name, kind, values in found
            if any(value is not None for value in values)
        ],
    }


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
        ("slope", "gradient slope, decades per layer", "amount"),
        ("total_decades", "gradient over depth, decades in all", "amount"),
        ("vanished", "layers with an all-zero gradient", "count"),
    ):
        yield said, kind, [None if run["depth"] is None else run["depth"][name] for run in runs]


def _total(entries: Sequence[Mapping[str, Any]], name: str) -> int | None:
    known = [entry[name] for entry in entries if entry[name] is not None]
    return sum(known) if known else None


def _median(entries: Sequence[Mapping[str, Any]], name: str) -> float | None:
    known = [entry[name] for entry in entries if entry[name] is not None]
    return median(known) if known else None
