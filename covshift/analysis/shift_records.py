"""What a comparison of distributions reads: histograms by example group and exact moments, one record after another.

A recording's histograms are too many to hold at once, so they are read a few steps at a time. This room knows which
rows belong to which layer and which of them sampling noise can be known for; it compares nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from covshift import schema
from covshift.analysis import divergence, local_loss, rows
from covshift.analysis.distribution_functions import in_blocks
from covshift.exceptions import InvalidArgumentError, SignalNotRecorded
from covshift.grid import Grid

Floats = NDArray[np.float64]

UNRESOLVED = 0.05
"""Sd by which W1 may be off for elements outside the range of the bins: a quarter of the shift that is to watch."""

_CHUNK = 16
"""Steps read at a time: a multiple of a stored chunk's 8, so that none is decompressed twice."""


@dataclass(frozen=True)
class Record:
    """What one side of a comparison needs, each array with the layer as first axis.

    ``groups`` has shape ``(layer, group, bin)``; ``noise_known`` is False where batch norm in training mode ties the
    examples together, which makes every estimate of sampling noise wrong.
    """

    grid: Grid
    groups: NDArray[Any]
    mean: Floats
    sd: Floats
    n_elements: Floats
    n_examples: Floats
    noise_known: NDArray[np.bool_]

    @classmethod
    def of(cls, grid: Grid, groups: NDArray[Any], moments: dict[str, Floats], noise_known: NDArray[np.bool_]) -> Record:
        """The record of ``groups`` and their exact ``moments``: mean, sd, n and n_examples."""
        return cls(
            grid,
            groups,
            moments["mean"],
            moments["sd"],
            moments["n"],
            moments["n_examples"],
            noise_known,
        )

    @cached_property
    def cramer_noise(self) -> Floats:
        """What sampling adds to squared Cramer distances, shape ``(layer,)``."""
        return self._noise[0]

    @cached_property
    def wasserstein1_noise(self) -> Floats:
        """The scale that sampling alone gives to W1, shape ``(layer,)``."""
        return self._noise[1]

    @cached_property
    def _noise(self) -> tuple[Floats, Floats]:
        squared, root = np.full((2, len(self.groups)), np.nan)
        for layers in in_blocks(np.asarray(self.counts.any(axis=1))):
            squared[layers], root[layers] = divergence.sampling_noise(self.groups[layers], self.grid)
        return squared, root

    @cached_property
    def is_off_centre(self) -> NDArray[np.bool_]:
        """Layers whose shift the bins do not resolve, shape ``(layer,)``.

        Their mean lies beyond 8 sd from 0, so that bins are wide beside the sd; or elements lie in the first bin above
        0, which is as wide as it starts, or in the last, which has no end, and W1 could be off by :data:`UNRESOLVED`
        for it. A share p beyond the last edge has values that are at most ``sd / sqrt(p)``, so W1 misses ``2 sqrt(p)``.
        """
        grid, counts = self.grid, self.counts
        finite = counts[:, 1 : grid.nan - 1].sum(axis=1)
        tiny, huge = (
            rows.ratio(counts[:, [grid.zero - place, grid.zero + place]].sum(axis=1), finite)
            for place in (1, grid.side + 2)
        )
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            far = np.abs(self.mean) / self.sd > 2.0**grid.mantissa_bits
            missed = tiny * 2.0**grid.min_exponent / self.sd + 2 * np.sqrt(huge)
        return np.asarray(far | (missed > UNRESOLVED))

    @cached_property
    def counts(self) -> NDArray[Any]:
        """Counts of all groups together, shape ``(layer, bin)``."""
        return np.asarray(self.groups.sum(axis=1))

    def take(self, layers: list[int]) -> Record:
        """The record of some layers, in this order."""
        return Record(self.grid, *(getattr(self, part.name)[layers] for part in fields(self)[1:]))

    def rescaled(self, factor: float) -> Record:
        """The record of the same values times ``factor``.

        Raises
        ------
        InvalidArgumentError
            If ``factor`` is no power of two: no other moves bins onto bins.
        """
        if factor == 1.0:
            return self
        mantissa, exponent = math.frexp(factor)
        if mantissa != 0.5:
            raise InvalidArgumentError(
                f"histograms of gradients that differ by a factor of {factor:.4g}, as the runs' numbers of ranks have "
                "it: bins can be moved by powers of two only; compare moments, such as gradient_health.norm_profile"
            )
        groups = self.grid.scaled(self.groups, exponent - 1)
        return replace(self, groups=groups, mean=self.mean * factor, sd=self.sd * factor)

    @classmethod
    def pooled(cls, records: list[Record], grid: Grid) -> Record:
        """All examples of several records as one record."""
        groups = np.asarray(np.sum([record.groups for record in records], axis=0, dtype=np.int64))
        n, mean, sd = (np.array([getattr(r, name) for r in records]) for name in ("n_elements", "mean", "sd"))
        weight, mean, sd = n, np.nan_to_num(mean), np.nan_to_num(sd)
        middle = rows.ratio((weight * mean).sum(axis=0), weight.sum(axis=0))
        variance = rows.ratio((weight * (sd**2 + (mean - middle) ** 2)).sum(axis=0), weight.sum(axis=0))
        examples = np.sum([record.n_examples for record in records], axis=0)
        moments = {"mean": middle, "sd": np.sqrt(variance), "n": n.sum(axis=0), "n_examples": examples}
        return cls.of(grid, groups, moments, np.all([record.noise_known for record in records], axis=0))


