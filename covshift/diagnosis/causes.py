"""Which findings follow from which: a dead layer explains that no gradient reaches the layers before it.

Only consequences that must follow, or movement that is merely handed on, are put under a cause; two findings that may
well have separate causes stay separate. Depth, the order in which layers ran, stands in for the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import xarray as xr

from covshift.analysis import rows
from covshift.diagnosis.finding import WHOLE_RUN, Finding
from covshift.diagnosis.thresholds import THRESHOLDS

_ALL_DEAD = 0.999


@dataclass(frozen=True)
class Order:
    """Where layers stand: ``depth`` by name, and the ``producer`` of a nonlinearity's input."""

    depth: Mapping[str, int]
    producer: Mapping[str, str]

    @classmethod
    def of(cls, recording: xr.DataTree) -> Order:
        """Order of the layers of a recording."""
        layers = rows.group(recording, "layers")
        names = rows.names(layers).tolist()
        depth = dict(zip(names, layers["depth"].values.tolist(), strict=True))
        producer = zip(names, rows.names(layers, "preactivation_of").tolist(), strict=True)
        return cls(depth, {name: source for name, source in producer if source})

    def before(self, layer: str, other: str) -> bool:
        """Whether ``layer`` ran before ``other``; False where either is no layer."""
        return layer in self.depth and other in self.depth and self.depth[layer] < self.depth[other]

    def feeds(self, layer: str, nonlinearity: str) -> bool:
        """Whether a finding under ``layer`` is about the input or the gradient of ``nonlinearity``."""
        return layer in (nonlinearity, self.producer.get(nonlinearity))


Follows = Callable[[Finding, Finding, Order], bool]


def explained(findings: Sequence[Finding], order: Order) -> list[Finding]:
    """The findings with ``explained_by`` filled in where another of them accounts for one.

    A chain of causes ends at its root: what a follower would explain is put under the root.
    """
    flagged = [finding for finding in findings if finding.verdict in ("watch", "bad")]
    cause = {id(finding): _cause(finding, flagged, order) for finding in flagged}

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


def _cause(finding: Finding, flagged: Sequence[Finding], order: Order) -> Finding | None:
    for follows in _RULES:
        found = [one for one in flagged if one is not finding and follows(one, finding, order)]
        if found:
            return min(found, key=lambda one: (_began(one), order.depth.get(one.layer, -1)))
    return None


def _name(finding: Finding) -> str:
    return f"{finding.check} in {finding.layer}"


def _began(finding: Finding) -> int:
    return finding.since_step if finding.since_step is not None else 0


def _broken_numbers(cause: Finding, effect: Finding, order: Order) -> bool:
    """NaN and infinities spread to whatever is computed from them."""
    if cause.threshold != THRESHOLDS["non_finite_values"] or _began(effect) < _began(cause):
        return False
    if effect.check != "non-finite":
        return True
    later = _began(effect) > _began(cause)
    return later or order.before(cause.layer, effect.layer) or effect.threshold != cause.threshold


def _dead_layer(cause: Finding, effect: Finding, order: Order) -> bool:
    """No gradient passes a layer of which every unit is dead."""
    silent = (THRESHOLDS["dead_units"], THRESHOLDS["silent_units"], THRESHOLDS["stuck_units"])
    if cause.threshold not in silent or cause.value < _ALL_DEAD:
        return False
    # A constant input makes constant outputs behind it, and no gradient of the weights it meets.
    behind = effect.check == "units" and order.before(cause.layer, effect.layer) and _began(cause) <= _began(effect)
    return behind or _is_low(effect) or _starved(cause, effect, order)


def _cut_path(cause: Finding, effect: Finding, order: Order) -> bool:
    """What lies before a layer that no gradient reaches gets none either."""
    if cause.check != "gradient arrives" or cause.verdict != "bad":
        return False
    own = effect.check == "gradient zeros" and effect.layer == cause.layer
    return own or _starved(cause, effect, order)


def _starved(cause: Finding, effect: Finding, order: Order) -> bool:
    if effect.check == "scale over depth":
        return True
    owner = effect.layer if effect.layer in order.depth else _first_below(effect.layer, order)
    if effect.check in ("gradient arrives", "gradient zeros"):
        return order.before(owner, cause.layer)
    still = (effect.check == "operating point" and not _moves(effect)) or _is_low(effect)
    return still and not order.before(cause.layer, owner)


def _is_low(finding: Finding) -> bool:
    """Whether a finding says that updates are too small."""
    low = finding.threshold is not None and finding.threshold.falls_short(finding.value)
    return finding.check == "update ratio" and low


def _first_below(owner: str, order: Order) -> str:
    inside = [name for name in order.depth if name.startswith(f"{owner}.")]
    return min(inside, key=lambda name: order.depth[name]) if inside else owner


def _flat_activation(cause: Finding, effect: Finding, order: Order) -> bool:
    """Units without a derivative pass no gradient to the layer that feeds them."""
    causes = cause.check in ("units", "saturation", "linkage")
    if effect.check == "units" and cause.check == "saturation":
        return cause.layer == effect.layer
    return causes and effect.check == "gradient zeros" and order.feeds(effect.layer, cause.layer)


def _handed_on(cause: Finding, effect: Finding, order: Order) -> bool:
    """Movement that began earlier and further up arrives further down."""
    if not _moves(cause) or not _moves(effect):
        return False
    if cause.layer == effect.layer:
        return cause.check == "shift"
    return cause.check == effect.check and order.before(cause.layer, effect.layer) and _began(cause) <= _began(effect)


def _summed_up(cause: Finding, effect: Finding, order: Order) -> bool:
    """That anything shifts is said again by the layers that do."""
    shifts = cause.check == effect.check == "shift"
    return shifts and effect.layer == WHOLE_RUN and cause.layer != WHOLE_RUN


def _moves(finding: Finding) -> bool:
    """Whether a finding says that a layer moves; a frozen one has no drift."""
    return finding.check in ("shift", "operating point") and finding.value > 0 and finding.layer != WHOLE_RUN


def _stuck_parameters(cause: Finding, effect: Finding, order: Order) -> bool:
    """Parameters that do not move leave their layer where it is."""
    return _is_low(cause) and effect.check == "operating point" and not _moves(effect)


def _steep(cause: Finding, effect: Finding, order: Order) -> bool:
    """Gradients that differ by decades over depth make ratios to the weights that do."""
    return cause.check == "scale over depth" and effect.check == "trust ratio"


_RULES: tuple[Follows, ...] = (
    _broken_numbers,
    _dead_layer,
    _cut_path,
    _flat_activation,
    _steep,
    _stuck_parameters,
    _summed_up,
    _handed_on,
)
"""In the order in which a cause is looked for."""
