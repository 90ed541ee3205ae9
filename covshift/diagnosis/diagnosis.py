"""The diagnosis of a recording: all findings, worst first, and the one sentence that sums them up."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from covshift import schema
from covshift.analysis import rows
from covshift.diagnosis import notebook, sentence, terminal
from covshift.diagnosis.broken import without_numbers
from covshift.diagnosis.causes import Order, by_severity, explained, standing
from covshift.diagnosis.finding import SEVERITY, WHOLE_RUN, Finding, not_measured, worst
from covshift.diagnosis.rules import RULES, Rule
from covshift.diagnosis.threshold import Verdict
from covshift.diagnosis.unit_rules import dead_share
from covshift.exceptions import SignalNotRecorded

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Group

__all__ = ["WHOLE_RUN", "Diagnosis", "Finding", "diagnose"]

JSON_VERSION = 1


@dataclass(frozen=True)
class Diagnosis:
    """What the rules found in one recording.

    Attributes
    ----------
    findings : tuple of Finding
        Worst first; of one verdict, those that no other explains first, then those that began earlier, then in the
        order of checks and depth. Findings that are ok or not measured are among them.
    layers : tuple of str
        Layers of the recording in order of depth.
    """

    findings: tuple[Finding, ...]
    layers: tuple[str, ...]

    @property
    def worst(self) -> Verdict:
        """The worst verdict of all; ``not measured`` only where nothing was."""
        return worst([finding.verdict for finding in self.findings])

    @property
    def sentence(self) -> str:
        """The diagnosis in one sentence: gradient, units, what else is amiss, what is unknown."""
        return sentence.of(self.findings)

    def grid(self) -> xr.DataArray:
        """Verdicts by layer and check.

        Returns
        -------
        DataArray of str
            Dims ``(layer, check)``: ``"whole run"``, layers with findings in order of depth, then owners of parameters
            that are no layer. ``""`` where a check does not apply; of several findings in one cell the worst.
        """
        order = dict.fromkeys((WHOLE_RUN, *self.layers, *(finding.layer for finding in self.findings)))
        present = {finding.layer for finding in self.findings}
        layers = [layer for layer in order if layer in present]
        cells: dict[tuple[str, str], list[Verdict]] = {}
        for finding in self.findings:
            cells.setdefault((finding.layer, finding.check), []).append(finding.verdict)
        verdicts = [
            [worst(cells[layer, check]) if (layer, check) in cells else "" for check in RULES] for layer in layers
        ]
        values = np.array(verdicts, dtype="<U12").reshape(len(layers), len(RULES))
        return xr.DataArray(values, {"layer": layers, "check": list(RULES)}, ("layer", "check"), "verdict")

    def to_dict(self) -> dict[str, Any]:
        """The diagnosis as JSON types: version, sentence, worst verdict, findings. NaN and infinities become None."""
        return {
            "covshift_diagnosis_version": JSON_VERSION,
            "sentence": self.sentence,
            "worst": self.worst,
            "findings": [finding.to_dict() for finding in self.findings],
        }

    def to_frame(self) -> pd.DataFrame:
        """One row per finding, columns as the attributes of :class:`Finding`, thresholds in words."""
        import pandas as pd

        records = [vars(finding) | {"threshold": str(finding.threshold or "")} for finding in self.findings]
        return pd.DataFrame(records, columns=list(Finding.__dataclass_fields__))

    @property
    def causes(self) -> tuple[Finding, ...]:
        """Findings to watch or worse that no other finding explains.

        Worst first, where a cause counts as bad as the worst that follows from it; of one verdict, those from which
        most follows. This order is that of the page and of the terminal.
        """
        return tuple(finding for _, finding in by_severity(self.findings))

    def __str__(self) -> str:
        """The sentence, and each cause on a line of its own."""
        told = (f"{standing(f, verdict)}: {f.check}: {f.reason}" for verdict, f in by_severity(self.findings))
        return "\n".join([self.sentence, *told])

    def __rich__(self) -> Group:
        return terminal.shown(self.sentence, self.findings)

    def _repr_html_(self) -> str:
        return notebook.diagnosis_html(self.sentence, self.findings)


def diagnose(recording: xr.DataTree, *, distinct_examples: int | None = None) -> Diagnosis:
    """Judge a recording: every check on every layer.

    Parameters
    ----------
    recording : DataTree
        As ``covshift.open`` or ``recorder.recording`` return it. What it lacks makes findings ``not measured``.
    distinct_examples : int, optional
        Size of the training set: evidence that a unit is dead counts no example twice. Without it, every example seen
        counts.

    Returns
    -------
    Diagnosis
        One run is one run: findings state how many records and examples they rest on and say nothing of other seeds.

    Raises
    ------
    InvalidArgumentError
        If ``recording`` is no DataTree, or one of several runs, or ``distinct_examples`` is below 1.
    RecordingDamaged
        If the recording does not have the schema of this version.
    """
    rows.group(recording, "layers")
    schema.check(recording)
    return judged(rows.in_memory(recording), {"units": partial(dead_share, distinct_examples=distinct_examples)})


def judged(recording: xr.DataTree, instead: Mapping[str, Rule]) -> Diagnosis:
    """:func:`diagnose` of a sound recording by the rules, some of them replaced: by check, those that know more."""
    rules = {**RULES, **instead}
    findings = [finding for check, rule in rules.items() for finding in _findings(check, rule, recording)]
    if not any(recording[name].sizes.get("step", 0) for name in recording.groups):
        findings = [not_measured(one.check, one.layer, sentence.NOTHING, sentence.RECORD) for one in findings]
    findings = explained(without_numbers(findings, recording), Order.of(recording))
    layers = rows.group(recording, "layers")
    order = np.argsort(layers["depth"].values, kind="stable")
    names = tuple(rows.names(layers)[order].tolist())
    return Diagnosis(tuple(_ranked(findings, names)), names)


def _findings(check: str, rule: Rule, recording: xr.DataTree) -> list[Finding]:
    try:
        return rule(recording)
    except SignalNotRecorded as missing:
        return [not_measured(check, WHOLE_RUN, f"{WHOLE_RUN}: {missing}", "record what is named as missing")]


def _ranked(findings: list[Finding], layers: tuple[str, ...]) -> list[Finding]:
    depth = {layer: index for index, layer in enumerate(layers)}
    checks = list(RULES)

    def rank(finding: Finding) -> tuple[int, bool, float, int, int]:
        begun = math.inf if finding.since_step is None else finding.since_step
        place = depth.get(finding.layer, -1 if finding.layer == WHOLE_RUN else len(layers))
        return SEVERITY.index(finding.verdict), bool(finding.explained_by), begun, checks.index(finding.check), place

    return sorted(findings, key=rank)
