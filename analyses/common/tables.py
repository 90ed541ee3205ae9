"""Tables in the paper's shape, ours beside the published numbers; a cell without runs says ``not run``."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from common import published
from common.intervals import Interval, prediction_interval
from common.measures import median_upstream
from common.summaries import LEFT_CHANCE, Summaries, Summary, accuracy, best, middle, unique
from common.variants import BASES, VARIANTS

NOT_RUN = "not run"
Columns = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class PaperTable:
    """A table of the paper: its letter, the experiment that repeats it, under which condition, and its numbers."""

    letter: str
    title: str
    experiment: str
    condition: Mapping[str, Any]
    columns: Columns


def paper_tables() -> list[PaperTable]:
    """All tables of accuracies, in the paper's order."""
    depth = {"paper, max": published.DEPTH_MAX, "paper, median": published.DEPTH_MEDIAN}
    found = [
        PaperTable("W", f"one convolution of {width} units", "width", {"width": width}, {"paper": numbers})
        for width, numbers in published.WIDTH.items()
    ]
    found.append(PaperTable("D", "fifty convolutions of four units", "depth", {"depth": 50}, depth))
    found.append(PaperTable("E", "extended CNN", "parameter_matched", {}, {"paper": published.EXTENDED}))
    found.append(PaperTable("A", "All-CNN", "allcnn", {}, {"paper": published.ALL_CNN}))
    found.append(PaperTable("R", "ResNet-50 with Batch Normalization", "resnet", {}, {"paper": published.RESNET}))
    for norm, numbers in published.NO_BATCH_NORM.items():
        columns = {
            "paper": {variant: pair[0] for variant, pair in numbers.items()},
            "paper, time": {variant: pair[1] for variant, pair in numbers.items()},
        }
        title = f"ResNet-50, normalisation: {norm}"
        experiment = "resnet" if norm == "batch-norm" else "no_batchnorm"
        found.append(PaperTable("N", title, experiment, {}, columns))
    return found


