"""What sets groups of runs apart, layer by layer and step by step: the mean over one group's seeds minus another's.

The unit of replication is the run, and seeds of two groups are not paired: the interval is Welch's, a cell at a time.
With one seed in either group there is none, and a difference is an illustration. Of many cells without any true
difference, some have a 90 % interval that leaves 0 out: with normal numbers 6 to 10 % of them at 2 to 5 seeds a side,
14 % where 2 seeds that vary much stand against 5 that vary little.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from covshift.analysis import linkage, rows
from covshift.analysis.matching import Matching, matched_layers
from covshift.analysis.seeds import seed_groups
from covshift.exceptions import InvalidArgumentError, SignalNotRecorded

Floats = NDArray[np.float64]
_Series = Callable[[xr.DataTree, str], xr.DataArray]

_MEASURES: Mapping[str, tuple[_Series, str]] = {
    "structural_rate": (lambda run, stream: linkage.violation_rate(run, stream=stream)["structural_rate"], "1"),
    "gradient_rms": (lambda run, stream: rows.moments(run, signal="activation_grad", stream=stream)["rms"], "decades"),
    "activation_sd": (lambda run, stream: rows.moments(run, stream=stream)["sd"], "decades"),
}


def group_differences(
    recordings: Mapping[str, xr.DataTree],
    *,
    groups: Mapping[str, str] | None = None,
    stream: str = "train",
    level: float = 0.9,
) -> xr.Dataset:
    """Mean of every other group of runs minus that of the first, for each step and layer.

    Parameters
    ----------
    recordings : mapping of str to DataTree
        Runs by name. Layers are matched by :func:`covshift.analysis.matching.matched_layers`.
    groups : mapping of str to str, optional
        Group of every run; :func:`covshift.analysis.seeds.seed_groups` by default. The first run's is the reference.
    stream : {"train", "evaluation", "probe"}
        Which rows.
    level : float, default 0.9
        Of the intervals, in (0, 1).

    Returns
    -------
    Dataset
        Dims ``(group, step, layer)``: the groups but the first, steps of the first run, layers of the first group that
        another has, too. For each ``name`` also ``name_low`` and ``name_high``, the ends of Welch's interval, NaN where
        either side has fewer than two numbers. NaN where nothing was recorded.

        ``structural_rate``
            Share of z without a derivative: difference of shares, in [-1, 1]; NaN but for nonlinearities.
        ``gradient_rms``, ``activation_sd``
            Root mean square of dL/d(output), standard deviation of the output: differences of ``log10``, in decades.
            A group in which some run is exactly zero has the mean of minus infinity: the difference is infinite where
            that holds for one side alone, NaN where it holds for both, and has no interval. The attribute
            ``exact_zeros`` counts such numbers.

        Coordinates ``seeds`` (group) count the runs, ``steps_left_out`` (group) steps of the first run at which some
        run of either group has no record. Attributes: ``reference`` and ``reference_seeds``; ``layers_left_out``, how
        many layers have no counterpart; ``matching``, how they were paired; and ``level``.

    Raises
    ------
    InvalidArgumentError
        If there are not two groups, a run has none, or ``level`` is out of range.

    Notes
    -----
    A step of the first run stands beside the nearest record of every other run that lies within half the distance to
    the first run's own neighbouring step; with a single step only the same one does.

    References
    ----------
    B. L. Welch, The generalization of "Student's" problem when several different population variances are involved
    (1947), with the degrees of freedom of F. E. Satterthwaite (1946).
    """
    groups = seed_groups(recordings) if groups is None else groups
    members = _members(recordings, groups, level)
    matched = matched_layers(recordings)
    reference, *others = members
    layers, left_out = _paired_layers(matched, members)
    records = _records(recordings, stream)
    grid = records[members[reference][0]]
    taken = {run: nearest_records(grid, steps) for run, steps in records.items()}
    shared = np.array([_shared(taken, [*members[reference], *members[group]]) for group in others])
    kept = np.flatnonzero(shared.any(axis=0))
    data: dict[str, xr.DataArray] = {}
    for name, (series, units) in _MEASURES.items():
        tables = {
            run: _table(recording, series, matched.names[run], layers, taken[run][kept], stream)
            for run, recording in recordings.items()
        }
        zeros = 0
        if units == "decades":
            zeros = sum(int((table == 0).sum()) for table in tables.values())
            tables = {run: log10_or_lost(table) for run, table in tables.items()}
        stacks = {group: np.stack([tables[run] for run in runs]) for group, runs in members.items()}
        found = [welch(stacks[reference], stacks[group], level) for group in others]
        for suffix, parts in zip(("", "_low", "_high"), zip(*found, strict=True), strict=True):
            values = np.where(shared[:, kept, None], np.stack(parts), np.nan)
            attrs = {"units": units, "exact_zeros": zeros}
            data[f"{name}{suffix}"] = xr.DataArray(values, dims=("group", "step", "layer"), attrs=attrs)
    coords = {
        "group": others,
        "step": grid[kept],
        "layer": layers,
        "seeds": ("group", [len(members[group]) for group in others]),
        "steps_left_out": ("group", grid.size - shared.sum(axis=1)),
    }
    attrs = {
        "reference": reference,
        "reference_seeds": len(members[reference]),
        "layers_left_out": left_out,
        "matching": matched.note,
        "level": level,
    }
    return xr.Dataset(data, coords, attrs)


def nearest_records(grid: NDArray[np.int64], steps: NDArray[np.int64]) -> NDArray[np.int64]:
    """Position in ``steps`` of the record that stands for each step of ``grid``; -1 where none is near enough.

    Both rise. A record stands for at most one step: it lies less than half of the smaller distance to a neighbouring
    step before it, or at most so far behind it.

    Examples
    --------
    >>> nearest_records(np.array([0, 10, 20]), np.array([1, 5, 14, 40]))
    array([ 0,  2, -1])
    """
    if not grid.size or not steps.size:
        return np.full(grid.size, -1)
    after = np.clip(np.searchsorted(steps, grid), 0, steps.size - 1)
    before = np.clip(after - 1, 0, None)
    nearest = np.where(np.abs(steps[before] - grid) < np.abs(steps[after] - grid), before, after)
    gaps = np.diff(grid).astype(np.float64)
    ends = gaps[:1], gaps[-1:]
    reach = np.minimum(np.concatenate([ends[0], gaps]), np.concatenate([gaps, ends[1]])) / 2 if gaps.size else 0.0
    away = steps[nearest] - grid
    return np.where((away == 0) | ((-reach < away) & (away <= reach)), nearest, -1)


def _members(recordings: Mapping[str, xr.DataTree], groups: Mapping[str, str], level: float) -> dict[str, list[str]]:
    """Runs of every group, the first run's first."""
    missing = [run for run in recordings if run not in groups]
    if missing or not 0 < level < 1:
        raise InvalidArgumentError(
            f"groups lack {missing or 'no run'}, level={level}: expected all runs, 0 < level < 1"
        )
    members: dict[str, list[str]] = {}
    for run in recordings:
        members.setdefault(groups[run], []).append(run)
    if len(members) < 2:
        raise InvalidArgumentError(
            f"recordings: {len(recordings)} of one group ({', '.join(members) or 'none'}); a difference needs two "
            "groups: give runs of another variant as well, or name their groups"
        )
    return members


