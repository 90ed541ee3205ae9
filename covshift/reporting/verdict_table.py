"""Verdicts as a page shows them: the grid, the whole run apart, and findings that say the same said once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from covshift.diagnosis.diagnosis import WHOLE_RUN
from covshift.diagnosis.finding import worst
from covshift.diagnosis.wording import quoted
from covshift.plots.labels import short_names

NAME = 30
"""Most characters of a layer's name in a table: a longer one is shortened, and stands in full in the cell's title."""


def shown_names(names: Iterable[str]) -> dict[str, str]:
    """Each of the layers or parameters of a table as it is shown there.

    Examples
    --------
    >>> shown_names(["encoder.blocks.0.attention.projection", "encoder.blocks.0.attention.projection", "head"])
    {'encoder.blocks.0.attention.projection': 'encoder.blocks…tion.projection', 'head': 'head'}
    """
    distinct = list(dict.fromkeys(names))
    return dict(zip(distinct, short_names(distinct, width=NAME), strict=True))


def verdict_table(run: Mapping[str, Any]) -> dict[str, Any]:
    """Rows and columns of the grid of a run's content.

    Returns
    -------
    dict
        ``whole_run``: pairs of check and verdict that concern the run as a whole; ``checks``: those some layer has;
        ``without``: the others; ``rows``: for each layer ``layer``, ``short`` name, ``number`` among the run's layers
        (None for what is no layer) and ``words``, the worst verdict first and then one a check, "" where none applies.
    """
    grid = run["grid"]
    numbers = {row["layer"]: number for number, row in enumerate(run["layers"])}
    of_run = [words for layer, words in zip(grid["layer"], grid["verdict"], strict=True) if layer == WHOLE_RUN]
    layers = [(layer, words) for layer, words in zip(grid["layer"], grid["verdict"], strict=True) if layer != WHOLE_RUN]
    used = [at for at in range(len(grid["check"])) if any(words[at] for _, words in layers)]
    whole_run = [(check, word) for words in of_run for check, word in zip(grid["check"], words, strict=True) if word]
    named = {grid["check"][at] for at in used} | {check for check, _ in whole_run}
    return {
        "whole_run": whole_run,
        "checks": [grid["check"][at] for at in used],
        "without": [check for check in grid["check"] if check not in named],
        "rows": [
            {
                "layer": layer,
                "short": short,
                "number": numbers.get(layer),
                "words": [worst([word for word in words if word]), *(words[at] for at in used)],
            }
            for (layer, words), short in zip(layers, short_names([name for name, _ in layers], width=NAME), strict=True)
        ],
    }


def runs_by_checks(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The worst verdict of every check in every run, of the layers and of the run as a whole.

    Returns
    -------
    dict
        ``checks``: those some run has; ``words``: for each run the worst verdict of each, "" where it does not apply or
        the run holds no record.
    """
    worsts = []
    for run in runs:
        grid = run["grid"] if run["recorded"] else {"check": [], "verdict": []}
        columns = zip(grid["check"], zip(*grid["verdict"], strict=True), strict=True)
        worsts.append({check: worst(known) for check, words in columns if (known := [word for word in words if word])})
    checks = list(dict.fromkeys(check for found in worsts for check in found))
    return {"checks": checks, "words": [[found.get(check, "") for check in checks] for found in worsts]}


def explained(consequences: Sequence[Mapping[str, Any]]) -> str:
    """What follows from a cause, by check.

    Examples
    --------
    >>> explained([{"check": "gradient zeros", "count": 99}, {"check": "units", "count": 1}])
    'gradient zeros (99), units (1)'
    """
    return ", ".join(f"{one['check']} ({one['count']})" for one in consequences)


def bare_reason(finding: Mapping[str, Any]) -> str:
    """The reason without the layer's name before it, which stands there as a link."""
    reason: str = finding["reason"]
    return reason.removeprefix(f"{quoted(finding['layer'])}: ")


def alike_findings(run: Mapping[str, Any], positions: Sequence[int]) -> list[dict[str, Any]]:
    """Findings at ``positions``, those together that say the same of several layers.

    Returns
    -------
    list of dict
        ``check``, ``verdict``, ``reason`` without a layer's name, and ``layers``, in the order given.
    """
    together: dict[tuple[str, str, str], list[str]] = {}
    for finding in (run["findings"][position] for position in positions):
        key = finding["check"], finding["verdict"], bare_reason(finding)
        together.setdefault(key, []).append(finding["layer"])
    return [
        {"check": check, "verdict": verdict, "reason": reason, "layers": layers}
        for (check, verdict, reason), layers in together.items()
    ]
