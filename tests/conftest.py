"""Recordings built from raw tensors by brute force: the oracle of everything that reads recordings.

Nothing here uses covshift beyond the schema's names and the grid's edges: counts, moments, histograms and numbers of
units are recounted from the arrays, so that a test can compare an estimate with the same thing computed from raw data.
"""

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import torch
import torch.overrides
import xarray as xr
from hypothesis import settings

from covshift import schema
from covshift.grid import GRADIENTS, VALUES, Grid
from covshift.schema import Layer, Mode, Source, Status

Tensors = Mapping[str, Mapping[str, np.ndarray]]
"""layer -> signal -> array of shape (examples, units, ...)"""

# A deadline would assert a time, which depends on the machine.
settings.register_profile("covshift", deadline=None)
settings.load_profile("covshift")


def _settings_of_torch() -> dict[str, Any]:
    return {
        "function modes": torch.overrides._get_current_function_mode_stack(),  # type: ignore[no-untyped-call]
        "fused transformer layers": torch.backends.mha.get_fastpath_enabled(),
        "gradients": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "global hooks": list(torch.nn.modules.module._global_forward_hooks),
        "dtype": torch.get_default_dtype(),
    }


@pytest.fixture(autouse=True)
def _torch_is_left_as_it_was_found() -> Iterator[None]:
    """What a test leaves behind would fail another one, which one depending on the order."""
    found = _settings_of_torch()
    yield
    assert _settings_of_torch() == found


def bin_counts(values: np.ndarray, grid: Grid) -> np.ndarray:
    """Histogram by searching the edges, where the grid itself reads bits."""
    flat = np.asarray(values, dtype=np.float64).ravel()
    positive = grid.upper[grid.zero + 1 : grid.nan - 1]
    ids = grid.zero + 1 + np.searchsorted(positive, np.abs(flat), side="right")
    ids = np.where(np.isinf(flat), grid.nan - 1, ids)
    ids = np.where(flat < 0, 2 * grid.zero - ids, ids)
    ids = np.where(flat == 0, grid.zero, ids)
    ids = np.where(np.isnan(flat), grid.nan, ids)
    return np.bincount(ids, minlength=grid.size)


def remembered(count: Callable[..., Any]) -> Callable[..., Any]:
    """``count`` of an array and hashable settings, recounted only for arrays not seen before."""
    known: dict[tuple[Any, ...], tuple[weakref.ref[np.ndarray], Any]] = {}

    def recall(array: np.ndarray, *settings: Any) -> Any:
        key = (id(array), *settings)
        if key not in known or known[key][0]() is not array:
            known[key] = weakref.ref(array), count(array, *settings)
        return known[key][1]

    return recall


class _Builder:
    """Fills the arrays of one stream, cell by cell."""

    def __init__(self, layers: list[Layer], steps: Mapping[int, Tensors]) -> None:
        self.layers, self.steps = layers, dict(steps)
        self.position = {layer.name: index for index, layer in enumerate(layers)}
        self.unit_start = np.cumsum([0, *(layer.unit_count for layer in layers)])
        self.sizes = {"layer": len(layers), "unit": int(self.unit_start[-1])}

    def blank(self, group: schema.Group, steps: list[int]) -> dict[str, np.ndarray]:
        sizes = self.sizes | {dim: len(labels) for dim, labels in group.labels.items()}
        return {
            variable.name: np.full(
                (len(steps), *(sizes[dim] for dim in variable.dims)), variable.fill_value, variable.dtype
            )
            for variable in group.variables
        }

    def cells(self, steps: Iterable[int]) -> Iterable[tuple[int, Layer, str, np.ndarray]]:
        for row, step in enumerate(steps):
            for name, signals in self.steps[step].items():
                for signal, array in signals.items():
                    yield row, self.layers[self.position[name]], signal, np.asarray(array)

    def rows(self, steps: list[int]) -> dict[str, np.ndarray]:
        arrays = self.blank(schema.LAYERS, steps)
        for row, layer, signal, array in self.cells(steps):
            cell = row, self.position[layer.name], schema.SIGNALS.index(signal)
            for name, value in _row_of(array, layer.example_axis == 0).items():
                arrays[name][cell] = value
            arrays["status"][cell] = Status.OK
        return arrays

    def histograms(self, steps: list[int]) -> dict[str, np.ndarray]:
        arrays = self.blank(schema.HISTOGRAMS, steps)
        for row, layer, signal, array in self.cells(steps):
            where = row, self.position[layer.name]
            if signal in schema.GRADIENT_SIGNALS:
                cell = schema.GRADIENT_SIGNALS.index(signal)
                arrays["gradient_histogram"][(*where, cell)] = _groups_of(array, 1, GRADIENTS)[0]
                continue
            cell = schema.VALUE_SIGNALS.index(signal)
            groups = schema.EXAMPLE_GROUPS if layer.example_axis == 0 else 1
            arrays["value_histogram"][(*where, cell)][:groups] = _groups_of(array, groups, VALUES)
        return arrays

    def units(self, steps: list[int]) -> dict[str, np.ndarray]:
        arrays = self.blank(schema.UNITS, steps)
        for row, layer, signal, array in self.cells(steps):
            if signal not in schema.UNIT_SIGNALS:
                continue
            start = self.unit_start[self.position[layer.name]]
            for unit, numbers in enumerate(_units_of(array, layer.unit_count)):
                for name, value in numbers.items():
                    arrays[name][row, start + unit, schema.UNIT_SIGNALS.index(signal)] = value
        return arrays

    def coordinates(self, group: schema.Group) -> dict[str, Any]:
        coords: dict[str, Any] = {dim: list(labels) for dim, labels in group.labels.items()}
        if "layer" in group.dims:
            coords["layer"] = [layer.name for layer in self.layers]
        if group is schema.LAYERS:
            for variable in group.coordinates:
                values = [layer.coordinate(variable.name) for layer in self.layers]
                coords[variable.name] = ("layer", np.array(values, dtype=object if variable.dtype == "str" else None))
        if group is schema.UNITS:
            counts = [layer.unit_count for layer in self.layers]
            coords["layer_index"] = ("unit", np.repeat(np.arange(len(counts)), counts))
            coords["unit_in_layer"] = ("unit", np.concatenate([np.arange(n) for n in [0, *counts]]))
            linked = [np.zeros(0, dtype=np.int32), *(layer.linked_units() for layer in self.layers)]
            coords["linked_unit"] = ("unit", np.concatenate(linked))
        return coords


