"""Every number and word of the report as one JSON-able structure, from which page and JSON file are both written.

A number that the page shows is addressed by its path in this structure, so the two cannot disagree. Layers, runs and
parameters stand in lists, never in keys: their names are data and may hold anything.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import xarray as xr

from covshift import schema
from covshift.analysis import rows
from covshift.diagnosis.causes import by_severity, following
from covshift.diagnosis.finding import Finding, of_layers
from covshift.diagnosis.threshold import Verdict
from covshift.diagnosis.thresholds import THRESHOLDS
from covshift.exceptions import SignalNotRecorded
from covshift.reporting import sections
from covshift.reporting.results import Results
from covshift.reporting.sections import number

FORMAT_VERSION = 3
VERDICTS = ("bad", "watch", "ok", "not measured")

FACTS = ("model", "variant", "seed", "torch_version", "device")
"""Attributes of a recording shown at the head of its run; all of them stand under provenance."""

MOST_LOSSES = 2
"""Logged losses shown there: whether the network learns is the first question to any finding about it."""

NOT_PROVENANCE = ("covshift_commit", "covshift_model", "Conventions", "warnings")


def report_content(
    title: str, runs: Sequence[Mapping[str, Any]], *, comparison: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The whole report.

    Parameters
    ----------
    title : str
        Heading of the page.
    runs : sequence of mapping
        From :func:`run_content`, or :func:`empty_run` or :func:`damaged_run` where there is nothing to tell.
    comparison : mapping, optional
        From :func:`covshift.reporting.side_by_side.comparison_content`.

    Returns
    -------
    dict
        JSON types only; NaN and infinities are None. ``runs`` holds one entry a run, ``methods`` the thresholds.
    """
    return {
        "format": "covshift-report",
        "version": FORMAT_VERSION,
        "title": title,
        "runs": list(runs),
        "comparison": comparison,
        "methods": {"thresholds": [_threshold(name) for name in THRESHOLDS]},
    }


def run_content(result: Results) -> dict[str, Any]:
    """Numbers, findings and provenance of one run."""
    grid = result.diagnosis.grid().transpose("layer", "check")
    return {
        "name": result.name,
        "recorded": True,
        "verdict": result.diagnosis.worst,
        "sentence": result.diagnosis.sentence,
        "facts": _facts(result.recording),
        "warnings": _warnings(result.recording),
        "layers_by_verdict": _layers_by_verdict(grid),
        "findings": result.diagnosis.to_dict()["findings"],
        "groups": _groups(result.diagnosis.findings),
        "grid": {name: grid[name].values.tolist() for name in ("check", "layer")} | {"verdict": grid.values.tolist()},
        "logged": _logged(result.recording),
        "layers": sections.layers(result),
        "course": sections.course(result),
        "shift": sections.shift(result),
        "operating": sections.operating(result),
        "depth": sections.depth(result),
        "units": sections.units(result),
        "linkage": sections.linkage(result),
        "parameters": sections.parameters(result),
        "cost": sections.cost(result),
        "provenance": _provenance(result.recording),
        "missing": result.missing,
    }


def empty_run(name: str, recording: xr.DataTree) -> dict[str, Any]:
    """A run without a single record: facts, provenance, and a sentence that says so."""
    facts = _facts(recording)
    sentence = (
        f"Nothing was recorded: the recording holds {facts['records']} records of {facts['layers']} layers. Run at "
        "least one forward and backward pass and one optimizer step inside covshift.record."
    )
    return {
        "name": name,
        "recorded": False,
        "verdict": "not measured",
        "sentence": sentence,
        "facts": facts,
        "warnings": _warnings(recording),
        "logged": _logged(recording),
        "provenance": _provenance(recording),
    }


def damaged_run(name: str, reason: str) -> dict[str, Any]:
    """A run that cannot be read, and why."""
    sentence = f"Cannot be read: {reason}. Nothing else is known of this run."
    return {
        "name": name,
        "recorded": False,
        "verdict": "not measured",
        "sentence": sentence,
        "facts": {},
        "warnings": [],
        "logged": [],
        "provenance": [],
    }