def markdown(headings: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: bool = True) -> str:
    """A table whose first column is text and whose others are numbers, or text as well."""
    lines = [headings, ["---", *["---:" if numbers else "---"] * (len(headings) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def accuracy_tables(table: PaperTable, summaries: Summaries) -> str:
    """A table of the paper, once for every preset and condition it was run under; without runs if there are none."""
    chosen = summaries.where(table.experiment, **table.condition).settings() or [(NOT_RUN, Summaries(()))]
    return "\n".join(_accuracy_table(table, name, runs) for name, runs in chosen)


def _accuracy_table(table: PaperTable, name: str, runs: Summaries) -> str:
    variants = [v for v in VARIANTS if any(v in numbers for numbers in table.columns.values()) or runs.where(variant=v)]
    headings = [
        "", *table.columns, "best of a run: max", "median", "median of a run: median", "last: median", "range",
        "95 % of further runs", "parameters", "seeds", "steps",
    ]  # fmt: skip
    rows = []
    for variant in variants:
        paper = [_number(numbers.get(variant), 4) for numbers in table.columns.values()]
        rows.append([VARIANTS[variant].title, *paper, *_ours(runs.where(variant=variant))])
    ratios = _parameter_ratios(runs)
    return f"### Table {table.letter}: {table.title} ({name})\n\n{markdown(headings, rows)}\n{ratios}"


def _ours(group: Summaries) -> list[str]:
    if not len(group):
        return [NOT_RUN, *[""] * 8]
    bests, last = group.values(best), group.values(accuracy)
    steps = sorted({run["steps"] for run in group})
    return [
        _number(max(bests), 4),
        _number(statistics.median(bests), 4),
        _number(statistics.median(group.values(middle)), 4),
        _number(statistics.median(last), 4),
        f"{min(last):.4f} to {max(last):.4f}",
        "all equal" if len(last) > 1 and min(last) == max(last) else span(prediction_interval(last), 3),
        f"{group.first['parameters']:,}",
        str(len(group)),
        " to ".join(f"{step:,}" for step in dict.fromkeys((steps[0], steps[-1]))),
    ]


def _parameter_ratios(runs: Summaries) -> str:
    """Parameters of the sqrt(2) wide nets over those of the linked ones, where both were run."""
    found = []
    for base, title in BASES.items():
        wide, linked = (runs.where(variant=name) for name in (f"{base}-wide", f"linked-{base}"))
        if len(wide) and len(linked):
            found.append(f"{title} {wide.first['parameters'] / linked.first['parameters']:.3f}")
    return f"Parameters, sqrt2 over linked: {', '.join(found)}.\n" if found else ""


def unit_table(runs: Summaries) -> str:
    """Units of each layer that were silent on every watched image at the end: medians over seeds, by variant."""
    groups = {group.first["title"]: group for group in runs.groups() if group.first["units"]}
    if not groups:
        return f"{NOT_RUN}\n"
    layers = max((group.first["units"]["layers"] for group in groups.values()), key=len)
    rows = [["units a layer", *(str(group.first["units"]["units"][0]) for group in groups.values())]]
    for index, layer in enumerate(layers):
        rows.append([layer, *(_silent(group, index) for group in groups.values())])
    return markdown(["layer", *groups], rows)


def silent_layers(group: Summaries) -> list[float]:
    """Median over seeds of each layer's silent share at the end."""
    units = group.first["units"]["units"]
    ends = [run["units"]["silent"][-1] for run in group]
    return [statistics.median(end[index] for end in ends) / units[index] for index in range(len(units))]


def _silent(group: Summaries, index: int) -> str:
    ends = [run["units"]["silent"][-1] for run in group]
    return f"{statistics.median(end[index] for end in ends):g}" if index < len(ends[0]) else ""


def dead_summary(runs: Summaries) -> str:
    """One row a variant: silent units in all, and the first layer in which the median run has one."""
    rows = []
    for group in runs.groups():
        units = group.first["units"]
        if not units:
            continue
        totals = [sum(run["units"]["silent"][-1]) for run in group]
        first = next(
            (layer for layer, share in zip(units["layers"], silent_layers(group), strict=True) if share), "none"
        )
        last = sum(share == 1 for share in silent_layers(group))
        rows.append([
            group.first["title"],
            f"{statistics.median(totals):g} of {sum(units['units'])}",
            f"{min(totals)} to {max(totals)}",
            first,
            str(last),
            str(len(group)),
        ])  # fmt: skip
    headings = ["", "silent units: median", "range", "first layer with one", "layers wholly silent", "seeds"]
    return markdown(headings, rows) if rows else f"{NOT_RUN}\n"


def who_learns(runs: Summaries) -> str:
    """One row a variant: how many runs leave chance, at which evaluation first, and what they end at."""
    rows = []
    for group in runs.groups():
        first = [step for run in group if (step := _first_above_chance(run)) is not None]
        steps = sorted({run["steps"] for run in group})
        rows.append([
            group.first["title"],
            f"{len(first)} of {len(group)}",
            " to ".join(f"{step:,}" for step in dict.fromkeys((min(first), max(first)))) if first else "never",
            _number(statistics.median(group.values(accuracy)), 4),
            " to ".join(f"{step:,}" for step in dict.fromkeys((steps[0], steps[-1]))),
        ])  # fmt: skip
    headings = ["", "runs that leave chance", "first above it at step", "last: median", "steps run"]
    return markdown(headings, rows) if rows else f"{NOT_RUN}\n"


def _first_above_chance(run: Summary) -> int | None:
    """Step of the first evaluation of a run's curve that is above chance; None where none is."""
    curve = run["curve"]
    found = zip(curve["step"], curve["test_accuracy"], strict=True)
    return next((step for step, value in found if value >= LEFT_CHANCE), None)


def step_times(summaries: Summaries) -> str:
    """Milliseconds of a step of each arm, and the ratios of pairs."""
    runs = summaries.where("step_time")
    if not len(runs):
        return f"{NOT_RUN}\n"
    arms = list(dict.fromkeys(arm for run in runs for arm in run["arms"]))
    ratios = list(dict.fromkeys(ratio for run in runs for ratio in run["ratios"]))
    times = [
        [_timed(run), *(f"{run['arms'][arm]['ms']:.1f}" if arm in run["arms"] else "" for arm in arms)] for run in runs
    ]
    compared = [[_timed(run), *(_ratio(run["ratios"].get(ratio)) for ratio in ratios)] for run in runs]
    return markdown(["CPU ms a step", *arms], times) + "\n" + markdown(["ratio, 90 %", *ratios], compared)


def _timed(run: Mapping[str, Any]) -> str:
    return f"{run['variant']}, batch {run['plan']['batch_size']}, seed {run['seed']}"


def _ratio(found: Mapping[str, float] | None) -> str:
    return "" if found is None else f"{found['central']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"


def over_axis(runs: Summaries, axis: str) -> str:
    """Accuracy at the end by variant and by the values of one setting."""
    values = list(dict.fromkeys(run["condition"][axis] for run in runs))
    rows = [
        [VARIANTS[variant].title, *(_median_of(runs.where(variant=variant, **{axis: value})) for value in values)]
        for variant in dict.fromkeys(run["variant"] for run in runs)
    ]
    return markdown(["test accuracy, median (range)", *(f"{axis} {value}" for value in values)], rows)


def _median_of(group: Summaries) -> str:
    values = group.values(accuracy)
    if not values:
        return NOT_RUN
    return f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def movement(runs: Summaries) -> str:
    """Share of the layers' movement between evaluations that the layers below made, by variant and depth."""
    depths = unique(run["condition"]["depth"] for run in runs)
    rows = []
    for variant in unique(run["variant"] for run in runs):
        groups = [runs.where(variant=variant, depth=depth).values(median_upstream) for depth in depths]
        cells = [f"{statistics.median(group):.2f} ({min(group):.2f} to {max(group):.2f})" for group in groups]
        rows.append([VARIANTS[variant].title, *cells])
    headings = ["share from below, median (range)", *(f"depth {depth}" for depth in depths)]
    return markdown(headings, rows) + (
        "\nOf the movement of a layer's outputs on the same images between two evaluations, the share that the weights "
        "below it made, the rest being its own; median over layers and evaluations of each run, then over seeds.\n"
    )


def span(number: Interval, digits: int) -> str:
    """Both ends of an interval, or that there is none."""
    return f"[{number.low:.{digits}f}, {number.high:.{digits}f}]" if number.known else "too few runs"


def _number(value: float | None, digits: int) -> str:
    return "" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"
