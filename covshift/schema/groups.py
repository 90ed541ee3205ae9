"""Groups, dimensions, coordinates, variables and units of a recording, held as data.

A recording is an ``xarray.DataTree``. Every group has a cadence and therefore a ``step`` dimension of its own.
Training rows live at the root (``layers``, ``histograms``, ``units``, ``parameters``, ``scalars``); rows recorded
while the model was merely evaluated live under ``evaluation/``, those of a probe under ``probe/``, with the same
groups, so that ``step`` stays unique and strictly increasing in each group and they never mix.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np

from covshift.grid import GRADIENTS, VALUES, Grid

EXAMPLE_GROUPS = 4

SIGNALS = ("input", "preactivation", "activation", "activation_grad", "preactivation_grad")
"""Signals in the order a batch meets them: root input, input and output of a layer, and the loss's gradient
with respect to each."""

VALUE_SIGNALS = ("input", "preactivation", "activation")
GRADIENT_SIGNALS = ("activation_grad", "preactivation_grad")
UNIT_SIGNALS = ("activation", "activation_grad")


class Status(IntEnum):
    """Why a row holds the numbers it holds, or none."""

    ABSENT = 0
    OK = 1
    VIA_BASE = 2
    UNUSED_OUTPUT = 3
    NO_GRAD_REQUIRED = 4
    NO_GRADIENT_ARRIVED = 5
    NO_GRAD_FORWARD = 6
    UNSUPPORTED = 7
    AXIS_UNKNOWN = 8
    UNDER_PRODUCER = 9
    FAILED = 10


class Source(IntEnum):
    """What made the model run."""

    TRAIN = 0
    EVALUATION = 1
    PROBE = 2
    A_A = 3


STREAMS: Mapping[str, Source] = {"": Source.TRAIN, "evaluation": Source.EVALUATION, "probe": Source.PROBE}
"""Where rows come from: training at the root, evaluation passes and probes under groups of their own."""


class Mode(IntEnum):
    """The model's own flag: ``model.train()`` or ``model.eval()``."""

    EVAL = 0
    TRAIN = 1


@dataclass(frozen=True)
class Variable:
    """One array of a group: its dimensions after ``step``, type, unit, fill value and meaning.

    A recording may lack what is optional: it was made before that was measured.
    """

    name: str
    dims: tuple[str, ...]
    dtype: str
    long_name: str
    units: str = "count"
    flags: type[IntEnum] | None = None
    is_optional: bool = False

    @property
    def fill_value(self) -> float | int:
        """What an absent cell reads: 0 for counts and flags, NaN for floats."""
        return float("nan") if np.dtype(self.dtype).kind == "f" else 0

    @property
    def attrs(self) -> dict[str, Any]:
        """CF attributes of the array; text and flags have no units."""
        attrs: dict[str, Any] = {"long_name": self.long_name}
        if self.dtype != "str" and self.flags is None:
            attrs["units"] = self.units
        if self.flags is not None:
            attrs["flag_values"] = [int(flag) for flag in self.flags]
            attrs["flag_meanings"] = " ".join(flag.name.lower() for flag in self.flags)
        return attrs


@dataclass(frozen=True)
class Group:
    """One cadence of a recording: variables that share ``step``, and the coordinates that label their axes."""

    name: str
    variables: tuple[Variable, ...]
    coordinates: tuple[Variable, ...] = ()
    labels: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    @property
    def dims(self) -> tuple[str, ...]:
        """Every dimension of the group, ``step`` first."""
        names = dict.fromkeys(dim for variable in self.variables for dim in variable.dims)
        return ("step", *names)


def _counts(names: Mapping[str, str], dims: tuple[str, ...], dtype: str) -> tuple[Variable, ...]:
    return tuple(Variable(name, dims, dtype, meaning) for name, meaning in names.items())


def _floats(names: Mapping[str, str], dims: tuple[str, ...], dtype: str) -> tuple[Variable, ...]:
    return tuple(Variable(name, dims, dtype, meaning, units="1") for name, meaning in names.items())