@remembered
def _groups_of(array: np.ndarray, groups: int, grid: Grid) -> np.ndarray:
    return np.stack([bin_counts(array[group::groups], grid) for group in range(groups)])


@remembered
def _units_of(array: np.ndarray, units: int) -> list[dict[str, float]]:
    return [_unit_of(array[:, unit]) for unit in range(units)]


@remembered
def _row_of(array: np.ndarray, counts_examples: bool) -> dict[str, float]:
    values = array.astype(np.float64).ravel()
    finite = values[np.isfinite(values)]
    deviation = finite - finite.mean() if finite.size else finite
    return {
        "count": values.size,
        "example_count": array.shape[0] if counts_examples else 0,
        "zero_count": (values == 0).sum(),
        "negative_count": (values < 0).sum(),
        "nan_count": np.isnan(values).sum(),
        "posinf_count": np.isposinf(values).sum(),
        "neginf_count": np.isneginf(values).sum(),
        "sum": finite.sum(),
        "m2": (deviation * deviation).sum(),
        "m3": (deviation * deviation * deviation).sum(),
        "m4": (deviation * deviation * deviation * deviation).sum(),
        "min": finite.min() if finite.size else np.nan,
        "max": finite.max() if finite.size else np.nan,
    }


def _unit_of(array: np.ndarray) -> dict[str, float]:
    values = array.reshape(len(array), -1).astype(np.float64)
    finite = values[np.isfinite(values)]
    return {
        "unit_count": values.size,
        "unit_zero_count": (values == 0).sum(),
        "unit_positive_count": (values > 0).sum(),
        "unit_active_examples": (values != 0).any(axis=1).sum(),
        "unit_mean": finite.mean() if finite.size else np.nan,
        "unit_m2": _in_float32(((values - values.mean()) ** 2).sum()) if finite.size == values.size else np.nan,
    }


def _in_float32(value: float) -> float:
    """The value, NaN where float32 has it only as 0, as infinity or to fewer digits than others."""
    return value if value == 0 or 2.0**-126 <= value < 2.0**128 else np.nan


def _default_layers(streams: Iterable[Mapping[int, Tensors]]) -> list[Layer]:
    shapes: dict[str, int] = {}
    for steps in streams:
        for tensors in steps.values():
            for name, signals in tensors.items():
                width = next((np.shape(array)[1] for array in signals.values() if np.ndim(array) > 1), 0)
                shapes[name] = max(shapes.get(name, 0), width)
    return [Layer(name, "Linear", depth, 1, 0, width) for depth, (name, width) in enumerate(shapes.items())]


def _structural_zeros(
    arrays: dict[str, np.ndarray], builder: _Builder, steps: list[int], flat: Mapping[str, Callable[..., Any]]
) -> None:
    for row, step in enumerate(steps):
        for name, is_flat in flat.items():
            layer, tensors = builder.layers[builder.position[name]], builder.steps[step]
            own = tensors.get(name, {}).get("preactivation")
            z = tensors.get(layer.preactivation_of, {}).get("activation") if own is None else own
            if z is not None:
                cell = row, builder.position[name], schema.SIGNALS.index("preactivation")
                arrays["structural_zero_count"][cell] = is_flat(np.asarray(z)).sum()


def _mark_under_producer(arrays: dict[str, np.ndarray], layers: list[Layer]) -> None:
    for index, layer in enumerate(layers):
        for signal in ("preactivation", "preactivation_grad"):
            cell = slice(None), index, schema.SIGNALS.index(signal)
            if layer.preactivation_of:
                arrays["status"][cell] = np.where(arrays["count"][cell] == 0, Status.UNDER_PRODUCER, Status.OK)


