"""The rows of one step while they are being collected, and their conversion to the arrays that are stored.

A block is plain data: closures on tensors may hold it without keeping the model, the recorder or any tensor alive.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch.utils.hooks import RemovableHandle

from covshift import schema
from covshift.grid import GRADIENTS, VALUES
from covshift.schema import Mode, Source, SparseCounts, Status
from covshift.summary import Summary

Key = tuple[str, str]

_SIGNAL_INDEX = {signal: index for index, signal in enumerate(schema.SIGNALS)}
_COUNTS = tuple(variable.name for variable in schema.LAYERS.variables if variable.dtype == "u8")
_FLOATS = tuple(variable.name for variable in schema.LAYERS.variables if variable.dtype == "f8")


@dataclass
class Pass:
    """Rows of all forward passes of a step that ran in one mode (training or evaluation flag)."""

    summaries: dict[Key, Summary] = field(default_factory=dict)
    statuses: dict[Key, Status] = field(default_factory=dict)
    structural_zeros: dict[str, int] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, layer: str, signal: str, summary: Summary, status: Status = Status.OK) -> None:
        """Merge one more tensor into the row of ``layer`` and ``signal``."""
        key = (layer, signal)
        # Several threads may run forward passes of one step.
        with self.lock:
            self.summaries[key] = self.summaries[key].merge(summary) if key in self.summaries else summary
            self.statuses[key] = status

    def add_structural_zeros(self, layer: str, count: int) -> None:
        """Count elements of z at which the layer has no derivative."""
        with self.lock:
            self.structural_zeros[layer] = self.structural_zeros.get(layer, 0) + count

    def mark(self, layer: str, signal: str, status: Status) -> None:
        """Say why a row has no numbers, unless it already has some."""
        self.statuses.setdefault((layer, signal), status)


@dataclass
class Block:
    """One step's rows of one stream.

    Attributes
    ----------
    step : int
        Optimizer steps done before this one.
    stream : str
        "" for training, "evaluation" for an evaluation pass.
    histograms, units : bool
        Whether this record is due for the slower cadences.
    closed : bool
        True once the step is over: late gradients are not recorded.
    handles : list
        Hooks on tensors that outlive the step, to be removed when it closes.
    """

    step: int
    stream: str = ""
    histograms: bool = True
    units: bool = True
    closed: bool = False
    passes: dict[Mode, Pass] = field(default_factory=dict)
    handles: list[RemovableHandle] = field(default_factory=list)

    def close(self) -> None:
        """End the step: nothing is added any more, and hooks on tensors that outlive it are removed."""
        self.closed = True
        for handle in self.handles:
            handle.remove()
        self.handles.clear()

    def in_mode(self, *, training: bool) -> Pass:
        """Rows of the forward passes that ran with ``model.training == training``."""
        return self.passes.setdefault(Mode.TRAIN if training else Mode.EVAL, Pass())

    @property
    def mode(self) -> Mode:
        """Mode of the rows that are kept: training mode where the step had any such forward pass.

        A validation batch run without ``no_grad`` between two optimizer steps would otherwise mix with training.
        """
        return Mode.TRAIN if Mode.TRAIN in self.passes else Mode.EVAL

    def rows(self, layers: Sequence[schema.Layer]) -> list[schema.Row]:
        """The block as rows for the store, layer axes in the order of ``layers``."""
        kept = self.passes.get(self.mode, Pass())
        parts: dict[str, Mapping[str, Any]] = {"layers": _layer_arrays(kept, layers)}
        if self.histograms:
            parts["histograms"] = _histogram_arrays(kept, layers)
        if self.units:
            parts["units"] = _unit_arrays(kept, layers)
        source = Source.EVALUATION if self.stream else Source.TRAIN
        return [
            schema.Row(f"{self.stream}/{name}".lstrip("/"), self.step, arrays, source, self.mode)
            for name, arrays in parts.items()
        ]


def _layer_arrays(kept: Pass, layers: Sequence[schema.Layer]) -> dict[str, Any]:
    shape = (len(layers), len(schema.SIGNALS))
    counts = np.zeros((*shape, len(_COUNTS)), dtype=np.uint64)
    floats = np.full((*shape, len(_FLOATS)), np.nan)
    status = np.zeros(shape, dtype=np.uint8)
    position = {layer.name: index for index, layer in enumerate(layers)}
    for (layer, signal), summary in kept.summaries.items():
        cell = position[layer], _SIGNAL_INDEX[signal]
        counts[cell], floats[cell] = _numbers(summary)
    for layer, zeros in kept.structural_zeros.items():
        counts[position[layer], _SIGNAL_INDEX["preactivation"], _COUNTS.index("structural_zero_count")] = zeros
    for (layer, signal), flag in kept.statuses.items():
        status[position[layer], _SIGNAL_INDEX[signal]] = flag
    arrays: dict[str, Any] = {name: counts[..., index] for index, name in enumerate(_COUNTS)}
    arrays |= {name: floats[..., index] for index, name in enumerate(_FLOATS)}
    return arrays | {"status": status}


def _numbers(summary: Summary) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Numbers of one row, in the schema's order."""
    counts = (
        summary.count,
        summary.example_count,
        summary.zero_count,
        summary.negative_count,
        summary.nan_count,
        summary.posinf_count,
        summary.neginf_count,
        summary.subnormal_count,
        0,
    )
    moments = summary.moments
    if not moments.count:
        return counts, (0.0, 0.0, 0.0, 0.0, np.nan, np.nan)
    return counts, (summary.sum, moments.m2, moments.m3, moments.m4, summary.min, summary.max)


