"""The one sentence over a diagnosis: does gradient reach every layer, are units dead, what else, what is unknown."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from covshift.diagnosis.finding import ROOT, WHOLE_RUN, Finding, of_layers, worst
from covshift.diagnosis.parameter_rules import is_frozen, is_still, is_untrained
from covshift.diagnosis.thresholds import THRESHOLDS
from covshift.diagnosis.value_rules import is_constant
from covshift.diagnosis.wording import percent, plural, quoted
from covshift.schema import is_model_input

_OPENING = {"ok": "Healthy", "watch": "To watch", "bad": "Unhealthy"}

NOTHING = f"{WHOLE_RUN}: nothing was recorded: no step, no probe, no evaluation pass"
RECORD = (
    "train the very model inside `with covshift.record(model):`, by an optimizer that holds its parameters, or mark "
    "each step by recorder.step(); every= must meet a step"
)
"""Why each check of an empty recording is not measured, and what is needed: said once, over the diagnosis."""

MOST_NAMES = 3
"""Layers that one clause names; a net that is tuned has a hundred that are frozen."""

_NEEDS_RECORDS = ("update ratio", "scale over time")
"""Checks that answer to no record by itself; the one asks for parameters as well, the other for gradients."""


def of(findings: Sequence[Finding]) -> str:
    """One sentence about ``findings``, which come worst first."""
    checks: dict[str, list[Finding]] = {}
    for finding in findings:
        checks.setdefault(finding.check, []).append(finding)
    verdict = worst([finding.verdict for finding in findings])
    if is_empty(findings):
        return f"Nothing was recorded, no step, no probe, no evaluation pass: {RECORD}."
    if verdict == "not measured":
        return f"Nothing could be judged: {plural(len(checks), 'check')} not measured."
    measured = {check: [f for f in found if f.verdict != "not measured"] for check, found in checks.items()}
    opening = _OPENING[verdict] if verdict != "ok" or _is_enough(checks) else "No fault in what was measured"
    broken = _other("non-finite", measured.pop("non-finite", []))
    # What NaN and infinities do to other checks is no news; and that their gradient arrives is no reason for praise.
    measured = {check: [f for f in found if not _is_broken(f)] for check, found in measured.items()}
    clauses = [
        broken,
        _gradient(measured.pop("gradient arrives", []), _count(checks.get("gradient arrives", [])), praise=not broken),
        _untrained(checks.get("update ratio", [])),
        _units(measured.pop("units", []), _count(checks.get("units", [])), praise=not broken),
        *(clause for check, found in measured.items() for clause in (_still(found), _other(check, _moving(found)))),
        _constant(checks.get("non-finite", [])),
        _unknown(checks),
    ]
    return f"{opening}: {'; '.join(clause for clause in clauses if clause)}."


def is_empty(findings: Sequence[Finding]) -> bool:
    """Whether findings say of every check that nothing was recorded at all."""
    return bool(findings) and all(finding.reason == NOTHING for finding in findings)


def _is_enough(checks: Mapping[str, Sequence[Finding]]) -> bool:
    """Whether a run of which nothing is amiss was seen well enough to be called healthy.

    Whoever has not seen a gradient arrive cannot call a network so; nor can who has seen the model as a whole alone,
    compiled perhaps, call what is in it so. Dead units must have been told in every layer that may have some. Where
    neither updates nor the scale over time were measured, there are too few records for a median or a course of time.
    """
    unknown = [finding for found in checks.values() for finding in found if finding.verdict == "not measured"]
    known = [finding for found in checks.values() for finding in found if finding.verdict != "not measured"]
    arrived = any(finding.check == "gradient arrives" and finding.layer != ROOT for finding in known)
    lasted = any(finding.check in _NEEDS_RECORDS for finding in known)
    return arrived and lasted and not any(finding.check == "units" for finding in unknown)


def _is_broken(finding: Finding) -> bool:
    return finding.explained_by.startswith("non-finite in ")


def _flagged(findings: Sequence[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.verdict in ("watch", "bad")]


def _gradient(findings: Sequence[Finding], layers: int, *, praise: bool) -> str:
    """Layers that it reaches or not, of all ``layers``, which are more than those in which that was measured."""
    if not findings:
        return ""
    missing = _flagged(findings)
    if not missing:
        reached = _count(findings)
        return f"gradient reaches {_all(reached) if reached == layers else _of(reached, layers)}" if praise else ""
    first = missing[0]
    cause = f"; follows from {first.explained_by}" if first.explained_by else ""
    told = f"{quoted(first.layer)}{_begun(first)}{cause}{_unmeasured(findings, layers)}"
    return f"gradient does not reach {_of(_count(missing), layers)} ({told})"


def _of(count: int, layers: int) -> str:
    return f"{count:,} of {plural(layers, 'layer')}"


def _unmeasured(findings: Sequence[Finding], layers: int) -> str:
    """That nothing is known of the others: who reads "1 of 9" takes the other eight to be well."""
    unknown = layers - _count(findings)
    return f"; {unknown:,} not measured" if unknown else ""


def _count(findings: Sequence[Finding]) -> int:
    """Findings of layers."""
    return len(of_layers([finding.layer for finding in findings]))


def _begun(finding: Finding) -> str:
    return f" {finding.history}" if finding.history else ""


def _units(findings: Sequence[Finding], layers: int, *, praise: bool) -> str:
    """Units of the layers in which they were measured, which are not always all ``layers`` that have some."""
    if not findings:
        return ""
    flagged = _flagged(findings)
    if not flagged and not praise:
        return ""
    if not flagged:
        most = max(findings, key=lambda finding: finding.value)
        # Silent units that the examples are too few to call dead are not known to be alive either.
        state = "silent" if most.threshold == THRESHOLDS["silent_units"] else "dead"
        where = f" in {_count(findings)} of {layers} layers" if _count(findings) < layers else ""
        if most.value == 0:
            return f"no unit is dead{where}"
        if where:
            return f"at most {percent(most.value)} of units are {state}{where}"
        return f"no layer has more than {percent(most.value)} {state} units"
    most = max(flagged, key=lambda finding: finding.value)
    kinds = {"dead": ("dead_units", "silent_units"), "silent": ("silent_units",), "stuck": ("stuck_units",)}
    crossed = [finding.threshold for finding in flagged]
    states = [state for state, names in kinds.items() if any(THRESHOLDS[name] in crossed for name in names)]
    told = f"most in {quoted(most.layer)}: {percent(most.value)}{_unmeasured(findings, layers)}"
    return f"units are {' or '.join(states)} in {_of(_count(flagged), layers)} ({told})"


def _other(check: str, findings: Sequence[Finding]) -> str:
    flagged = _flagged(findings)
    if not flagged:
        return ""
    placed = [finding for finding in flagged if finding.layer != WHOLE_RUN]
    if not placed:
        return f"{check} {worst([finding.verdict for finding in flagged])}"
    first = placed[0]
    worst_places = {finding.layer for finding in placed if finding.verdict == first.verdict}
    others = {finding.layer for finding in placed} - worst_places
    more = f", watch in {_places(others, noun='')}" if others else ""
    return f"{check} {first.verdict} in {_places(worst_places)} ({quoted(first.layer)}{_begun(first)}){more}"


def _places(names: Collection[str], *, noun: str = "layer") -> str:
    """How many layers, and the model's input by its name: it is none."""
    layers = len(of_layers(list(names)))
    inputs = sorted(name for name in names if is_model_input(name))
    counted = plural(layers, noun) if noun else f"{layers:,}"
    return " and ".join([counted] * bool(layers) + inputs)


