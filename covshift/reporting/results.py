"""What the analysis says of one run, gathered once for numbers and figures, and why anything is missing.

Nothing is computed here: every attribute is the answer of one function of the analysis wing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import xarray as xr

from covshift.analysis import dead_units, gradient_health, linkage, rows, shift
from covshift.diagnosis import Diagnosis
from covshift.exceptions import SignalNotRecorded

Answer = TypeVar("Answer", xr.Dataset, xr.DataArray)


@dataclass(frozen=True)
class Results:
    """Answers about one run; None where the recording lacks what they need, with the reason in ``missing``."""

    name: str
    recording: xr.DataTree
    diagnosis: Diagnosis
    paired: xr.Dataset
    shift: xr.Dataset | None
    zero_rate: xr.DataArray | None
    profile: xr.Dataset | None
    linkage: xr.Dataset | None
    members: xr.Dataset | None
    units: xr.Dataset | None
    units_stream: str
    survival: xr.DataArray | None
    update_ratio: xr.DataArray | None
    missing: dict[str, str] = field(default_factory=dict)


def gather(name: str, recording: xr.DataTree, diagnosis: Diagnosis, paired: xr.Dataset) -> Results:
    """Everything a report says about ``recording``.

    Parameters
    ----------
    name : str
        Name of the run.
    recording : DataTree
        See :mod:`covshift.schema`.
    diagnosis : Diagnosis
        Of the recording.
    paired : Dataset
        The run's part of :func:`covshift.analysis.comparison.paired_layers`, dims ``(layer,)``.

    Returns
    -------
    Results
        Units and linkages are those of the last evaluation pass where there was one: an exact statement about its
        examples. Survival over steps is that of the training batches.
    """
    missing: dict[str, str] = {}

    def ask(question: str, answer: Callable[[], Answer]) -> Answer | None:
        try:
            return answer()
        except SignalNotRecorded as reason:
            missing[question] = str(reason)
            return None

    trained = ask("survival", lambda: dead_units.dead_units(recording))
    stream = "evaluation" if "/evaluation/units" in recording.groups else "train"
    evaluated = ask("units", lambda: dead_units.dead_units(recording, stream=stream))
    return Results(
        name=name,
        recording=recording,
        diagnosis=diagnosis,
        paired=paired,
        shift=ask("shift", lambda: shift.between_steps(recording)),
        zero_rate=ask("gradient", lambda: gradient_health.zero_rate(recording)),
        profile=ask("depth", lambda: gradient_health.norm_profile(recording)),
        linkage=ask("linkage", lambda: linkage.violation_rate(recording)),
        members=ask("members", lambda: linkage.silent_members(recording, stream=stream)),
        units=evaluated,
        units_stream=stream,
        survival=None if trained is None else dead_units.survival(trained),
        update_ratio=ask("parameters", lambda: gradient_health.update_ratio(recording)),
        missing=missing,
    )


def windowed(values: xr.DataArray) -> xr.DataArray:
    """Medians of ``values`` over the records that a verdict about "now" rests on."""
    return values.isel(step=rows.last_window(values.sizes["step"])).compute().median("step")
