"""The paper's six claims, each judged by an effect, its interval over seeds and a criterion fixed before the runs.

An effect is ``supported`` or ``refuted`` where its whole interval lies on one side of the criterion, ``undetermined``
where it does not or where fewer than three seeds were run. Where no more were asked for, it is an ``illustration``,
which decides nothing. A claim is refuted by one refuted effect, supported where all that decide are supported, and
``not run`` where there is no effect. Criteria are ours: the paper states none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from common.intervals import FEWEST_SEEDS, Interval, mean_interval, ratio_interval
from common.summaries import LEFT_CHANCE, Summaries, Summary, accuracy, best, left_chance, paired
from common.variants import BASES, VARIANTS

Word = Literal["supported", "refuted", "undetermined", "illustration", "not run"]

ACCURACY_MARGIN = 0.01
"""C6: linked may be worse than its control by this much and still be competitive."""

STANDARDISATION_MARGIN = 0.02
"""C5: largest loss of accuracy for want of standardisation that counts as none."""

HALF = 1.8
"""C4: "about half the time" is a ratio of at least this."""

STABLE_SHARE = 0.9, 0.5
"""C3: share of layers at a stable operating point from which on shift is solved, and below which it is not."""

DEATHS = ("gradient arrives", "scale over depth")
"""C2: checks of ``covshift.diagnose`` whose verdict "bad" is a gradient that died, exactly or in size."""


@dataclass(frozen=True)
class Effect:
    """One comparison: what was measured, its number and interval, the verdict, and the runs behind it."""

    what: str
    number: Interval
    word: Word
    detail: str
    runs: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The effect as JSON types."""
        interval = None if not self.number.known else [self.number.low, self.number.high]
        number = {"value": self.number.value, "interval": interval, "seeds": self.number.runs}
        return {"what": self.what, "verdict": self.word, **number, "detail": self.detail, "runs": list(self.runs)}


@dataclass(frozen=True)
class Judgement:
    """A claim's verdict and the effects it follows from."""

    claim: str
    criterion: str
    measure: str
    effects: tuple[Effect, ...]

    @property
    def word(self) -> Word:
        """The verdict on the claim as a whole."""
        if not self.effects:
            return "not run"
        words = {effect.word for effect in self.effects} - {"illustration"}
        if "refuted" in words:
            return "refuted"
        return "supported" if words == {"supported"} else "undetermined"


def at_most(number: Interval, limit: float) -> Word:
    """Whether a number is at most ``limit``, with its whole interval."""
    if not number.known:
        return "undetermined"
    return "supported" if number.high <= limit else "refuted" if number.low > limit else "undetermined"


def at_least(number: Interval, limit: float) -> Word:
    """Whether a number is at least ``limit``, with its whole interval."""
    if not number.known:
        return "undetermined"
    return "supported" if number.low >= limit else "refuted" if number.high < limit else "undetermined"


def dead_units(summaries: Summaries) -> Judgement:
    """C1: units of linked nets that were silent on every watched image at the last evaluation."""
    effects = []
    for group in _linked(summaries.where("depth")):
        single = summaries.beside(VARIANTS[group.first["variant"]].base)(group)
        theirs, ours = paired(single, group, silent_share)
        number = mean_interval([a - b for a, b in zip(theirs, ours, strict=True)])
        counts = [sum(run["units"]["silent"][-1]) for run in group]
        word: Word = "refuted" if any(counts) else "supported"
        detail = f"silent linked units in {len(counts)} runs: {', '.join(map(str, counts))}"
        effects.append(_effect(group, "", number, word, detail, single))
    return Judgement(
        "C1",
        "supported where no linked unit of any run is silent on all watched images at its end (at least "
        f"{FEWEST_SEEDS} seeds), refuted where one is. A base whose output is never exactly zero (SELU, Swish) meets "
        "it without linking.",
        "share of silent units, single minus linked",
        tuple(effects),
    )


