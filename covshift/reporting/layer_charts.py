"""The section of one layer as data: a handful of charts over the steps, from what the analysis says of that layer.

Charts hold recorded numbers only: where there are more records than a chart holds, some of them are drawn, evenly
spread, never averages.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from covshift.analysis import rows
from covshift.analysis.derivatives import derivative
from covshift.analysis.distributions import PROBABILITIES
from covshift.analysis.flat_regions import flat_regions
from covshift.analysis.weight_path import module_of
from covshift.diagnosis.thresholds import THRESHOLDS
from covshift.diagnosis.wording import plural
from covshift.plots.labels import amount, share
from covshift.reporting.charts import LEVELS, Axis, chart, line, log_levels, packed_levels, side_curve
from covshift.reporting.drawn_records import CELLS, Columns, DrawnRecords, Series, drawn_records
from covshift.reporting.results import Results

SHARE = Axis("share of elements", low=0.0, high=1.0)

CURVE = 120
"""Points of a derivative."""

ROOM = 0.15
"""Share of what was reached by which an axis goes to either side of zero."""

Spec = dict[str, Any]


def layer_sections(result: Results, *, steps: int) -> dict[str, Any]:
    """What the sections of a run's layers show.

    Parameters
    ----------
    result : Results
        Of the run.
    steps : int
        Most records on any axis.

    Returns
    -------
    dict
        ``name`` of the run; ``steps``: the recorded steps that are drawn, by axis ("layers", "histograms", "units",
        "parameters", "shift"); ``layers``: for each layer of the recording, in its order, ``name``, ``facts`` in
        words, ``findings`` as check, verdict, reason and advice, and ``charts`` as
        :func:`covshift.reporting.charts.chart`.
    """
    read = drawn_records(result, most=steps)
    names = list(read.described)
    findings: dict[str, list[list[str]]] = {}
    for found in result.diagnosis.findings:
        findings.setdefault(_owner(found.layer, names), []).append(
            [found.check, found.verdict, found.reason, found.advice]
        )
    return {
        "name": result.name,
        "steps": read.steps,
        "layers": [
            {
                "name": name,
                "facts": _facts(read, name),
                "findings": findings.get(name, []),
                "charts": [made for made in _charts(read, name) if made],
            }
            for name in names
        ],
    }


def _owner(name: str, layers: Sequence[str]) -> str:
    """The layer a finding belongs to: the one it names, or else the one whose parameter it names."""
    return name if name in layers else name.rpartition(".")[0]


def _facts(read: DrawnRecords, name: str) -> str:
    known = read.described[name]
    units = int(known["unit_count_of_layer"])
    told = [str(known["module_type"]), f"depth {int(known['depth'])}", plural(units, "unit") if units else ""]
    records, histograms = (len(read.steps.get(axis, [])) for axis in ("layers", "histograms"))
    return ", ".join(word for word in told if word) + f"; {plural(records, 'record')} drawn, {histograms} histograms"


def _charts(read: DrawnRecords, name: str) -> Iterator[Spec | None]:
    river, activation = read.rivers.get(name), str(read.described[name]["activation"])
    if river is not None:
        yield _river(river)
        yield _ridges(river, read.steps["histograms"])
    yield _track((read.z if activation else read.output).get(name), activation, river)
    yield _zeros(read, name)
    yield _units(read, name)
    yield _shift(read.shift.get(name))
    yield _sizes(read, name)
    yield _updates(read.update_ratio, name)


def _axis(river: Series, label: str) -> Axis:
    within = float(river["linear_within"])
    low, high = float(river["lower"][0]), float(river["upper"][-1])
    return Axis(label, str(river["scale"]), low, high, within if np.isfinite(within) else None)


def _words(river: Series) -> str:
    return "z" if river["signal"] == "preactivation" else str(river["signal"])


def _river(river: Series) -> Spec | None:
    what = _words(river)
    broken = river["nan"] + river["infinite"] > 0
    looks: tuple[dict[str, Any], ...] = ({"width": 1.8}, {"width": 1.0}, {"width": 1.0, "dash": True})
    middle = PROBABILITIES.index(0.5)
    quantiles = [
        line(f"{probability:.0%}", river["quantile"][:, at], "accent", **looks[min(abs(at - middle), 2)])
        for at, probability in enumerate(PROBABILITIES)
    ]
    if broken.any():
        quantiles.append(line("NaN or infinite", np.where(broken, river["upper"][-1], np.nan), "bad", points=True))
    return chart(
        "river",
        f"Distribution of {what}: {_medians(river['quantile'][river['held'], middle])}",
        x="histograms",
        y=_axis(river, what),
        lines=quantiles,
        guides=[(0.0, "zero")],
        cells=packed_levels(log_levels(river["count"])),
    )


def _medians(medians: NDArray[np.float64]) -> str:
    """What to say of the medians of the histograms a layer has, NaN where one holds no finite element."""
    if np.isnan(medians).all():
        return f"no finite element in {plural(len(medians), 'histogram')}"
    return f"median {amount(float(medians[0]))} at the first histogram, {amount(float(medians[-1]))} at the last"


def _ridges(river: Series, steps: Sequence[int]) -> Spec | None:
    """Shares of the cells at the first, the middle and the last histogram with a finite element; None without one."""
    held = np.flatnonzero(river["finite"] > 0)
    if not held.size:
        return None
    ends = held[sorted({0, held.size // 2, held.size - 1})].tolist()
    counts = river["count"][ends]
    shares = rows.ratio(counts, counts.sum(axis=1, keepdims=True))
    roles = ("second", "zero", "accent")[-len(ends) :]
    zeros = [share(float(part)) for part in river["zero"][ends] / river["finite"][ends]]
    return chart(
        "ridges",
        f"The same at {len(ends)} steps; exactly zero: {', '.join(zeros)}",
        x=_axis(river, _words(river)).told() | {"centres": CELLS},
        y=Axis("share of a cell", low=0.0, high=float(f"{shares.max() * 1.05:.3g}")),
        lines=[line(f"step {steps[at]}", shares[row].round(4), roles[row]) for row, at in enumerate(ends)],
    )


def _track(moments: Series | None, activation: str, river: Series | None) -> Spec | None:
    """Mean and standard deviation over the steps, at a nonlinearity beside its derivative; its flat part is shaded."""
    if moments is None:
        return None
    what = "z" if activation else "output"
    mean, sd = moments["mean"], moments["sd"]
    known = np.flatnonzero(np.isfinite(mean))
    ends = [f"{amount(float(mean[at]))} ± {amount(float(sd[at]))}" for at in known[[0, -1]]] if known.size else []
    axis = _reached(what, np.concatenate([mean - sd, mean + sd]), river)
    flat = _within(axis, flat_regions(activation)) if activation else []
    curve = _derivative(activation, axis, mean[known[[0, -1]]]) if activation and known.size else None
    notes = ["shaded: derivative below a tenth of its largest"] * bool(flat)
    notes += [f"right: |derivative| of {activation}, at start (ring) and end (dot)"] * bool(curve)
    return chart(
        "track",
        "; ".join([f"Mean ± sd of {what}: {' to '.join(ends)}", *notes]),
        x="layers",
        y=axis,
        lines=[
            line("mean + sd", mean + sd, "second", width=0.75),
            line("mean", mean, "ink", width=1.75),
            line("mean - sd", mean - sd, "second", width=0.75),
        ],
        ribbons=[(0, 2)],
        shades=flat,
        guides=[(0.0, "zero")],
        curve=curve,
    )


def _reached(label: str, values: NDArray[np.float64], river: Series | None) -> Axis:
    """An axis as far as ``values`` go and beyond zero, where most nonlinearities bend, on the scale of the river."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        return Axis(label)
    low, high = float(finite.min()), float(finite.max())
    room = ROOM * (high - low) or 1.0
    low, high = min(low - room / 3, -room), max(high + room / 3, room)
    within = np.inf if river is None else float(river["linear_within"])
    return Axis(label, "symlog", low, high, within) if np.isfinite(within) else Axis(label, low=low, high=high)


