"""Dead units through time: born, died, revived, and where the evidence is too thin to say."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from covshift.analysis.arguments import demand_result
from covshift.diagnosis.thresholds import THRESHOLDS
from covshift.diagnosis.wording import plural
from covshift.plots import palette, style
from covshift.plots.axes import key_below, label_steps, step_edges, title
from covshift.plots.labels import count, elide

ORDER = ("born dead", "died", "not finite", "silent", "not recorded", "revived", "alive")
"""Fates from the bottom up: what is worst stands on the axis, where it can be read."""

ROOM = 0.25
"""Least share of the units that the axis holds."""

LIMIT_DASHES = {"watch": (0, (1, 1.5)), "bad": (0, (6, 2))}
"""Dots and dashes tell the limits of the rule apart, on bands of any colour."""

BROKEN_HATCH = "xxx"
"""Of units that give nothing finite: unlike what is merely not known, this is a fault."""

WORDS = {
    "born dead": "dead from the start",
    "died": "died",
    "silent": "silent, too few examples to say",
    "not finite": "not a finite value",
    "not recorded": "not recorded",
    "revived": "revived",
    "alive": "alive",
}


def plot_dead_units(
    history: xr.Dataset, evaluated: xr.Dataset | None = None, *, layer: str | None = None, ax: style.Target = None
) -> Axes:
    """Draw how many units were alive, silent or dead at every step.

    The bands are of the training batches; an evaluation pass, which is an exact statement about its examples and may
    well say otherwise, is a mark of its own, and the title says of either what it counts.

    Parameters
    ----------
    history : Dataset
        From :func:`covshift.analysis.unit_history.unit_history` of the training batches.
    evaluated : Dataset, optional
        From :func:`covshift.analysis.dead_units.dead_units` of the evaluation passes, units as in ``history``.
    layer : str, optional
        Name of the only layer that was counted: the title says it, and the limits of the rule about dead units, which
        judges layer by layer, are drawn.
    ax : Axes, Figure or SubFigure, optional
        Where to draw; a new figure by default.

    Returns
    -------
    Axes
        One stacked band for each fate, labelled by it, worst at the bottom; hatched where the examples are too few to
        call silence death, cross-hatched where a unit gives nothing finite; one diamond for each evaluation pass, at
        the number of units silent on all its examples. The axis of steps says how many records of units there are, and
        at which step records of layers tell more after the last of them. Where no unit was recorded, the Axes says so
        instead.
    """
    demand_result("history", history, ("fate", "count"), of="covshift.analysis.unit_history.unit_history")
    with style.context():
        ax = style.axes_on(ax, width=7.6, height=3.6)
        units = int(history.attrs["units"])
        if not units or not history.sizes["step"]:
            none = "no layer recorded is a nonlinearity" if history.sizes["step"] else "units_every= records them"
            return style.message(ax, f"units: not measured ({none})")
        _bands(ax, history)
        label_steps(ax, history["step"].values)
        _name_records(ax, history)
        passes = None if evaluated is None else _passes(evaluated)
        top = _top(history, units, 0 if passes is None else int(passes.max()))
        ax.set_ylim(0, top)
        ax.set_ylabel(f"units (n = {count(units)})" + ("" if top == units else f", axis cut at {count(top)}"))
        ax.yaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        if layer is not None:
            _limits(ax, units)
        if passes is not None:
            _evaluated(ax, passes)
        title(ax, _finding(history, units, layer) + ("" if passes is None else _evaluation(passes)))
        handles = {handle.get_label(): handle for handle in ax.get_legend_handles_labels()[0]}
        key_below(ax, list(handles.values()), columns=3)
    return ax


def _passes(evaluated: xr.Dataset) -> xr.DataArray | None:
    """Units silent on every example of an evaluation pass, of how many, by step; None without a pass."""
    seen = evaluated["examples"].transpose("step", "unit").values > 0
    silent = evaluated["silent"].transpose("step", "unit").values & seen
    kept = seen.any(axis=1)
    if not kept.any():
        return None
    steps = {"step": evaluated["step"].values[kept], "units": ("step", seen.sum(axis=1)[kept])}
    return xr.DataArray(silent.sum(axis=1)[kept], steps, ("step",))


def _evaluated(ax: Axes, passes: xr.DataArray) -> None:
    low, high = ax.get_xlim()
    ax.plot(
        np.clip(passes["step"].values, low, high),
        passes.values,
        linestyle="",
        marker="D",
        markersize=6.0,
        color=style.look().ink,
        markeredgecolor=style.look().paper,
        clip_on=False,
        zorder=5,
        label="dead by an evaluation pass",
    )


def _top(history: xr.Dataset, units: int, evaluated: int) -> float:
    """End of the axis: all units, or twice those that are not simply alive where there are few."""
    rest = history["count"].sel(fate=[fate for fate in ORDER if fate != "alive"]).sum("fate")
    most = max(int(rest.max()), evaluated)
    return float(min(np.ceil(max(2 * most, ROOM * units)), units)) if most else float(units)


def _of_layers_alone(history: xr.Dataset) -> bool:
    """Whether the last step is no record of units, but of what records of layers told of them after the last."""
    return bool(history.sizes["step"] > history.attrs["unit_records"])


def _edges(history: xr.Dataset) -> NDArray[np.float64]:
    """Edges of the bands of one step; what layers alone told last holds for their step and no further."""
    steps = history["step"].values
    edges = step_edges(steps)
    if _of_layers_alone(history) and steps.size > 1:
        edges[-1] = steps[-1] + np.diff(steps).min() / 2
    return edges


def _name_records(ax: Axes, history: xr.Dataset) -> None:
    """Name the axis of steps by the records that there are of units."""
    records, last = history.attrs["unit_records"], int(history["step"].values[-1])
    alone = f"; step {last}: of layers alone" if _of_layers_alone(history) else ""
    ax.set_xlabel(f"optimizer step (n = {plural(records, 'record')} of units{alone})")
    ax.set_xlim(right=_edges(history)[-1])


def _bands(ax: Axes, history: xr.Dataset) -> None:
    edges = _edges(history)
    below = np.zeros(history.sizes["step"])
    for fate in ORDER:
        held = history["count"].sel(fate=fate).values.astype(np.float64)
        if not held.any():
            continue
        above = below + held
        low, high = np.append(below, below[-1]), np.append(above, above[-1])
        ax.fill_between(edges, low, high, step="post", label=WORDS[fate], linewidth=0.0, **_looks(fate))
        below = above


def _looks(fate: str) -> dict[str, Any]:
    look = style.look()
    hatched = {"facecolor": look.not_measured, "hatch": palette.HATCH}
    looks: dict[str, dict[str, Any]] = {
        "born dead": {"color": look.verdicts["bad"].color},
        "died": {"color": look.verdicts["watch"].color},
        "not finite": {"facecolor": look.not_measured, "hatch": BROKEN_HATCH, "edgecolor": look.muted},
        "silent": {**hatched, "edgecolor": look.muted},
        "not recorded": {**hatched, "edgecolor": look.line},
        "revived": {"color": look.zero},
        "alive": {"color": look.amount(0.25)},
    }
    return looks[fate]


def _limits(ax: Axes, units: int) -> None:
    for word, dashes in LIMIT_DASHES.items():
        limit = getattr(THRESHOLDS["dead_units"], word)
        if isinstance(limit, float):
            label, look = f"{word}: {limit:.0%} dead".replace("%", " %"), style.look()
            ax.axhline(limit * units, color=look.ink, linewidth=1.2, linestyle=dashes, label=label)


def _finding(history: xr.Dataset, units: int, layer: str | None) -> str:
    last = {fate: int(history["count"].sel(fate=fate).values[-1]) for fate in ORDER}
    dead, step = last["born dead"] + last["died"], int(history["step"].values[-1])
    where = f"of '{elide(layer, 40)}' " if layer is not None else ""
    of_all, when = f"of {plural(units, 'unit')} {where}", f"at step {step}"
    needed = f"fewer than the {count(history.attrs['needed_examples'])} examples it takes to call a unit dead"
    if last["silent"] and not dead:
        words = f"{count(last['silent'])} {of_all}silent {when}, on {needed}"
    else:
        words = f"{count(dead)} {of_all}dead {when}"
        words += f" ({count(last['born dead'])} from the start)" if last["born dead"] else ""
        words += f"; {count(last['silent'])} silent on {needed}" if last["silent"] else ""
    if last["revived"]:
        words += f"; {count(last['revived'])} revived"
    if last["not finite"]:
        until = history.attrs["finite_until"]
        since = f" after step {until}" if until >= 0 else ""
        broken = f"{count(last['not finite'])} {of_all}give no finite value{since}"
        words = f"{broken}; {words}" if dead or last["silent"] or last["revived"] else broken
    return f"Training batches: {words}"


def _evaluation(passes: xr.DataArray) -> str:
    last = passes.isel(step=-1)
    return f". Evaluation pass: {count(int(last))} of {count(int(last['units']))} dead at step {int(last['step'])}"
