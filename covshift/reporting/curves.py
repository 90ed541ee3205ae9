"""Logged values of several runs as charts: a line a group, and a ribbon where it has seeds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import xarray as xr

from covshift.analysis import comparison
from covshift.plots import style
from covshift.plots.asking import compared_scalars
from covshift.reporting.charts import Axis, chart, line
from covshift.reporting.drawn_records import MOST_STEPS, thinned


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
        the seeds of a group, the ribbon about it reaches from their lowest to their highest.
    """
    steps: dict[str, list[int]] = {}
    charts = []
    for name in compared_scalars(recordings):
        values = comparison.scalars(recordings, name)
        values = values.isel(step=thinned(values.sizes["step"], MOST_STEPS))
        steps[name] = values["step"].values.tolist()
        charts.append(_curve(values, groups, name))
    return {"steps": steps, "charts": [made for made in charts if made]}


def _curve(values: xr.DataArray, groups: Mapping[str, str], name: str) -> dict[str, Any] | None:
    lines: list[dict[str, Any]] = []
    ribbons = []
    for number, group in enumerate(dict.fromkeys(groups.values())):
        role = f"run-{number % len(style.RUN_COLORS)}"
        here = values.sel(run=[run for run, of_group in groups.items() if of_group == group])
        if here.sizes["run"] > 1:
            ribbons.append((len(lines), len(lines) + 1))
            ends = (("highest", here.max("run")), ("lowest", here.min("run")))
            lines += [line(f"{group}, {end}", curve.values, role, width=0.5, aside=True) for end, curve in ends]
        lines.append(line(group, here.mean("run").values, role, width=1.75))
    words = name.replace("_", " ")
    title = f"{words} over the steps; means over seeds, lowest to highest filled" if ribbons else words
    return chart(f"curve-{name}", title, x=name, y=Axis(words), lines=lines, ribbons=ribbons)
