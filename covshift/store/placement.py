"""Where a resumed writer's layers and parameters stand on the axes of the recording it continues.

A new process may meet layers in another order than the one before it, or not all of them; rows come in its own order
and are moved to the places that their names have had from the start.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from covshift import schema
from covshift.exceptions import ResumeMismatch
from covshift.store.axes import Axes
from covshift.store.frames import Numbered
from covshift.store.rows import placed


class Placement:
    """Axes as this process declares them, ``declared``, and as the recording stores them, ``stored``."""

    def __init__(self, stored: Axes) -> None:
        self.stored, self.declared = stored, Axes()
        self.positions: dict[str, NDArray[np.int64]] | None = None

    def declare(self, layers: Sequence[schema.Layer] = (), parameters: Sequence[schema.Parameter] = ()) -> None:
        """Append to the declared axes, and to the stored ones what they do not know yet.

        Raises
        ------
        InvalidArgumentError
            If a name is declared twice by this process.
        ResumeMismatch
            If a known layer has another number of units, a known parameter another size, than it was recorded with.
        """
        if not layers and not parameters:
            return
        declared = self.declared.grown(layers, parameters)
        known_layers = {layer.name: layer for layer in self.stored.layers}
        known_parameters = {parameter.name: parameter for parameter in self.stored.parameters}
        for layer in layers:
            _demand_equal("layer", layer.name, "unit_count", layer, known_layers.get(layer.name))
        for parameter in parameters:
            _demand_equal("parameter", parameter.name, "size", parameter, known_parameters.get(parameter.name))
        self.stored = self.stored.grown(
            [layer for layer in layers if layer.name not in known_layers],
            [parameter for parameter in parameters if parameter.name not in known_parameters],
        )
        self.declared = declared
        self.positions = self._positions()

    def placed(self, numbered: Numbered) -> Numbered:
        """A row of the declared axes, on the stored ones."""
        if self.positions is None:
            return numbered
        return Numbered(numbered.number, placed(numbered.row, self.positions, self.stored.lengths))

    def _positions(self) -> dict[str, NDArray[np.int64]] | None:
        """Stored position of every declared one, by axis; None where both axes begin alike and nothing has to move."""
        layers = _places([layer.name for layer in self.declared.layers], [layer.name for layer in self.stored.layers])
        parameters = _places(
            [one.name for one in self.declared.parameters], [one.name for one in self.stored.parameters]
        )
        if all((places == np.arange(len(places))).all() for places in (layers, parameters)):
            return None
        starts = np.array([0, *self.stored.unit_ends])
        units = [starts[place] + np.arange(self.stored.layers[place].unit_count) for place in layers]
        return {"layer": layers, "unit": np.concatenate([np.zeros(0, np.int64), *units]), "parameter": parameters}


def _places(names: Sequence[str], among: Sequence[str]) -> NDArray[np.int64]:
    place = {name: position for position, name in enumerate(among)}
    return np.array([place[name] for name in names], dtype=np.int64)


def _demand_equal(
    kind: str,
    name: str,
    field: str,
    new: schema.Layer | schema.Parameter,
    known: schema.Layer | schema.Parameter | None,
) -> None:
    if known is not None and getattr(known, field) != getattr(new, field):
        raise ResumeMismatch(
            f"{kind} '{name}': {field}={getattr(new, field)}, but it was recorded with {getattr(known, field)}: a "
            "recording is resumed with the model it was begun with; record the new one into another path"
        )
