"""Logged values of several runs as charts: a line a group, and a ribbon where it has seeds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import xarray as xr

from covshift.analysis import comparison
from covshift.analysis.seeds import over_seeds
from covshift.plots import style
from covshift.plots.asking import compared_scalars
from covshift.reporting.charts import Axis, chart, line
from covshift.reporting.layer_charts import MOST_STEPS, thinned


def curves(recordings: Mapping[str, xr.DataTree], groups: Mapping[str, str]) -> dict[str, Any]:
    """Charts of what was logged, and the step axes they share.

    Parameters
    ----------
    recordings : mapping of str to DataTree
        Runs by name.
    groups : mapping of str to str
        Group of every run.

    Returns
    -------
    dict
        ``steps`` and ``charts`` as of :func:`covshift.reporting.layer_charts.layer_sections`. A line is the mean over
        the seeds of a group, the ribbon about it the 90 % interval of that mean.
    """
    steps: dict[str, list[int]] = {}
    charts = []
    for name in compared_scalars(recordings):
        values = comparison.scalars(recordings, name)
        values = values.isel(step=thinned(values.sizes["step"], MOST_STEPS))
        steps[name] = values["step"].values.tolist()
        charts.append(_curve(over_seeds(values.to_dataset(name="value"), groups, logarithmic=()), name))
    return {"steps": steps, "charts": [made for made in charts if made]}


def _curve(means: xr.Dataset, name: str) -> dict[str, Any] | None:
    lines: list[dict[str, Any]] = []
    ribbons = []
    for number, group in enumerate(means["run"].values):
        role, here = f"run-{number % len(style.RUN_COLORS)}", means.isel(run=number)
        if int(here["seeds"]) > 1:
            ribbons.append((len(lines), len(lines) + 1))
            ends = (("high", here["value_high"]), ("low", here["value_low"]))
            lines += [line(f"{group}, 90 % {end}", values.values, role, width=0.5) for end, values in ends]
        lines.append(line(str(group), here["value"].values, role, width=1.75))
    seeds = f"{int(means['seeds'].min())} to {int(means['seeds'].max())} seeds a group"
    title = f"{name.replace('_', ' ')} over the steps; {seeds}, ribbons: 90 % interval of the mean" if ribbons else name
    return chart(f"curve-{name}", title, x=name, y=Axis(name), lines=lines, ribbons=ribbons)
