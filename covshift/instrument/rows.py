"""From collected numbers to the arrays that are stored, with the axes of :mod:`covshift.schema`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from covshift import schema
from covshift.grid import GRADIENTS, VALUES
from covshift.instrument.block import (
    ACTIVATION,
    ACTIVATION_GRAD,
    INPUT,
    PREACTIVATION,
    PREACTIVATION_GRAD,
    SIGNAL_COUNT,
    Block,
)
from covshift.instrument.passes import Pass
from covshift.schema import Mode, SparseCounts
from covshift.summary import numbers
from covshift.summary.summary import Histogram, UnitSummary
from covshift.summary.table import Pooled

_VALUE_COLUMNS = {INPUT: 0, PREACTIVATION: 1, ACTIVATION: 2}
_GRADIENT_COLUMNS = {ACTIVATION_GRAD: 0, PREACTIVATION_GRAD: 1}
_UNIT_COLUMNS = {ACTIVATION: 0, ACTIVATION_GRAD: 1}

MOST_COUNTED = int(np.iinfo(np.uint32).max)
"""Elements of a unit, or of a bin, that one record can tell: their counts are stored in 32 bits."""


@dataclass
class Collected:
    """What one step collected of a list of layers, keys as in :mod:`covshift.instrument.block`.

    Attributes
    ----------
    pooled : Pooled
        Numbers, histograms and units by key.
    statuses : ndarray of uint8
        One for each key, shape ``(layers * signals,)``.
    structural_zeros : dict of int to int
        By layer.
    """

    pooled: Pooled
    statuses: NDArray[np.uint8]
    structural_zeros: dict[int, int]


def collected(rows: Pass, layer_count: int) -> Collected:
    """Everything a pass holds of the first ``layer_count`` layers."""
    statuses = np.zeros(layer_count * SIGNAL_COUNT, dtype=np.uint8)
    known = np.frombuffer(bytes(rows.statuses), dtype=np.uint8)[: len(statuses)]
    statuses[: len(known)] = known
    return Collected(rows.table.read(), statuses, dict(rows.structural_zeros))


@dataclass(frozen=True)
class Record:
    """One record on its way to the store.

    Attributes
    ----------
    step, stream, histograms, units, mode
        As in :class:`covshift.instrument.block.Block`.
    layers : sequence of Layer
        To which the keys of ``collected`` refer.
    collected : Collected
        The numbers.
    parameters : mapping of str to ndarray
        Row of the ``parameters`` group, empty where there is none.
    sharded : ndarray of bool or None
        Parameters of which only a part was measured, shape ``(parameter,)``; None for none.
    """

    step: int
    stream: str
    histograms: bool
    units: bool
    mode: Mode
    layers: Sequence[schema.Layer]
    collected: Collected
    parameters: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    sharded: NDArray[np.bool_] | None = None


def record_of(block: Block, layers: Sequence[schema.Layer], parameters: Mapping[str, NDArray[Any]]) -> Record:
    """What a closed block and the parameters' row hold."""
    what = collected(block.kept, len(layers))
    return Record(block.step, block.stream, block.histograms, block.units, block.mode, layers, what, parameters)


def arranged(record: Record, layers: Sequence[schema.Layer]) -> Record:
    """The same record with its layers in the order of ``layers``, which must have them all."""
    names = [layer.name for layer in layers]
    own = [layer.name for layer in record.layers]
    if own == names:
        return record
    places = {name: place for place, name in enumerate(names)}
    place = np.array([places[name] for name in own], dtype=np.int64)
    keys = (place[:, None] * SIGNAL_COUNT + np.arange(SIGNAL_COUNT)).ravel()
    step, pooled = record.collected, record.collected.pooled
    statuses = np.zeros(len(names) * SIGNAL_COUNT, np.uint8)
    statuses[keys] = step.statuses
    moved = Pooled(
        keys[pooled.keys],
        pooled.rows,
        {int(keys[key]): part for key, part in pooled.histograms.items()},
        {int(keys[key]): part for key, part in pooled.units.items()},
    )
    structural = {int(place[layer]): count for layer, count in step.structural_zeros.items()}
    return replace(record, layers=layers, collected=Collected(moved, statuses, structural))


