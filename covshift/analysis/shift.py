"""How far every layer's distribution moved, between steps of a run or between two runs, against its noise floor.

Two records differ even where nothing moved, because they saw different examples. Every comparison here therefore
comes with the size that sampling alone would give, estimated from example groups (never from elements or positions,
which are dependent), and with a distance from which that part has been subtracted. A distance says that a layer moved,
not that the movement does harm.

References
----------
S. Ioffe & C. Szegedy, Batch Normalization (2015), for the notion; the noise-corrected distance and its calibration are
described in docs/concepts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from covshift import schema
from covshift.analysis import divergence, rows
from covshift.exceptions import InvalidArgumentError, SignalNotRecorded
from covshift.grid import Grid

Floats = NDArray[np.float64]

CRAMER_OF_SMALL_SHIFT = 1 / (2 * math.sqrt(math.pi))
"""Squared Cramer distance of two normals of standard deviation 1 a small ``d`` apart, divided by ``d ** 2``."""

_CHUNK = 16
"""Steps read at a time: a multiple of a stored chunk's 8, so that none is decompressed twice."""

_UNITS = {
    "w1": "sd of the reference",
    "ks": "1",
    "js": "nat",
    "smd": "pooled sd",
    "log_var_ratio": "1",
    "u": "sd of the reference",
    "u_noise": "sd of the reference",
    "equivalent_shift": "sd of the reference",
    "noise_floor": "sd of the reference",
    "off_centre": "1",
    "n_examples": "count",
}


def between_steps(
    recording: xr.DataTree,
    *,
    reference: Literal["previous", "first"] | int = "previous",
    signal: str = "activation",
    stream: str = "train",
) -> xr.Dataset:
    """Distance of every layer's distribution from the one at a reference step.

    Parameters
    ----------
    recording : DataTree
        Needs the groups ``layers`` and ``histograms``.
    reference : {"previous", "first"} or int, default "previous"
        Compare with the histogram before, with the first, or with the one at this step.
    signal : str, default "activation"
        One of :data:`covshift.schema.SIGNALS`. Gradients are recorded without example groups, so for them ``u``,
        ``u_noise``, ``equivalent_shift`` and ``noise_floor`` are NaN.
    stream : {"train", "evaluation"}
        Which rows.

    Returns
    -------
    Dataset
        Dims ``(step, layer)``; the steps are those of the histograms, which may be fewer than those of the moments.
        NaN where either side was not recorded, where the reference's standard deviation is 0, and at the reference
        itself (for ``"previous"``: the first step). Distances are in standard deviations of the reference.

        ``w1``, ``ks``, ``js``
            See :mod:`covshift.analysis.divergence`. They include sampling noise.
        ``smd``
            Standardised mean difference, ``(mean - mean_ref) / sqrt((var + var_ref) / 2)``, signed.
        ``log_var_ratio``
            ``ln(var / var_ref)``; NaN where either is 0.
        ``u``
            Noise-corrected squared Cramer distance; unbiased, hence negative at times.
        ``u_noise``
            What was subtracted: the part of the squared Cramer distance that sampling adds. Too high under batch norm
            in training mode, like ``noise_floor``.
        ``equivalent_shift``
            The shift of mean, in sd, at which two normals have this ``u``: ``sqrt(2 sqrt(pi) max(u, 0))``. Understated
            above about 2 sd.
        ``noise_floor``
            The ``w1`` that sampling alone would typically give. Too high under batch norm in training mode, which
            normalises the example groups together.
        ``off_centre``
            Whether either side's ``|mean| / sd`` exceeds 8, beyond which the bins are too wide to resolve a shift;
            ``smd`` and ``log_var_ratio``, which come from exact moments, still hold there.
        ``n_examples``
            Examples behind the smaller side.

    Raises
    ------
    InvalidArgumentError
        If ``reference`` is neither a word above nor a step with a histogram.
    SignalNotRecorded
        If the signal or the histograms were not recorded.
    """
    view = _View.of(recording, signal, stream)
    anchor = _anchor(reference, view.steps)
    blank = dict.fromkeys(_UNITS, np.full(len(view.layers), np.nan))
    compared = [blank if before is None else _compare(before, now) for before, now in _pairs(view, anchor)]
    columns = {name: np.array([row[name] for row in compared]).reshape(len(compared), -1) for name in _UNITS}
    return _dataset(columns, {"step": view.steps, "layer": view.layers})


