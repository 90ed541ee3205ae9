"""What each figure asks of the analysis: one function a figure, from a recording to the arguments of its plot function.

Nothing is computed here: every argument is an answer of :mod:`covshift.analysis` or :mod:`covshift.diagnosis`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import xarray as xr

from covshift.analysis import (
    comparison,
    dead_units,
    distributions,
    gradient_health,
    linkage,
    operating_point,
    operating_track,
    parameter_norms,
    ridges,
    rows,
    seeds,
    shift,
    stability_history,
    unit_history,
)
from covshift.analysis.differences import group_differences
from covshift.analysis.effects import effect_sizes
from covshift.analysis.unit_activity import UnitActivity
from covshift.diagnosis import Diagnosis, Finding, diagnose
from covshift.diagnosis.causes import by_severity
from covshift.diagnosis.diagnosis import WHOLE_RUN
from covshift.diagnosis.finding import ROOT
from covshift.exceptions import InvalidArgumentError, SignalNotRecorded
from covshift.plots.selection import chosen

Answers = tuple[tuple[Any, ...], dict[str, Any]]
Answer = TypeVar("Answer")

PROBES = ("gradient_ics", "shift_attribution")
"""Groups under which results of :mod:`covshift.probe` may stand beside a recording's own."""

CURVES = ("loss", "accuracy")
"""Logged scalars whose curves are compared: every name that holds one of these words, or else the first logged."""

MOST_CURVES = 3


