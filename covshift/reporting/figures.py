"""The overview figures of a report: drawn through the table of figures, and handed over as inline SVG with words."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import xarray as xr

from covshift.analysis.effects import effect_sizes
from covshift.analysis.seeds import over_seeds
from covshift.exceptions import SignalNotRecorded
from covshift.plots import style
from covshift.plots.asking import Subject
from covshift.plots.registry import FIGURES, Drawn
from covshift.reporting.results import Results
from covshift.reporting.svg import inline_svg

MOST_FIGURES = 12
"""Figures on a page: those of one run and two to spare; the more runs, the more is left to what compares them."""

SECTIONS: Mapping[str, tuple[str, str]] = {
    "shift": (
        "shift",
        "Distance (W1) of every layer's activations from the previous histogram, in standard deviations: the further "
        "a colour is from the page's, the further it moved; grey is what sampling alone shows.",
    ),
    "zeros": (
        "gradient",
        "Share of gradient elements that are exactly zero, at the input z of nonlinearities where that is known, with "
        "structural zeros (no derivative there) apart; beside it the share of units that fire in the training batches.",
    ),
    "norm": (
        "gradient",
        "Size of the gradient over depth. A straight slanted line means that every layer shrinks or amplifies it by "
        "the same factor.",
    ),
    "dead-units": (
        "units",
        "Units by what became of them in the training batches, at every record; hatched where too few examples were "
        "seen to tell. Diamonds count the units that are silent on every example of an evaluation pass; findings and "
        "table rest on the last pass where it is recent, else on the training batches.",
    ),
    "update-ratio": (
        "parameters",
        "Length of each update relative to the weights it moves; the band is that of the check.",
    ),
    "stability": (
        "operating",
        "Drift of every layer's operating point over the last window with its 90 % interval, against the margin of the "
        "test.",
    ),
    "operating-point": (
        "operating",
        "Path of the mean of z, with its standard deviation, over the derivative of the nonlinearity that reads it; "
        "shaded where the derivative is below a tenth of its largest.",
    ),
    "river": (
        "shift",
        "Distribution of one layer over the steps: the further a colour is from the page's, the more elements; lines "
        "at the 1, 25, 50, 75 and 99 % quantiles and at zero.",
    ),
    "ridgeline": (
        "shift",
        "Distributions of the layers on one axis, at the first and the last histogram; a spike at zero is an atom.",
    ),
    "ics": ("gradient", "Change of each layer's gradient when what lies below it changes, against minibatch noise."),
}
"""Figures of one run by name, the first needed most: the section each belongs to, and how to read it."""

COMPARED = (
    "Each layer is a row, each run or group of seeds a mark, with the 90 % interval of its mean where there are seeds; "
    "the line joins the lowest and the highest. Medians over the last window of each run."
)

EFFECTS = (
    "Below, what each group has more or less than the first, with Welch's 90 % interval over seeds: filled where that "
    "leaves 0 out, as some 6 to 10 in a hundred do where nothing differs."
)

APART = (
    "Difference of the means over seeds at every step of the first run, layer by layer, on one scale a measure: orange "
    "above the first group, blue below it, grey where the 90 % interval (Welch) covers 0. An interval is that of one "
    "cell: where nothing differs, up to one cell in ten or so is coloured all the same."
)
APART_BY_ONE_SEED = (
    "Difference at every step of the first run, layer by layer, on one scale a measure: orange above the first group, "
    "blue below it. Where either group is a single run there is no interval: another seed may look otherwise."
)


@dataclass(frozen=True)
class Picture:
    """A figure of the page: markup, and how to read it."""

    svg: str
    caption: str


def pictures_of_runs(
    names: Sequence[str], results: Mapping[str, Results], *, most: int
) -> list[dict[str, list[Picture]]]:
    """Pictures of every run by section, one mapping a run, ``most`` in all: the more runs, the fewer each has."""
    share = most // max(len(results), 1)
    return [
        _of_run(results[name], prefix=f"run-{at}", most=share) if name in results else {}
        for at, name in enumerate(names)
    ]


def _of_run(result: Results, *, prefix: str, most: int) -> dict[str, list[Picture]]:
    sections: dict[str, list[Picture]] = {section: [] for section, _ in SECTIONS.values()}
    count = 0
    for name, (section, caption) in SECTIONS.items():
        if count == most:
            break
        try:
            picture = _picture(lambda name=name: drawn(name, result), prefix=f"{prefix}-{name}", caption=caption)  # type: ignore[misc]
        except SignalNotRecorded:
            continue
        sections[section].append(picture)
        count += 1
    return sections


def drawn(name: str, result: Results) -> Drawn:
    """A figure of one run by name, from answers that are there already where it is long in asking."""
    if name == "stability" and result.stability is not None:
        return FIGURES[name].plot(result.stability)
    if name != "shift" or result.shift is None:
        return FIGURES[name](result.recording, diagnosis=result.diagnosis)
    subject = Subject.of(result.recording, diagnosis=result.diagnosis)
    return FIGURES[name].plot(result.shift, findings=subject.findings("shift"))


def comparison_pictures(paired: xr.Dataset, groups: Mapping[str, str]) -> list[Picture]:
    """Layers of all runs in pairs; seeds of one group together.

    Parameters
    ----------
    paired : Dataset
        As :func:`covshift.analysis.comparison.paired_layers` gives it.
    groups : mapping of str to str
        Group of every run.
    """
    draw = FIGURES["comparison"].plot
    named = list(dict.fromkeys(groups[str(run)] for run in paired["run"].values))
    seeded = 1 < len(named) < paired.sizes["run"]
    apart = effect_sizes(paired, groups) if seeded else None
    caption = f"{COMPARED} {EFFECTS}" if seeded else COMPARED
    return [_picture(lambda: draw(over_seeds(paired, groups), effects=apart), prefix="comparison", caption=caption)]


def difference_pictures(differences: xr.Dataset) -> list[Picture]:
    """Groups of runs against the first of them.

    Parameters
    ----------
    differences : Dataset
        From :func:`covshift.analysis.differences.group_differences`.
    """
    draw = FIGURES["differences"].plot
    single = min(int(differences.attrs["reference_seeds"]), int(differences["seeds"].min())) == 1
    caption = APART_BY_ONE_SEED if single else APART
    return [_picture(lambda: draw(differences), prefix="differences", caption=caption)]


def _picture(draw: Callable[[], Drawn], *, prefix: str, caption: str) -> Picture:
    with style.detached():
        figure = style.root(draw())
    label = ". ".join(" ".join(text.split()) for text in (*style.titles_of(figure), caption) if text)
    return Picture(inline_svg(figure, prefix=prefix, label=label), caption)
