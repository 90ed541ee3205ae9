"""What the verdict on a layer's operating point would have been at earlier steps: drift, interval and state of each.

Every point is :func:`covshift.analysis.operating_point.stability` of the recording cut off there, so the history of a
verdict has the verdict's own definition. Histograms are left out for speed: shape, and the active mass of bounded
activations, do not count here.
"""

from __future__ import annotations

import numpy as np
import xarray as xr

from covshift.analysis import operating_point, rows
from covshift.exceptions import InvalidArgumentError

POINTS = 16
_KEPT = ("state", "location_drift", "location_low", "location_high", "scale_drift", "scale_low", "scale_high")


def stability_history(recording: xr.DataTree, *, stream: str = "train", points: int = POINTS) -> xr.Dataset:
    """Drift of every layer over windows that end at earlier and earlier steps.

    Parameters
    ----------
    recording : DataTree
        Needs the group ``layers``; ``units`` and ``parameters`` are used where they are.
    stream : {"train", "evaluation", "probe"}
        Which rows.
    points : int, default 16
        Ends of windows, evenly spread over the records; the last record is the last of them.

    Returns
    -------
    Dataset
        Dims ``(end, layer)``: ``state``, ``location_drift``, ``location_low``, ``location_high``, ``scale_drift``,
        ``scale_low``, ``scale_high`` as of :func:`covshift.analysis.operating_point.stability`; ``window_start``
        (end). ``end`` is the step of the window's last record. NaN where a window holds too few records.

    Raises
    ------
    InvalidArgumentError
        If ``points`` is below 1.
    SignalNotRecorded
        If no activation was recorded.
    """
    if points < 1:
        raise InvalidArgumentError(f"points={points}: expected at least 1")
    steps = rows.group(recording, "layers", stream=stream)["step"].values
    last = np.unique(np.linspace(0, len(steps), points + 1).astype(np.int64)[1:] - 1)
    ends = steps[last[last >= 0]]
    read = _in_memory(recording)
    found = [operating_point.stability(_until(read, int(end)), stream=stream) for end in ends]
    if not found:
        found = [operating_point.stability(recording, stream=stream)]
        return xr.concat([one[list(_KEPT)] for one in found], "end").isel(end=slice(0)).assign_coords(end=ends)
    joined = xr.concat([one[list(_KEPT)] for one in found], xr.DataArray(ends, dims="end", name="end"))
    starts = [one.attrs["window_start"] for one in found]
    return joined.assign(window_start=("end", starts)).assign_attrs(
        {name: found[-1].attrs[name] for name in ("location_margin", "scale_margin")}
    )


def _in_memory(recording: xr.DataTree) -> dict[str, xr.Dataset]:
    """Groups with steps, histograms left out, read once."""
    nodes = {path: recording[path] for path in recording.groups if path != "/" and not path.endswith("/histograms")}
    groups = {path: node.to_dataset() for path, node in nodes.items() if isinstance(node, xr.DataTree)}
    return {path: group.load() for path, group in groups.items() if "step" in group.dims}


def _until(groups: dict[str, xr.Dataset], step: int) -> xr.DataTree:
    """The recording as it was after ``step``."""
    return xr.DataTree.from_dict({path: group.sel(step=slice(None, step)) for path, group in groups.items()})
