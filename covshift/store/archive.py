"""The arrays of a recording as a whole: folds rows into its groups and commits them in one stroke.

Chunk data go beyond the committed lengths first, the root ``zarr.json`` with the new shapes last: before that one
replacement readers see the old recording, after it the new. A copy of every root is kept in the hidden directory, so
that a root damaged later can be restored.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import zarr

from covshift import schema
from covshift.exceptions import RecordingDamaged
from covshift.schema import Row
from covshift.store import documents, layout
from covshift.store.axes import Axes
from covshift.store.group import StoredGroup
from covshift.store.medium import Medium

ROOT_COPY = f"{layout.HIDDEN}/root.json"


class Archive:
    """The groups of one recording and its commit record.

    Parameters
    ----------
    medium : Medium
        Where they lie.
    attrs : mapping
        Root attributes, without the commit record.

    Attributes
    ----------
    attempt : int
        Resumes that have replaced rows so far.
    changed_attrs : dict
        Root attributes of the process that resumes, where they differ; noted with the resume.
    """

    def __init__(self, medium: Medium, attrs: Mapping[str, Any]) -> None:
        self.attrs = dict(attrs)
        self.attempt = 0
        self.changed_attrs: dict[str, Any] = {}
        self._medium = medium
        self._groups = {path: StoredGroup(medium, path) for path in layout.PATHS}
        self._superseded: dict[str, Any] = {}
        self._sequence = 0

    @classmethod
    def loaded(cls, medium: Medium, root: Mapping[str, Any]) -> tuple[Archive, Axes]:
        """The archive that a commit record describes, and its axes.

        Raises
        ------
        RecordingError
            If it was written with other chunks.
        RecordingDamaged
            If the record lists no arrays.
        """
        nodes = documents.nodes_of(root)
        attributes = dict(root["attributes"])
        commit = attributes.pop(layout.COMMIT_ATTRIBUTE, None)
        if nodes is None or not documents.is_commit(commit):
            raise RecordingDamaged(f"the {layout.ROOT} holds no commit record; `covshift recover` restores it")
        archive = cls(medium, attributes)
        archive._sequence, archive.attempt = commit["seq"] + 1, commit.get("attempt", 0)
        axes = axes_in(medium)
        for path, committed in commit["records"].items():
            archive._groups[path].load(nodes, committed)
        archive._superseded = {key: node for key, node in nodes.items() if key.split("/")[0] == layout.SUPERSEDED}
        return archive, axes

    @property
    def life(self) -> str:
        """What segments of a journal belong to: this recording, between two resumes."""
        return f"{self.attrs.get('run_id', '')}-{self.attempt}"

    @property
    def committed(self) -> dict[str, int]:
        """Committed rows of every group."""
        return {path: group.committed for path, group in self._groups.items()}

    def last_steps(self) -> dict[str, int]:
        """Last committed step of every group; -1 where it has none."""
        last = dict.fromkeys(self._groups, -1)
        steps = {path: group.committed for path, group in self._groups.items() if group.committed}
        if steps:
            root = opened(self._medium)
            last |= {path: int(array_at(root, f"{path}/step")[count - 1]) for path, count in steps.items()}
        return last

    def create(self) -> None:
        """Create the group every recording has, and commit it empty."""
        self._groups[schema.LAYERS.name].create()
        self.commit(closed=False)

    def is_behind(self, axes: Axes) -> bool:
        """Whether labels declared since the last commit wait to be written."""
        return any(group.is_behind(axes) for group in self._groups.values())

    def fold(self, rows: Mapping[str, Sequence[Row]], axes: Axes, *, closed: bool = False) -> None:
        """Write rows behind the committed ones of their groups, and labels, and commit them together.

        Raises
        ------
        OSError
            If the disk refuses. Nothing is committed then, and the same fold can be repeated.
        """
        behind = [group for path, group in self._groups.items() if rows.get(path) or group.is_behind(axes)]
        try:
            for group in behind:
                group.write(rows.get(group.path, ()), axes)
            if closed:
                for group in self._groups.values():
                    group.publish_shapes()
            self.commit(closed=closed)
        except BaseException:
            # A later fold may take other groups, and must not publish what this one wrote in part.
            for group in behind:
                group.abandon()
            raise
        for group in behind:
            group.settle()

    def warn(self, messages: Sequence[str]) -> None:
        """Add messages to the root attribute ``warnings``, each once; published by the next commit."""
        if messages:
            self.attrs["warnings"] = list(dict.fromkeys([*self.attrs.get("warnings", []), *messages]))

    def commit(self, *, closed: bool) -> None:
        """Publish the groups with the lengths they have by now."""
        stored = [group for group in self._groups.values() if group.exists]
        commit = {
            "seq": self._sequence,
            "time_utc": now(),
            "records": {group.path: group.length for group in stored},
            "attempt": self.attempt,
            "closed": closed,
        }
        document = documents.root_document({**self.attrs, layout.COMMIT_ATTRIBUTE: commit}, self.documents())
        # The copy first: a commit that took effect has not failed. What the copy may be ahead by is written already.
        self._medium.put(ROOT_COPY, document)
        self._medium.put(layout.ROOT, document)
        self._sequence += 1

    def documents(self) -> dict[str, Any]:
        """Zarr metadata of every group and array, superseded ones included, with the shapes as last written."""
        stored = [group for group in self._groups.values() if group.exists]
        return {path: node for group in stored for path, node in group.documents().items()} | self._superseded

    def trim(self) -> None:
        """Remove what lies beyond the committed rows."""
        for group in self._groups.values():
            if group.exists:
                group.trim()

    def supersede(self, step: int, axes: Axes) -> dict[str, int]:
        """Move rows at ``step`` and later to ``superseded/attempt_<k>`` and begin the next attempt, in one commit.

        Rows of evaluations and probes at ``step`` itself stay: they tell of the model after as many steps, none of
        which is made again. :meth:`supersede_again` moves them where they are made again themselves.

        Returns
        -------
        dict of str to int
            Rows moved, by group; empty where there were none, and no attempt is begun.
        """
        kept = self._rows_before({path: step + bool(layout.stream_of(path)) for path in self._groups})
        moved, last = self._beyond(kept), self.last_steps()[schema.LAYERS.name]
        note = {
            "time_utc": now(),
            "step": step,
            "last_step": last if last >= 0 else None,
            "superseded": self._aside if moved else None,
            "attrs": self.changed_attrs,
        }
        self._set_aside(kept, axes, resumes=[*self._resumes, note])
        return moved

    def supersede_again(self, streams: Collection[str], step: int, axes: Axes) -> None:
        """Move the rows that ``streams`` have at the ``step`` of the last resume, as :meth:`supersede` moves others."""
        kept = self._rows_before({path: step for path in self._groups if layout.stream_of(path) in streams})
        *before, last = self._resumes
        note = {**last, "superseded_again": [*last.get("superseded_again", []), self._aside]}
        self._set_aside(kept, axes, resumes=[*before, note])

    @property
    def _resumes(self) -> list[dict[str, Any]]:
        return list(self.attrs.get(layout.RESUMES_ATTRIBUTE, []))

    @property
    def _aside(self) -> str:
        return f"{layout.SUPERSEDED}/attempt_{self.attempt}"

    def _beyond(self, kept: Mapping[str, int]) -> dict[str, int]:
        beyond = {path: self._groups[path].committed - count for path, count in kept.items()}
        return {path: count for path, count in beyond.items() if count}

    def _set_aside(self, kept: Mapping[str, int], axes: Axes, *, resumes: Sequence[Mapping[str, Any]]) -> None:
        """Move rows beyond the ``kept`` ones of their groups, and note it in ``resumes``."""
        moved, folder = self._beyond(kept), self._aside
        self._medium.delete(folder)
        copies: dict[str, Any] = {}
        for path in moved:
            copies |= self._copied(path, kept[path], f"{folder}/{path}", axes)
        before = self.committed, self.attempt, self._superseded, dict(self.attrs)
        try:
            for path in moved:
                self._groups[path].cut(kept[path])
            self.attrs[layout.RESUMES_ATTRIBUTE] = list(resumes)
            self._superseded, self.attempt = self._superseded | copies, self.attempt + bool(moved)
            self.commit(closed=False)
        except OSError:
            lengths, self.attempt, self._superseded, self.attrs = before
            for path in moved:
                self._groups[path].cut(lengths[path])
            raise
        self.trim()

    def _rows_before(self, steps: Mapping[str, int]) -> dict[str, int]:
        """Committed rows before a step of each group in ``steps`` that has any."""
        root = opened(self._medium)
        stored = {path: self._groups[path].committed for path in steps if self._groups[path].committed}
        return {
            path: int(np.searchsorted(array_at(root, f"{path}/step")[:count], steps[path]))
            for path, count in stored.items()
        }

    def _copied(self, path: str, start: int, target: str, axes: Axes) -> dict[str, Any]:
        group = StoredGroup(self._medium, target)
        block = layout.CHUNKS.get(schema.group_of(path).name, {}).get("step", layout.LINE_PER_CHUNK)
        stop = self._groups[path].committed
        for first in range(start, stop, block):
            group.write(self._read(path, first, min(first + block, stop)), axes)
            group.settle()
        group.publish_shapes()
        return group.documents()

    def _read(self, path: str, first: int, last: int) -> list[Row]:
        """Committed rows as they were appended, their arrays dense."""
        root = opened(self._medium)
        keys = [key for key in self._groups[path].documents() if key != path]
        arrays = {key.rpartition("/")[2]: array_at(root, key) for key in keys}
        stepped = {name: array[first:last] for name, array in arrays.items() if _is_stepped(array)}
        # In other groups, source and mode are what a user has logged under these names.
        flags = {variable.name: stepped.pop(variable.name) for variable in layout.step_variables(path)}
        sources = [schema.Source(flag) for flag in flags.get("source", [schema.Source.TRAIN] * (last - first))]
        modes = [schema.Mode(flag) for flag in flags.get("mode", [schema.Mode.TRAIN] * (last - first))]
        return [
            Row(
                path, int(step), {name: np.asarray(values[k]) for name, values in stepped.items()}, sources[k], modes[k]
            )
            for k, step in enumerate(flags["step"])
        ]


def _is_stepped(array: zarr.Array[Any]) -> bool:
    names = getattr(array.metadata, "dimension_names", None)
    return bool(names and names[0] == "step")


def opened(medium: Medium) -> zarr.Group:
    """The committed state, for reading."""
    return zarr.open_group(medium.store, mode="r", use_consolidated=True)


def array_at(root: zarr.Group, key: str) -> Any:
    """An array of the committed state."""
    return root[key]


def axes_in(medium: Medium) -> Axes:
    """Axes of the committed state, from its labels."""
    root = opened(medium)
    layers = _described(root, schema.LAYERS, "layer", schema.Layer)
    present = schema.PARAMETERS.name in root
    return Axes(layers, _described(root, schema.PARAMETERS, "parameter", schema.Parameter) if present else ())


def _described(root: zarr.Group, group: schema.Group, dim: str, kind: type[Any]) -> list[Any]:
    names = {variable.name: variable for variable in group.coordinates}
    columns = {_FIELDS.get(name, name): array_at(root, f"{group.name}/{name}")[:] for name in names}
    labels = array_at(root, f"{group.name}/{dim}")[:]
    return [
        kind(str(label), **{name: _plain(column[k]) for name, column in columns.items()})
        for k, label in enumerate(labels)
    ]


_FIELDS = {
    "unit_count_of_layer": "unit_count",
    "parameter_size": "size",
    "parameter_ndim": "ndim",
}
"""Field of a description that a coordinate holds, where the two have different names."""


def _plain(value: Any) -> Any:
    return value if isinstance(value, str) else value.item()


def now() -> str:
    """The present moment, as attributes hold it."""
    return datetime.now(UTC).isoformat(timespec="seconds")
