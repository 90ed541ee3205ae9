"""Figures of the results page: accuracy over steps, and silent units over depth, of every variant."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from common.summaries import Summaries
from common.tables import silent_layers
from common.variants import BASES, VARIANTS, Kind
from covshift.plots import style

_SIZE = 9, 4.5

CHANCE = 0.1
"""Accuracy of guessing one of ten classes."""


@dataclass(frozen=True)
class _Curve:
    title: str
    color: str
    marker: str
    size: float
    filled: bool


_KINDS: dict[Kind, _Curve] = {
    "single": _Curve("single", style.RUN_COLORS[0], "o", 2.5, True),
    "wide": _Curve("sqrt(2) wide", style.RUN_COLORS[1], "s", 7, False),
    "linked": _Curve("linked", style.RUN_COLORS[2], "^", 5, True),
    "batch-norm": _Curve("BN", style.RUN_COLORS[3], "D", 9, False),
}
"""Marks differ in size and fill, so that of curves that agree each is seen."""


def draw(summaries: Summaries, folder: Path) -> list[str]:
    """Write the figures of every setting of the depth experiment; returns their names."""
    names = []
    for name, runs in summaries.where("depth").settings():
        slug = "-".join(name.replace(",", "").split())
        for kind, figure in (("accuracy", _accuracies(runs, name)), ("silent", _silences(runs, name))):
            names.append(f"depth-{kind}-{slug}.svg")
            _save(figure, folder / names[-1])
    return names


def _accuracies(runs: Summaries, name: str) -> Figure:
    """A panel for each base: median and range over seeds of its single, wide, linked and normalised nets."""
    by_base: dict[str, list[Summaries]] = {}
    for group in runs.groups():
        by_base.setdefault(VARIANTS[group.first["variant"]].base, []).append(group)
    with style.context():
        figure = Figure((max(_SIZE[0] * len(by_base) / len(BASES), 5), _SIZE[1]), layout="constrained")
        panels = figure.subplots(1, len(by_base), sharey=True, squeeze=False)[0]
        for axes, (base, groups) in zip(panels, by_base.items(), strict=True):
            axes.axhline(CHANCE, color=style.look().muted, linestyle=":", linewidth=1, label="chance")
            for group in groups:
                _curve(axes, group)
            axes.set(xlabel="step", title=BASES[base])
            axes.margins(x=0.06)
        panels[0].set_ylabel(f"test accuracy, {_over_seeds(runs, what='median and range')}")
        entries = {
            text: handle for axes in panels for handle, text in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        figure.legend(entries.values(), entries, loc="outside lower center", ncols=len(entries))
        figure.suptitle(name)
    return figure


def _curve(axes: Axes, group: Summaries) -> None:
    look = _KINDS[VARIANTS[group.first["variant"]].kind]
    steps = group.first["curve"]["step"]
    values = np.array([run["curve"]["test_accuracy"][: len(steps)] for run in group], dtype=np.float64)
    axes.fill_between(steps, values.min(axis=0), values.max(axis=0), color=look.color, alpha=0.15, linewidth=0)
    axes.plot(
        steps,
        np.median(values, axis=0),
        color=look.color,
        marker=look.marker,
        markersize=look.size,
        markerfacecolor=look.color if look.filled else "none",
        markevery=max(len(steps) // 10, 1),
        label=look.title,
    )


def _silences(runs: Summaries, name: str) -> Figure:
    groups = [group for group in runs.groups() if group.first["units"]]
    shares = [silent_layers(group) for group in groups]
    deepest = max(len(row) for row in shares)
    filled = np.array([row + [np.nan] * (deepest - len(row)) for row in shares])
    with style.context():
        figure = Figure(_SIZE, layout="constrained")
        axes = figure.add_subplot()
        image = axes.imshow(filled, aspect="auto", vmin=0, vmax=1, cmap="magma_r", interpolation="nearest")
        axes.set_yticks(range(len(groups)), [group.first["title"] for group in groups])
        axes.set(xlabel="layer", title=name)
        figure.colorbar(image, ax=axes, label=f"silent share of units, {_over_seeds(runs)}")
    return figure


def _over_seeds(runs: Summaries, *, what: str = "median") -> str:
    """How many seeds numbers are over; one seed is named, as there is nothing over it."""
    counts = [len(group) for group in runs.groups()]
    fewest, most = min(counts), max(counts)
    if most == 1:
        seeds = sorted({run["seed"] for run in runs})
        return f"seed {seeds[0]}" if len(seeds) == 1 else "one seed each"
    return f"{what} over {most if fewest == most else f'{fewest} to {most}'} seeds"


def _save(figure: Figure, path: Path) -> None:
    # A fixed salt and no date: the same summaries give the same bytes.
    with matplotlib.rc_context({"svg.hashsalt": "covshift"}):
        figure.savefig(path, metadata={"Date": None})
