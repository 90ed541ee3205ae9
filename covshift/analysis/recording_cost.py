"""What recording cost the run it recorded, from the run's own clock: no benchmark, an indication."""

from __future__ import annotations

import numpy as np
import xarray as xr

from covshift.analysis import rows
from covshift.exceptions import SignalNotRecorded

MIN_STEPS = 5
"""Fewest steps of either kind that are compared."""


def recording_cost(recording: xr.DataTree) -> xr.Dataset:
    """Time from one step to the next, where a step was recorded and where it was not.

    Whatever else happens at some steps only (evaluation, checkpoints, the first step's warm-up) is in these times, so
    medians are compared.

    Parameters
    ----------
    recording : DataTree
        Needs the groups ``layers`` and ``scalars``, the latter with a ``wall_time`` of steps that were not recorded.

    Returns
    -------
    Dataset
        Without dims: ``steps`` that have a time, ``recorded`` of them; ``recorded_seconds`` and ``plain_seconds``, the
        median times of either kind, NaN with fewer than 5 steps of it; ``share``, what recording added to the whole
        run relative to plain steps throughout, >= 0 but for noise, NaN where either median is.

    Raises
    ------
    SignalNotRecorded
        If no wall time was recorded.
    """
    scalars = rows.group(recording, "scalars")
    if "wall_time" not in scalars:
        raise SignalNotRecorded("scalars: no wall_time; it is written with what recorder.log is given")
    known = scalars["wall_time"].dropna("step")
    steps = known["step"].values
    seconds = np.diff(known.values) / np.timedelta64(1, "s")
    consecutive = np.diff(steps) == 1
    is_recorded = np.isin(steps[1:], rows.group(recording, "layers")["step"].values)
    recorded, plain = (_median(seconds[consecutive & kind]) for kind in (is_recorded, ~is_recorded))
    share = float(is_recorded.mean()) * (recorded / plain - 1) if len(seconds) and plain > 0 else np.nan
    return xr.Dataset(
        {
            "steps": ((), len(steps), {"units": "count"}),
            "recorded": ((), int(is_recorded.sum()), {"units": "count"}),
            "recorded_seconds": ((), recorded, {"units": "s"}),
            "plain_seconds": ((), plain, {"units": "s"}),
            "share": ((), share, {"units": "1"}),
        }
    )


def _median(values: np.ndarray) -> float:
    return float(np.median(values)) if len(values) >= MIN_STEPS else float("nan")
