"""What sets groups of runs apart in numbers that are one a run: a group's mean minus the first's, with its interval.

Effects stay in the unit of what they are of: a standardised one would need the spread over seeds, which few seeds do
not tell. With one seed on either side there is a difference and no interval.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import xarray as xr

from covshift.analysis.differences import log10_or_lost, welch
from covshift.analysis.seeds import LOGARITHMIC, members_of


def effect_sizes(
    values: xr.Dataset,
    groups: Mapping[str, str],
    *,
    logarithmic: Collection[str] = LOGARITHMIC,
    level: float = 0.9,
) -> xr.Dataset:
    """Mean of every other group minus that of the first.

    Parameters
    ----------
    values : Dataset
        Variables with the dim ``run``, such as those of :func:`covshift.analysis.comparison.paired_layers`.
    groups : mapping of str to str
        Group of every run; that of the first run is the reference.
    logarithmic : collection of str
        Variables whose differences are those of ``log10``, in decades: a zero makes them infinite, or NaN where both
        sides have one.
    level : float, default 0.9
        Of the intervals, in (0, 1).

    Returns
    -------
    Dataset
        Dim ``group``, the groups but the first, in place of ``run``. For each ``name`` also ``name_low`` and
        ``name_high``, the ends of Welch's interval; NaN where either side has fewer than two numbers. The attribute
        ``reference`` names the first group, ``level`` repeats the argument.

    Raises
    ------
    InvalidArgumentError
        If a run has no group, or ``level`` is out of range.

    References
    ----------
    B. L. Welch (1947), see :func:`covshift.analysis.differences.group_differences`.
    """
    members = members_of(values, groups, level=level)
    reference, *others = members
    data: dict[str, xr.DataArray] = {}
    for name, variable in values.data_vars.items():
        table = variable.transpose("run", ...)
        numbers = table.values.astype(np.float64)
        attrs = dict(variable.attrs)
        if name in logarithmic:
            numbers, attrs = log10_or_lost(numbers), attrs | {"units": "decades"}
        found = [welch(numbers[members[reference]], numbers[members[group]], level) for group in others]
        coords = {dim: table[dim].values for dim in table.dims[1:]} | {"group": others}
        for at, suffix in enumerate(("", "_low", "_high")):
            stacked = np.array([parts[at] for parts in found]).reshape(len(others), *numbers.shape[1:])
            data[f"{name}{suffix}"] = xr.DataArray(stacked, coords, ("group", *table.dims[1:]), attrs=attrs)
    return xr.Dataset(data, attrs={"reference": reference, "level": level})
