"""What goes into a recording: descriptions of layers and parameters, and rows of numbers on their way to the store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from covshift.schema.groups import Mode, Source

UNKNOWN_AXIS = -128

MODEL_INPUT = "(input)"
"""Name among the layers of what the model is given, ``"(input):path"`` of a part; modules so named are refused."""


def is_model_input(name: str) -> bool:
    """Whether a name on the ``layer`` axis is that of the model's input, which is no layer and counts as none.

    Examples
    --------
    >>> is_model_input("(input)"), is_model_input("(input):x.0"), is_model_input("conv0")
    (True, True, False)
    """
    return name.partition(":")[0] == MODEL_INPUT


@dataclass(frozen=True)
class Layer:
    """Static description of one observed layer; the fields are the coordinates on the ``layer`` axis."""

    name: str
    module_type: str
    depth: int
    unit_axis: int = UNKNOWN_AXIS
    example_axis: int = UNKNOWN_AXIS
    unit_count: int = 0
    dtype: str = ""
    memory_format: str = ""
    activation: str = ""
    linkage_members: int = 0
    preactivation_of: str = ""
    structural_measured: bool = False

    def coordinate(self, name: str) -> Any:
        """Value of the coordinate ``name`` for this layer."""
        return self.unit_count if name == "unit_count_of_layer" else getattr(self, name)

    def linked_units(self) -> NDArray[np.int32]:
        """Linkage every unit is a member of, shape ``(unit_count,)``; -1 where the layer is no linkage.

        Members are concatenated along the unit axis, so unit ``u`` belongs to linkage ``u mod (units / members)``.
        """
        units = np.arange(self.unit_count, dtype=np.int32)
        if self.linkage_members < 1 or self.unit_count % self.linkage_members:
            return np.full_like(units, -1)
        return units % max(self.unit_count // self.linkage_members, 1)


@dataclass(frozen=True)
class Parameter:
    """Static description of one parameter; the fields are the coordinates on the ``parameter`` axis."""

    name: str
    size: int
    ndim: int

    def coordinate(self, name: str) -> Any:
        """Value of the coordinate ``name`` for this parameter."""
        return {"parameter_size": self.size, "parameter_ndim": self.ndim}[name]


@dataclass(frozen=True)
class SparseCounts:
    """Non-zero cells of a count array: flat C-order ``index`` into ``shape``, and ``counts`` there."""

    shape: tuple[int, ...]
    index: NDArray[np.uint32]
    counts: NDArray[np.uint32]

    def dense(self) -> NDArray[np.uint32]:
        """The full array."""
        cells = np.zeros(int(np.prod(self.shape)), dtype=np.uint32)
        cells[self.index] = self.counts
        return cells.reshape(self.shape)


@dataclass(frozen=True)
class Row:
    """One step of one group on its way to the store.

    ``group`` is a path such as ``"layers"`` or ``"evaluation/units"``; ``variables`` hold arrays without the step
    axis, their layer, unit or parameter axis as long as what has been declared when the row is appended;
    ``source`` and ``mode`` become step coordinates.
    """

    group: str
    step: int
    variables: Mapping[str, NDArray[Any] | SparseCounts]
    source: Source = Source.TRAIN
    mode: Mode = Mode.TRAIN
