"""The rule about units: how many of a layer's are dead, and how good the evidence is."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from covshift import schema
from covshift.analysis import rows
from covshift.analysis.dead_units import DEAD_RATE, dead_units
from covshift.analysis.unit_profile import unit_profile
from covshift.diagnosis import streams
from covshift.diagnosis.finding import WHOLE_RUN, Finding, not_measured
from covshift.diagnosis.judgement import Judgement, conclude
from covshift.diagnosis.thresholds import IDLE_SHARE, THRESHOLDS
from covshift.diagnosis.wording import number, plural, quoted
from covshift.exceptions import SignalNotRecorded

_REVIVE = (
    "a lower learning rate prevents further deaths, at the price of speed; re-initialising revives units, at the price "
    "of a jump; a leaky or linked activation has no dead side, but gives up exact zeros or widens the next layer"
)
_BORN = (
    "units that are silent from the first record on did not die of training: look at the bias and the initialisation "
    "of the layer before them, and at the size and centre of its input; re-initialising them costs what the layer has "
    "learned since; a leaky or linked activation has no dead side, but gives up exact zeros or widens the next layer"
)
_SILENCED = (
    "a layer that falls silent as a whole, and at once, was pushed: look at what jumped in the layer before it (bias, "
    "weights, input), and take up a checkpoint from before; "
)
_UNSTICK = (
    "a smaller initialisation or learning rate keeps z away from the plateaus; a leaky or unbounded activation has "
    "none, but gives up the bound on the output"
)
_PLATEAUS = ("ReLU6", "Hardtanh", "Hardsigmoid", "Sigmoid", "Tanh", "Softsign", "ELU", "CELU", "SELU")
"""Activations that level off at an output other than 0, linked ones apart."""

_CONSTANT = (
    "its activation levels off at no output but 0, so its input z does not vary: look before it for a layer that is "
    "dead or whose weights are 0, and for a constant input"
)
_FAMILY_ERROR = 0.05

ALWAYS_ON = 0.01
"""A unit above zero on all but this share of elements is always on, that is, linear."""

_STUCK_EXAMPLES = 100
"""Examples below which a constant output may be the data's."""

SILENT_RATE = 0.01
"""Silence counts from where it bounds the firing rate by this, see the threshold ``silent_units``."""


def dead_share(recording: xr.DataTree, *, distinct_examples: int | None = None) -> list[Finding]:
    """Share of dead units in every nonlinearity, at the end of the recording.

    An evaluation pass in the last window of training decides where there is one of enough examples to bound the firing
    rate of a silent unit by :data:`SILENT_RATE`, since it is an exact statement about them; else the training batches
    do. Silent units whose evidence is short of "dead" make at most ``watch``, and those whose rate is bounded no
    tighter than that, such as a unit silent for two records, are no silent units yet.

    Parameters
    ----------
    recording : DataTree
        Needs the group ``units`` in either stream.
    distinct_examples : int, optional
        Size of the data set the training batches are drawn from.
    """
    stream, units = _evidence(recording, distinct_examples)
    if not units.sizes["unit"]:
        return [_no_units(recording)]
    columns = {name: units[name].values for name in ("layer", "state", "silent_examples", "rate_upper_bound")}
    since = units["since_step"].values if stream == "train" else _since_training(recording, units)
    profile = _profile_of(units, unit_profile(recording, stream=stream))
    stuck = profile["stuck"].values & (profile["examples"].values >= _STUCK_EXAMPLES)
    always = profile["positive_rate"].values > 1 - ALWAYS_ON
    broken, findings = _without_numbers(recording, stream), []
    trained = streams.is_recorded(recording, "train", "units")
    first = rows.group(recording, "units")["step"].values[0] if trained else -1
    layers = rows.group(recording, "layers")
    kinds = dict(zip(rows.names(layers).tolist(), rows.names(layers, "activation").tolist(), strict=True))
    for layer in dict.fromkeys(columns["layer"].tolist()):
        if layer in broken:
            reason = f"{quoted(str(layer))}: every element of its output was NaN or infinite at the end of the run"
            findings.append(not_measured("units", str(layer), reason, "mend what `non-finite` says first"))
            continue
        mine = columns["layer"] == layer
        state = columns["state"][mine]
        bound = columns["rate_upper_bound"][mine]
        gone = np.isin(state, ["silent", "dead"])
        quiet = gone & (bound <= SILENT_RATE)
        dead = quiet & (state == "dead")
        fresh = gone & ~quiet
        told = quiet if quiet.any() else fresh
        census = _Census(
            units=int(mine.sum()),
            dead=int(dead.sum()),
            silent=int((quiet & ~dead).sum()),
            fresh=int(fresh.sum()),
            rare=int((state == "rare").sum()),
            stuck=int(stuck[mine].sum()),
            always_on=int(always[mine].sum()),
            revived=int((units["revivals"].values[mine] > 0).sum()),
            examples=int(columns["silent_examples"][mine][told].min(initial=np.iinfo(np.int64).max)),
            bound=float(bound[told].max(initial=0.0)),
            born=int((since[mine][quiet] <= first).sum()),
            dead_since=Onsets.of(since[mine][dead], int(mine.sum())),
            quiet_since=Onsets.of(since[mine][quiet], int(mine.sum())),
            tested=units.sizes["unit"],
            exact=stream == "evaluation",
            has_plateau=str(kinds.get(layer, "")).removeprefix("Linked") in _PLATEAUS,
        )
        findings.append(census.finding(str(layer)))
    return findings


