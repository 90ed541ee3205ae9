"""The paper's six claims, each judged by effects, their intervals over seeds and a criterion fixed before the runs.

An effect is ``supported`` or ``refuted`` where its whole interval lies on one side of the criterion, ``undetermined``
where it does not, where fewer than three seeds were run or where a run was stopped early. Where no more seeds were
asked for, or the paper says nothing of such a net, it is an ``illustration``, which decides nothing. A claim is refuted
by one refuted effect, supported where all that decide are supported, and ``not run`` where there is no effect. Criteria
are ours: the paper states none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from common.intervals import FEWEST_SEEDS, Interval, mean_interval, ratio_interval
from common.measures import (
    diverged,
    gradient_fate,
    gradient_loss,
    mean_shift,
    median_ics,
    share_in,
    silent_share,
)
from common.summaries import LEFT_CHANCE, Summaries, Summary, accuracy, best, left_chance, paired, unique
from common.variants import BASES, VARIANTS
from covshift.diagnosis.thresholds import THRESHOLDS

Word = Literal["supported", "refuted", "undetermined", "illustration", "not run"]

ACCURACY_MARGIN = 0.01
"""C6: linked may be worse than its control by this much and still be competitive."""

STANDARDISATION_MARGIN = 0.02
"""C5: largest loss of accuracy for want of standardisation that counts as none."""

HALF = 1.8
"""C4: "about half the time" is a ratio of at least this."""

STABLE_SHARE = 0.9, 0.5
"""C3: share of layers at a stable operating point from which on shift is solved, and up to which it is not."""

TIMED = "resnet"
"""C4: the net whose times the paper compares."""


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
        number = {"value": self.number.value, "interval": interval, "n": self.number.runs}
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
        detail += "" if any(theirs) else "; unlinked it has none either"
        effects.append(_effect(group, "", number, word, detail, single))
    return Judgement(
        "C1",
        "supported where no linked unit of any run is silent on all watched images at its end (at least "
        f"{FEWEST_SEEDS} seeds), refuted where one is. A base that has no silent unit unlinked meets it as well: only "
        "effects above 0 say anything for linking.",
        "share of silent units, single minus linked",
        tuple(effects),
    )


def gradient_death(summaries: Summaries) -> Judgement:
    """C2: linked nets without normalisation in which covshift finds that the gradient died."""
    effects = []
    bare = Summaries((*summaries.where("depth"), *summaries.where("no_batchnorm")))
    for group in _linked(bare):
        fates = [gradient_fate(run) for run in group]
        word: Word = "refuted" if "dead" in fates else "supported" if set(fates) == {"alive"} else "undetermined"
        slopes = mean_interval([run["profiles"]["activation_grad"]["slope"][-1] for run in group])
        counted = ", ".join(f"{fates.count(fate)} {fate}" for fate in unique(fates))
        losses = sorted(loss for loss in map(gradient_loss, group) if math.isfinite(loss))
        smaller = f"{losses[0]:.1f} to {losses[-1]:.1f} decades smaller at the input end" if losses else "not measured"
        detail = f"runs: {counted}; gradient {smaller}; best accuracy {_best(group):.3f}"
        what = "" if group.first["experiment"] == "depth" else "ResNet-50 without normalisation"
        effects.append(_effect(group, what, slopes, word, detail))
    slope, total = THRESHOLDS["depth_slope"].bad, THRESHOLDS["depth_total"].bad
    return Judgement(
        "C2",
        "refuted where covshift finds in a run that the gradient died, which is that a layer gets none, or that it "
        f"shrinks by more than {slope} decades a layer and {total} decades in all; supported where it finds no such "
        f"thing in any (at least {FEWEST_SEEDS} seeds), undetermined where a run diverged. A net may pass and not "
        "learn: accuracy is no part of it. Holds for the depths that were run.",
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
        effects.append(_rest(group, summaries))
    return Judgement(
        "C3",
        "ratios: supported where the interval lies at or below 1, refuted where above; share of stable layers: "
        f"supported where at least {STABLE_SHARE[0]} are found stable, refuted where so many are found drifting or "
        f"frozen that at most {STABLE_SHARE[1]} can be. Added after the runs: undetermined where a run of either side "
        f"never reaches {LEFT_CHANCE} accuracy, for a net that does not learn need not move; layers whose state is not "
        "decided count for neither side (they had counted as not stable).",
        "geometric mean of ratios over seeds, or mean share",
        tuple(effects),
    )


def _rest(group: Summaries, summaries: Summaries) -> Effect:
    """Share of layers at a stable operating point: at least those found there, at most those not found elsewhere."""
    found = mean_interval([share_in("STABLE")(run) for run in group])
    possible = mean_interval([1 - share_in("DRIFTING")(run) - share_in("FROZEN")(run) for run in group])
    learned = sum(left_chance(run) for run in group)
    word: Word = "undetermined"
    if learned == len(group):
        enough, too_few = at_least(found, STABLE_SHARE[0]), at_most(possible, STABLE_SHARE[1])
        word = "supported" if enough == "supported" else "refuted" if too_few == "supported" else "undetermined"
    beside = [
        f"{title} {_mean(partner.values(share_in('STABLE'))):.2f}"
        for other, title in (("relu", "plain"), ("batch-norm", "BN"))
        if len(partner := summaries.beside(other)(group))
    ]
    detail = f"at most {possible.value:.2f} can be; {learned} of {len(group)} runs left chance"
    detail = "; ".join([detail, *([f"found of {', '.join(beside)}"] if beside else [])])
    return _effect(group, "share of layers at a stable operating point", found, word, detail)


def training_time(summaries: Summaries) -> Judgement:
    """C4: time of a whole step with Batch Normalization over that of the linked net without."""
    effects = []
    for run in summaries.where("step_time"):
        for ratio in ("LK-ReLU, BN / LK-ReLU", "ReLU, BN / LK-ReLU"):
            found = run["ratios"][ratio]
            rounds, batch = run["condition"]["rounds"], run["plan"]["batch_size"]
            number = Interval(found["central"], found["low"], found["high"], rounds)
            word = at_least(number, HALF) if run["variant"] == TIMED else "illustration"
            detail = f"{rounds} rounds, batch {batch}, {run['machine']['device']}"
            effects.append(Effect(f"{run['variant']}: {ratio}", number, word, detail, (run["name"],)))
    return Judgement(
        "C4",
        f"supported where the interval lies at or above {HALF}, refuted where below, for the ResNet, whose times the "
        "paper compares (table N); other nets illustrate. One machine and one implementation of Batch Normalization: "
        "elsewhere, on a GPU above all, the ratio may differ.",
        "processor time of a step, ratio, and its 90 % interval over paired rounds on one machine",
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
        detail = f"accuracy {_mean(other):.3f}"
        single = summaries.beside(VARIANTS[group.first["variant"]].base)
        if lost := [a - b for a, b in zip(*paired(single(reference), single(group), accuracy), strict=True)]:
            detail += f"; unlinked it loses {_mean(lost):.3f}"
        effects.append(_effect(group, "", number, word, detail, reference))
    return Judgement(
        "C5",
        f"supported where standardised inputs give at most {STANDARDISATION_MARGIN} more accuracy, with the whole "
        "interval; refuted where more. The paper has no such experiment; its own inputs are in [0, 1] (unit), raw ones "
        "in 0 to 255.",
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
            learned, lost = sum(left_chance(run) for run in both), sum(diverged(run) for run in both)
            detail = f"{learned} of {len(both)} runs left chance" + (f", {lost} diverged" if lost else "")
            if ours:
                size = group.first["parameters"] / partner.first["parameters"]
                against = f"{_mean(ours):.3f} against {_mean(theirs):.3f} of {VARIANTS[control].title}"
                detail = f"{against}, with {size:.2f} times the parameters; {detail}"
            word = at_least(number, -ACCURACY_MARGIN) if learned and not lost else "undetermined"
            effects.append(_effect(group, experiment, number, word, detail, partner))
    return Judgement(
        "C6",
        f"supported where linked is worse than its control by at most {ACCURACY_MARGIN}, with the whole interval; "
        "refuted where worse. The control is sqrt(2) wide in table E, where it has as many parameters, and single "
        f"elsewhere. Added after the runs: undetermined where no run of either side reaches {LEFT_CHANCE}, for nets "
        "that have not begun to learn are equals, and where a run diverged.",
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
    runs = [*group, *(other if other is not None else ())]
    names = tuple(run["name"] for run in runs)
    if stopped := sum(not run["complete"] for run in runs):
        word, detail = "undetermined", f"{detail}; {stopped} stopped early"
    if len(group) < FEWEST_SEEDS:
        word = "illustration" if one["plan"]["seeds"] < FEWEST_SEEDS else "undetermined"
    return Effect(": ".join(part for part in parts if part), number, word, detail, names)


def _mean(values: list[float]) -> float:
    return float(np.mean(values)) if values else math.nan


def _best(group: Summaries) -> float:
    return max(group.values(best))