def in_known_units(record: Record, known: Mapping[str, int]) -> tuple[Record, list[schema.Layer]]:
    """The record with as many units of every layer as are ``known`` by its name, and the layers that came with others.

    None of their units are kept, as of a tensor whose unit axis changes its length within one process: the lengths of
    sequences, which an axis may count, differ between batches, ranks and the processes of a resumed recording.
    """
    differing = {
        place: layer
        for place, layer in enumerate(record.layers)
        if known.get(layer.name, layer.unit_count) != layer.unit_count
    }
    if not differing:
        return record, []
    layers = list(record.layers)
    for place, layer in differing.items():
        layers[place] = replace(layer, unit_count=known[layer.name])
    pooled = record.collected.pooled
    units = {key: part for key, part in pooled.units.items() if key // SIGNAL_COUNT not in differing}
    collected = replace(record.collected, pooled=replace(pooled, units=units))
    return replace(record, layers=layers, collected=collected), list(differing.values())


def stored_rows(record: Record) -> list[schema.Row]:
    """One row for each group the record is due for."""
    step, layers = record.collected, record.layers
    parts: dict[str, Mapping[str, Any]] = {"layers": layer_arrays(step, layers)}
    if record.histograms:
        parts["histograms"] = histogram_arrays(step.pooled.histograms, len(layers))
    if record.units:
        parts["units"] = unit_arrays(step.pooled.units, layers)
    source = schema.STREAMS[record.stream]
    rows = [
        schema.Row(f"{record.stream}/{name}".lstrip("/"), record.step, arrays, source, record.mode)
        for name, arrays in parts.items()
    ]
    return [*rows, schema.Row("parameters", record.step, record.parameters)] if record.parameters else rows


def uncounted(record: Record) -> list[str]:
    """Names of the layers of which :func:`stored_rows` leaves out units or a histogram, for their counts do not fit."""
    pooled = record.collected.pooled
    # No unit and no bin has more elements than the layer, so nearly always this is all that has to be asked.
    large = pooled.keys[pooled.rows[:, numbers.COUNT] > MOST_COUNTED].tolist()
    places = [
        key // SIGNAL_COUNT
        for key in large
        if (record.units and key in pooled.units and not _fits(pooled.units[key].count))
        or (record.histograms and key in pooled.histograms and not _fits(pooled.histograms[key].counts))
    ]
    return [record.layers[place].name for place in dict.fromkeys(places)]


def _fits(counts: NDArray[np.int64]) -> bool:
    return int(counts.max(initial=0)) <= MOST_COUNTED


def layer_arrays(step: Collected, layers: Sequence[schema.Layer]) -> dict[str, Any]:
    """Variables of the ``layers`` group, shape ``(layer, signal)``."""
    keys, rows = step.pooled.keys, step.pooled.rows
    shape = (len(layers), SIGNAL_COUNT)
    counts = np.zeros((len(numbers.COUNTS), len(layers) * SIGNAL_COUNT), dtype=np.uint64)
    counts[:, keys] = rows[:, : len(numbers.COUNTS)].T
    arrays: dict[str, Any] = {name: column.reshape(shape) for name, column in zip(numbers.COUNTS, counts, strict=True)}
    structural = np.zeros(shape, dtype=np.uint64)
    for layer, count in step.structural_zeros.items():
        structural[layer, PREACTIVATION] = count
    arrays["structural_zero_count"] = structural
    floats = np.full((6, len(layers) * SIGNAL_COUNT), np.nan)
    floats[:, keys] = _sums_and_extremes(rows)
    names = ("sum", "m2", "m3", "m4", "min", "max")
    arrays |= {name: column.reshape(shape) for name, column in zip(names, floats, strict=True)}
    return arrays | {"status": step.statuses.reshape(shape)}


def _sums_and_extremes(rows: numbers.Numbers) -> NDArray[np.float64]:
    """Sum, m2, m3, m4, min and max of each row; without finite elements sums are 0 and extremes NaN."""
    finite = numbers.finite_count(rows)
    columns = rows[:, numbers.MEAN :].T.copy()
    with np.errstate(over="ignore", under="ignore"):
        columns[0] *= finite
    columns[4:, finite == 0] = np.nan
    return columns


def histogram_arrays(histograms: Mapping[int, Histogram], layer_count: int) -> dict[str, SparseCounts]:
    """Variables of the ``histograms`` group, sparse; none of a histogram with a count above :data:`MOST_COUNTED`."""
    return {
        "value_histogram": _sparse(
            histograms, _VALUE_COLUMNS, (layer_count, len(_VALUE_COLUMNS), schema.EXAMPLE_GROUPS, VALUES.size)
        ),
        "gradient_histogram": _sparse(
            histograms, _GRADIENT_COLUMNS, (layer_count, len(_GRADIENT_COLUMNS), GRADIENTS.size)
        ),
    }


def _sparse(histograms: Mapping[int, Histogram], columns: Mapping[int, int], shape: tuple[int, ...]) -> SparseCounts:
    cell = int(np.prod(shape[2:]))
    indices, counts = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.int64)]
    for key in sorted(histograms):
        layer, signal = divmod(key, SIGNAL_COUNT)
        if signal in columns and _fits(histograms[key].counts):
            flat = histograms[key].counts.reshape(-1)
            occupied = np.flatnonzero(flat)
            indices.append(occupied + (layer * shape[1] + columns[signal]) * cell)
            counts.append(flat[occupied])
    return SparseCounts(shape, np.concatenate(indices).astype(np.uint32), np.concatenate(counts).astype(np.uint32))


