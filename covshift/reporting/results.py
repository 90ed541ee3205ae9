"""What the analysis says of one run, gathered once for numbers and figures, and why anything is missing.

Nothing is computed here: every attribute is the answer of one function of the analysis wing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import numpy as np
import xarray as xr

from covshift.analysis import dead_units, gradient_health, linkage, operating_point, rows, shift
from covshift.analysis.recording_cost import recording_cost
from covshift.diagnosis import Diagnosis, streams
from covshift.diagnosis.diagnosis import judged
from covshift.diagnosis.finding import of_layers
from covshift.diagnosis.operating_rules import operating_points, unmeasured
from covshift.diagnosis.rules import Rule
from covshift.diagnosis.shift_rules import distribution_shift
from covshift.exceptions import SignalNotRecorded

Answer = TypeVar("Answer", xr.Dataset, xr.DataArray)


@dataclass(frozen=True)
class Results:
    """Answers about one run; None where the recording lacks what they need, with the reason in ``missing``.

    There also is a reason why ``stability`` tells the state of no layer, where that is so.
    """

    name: str
    recording: xr.DataTree
    diagnosis: Diagnosis
    measures: xr.Dataset
    shift: xr.Dataset | None
    stability: xr.Dataset | None
    zero_rate: xr.DataArray | None
    profile: xr.Dataset | None
    linkage: xr.Dataset | None
    members: xr.Dataset | None
    units: xr.Dataset | None
    units_stream: str
    trained_units: xr.Dataset | None
    survival: xr.DataArray | None
    update_ratio: xr.DataArray | None
    cost: xr.Dataset | None
    missing: dict[str, str] = field(default_factory=dict)


def gather(name: str, recording: xr.DataTree, diagnosis: Diagnosis | None = None) -> Results:
    """Everything a report says about ``recording``.

    Parameters
    ----------
    name : str
        Name of the run.
    recording : DataTree
        See :mod:`covshift.schema`.
    diagnosis : Diagnosis, optional
        Of the recording; made here by default, from the answers that a report holds anyway.

    Returns
    -------
    Results
        Units and linkages are those of the last evaluation pass where there is one in the last window of training, as
        in the findings: an exact statement about its examples. Survival over steps is that of the training batches.
    """
    missing: dict[str, str] = {}

    def ask(question: str, answer: Callable[[], Answer]) -> Answer | None:
        try:
            return answer()
        except SignalNotRecorded as reason:
            missing[question] = str(reason)
            return None

    trained = ask("survival", lambda: dead_units.dead_units(recording))
    stream = "evaluation" if streams.is_recent(recording, "evaluation", "units") else "train"
    evaluated = ask("units", lambda: dead_units.dead_units(recording, stream=stream))
    moved = ask("shift", lambda: shift.between_steps(recording, js=False))
    zero_rate = ask("gradient", lambda: gradient_health.zero_rate(recording))
    split = ask("linkage", lambda: linkage.violation_rate(recording))
    settled = ask("operating", lambda: operating_point.stability(recording))
    if settled is not None and (why := unmeasured(settled.isel(layer=of_layers(rows.names(settled).tolist())))):
        missing["operating"] = why
    return Results(
        name=name,
        recording=recording,
        diagnosis=diagnosis or _diagnosis(recording, moved, settled),
        measures=_measures(recording, zero_rate, split, moved),
        shift=moved,
        stability=settled,
        zero_rate=zero_rate,
        profile=ask("depth", lambda: gradient_health.norm_profile(recording)),
        linkage=split,
        members=ask("members", lambda: linkage.silent_members(recording, stream=stream)),
        units=evaluated,
        units_stream=stream,
        trained_units=trained,
        survival=None if trained is None else dead_units.survival(trained),
        update_ratio=ask("parameters", lambda: gradient_health.update_ratio(recording)),
        cost=ask("cost", lambda: recording_cost(recording)),
        missing=missing,
    )


def _diagnosis(recording: xr.DataTree, moved: xr.Dataset | None, settled: xr.Dataset | None) -> Diagnosis:
    """What :func:`covshift.diagnosis.diagnose` gives, without comparing all histograms again."""
    known: dict[str, Rule] = {
        "shift": partial(distribution_shift, trained=moved),
        "operating point": partial(operating_points, trained=settled),
    }
    return judged(recording, known)


def _measures(
    recording: xr.DataTree, zero_rate: xr.DataArray | None, split: xr.Dataset | None, moved: xr.Dataset | None
) -> xr.Dataset:
    """The run's part of :func:`covshift.analysis.comparison.paired_layers`, from answers that are there already."""
    series = {
        "gradient_zero_rate": zero_rate,
        "structural_rate": None if split is None else split["structural_rate"],
        "gradient_rms": _moment(recording, "activation_grad", "rms"),
        "activation_sd": _moment(recording, "activation", "sd"),
        "w1": None if moved is None else moved["w1"].where(~moved["off_centre"]),
    }
    layers = rows.names(rows.group(recording, "layers"))
    blank = xr.DataArray(np.full(len(layers), np.nan), {"layer": layers}, ("layer",))
    return xr.Dataset(
        {
            name: blank if found is None else windowed(found).reset_coords(drop=True).reindex(layer=layers)
            for name, found in series.items()
        }
    )


def _moment(recording: xr.DataTree, signal: str, name: str) -> xr.DataArray | None:
    try:
        return rows.moments(recording, signal=signal)[name]
    except SignalNotRecorded:
        return None


def windowed(values: xr.DataArray) -> xr.DataArray:
    """Medians of ``values`` over the records that a verdict about "now" rests on."""
    return values.isel(step=rows.last_window(values.sizes["step"])).compute().median("step")
