"""Runs side by side: the same number of the same layer, and the same logged scalar, in every run.

Numbers are medians over each run's last window. With one run a side a difference is an illustration: it says nothing
about another seed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import xarray as xr

from covshift.analysis import gradient_health, linkage, rows, shift
from covshift.analysis.matching import matched_layers
from covshift.exceptions import InvalidArgumentError, SignalNotRecorded

_Series = Callable[[xr.DataTree, str], xr.DataArray]


def _resolved_w1(run: xr.DataTree, stream: str) -> xr.DataArray:
    moved = shift.between_steps(run, stream=stream, js=False)
    return moved["w1"].where(~moved["off_centre"])


_MEASURES: Mapping[str, tuple[_Series, str]] = {
    "gradient_zero_rate": (lambda run, stream: gradient_health.zero_rate(run, stream=stream), "1"),
    "structural_rate": (lambda run, stream: linkage.violation_rate(run, stream=stream)["structural_rate"], "1"),
    "gradient_rms": (lambda run, stream: rows.moments(run, signal="activation_grad", stream=stream)["rms"], "1"),
    "activation_sd": (lambda run, stream: rows.moments(run, stream=stream)["sd"], "1"),
    "w1": (_resolved_w1, "sd of the previous record"),
}


def paired_layers(recordings: Mapping[str, xr.DataTree], *, stream: str = "train") -> xr.Dataset:
    """One number per run and layer: medians over the last window of each run.

    Parameters
    ----------
    recordings : mapping of str to DataTree
        Runs by name. Layers are matched by :func:`covshift.analysis.matching.matched_layers`; one that a run lacks is
        NaN there.
    stream : {"train", "evaluation", "probe"}
        Which rows.

    Returns
    -------
    Dataset
        Dims ``(run, layer)``, layers from the input side, in the same order whichever run comes first. NaN where a run
        did not record what a number needs. The attribute ``matching`` says how layers were paired and how many of them
        are not in every run.

        ``gradient_zero_rate``
            Share of zeros in dL/d(output).
        ``structural_rate``
            Share of z without a derivative, nonlinearities only.
        ``gradient_rms``
            Root mean square of dL/d(output).
        ``activation_sd``
            Standard deviation of the output.
        ``w1``
            Distance of the output from the previous histogram, in standard deviations of that; sampling noise included,
            and where the bins resolve it.

    Raises
    ------
    InvalidArgumentError
        If there are no recordings.
    """
    _demand(recordings)
    matched = matched_layers(recordings, stream=stream)
    tables = {
        name: np.array(
            [_medians(series, one, stream, matched.names[run], matched.layers) for run, one in recordings.items()]
        )
        for name, (series, _) in _MEASURES.items()
    }
    return xr.Dataset(
        {name: (("run", "layer"), table, {"units": _MEASURES[name][1]}) for name, table in tables.items()},
        coords={"run": list(recordings), "layer": matched.layers},
        attrs={"matching": matched.note},
    )


def scalars(recordings: Mapping[str, xr.DataTree], name: str) -> xr.DataArray:
    """A logged scalar of every run on one step axis.

    Parameters
    ----------
    recordings : mapping of str to DataTree
        Runs by name.
    name : str
        As given to ``recorder.log``, or ``"wall_time"``.

    Returns
    -------
    DataArray
        Dims ``(run, step)`` over the union of steps; NaN where a run logged nothing.

    Raises
    ------
    InvalidArgumentError
        If there are no recordings.
    SignalNotRecorded
        If no run has the scalar; the message lists what was logged.
    """
    _demand(recordings)
    logged = {run: _scalars(recording) for run, recording in recordings.items()}
    if not any(name in dataset for dataset in logged.values()):
        there = sorted({str(variable) for dataset in logged.values() for variable in dataset.data_vars})
        raise SignalNotRecorded(f"name={name!r}: no run logged it; logged: {', '.join(there) or 'nothing'}")
    series = [
        dataset[name] if name in dataset else xr.full_like(dataset["step"], np.nan, dtype=np.float64).rename(name)
        for dataset in logged.values()
    ]
    plain = [values.reset_coords(drop=True) for values in series]
    joined = xr.concat(plain, xr.DataArray(list(logged), dims="run", name="run"), join="outer")
    return joined.sortby("step")


def _demand(recordings: Mapping[str, xr.DataTree]) -> None:
    if not recordings:
        raise InvalidArgumentError("recordings={}: expected at least one recording, as {name: recording}")


def _scalars(recording: xr.DataTree) -> xr.Dataset:
    try:
        return rows.group(recording, "scalars")
    except SignalNotRecorded:
        return xr.Dataset(coords={"step": np.zeros(0, dtype=np.int64)})


def _medians(
    series: _Series, recording: xr.DataTree, stream: str, names: Mapping[str, str], layers: list[str]
) -> np.ndarray:
    """Medians of one run, in the order of ``layers``; ``names`` are what it compares its own under."""
    try:
        table = series(recording, stream)
    except SignalNotRecorded:
        return np.full(len(layers), np.nan)
    # Computed first: dask warns of layers without any number, which numpy's median passes over here.
    window = table.isel(step=rows.last_window(table.sizes["step"])).compute()
    middle = window.median("step")
    compared = middle.assign_coords(layer=[names[name] for name in rows.names(middle).tolist()])
    return np.asarray(compared.reindex(layer=layers).values)