_UNIT_FIELDS = {
    "unit_count": "count",
    "unit_zero_count": "zero_count",
    "unit_positive_count": "positive_count",
    "unit_active_examples": "active_examples",
    "unit_mean": "mean",
    "unit_m2": "m2",
}


def unit_arrays(units: Mapping[int, UnitSummary], layers: Sequence[schema.Layer]) -> dict[str, Any]:
    """Variables of the ``units`` group, shape ``(unit, signal)``; units of all layers in a row.

    Units of a layer that has a count above :data:`MOST_COUNTED` read as absent: a number is never stored wrapped.
    """
    ends = np.cumsum([layer.unit_count for layer in layers])
    arrays = {
        variable.name: np.full((int(ends[-1]) if layers else 0, 2), variable.fill_value, dtype=variable.dtype)
        for variable in schema.UNITS.variables
    }
    for key, summary in units.items():
        if not _fits(summary.count):
            continue
        layer, signal = divmod(key, SIGNAL_COUNT)
        place = slice(ends[layer] - layers[layer].unit_count, ends[layer]), _UNIT_COLUMNS[signal]
        empty = summary.finite_count == 0
        for name, attribute in _UNIT_FIELDS.items():
            values = getattr(summary, attribute)
            # Means of float64 activations beyond float32 read infinite or 0 here; the layer's own numbers are float64.
            with np.errstate(over="ignore", under="ignore"):
                arrays[name][place] = np.where(empty, np.nan, values) if arrays[name].dtype.kind == "f" else values
        arrays["unit_m2"][place][~_has_exact_m2(summary)] = np.nan
    return arrays


def _has_exact_m2(summary: UnitSummary) -> NDArray[np.bool_]:
    """Whether the squared deviations of each unit are those of all its elements, and float32 has them to its precision.

    Squares leave the range of float32 where values of 1e-19 or 1e19 do not.
    """
    limits = np.finfo(np.float32)
    held = (summary.m2 == 0) | ((summary.m2 >= limits.tiny) & (summary.m2 <= limits.max))
    return np.asarray(held & (summary.finite_count == summary.count))
