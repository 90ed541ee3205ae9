"""The reader of a recording: a lazy xarray tree, or an error that says what is wrong with the path or the recording.

Opening reads the committed root and the labels; no row of data is touched before somebody asks for it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import xarray as xr
from zarr.storage import MemoryStore

from covshift import schema
from covshift.exceptions import RecordingDamaged, RecordingError
from covshift.store import layout


def open(  # noqa: A001 - the public name is covshift.open
    target: str | os.PathLike[str] | MemoryStore, *, chunks: Mapping[str, int] | Literal["auto"] | None = None
) -> xr.DataTree:
    """A recording as a lazy ``xarray.DataTree``; works while it is still being written.

    What a writer has committed by now is what the tree holds; open again to see later rows.

    Parameters
    ----------
    target : path-like or MemoryStore
        Directory of the recording (``.zarr`` may be left out), or the ``target`` of a writer that keeps it in memory.
    chunks : mapping, "auto" or None, default None
        None reads a variable when it is used; ``{}`` or ``"auto"`` gives dask arrays, for what exceeds memory.

    Returns
    -------
    DataTree
        The groups of :mod:`covshift.schema`. Absent cells read 0 in counts and NaN in floating-point variables.

    Raises
    ------
    RecordingError
        If nothing, or something else than a recording, stands at the path.
    RecordingDamaged
        If the recording cannot be read in full, or has a schema newer than this covshift knows.
    """
    if isinstance(target, MemoryStore):
        return _opened(target, chunks)
    path = _existing(Path(target))
    _demand_whole(path)
    return _opened(path, chunks)


def _existing(path: Path) -> Path:
    if not path.exists():
        path = layout.recording_path(path)
    if not path.exists():
        raise RecordingError(f"no recording at '{path}': check the path, or record one with covshift.record")
    if not path.is_dir():
        raise RecordingError(f"'{path}' is a file: expected the directory of a recording, its name ending in .zarr")
    if not (path / layout.ROOT).is_file():
        raise RecordingError(f"'{path}' is no recording: it holds no {layout.ROOT}")
    return path


def _demand_whole(path: Path) -> None:
    """Demand a committed root of a known version and every array it lists."""
    try:
        root = layout.read_root(path)
    except (OSError, ValueError) as error:
        raise _damaged(path, f"its {layout.ROOT} cannot be read ({error})") from error
    attributes = root.get("attributes", {})
    if layout.VERSION_ATTRIBUTE not in attributes:
        raise RecordingError(f"'{path}' is no covshift recording: it has no attribute {layout.VERSION_ATTRIBUTE}")
    schema.check_version(attributes)
    nodes = (root.get("consolidated_metadata") or {}).get("metadata")
    if nodes is None:
        raise _damaged(path, f"its {layout.ROOT} holds no consolidated metadata, which are the commit record")
    for node in nodes:
        if not (path / node / layout.ROOT).is_file():
            raise _damaged(path, f"'{node}' is missing")


def _damaged(path: Path | MemoryStore, problem: str) -> RecordingDamaged:
    return RecordingDamaged(f"recording '{path}' is damaged: {problem}; restore it from a copy")


def _opened(target: Any, chunks: Any) -> xr.DataTree:
    try:
        recording = xr.open_datatree(target, engine="zarr", consolidated=True, chunks=chunks)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise _damaged(target, f"xarray cannot open it ({error})") from error
    schema.check(recording)
    _demand_steps(recording, target)
    return recording.map_over_datasets(_with_text_as_objects)


def _with_text_as_objects(dataset: xr.Dataset) -> xr.Dataset:
    """Text labels as Python strings: xarray cannot join recordings along labels of numpy's StringDType."""
    text = {name: dataset[name].astype(object) for name in dataset.coords if dataset[name].dtype.kind == "T"}
    return dataset.assign_coords(text)


def _demand_steps(recording: xr.DataTree, target: Path | MemoryStore) -> None:
    """Demand as many steps as were committed, strictly increasing: a lost chunk of steps would read -1."""
    for path, committed in recording.attrs.get(layout.COMMIT_ATTRIBUTE, {}).get("records", {}).items():
        if f"/{path}" not in recording.groups:
            raise _damaged(target, f"group '{path}' is missing")
        steps = recording[path].indexes["step"]
        if len(steps) != committed:
            raise _damaged(target, f"group '{path}' has {len(steps)} rows, {committed} were committed")
        if not (steps.is_monotonic_increasing and steps.is_unique and (steps >= 0).all()):
            raise _damaged(target, f"the steps of group '{path}' are not strictly increasing from 0")