def gradient_death(summaries: Summaries) -> Judgement:
    """C2: linked nets without normalisation in which covshift finds that the gradient died."""
    effects = []
    bare = Summaries((*summaries.where("depth"), *summaries.where("no_batchnorm")))
    for group in _linked(bare):
        died = [any(run["diagnosis"]["checks"].get(check, {}).get("bad") for check in DEATHS) for run in group]
        slopes = mean_interval([run["profiles"]["activation_grad"]["slope"][-1] for run in group])
        word: Word = "refuted" if any(died) else "supported"
        detail = f"dead in {sum(died)} of {len(died)} runs; best accuracy {_best(group):.3f}"
        effects.append(_effect(group, "", slopes, word, detail))
    return Judgement(
        "C2",
        'supported where no run has a finding "bad" of the checks gradient arrives and scale over depth (at least '
        f"{FEWEST_SEEDS} seeds), refuted where one has. Accuracy is no part of it.",
        "slope of the gradient's size in the last record, decades a layer (positive: it shrinks towards the input)",
        tuple(effects),
    )


def covariate_shift(summaries: Summaries) -> Judgement:
    """C3: movement of distributions, movement of gradients and rest, linked against plain and against BN."""
    effects = []
    measures: Mapping[str, Callable[[Summary], float]] = {
        "movement of activations": mean_shift,
        "gradient covariate shift over minibatch noise": median_ics,
    }
    for group in _linked(summaries.where("covariate_shift")):
        for other, title in (("relu", "plain"), ("batch-norm", "BN")):
            partner = summaries.beside(other)(group)
            for what, measure in measures.items():
                number = ratio_interval(*paired(group, partner, measure))
                both = [*group, *partner]
                learned = sum(left_chance(run) for run in both)
                word: Word = at_most(number, 1) if learned == len(both) else "undetermined"
                detail = f"{learned} of {len(both)} runs left chance"
                effects.append(_effect(group, f"{what}, over that of {title}", number, word, detail, partner))
        share = mean_interval([stable_share(run) for run in group])
        enough, too_few = at_least(share, STABLE_SHARE[0]), at_most(share, STABLE_SHARE[1])
        word = "supported" if enough == "supported" else "refuted" if too_few == "supported" else "undetermined"
        effects.append(_effect(group, "share of layers at a stable operating point", share, word, ""))
    return Judgement(
        "C3",
        "ratios: supported where the interval lies at or below 1, refuted where above; share of stable layers: "
        f"supported from {STABLE_SHARE[0]}, refuted up to {STABLE_SHARE[1]}. Added after the runs: a ratio is "
        f"undetermined where a run of either side never reaches {LEFT_CHANCE} accuracy, for a net that does not learn "
        "need not move.",
        "geometric mean of ratios over seeds, or mean share",
        tuple(effects),
    )


def training_time(summaries: Summaries) -> Judgement:
    """C4: time of a whole step with Batch Normalization over that of the linked net without."""
    effects = []
    for run in summaries.where("step_time"):
        for ratio in ("LK-ReLU, BN / LK-ReLU", "ReLU, BN / LK-ReLU"):
            found = run["ratios"][ratio]
            number = Interval(found["central"], found["low"], found["high"], 1)
            detail = (
                f"{run['condition']['rounds']} rounds, batch {run['plan']['batch_size']}, {run['machine']['device']}"
            )
            what = f"{run['variant']}: {ratio}"
            effects.append(Effect(what, number, at_least(number, HALF), detail, (run["name"],)))
    return Judgement(
        "C4",
        f"supported where the 90 % interval over paired rounds lies at or above {HALF}, refuted where below. One "
        "machine and one implementation of Batch Normalization: elsewhere the ratio may differ.",
        "time of a step, ratio",
        tuple(effects),
    )


def standardisation(summaries: Summaries) -> Judgement:
    """C5: accuracy that linked nets lose when inputs are not standardised."""
    effects = []
    for group in _linked(summaries.where("input_shift")):
        condition = group.first["condition"]["input"]
        if condition == "standardised":
            continue
        reference = summaries.where("input_shift", group.first["variant"], input="standardised")
        standard, other = paired(reference, group, accuracy)
        number = mean_interval([a - b for a, b in zip(standard, other, strict=True)])
        word = at_most(number, STANDARDISATION_MARGIN)
        effects.append(_effect(group, "", number, word, f"accuracy {_mean(other):.3f}", reference))
    return Judgement(
        "C5",
        f"supported where standardised inputs give at most {STANDARDISATION_MARGIN} more accuracy, with the whole "
        "interval; refuted where more.",
        "test accuracy, standardised minus as named, same seeds",
        tuple(effects),
    )