def _facts(recording: xr.DataTree) -> dict[str, Any]:
    layers = rows.group(recording, "layers")
    steps = layers["step"].values
    told = {name: _plain(recording.attrs[name]) for name in FACTS if recording.attrs.get(name) not in (None, "")}
    return told | {
        "layers": sum(not schema.is_model_input(name) for name in rows.names(layers).tolist()),
        "records": layers.sizes["step"],
        "first_step": number(steps[0]) if steps.size else None,
        "last_step": number(steps[-1]) if steps.size else None,
        "left_open": rows.is_left_open(recording),
        "histograms": _records_of(recording, "histograms"),
        "wall_seconds": _wall_seconds(recording),
        "losses": [logged for logged in _logged(recording) if "loss" in logged["name"]][:MOST_LOSSES],
    }


def _plain(value: Any) -> str | int | float | None:
    return number(value) if isinstance(value, int | float) else str(value)


def _records_of(recording: xr.DataTree, name: str) -> int:
    try:
        return int(rows.group(recording, name).sizes["step"])
    except SignalNotRecorded:
        return 0


def _wall_seconds(recording: xr.DataTree) -> float | None:
    """Seconds from the first to the last step written; ``covshift.open`` decodes wall times to datetimes."""
    try:
        times = rows.group(recording, "scalars")["wall_time"].values
    except SignalNotRecorded:
        return None
    known = times[np.isfinite(times)]
    return float((known[-1] - known[0]) / np.timedelta64(1, "s")) if known.size > 1 else None


def _layers_by_verdict(grid: xr.DataArray) -> dict[str, int]:
    """Layers counted by their worst check; what concerns the whole run or the model's input is no layer."""
    rows_ = grid.isel(layer=of_layers(grid["layer"].values.tolist())).values.tolist()
    worst = [next((verdict for verdict in VERDICTS if verdict in row), "not measured") for row in rows_]
    return {verdict.replace(" ", "_"): worst.count(verdict) for verdict in VERDICTS}


def _groups(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    """What is not ok: causes of one check and severity together, worst first, then what was not measured by check.

    Causes stand in the order of :func:`covshift.diagnosis.causes.by_severity`, and groups in that of the first of
    theirs. ``lead`` and ``others`` are positions of causes in ``findings``; ``explains`` those of their consequences,
    and ``consequences`` counts these by check.
    """
    groups: dict[tuple[Verdict, str], list[Finding]] = {}
    unknown: list[tuple[Verdict, Finding]] = [(one.verdict, one) for one in findings if one.verdict == "not measured"]
    for verdict, finding in [*by_severity(findings), *unknown]:
        groups.setdefault((verdict, finding.check), []).append(finding)
    return [_group(findings, verdict, causes) for (verdict, _), causes in groups.items()]


def _group(findings: Sequence[Finding], verdict: Verdict, causes: Sequence[Finding]) -> dict[str, Any]:
    position = {id(finding): at for at, finding in enumerate(findings)}
    lead, *others = (position[id(cause)] for cause in causes)
    after = [one for cause in causes for one in following(cause, findings)]
    counts = Counter(one.check for one in after)
    return {
        "check": causes[0].check,
        "verdict": verdict,
        "count": len(causes),
        "lead": lead,
        "others": others,
        "explains": [position[id(one)] for one in after],
        "consequences": [{"check": name, "count": number} for name, number in counts.items()],
    }


def _logged(recording: xr.DataTree) -> list[dict[str, Any]]:
    """First and last finite value of everything logged, and their steps: a loss may be finite no longer than that."""
    try:
        scalars = rows.group(recording, "scalars")
    except SignalNotRecorded:
        return []
    entries = []
    for name in scalars.data_vars:
        known = scalars[name].values[np.isfinite(scalars[name].values)]
        if name != "wall_time" and known.size:
            steps = scalars["step"].values[np.isfinite(scalars[name].values)]
            ends = {"first": number(known[0]), "last": number(known[-1]), "n": int(known.size)}
            ends |= {"first_step": int(steps[0]), "last_step": int(steps[-1])}
            ends["ended_before"] = rows.ended_before(scalars[name].values)
            entries.append({"name": str(name)} | ends)
    return entries


def _warnings(recording: xr.DataTree) -> list[str]:
    """What the recorder could not record, or found amiss, in its own words."""
    return [str(message) for message in schema.attribute(recording.attrs, "warnings", [])]


def _provenance(recording: xr.DataTree) -> list[dict[str, str]]:
    kept = {name: value for name, value in recording.attrs.items() if name not in NOT_PROVENANCE}
    return [{"name": str(name), "value": str(value)} for name, value in kept.items() if str(value) != ""]


def _threshold(name: str) -> dict[str, Any]:
    fields = asdict(THRESHOLDS[name])
    return {"name": name} | {key: list(v) if isinstance(v, tuple) else v for key, v in fields.items()}
