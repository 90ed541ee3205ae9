"""Figures of the results page: accuracy over steps, and silent units over depth, of every variant."""

from __future__ import annotations

import statistics
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from common.summaries import Summaries
from common.tables import silent_layers
from covshift.plots import palette, style

_SIZE = 9, 4.5


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
    with style.context():
        figure = Figure(_SIZE, layout="constrained")
        axes = figure.add_subplot()
        for index, group in enumerate(runs.groups()):
            steps = group.first["curve"]["step"]
            curves = [run["curve"]["test_accuracy"][: len(steps)] for run in group]
            median = [statistics.median(values) for values in zip(*curves, strict=False)]
            axes.plot(
                steps[: len(median)],
                median,
                color=style.RUN_COLORS[index % len(style.RUN_COLORS)],
                linestyle=("-", "--")[index // len(style.RUN_COLORS) % 2],
                marker=palette.RUN_MARKERS[index % len(palette.RUN_MARKERS)],
                markersize=3,
                label=group.first["title"],
            )
        axes.set(xlabel="step", ylabel=f"test accuracy, {_over_seeds(runs)}", title=name)
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize="small")
    return figure


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


def _over_seeds(runs: Summaries) -> str:
    """How many seeds the medians are over; one seed is named, as there is no median of it."""
    counts = [len(group) for group in runs.groups()]
    fewest, most = min(counts), max(counts)
    if most == 1:
        seeds = sorted({run["seed"] for run in runs})
        return f"seed {seeds[0]}" if len(seeds) == 1 else "one seed each"
    return f"median over {most if fewest == most else f'{fewest} to {most}'} seeds"


def _save(figure: Figure, path: Path) -> None:
    # A fixed salt and no date: the same summaries give the same bytes.
    with matplotlib.rc_context({"svg.hashsalt": "covshift"}):
        figure.savefig(path, metadata={"Date": None})