def _profile_of(units: xr.Dataset, profile: xr.Dataset) -> xr.Dataset:
    """The part of ``profile`` that is about ``units``: those of layers without known examples are in neither state."""
    told = set(zip(units["layer"].values, units["unit_in_layer"].values, strict=True))
    keys = zip(profile["layer"].values, profile["unit_in_layer"].values, strict=True)
    return profile.isel(unit=[at for at, key in enumerate(keys) if key in told])


def _no_units(recording: xr.DataTree) -> Finding:
    """That no units of a nonlinearity were recorded, and why: there is none, or its axes are not known."""
    layers = rows.group(recording, "layers")
    names, inside = rows.names(layers), np.flatnonzero(rows.nonlinear(layers))
    need = "activation modules, or functions with functional=True, of a known unit axis (unit_axis= states it)"
    if not len(inside):
        return not_measured("units", WHOLE_RUN, f"{WHOLE_RUN}: no layer is a nonlinearity", need)
    reason = f"{WHOLE_RUN}: no units were recorded of {plural(len(inside), 'nonlinearity layer')}"
    for axis, of in (("unit_axis", "its units"), ("example_axis", "the examples")):
        unknown = names[inside[layers[axis].values[inside] == schema.UNKNOWN_AXIS]].tolist()
        if unknown:
            more = f" (nor of {len(unknown) - 1} more)" if len(unknown) > 1 else ""
            told = f"{reason}: which axis of {quoted(unknown[0])} counts {of} is not known{more}"
            need = f"unit_axis={{{unknown[0]!r}: axis}}, where axis counts the units of its output"
            return not_measured("units", WHOLE_RUN, told, need)
    return not_measured("units", WHOLE_RUN, reason, need)


def _evidence(recording: xr.DataTree, distinct_examples: int | None) -> tuple[str, xr.Dataset]:
    """The stream that decides, and the state of its units."""
    if streams.is_recent(recording, "evaluation", "units"):
        passes = dead_units(recording, stream="evaluation", alpha=_FAMILY_ERROR)
        examples = passes["examples"].values[-1:].max(initial=0)
        is_enough = examples >= _examples_needed(SILENT_RATE, passes.sizes["unit"])
        if is_enough or not streams.is_recorded(recording, "train", "units"):
            return "evaluation", passes
    return "train", dead_units(recording, distinct_examples=distinct_examples, alpha=_FAMILY_ERROR)


def _examples_needed(rate: float, tested: int) -> int:
    """Examples in which a unit must be silent for its firing rate to be bounded by ``rate``, see ``dead_units``."""
    return math.ceil(math.log(_FAMILY_ERROR / max(tested, 1)) / math.log1p(-rate))


def _without_numbers(recording: xr.DataTree, stream: str) -> set[str]:
    """Layers of whose output no element is finite, in no record of the last window that has any."""
    output = rows.layer_rows(recording, signal="activation", stream=stream)
    window = rows.last_window(output.sizes["step"])
    ran = (output["count"].values[window] > 0).any(axis=0)
    finite = (rows.finite_count(output)[window] > 0).any(axis=0)
    return set(rows.names(output)[ran & ~finite].tolist())


@dataclass(frozen=True)
class Onsets:
    """When units of a layer fell idle for good: more than :data:`IDLE_SHARE` of all its units, and the last of them."""

    step: int | None
    last_step: int

    @classmethod
    def of(cls, begun: NDArray[np.int64], units: int) -> Onsets:
        """From the steps at which each idle unit's idleness began, and the number of all units."""
        return cls(onset_of_share(begun, units), int(begun.max(initial=-1)))


def judge_share(name: str, share: float, begun: Onsets, advice: str) -> Judgement:
    """Judgement of the share of units that are idle by the threshold called ``name``."""
    threshold = THRESHOLDS[name]
    crossed = f"{threshold.beyond} since step"
    return Judgement(threshold, share, begun.step, advice, reached_step=begun.last_step, crossed=crossed)