def _bins(dim: str, grid: Grid) -> dict[str, tuple[Any, ...]]:
    return {dim: tuple(range(grid.size))}


STEP_COORDINATES = (
    Variable("source", ("step",), "u1", "what made the model run", flags=Source),
    Variable("mode", ("step",), "u1", "whether the model was in training mode", flags=Mode),
)

LAYER_COORDINATES = (
    Variable("module_type", ("layer",), "str", "class of the module"),
    Variable("depth", ("layer",), "i4", "order in which the layer first ran, 0 first"),
    Variable("unit_axis", ("layer",), "i2", "axis of the output that counts units, -1 last, -128 unknown"),
    Variable("example_axis", ("layer",), "i2", "axis of the output that counts examples, -128 unknown"),
    Variable("unit_count_of_layer", ("layer",), "i4", "number of units of the output, 0 unknown"),
    Variable("dtype", ("layer",), "str", "torch dtype of the output when first seen"),
    Variable("memory_format", ("layer",), "str", "memory layout of the output when first seen"),
    Variable("activation", ("layer",), "str", "kind of nonlinearity, empty where the layer is none"),
    Variable("linkage_members", ("layer",), "i2", "members of the linkage, 0 where the layer is none"),
    Variable("preactivation_of", ("layer",), "str", "layer whose output is this nonlinearity's input, or empty"),
    Variable("structural_measured", ("layer",), "u1", "1 where structural zeros have a closed form"),
)

_LAYER_SIGNAL = ("layer", "signal")

LAYERS = Group(
    "layers",
    (
        *_counts(
            {
                "count": "elements seen, non-finite ones included",
                "example_count": "examples seen",
                "zero_count": "elements equal to zero, -0.0 included",
                "negative_count": "elements below zero, -inf included",
                "nan_count": "NaN elements",
                "posinf_count": "elements equal to +inf",
                "neginf_count": "elements equal to -inf",
                "subnormal_count": "non-zero elements below the smallest normal number of their dtype",
                "structural_zero_count": "elements of z at which every member's derivative is zero",
            },
            _LAYER_SIGNAL,
            "u8",
        ),
        *_floats(
            {
                "sum": "sum of the finite elements",
                "m2": "sum of squared deviations of the finite elements from their mean",
                "m3": "sum of cubed deviations of the finite elements from their mean",
                "m4": "sum of fourth powers of deviations of the finite elements from their mean",
                "min": "smallest finite element",
                "max": "largest finite element",
            },
            _LAYER_SIGNAL,
            "f8",
        ),
        Variable("status", _LAYER_SIGNAL, "u1", "how the row came about", flags=Status),
    ),
    LAYER_COORDINATES,
    {"signal": SIGNALS},
)

HISTOGRAMS = Group(
    "histograms",
    (
        Variable(
            "value_histogram",
            ("layer", "value_signal", "group", "value_bin"),
            "u4",
            "elements in each bin of the value grid, by example group (example index modulo the number of groups)",
        ),
        Variable(
            "gradient_histogram",
            ("layer", "gradient_signal", "gradient_bin"),
            "u4",
            "elements in each bin of the gradient grid",
        ),
    ),
    (
        Variable("value_bin_lower", ("value_bin",), "f8", "lower edge of the bin", units="1"),
        Variable("value_bin_upper", ("value_bin",), "f8", "upper edge of the bin", units="1"),
        Variable("gradient_bin_lower", ("gradient_bin",), "f8", "lower edge of the bin", units="1"),
        Variable("gradient_bin_upper", ("gradient_bin",), "f8", "upper edge of the bin", units="1"),
    ),
    {
        "value_signal": VALUE_SIGNALS,
        "gradient_signal": GRADIENT_SIGNALS,
        "group": tuple(range(EXAMPLE_GROUPS)),
        **_bins("value_bin", VALUES),
        **_bins("gradient_bin", GRADIENTS),
    },
)

