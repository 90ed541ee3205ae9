"""Rules about gradients: whether they arrive, and how much of them is zero.

Each rule takes a recording and returns a finding per layer it can speak of. Zeros that pooling or dropout make are
never held against an activation: where the structural part is known, only that part is judged as such.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from covshift import schema
from covshift.analysis import gradient_health, linkage, rows
from covshift.analysis.dead_units import dead_units
from covshift.diagnosis.finding import Finding, not_measured
from covshift.diagnosis.judgement import Floats, Judgement, Steps, conclude, holds_since, judge, onset
from covshift.diagnosis.thresholds import THRESHOLDS
from covshift.diagnosis.unit_rules import SILENT_RATE, Onsets, judge_share
from covshift.diagnosis.wording import percent, plural, quoted
from covshift.exceptions import SignalNotRecorded

_NOT_DUE = {
    schema.Status.NO_GRAD_REQUIRED: (
        "its output requires no gradient (all before it is frozen, or an autograd function ran it without a graph)"
    ),
    schema.Status.UNUSED_OUTPUT: "its output was not used",
    schema.Status.NO_GRAD_FORWARD: "it ran under no_grad",
    schema.Status.UNSUPPORTED: "its output is of a kind that cannot be summarised",
    schema.Status.FAILED: "recording it failed",
}
_ALL_BROKEN = "every element of its gradient was NaN or infinite"
_PART_BROKEN = "its gradient held NaN or infinities, and nothing finite but zeros,"
_OTHER_OUTPUT = "no gradient arrived while another output of its module receives one"
_KEEP_LIVE = (
    "a lower learning rate or another initialisation keeps units out of the flat part of the activation; a leaky or "
    "linked one has no flat part, but gives up exact zeros or widens the next layer"
)
_MASKED = (
    "nothing, if pooling, dropout or padding masks them; in float16 a larger loss scale avoids underflow, at the risk "
    "of overflow"
)
_CUT_OFF = (
    "look after this layer for a mask, a zero factor, dead units or, in float16, underflow; a larger loss scale mends "
    "the last, at the risk of overflow"
)


def gradient_arrives(recording: xr.DataTree) -> list[Finding]:
    """Whether any gradient but zero reaches each layer's output, in the last window of records.

    NaN and infinities are no zeros: they have arrived, and a layer that gets nothing else is ``not measured``.

    A layer that no gradient reaches is ``bad`` where none of the layers before it gets one either (a cut path), else
    only ``watch``: a branch that the loss does not use looks the same, and so does a single layer at the start. Of a
    module with several outputs (an LSTM's sequence and states) those that receive none while another does are taken to
    be unused.
    """
    arrivals = _Arrivals.of(recording)
    return [arrivals.finding(int(layer)) for layer in np.flatnonzero(arrivals.ran)]


@dataclass(frozen=True)
class _Arrivals:
    """What is known of each layer's gradient in every record; arrays of shape (step, layer).

    ``count`` is of finite elements; ``arrived`` says where there was anything but zeros, ``broken`` where of that
    nothing was finite.
    """

    names: list[str]
    steps: Steps
    depth: NDArray[np.int32]
    ran: NDArray[np.bool_]
    status: NDArray[np.uint8]
    count: Floats
    broken: NDArray[np.bool_]
    arrived: NDArray[np.bool_]

    @classmethod
    def of(cls, recording: xr.DataTree) -> _Arrivals:
        gradient = rows.layer_rows(recording, signal="activation_grad")
        outputs = rows.group(recording, "layers")["count"].sel(signal="activation").values
        count, status = rows.finite_count(gradient), gradient["status"].values
        ran = ((outputs > 0) | (status != schema.Status.ABSENT)).any(axis=0)
        arrived = gradient["zero_count"].values < gradient["count"].values
        broken = rows.is_broken(gradient)
        names, steps, depth = rows.names(gradient).tolist(), gradient["step"].values, gradient["depth"].values
        return cls(names, steps, depth, ran, status, count, broken, arrived)

    @property
    def window(self) -> slice:
        return rows.last_window(len(self.steps))

    @property
    def due(self) -> NDArray[np.bool_]:
        return np.asarray((self.count > 0) | self.broken | (self.status == schema.Status.NO_GRADIENT_ARRIVED))

    def _alone(self, layer: int, window: slice) -> bool:
        """Whether of all layers that were due a gradient this is the only one that never got any."""
        missing = np.asarray(self.due[window].any(axis=0) & ~self.arrived[window].any(axis=0))
        return bool(missing[layer] and missing.sum() == 1)

    def finding(self, layer: int) -> Finding:
        name, window = self.names[layer], self.window
        reached = np.flatnonzero(self.arrived[window].any(axis=0))
        due, elements = int(self.due[window, layer].sum()), int(self.count[window, layer].sum())
        if not due:
            return _no_gradient_due(name, self.status[window, layer])
        if self.broken[window, layer].sum() == due:
            return _no_gradient_due(name, self.status[window, layer], _PART_BROKEN if elements else _ALL_BROKEN)
        if not elements and _module(name) in {_module(self.names[other]) for other in reached}:
            return _no_gradient_due(name, self.status[window, layer], _OTHER_OUTPUT)
        arrived = int(self.arrived[window, layer].sum())
        before = bool((self.depth[reached] < self.depth[layer]).any())
        branch = not elements and (before or self._alone(layer, window))
        others = "" if not branch else "layers before it" if before else "all other layers"
        reason, advice = _arrival_words(due, arrived, elements, others)
        missing = np.where(self.due[:, layer], ~self.arrived[:, layer], np.nan)
        judged = Judgement(
            THRESHOLDS["gradient_missing"],
            1 - arrived / due,
            onset(self.steps, missing == 1, np.isfinite(missing)),
            advice,
            reached_step=holds_since(self.steps, missing, 1.0, window),
            crossed="mostly none since step",
            reached="none",
        )
        finding = conclude(name, reason, [judged])
        return replace(finding, verdict="watch") if branch and finding.verdict == "bad" else finding


def _arrival_words(records: int, arrived: int, elements: int, others: str) -> tuple[str, str]:
    """Reason and advice from the last window: records in which a gradient was due, and in which one arrived.

    ``others`` names the layers that receive one although this does not, where that makes it a branch.
    """
    window = f"the last {plural(records, 'record')}"
    detached = "look for detach(), no_grad or a step without derivative between this layer and the loss"
    if arrived:
        return f"gradient arrived in {arrived} of {window}", detached
    if elements:
        return f"the gradient of its output was exactly zero in all {elements:,} elements of {window}", _CUT_OFF
    if others:
        unused = f"nothing, if the loss is not meant to use its output; else {detached}"
        return f"no gradient arrived in {window}, though {others} receive one", unused
    return f"no gradient arrived in {window}", detached


def _module(layer: str) -> str:
    """Name of the module call that an output belongs to: ``"lstm"`` of ``"lstm:1.0"``."""
    return layer.partition(":")[0]


def _no_gradient_due(layer: str, status: NDArray[np.uint8], why: str = "no gradient was recorded for it") -> Finding:
    why = next((text for flag, text in _NOT_DUE.items() if (status == flag).any()), why)
    reason = f"{quoted(layer)}: {why} in the last {plural(len(status), 'record')}"
    return not_measured("gradient arrives", layer, reason, "record steps in which it runs and requires a gradient")


def gradient_zeros(recording: xr.DataTree) -> list[Finding]:
    """How much of the gradient is exactly zero, and which part of it the nonlinearity's derivative explains.

    Every tensor is judged once. A layer whose output a nonlinearity reads is judged by dL/dz: structural zeros by their
    share of z, others by their share of the elements that have a derivative. Where nothing can be split, the total
    counts as "others"; their threshold is lenient, because pooling and dropout mask most of a healthy gradient. Records
    in which NaN or infinities left nothing finite but zeros do not count.
    """
    total = gradient_health.zero_rate(recording)
    sound = ~rows.is_broken(rows.layer_rows(recording, signal="activation_grad"))
    nonlinear = _nonlinear_parts(recording)
    idle = _idle_units(recording)
    window, steps = rows.last_window(total.sizes["step"]), total["step"].values
    findings = []
    for layer, series, mine in zip(rows.names(total).tolist(), total.values.T, sound.T, strict=True):
        parts = nonlinear.get(layer, _Parts.unknown(series)).of_records(mine)
        if np.isfinite(parts.zeros[window]).any():
            units = idle.get(layer)
            findings.append(conclude(layer, parts.words(window, units), parts.judgements(steps, window, units)))
    return findings


@dataclass(frozen=True)
class _IdleUnits:
    """Units of a layer that no longer receive a gradient; ``examples`` are the fewest behind any of them.

    ``begun`` says when they stopped receiving one.
    """

    idle: int
    units: int
    examples: int
    begun: Onsets


@dataclass(frozen=True)
class _Parts:
    """Zero rate of the gradient of ``tensor`` over steps, its parts where ``activation`` explains them, else NaN."""

    tensor: str
    activation: str
    zeros: Floats
    structural: Floats
    other: Floats

    @classmethod
    def unknown(cls, zeros: Floats) -> _Parts:
        blank = np.full(len(zeros), np.nan)
        return cls("output", "", zeros, blank, blank)

    def of_records(self, kept: NDArray[np.bool_]) -> _Parts:
        """The same with records left out, which are NaN then."""
        zeros, structural, other = (np.where(kept, part, np.nan) for part in (self.zeros, self.structural, self.other))
        return replace(self, zeros=zeros, structural=structural, other=other)

    def judgements(self, steps: Steps, window: slice, units: _IdleUnits | None) -> list[Judgement]:
        live = 1 - self.structural
        among_live = np.divide(self.other, live, out=np.full(len(live), np.nan), where=live > 0)
        split = np.isfinite(self.other[window]).any()
        judged = [
            judge("structural_zeros", self.structural, steps, window, _KEEP_LIVE),
            judge("gradient_zeros", among_live if split else self.zeros, steps, window, _MASKED),
        ]
        if units is not None:
            share = units.idle / units.units
            explained = rows.median(self.structural[window]) >= share
            advice = _KEEP_LIVE if explained else _CUT_OFF
            judged.append(judge_share("zero_gradient_units", share, units.begun, advice))
        return judged

    def words(self, window: slice, units: _IdleUnits | None) -> str:
        zeros, structural, other = (
            float(rows.median(part[window])) for part in (self.zeros, self.structural, self.other)
        )
        text = f"{percent(zeros)} of the gradient of its {self.tensor} is exactly zero"
        if np.isfinite(structural):
            rest = f"{percent(other)} masked, underflowed or cancelled" if np.isfinite(other) else "the rest not split"
            text += f": {percent(structural)} structural (no derivative in '{self.activation}'), {rest}"
        text += f"; median of the last {plural(int(np.isfinite(self.zeros[window]).sum()), 'record')}"
        if units is None or not units.idle:
            return text
        return f"{text}; {units.idle} of {plural(units.units, 'unit')} got none in {plural(units.examples, 'example')}"


def _nonlinear_parts(recording: xr.DataTree) -> dict[str, _Parts]:
    """Parts of dL/dz by the layer they are judged under: the producer of z, else the nonlinearity itself."""
    try:
        rates = linkage.violation_rate(recording)
    except SignalNotRecorded:
        return {}
    layers = rows.group(recording, "layers")
    names, producer, nonlinear = rows.names(layers), rows.producer_index(layers), np.flatnonzero(rows.nonlinear(layers))
    columns = [rates[name].values for name in ("gradient_zero_rate", "structural_rate", "other_rate")]
    parts: dict[str, _Parts] = {}
    for position, index in enumerate(nonlinear):
        tensor, judged_under = ("input", index) if producer[index] < 0 else ("output", producer[index])
        zeros, structural, other = (column[:, position] for column in columns)
        if np.isfinite(zeros).any():
            own = _Parts(tensor, str(names[index]), zeros, structural, other)
            parts.setdefault(str(names[judged_under]), own)
    return parts


def _idle_units(recording: xr.DataTree) -> Mapping[str, _IdleUnits]:
    """By layer, where units were recorded; silence counts as far as it is evidence, as for dead units."""
    try:
        group = rows.group(recording, "units")
        owners = rows.names(rows.group(recording, "layers"))[np.unique(group["layer_index"].values)]
        units = dead_units(recording, layers=owners.tolist(), signal="activation_grad")
    except SignalNotRecorded:
        return {}
    idle = np.isin(units["state"].values, ["silent", "dead"]) & (units["rate_upper_bound"].values <= SILENT_RATE)
    layer, begun, examples = (units[name].values for name in ("layer", "since_step", "silent_examples"))
    return {
        str(name): _IdleUnits(
            idle=int(idle[layer == name].sum()),
            units=int((layer == name).sum()),
            examples=int(examples[idle & (layer == name)].min(initial=np.iinfo(np.int64).max)),
            begun=Onsets.of(begun[idle & (layer == name)], int((layer == name).sum())),
        )
        for name in np.unique(layer)
    }
