"""All summaries of a folder, and choosing among them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from common.files import read_json
from common.jobs import SUMMARY
from common.plan import decisive
from common.variants import VARIANTS

Summary = dict[str, Any]
Value = TypeVar("Value")

LEFT_CHANCE = 0.15
"""Test accuracy from which on a run has left chance, 0.1 on ten classes."""


@dataclass(frozen=True)
class Summaries:
    """Summaries of runs, by experiment and setting, variants in the paper's order."""

    runs: tuple[Summary, ...]

    @classmethod
    def of(cls, folder: Path) -> Summaries:
        """Those of all runs under a folder; each knows its ``name``."""
        found = []
        for path in sorted(folder.glob(f"*/{SUMMARY}")):
            summary = read_json(path)
            if summary is not None:
                found.append(summary | {"name": path.parent.name})
        return cls(tuple(sorted(found, key=_place)))

    def where(self, experiment: str | None = None, variant: str | None = None, **condition: Any) -> Summaries:
        """Those of an experiment, of a variant, under a condition."""

        def fits(run: Summary) -> bool:
            return (
                experiment in (None, run["experiment"])
                and variant in (None, run["variant"])
                and all(run["condition"].get(name) == value for name, value in condition.items())
            )

        return Summaries(tuple(run for run in self.runs if fits(run)))

    def __iter__(self) -> Iterator[Summary]:
        return iter(self.runs)

    def __len__(self) -> int:
        return len(self.runs)

    @property
    def names(self) -> list[str]:
        """Names of the runs."""
        return [run["name"] for run in self.runs]

    def values(self, number: Callable[[Summary], float]) -> list[float]:
        """A number of each run."""
        return [number(run) for run in self.runs]

    def groups(self) -> list[Summaries]:
        """Runs that differ in nothing but the seed, in the order of their first run; each seed once.

        Of two presets that ran the same variant under the same condition each makes a group of its own.
        """
        found: dict[str, list[Summary]] = {}
        for run in self.runs:
            found.setdefault(run["name"].rsplit("_seed-", 1)[0], []).append(run)
        return [Summaries(tuple(runs)) for runs in found.values()]

    def same_plans(self) -> None:
        """Make sure that runs which differ in the seed alone were made by one plan.

        Raises
        ------
        ValueError
            If not: runs of an older plan were left where newer ones were added.
        """
        for group in self.groups():
            if len({json.dumps(decisive(run["plan"]), sort_keys=True) for run in group}) > 1:
                steps = ", ".join(f"{run['name']}: {run['plan'].get('steps')} steps" for run in group)
                raise ValueError(f"runs of one group were made by different plans ({steps}); remove the older ones")

    @property
    def setting(self) -> str:
        """Preset and condition that the runs of a group share, in words."""
        return _in_words(self.first["preset"], self.first["condition"])

    def settings(self) -> list[tuple[str, Summaries]]:
        """Runs of each setting with its name, all variants and seeds together."""
        found: dict[str, list[Summary]] = {}
        for group in self.groups():
            found.setdefault(group.setting, []).extend(group)
        return [(name, Summaries(tuple(runs))) for name, runs in found.items()]

    def along(self, axis: str) -> list[tuple[str, Summaries]]:
        """Where a setting varies: runs that differ in it, variant and seed alone, by the name of what they share."""
        found: dict[str, list[Summary]] = {}
        for run in self.runs:
            rest = {name: value for name, value in run["condition"].items() if name != axis}
            found.setdefault(_in_words(run["preset"], rest), []).append(run)
        varied = {name: runs for name, runs in found.items() if len({run["condition"][axis] for run in runs}) > 1}
        return [(name, Summaries(tuple(runs))) for name, runs in varied.items()]

    @property
    def first(self) -> Summary:
        """The first run, for what all runs of a group share."""
        return self.runs[0]

    def beside(self, variant: str) -> Callable[[Summaries], Summaries]:
        """From a group to the runs of another variant that share everything else with it."""

        def partner(group: Summaries) -> Summaries:
            one = group.first
            chosen = self.where(one["experiment"], variant, **one["condition"])
            return Summaries(tuple(run for run in chosen if run["preset"] == one["preset"]))

        return partner


def _in_words(preset: str, condition: dict[str, Any]) -> str:
    return ", ".join([f"preset {preset}", *(f"{name} {value}" for name, value in condition.items())])


def _place(run: Summary) -> tuple[Any, ...]:
    order = list(VARIANTS)
    variant = order.index(run["variant"]) if run["variant"] in order else len(order)
    return run["experiment"], run["preset"], [str(value) for value in run["condition"].values()], variant, run["seed"]


def paired(ours: Summaries, theirs: Summaries, number: Callable[[Summary], float]) -> tuple[list[float], list[float]]:
    """A number of the runs of two groups, seed by seed, of the seeds that both have."""
    mine, other = ({run["seed"]: number(run) for run in group} for group in (ours, theirs))
    seeds = sorted(set(mine) & set(other))
    return [mine[seed] for seed in seeds], [other[seed] for seed in seeds]


def accuracy(run: Summary) -> float:
    """Test accuracy at the end of a run."""
    return float(run["test_accuracy"])


def best(run: Summary) -> float:
    """The largest test accuracy of all evaluations: what the paper reports of a run."""
    return float(run["evaluations"]["best"])


def left_chance(run: Summary) -> bool:
    """Whether any evaluation found more than chance."""
    return best(run) >= LEFT_CHANCE


def middle(run: Summary) -> float:
    """The median test accuracy of all evaluations."""
    return float(run["evaluations"]["median"])


def unique(values: Iterable[Value]) -> list[Value]:
    """Each value once, in order."""
    return list(dict.fromkeys(values))
