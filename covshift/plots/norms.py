"""Gradient norm over depth: does it vanish, does it explode, and what clipping leaves of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from numpy.typing import NDArray

from covshift.analysis.arguments import demand_result
from covshift.diagnosis.thresholds import THRESHOLDS
from covshift.diagnosis.wording import plural, span
from covshift.exceptions import InvalidArgumentError
from covshift.plots import palette, style
from covshift.plots.axes import (
    isolated,
    key_of_figure,
    label_amounts,
    label_layers,
    layer_height,
    log_limits,
    mark_edge,
    title,
)
from covshift.plots.labels import amount, share

FloatArray = NDArray[np.float64]

GUIDE_STEPS = 40
"""Layers over which a guide line of the limiting slope is drawn at most: beyond, it leaves every axis."""


def plot_norm_profile(
    profile: xr.Dataset,
    parameters: xr.Dataset | None = None,
    *,
    steps: Sequence[int] | None = None,
    ax: style.Target = None,
) -> Figure | SubFigure:
    """Draw how the size of the gradient changes over depth at chosen steps.

    Parameters
    ----------
    profile : Dataset
        From :func:`covshift.analysis.gradient_health.norm_profile`: ``rms`` (step, layer), ``slope``, ``slope_low``,
        ``slope_high``, ``total_decades``, ``n_layers`` and ``vanished`` (step).
    parameters : Dataset, optional
        From :func:`covshift.analysis.parameter_norms.parameter_norms`: the parameters' gradients before and after
        clipping, in a second panel.
    steps : sequence of int, optional
        Steps to draw; the first, the middle and the last with a norm by default.
    ax : Axes, Figure or SubFigure, optional
        Where to draw; a new figure by default.

    Returns
    -------
    Figure or SubFigure
        First the Axes of the layers: one line for each step, the last in the loudest colour, and dotted the slopes
        beyond which the rule says watch and bad; layers whose gradient is exactly zero are marked on the left edge. The
        title gives the slope fitted at the last drawn step. Then, where ``parameters`` are given, their norms: a dashed
        line before clipping, a full one after. A panel without a norm says so.

    Raises
    ------
    InvalidArgumentError
        If a step was not recorded.
    """
    demand_result("profile", profile, ("rms",), of="covshift.gradient_health.norm_profile")
    rows = max(profile.sizes["layer"], 0 if parameters is None else parameters.sizes["parameter"])
    with style.context():
        rms = profile["rms"].transpose("step", "layer")
        chosen = _chosen_steps(rms, steps)
        columns = 1 if parameters is None else 2
        figure = style.figure_on(ax, width=(7.6, 11.2)[columns - 1], height=layer_height(rows))
        axes = style.panels(figure, columns)
        _layers(axes[0], profile, rms, chosen)
        if parameters is not None:
            _parameters(axes[1], parameters, chosen)
        handles = {str(one.get_label()): one for panel in axes for one in panel.get_legend_handles_labels()[0]}
        if handles:
            key_of_figure(figure, list(handles.values()), columns=5)
    return figure


def _layers(ax: Axes, profile: xr.Dataset, rms: xr.DataArray, chosen: list[int]) -> None:
    drawn = rms.sel(step=chosen)
    if not (drawn.values > 0).any():
        style.message(ax, "gradient norm: not measured, or zero in every layer")
        return
    ax.set_xscale("log")
    ax.set_xlim(log_limits([drawn.values]))
    for position, step in enumerate(chosen):
        _line(ax, drawn.sel(step=step), position=position - len(chosen))
    _guides(ax, drawn.isel(step=-1).values, slope=float(profile["slope"].sel(step=chosen[-1])))
    label_amounts(ax.xaxis)
    label_layers(ax, rms["layer"].values)
    ax.grid(axis="x")
    ax.set_xlabel("root mean square of the gradient's elements")
    title(ax, _slope_finding(profile.sel(step=chosen[-1])))


def _guides(ax: Axes, last: FloatArray, *, slope: float) -> None:
    """Slopes at which the rule speaks, hung on the last layer, to the side on which the fitted ``slope`` lies."""
    known = np.flatnonzero(last > 0)
    limits = THRESHOLDS["depth_slope"]
    low, high = ax.get_xlim()
    side = -1.0 if slope < 0 else 1.0
    for word, limit in (("watch", limits.watch), ("bad", limits.bad)):
        if isinstance(limit, float) and known.size > 1:
            rows = np.arange(max(known[-1] - GUIDE_STEPS, known[0]), known[-1] + 1)
            sizes = last[known[-1]] * 10.0 ** (-limit * side * (known[-1] - rows))
            look = style.look().verdicts[word]
            label = f"{word}: {limit:g} decades a layer"
            ax.plot(sizes, rows, color=look.color, linestyle=(0, (1, 2)), linewidth=1.1, label=label)
    ax.set_xlim(low, high)


def _parameters(ax: Axes, norms: xr.Dataset, chosen: list[int]) -> None:
    """Norms of the parameters' gradients at those of the chosen steps that were recorded."""
    steps = [step for step in chosen if step in norms["step"].values]
    at = norms.sel(step=steps).transpose("step", "parameter", ...)
    if not steps or not (at["after"].values > 0).any():
        style.message(ax, "gradients of the parameters: not measured")
        return
    ax.set_xscale("log")
    ax.set_xlim(log_limits([at["before"].values, at["after"].values]))
    dashed = False
    for position, step in enumerate(steps):
        here = at.sel(step=step)
        _line(ax, here["after"].rename(parameter="layer"), position=position - len(steps))
        color = _color(position - len(steps))
        before = np.where(here["before"].values > 0, here["before"].values, np.nan)
        if (before > here["after"].values).any():
            label = "_before" if dashed else "before clipping"
            dashed = True
            at_rows, dashes = np.arange(before.size), (0, (4, 2))
            (line,) = ax.plot(before, at_rows, color=color, linestyle=dashes, linewidth=1.0, label=label)
            line.set(marker=".", markevery=isolated(before))
    label_amounts(ax.xaxis)
    label_layers(ax, norms["parameter"].values, what="parameter")
    ax.grid(axis="x")
    ax.set_xlabel("L2 norm of the gradient at the optimizer step")
    title(ax, _clip_finding(at.isel(step=-1)))


