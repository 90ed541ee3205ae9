"""What each figure asks of the analysis: one function a figure, from a recording to the arguments of its plot function.

Nothing is computed here: every argument is an answer of :mod:`covshift.analysis` or :mod:`covshift.diagnosis`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import xarray as xr

from covshift.analysis import comparison, dead_units, distributions, gradient_health, linkage, rows, shift
from covshift.diagnosis import Diagnosis, Finding, diagnose
from covshift.diagnosis.diagnosis import WHOLE_RUN
from covshift.diagnosis.rules import RULES
from covshift.exceptions import InvalidArgumentError, SignalNotRecorded
from covshift.plots.selection import chosen

Answers = tuple[tuple[Any, ...], dict[str, Any]]
Answer = TypeVar("Answer")

CURVES = ("loss", "accuracy")
"""Logged scalars whose curves are compared: every name that holds one of these words, or else the first logged."""

MOST_CURVES = 3


@dataclass(frozen=True)
class Subject:
    """What a figure is of: one recording or several by name, and the diagnosis where it is known."""

    runs: Mapping[str, xr.DataTree]
    diagnosis: Diagnosis | None = None

    @classmethod
    def of(cls, recording: xr.DataTree | Mapping[str, xr.DataTree], *, diagnosis: Diagnosis | None = None) -> Subject:
        """The subject of one recording, or of several by name."""
        if isinstance(recording, xr.DataTree):
            return cls({str(recording.attrs.get("run_name", "run")): recording}, diagnosis)
        if not isinstance(recording, Mapping) or not recording:
            raise InvalidArgumentError(
                f"recording: expected the xarray.DataTree that covshift.open returns, or several as {{name: "
                f"recording}}, got {type(recording).__name__}"
            )
        return cls({str(name): run for name, run in recording.items()}, diagnosis)

    @property
    def recording(self) -> xr.DataTree:
        """The only recording."""
        if len(self.runs) > 1:
            raise InvalidArgumentError(
                f"recording: {len(self.runs)} given to a figure of one; only 'comparison' takes more"
            )
        return next(iter(self.runs.values()))

    @property
    def layers(self) -> list[str]:
        """Names of the layers of all recordings, in their order."""
        names = (rows.names(rows.group(recording, "layers")).tolist() for recording in self.runs.values())
        return list(dict.fromkeys(name for one in names for name in one))

    def layer(self, name: str | None) -> str | None:
        """``name``, which must be a layer."""
        return None if name is None else chosen(name, self.layers)

    def findings(self, *checks: str) -> list[Finding]:
        """Findings of some checks: those of the diagnosis, else their rules' own."""
        if self.diagnosis is not None:
            return [finding for finding in self.diagnosis.findings if finding.check in checks]
        found = (_known(lambda check=check: RULES[check](self.recording)) for check in checks)  # type: ignore[misc]
        return [finding for one in found for finding in one or []]


def verdicts(subject: Subject, layer: str | None) -> Answers:
    """The diagnosis, of one layer or all."""
    diagnosis = subject.diagnosis or diagnose(subject.recording)
    if layer is None:
        return (diagnosis,), {}
    kept = tuple(finding for finding in diagnosis.findings if finding.layer in (layer, WHOLE_RUN))
    return (Diagnosis(kept, (layer,)),), {}


def river(subject: Subject, layer: str | None) -> Answers:
    """The distribution of one layer: of what enters a nonlinearity, of what leaves another layer."""
    name, signal = _drawn_layer(subject, layer)
    return (distributions.river(subject.recording, layer=name, signal=signal),), {}


def shift_map(subject: Subject, layer: str | None) -> Answers:
    """Distances of every layer from the previous histogram."""
    return (_of_layer(shift.between_steps(subject.recording), layer),), {}


def zeros(subject: Subject, layer: str | None) -> Answers:
    """Zeros of dL/dz at the nonlinearities where they are known, else of the gradient at every layer's output."""
    recording = subject.recording
    rates, structural = gradient_health.zero_rate(recording), None
    split = _known(lambda: linkage.violation_rate(recording))
    covers = split is not None and (layer is None or layer in split["layer"].values)
    if split is not None and covers and bool(split["gradient_zero_rate"].notnull().any()):
        rates, structural = split["gradient_zero_rate"], split["structural_rate"]
    units = _known(lambda: dead_units.dead_units(recording))
    survival = None if units is None else dead_units.survival(units)
    if survival is not None and layer is not None and layer not in survival["layer"].values:
        survival = None
    options = {"structural": None if structural is None else _of_layer(structural, layer)}
    return (_of_layer(rates, layer), None if survival is None else _of_layer(survival, layer)), options


def norm(subject: Subject, layer: str | None) -> Answers:
    """Sizes of gradients over depth."""
    return (gradient_health.norm_profile(subject.recording),), {}


def compared(subject: Subject, layer: str | None) -> Answers:
    """The runs layer by layer, and their logged curves."""
    curves = {name: comparison.scalars(subject.runs, name) for name in compared_scalars(subject.runs)}
    return (_of_layer(comparison.paired_layers(subject.runs), layer), curves), {}


def compared_scalars(recordings: Mapping[str, xr.DataTree]) -> list[str]:
    """Logged scalars that have a course, not merely a value: those of :data:`CURVES` where there are any."""
    logged: dict[str, None] = {}
    for recording in recordings.values():
        scalars = _known(lambda recording=recording: rows.group(recording, "scalars"))  # type: ignore[misc]
        if scalars is not None:
            plain = scalars.drop_vars("wall_time", errors="ignore")
            logged |= dict.fromkeys(str(name) for name, values in plain.items() if int(values.notnull().sum()) > 1)
    found = [name for name in logged if any(word in name for word in CURVES)]
    return (found or list(logged))[:MOST_CURVES]


def _drawn_layer(subject: Subject, layer: str | None) -> tuple[str, str]:
    """A layer and the signal to draw: the one asked for, else the worst, else the middle nonlinearity."""
    layers = rows.group(subject.recording, "layers")
    names, nonlinear = rows.names(layers).tolist(), rows.nonlinear(layers).tolist()
    if not names:
        raise SignalNotRecorded("recording: holds no layer; run a forward pass inside covshift.record")
    flagged = [finding.layer for finding in subject.diagnosis.causes] if subject.diagnosis is not None else []
    inside = [name for name, is_one in zip(names, nonlinear, strict=True) if is_one] or names
    wanted = [layer] if layer is not None else [name for name in flagged if name in names]
    name = wanted[0] if wanted else inside[len(inside) // 2]
    return name, "preactivation" if nonlinear[names.index(name)] else "activation"


def _of_layer(answer: Any, layer: str | None) -> Any:
    """``answer`` at one layer, its axis kept."""
    if layer is None:
        return answer
    return answer.sel(layer=[chosen(layer, rows.names(answer).tolist())])


def _known(answer: Callable[[], Answer]) -> Answer | None:
    """An answer, or None where the recording lacks what it needs."""
    try:
        return answer()
    except SignalNotRecorded:
        return None
