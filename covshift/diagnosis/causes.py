"""Which findings follow from which: a dead layer explains that no gradient reaches the layers before it.

Only consequences that must follow, or movement that is merely handed on, are put under a cause; two findings that may
well have separate causes stay separate. Depth, the order in which layers ran, stands in for the graph.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import xarray as xr

from covshift.analysis import rows
from covshift.diagnosis.finding import SEVERITY, WHOLE_RUN, Finding, worst
from covshift.diagnosis.step_sizes import NO_STEPS, StepSizes
from covshift.diagnosis.threshold import Verdict
from covshift.diagnosis.thresholds import THRESHOLDS

_ALL_DEAD = 0.999


@dataclass(frozen=True)
class Order:
    """Where layers stand: ``depth`` by name, and the ``producer`` of a nonlinearity's input.

    And how long the updates of their weights are: ``step_sizes``.
    """

    depth: Mapping[str, int]
    producer: Mapping[str, str]
    step_sizes: StepSizes = NO_STEPS

    @classmethod
    def of(cls, recording: xr.DataTree) -> Order:
        """Order of the layers of a recording."""
        layers = rows.group(recording, "layers")
        names = rows.names(layers).tolist()
        depth = dict(zip(names, layers["depth"].values.tolist(), strict=True))
        producer = zip(names, rows.names(layers, "preactivation_of").tolist(), strict=True)
        return cls(depth, {name: source for name, source in producer if source}, StepSizes.of(recording))

    def before(self, layer: str, other: str) -> bool:
        """Whether ``layer`` ran before ``other``; False where either is no layer."""
        return layer in self.depth and other in self.depth and self.depth[layer] < self.depth[other]

    def feeds(self, layer: str, nonlinearity: str) -> bool:
        """Whether a finding under ``layer`` is about the input or the gradient of ``nonlinearity``."""
        return layer in (nonlinearity, self.producer.get(nonlinearity))


@dataclass(frozen=True)
class Rule:
    """A way in which one finding accounts for another: which can be a cause, and what follows from such a one."""

    may_cause: Callable[[Finding], bool]
    follows: Callable[[Finding, Finding, Order], bool]


def explained(findings: Sequence[Finding], order: Order) -> list[Finding]:
    """The findings with ``explained_by`` filled in where another of them accounts for one.

    A chain of causes ends at its root: what a follower would explain is put under the root.
    """
    flagged = [finding for finding in findings if finding.verdict in ("watch", "bad")]
    causes = [(rule, [finding for finding in flagged if rule.may_cause(finding)]) for rule in _RULES]
    cause = {id(finding): _cause(finding, causes, order) for finding in flagged}

    def root(finding: Finding) -> Finding:
        seen = {id(finding)}
        while (above := cause[id(finding)]) is not None and id(above) not in seen:
            finding = above
            seen.add(id(finding))
        return finding

    return [
        replace(finding, explained_by=_name(root(finding))) if cause.get(id(finding)) is not None else finding
        for finding in findings
    ]


def by_severity(findings: Sequence[Finding]) -> list[tuple[Verdict, Finding]]:
    """Causes with the worst verdict of themselves and what follows from them.

    Worst first; of one verdict, those from which most follows; else in the order of findings.
    """
    causes = [finding for finding in findings if finding.verdict in ("bad", "watch") and not finding.explained_by]
    led = [(cause, following(cause, findings)) for cause in causes]
    ranked = [(worst([cause.verdict, *(one.verdict for one in after)]), len(after), cause) for cause, after in led]
    return [(verdict, cause) for verdict, _, cause in sorted(ranked, key=lambda one: (SEVERITY.index(one[0]), -one[1]))]


def following(cause: Finding, findings: Sequence[Finding]) -> list[Finding]:
    """Findings that ``cause`` explains."""
    return [finding for finding in findings if finding.explained_by == _name(cause)]


def standing(cause: Finding, verdict: Verdict) -> str:
    """The verdict of a cause, and ``verdict`` of its consequences where that is worse: what it ranks by."""
    return cause.verdict if cause.verdict == verdict else f"{cause.verdict}, its consequences {verdict}"


def _cause(finding: Finding, causes: Sequence[tuple[Rule, list[Finding]]], order: Order) -> Finding | None:
    for rule, candidates in causes:
        found = [one for one in candidates if one is not finding and rule.follows(one, finding, order)]
        if found:
            return min(found, key=lambda one: (_began(one), order.depth.get(one.layer, -1)))
    return None


def _name(finding: Finding) -> str:
    return f"{finding.check} in {finding.layer}"


def _began(finding: Finding) -> int:
    """Its onset; where none is known, the first of the records it rests on, else 0."""
    known = (step for step in (finding.since_step, finding.reached_step) if step is not None)
    return next(known, 0)


def _is_broken(cause: Finding) -> bool:
    return cause.threshold == THRESHOLDS["non_finite_values"]


def _breaks(cause: Finding, effect: Finding, order: Order) -> bool:
    """NaN and infinities spread to whatever is computed from them."""
    if _began(effect) < _began(cause):
        return False
    if effect.check != "non-finite":
        return True
    later = _began(effect) > _began(cause)
    return later or order.before(cause.layer, effect.layer) or effect.threshold != cause.threshold


def _is_dead(cause: Finding) -> bool:
    silent = (THRESHOLDS["dead_units"], THRESHOLDS["silent_units"], THRESHOLDS["stuck_units"])
    return cause.threshold in silent and cause.value >= _ALL_DEAD


def _kills(cause: Finding, effect: Finding, order: Order) -> bool:
    """No gradient passes a layer of which every unit is dead."""
    # A constant input makes constant outputs behind it, and no gradient of the weights it meets. Units that are stuck
    # are judged at the end of the run, and so carry no step before which they were not.
    later = effect.since_step is None or _began(cause) <= _began(effect)
    behind = effect.check == "units" and order.before(cause.layer, effect.layer) and later
    return behind or _is_low(effect) or _starved(cause, effect, order)


def _is_cut(cause: Finding) -> bool:
    return cause.check == "gradient arrives" and cause.verdict == "bad"


def _cuts(cause: Finding, effect: Finding, order: Order) -> bool:
    """What lies before a layer that no gradient reaches gets none either."""
    own = effect.check == "gradient zeros" and effect.layer == cause.layer
    return own or _starved(cause, effect, order)


def _starved(cause: Finding, effect: Finding, order: Order) -> bool:
    if effect.check == "scale over depth":
        return True
    owner = _first_below(effect.layer, order)
    if effect.check in ("gradient arrives", "gradient zeros"):
        return order.before(owner, cause.layer)
    still = (effect.check == "operating point" and not _moves(effect)) or _is_low(effect)
    return still and not order.before(cause.layer, owner)


def _is_low(finding: Finding) -> bool:
    """Whether a finding says that updates are too small."""
    low = finding.threshold is not None and finding.threshold.falls_short(finding.value)
    return finding.check == "update ratio" and low


def _first_below(owner: str, order: Order) -> str:
    """The layer that stands for the owner of parameters: itself, else the first inside it."""
    if owner in order.depth:
        return owner
    inside = [name for name in order.depth if name.startswith(f"{owner}.")]
    return min(inside, key=lambda name: order.depth[name]) if inside else owner


def _is_flat(cause: Finding) -> bool:
    return cause.check in ("units", "saturation", "linkage")


def _flattens(cause: Finding, effect: Finding, order: Order) -> bool:
    """Units without a derivative pass no gradient to the layer that feeds them."""
    if effect.check == "units" and cause.check == "saturation":
        return cause.layer == effect.layer
    return effect.check == "gradient zeros" and order.feeds(effect.layer, cause.layer)


def _hands_on(cause: Finding, effect: Finding, order: Order) -> bool:
    """Movement that began earlier and further up arrives further down."""
    if not _moves(effect):
        return False
    if cause.layer == effect.layer:
        return cause.check == "shift"
    return cause.check == effect.check and order.before(cause.layer, effect.layer) and _began(cause) <= _began(effect)


def _shifts(cause: Finding) -> bool:
    return cause.check == "shift" and cause.layer != WHOLE_RUN


def _is_said_again(cause: Finding, effect: Finding, order: Order) -> bool:
    """That anything shifts is said again by the layers that do."""
    return effect.check == "shift" and effect.layer == WHOLE_RUN


def _moves(finding: Finding) -> bool:
    """Whether a finding says that a layer moves; a frozen one has no drift."""
    return finding.check in ("shift", "operating point") and finding.value > 0 and finding.layer != WHOLE_RUN


def _holds_still(cause: Finding, effect: Finding, order: Order) -> bool:
    """Parameters that do not move leave their layer where it is."""
    return effect.check == "operating point" and not _moves(effect)


def _is_steep(cause: Finding) -> bool:
    return cause.check == "scale over depth"


def _tilts(cause: Finding, effect: Finding, order: Order) -> bool:
    """Gradients that differ by decades over depth make ratios to the weights that do, and small updates at one end."""
    if effect.check == "trust ratio":
        return True
    # Zeros at the end of a gradient have no direction, and what they stop is said by `gradient arrives`.
    if cause.verdict != "bad" or not math.isfinite(cause.value) or not _is_low(effect):
        return False
    own, strongest = (_first_below(name, order) for name in (effect.layer, order.step_sizes.strongest))
    is_behind = order.before(own, strongest) if cause.value > 0 else order.before(strongest, own)
    return is_behind and effect.layer in order.step_sizes.faint


def _underflows(cause: Finding) -> bool:
    return cause.threshold == THRESHOLDS["underflow"] and cause.verdict == "bad"


def _rounds(cause: Finding, effect: Finding, order: Order) -> bool:
    """Gradients at the lower end of their dtype's range make no updates of a useful size."""
    # Adaptive optimizers make of a small gradient what they make of a large one, unless nothing of it is left.
    is_due = effect.value == 0 or order.step_sizes.grow
    return _is_low(effect) and is_due and effect.layer == cause.layer and _began(cause) <= _began(effect)


def _is_clipped(cause: Finding) -> bool:
    return cause.check == "clipping"


def _shortens(cause: Finding, effect: Finding, order: Order) -> bool:
    """Clipping makes updates too small that would be well without it, where they grow with the gradient."""
    return _is_low(effect) and effect.layer in order.step_sizes.clipped


_RULES = (
    Rule(_is_broken, _breaks),
    Rule(_is_dead, _kills),
    Rule(_is_cut, _cuts),
    Rule(_is_flat, _flattens),
    Rule(_underflows, _rounds),
    Rule(_is_clipped, _shortens),
    Rule(_is_steep, _tilts),
    Rule(_is_low, _holds_still),
    Rule(_shifts, _is_said_again),
    Rule(_moves, _hands_on),
)
"""In the order in which a cause is looked for."""
