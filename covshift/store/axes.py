"""What labels the axes of a recording: the layers, units and parameters declared so far, and the fixed grids.

Knows positions and names, so that arrays can be checked against the axes and errors can say which layer they mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate
from typing import Any, TypeVar

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

Named = TypeVar("Named", schema.Layer, schema.Parameter)


class Axes:
    """The axes that grow: ``layer``, ``unit`` (each layer adds its units) and ``parameter``; never changed, only grown.

    Parameters
    ----------
    layers, parameters : sequences
        In the order of their axes.
    """

    def __init__(self, layers: Sequence[schema.Layer] = (), parameters: Sequence[schema.Parameter] = ()) -> None:
        self.layers, self.parameters = tuple(layers), tuple(parameters)

    def grown(self, layers: Sequence[schema.Layer] = (), parameters: Sequence[schema.Parameter] = ()) -> Axes:
        """The axes with layers, and their units, and parameters appended.

        Raises
        ------
        InvalidArgumentError
            If a name is already taken or a unit count negative.
        """
        if not layers and not parameters:
            return self
        for kind, new, known in (("layers", layers, self.layers), ("parameters", parameters, self.parameters)):
            _demand_new(kind, [one.name for one in new], {one.name for one in known})
        for layer in layers:
            if layer.unit_count < 0:
                raise InvalidArgumentError(
                    f"layer '{layer.name}': unit_count={layer.unit_count}: expected 0 (unknown) or more"
                )
        return Axes((*self.layers, *layers), (*self.parameters, *parameters))

    @cached_property
    def unit_ends(self) -> list[int]:
        """For every layer, the position behind its last unit."""
        return list(accumulate(layer.unit_count for layer in self.layers))

    @cached_property
    def lengths(self) -> dict[str, int]:
        """Present length of every axis that grows, ``step`` apart."""
        units = self.unit_ends[-1] if self.unit_ends else 0
        return {"layer": len(self.layers), "unit": units, "parameter": len(self.parameters)}

    def owner(self, dim: str, position: int) -> str:
        """Who stands at ``position`` on the axis ``dim``, in words for an error message."""
        if dim == "parameter":
            return f"parameter '{self.parameters[position].name}'"
        if dim == "layer":
            return f"layer '{self.layers[position].name}'"
        index = int(np.searchsorted(self.unit_ends, position, side="right"))
        start = self.unit_ends[index - 1] if index else 0
        return f"unit {position - start} of layer '{self.layers[index].name}'"

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
        described: Sequence[schema.Layer] | Sequence[schema.Parameter]
        described = self.layers if dim == "layer" else self.parameters
        return [one.name if name == dim else one.coordinate(name) for one in described]

    def _unit_values(self, name: str) -> NDArray[Any]:
        counts = [layer.unit_count for layer in self.layers]
        if name == "layer_index":
            return np.repeat(np.arange(len(counts)), counts)
        parts = [
            layer.linked_units() if name == "linked_unit" else np.arange(layer.unit_count) for layer in self.layers
        ]
        return np.concatenate([np.zeros(0, dtype=np.int64), *parts])


def _demand_new(kind: str, names: Sequence[str], taken: set[str]) -> None:
    seen = set(taken)
    for name in names:
        if name in seen:
            raise InvalidArgumentError(f"{kind}: '{name}' is declared twice: expected every name once per recording")
        seen.add(name)