def onset_of_share(begun: NDArray[np.int64], units: int) -> int | None:
    """First step at which more than :data:`IDLE_SHARE` of ``units`` were idle, from the steps at which each began.

    Examples
    --------
    >>> onset_of_share(np.array([60, 0, 80]), 20), onset_of_share(np.array([60]), 20)
    (80, None)
    """
    needed = math.floor(IDLE_SHARE * units)
    return int(np.sort(begun)[needed]) if len(begun) > needed else None


def _since_training(recording: xr.DataTree, units: xr.Dataset) -> NDArray[np.int64]:
    """Onset of silence by evaluation passes, put back to where the training batches saw it begin."""
    seen = units["since_step"].values
    try:
        trained = dead_units(recording)
    except SignalNotRecorded:
        return seen
    keys = zip(trained["layer"].values, trained["unit_in_layer"].values, strict=True)
    begun = dict(zip(keys, trained["since_step"].values, strict=True))
    earlier = [begun.get(key, -1) for key in zip(units["layer"].values, units["unit_in_layer"].values, strict=True)]
    return np.where(np.array(earlier) >= 0, np.minimum(earlier, seen), seen)


@dataclass(frozen=True)
class _Census:
    """Units of one layer by state.

    ``silent`` and ``dead`` units have a firing rate bounded by :data:`SILENT_RATE`; ``fresh`` ones fired in no example
    either, but in too few to tell; ``born`` ones are quiet from the first record of training on. ``examples`` and
    ``bound`` are of the former, or else of the latter: the fewest, and the highest.
    """

    units: int
    dead: int
    silent: int
    fresh: int
    rare: int
    stuck: int
    always_on: int
    revived: int
    examples: int
    bound: float
    born: int
    dead_since: Onsets
    quiet_since: Onsets
    tested: int
    exact: bool
    has_plateau: bool

    def finding(self, layer: str) -> Finding:
        quiet = (self.dead + self.silent) / self.units
        at_once = quiet == 1 and self.quiet_since.step == self.quiet_since.last_step > 0
        advice = _SILENCED + _REVIVE if at_once else _REVIVE
        if 2 * self.born > self.dead + self.silent:
            advice = _BORN
        dead = judge_share("dead_units", self.dead / self.units, self.dead_since, advice)
        silent = judge_share("silent_units", quiet, self.quiet_since, advice)
        stuck = Judgement(
            THRESHOLDS["stuck_units"], self.stuck / self.units, None, _UNSTICK if self.has_plateau else _CONSTANT
        )
        all_silent = judge_share("silent_units", quiet + self.fresh / self.units, self.quiet_since, advice)
        if any(one.verdict != "ok" for one in (dead, silent, stuck)):
            return conclude(layer, self._words(), [dead, silent, stuck])
        if all_silent.verdict == "ok":
            # What is not known to be dead is not known to be alive: the value is that of all silent units.
            return conclude(layer, self._words(), [all_silent if all_silent.value > dead.value else dead])
        silent_at, dead_at = (_examples_needed(rate, self.tested) for rate in (SILENT_RATE, DEAD_RATE))
        how = (
            "a larger evaluation pass"
            if self.exact
            else "a longer run, or units counted in every record by units_every=1"
        )
        need = (
            f"{plural(silent_at, 'example')} without firing, which would bound the rate by {number(SILENT_RATE)} "
            f"({dead_at:,} by {number(DEAD_RATE)}): {how}"
        )
        return not_measured("units", layer, f"{quoted(layer)}: {self._words()}", need, threshold=silent.threshold)

    def _words(self) -> str:
        others = {
            "more silent, in too few examples to tell": self.fresh if self.dead + self.silent else 0,
            "stuck at an output that is not 0": self.stuck,
            "fires rarely" if self.rare == 1 else "fire rarely": self.rare,
            "is always on" if self.always_on == 1 else "are always on": self.always_on,
            "had fallen silent before and revived": self.revived,
        }
        rare = "".join(f"; {count} {what}" for what, count in others.items() if count)
        if not self.dead + self.silent + self.fresh:
            return f"none of {plural(self.units, 'unit')} silent{rare}"
        if self.dead and self.quiet_since.last_step > self.dead_since.last_step:
            rare = f"; the last fell silent at step {self.quiet_since.last_step}{rare}"
        units, examples = plural(self.units, "unit"), plural(self.examples, "example")
        if self.exact and not self.fresh:
            return f"{self.dead} of {units} dead: silent on all {examples} of the evaluation pass{rare}"
        evidence = f"in {examples} (firing rate < {number(self.bound)} at 95 %){rare}"
        if not self.dead:
            return f"{self.silent or self.fresh} of {units} silent {evidence}"
        return f"{self.dead} of {units} dead{f' and {self.silent} silent' if self.silent else ': silent'} {evidence}"