def _dataset(group: schema.Group, arrays: Mapping[str, np.ndarray], coords: dict[str, Any]) -> xr.Dataset:
    variables = {v.name: (("step", *v.dims), arrays[v.name], v.attrs) for v in group.variables}
    return xr.Dataset(variables, coords)


def _parameters(rows: Mapping[int, Mapping[str, Mapping[str, float]]], ndim: Mapping[str, int]) -> xr.Dataset:
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    arrays = {
        v.name: np.array([[row.get(n, {}).get(v.name, v.fill_value) for n in names] for row in rows.values()]).reshape(
            len(rows), len(names)
        )
        for v in schema.PARAMETERS.variables
    }
    coords = {
        "step": list(rows),
        "source": ("step", [int(Source.TRAIN)] * len(rows)),
        "mode": ("step", [int(Mode.TRAIN)] * len(rows)),
        "parameter": names,
        "parameter_ndim": ("parameter", [ndim.get(name, 2) for name in names]),
        "parameter_size": ("parameter", [1] * len(names)),
    }
    return _dataset(schema.PARAMETERS, arrays, coords)


def build_recording(
    steps: Mapping[int, Tensors] | None = None,
    *,
    layers: list[Layer] | None = None,
    evaluation: Mapping[int, Tensors] | None = None,
    probe: Mapping[int, Tensors] | None = None,
    histogram_steps: Iterable[int] | None = None,
    unit_steps: Iterable[int] | None = None,
    flat: Mapping[str, Callable[..., Any]] | None = None,
    statuses: Mapping[tuple[int, str, str], Status] | None = None,
    mode: Mode = Mode.TRAIN,
    parameters: Mapping[int, Mapping[str, Mapping[str, float]]] | None = None,
    parameter_ndim: Mapping[str, int] | None = None,
    scalars: Mapping[int, Mapping[str, float]] | None = None,
    without: Iterable[str] = (),
) -> xr.DataTree:
    """A recording in memory.

    ``steps``, ``evaluation`` and ``probe`` map step -> layer -> signal -> array (examples, units, ...); ``flat`` maps a
    layer to the test whether its derivative is zero at z; ``statuses`` overrides (step, layer, signal) of the training
    stream; ``without`` drops groups.
    """
    streams = {
        "": (steps or {}, Source.TRAIN, mode),
        "evaluation/": (evaluation or {}, Source.EVALUATION, Mode.EVAL),
        "probe/": (probe or {}, Source.PROBE, Mode.EVAL),
    }
    layers = layers if layers is not None else _default_layers(stream[0] for stream in streams.values())
    tree: dict[str, xr.Dataset] = {}
    for prefix, (tensors, source, flag) in streams.items():
        if prefix and not tensors:
            continue
        builder = _Builder(layers, tensors)
        every = list(tensors)
        cadence = {"layers": every, "histograms": every, "units": every}
        if not prefix:
            cadence["histograms"] = every if histogram_steps is None else list(histogram_steps)
            cadence["units"] = every if unit_steps is None else list(unit_steps)
        for name, chosen in cadence.items():
            group = schema.GROUPS[name]
            arrays = {"layers": builder.rows, "histograms": builder.histograms, "units": builder.units}[name](chosen)
            if name == "layers":
                _structural_zeros(arrays, builder, chosen, flat or {})
                _mark_under_producer(arrays, layers)
                for (step, layer, signal), status in (statuses or {}).items():
                    if step in chosen and not prefix:
                        cell = chosen.index(step), builder.position[layer], schema.SIGNALS.index(signal)
                        arrays["status"][cell] = status
            coords = builder.coordinates(group) | {
                "step": np.array(chosen, dtype=np.int64),
                "source": ("step", np.full(len(chosen), source, dtype=np.uint8)),
                "mode": ("step", np.full(len(chosen), flag, dtype=np.uint8)),
            }
            tree[prefix + name] = _dataset(group, arrays, coords)
    if parameters is not None:
        tree["parameters"] = _parameters(parameters, parameter_ndim or {})
    if scalars is not None:
        names = dict.fromkeys(["wall_time", *(name for row in scalars.values() for name in row)])
        logged = {name: ("step", [row.get(name, np.nan) for row in scalars.values()]) for name in names}
        # covshift.open decodes the CF times of a recording.
        seconds = [row.get("wall_time", float(step)) for step, row in scalars.items()]
        logged["wall_time"] = ("step", (np.array(seconds) * 1e9).astype("datetime64[ns]"))
        tree["scalars"] = xr.Dataset(logged, {"step": list(scalars)})
    recording = xr.DataTree.from_dict({path: data for path, data in tree.items() if path not in set(without)})
    recording.attrs["covshift_schema_version"] = schema.VERSION
    schema.check(recording)
    return recording


@pytest.fixture(scope="session")
def make_recording() -> Callable[..., xr.DataTree]:
    """The builder :func:`build_recording`."""
    return build_recording


@pytest.fixture(scope="session")
def count_bins() -> Callable[[np.ndarray, Grid], np.ndarray]:
    """Histogram of raw values on a grid, by its edges."""
    return bin_counts