def competitive_accuracy(summaries: Summaries) -> Judgement:
    """C6: accuracy of linked nets less that of their control: sqrt(2) wide where there is one, else single."""
    effects = []
    for experiment in ("parameter_matched", "width", "allcnn", "resnet"):
        for group in _linked(summaries.where(experiment)):
            base = VARIANTS[group.first["variant"]].base
            control = f"{base}-wide" if experiment == "parameter_matched" else base
            partner = summaries.beside(control)(group)
            ours, theirs = paired(group, partner, accuracy)
            number = mean_interval([a - b for a, b in zip(ours, theirs, strict=True)])
            both = [*group, *partner]
            learned = sum(left_chance(run) for run in both)
            detail = f"{_mean(ours):.3f} against {_mean(theirs):.3f} of {VARIANTS[control].title}; " if ours else ""
            detail += f"{learned} of {len(both)} runs left chance"
            word = at_least(number, -ACCURACY_MARGIN) if learned else "undetermined"
            effects.append(_effect(group, experiment, number, word, detail, partner))
    return Judgement(
        "C6",
        f"supported where linked is worse than its control by at most {ACCURACY_MARGIN}, with the whole interval; "
        "refuted where worse. The control is sqrt(2) wide in table E, where it has as many parameters, and single "
        f"elsewhere. Added after the runs: undetermined where no run of either side reaches {LEFT_CHANCE}, for nets "
        "that have not begun to learn are equals.",
        "test accuracy, linked minus control, same seeds",
        tuple(effects),
    )


JUDGES: Mapping[str, Callable[[Summaries], Judgement]] = {
    "C1": dead_units,
    "C2": gradient_death,
    "C3": covariate_shift,
    "C4": training_time,
    "C5": standardisation,
    "C6": competitive_accuracy,
}


def silent_share(run: Summary) -> float:
    """Share of a run's units that were silent on all watched images at its end."""
    return sum(run["units"]["silent"][-1]) / sum(run["units"]["units"])


def mean_shift(run: Summary) -> float:
    """Mean equivalent shift between evaluations, over layers and evaluations, in sd."""
    return _middle(run["shift"]["equivalent_shift"], np.nanmean)


def median_ics(run: Summary) -> float:
    """Median gradient covariate shift over noise, over layers but the first (0 by definition) and evaluations."""
    return _middle([moment["ics_to_noise"][1:] for moment in run["measured"]], np.nanmedian)


def stable_share(run: Summary) -> float:
    """Share of layers at a stable operating point."""
    states = run["operating_points"]
    return float(states.get("STABLE", 0) / sum(states.values()))


def forward_fate(run: Summary) -> str:
    """What becomes of the signal on its way through the net in the first record: vanishing, exploding or carried."""
    sizes = run["profiles"]["activation"]["rms"][0]
    first, last = sizes[0], sizes[-1]
    if first is None or last is None or "bad" in run["diagnosis"]["checks"].get("non-finite", {}):
        return "not finite"
    factor = last / first if first else 0.0
    return "vanishing" if factor < 0.01 else "exploding" if factor > 100 else "carried"


def _middle(rows: list[list[float | None]], summary: Callable[..., np.floating[Any]]) -> float:
    values = np.array([[math.nan if value is None else value for value in row] for row in rows], dtype=np.float64)
    return float(summary(values)) if np.isfinite(values).any() else math.nan


def _linked(summaries: Summaries) -> list[Summaries]:
    """Groups of linked variants, in the order of the bases."""
    order = [f"linked-{base}" for base in BASES]
    groups = [group for group in summaries.groups() if group.first["variant"] in order]
    return sorted(groups, key=lambda group: order.index(group.first["variant"]))


def _effect(
    group: Summaries, what: str, number: Interval, word: Word, detail: str, other: Summaries | None = None
) -> Effect:
    one = group.first
    condition = ", ".join(f"{name} {value}" for name, value in one["condition"].items())
    parts = [one["title"], condition, one["preset"] if one["preset"] != "cpu" else "", what]
    names = (*group.names, *(other.names if other is not None else ()))
    if len(group) < FEWEST_SEEDS:
        word = "illustration" if one["plan"]["seeds"] < FEWEST_SEEDS else "undetermined"
    return Effect(": ".join(part for part in parts if part), number, word, detail, names)


def _mean(values: list[float]) -> float:
    return float(np.mean(values)) if values else math.nan


def _best(group: Summaries) -> float:
    return max(group.values(best))