def between_runs(
    a: xr.DataTree,
    b: xr.DataTree,
    *,
    step: int | None = None,
    signal: str = "activation",
    stream: str = "train",
) -> xr.Dataset:
    """Distance of run ``b`` from run ``a``, layer by layer, at one step.

    Parameters
    ----------
    a, b : DataTree
        ``a`` is the reference. Layers are matched by name; those that only one run has are left out.
    step : int, optional
        A step at which both have histograms; the last such step by default.
    signal, stream : str
        As :func:`between_steps`.

    Returns
    -------
    Dataset
        Dims ``(layer,)``, the variables of :func:`between_steps`, and the scalar coordinate ``step``.

    Raises
    ------
    InvalidArgumentError
        If the runs share no step, not the one asked for, or no layer.
    SignalNotRecorded
        If either run lacks the signal or histograms.
    """
    views = [_View.of(run, signal, stream) for run in (a, b)]
    common = np.intersect1d(views[0].steps, views[1].steps)
    layers = [name for name in views[0].layers if name in set(views[1].layers)]
    if not len(common) or not layers:
        raise InvalidArgumentError(
            f"between_runs: the runs share {len(common)} steps with histograms and {len(layers)} layers; expected at "
            "least one of each"
        )
    chosen = int(common[-1]) if step is None else step
    if chosen not in common:
        raise InvalidArgumentError(f"step={step}: expected a step with histograms in both runs: {_some(common)}")
    records = [view.record(int(np.searchsorted(view.steps, chosen))) for view in views]
    picked = [record.take(_positions(view.layers, layers)) for record, view in zip(records, views, strict=True)]
    columns = _compare(*picked)
    return _dataset(columns, {"layer": np.array(layers)}).assign_coords(step=chosen)


@dataclass(frozen=True)
class _Record:
    """What one side of a comparison needs, each array with the layer as first axis."""

    grid: Grid
    counts: NDArray[Any]
    cramer_noise: Floats
    wasserstein1_noise: Floats
    mean: Floats
    sd: Floats
    n_examples: Floats

    def take(self, layers: list[int]) -> _Record:
        """The record of some layers, in this order."""
        return _Record(
            self.grid,
            self.counts[layers],
            self.cramer_noise[layers],
            self.wasserstein1_noise[layers],
            self.mean[layers],
            self.sd[layers],
            self.n_examples[layers],
        )


@dataclass(frozen=True)
class _View:
    """Histograms and moments of one signal at the steps that have both."""

    steps: NDArray[np.int64]
    layers: NDArray[np.str_]
    histograms: xr.DataArray
    producers: xr.DataArray | None
    source: NDArray[np.int64]
    moments: xr.Dataset
    grid: Grid

    @classmethod
    def of(cls, recording: xr.DataTree, signal: str, stream: str) -> _View:
        moments = rows.moments(recording, signal=signal, stream=stream)
        stored = rows.group(recording, "histograms", stream=stream)
        steps = np.intersect1d(stored["step"].values, moments["step"].values)
        if not len(steps):
            raise SignalNotRecorded(
                f"signal={signal!r}: no step has both moments and a histogram; record with a smaller histograms_every="
            )
        if len(steps) < stored.sizes["step"]:
            stored = stored.sel(step=steps)
        produced = rows.PRODUCER_SIGNAL.get(signal)
        return cls(
            steps,
            rows.names(moments),
            _histogram(stored, signal),
            None if produced is None else _histogram(stored, produced),
            rows.producer_index(rows.group(recording, "layers", stream=stream)),
            moments.sel(step=steps).load(),
            schema.grid_of("gradient_histogram" if signal in schema.GRADIENT_SIGNALS else "value_histogram"),
        )

    def record(self, index: int) -> _Record:
        return next(self.records(index, index + 1))

    def records(self, start: int, stop: int) -> Iterator[_Record]:
        """Records from ``start`` up to ``stop``, read from disk a chunk at a time."""
        for first in range(start, stop, _CHUNK):
            block = slice(first, min(first + _CHUNK, stop))
            own = np.asarray(self.histograms.isel(step=block).values)
            produced = None if self.producers is None else np.asarray(self.producers.isel(step=block).values)
            for offset, groups in enumerate(own):
                yield self._record(first + offset, groups, None if produced is None else produced[offset])

    def _record(self, index: int, groups: NDArray[Any], produced: NDArray[Any] | None) -> _Record:
        if produced is not None:
            under_producer = (self.source >= 0) & (groups.sum(axis=(1, 2)) == 0)
            groups = np.where(under_producer[:, None, None], produced[self.source], groups)
        here = self.moments.isel(step=index)
        return _Record(
            self.grid,
            groups.sum(axis=1),
            divergence.cramer_noise(groups, self.grid),
            divergence.wasserstein1_noise(groups, self.grid),
            here["mean"].values,
            here["sd"].values,
            here["n_examples"].values.astype(np.float64),
        )


