"""Whether a recording is one: its version is known, and its groups have their variables and dimensions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import xarray as xr

from covshift.exceptions import RecordingDamaged
from covshift.schema.groups import group_of, paths

VERSION = 1


def check(recording: xr.DataTree) -> None:
    """Demand that ``recording`` has this schema.

    Groups may be missing (nothing of that cadence was recorded), except ``layers``; a group that is there must have
    all its variables, but optional ones, with their dimensions.

    Raises
    ------
    RecordingDamaged
        Naming the first group, variable or dimension that is missing, or a schema version newer than this one.
    """
    check_version(recording.attrs)
    if "layers" not in recording.children:
        raise RecordingDamaged("recording: the group 'layers' is missing")
    for path in _known_groups(recording):
        _check_group(path, recording[path].to_dataset())


def check_version(attrs: Mapping[Any, Any]) -> None:
    """Demand that root attributes name a schema version this covshift knows.

    Raises
    ------
    RecordingDamaged
        If they name none, or a newer one.
    """
    version = attrs.get("covshift_schema_version")
    if not isinstance(version, int | np.integer):
        raise RecordingDamaged(
            f"recording: covshift_schema_version is {version!r}: expected a whole number; is this a covshift recording?"
        )
    if version > VERSION:
        raise RecordingDamaged(
            f"recording: schema version {version} is newer than {VERSION}, the newest this covshift knows; upgrade it"
        )


def _known_groups(recording: xr.DataTree) -> Iterable[str]:
    yield from (path for path in paths() if f"/{path}" in recording.groups)


def _check_group(path: str, dataset: xr.Dataset) -> None:
    for variable in group_of(path).variables:
        if variable.name not in dataset:
            if variable.is_optional:
                continue
            raise RecordingDamaged(f"recording: group '{path}' has no variable '{variable.name}'")
        expected = ("step", *variable.dims)
        if dataset[variable.name].dims != expected:
            found = dataset[variable.name].dims
            raise RecordingDamaged(f"recording: '{path}/{variable.name}' has dims {found}: expected {expected}")