def _histogram_arrays(kept: Pass, layers: Sequence[schema.Layer]) -> dict[str, SparseCounts]:
    return {
        "value_histogram": _sparse(kept, layers, schema.VALUE_SIGNALS, schema.EXAMPLE_GROUPS, VALUES.size),
        "gradient_histogram": _sparse(kept, layers, schema.GRADIENT_SIGNALS, None, GRADIENTS.size),
    }


def _sparse(
    kept: Pass, layers: Sequence[schema.Layer], signals: tuple[str, ...], groups: int | None, bins: int
) -> SparseCounts:
    cell = (groups or 1) * bins
    indices, counts = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.int64)]
    for row, layer in enumerate(layers):
        for column, signal in enumerate(signals):
            summary = kept.summaries.get((layer.name, signal))
            if summary is None or summary.histogram is None:
                continue
            flat = summary.histogram.counts.reshape(-1)
            occupied = np.flatnonzero(flat)
            indices.append(occupied + (row * len(signals) + column) * cell)
            counts.append(flat[occupied])
    values = np.concatenate(counts)
    if values.size and values.max() > np.iinfo(np.uint32).max:
        raise OverflowError("a histogram bin holds more than 2**32 - 1 elements in one record; record fewer batches")
    shape = (len(layers), len(signals), *((groups,) if groups else ()), bins)
    return SparseCounts(shape, np.concatenate(indices).astype(np.uint32), values.astype(np.uint32))


_UNIT_FIELDS = {
    "unit_count": "count",
    "unit_zero_count": "zero_count",
    "unit_positive_count": "positive_count",
    "unit_active_examples": "active_examples",
    "unit_mean": "mean",
    "unit_m2": "m2",
    "unit_min": "min",
    "unit_max": "max",
}


def _unit_arrays(kept: Pass, layers: Sequence[schema.Layer]) -> dict[str, Any]:
    total = sum(layer.unit_count for layer in layers)
    arrays = {
        variable.name: np.full((total, len(schema.UNIT_SIGNALS)), variable.fill_value, dtype=variable.dtype)
        for variable in schema.UNITS.variables
    }
    start = 0
    for layer in layers:
        stop = start + layer.unit_count
        for column, signal in enumerate(schema.UNIT_SIGNALS):
            summary = kept.summaries.get((layer.name, signal))
            if summary is not None and summary.units is not None:
                empty = summary.units.finite_count == 0
                for name, attribute in _UNIT_FIELDS.items():
                    values = getattr(summary.units, attribute)
                    floating = arrays[name].dtype.kind == "f"
                    # float64 activations beyond float32 read infinite here; the layer's own numbers are float64.
                    with np.errstate(over="ignore"):
                        arrays[name][start:stop, column] = np.where(empty, np.nan, values) if floating else values
        start = stop
    return arrays
