"""Several recordings as one: ranks of one run merged, runs side by side.

Counts and sums of ranks are added and moments merged by their exact formulas; nothing is averaged. Runs are joined
along a new dimension ``run``, layers by name.
"""

from __future__ import annotations

import glob
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from covshift import schema
from covshift.exceptions import CovshiftWarning, InvalidArgumentError, RecordingError
from covshift.store import layout
from covshift.store.alignment import aligned
from covshift.store.merging import merged_group

MERGE_ATTRIBUTE = "covshift_merge"
RANKS_ATTRIBUTE = "run_ranks"
"""By run, the attributes that tell the scale of its gradients, where runs differ in them."""

_OF_RANKS = ("world_size", "loss_reduction", "ranks", layout.RESUMES_ATTRIBUTE)


def matching(pattern: str) -> list[Path]:
    """Paths of the recordings that ``pattern`` names, sorted.

    Raises
    ------
    RecordingError
        If there is none.
    """
    patterns = (pattern,) if pattern.endswith(layout.SUFFIX) else (pattern, pattern + layout.SUFFIX)
    found = sorted({path for one in patterns for path in glob.glob(one) if path.endswith(layout.SUFFIX)})
    if not found:
        raise RecordingError(f"no recording matches '{pattern}': check the pattern; recordings end in {layout.SUFFIX}")
    return [Path(path) for path in found]


def together(recordings: Mapping[str, xr.DataTree]) -> xr.DataTree:
    """Recordings by name as one: merged where they are ranks of one run, else joined along ``run``."""
    ranks = [recording.attrs.get("rank") for recording in recordings.values()]
    if len(recordings) > 1 and all(isinstance(rank, int) for rank in ranks) and len(set(ranks)) == len(ranks):
        return merge(list(recordings.values()))
    return side_by_side(recordings)


def merge(recordings: Sequence[xr.DataTree]) -> xr.DataTree:
    """One recording of what several ranks of one run recorded, each on its own share of every batch.

    Counts, sums and histograms are added, moments merged, extremes compared, layer by layer. Parameters and scalars,
    which every rank holds for itself, are those of the first recording given. Only steps that all ranks have are kept:
    a rank that was killed early is not mistaken for one that saw nothing.

    Parameters
    ----------
    recordings : sequence of DataTree
        One per rank, as :func:`covshift.open` gives them.

    Returns
    -------
    DataTree
        A recording with ``uint64`` counts and ``float64`` moments; its attribute ``covshift_merge`` says how many
        recordings were merged and how many records of each group were dropped.

    Raises
    ------
    InvalidArgumentError
        If there is no recording, or one is no DataTree.

    Warns
    -----
    CovshiftWarning
        If records were dropped because a rank lacks them, or the ranks hold different weights.

    References
    ----------
    Pebay, SAND2008-6212 (2008), equations 3.1, as in :mod:`covshift.summary`.
    """
    if not recordings or not all(isinstance(recording, xr.DataTree) for recording in recordings):
        raise InvalidArgumentError("recordings: expected at least one DataTree, as covshift.open gives it")
    groups, dropped = {}, {}
    for path in _common(recordings):
        datasets = [recording[path].to_dataset() for recording in recordings]
        indexes = [dataset.indexes["step"] for dataset in datasets]
        steps = sorted(set.intersection(*(set(index) for index in indexes)))
        lost = len(set.union(*(set(index) for index in indexes))) - len(steps)
        if lost:
            dropped[path] = lost
        groups[path] = merged_group(path, aligned(path, datasets, _layers(recordings), steps))
    for path in ("parameters", "scalars"):
        if f"/{path}" in recordings[0].groups:
            groups[path] = recordings[0][path].to_dataset()
    _warn(recordings, dropped)
    attrs = {**recordings[0].attrs, MERGE_ATTRIBUTE: {"recordings": len(recordings), "dropped": dropped}}
    return _tree(groups, attrs)