def _within(axis: Axis, regions: Sequence[tuple[float, float]]) -> list[tuple[float | None, float | None]]:
    """Those of ``regions`` that ``axis`` shows, None in place of an infinite end."""
    if axis.low is None or axis.high is None:
        return []
    seen = [(low, high) for low, high in regions if low < axis.high and high > axis.low]
    return [(None if np.isinf(low) else low, None if np.isinf(high) else high) for low, high in seen]


def _derivative(activation: str, axis: Axis, ends: NDArray[np.float64]) -> dict[str, Any] | None:
    marks = [(float(f"{at:.3g}"), float(derivative(activation, at))) for at in ends]
    return side_curve("|derivative|", derivative(activation, axis.centres(CURVE)), marks)


def _zeros(read: DrawnRecords, name: str) -> Spec | None:
    """Zeros of the gradient, split at a nonlinearity into structural ones and others."""
    if name in read.linkage:
        here = read.linkage[name]
        lines = [
            line("all zeros of dL/dz", here["gradient_zero_rate"], "ink", width=1.75),
            line("structural", here["structural_rate"], "second"),
            line("other", here["other_rate"], "accent", dash=True),
        ]
    elif name in read.zero_rate:
        lines = [line("zeros of dL/d(output)", read.zero_rate[name]["zero_rate"], "ink", width=1.75)]
    else:
        return None
    known = [value for value in lines[0]["values"] if value is not None]
    title = f"Gradient exactly zero: {share(known[0])} to {share(known[-1])} of elements" if known else "Zeros by kind"
    return chart("zeros", title, x="layers", y=SHARE, lines=lines)