@dataclass(frozen=True)
class Subject:
    """What a figure is of: one recording or several by name, and the diagnosis where it is known.

    Findings are always those of the whole diagnosis: a figure's own checks alone could not tell cause from consequence,
    and the same figure would name another layer elsewhere.
    """

    runs: Mapping[str, xr.DataTree]
    diagnosis: Diagnosis | None = None

    @classmethod
    def of(cls, recording: xr.DataTree | Mapping[str, xr.DataTree], *, diagnosis: Diagnosis | None = None) -> Subject:
        """The subject of one recording, or of several by name."""
        if isinstance(recording, xr.DataTree):
            return cls({str(recording.attrs.get("run_name", "run")): recording}, diagnosis)
        runs = dict(recording) if isinstance(recording, Mapping) else {}
        if not runs or not all(isinstance(run, xr.DataTree) for run in runs.values()):
            raise InvalidArgumentError(
                f"recording: expected the xarray.DataTree that covshift.open returns, or several as {{name: "
                f"recording}}, got {type(recording).__name__}"
            )
        return cls({str(name): run for name, run in runs.items() if isinstance(run, xr.DataTree)}, diagnosis)

    @property
    def recording(self) -> xr.DataTree:
        """The only recording."""
        if len(self.runs) > 1:
            raise InvalidArgumentError(
                f"recording: {len(self.runs)} given to a figure of one; only 'comparison' and 'differences' take more"
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

    @cached_property
    def judged(self) -> Diagnosis:
        """The diagnosis of the only recording: the one given, else made once."""
        return self.diagnosis or diagnose(self.recording)

    def findings(self, *checks: str, layers: Collection[str | None] = (None,)) -> list[Finding]:
        """Findings of some checks, of some layers or (None) all."""
        found = [finding for finding in self.judged.findings if finding.check in checks]
        return [finding for finding in found if None in layers or finding.layer in layers]


def verdicts(subject: Subject, layer: str | None) -> Answers:
    """The diagnosis, of one layer or all."""
    diagnosis = subject.judged
    if layer is None:
        return (diagnosis,), {}
    kept = tuple(finding for finding in diagnosis.findings if finding.layer in (layer, WHOLE_RUN))
    return (Diagnosis(kept, (layer,)),), {}


def river(subject: Subject, layer: str | None) -> Answers:
    """The distribution of one layer: of what enters a nonlinearity, of what leaves another layer."""
    name, signal = _drawn_layer(subject, layer)
    return (distributions.river(subject.recording, layer=name, signal=signal),), {}


def ridgeline(subject: Subject, layer: str | None) -> Answers:
    """Nonlinearities at the first and the last histogram; of one layer three, at the first, middle and last."""
    if layer is None:
        return (ridges.ridges(subject.recording),), {}
    name, signal = _drawn_layer(subject, layer)
    steps = rows.group(subject.recording, "histograms")["step"].values
    at = sorted({int(steps[index]) for index in (0, len(steps) // 2, len(steps) - 1)}) if len(steps) else None
    return (ridges.ridges(subject.recording, layers=[name], steps=at, signal=signal),), {}


def shift_map(subject: Subject, layer: str | None) -> Answers:
    """Distances of every layer from the previous histogram."""
    moved = _of_layer(shift.between_steps(subject.recording), layer)
    return (moved,), {"findings": subject.findings("shift", layers=[layer])}


def track(subject: Subject, layer: str | None) -> Answers:
    """Path of one nonlinearity's z."""
    name = layer or _drawn_nonlinearity(subject)
    return (operating_track.operating_track(subject.recording, layer=name),), {}


def settled(subject: Subject, layer: str | None) -> Answers:
    """State of every operating point at the end; of one layer, what it would have been before."""
    state = operating_point.stability(subject.recording)
    if layer is None:
        return (state,), {}
    return (state, stability_history.stability_history(subject.recording)), {"layer": layer}


def zeros(subject: Subject, layer: str | None) -> Answers:
    """Zeros of dL/dz at the nonlinearities where they are known, else of the gradient at every layer's output."""
    recording = subject.recording
    rates, structural = gradient_health.zero_rate(recording), None
    split = _known(lambda: linkage.violation_rate(recording))
    covers = split is not None and (layer is None or layer in split["layer"].values)
    if split is not None and covers and bool(split["gradient_zero_rate"].notnull().any()):
        rates, structural = split["gradient_zero_rate"], split["structural_rate"]
        made_by = rows.layer_coordinate(recording, "preactivation_of").sel(layer=rates["layer"])
        rates = rates.assign_coords(producer=("layer", rows.names(made_by.rename("made_by").to_dataset(), "made_by")))
    units = _known(lambda: dead_units.dead_units(recording))
    survival = None if units is None else dead_units.survival(units)
    if survival is not None and layer is not None and layer not in survival["layer"].values:
        survival = None
    rates = _of_layer(rates, layer)
    judged_under = rates["producer"].values.tolist() if layer is not None and "producer" in rates.coords else []
    return (rates, None if survival is None else _of_layer(survival, layer)), {
        "structural": None if structural is None else _of_layer(structural, layer),
        "findings": subject.findings("gradient arrives", "gradient zeros", layers=[layer, *judged_under]),
    }


def units(subject: Subject, layer: str | None) -> Answers:
    """Fates of units at every record of training, and what evaluation passes say of them."""
    chosen_layers = None if layer is None else [chosen(layer, _with_units(subject.recording), what="layer with units")]
    evaluated = _known(lambda: dead_units.dead_units(subject.recording, layers=chosen_layers, stream="evaluation"))
    return (unit_history.unit_history(subject.recording, layers=chosen_layers), evaluated), {"layer": layer}


def _with_units(recording: xr.DataTree) -> list[str]:
    """Names of the nonlinearities of which units were recorded."""
    activity = UnitActivity.of(recording, layers=None, signal="activation", stream="train")
    return list(dict.fromkeys(activity.layer.tolist()))


def update_ratio(subject: Subject, layer: str | None) -> Answers:
    """Updates of the parameters of two or more axes, of all layers or of one."""
    ratio = gradient_health.update_ratio(subject.recording)
    owners = [str(name).rpartition(".")[0] or ROOT for name in rows.names(ratio, "parameter")]
    matrix = rows.group(subject.recording, "parameters")["parameter_ndim"].values >= 2
    kept = matrix if layer is None else np.array([owner == layer for owner in owners], dtype=bool)
    if layer is not None and not kept.any():
        raise SignalNotRecorded(
            f"layer {layer!r}: no parameter of it was recorded; owners: {', '.join(sorted(set(owners))[:8])}"
        )
    return (ratio.isel(parameter=kept),), {"findings": subject.findings("update ratio", layers=[layer])}


def norm(subject: Subject, layer: str | None) -> Answers:
    """Sizes of gradients over depth, and of the parameters' before and after clipping."""
    parameters = _known(lambda: parameter_norms.parameter_norms(subject.recording))
    return (gradient_health.norm_profile(subject.recording), parameters), {}


def ics(subject: Subject, layer: str | None) -> Answers:
    """Results of the probes, which whoever ran them put beside the recording: no recording holds gradients."""
    found = {name: subject.recording.get(name) for name in PROBES}
    measured, attributed = (node.to_dataset() if isinstance(node, xr.DataTree) else None for node in found.values())
    if measured is None:
        raise SignalNotRecorded(
            f"recording: no group '{PROBES[0]}'; measure it with covshift.probe.gradient_ics(...) and put it there: "
            f"recording['{PROBES[0]}'] = xarray.DataTree(result)"
        )
    return (measured, attributed), {}


def compared(subject: Subject, layer: str | None) -> Answers:
    """The runs layer by layer, and their logged curves; seeds of one variant are taken together."""
    paired = _of_layer(comparison.paired_layers(subject.runs), layer)
    curves: dict[str, Any] = {name: comparison.scalars(subject.runs, name) for name in compared_scalars(subject.runs)}
    groups = seeds.seed_groups(subject.runs)
    if len(set(groups.values())) == len(groups):
        return (paired, curves), {}
    together = {name: seeds.over_seeds(curve.to_dataset(name=name), groups) for name, curve in curves.items()}
    apart = effect_sizes(paired, groups) if len(set(groups.values())) > 1 else None
    return (seeds.over_seeds(paired, groups), together), {"effects": apart}


def differences(subject: Subject, layer: str | None) -> Answers:
    """Groups of runs against the first of them, layer by layer and step by step."""
    return (_of_layer(group_differences(subject.runs), layer),), {}


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
    flagged = _worst_first(subject) if layer is None else []
    inside = [name for name, is_one in zip(names, nonlinear, strict=True) if is_one] or names
    wanted = [layer] if layer is not None else [name for name in flagged if name in names]
    name = wanted[0] if wanted else inside[len(inside) // 2]
    return name, "preactivation" if nonlinear[names.index(name)] else "activation"


def _worst_first(subject: Subject) -> list[str]:
    """Layers of causes in the order in which a report tells them."""
    return [finding.layer for _, finding in by_severity(subject.judged.findings)]


def _drawn_nonlinearity(subject: Subject) -> str:
    """The nonlinearity to draw: the worst, or the one that follows the worst layer; else the middle one."""
    layers = rows.group(subject.recording, "layers")
    names, inside = rows.names(layers), rows.nonlinearities(layers)
    made_by = dict(zip(rows.names(layers, "preactivation_of")[inside], names[inside], strict=True))
    flagged = _worst_first(subject)
    wanted = [made_by.get(name, name) for name in flagged]
    return next((str(name) for name in wanted if name in names[inside]), str(names[inside][len(inside) // 2]))


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
