"""Runs that differ by their seed alone, taken together: a mean and what it is worth.

The unit of replication is the run. Two seeds give an interval, though a wide one; one seed gives none.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from covshift.analysis import rows
from covshift.exceptions import InvalidArgumentError

Floats = NDArray[np.float64]

LOGARITHMIC = ("gradient_rms", "activation_sd", "w1")
"""Measures of :func:`covshift.analysis.comparison.paired_layers` that are sizes, averaged by their logarithms."""

_SEED = re.compile(r"[\s_-]*seed[\s_=-]*\d+$", flags=re.IGNORECASE)


def seed_groups(recordings: Mapping[str, xr.DataTree]) -> dict[str, str]:
    """Group of every run: its attribute ``variant``, else its name without a trailing ``seed <number>``.

    Runs of one variant that cannot differ by their seed alone, because a ``seed`` repeats or their ``parameter_count``
    differs, are told apart by their names without the seed; and those of one such name by the whole name.

    Parameters
    ----------
    recordings : mapping of str to DataTree
        Runs by name.

    Returns
    -------
    dict of str to str
        Run name to group name, in the order of the runs.
    """
    nameless = {name: _SEED.sub("", name) or name for name in recordings}
    groups = {name: str(run.attrs.get("variant", "")) or nameless[name] for name, run in recordings.items()}
    for finer in (nameless, {name: name for name in recordings}):
        mixed = {group for group in groups.values() if not _differ_by_seed(_runs_of(group, groups, recordings))}
        groups = {name: finer[name] if group in mixed else group for name, group in groups.items()}
    return groups


def _runs_of(group: str, groups: Mapping[str, str], recordings: Mapping[str, xr.DataTree]) -> list[xr.DataTree]:
    return [recordings[name] for name, one in groups.items() if one == group]


def _differ_by_seed(runs: Sequence[xr.DataTree]) -> bool:
    """Whether nothing that runs say of themselves speaks against their differing by the seed alone."""
    seeds = [run.attrs["seed"] for run in runs if "seed" in run.attrs]
    sizes = {run.attrs["parameter_count"] for run in runs if "parameter_count" in run.attrs}
    return len(seeds) == len(set(seeds)) and len(sizes) <= 1


def over_seeds(
    values: xr.Dataset,
    groups: Mapping[str, str],
    *,
    logarithmic: Collection[str] = LOGARITHMIC,
    level: float = 0.9,
) -> xr.Dataset:
    """Mean of every group of runs, with its interval over seeds.

    Parameters
    ----------
    values : Dataset
        Variables with the dim ``run``, such as those of :func:`covshift.analysis.comparison.paired_layers`.
    groups : mapping of str to str
        Group of every run.
    logarithmic : collection of str
        Variables averaged by their logarithms (geometric mean) where all values of a group are above 0.
    level : float, default 0.9
        Of the intervals, in (0, 1).

    Returns
    -------
    Dataset
        The same variables with the groups in place of the runs, and for each ``name`` also ``name_low`` and
        ``name_high``: Student's interval of the mean, NaN where fewer than two runs of the group have a number. The
        coordinate ``seeds`` (run) counts the runs of a group. Attributes are kept.

    Raises
    ------
    InvalidArgumentError
        If a run has no group, or ``level`` is out of range.
    """
    members = members_of(values, groups, level=level)
    names = list(members)
    data: dict[str, xr.DataArray] = {}
    for name, variable in values.data_vars.items():
        table = variable.transpose("run", ...)
        parts = [
            _interval(table.values[chosen].astype(np.float64), name in logarithmic, level)
            for chosen in members.values()
        ]
        for suffix, columns in zip(("", "_low", "_high"), zip(*parts, strict=True), strict=True):
            coords = {dim: table[dim].values for dim in table.dims[1:]} | {"run": names}
            data[f"{name}{suffix}"] = xr.DataArray(np.stack(columns), coords, table.dims, attrs=variable.attrs)
    return xr.Dataset(data, attrs=values.attrs).assign_coords(
        seeds=("run", [len(chosen) for chosen in members.values()])
    )


def members_of(values: xr.Dataset, groups: Mapping[str, str], *, level: float) -> dict[str, list[int]]:
    """Positions of the runs of every group, in the order in which groups first appear along the dim ``run``.

    Raises
    ------
    InvalidArgumentError
        If a run has no group, or ``level``, of the intervals wanted, is not in (0, 1).
    """
    runs = rows.names(values, "run").tolist()
    missing = [run for run in runs if run not in groups]
    if missing or not 0 < level < 1:
        raise InvalidArgumentError(
            f"groups lack {missing or 'no run'}, level={level}: expected all runs, 0 < level < 1"
        )
    members: dict[str, list[int]] = {}
    for position, run in enumerate(runs):
        members.setdefault(groups[run], []).append(position)
    return members


def _interval(values: Floats, logarithmic: bool, level: float) -> tuple[Floats, Floats, Floats]:
    """Mean over the first axis and its ends; NaN entries are left out."""
    from scipy.special import stdtrit

    known = np.isfinite(values)
    in_logs = logarithmic & np.all(~known | (values > 0), axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        taken = np.where(in_logs, np.log(values), values)
    n, mean = known.sum(axis=0), rows.mean_of_known(np.where(known, taken, np.nan))
    square = np.where(known, (taken - mean) ** 2, 0.0).sum(axis=0)
    error = np.sqrt(rows.ratio(square, (n - 1) * n))
    margin = stdtrit(np.maximum(n - 1, 1), (1 + level) / 2) * error
    low, middle, high = (np.where(in_logs, np.exp(end), end) for end in (mean - margin, mean, mean + margin))
    return middle, low, high
