"""The reader of a recording: a lazy xarray tree, or an error that says what is wrong with the path or the recording.

Opening reads the committed root, the labels and the journal; no row of data is touched before somebody asks for it.
"""

from __future__ import annotations

import os
import time
import uuid
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import xarray as xr
from zarr.storage import FsspecStore, LocalStore, MemoryStore

from covshift import schema
from covshift.exceptions import CovshiftWarning, InvalidArgumentError, RecordingDamaged, RecordingError
from covshift.store import documents, journal, layout
from covshift.store.axes import Axes
from covshift.store.committed import CommittedStore
from covshift.store.completeness import REMEDY, in_words, labels_of, lost_files
from covshift.store.joining import dask_chunks, joined
from covshift.store.opening import is_url
from covshift.store.runs import matching, together

Chunks = Mapping[str, int] | Literal["auto"] | None

EAGER_BYTES = 2**30
"""Recordings with more bytes than this, dense, are opened as dask arrays."""

_TRIES = 100


def open(  # noqa: A001 - the public name is covshift.open
    target: str | os.PathLike[str] | MemoryStore, *, chunks: Chunks = None
) -> xr.DataTree:
    """A recording as a lazy ``xarray.DataTree``; works while it is still being written.

    Every record acknowledged by now is in the tree: the committed ones, and those that still lie in the writer's
    journal. Open again to see later ones.

    Parameters
    ----------
    target : path-like, str or MemoryStore
        Directory of the recording (``.zarr`` may be left out); an fsspec URL; the ``target`` of a writer that keeps it
        in memory; or a pattern such as ``"run.*.zarr"``, whose recordings are joined along ``run``, or merged where
        they are ranks of one run (:func:`covshift.merge`).
    chunks : mapping, "auto" or None, default None
        None reads a variable when it is used, and gives dask arrays above :data:`EAGER_BYTES`; ``{}`` or ``"auto"``
        gives dask arrays of whole shards; a mapping gives dask arrays of its lengths.

    Returns
    -------
    DataTree
        The groups of :mod:`covshift.schema`. Absent cells read 0 in counts and NaN in floating-point variables.

    Raises
    ------
    InvalidArgumentError
        If ``target`` is none of these.
    RecordingError
        If nothing, or something else than a recording, stands at the path.
    RecordingDamaged
        If the recording cannot be read in full, or has a schema newer than this covshift knows.

    Warns
    -----
    CovshiftWarning
        If part of the journal is damaged; what is whole is in the tree.
    """
    if isinstance(target, MemoryStore):
        return _chunked(_opened(target, target), chunks)
    if not isinstance(target, str | os.PathLike):
        raise InvalidArgumentError(
            f"target: expected the path of a recording, or a pattern such as 'run-*.zarr' for several, got "
            f"{type(target).__name__}"
        )
    if is_url(target):
        return _chunked(_opened_at_url(os.fspath(target)), chunks)
    # From the root: what is read later must not depend on where the process stands by then.
    pattern = os.path.abspath(os.fspath(target))
    if any(sign in pattern for sign in "*?[") and not Path(pattern).exists():
        return together({path.stem: open(path, chunks=chunks) for path in matching(pattern)})
    recording, problems = opened_with_warnings(existing(Path(pattern)))
    for problem in problems:
        warnings.warn(problem, CovshiftWarning, stacklevel=2)
    return _chunked(recording, chunks)


def existing(path: Path) -> Path:
    """The directory of a recording at ``path``, or an error that says what stands there."""
    if not path.exists():
        path = layout.recording_path(path)
    if not path.exists():
        raise RecordingError(f"no recording at '{path}': check the path, or record one with covshift.record")
    if not path.is_dir():
        raise RecordingError(f"'{path}' is a file: expected the directory of a recording, its name ending in .zarr")
    if not (path / layout.ROOT).is_file():
        inside = sorted(one.name for one in path.glob(f"*{layout.SUFFIX}"))[:3]
        way_out = f"; open one of the recordings in it, such as {', '.join(inside)}" if inside else ""
        raise RecordingError(f"'{path}' is no recording: it holds no {layout.ROOT}{way_out}")
    return path


def opened_with_warnings(path: Path) -> tuple[xr.DataTree, list[str]]:
    """The recording in the directory ``path``, and what is wrong with its journal.

    Commit and journal must belong together: a fold in between makes the two disagree, so both are read again. The
    arrays are then opened as this commit describes them, whatever is committed meanwhile: its rows never change.
    """
    for _ in range(_TRIES):
        document, attributes, nodes = _whole_root(path)
        try:
            tail = read_tail(path, attributes)
        except FileNotFoundError:
            continue
        lost = lost_files(path, nodes)
        if (path / layout.ROOT).read_bytes() == document:
            break
        time.sleep(0.01)
    else:
        raise RecordingError(f"'{path}' was committed to {_TRIES} times while it was opened; open it again")
    labels = [one for one in lost if len(one.place) == 1]
    if labels:
        raise RecordingDamaged(f"recording '{path}' is damaged: {in_words(labels, None)}; {REMEDY}")
    store = CommittedStore(LocalStore(path, read_only=True), path, document)
    recording = _opened(store, path)
    store.labels = labels_of(recording)
    if lost:
        raise RecordingDamaged(f"recording '{path}' is damaged: {in_words(lost, store.labels)}; {REMEDY}")
    problems = [
        f"recording '{path}': {problem}; records behind are missing here: `covshift recover` keeps what is whole"
        for problem in (*tail.damaged, *tail.gaps)
    ]
    if any(tail.rows.values()):
        recording = joined(recording, tail.rows, tail.axes or Axes()).map_over_datasets(_with_text_as_objects)
    return recording, problems


