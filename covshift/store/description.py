"""What a recording holds, said without reading its data: for ``covshift info``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from covshift import schema
from covshift.store import layout, reader
from covshift.store.lock import holder, is_held
from covshift.store.opening import ASIDE, LOCK


@dataclass(frozen=True)
class Description:
    """One recording in words and numbers.

    Attributes
    ----------
    path : str
        Where it lies.
    name, created, covshift_version, torch_version : str
        As its attributes say; empty where they do not.
    schema_version : int
        Version of its schema.
    state : str
        "closed", "being written by ..." or "left open".
    records : dict of str to int
        Rows of every group, those in the journal included.
    in_journal : dict of str to int
        How many of them still lie in the journal.
    steps : tuple of int or None
        First and last training step recorded.
    layers, units, parameters : int
        Lengths of these axes.
    signals : list of str
        Signals of which anything was counted in the last record.
    scalars : list of str
        Names of logged values.
    resumes : list
        When and at which step the recording was resumed, and where the replaced rows went.
    bytes, files, dense_bytes : int
        Size on disk, number of files there, and size of the arrays in memory.
    warnings : list of str
        What is wrong with it.
    """

    path: str
    name: str
    created: str
    covshift_version: str
    torch_version: str
    schema_version: int
    state: str
    records: dict[str, int]
    in_journal: dict[str, int]
    steps: tuple[int, int] | None
    layers: int
    units: int
    parameters: int
    signals: list[str]
    scalars: list[str]
    resumes: list[Mapping[str, Any]]
    bytes: int
    files: int
    dense_bytes: int
    warnings: list[str]

    def to_dict(self) -> dict[str, Any]:
        """The description as plain JSON values."""
        return asdict(self)


def describe(target: str | os.PathLike[str]) -> Description:
    """Describe the recording at ``target``, a directory.

    Raises
    ------
    RecordingError, RecordingDamaged
        As :func:`covshift.store.open`.
    """
    path = reader.existing(Path(target))
    recording, warned = reader.opened_with_warnings(path)
    attrs = recording.attrs
    committed = attrs[layout.COMMIT_ATTRIBUTE]["records"]
    groups = [group for group in layout.PATHS if f"/{group}" in recording.groups]
    records = {group: recording[group].sizes["step"] for group in groups}
    waiting = {group: records[group] - committed.get(group, 0) for group in groups}
    sizes = [file.stat().st_size for file in path.rglob("*") if file.is_file()]
    steps = recording["layers"].indexes["step"]
    scalars = recording["scalars"].data_vars if "scalars" in recording.children else {}
    return Description(
        path=str(path),
        name=str(attrs.get("run_name", path.stem)),
        created=str(attrs.get("created", "")),
        covshift_version=str(attrs.get("covshift_version", "")),
        torch_version=str(attrs.get("torch_version", "")),
        schema_version=attrs[layout.VERSION_ATTRIBUTE],
        state=_state(path, attrs),
        records=records,
        in_journal={group: count for group, count in waiting.items() if count},
        steps=(int(steps[0]), int(steps[-1])) if len(steps) else None,
        layers=recording["layers"].sizes["layer"],
        units=recording["units"].sizes["unit"] if "units" in groups else 0,
        parameters=recording["parameters"].sizes["parameter"] if "parameters" in groups else 0,
        signals=_signals(recording),
        scalars=sorted(str(name) for name in scalars if name != "wall_time"),
        resumes=list(attrs.get(layout.RESUMES_ATTRIBUTE, [])),
        bytes=sum(sizes),
        files=len(sizes),
        dense_bytes=sum(node.to_dataset(inherit=False).nbytes for node in recording.subtree),
        warnings=[*attrs.get("warnings", []), *warned, *_left_behind(path)],
    )


def _state(path: Path, attrs: Mapping[Any, Any]) -> str:
    lock = path / layout.HIDDEN / LOCK
    if is_held(lock):
        return f"being written by {holder(lock)}"
    if attrs[layout.COMMIT_ATTRIBUTE]["closed"]:
        return "closed"
    return "left open: its writer ended without closing it; `covshift recover` folds its journal"


def _left_behind(path: Path) -> list[str]:
    aside = sorted(path.glob(f"{layout.HIDDEN}/{ASIDE}-*"))
    return [f"parts that were damaged are kept in '{place}'" for place in aside]


def _signals(recording: xr.DataTree) -> list[str]:
    counts = recording["layers/count"]
    if not counts.sizes["step"]:
        return []
    seen = np.asarray(counts.isel(step=-1)).sum(axis=0) > 0
    return [signal for signal, present in zip(schema.SIGNALS, seen, strict=True) if present]


def estimated_bytes(
    *, layers: int, units: int, parameters: int, records: int, histograms: int, unit_records: int
) -> int:
    """Size on disk, roughly, of a recording yet to be made.

    Raw bytes of the schema by the packing measured on workload W (``analyses/storage_cost.py``): 0.3 for rows of
    layers and parameters, 0.35 for units; a histogram of a layer takes about 1.5 kB.

    Parameters
    ----------
    layers, units, parameters : int
        Lengths of the axes.
    records, histograms, unit_records : int
        Rows of the groups ``layers`` and ``parameters``, of ``histograms``, and of ``units``.
    """
    lengths = {"layer": layers, "unit": units, "parameter": parameters}
    packed = {"layers": (records, 0.3), "parameters": (records, 0.3), "units": (unit_records, 0.35)}
    total = histograms * layers * 1500.0
    for name, (rows, share) in packed.items():
        sizes = lengths | layout.fixed_lengths(name)
        for variable in schema.GROUPS[name].variables:
            cells = np.prod([sizes[dim] for dim in variable.dims], dtype=float)
            total += rows * share * float(cells) * np.dtype(variable.dtype).itemsize
    return int(total)