def _units(read: DrawnRecords, name: str) -> Spec | None:
    """Units as rows of a strip, those that fell silent first at the bottom; dark where silent."""
    if name not in read.survival or name not in read.units:
        return None
    mine = read.units[name]
    seen = mine["examples"] > 0
    silent = mine["silent"] & seen
    position = np.arange(len(silent))[:, None]
    lifetime = np.where(seen & ~silent, position, -1).max(axis=0, initial=-1)
    order = np.argsort(lifetime, kind="stable")
    parts = np.array_split(order, min(len(order), CELLS))
    share_silent = np.stack([silent[:, part].mean(axis=1) for part in parts], axis=1)
    firing, units = read.survival[name]["survival"], silent.shape[1]
    known = firing[np.isfinite(firing)]
    last = share(float(known[-1])) if known.size else "unknown"
    return chart(
        "units",
        f"{units} units by lifetime, filled where silent; firing at the last record: {last}",
        x="units",
        y=Axis("units", low=0.0, high=float(units)),
        lines=[line("units that fire", firing * units, "accent", width=1.75)],
        cells=packed_levels(np.round(LEVELS * share_silent).astype(np.int64)),
    )


def _shift(found: Series | None) -> Spec | None:
    if found is None:
        return None
    moved, floor = (np.where(found["off_centre"], np.nan, found[part]) for part in ("w1", "noise_floor"))
    above = int((moved > np.nan_to_num(floor)).sum())
    return chart(
        "shift",
        f"Shift between histograms: above its noise floor at {above} of {int(np.isfinite(moved).sum())} drawn",
        x="shift",
        y=Axis("W1, sd"),
        lines=[line("W1", moved, "ink", width=1.75), line("noise floor", floor, "muted", dash=True)],
    )


def _sizes(read: DrawnRecords, name: str) -> Spec | None:
    parts = (("gradient rms", read.gradient, "rms", "accent"), ("output sd", read.output, "sd", "second"))
    lines, zero = [], 0
    for label, moments, part, role in parts:
        if name in moments:
            values = moments[name][part]
            zero += int((values == 0).sum())
            lines.append(line(label, np.where(values > 0, values, np.nan), role))
    note = f"; not drawn: {zero} exact zeros" if zero else ""
    return chart("sizes", f"Size of gradient and output{note}", x="layers", y=Axis("size", "log"), lines=lines)


def _updates(ratios: Columns, name: str) -> Spec | None:
    """Update ratio of the parameters of the layer's module, with the band outside of which the check speaks."""
    band = THRESHOLDS["update_ratio"].watch
    assert isinstance(band, tuple)
    own = {known: part["update_ratio"] for known, part in ratios.items() if known.rpartition(".")[0] == module_of(name)}
    roles = ("ink", "second", "accent", "zero")
    return chart(
        "updates",
        "Update ratio; shaded: outside the band of the check",
        x="parameters",
        y=Axis("update / weight", "log"),
        lines=[
            line(parameter.rpartition(".")[2], np.where(ratio > 0, ratio, np.nan), roles[at % len(roles)])
            for at, (parameter, ratio) in enumerate(own.items())
        ],
        shades=[(None, band[0]), (band[1], None)],
    )