def _constant(numbers: Sequence[Finding]) -> str:
    """Inputs that never vary, of which a network learns nothing; a mask may well be one."""
    return "; ".join(f"{quoted(finding.layer)} is constant" for finding in numbers if is_constant(finding))


def _untrained(ratios: Sequence[Finding]) -> str:
    """Layers whose weights got no gradient: frozen on purpose or not, which nobody but the reader knows."""
    of = plural(len({finding.layer for finding in ratios}), "layer")
    untrained = [finding for finding in ratios if is_untrained(finding)]
    frozen, others = (
        list(dict.fromkeys(finding.layer for finding in untrained if is_frozen(finding) == wanted))
        for wanted in (True, False)
    )
    told = []
    if frozen:
        told.append(f"{len(frozen)} of {of} with weights {_are(frozen)} frozen: {_listed(frozen)} (meant?)")
    if others:
        share = f"{len(others)} of {of} with weights {_are(others)} not trained"
        told.append(f"{share} ({quoted(others[0])}: no gradient of its weights)")
    return "; ".join(told)


def _are(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"


def _listed(names: Sequence[str]) -> str:
    """The first few names, and how many there are besides."""
    shown = ", ".join(map(quoted, names[:MOST_NAMES]))
    return shown if len(names) <= MOST_NAMES else f"{shown} and {len(names) - MOST_NAMES:,} more"


def _moving(findings: Sequence[Finding]) -> list[Finding]:
    return [finding for finding in findings if not is_still(finding)]


def _still(findings: Sequence[Finding]) -> str:
    """Weights that no update moves, each of which has a finding of its own."""
    still = [finding for finding in findings if is_still(finding)]
    if not still:
        return ""
    moves = f"{plural(len(still), 'weight')} never move{'s' if len(still) == 1 else ''}"
    return f"{moves} ({quoted(still[0].layer)}{_begun(still[0])})"


def _unknown(checks: dict[str, list[Finding]]) -> str:
    parts = []
    for check, findings in checks.items():
        # Weights without a gradient were named as such.
        unknown = [one.layer for one in findings if one.verdict == "not measured" and not is_untrained(one)]
        layers = len(of_layers([finding.layer for finding in findings]))
        if unknown == [WHOLE_RUN] and layers:
            parts.append(f"{check} of the {WHOLE_RUN}")
        elif unknown:
            missing = len(of_layers(unknown))
            where = f"in {missing} of {layers}" if missing else f"of {', '.join(unknown)}"
            parts.append(check if missing == layers else f"{check} {where}")
    return f"not measured: {', '.join(parts)}" if parts else ""


def _all(count: int) -> str:
    return "the one layer" if count == 1 else f"all {count:,} layers"