def read_tail(path: Path, attributes: Mapping[str, Any]) -> journal.Tail:
    """What the journal holds beyond the commit that the root ``attributes`` describe."""
    commit = attributes.get(layout.COMMIT_ATTRIBUTE, {})
    return journal.tail(path / layout.HIDDEN, commit.get("records", {}), life=documents.life_of(attributes))


def _whole_root(path: Path) -> tuple[bytes, dict[str, Any], dict[str, Any]]:
    """A committed root of a known version, with every array it lists in its place, its attributes and its nodes."""
    try:
        document = (path / layout.ROOT).read_bytes()
        root = documents.root_of(document)
    except (OSError, ValueError) as error:
        raise _damaged(path, f"its {layout.ROOT} cannot be read ({error})") from None
    attributes: dict[str, Any] = root.get("attributes", {})
    if layout.VERSION_ATTRIBUTE not in attributes:
        raise RecordingError(f"'{path}' is no covshift recording: it has no attribute {layout.VERSION_ATTRIBUTE}")
    schema.check_version(attributes)
    nodes = documents.nodes_of(root)
    if nodes is None or not documents.is_commit(attributes.get(layout.COMMIT_ATTRIBUTE)):
        raise _damaged(path, f"its {layout.ROOT} holds no consolidated metadata, which are the commit record")
    for node in nodes:
        if not (path / node / layout.ROOT).is_file():
            raise _damaged(path, f"'{node}' is missing")
    return document, attributes, nodes


def _damaged(place: object, problem: str) -> RecordingDamaged:
    return RecordingDamaged(
        f"recording '{place}' is damaged: {problem}; try `covshift recover`, or restore it from a copy"
    )


def _opened_at_url(url: str) -> xr.DataTree:
    try:
        store = CommittedStore(FsspecStore.from_url(url, read_only=True), url)
    except (ImportError, ValueError) as error:
        raise RecordingError(f"'{url}': fsspec cannot reach it ({error})") from error
    recording = _opened(store, url)
    store.labels = labels_of(recording)
    return recording


def _opened(target: Any, place: object) -> xr.DataTree:
    try:
        recording = xr.open_datatree(target, engine="zarr", consolidated=True, chunks=None)
        schema.check(recording)
        _demand_steps(recording, place)
        return recording.map_over_datasets(_with_text_as_objects)
    except RecordingError:
        raise
    except Exception as error:  # noqa: BLE001 - damaged metadata fail in any library's words, and are owed one line
        raise _damaged(place, f"xarray cannot open it ({error})") from None


def _with_text_as_objects(dataset: xr.Dataset) -> xr.Dataset:
    """Text labels as Python strings: xarray cannot join recordings along labels of numpy's StringDType."""
    coordinates = dataset.coords.variables  # a DataArray of each would carry all the others, and cost as much again
    text = {
        name: (variable.dims, variable.values.astype(object), variable.attrs)
        for name, variable in coordinates.items()
        if variable.dtype.kind == "T"
    }
    return dataset.assign_coords(text)


def _demand_steps(recording: xr.DataTree, place: object) -> None:
    """Demand as many steps as were committed, strictly increasing: a lost chunk of steps would read -1."""
    for path, committed in recording.attrs.get(layout.COMMIT_ATTRIBUTE, {}).get("records", {}).items():
        if f"/{path}" not in recording.groups:
            raise _damaged(place, f"group '{path}' is missing")
        steps = recording[path].indexes["step"]
        if len(steps) != committed:
            raise _damaged(place, f"group '{path}' has {len(steps)} rows, {committed} were committed")
        if not (steps.is_monotonic_increasing and steps.is_unique and (steps >= 0).all()):
            raise _damaged(place, f"the steps of group '{path}' are not strictly increasing from 0")


def _chunked(recording: xr.DataTree, chunks: Chunks) -> xr.DataTree:
    if chunks is None:
        if sum(node.to_dataset(inherit=False).nbytes for node in recording.subtree) <= EAGER_BYTES:
            return recording
        chunks = {}
    wanted = {} if chunks == "auto" else dict(chunks)
    # The token only has to be unique: deriving it from the data would read them.
    token = uuid.uuid4().hex

    def cut(path: str, dataset: xr.Dataset) -> xr.Dataset:
        lazy = {
            str(name): variable.chunk(
                {**dask_chunks(path, dataset, str(name)), **_of(wanted, variable)}, token=f"{token}/{path}/{name}"
            )
            for name, variable in dataset.data_vars.items()
        }
        return dataset.assign(lazy)

    datasets = {path: node.to_dataset(inherit=False) for path, node in recording.subtree_with_keys}
    return xr.DataTree.from_dict(
        {"/" if path == "." else path: cut(path, one) if one.data_vars else one for path, one in datasets.items()}
    )


def _of(chunks: Mapping[str, int], variable: xr.DataArray) -> dict[str, int]:
    return {dim: length for dim, length in chunks.items() if dim in variable.dims}