def _histogram(stored: xr.Dataset, signal: str) -> xr.DataArray:
    """Counts with dims (step, layer, group, bin); gradients have one group."""
    if signal in schema.GRADIENT_SIGNALS:
        counts = stored["gradient_histogram"].sel(gradient_signal=signal).expand_dims("group", axis=2)
        return counts.transpose("step", "layer", "group", "gradient_bin")
    return stored["value_histogram"].sel(value_signal=signal).transpose("step", "layer", "group", "value_bin")


def _anchor(reference: object, steps: NDArray[np.int64]) -> int | None:
    """Position of a fixed reference, None for the previous record."""
    if reference == "previous":
        return None
    if reference == "first":
        return 0
    if isinstance(reference, (int, np.integer)) and reference in steps:
        return int(np.searchsorted(steps, reference))
    raise InvalidArgumentError(
        f"reference={reference!r}: expected 'previous', 'first' or a step with a histogram: {_some(steps)}"
    )


def _pairs(view: _View, anchor: int | None) -> Iterator[tuple[_Record | None, _Record]]:
    before = None if anchor is None else view.record(anchor)
    for index, now in enumerate(view.records(0, len(view.steps))):
        yield (None if index == anchor else before), now
        before = now if anchor is None else before


def _compare(before: _Record, now: _Record) -> dict[str, Floats]:
    grid = now.grid
    scale = np.where(before.sd > 0, before.sd, np.nan)
    variances = before.sd**2 + now.sd**2
    noise = before.cramer_noise + now.cramer_noise
    u = (divergence.cramer(before.counts, now.counts, grid) - noise) / scale
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.log(np.where(now.sd > 0, now.sd, np.nan) ** 2 / scale**2)
        smd = (now.mean - before.mean) / np.sqrt(np.where(variances > 0, variances, np.nan) / 2)
        off_centre = np.maximum(np.abs(before.mean) / before.sd, np.abs(now.mean) / now.sd) > 2.0**grid.mantissa_bits
    return {
        "w1": divergence.wasserstein1(before.counts, now.counts, grid) / scale,
        "ks": divergence.kolmogorov_smirnov(before.counts, now.counts, grid),
        "js": divergence.jensen_shannon(before.counts, now.counts, grid),
        "smd": smd,
        "log_var_ratio": ratio,
        "u": u,
        "u_noise": noise / scale,
        "equivalent_shift": np.sqrt(np.maximum(u, 0.0) / CRAMER_OF_SMALL_SHIFT),
        "noise_floor": np.hypot(before.wasserstein1_noise, now.wasserstein1_noise) / scale,
        "off_centre": off_centre.astype(np.float64),
        "n_examples": np.minimum(before.n_examples, now.n_examples),
    }


def _dataset(columns: dict[str, Floats], coords: dict[str, NDArray[Any]]) -> xr.Dataset:
    shape = tuple(len(values) for values in coords.values())
    dataset = xr.Dataset(
        {name: (tuple(coords), column.reshape(shape), {"units": _UNITS[name]}) for name, column in columns.items()},
        coords=coords,
    )
    return dataset.assign(
        off_centre=dataset["off_centre"] == 1.0,
        n_examples=dataset["n_examples"].fillna(0).astype(np.int64).assign_attrs(units="count"),
    )


def _positions(layers: NDArray[np.str_], chosen: list[str]) -> list[int]:
    position = {name: index for index, name in enumerate(layers)}
    return [position[name] for name in chosen]


def _some(steps: NDArray[np.int64], most: int = 8) -> str:
    shown = ", ".join(str(step) for step in steps[:most])
    return f"{shown}, ... {steps[-1]}" if len(steps) > most else shown or "none"
