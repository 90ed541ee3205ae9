"""Workload W: the records of a run of 100 layers and 10,000 units, drawn to the schema and to its default cadence.

Every second layer is the nonlinearity of the one before, so a layer has its output and the output's gradient, and a
nonlinearity its input and that input's gradient besides: four signals. Histograms come in four example groups; they and
the units are in the first ten records and every tenth after, as ``record`` does by default. Numbers drift from record
to record, and no two records are alike: repeated ones would pack better than any run does.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from covshift import schema
from covshift.schema import Layer, Parameter, Row, SparseCounts

LAYERS, UNITS_OF_LAYER = 100, 100
ELEMENTS, EXAMPLES = 65536, 64
_OCCUPIED = {"value": 60, "gradient": 40}
_BINS = {"value": 648, "gradient": 1024}

_COUNTS = [variable.name for variable in schema.LAYERS.variables if variable.dtype == "u8"]
_FLOATS = [variable.name for variable in schema.LAYERS.variables if variable.dtype == "f8"]


def layers() -> list[Layer]:
    """Layers of the net, convolutions and nonlinearities in turn."""
    return [_layer(k) for k in range(LAYERS)]


def _layer(k: int) -> Layer:
    if k % 2:
        return Layer(f"blocks.{k // 2}.act", "ReLU", k, 1, 0, UNITS_OF_LAYER, "torch.float32", activation="ReLU")
    return Layer(f"blocks.{k // 2}.conv", "Conv2d", k, 1, 0, UNITS_OF_LAYER, "torch.float32", "contiguous")


def parameters() -> list[Parameter]:
    """Weights and biases of the convolutions."""
    names = [f"blocks.{k}.conv.{kind}" for k in range(LAYERS // 2) for kind in ("weight", "bias")]
    return [
        Parameter(name, 9000 if name.endswith("weight") else 100, 4 if name.endswith("weight") else 1) for name in names
    ]


def records(count: int, *, start: int = 0) -> Iterator[list[Row]]:
    """Rows of ``count`` records, by step from ``start``; the same step gives the same rows."""
    for step in range(start, start + count):
        rng = np.random.default_rng(step)
        rows = [_layer_row(step, rng), _parameter_row(step, rng), _scalar_row(step, rng)]
        if step < 10 or step % 10 == 0:
            rows += [_histogram_row(step, rng), _unit_row(step, rng)]
        yield rows


def _drift(step: int) -> NDArray[np.float64]:
    return 1 + 0.3 * np.sin(step / 100 + np.arange(LAYERS))


def _layer_row(step: int, rng: np.random.Generator) -> Row:
    counts = np.zeros((LAYERS, len(schema.SIGNALS), len(_COUNTS)), np.uint64)
    floats = np.full((LAYERS, len(schema.SIGNALS), len(_FLOATS)), np.nan)
    for signal in (2, 3):
        counts[:, signal, 0], counts[:, signal, 1] = ELEMENTS, EXAMPLES
        for column, rate in ((2, 0.4), (3, 0.3)):
            counts[:, signal, column] = rng.binomial(ELEMENTS, rate, LAYERS)
        floats[:, signal] = rng.normal(size=(LAYERS, len(_FLOATS))) * _drift(step)[:, None]
    counts[1::2, [1, 4]], floats[1::2, [1, 4]] = counts[0::2, [2, 3]], floats[0::2, [2, 3]]
    variables = {name: counts[..., k] for k, name in enumerate(_COUNTS)}
    variables |= {name: floats[..., k] for k, name in enumerate(_FLOATS)}
    return Row("layers", step, {**variables, "status": (counts[..., 0] > 0).astype("u1")})


def _histogram_row(step: int, rng: np.random.Generator) -> Row:
    value = _histogram(step, rng, "value", ("none", "odd", "all"), schema.EXAMPLE_GROUPS)
    gradient = _histogram(step, rng, "gradient", ("all", "odd"), 1)
    return Row("histograms", step, {"value_histogram": value, "gradient_histogram": gradient})


def _histogram(step: int, rng: np.random.Generator, kind: str, owners: tuple[str, ...], groups: int) -> SparseCounts:
    occupied, bins = _OCCUPIED[kind], _BINS[kind]
    bell = ELEMENTS / groups / 8 * np.exp(-(((np.arange(occupied) - occupied / 2) / (occupied / 6)) ** 2)) + 0.5
    index, counts = [], []
    for layer in range(LAYERS):
        first = bins // 2 - occupied // 2 + int(4 * np.sin(step / 300 + layer))
        for column, owner in enumerate(owners):
            if owner == "all" or (owner == "odd" and layer % 2):
                cells = ((layer * len(owners) + column) * groups + np.arange(groups)[:, None]) * bins
                index.append((cells + first + np.arange(occupied)).ravel())
                counts.append(rng.poisson(bell, (groups, occupied)).ravel())
    shape = (LAYERS, len(owners), *((groups,) if groups > 1 else ()), bins)
    flat, found = np.concatenate(index), np.concatenate(counts)
    return SparseCounts(shape, flat[found > 0].astype("u4"), found[found > 0].astype("u4"))


def _unit_row(step: int, rng: np.random.Generator) -> Row:
    shape = (LAYERS * UNITS_OF_LAYER, len(schema.UNIT_SIGNALS))
    scale = np.repeat(_drift(step), UNITS_OF_LAYER)[:, None]
    each = ELEMENTS // UNITS_OF_LAYER
    variables = {
        variable.name: rng.binomial(each, 0.4, shape).astype("u4")
        if variable.dtype == "u4"
        else (rng.normal(size=shape) * scale).astype("f4")
        for variable in schema.UNITS.variables
    }
    variables["unit_count"] = np.full(shape, each, "u4")
    variables["unit_active_examples"] = rng.binomial(EXAMPLES, 0.9, shape).astype("u4")
    return Row("units", step, variables)


def _parameter_row(step: int, rng: np.random.Generator) -> Row:
    variables = {
        variable.name: (np.abs(rng.normal(size=LAYERS)) if variable.dtype == "f8" else np.zeros(LAYERS)).astype(
            variable.dtype
        )
        for variable in schema.PARAMETERS.variables
    }
    return Row("parameters", step, variables)


def _scalar_row(step: int, rng: np.random.Generator) -> Row:
    values = {"wall_time": 1.75e9 + step, "loss": rng.random(), "learning_rate": 0.1}
    return Row("scalars", step, {name: np.float64(value) for name, value in values.items()})