def _paired_layers(matched: Matching, members: Mapping[str, Sequence[str]]) -> tuple[list[str], int]:
    """Layers, by the name they are compared under, of the first group and another; how many others there are."""
    known = [{name for run in runs for name in matched.names[run].values()} for runs in members.values()]
    first, *others = known
    layers = [name for name in matched.layers if name in first and any(name in one for one in others)]
    return layers, len(matched.layers) - len(layers)


def _records(recordings: Mapping[str, xr.DataTree], stream: str) -> dict[str, NDArray[np.int64]]:
    return {
        run: np.asarray(rows.group(recording, "layers", stream=stream)["step"].values, dtype=np.int64)
        for run, recording in recordings.items()
    }


def _shared(taken: Mapping[str, NDArray[np.int64]], runs: Sequence[str]) -> NDArray[np.bool_]:
    """Where every one of ``runs`` has a record."""
    return np.asarray(np.all([taken[run] >= 0 for run in runs], axis=0))


def _table(
    recording: xr.DataTree,
    series: _Series,
    names: Mapping[str, str],
    layers: Sequence[str],
    positions: NDArray[np.int64],
    stream: str,
) -> Floats:
    """Numbers of one run at ``positions`` of its records, NaN at -1, and at ``layers``, NaN where it has none."""
    table = np.full((positions.size, len(layers)), np.nan)
    try:
        found = series(recording, stream).transpose("step", "layer")
    except SignalNotRecorded:
        return table
    columns = {names[name]: column for column, name in enumerate(rows.names(found).tolist())}
    chosen = np.array([at for at, layer in enumerate(layers) if layer in columns], dtype=np.int64)
    there = np.flatnonzero(positions >= 0)
    values = found.values.astype(np.float64)[positions[there]][:, [columns[layers[at]] for at in chosen]]
    table[np.ix_(there, chosen)] = values
    return table


def log10_or_lost(values: Floats) -> Floats:
    """Logarithms; minus infinity of an exact zero, NaN of anything that has none."""
    sizes = np.log10(np.where(values > 0, values, 1.0))
    return np.where(values > 0, sizes, np.where(values == 0, -np.inf, np.nan))


def welch(before: Floats, here: Floats, level: float) -> tuple[Floats, Floats, Floats]:
    """Difference of the means over the first axis, ``here`` minus ``before``, and the ends of Welch's interval.

    NaN entries are left out; below two numbers on either side the ends are NaN. A mean with an entry of minus infinity
    is that, and leaves no interval.
    """
    from scipy.special import stdtrit

    (mean, error, free), (other, other_error, other_free) = _mean_and_error(before), _mean_and_error(here)
    square = error + other_error
    spread = rows.ratio(error**2, free) + rows.ratio(other_error**2, other_free)
    freedom = np.where(spread > 0, rows.ratio(square**2, spread), 1.0)
    margin = stdtrit(freedom, (1 + level) / 2) * np.sqrt(square)
    difference = other - mean
    lost, other_lost = np.isneginf(before).any(axis=0), np.isneginf(here).any(axis=0)
    margin = np.where(lost | other_lost, np.nan, margin)
    one_sided = np.where(lost & np.isfinite(other), np.inf, np.where(other_lost & np.isfinite(mean), -np.inf, np.nan))
    difference = np.where(lost | other_lost, np.where(lost & other_lost, np.nan, one_sided), difference)
    return difference, difference - margin, difference + margin


def _mean_and_error(values: Floats) -> tuple[Floats, Floats, NDArray[np.int64]]:
    """Mean, its squared standard error (NaN below two numbers) and the degrees of freedom of that."""
    known = np.isfinite(values)
    n = known.sum(axis=0)
    mean = rows.mean_of_known(values)
    square = np.where(known, (values - mean) ** 2, 0.0).sum(axis=0)
    return mean, rows.ratio(square, (n - 1) * n), n - 1