def _clip_finding(at: xr.Dataset) -> str:
    factor, step = float(at["clip_factor"]), int(at["step"])
    if not np.isfinite(factor):
        return f"Gradients of {plural(at.sizes['parameter'], 'weight')}; clipping was not measured at step {step}"
    if factor >= 1.0:
        return f"Nothing shortened the gradients of {plural(at.sizes['parameter'], 'weight')} at step {step}"
    return f"Clipping left {share(factor)} of the gradient's length at step {step}"


def _chosen_steps(rms: xr.DataArray, steps: Sequence[int] | None) -> list[int]:
    recorded = [int(step) for step in rms["step"].values]
    if steps is not None:
        unknown = sorted(set(steps) - set(recorded))
        if unknown or not steps:
            raise InvalidArgumentError(f"steps={list(steps)}: {unknown or 'none'} not recorded; recorded: {recorded}")
        return sorted(set(steps))
    known = [step for step, row in zip(recorded, rms.values, strict=True) if (row > 0).any()]
    return sorted({known[0], known[len(known) // 2], known[-1]}) if known else recorded[-1:]


def _color(position: int) -> str:
    return (style.look().accent, style.look().second, style.look().muted)[min(-1 - position, 2)]


def _line(ax: Axes, rms: xr.DataArray, *, position: int) -> None:
    """One step's profile; ``position`` counts from the last drawn step, which is -1."""
    color = _color(position)
    rows = np.arange(rms.size)
    positive = np.where(rms.values > 0, rms.values, np.nan)
    marker = palette.RUN_MARKERS[(-1 - position) % len(palette.RUN_MARKERS)]
    size = 3.2 if rms.size <= 60 else 2.0
    ax.plot(positive, rows, color=color, marker=marker, markersize=size, label=f"step {int(rms['step'])}")
    vanished = rows[rms.values == 0]
    label = f"exactly zero at step {int(rms['step'])}"
    mark_edge(ax, vanished, edge=0.0, marker="<", along="y", label=label, color=color)


def _slope_finding(at: xr.Dataset) -> str:
    """What happens to the gradient on its way to the input: where it is lost altogether, and its slope elsewhere."""
    slope, step, vanished = float(at["slope"]), int(at["step"]), int(at["vanished"])
    lost = f"Gradient is exactly zero in {vanished} of {plural(at.sizes['layer'], 'layer')}" if vanished else ""
    if not np.isfinite(slope):
        return f"{lost or 'Gradient norm over depth'} at step {step}; no slope fitted"
    sign = 1.0 if slope > 0 else -1.0
    low, high = sorted((sign * float(at["slope_low"]), sign * float(at["slope_high"])))
    fitted = (
        f"{'shrinks' if slope > 0 else 'grows'} by {amount(abs(slope))} decades a layer towards the input at step "
        f"{step} (90 % interval {span(low, high)}, {plural(int(at['n_layers']), 'layer')}; "
        f"{amount(abs(float(at['total_decades'])))} decades in all)"
    )
    return f"{lost}, elsewhere it {fitted}" if lost else f"Gradient {fitted}"
