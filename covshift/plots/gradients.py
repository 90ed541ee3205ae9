"""Figures of gradient health: exact zeros layer by layer, units still alive, and the norm over depth."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import Normalize
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

from covshift.diagnosis.wording import plural
from covshift.exceptions import InvalidArgumentError
from covshift.plots import palette, style
from covshift.plots.axes import (
    colorbar,
    key_below,
    label_amounts,
    label_layers,
    label_steps,
    layer_cells,
    layer_height,
    title,
    unmeasured_key,
    wrapped,
)
from covshift.plots.labels import amount, share, short_names

NAMED_CURVES = 4
"""Layers named in the survival panel: those that lost most units."""


def plot_gradient_zeros(
    zero_rate: xr.DataArray,
    survival: xr.DataArray | None = None,
    *,
    structural: xr.DataArray | None = None,
    ax: style.Target = None,
) -> Figure | SubFigure:
    """Draw where gradients are exactly zero and, beside it, how many units are still alive.

    Parameters
    ----------
    zero_rate : DataArray
        From :func:`covshift.analysis.gradient_health.zero_rate`: share of exact zeros, dims ``(step, layer)``.
    survival : DataArray, optional
        From :func:`covshift.analysis.dead_units.survival`: share of units not silent, dims ``(step, layer)``.
    structural : DataArray, optional
        Share of structural zeros, dims ``(step, layer)``: elements at which the nonlinearity has no derivative. Drawn
        apart, since a zero of another origin says nothing about the nonlinearity.
    ax : Axes, Figure or SubFigure, optional
        Where to draw; a new figure by default.

    Returns
    -------
    Figure or SubFigure
        One Axes for each panel, in the order above; a panel without a number says so.
    """
    maps = {"all exact zeros": zero_rate}
    if structural is not None:
        maps["structural zeros alone"] = structural
    columns = len(maps) + (survival is not None)
    with style.context():
        figure = style.figure_on(ax, width=2.6 + 3.1 * columns, height=layer_height(zero_rate.sizes["layer"]))
        axes = style.panels(figure, columns)
        _zero_maps(axes[: len(maps)], maps)
        if survival is not None:
            _survival_curves(axes[-1], survival)
        text = wrapped(_zero_finding(zero_rate), width=50 * columns)
        figure.suptitle(text, x=0.01, ha="left", fontsize=10, fontweight="bold", parse_math=False)
    return figure


def _zero_maps(axes: list[Axes], maps: dict[str, xr.DataArray]) -> None:
    """Maps of shares side by side on one colour scale, the layers named on the first that is drawn."""
    drawn: list[tuple[Axes, QuadMesh]] = []
    for ax, (name, values) in zip(axes, maps.items(), strict=True):
        if not np.isfinite(values.values).any():
            style.message(ax, f"{name}: not measured")
            continue
        mesh = layer_cells(ax, values, norm=Normalize(0.0, 1.0), width=20)
        title(ax, name[0].upper() + name[1:], size=9.0)
        if drawn:
            ax.set_ylabel("")
            ax.tick_params(axis="y", labelleft=False)
        if not np.isfinite(values.values).all():
            key_below(ax, [unmeasured_key()])
        drawn.append((ax, mesh))
    if drawn:
        share_of = PercentFormatter(1.0, symbol=" %")
        colorbar(drawn[0][1], [ax for ax, _ in drawn], label="share of elements", formatter=share_of)


def _survival_curves(ax: Axes, survival: xr.DataArray) -> None:
    by_step = survival.transpose("step", "layer")
    known = by_step.isel(layer=np.flatnonzero(np.isfinite(by_step.values).any(axis=0)))
    if not known.size:
        style.message(ax, "units: not measured")
        return
    last = _last_known(known.values)
    worst = [int(row) for row in np.argsort(last, kind="stable")[:NAMED_CURVES] if last[row] < 1.0]
    _quiet_curves(ax, known.isel(layer=[row for row in range(last.size) if row not in worst]))
    names = short_names(known["layer"].values)
    for rank, row in enumerate(worst):
        _named_curve(ax, known.isel(layer=row), rank=rank, label=f"{names[row]} ({share(float(last[row]))})")
    ax.set_ylim(-0.02, 1.02)
    ax.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
    ax.grid(axis="y")
    label_steps(ax, known["step"].values)
    ax.set_ylabel("units alive")
    lost = int((last < 1.0).sum())
    title(ax, f"{lost} of {plural(last.size, 'layer')} lost units (one line each)", size=9.0)
    if worst:
        key_below(ax, ax.get_legend_handles_labels()[0], columns=2 if max(map(len, names)) <= 12 else 1)


def _quiet_curves(ax: Axes, survival: xr.DataArray) -> None:
    """One faint line for each layer; the more of them, the fainter."""
    for row in range(survival.sizes["layer"]):
        ax.plot(
            survival["step"],
            survival.isel(layer=row),
            color=style.look().muted,
            alpha=float(np.clip(8.0 / survival.sizes["layer"], 0.1, 0.4)),
            linewidth=0.9,
            marker="o" if survival.sizes["step"] == 1 else "",
            drawstyle="steps-post",
            rasterized=survival.size > style.VECTOR_POINTS,
        )


def _named_curve(ax: Axes, survival: xr.DataArray, *, rank: int, label: str) -> None:
    """The line of a layer that lost units; its colour is none of a run's."""
    ax.plot(
        survival["step"],
        survival,
        color=(style.look().accent, style.look().second, style.look().ink, style.look().muted)[rank],
        linewidth=1.1,
        marker=palette.RUN_MARKERS[rank],
        markevery=(min(rank, survival.size - 1), max(survival.size // 6, 1)),
        drawstyle="steps-post",
        label=label,
    )


def _last_known(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Last finite number of every column, each of which has one."""
    backwards = values[::-1]
    return np.asarray(backwards[np.isfinite(backwards).argmax(axis=0), np.arange(values.shape[1])])


def _zero_finding(zero_rate: xr.DataArray) -> str:
    values = zero_rate.transpose("step", "layer")
    known = np.flatnonzero(np.isfinite(values.values).any(axis=1))
    if not known.size:
        return "Gradient zeros: not measured"
    last = values.isel(step=known[-1])
    most = int(np.nanargmax(last.values))
    silent = int((last.values == 1.0).sum())
    where = f"most in {short_names(last['layer'].values)[most]}, {share(float(last.values[most]))} of elements"
    if silent:
        where = f"{plural(silent, 'layer')} receive{'s' if silent == 1 else ''} no gradient at all"
    return f"Gradient zeros at step {int(last['step'])}: {where}"


def plot_norm_profile(profile: xr.Dataset, *, steps: Sequence[int] | None = None, ax: style.Target = None) -> Axes:
    """Draw how the size of the gradient changes over depth at chosen steps.

    Parameters
    ----------
    profile : Dataset
        From :func:`covshift.analysis.gradient_health.norm_profile`: ``rms`` (step, layer), ``slope``, ``slope_low``,
        ``slope_high``, ``total_decades``, ``n_layers`` and ``vanished`` (step).
    steps : sequence of int, optional
        Steps to draw; the first, the middle and the last with a norm by default.
    ax : Axes, Figure or SubFigure, optional
        Where to draw; a new figure by default.

    Returns
    -------
    Axes
        One line for each step, the last in the loudest colour; layers whose gradient is exactly zero are marked on
        the left edge. The title gives the slope fitted at the last drawn step. Where no norm was recorded, the Axes
        says so.

    Raises
    ------
    InvalidArgumentError
        If a step was not recorded.
    """
    with style.context():
        ax = style.axes_on(ax, width=7.6, height=layer_height(profile.sizes["layer"]))
        rms = profile["rms"].transpose("step", "layer")
        chosen = _chosen_steps(rms, steps)
        if not (rms.sel(step=chosen).values > 0).any():
            return style.message(ax, "gradient norm: not measured, or zero in every layer")
        ax.set_xscale("log")
        for position, step in enumerate(chosen):
            _profile_line(ax, rms.sel(step=step), position=position - len(chosen))
        label_amounts(ax.xaxis)
        label_layers(ax, rms["layer"].values)
        ax.grid(axis="x")
        ax.set_xlabel("root mean square of the gradient's elements")
        title(ax, _slope_finding(profile.sel(step=chosen[-1])))
        key_below(ax, ax.get_legend_handles_labels()[0], columns=3)
    return ax


def _chosen_steps(rms: xr.DataArray, steps: Sequence[int] | None) -> list[int]:
    recorded = [int(step) for step in rms["step"].values]
    if steps is not None:
        unknown = sorted(set(steps) - set(recorded))
        if unknown or not steps:
            raise InvalidArgumentError(f"steps={list(steps)}: {unknown or 'none'} not recorded; recorded: {recorded}")
        return sorted(set(steps))
    known = [step for step, row in zip(recorded, rms.values, strict=True) if (row > 0).any()]
    return sorted({known[0], known[len(known) // 2], known[-1]}) if known else recorded[-1:]


def _profile_line(ax: Axes, rms: xr.DataArray, *, position: int) -> None:
    """One step's profile; ``position`` counts from the last drawn step, which is -1."""
    color = (style.look().accent, style.look().second, style.look().muted)[min(-1 - position, 2)]
    rows = np.arange(rms.size)
    positive = np.where(rms.values > 0, rms.values, np.nan)
    marker = palette.RUN_MARKERS[(-1 - position) % len(palette.RUN_MARKERS)]
    size = 3.2 if rms.size <= 60 else 2.0
    ax.plot(positive, rows, color=color, marker=marker, markersize=size, label=f"step {int(rms['step'])}")
    vanished = rows[rms.values == 0]
    if vanished.size:
        edge = np.zeros(vanished.size)
        ax.plot(
            edge,
            vanished,
            "<",
            color=color,
            transform=ax.get_yaxis_transform(),
            clip_on=False,
            label=f"exactly zero at step {int(rms['step'])}: {plural(int(vanished.size), 'layer')}",
        )


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
        f"{step} (90 % interval {amount(low)} to {amount(high)}, {plural(int(at['n_layers']), 'layer')}; "
        f"{amount(abs(float(at['total_decades'])))} decades in all)"
    )
    return f"{lost}, elsewhere it {fitted}" if lost else f"Gradient {fitted}"