_UNIT_SIGNAL = ("unit", "signal")

UNITS = Group(
    "units",
    (
        *_counts(
            {
                "unit_count": "elements of the unit",
                "unit_zero_count": "elements of the unit equal to zero",
                "unit_positive_count": "elements of the unit above zero",
                "unit_active_examples": "examples in which any element of the unit is not zero",
            },
            _UNIT_SIGNAL,
            "u4",
        ),
        *_floats(
            {
                "unit_mean": "mean of the unit's finite elements",
                "unit_m2": "sum of squared deviations of the unit's elements from their mean; NaN where some are not "
                "finite, or where float32 cannot hold it",
            },
            _UNIT_SIGNAL,
            "f4",
        ),
    ),
    (
        Variable("layer_index", ("unit",), "i4", "position on the layer axis of the layer that owns the unit"),
        Variable("unit_in_layer", ("unit",), "i4", "position of the unit on the layer's unit axis"),
        Variable("linked_unit", ("unit",), "i4", "linkage the unit is a member of, within its layer; -1 none"),
    ),
    {"signal": UNIT_SIGNALS},
)

PARAMETERS = Group(
    "parameters",
    (
        *_floats(
            {
                "weight_norm": "L2 norm of the parameter before the update",
                "gradient_norm": "L2 norm of the unscaled gradient at the optimizer step",
                "gradient_norm_preclip": "L2 norm of the unscaled gradient at the end of the backward pass",
                "update_norm": "L2 norm of the change the optimizer made",
                "sampled_share": "share of elements the update norm was measured on",
            },
            ("parameter",),
            "f8",
        ),
        Variable(
            "gradient_cosine",
            ("parameter",),
            "f8",
            "cosine of the gradient to that of the record before, on a strided sample",
            "1",
            is_optional=True,
        ),
        Variable(
            "gradient_noise_norm",
            ("parameter",),
            "f8",
            "L2 norm of the sampling noise of the unscaled gradient, from the micro-batches of the step",
            "1",
            is_optional=True,
        ),
        *_counts(
            {
                "gradient_zero_count": "gradient elements equal to zero",
                "gradient_nonfinite_count": "gradient elements that are NaN or infinite",
            },
            ("parameter",),
            "u8",
        ),
        Variable(
            "gradient_measured",
            ("parameter",),
            "u1",
            "1 where a gradient was there at the optimizer step",
            "1",
        ),
    ),
    (
        Variable("parameter_size", ("parameter",), "i8", "number of elements"),
        Variable("parameter_ndim", ("parameter",), "i2", "number of axes", units="1"),
    ),
)

SCALARS = Group("scalars", (Variable("wall_time", (), "f8", "time of the step", "seconds since 1970-01-01"),))
"""Besides the wall time, one float64 variable per name given to ``recorder.log``; NaN where nothing was logged."""

GROUPS: Mapping[str, Group] = {group.name: group for group in (LAYERS, HISTOGRAMS, UNITS, PARAMETERS, SCALARS)}
EVALUATION_GROUPS = ("layers", "histograms", "units")


def paths() -> tuple[str, ...]:
    """Every group a recording may hold: those of training at the root, those of other streams under their names."""
    groups = {stream: EVALUATION_GROUPS if stream else tuple(GROUPS) for stream in STREAMS}
    return tuple(f"{stream}/{name}".lstrip("/") for stream, names in groups.items() for name in names)


def grid_of(histogram: str) -> Grid:
    """Grid of a histogram variable: ``value_histogram`` or ``gradient_histogram``."""
    return {"value_histogram": VALUES, "gradient_histogram": GRADIENTS}[histogram]


def group_of(path: str) -> Group:
    """Schema of the group at ``path``: the last part names it (``"evaluation/layers"`` is a ``layers`` group)."""
    return GROUPS[path.rsplit("/", 1)[-1]]