@dataclass(frozen=True)
class View:
    """Histograms and moments of one signal at the steps that have both.

    Gradients of all records are on the scale of the first. ``factors`` (step) take them from the rank's local loss to
    that over all ranks' examples, see :mod:`covshift.analysis.local_loss`; distances in one run are free of scale.
    """

    steps: NDArray[np.int64]
    layers: NDArray[np.str_]
    histograms: xr.DataArray
    producers: xr.DataArray | None
    source: NDArray[np.int64]
    moments: xr.Dataset
    normalised: NDArray[np.bool_]
    grid: Grid
    factors: Floats

    @classmethod
    def of(cls, recording: xr.DataTree, signal: str, stream: str) -> View:
        """The view of one signal of one stream; see :func:`covshift.analysis.rows.layer_rows` for what it raises."""
        moments = rows.moments(recording, signal=signal, stream=stream, as_recorded=True)
        stored = rows.group(recording, "histograms", stream=stream)
        steps = np.intersect1d(stored["step"].values, moments["step"].values)
        if not len(steps):
            raise SignalNotRecorded(
                f"signal={signal!r}: no step has both moments and a histogram; record with a smaller histograms_every="
            )
        if len(steps) < stored.sizes["step"]:
            stored = stored.sel(step=steps)
        produced = rows.PRODUCER_SIGNAL.get(signal)
        layers = rows.group(recording, "layers", stream=stream)
        factors = local_loss.factors(recording.attrs, stored, signal=signal, stream=stream)
        return cls(
            steps,
            rows.names(moments),
            _histogram(stored, signal),
            None if produced is None else _histogram(stored, produced),
            rows.producer_index(layers),
            moments.sel(step=steps).load(),
            batch_normalised(layers)[None, :] & (stored["mode"].values == schema.Mode.TRAIN)[:, None],
            schema.grid_of("gradient_histogram" if signal in schema.GRADIENT_SIGNALS else "value_histogram"),
            np.ones(len(steps)) if factors is None else factors,
        )

    def record(self, index: int) -> Record:
        """The record at one position."""
        return next(self.records(index, index + 1))

    def records(self, start: int, stop: int) -> Iterator[Record]:
        """Records from ``start`` up to ``stop``, read from disk a chunk at a time."""
        for first in range(start, stop, _CHUNK):
            block = slice(first, min(first + _CHUNK, stop))
            own = np.asarray(self.histograms.isel(step=block).values)
            produced = None if self.producers is None else np.asarray(self.producers.isel(step=block).values)
            for offset, groups in enumerate(own):
                yield self._record(first + offset, groups, None if produced is None else produced[offset])

    def counts(self, layers: NDArray[np.int64]) -> Iterator[NDArray[Any]]:
        """Counts of some layers, shape ``(layer, bin)``, at every step."""
        for first in range(0, len(self.steps), _CHUNK):
            block = slice(first, first + _CHUNK)
            own = np.asarray(self.histograms.isel(step=block, layer=layers).sum("group").values)
            if self.producers is not None:
                source = np.maximum(self.source[layers], 0)
                produced = np.asarray(self.producers.isel(step=block, layer=source).sum("group").values)
                empty = (self.source[layers] >= 0) & ~own.any(axis=2)
                own = np.where(empty[..., None], produced, own)
            yield from own

    def _record(self, index: int, groups: NDArray[Any], produced: NDArray[Any] | None) -> Record:
        if produced is not None:
            under_producer = (self.source >= 0) & (groups.sum(axis=(1, 2)) == 0)
            groups = np.where(under_producer[:, None, None], produced[self.source], groups)
        here = {name: self.moments[name].values[index].astype(np.float64) for name in _MOMENTS}
        record = Record.of(self.grid, groups, here, ~self.normalised[index])
        return record.rescaled(float(self.factors[index] / self.factors[0]))


_MOMENTS = ("mean", "sd", "n", "n_examples")


def batch_normalised(layers: xr.Dataset) -> NDArray[np.bool_]:
    """Layers at or after the first batch norm, shape ``(layer,)``: in training mode their examples are tied together.

    Depth stands in for the graph: a branch that leaves before the batch norm and ran after it is counted as well.
    """
    depth = layers["depth"].values
    norms = depth[np.char.find(rows.names(layers, "module_type"), "BatchNorm") >= 0]
    return np.asarray(depth >= norms.min()) if norms.size else np.zeros(len(depth), dtype=bool)


def _histogram(stored: xr.Dataset, signal: str) -> xr.DataArray:
    """Counts with dims (step, layer, group, bin); gradients have one group."""
    if signal in schema.GRADIENT_SIGNALS:
        counts = stored["gradient_histogram"].sel(gradient_signal=signal).expand_dims("group", axis=2)
        return counts.transpose("step", "layer", "group", "gradient_bin")
    return stored["value_histogram"].sel(value_signal=signal).transpose("step", "layer", "group", "value_bin")