def _common(recordings: Sequence[xr.DataTree]) -> list[str]:
    summed = [path for path in layout.PATHS if schema.group_of(path).name in schema.EVALUATION_GROUPS]
    return [path for path in summed if all(f"/{path}" in recording.groups for recording in recordings)]


def _layers(recordings: Sequence[xr.DataTree]) -> list[list[str]]:
    return [recording["layers"].layer.values.tolist() for recording in recordings]


def _warn(recordings: Sequence[xr.DataTree], dropped: Mapping[str, int]) -> None:
    if dropped:
        listed = ", ".join(f"{count} of {path}" for path, count in dropped.items())
        warnings.warn(f"merge: records that not every rank holds are left out: {listed}", CovshiftWarning, stacklevel=3)
    # A recording that rank 0 has pooled already stands for all of them.
    own = [one.attrs for one in recordings if one.attrs.get("ranks") != "merge"]
    world = max((int(attrs.get("world_size", 1)) for attrs in own), default=1)
    if world > len(recordings):
        warnings.warn(f"merge: {len(recordings)} recordings of {world} ranks", CovshiftWarning, stacklevel=3)
    if not _hold_one_model(recordings):
        warnings.warn(
            "merge: the recordings hold different weights at the same steps, so they are no ranks of one run; runs are "
            "opened side by side",
            CovshiftWarning,
            stacklevel=3,
        )


def _hold_one_model(recordings: Sequence[xr.DataTree]) -> bool:
    """Whether weight norms agree to 0.1 % wherever two recordings have them."""
    groups = [one["parameters"].to_dataset() for one in recordings if "parameters" in one.children]
    for other in groups[1:]:
        ours, theirs = xr.align(groups[0]["weight_norm"], other["weight_norm"], join="inner")
        if bool((abs(ours - theirs) > 1e-3 * abs(ours)).any()):
            return False
    return True


def side_by_side(recordings: Mapping[str, xr.DataTree]) -> xr.DataTree:
    """Runs along a new dimension ``run``; in each, layers and steps of the others read as absent.

    Counts and status are 0 there and floats NaN, as in a recording that declared a layer late.
    """
    trees = list(recordings.values())
    groups: dict[str, Any] = {}
    for path in layout.PATHS:
        chosen = {name: tree for name, tree in recordings.items() if f"/{path}" in tree.groups}
        if not chosen:
            continue
        datasets = [tree[path].to_dataset() for tree in chosen.values()]
        steps = sorted({step for dataset in datasets for step in dataset.indexes["step"]})
        own = _with_all_variables(aligned(path, datasets, _layers(list(chosen.values())), steps))
        run = xr.Variable("run", list(chosen))
        groups[path] = xr.concat(
            own,
            dim=run,
            data_vars="all",
            coords="minimal",
            compat="override",
            join="override",
            combine_attrs="override",
        )
    return _tree(groups, {**trees[0].attrs, "runs": list(recordings), **_ranks(recordings)})


def _ranks(recordings: Mapping[str, xr.DataTree]) -> dict[str, Any]:
    told = {name: {key: tree.attrs[key] for key in _OF_RANKS if key in tree.attrs} for name, tree in recordings.items()}
    first = next(iter(told.values()))
    return {} if all(one == first for one in told.values()) else {RANKS_ATTRIBUTE: told}


def _with_all_variables(datasets: Sequence[xr.Dataset]) -> list[xr.Dataset]:
    """Datasets with the logged scalars of all, NaN where a run logged none of that name."""
    known = {name: one for dataset in datasets for name, one in dataset.data_vars.items()}
    return [
        dataset.assign({name: xr.full_like(one, np.nan) for name, one in known.items() if name not in dataset})
        for dataset in datasets
    ]


def _tree(groups: Mapping[str, xr.Dataset], attrs: Mapping[Any, Any]) -> xr.DataTree:
    tree = xr.DataTree.from_dict(dict(groups))
    tree.attrs = {name: value for name, value in attrs.items() if name != layout.COMMIT_ATTRIBUTE}
    return tree
