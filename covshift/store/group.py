"""One group of a recording on disk: creates its arrays, appends rows and labels to them, and knows their metadata.

Writes beyond the committed length only, so that whatever happens before the commit leaves readers what they had.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from covshift import schema
from covshift.exceptions import RecordingDamaged, RecordingError
from covshift.schema import Row, Variable
from covshift.store import documents, layout
from covshift.store.axes import Axes
from covshift.store.chunks import StoredArray
from covshift.store.medium import Medium


class StoredGroup:
    """The group at ``path``: created by its first :meth:`write`, grown by every further one.

    :meth:`write` may fail and be repeated; only :meth:`settle`, called after the commit, moves the committed length.
    """

    def __init__(self, medium: Medium, path: str) -> None:
        self.path = path
        self.committed = 0
        self._medium = medium
        self._schema = schema.group_of(path)
        self._labelled: Mapping[str, int] = dict.fromkeys(layout.GROWING, 0)
        self._arrays: dict[str, StoredArray] = {}
        self._documents: dict[str, dict[str, Any]] = {}
        self._pending = 0
        self._lengths: Mapping[str, int] = self._labelled

    @property
    def exists(self) -> bool:
        """Whether the arrays of the group have been created."""
        return self.path in self._documents

    @property
    def length(self) -> int:
        """Rows the group has once those written last are committed."""
        return self.committed + self._pending

    def is_behind(self, axes: Axes) -> bool:
        """Whether labels declared since wait to be written."""
        dims = [dim for dim in self._schema.dims if dim in layout.GROWING]
        return self.exists and any(self._labelled[dim] != axes.lengths[dim] for dim in dims)

    def load(self, nodes: Mapping[str, Any], committed: int) -> None:
        """Take up the arrays that a commit record lists.

        Raises
        ------
        RecordingDamaged
            If they have another number of rows than were committed.
        RecordingError
            If they are cut otherwise than this covshift would, or some it writes are not there.
        """
        self._documents = {self.path: nodes[self.path]}
        labelled = dict.fromkeys(layout.GROWING, 0)
        for variable in self._stored_variables(nodes):
            key = f"{self.path}/{variable.name}"
            if key not in nodes:
                raise RecordingError(
                    f"'{key}' is not in the recording, which another version of covshift has written: it cannot be "
                    "continued; record into another path"
                )
            document = nodes[key]
            array = StoredArray(self._medium, self.path, variable)
            if variable.dims[0] == "step" and document["shape"][0] != committed:
                raise RecordingDamaged(
                    f"'{key}' has {document['shape'][0]} rows, {committed} were committed: `covshift recover`, or "
                    "a copy, may restore it"
                )
            if documents.tiling_in(document) != (array.tiling.chunk, array.tiling.shard):
                raise RecordingError(
                    f"'{key}' is cut into chunks of another size than this covshift writes: the recording can be read, "
                    "but not continued; record into another path"
                )
            self._documents[key] = document
            self._arrays[variable.name] = array
            if not array.tiling.shard and variable.dims[0] in layout.GROWING:
                labelled[variable.dims[0]] = document["shape"][0]
        self._labelled = self._lengths = labelled
        self.committed = committed

    def _stored_variables(self, nodes: Mapping[str, Any]) -> list[Variable]:
        known = (
            *layout.step_variables(self.path),
            *layout.label_variables(self.path),
            *layout.data_variables(self.path),
        )
        found = {key.rpartition("/")[2] for key in nodes if key.rpartition("/")[0] == self.path}
        logged = sorted(found - {variable.name for variable in known}) if self.path == schema.SCALARS.name else []
        return [*known, *(layout.stepped(layout.logged_scalar(name)) for name in logged)]

    def write(self, rows: Sequence[Row], axes: Axes) -> None:
        """Write rows and labels to arrays of the length they will have, leaving committed cells alone."""
        if not self.exists:
            self.create()
        for name in dict.fromkeys(name for row in rows for name in row.variables):
            if name not in self._arrays:
                self._create_array(layout.stepped(layout.logged_scalar(name)))
                self._arrays[name].widen(self.committed, 0, 0)
        self._write_labels(axes)
        self._widen(axes)
        if rows:
            self._write_rows(rows, axes)
        self._pending, self._lengths = len(rows), axes.lengths
        self._grow()

    def settle(self) -> None:
        """Take what was written as committed."""
        self.committed, self._pending = self.length, 0
        self._labelled = self._lengths

    def abandon(self) -> None:
        """Forget what was written since the last commit; it is written again."""
        self._pending, self._lengths = 0, self._labelled
        if self.exists:
            self._grow()

    def _grow(self) -> None:
        lengths = {"step": self.length, **self._lengths, **layout.fixed_lengths(self.path)}
        for name, array in self._arrays.items():
            self._documents[f"{self.path}/{name}"]["shape"] = [lengths[dim] for dim in array.variable.dims]

    def documents(self) -> dict[str, Any]:
        """Zarr metadata of the group and its arrays, by path, with the shapes as last written."""
        return self._documents

    def create(self) -> None:
        """Create the empty group with all its arrays, in place of what an attempt that failed has left."""
        for parent in PurePosixPath(self.path).parents[:-1]:
            self._medium.put(f"{parent}/{layout.ROOT}", documents.as_json(documents.EMPTY_GROUP))
        document = documents.group_document(self.path)
        self._medium.put(f"{self.path}/{layout.ROOT}", documents.as_json(document))
        labels = layout.label_variables(self.path)
        for variable in (*layout.step_variables(self.path), *labels, *layout.data_variables(self.path)):
            self._create_array(variable)
        for variable in labels:
            if variable.dims[0] not in layout.GROWING:
                self._set_labels(variable, Axes())
        self._grow()
        self._documents[self.path] = document

    def _create_array(self, variable: Variable) -> None:
        key = f"{self.path}/{variable.name}"
        self._medium.delete(key)
        document = documents.array_document(self.path, variable)
        self._medium.put(f"{key}/{layout.ROOT}", documents.as_json(document))
        self._documents[key] = document
        self._arrays[variable.name] = StoredArray(self._medium, self.path, variable)

    def _set_labels(self, variable: Variable, axes: Axes) -> None:
        self._arrays[variable.name].write_line(0, axes.values(variable, self._schema))

    def _write_labels(self, axes: Axes) -> None:
        for variable in layout.label_variables(self.path):
            labelled = self._labelled.get(variable.dims[0])
            if labelled is not None and labelled < axes.lengths[variable.dims[0]]:
                self._set_labels(variable, axes)

    def _write_rows(self, rows: Sequence[Row], axes: Axes) -> None:
        for variable in layout.step_variables(self.path):
            values = np.asarray([getattr(row, variable.name) for row in rows], dtype=variable.dtype)
            self._arrays[variable.name].write_line(self.committed, values)
        for variable in self._stepped():
            width = axes.lengths[variable.dims[1]] if len(variable.dims) > 1 else 0
            self._arrays[variable.name].write(self.committed, rows, width)

    def _widen(self, axes: Axes) -> None:
        """Have files for committed rows of layers, units and parameters that are new, too."""
        for variable in self._stepped():
            if len(variable.dims) > 1:
                dim = variable.dims[1]
                self._arrays[variable.name].widen(self.committed, self._labelled[dim], axes.lengths[dim])

    def _stepped(self) -> list[Variable]:
        labels = {variable.name for variable in layout.step_variables(self.path)}
        arrays = [array.variable for name, array in self._arrays.items() if name not in labels]
        return [variable for variable in arrays if variable.dims[0] == "step"]

    def trim(self) -> None:
        """Remove what lies beyond the committed rows: of a writer that was killed, or superseded by a resume."""
        for array in self._arrays.values():
            if array.variable.dims[0] == "step":
                array.trim(self.committed)

    def cut(self, committed: int) -> None:
        """Have ``committed`` rows from the next commit on."""
        self.committed, self._pending = committed, 0
        self._grow()

    def publish_shapes(self) -> None:
        """Bring the arrays' own metadata up to date, for readers that know no consolidated metadata."""
        for key, document in self._documents.items():
            if key != self.path:
                self._medium.put(f"{key}/{layout.ROOT}", documents.as_json(document))
