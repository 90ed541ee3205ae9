"""What labels the axes of a recording: the layers, units and parameters declared so far, and the fixed grids.

Knows positions and names, so that arrays can be checked against the axes and errors can say which layer they mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from covshift import schema
from covshift.exceptions import InvalidArgumentError
from covshift.grid import GRADIENTS, VALUES

_BIN_EDGES = {
    "value_bin_lower": VALUES.lower,
    "value_bin_upper": VALUES.upper,
    "gradient_bin_lower": GRADIENTS.lower,
    "gradient_bin_upper": GRADIENTS.upper,
}


class Axes:
    """The axes that grow: ``layer``, ``unit`` (each layer adds its units) and ``parameter``."""

    def __init__(self) -> None:
        self._layers: dict[str, schema.Layer] = {}
        self._parameters: dict[str, schema.Parameter] = {}
        self._unit_ends: list[int] = []

    def add_layers(self, layers: Sequence[schema.Layer]) -> None:
        """Append layers, and their units, or none of them.

        Raises
        ------
        InvalidArgumentError
            If a name is already taken or a unit count negative.
        """
        names = _new_names("layers", [layer.name for layer in layers], self._layers)
        for layer in layers:
            if layer.unit_count < 0:
                raise InvalidArgumentError(
                    f"layer '{layer.name}': unit_count={layer.unit_count}: expected 0 (unknown) or more"
                )
        self._layers.update(zip(names, layers, strict=True))
        self._unit_ends = list(accumulate(layer.unit_count for layer in self._layers.values()))

    def add_parameters(self, parameters: Sequence[schema.Parameter]) -> None:
        """Append parameters, or none of them; a name that is already taken raises InvalidArgumentError."""
        names = _new_names("parameters", [parameter.name for parameter in parameters], self._parameters)
        self._parameters.update(zip(names, parameters, strict=True))

    @property
    def lengths(self) -> dict[str, int]:
        """Present length of every axis that grows, ``step`` apart."""
        units = self._unit_ends[-1] if self._unit_ends else 0
        return {"layer": len(self._layers), "unit": units, "parameter": len(self._parameters)}

    def owner(self, dim: str, position: int) -> str:
        """Who stands at ``position`` on the axis ``dim``, in words for an error message."""
        if dim == "parameter":
            return f"parameter '{list(self._parameters)[position]}'"
        names = list(self._layers)
        if dim == "layer":
            return f"layer '{names[position]}'"
        index = int(np.searchsorted(self._unit_ends, position, side="right"))
        start = self._unit_ends[index - 1] if index else 0
        return f"unit {position - start} of layer '{names[index]}'"

    def values(self, coordinate: schema.Variable, group: schema.Group) -> NDArray[Any]:
        """Values of a coordinate on an axis other than ``step``, over the whole axis as declared so far."""
        values = self._values(coordinate, group)
        return np.asarray(values, dtype=np.dtypes.StringDType() if coordinate.dtype == "str" else coordinate.dtype)

    def _values(self, coordinate: schema.Variable, group: schema.Group) -> Any:
        name, (dim,) = coordinate.name, coordinate.dims
        if name in group.labels:
            return group.labels[name]
        if name in _BIN_EDGES:
            return _BIN_EDGES[name]
        if dim == "unit":
            return self._unit_values(name)
        described = self._layers if dim == "layer" else self._parameters
        return list(described) if name == dim else [one.coordinate(name) for one in described.values()]

    def _unit_values(self, name: str) -> NDArray[Any]:
        layers = list(self._layers.values())
        counts = [layer.unit_count for layer in layers]
        if name == "layer_index":
            return np.repeat(np.arange(len(layers)), counts)
        parts = [layer.linked_units() if name == "linked_unit" else np.arange(layer.unit_count) for layer in layers]
        return np.concatenate([np.zeros(0, dtype=np.int64), *parts])


def _new_names(kind: str, names: Sequence[str], taken: dict[str, Any]) -> Sequence[str]:
    seen = set(taken)
    for name in names:
        if name in seen:
            raise InvalidArgumentError(f"{kind}: '{name}' is declared twice: expected every name once per recording")
        seen.add(name)
    return names
