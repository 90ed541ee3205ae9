"""What judging a long recording costs: 1,000 records of 100 layers with 10,000 units, every check, on one core."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import covshift
from covshift import schema
from covshift.analysis import shift
from covshift.diagnosis import diagnose
from covshift.grid import VALUES
from covshift.store.writer import Writer

TARGET_SECONDS = 10.0
LAYERS, UNITS_OF_LAYER, EXAMPLES, POSITIONS = 100, 100, 64, 16


def measure(*, quick: bool) -> dict[str, Any]:
    """Seconds to diagnose a recording from disk: 1,000 records for a claim, 200 for a look."""
    records = 200 if quick else 1000
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "long.zarr"
        write_long(path, records)
        seconds = {
            "shift.between_steps": seconds_of(lambda: shift.between_steps(covshift.open(path))),
            "diagnose": seconds_of(lambda: diagnose(covshift.open(path))),
        }
    return {"records": records, "layers": LAYERS, "seconds": seconds, "target": TARGET_SECONDS}


def show(result: dict[str, Any]) -> None:
    """Print the section."""
    print(
        f"\nJudging {result['records']:,} records of {result['layers']} layers from disk; histograms and units at "
        f"their default cadence.\nTarget for 1,000 records: {result['target']:.0f} s\n"
    )
    for name, (wall, cpu) in result["seconds"].items():
        print(f"{name:22} {wall:6.2f} s wall {cpu:6.2f} s CPU")


def seconds_of(judged: Any) -> tuple[float, float]:
    """Wall and processor time of a call."""
    wall, cpu = time.perf_counter(), time.process_time()
    judged()
    return time.perf_counter() - wall, time.process_time() - cpu


def write_long(path: Path, records: int) -> None:
    """A healthy recording of 50 convolutions with their rectifiers, from templates of sampled histograms."""
    generator = np.random.default_rng(0)
    templates = _templates(generator)
    with Writer(path, attrs={"run_name": "long"}) as writer:
        writer.declare_layers(_layers())
        writer.declare_parameters([schema.Parameter(f"conv{i}.weight", 90_000, 4) for i in range(LAYERS // 2)])
        for record in range(records):
            rows = [schema.Row("layers", record * 10, _moments(generator))]
            if record < 10 or record % 10 == 0:
                rows.append(schema.Row("histograms", record * 10, _histograms(generator, templates)))
                rows.append(schema.Row("units", record * 10, _units(generator)))
            rows.append(schema.Row("parameters", record * 10, _parameters(generator)))
            writer.append(rows)


def _layers() -> list[schema.Layer]:
    layers = []
    for index in range(LAYERS // 2):
        conv = schema.Layer(f"conv{index}", "Conv2d", 2 * index, 1, 0, UNITS_OF_LAYER)
        rectifier = schema.Layer(
            f"act{index}",
            "ReLU",
            2 * index + 1,
            1,
            0,
            UNITS_OF_LAYER,
            activation="ReLU",
            preactivation_of=conv.name,
            structural_measured=True,
        )
        layers += [conv, rectifier]
    return layers


def _templates(generator: np.random.Generator) -> NDArray[np.uint32]:
    """Histograms of normal values by example group, shape ``(templates, groups, bins)``."""
    shape = (16, schema.EXAMPLE_GROUPS, EXAMPLES // schema.EXAMPLE_GROUPS * UNITS_OF_LAYER * POSITIONS)
    ids = VALUES.ids(generator.normal(size=shape).astype(np.float32))
    counts = [np.bincount(group, minlength=VALUES.size) for group in ids.reshape(-1, shape[-1])]
    return np.array(counts, dtype=np.uint32).reshape(*shape[:2], VALUES.size)


def _filled(group: schema.Group, **sizes: int) -> dict[str, NDArray[Any]]:
    lengths = sizes | {dim: len(labels) for dim, labels in group.labels.items()}
    return {
        variable.name: np.full([lengths[dim] for dim in variable.dims], variable.fill_value, variable.dtype)
        for variable in group.variables
    }


def _moments(generator: np.random.Generator) -> dict[str, NDArray[Any]]:
    columns = _filled(schema.LAYERS, layer=LAYERS)
    count = EXAMPLES * UNITS_OF_LAYER * POSITIONS
    signals = [schema.SIGNALS.index(name) for name in ("activation", "activation_grad")]
    for name, value in {"count": count, "example_count": EXAMPLES, "m2": count, "m4": 3 * count}.items():
        columns[name][:, signals] = value
    columns["status"][:, signals] = schema.Status.OK
    columns["sum"][:, signals] = generator.normal(size=(LAYERS, len(signals))) * count**0.5
    columns["m3"][:, signals], columns["min"][:, signals], columns["max"][:, signals] = 0.0, -4.0, 4.0
    columns["zero_count"][1::2, signals] = count // 2
    columns["structural_zero_count"][1::2] = count // 2
    return columns


def _histograms(generator: np.random.Generator, templates: NDArray[np.uint32]) -> dict[str, NDArray[Any]]:
    columns = _filled(schema.HISTOGRAMS, layer=LAYERS)
    activation = schema.VALUE_SIGNALS.index("activation")
    columns["value_histogram"][:, activation] = templates[generator.integers(len(templates), size=LAYERS)]
    return columns


def _units(generator: np.random.Generator) -> dict[str, NDArray[Any]]:
    columns = _filled(schema.UNITS, unit=LAYERS * UNITS_OF_LAYER)
    shape = columns["unit_count"].shape
    columns["unit_count"][:] = EXAMPLES * POSITIONS
    columns["unit_positive_count"][:] = columns["unit_zero_count"][:] = EXAMPLES * POSITIONS // 2
    columns["unit_active_examples"][:] = generator.integers(1, EXAMPLES, size=shape)
    columns["unit_mean"][:] = generator.normal(0, 0.1, size=shape)
    columns["unit_m2"][:] = EXAMPLES * POSITIONS
    return columns


def _parameters(generator: np.random.Generator) -> dict[str, NDArray[Any]]:
    columns = _filled(schema.PARAMETERS, parameter=LAYERS // 2)
    columns["weight_norm"][:], columns["gradient_norm"][:] = 1.0, 0.1
    columns["update_norm"][:] = 1e-3 * generator.lognormal(sigma=0.1, size=LAYERS // 2)
    columns["sampled_share"][:], columns["gradient_measured"][:] = 1.0, 1
    return columns
