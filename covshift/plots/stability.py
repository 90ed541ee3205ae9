"""Stability evidence: whether operating points have settled, since when, and how sure that is."""

from __future__ import annotations

from collections import Counter

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from covshift.analysis.arguments import demand_result
from covshift.diagnosis.finding import of_layers
from covshift.diagnosis.operating_rules import unmeasured
from covshift.diagnosis.wording import between, plural
from covshift.exceptions import InvalidArgumentError
from covshift.plots import style
from covshift.plots.axes import key_of_figure, label_layers, layer_height, mark_edge, title, unlabel_rows, wrapped
from covshift.plots.labels import amount, elide, short_names

FloatArray = NDArray[np.float64]

STATES = {"STABLE": "ok", "DRIFTING": "watch", "FROZEN": "watch", "UNDETERMINED": "not measured"}
"""Verdict word of every state, whose mark it gets."""

PARTS = {"location": "drift of location, sd", "scale": "drift of ln sd"}
"""What drifts, and in which unit."""

SHAPE = "change of distribution, sd"
"""The third test, between the ends of the window: it has a size but no direction."""

BULK, LEAST_MARGINS, MOST_MARGINS = 0.9, 2.5, 20.0
"""Share of the drifts that a drift axis holds, and how many margins it spans at least and at most either side."""


def plot_stability(
    stability: xr.Dataset, history: xr.Dataset | None = None, *, layer: str | None = None, ax: style.Target = None
) -> Figure | SubFigure:
    """Draw the drift of operating points against the bound, and the step from which on they were settled.

    Parameters
    ----------
    stability : Dataset
        From :func:`covshift.analysis.operating_point.stability`, dims ``(layer,)``.
    history : Dataset, optional
        From :func:`covshift.analysis.stability_history.stability_history`, dims ``(end, layer)``; needed for one layer.
    layer : str, optional
        Draw this layer's drift over windows that end at earlier and earlier steps; all layers at the end by default.
    ax : Axes, Figure or SubFigure, optional
        Where to draw; a new figure by default.

    Returns
    -------
    Figure or SubFigure
        For all layers four Axes that share their rows: drift of location and of scale and change of the distribution
        over the last window, each with its 90 % interval against the band of the margin, and the settled step with its
        range. The title says by which of these, or by the active mass, layers drift. For one layer two Axes:
        the drifts over the steps at which windows end, with the settled step as a line. The mark of a layer is that of
        its state's verdict; arrows on an edge are drifts beyond the axis. The title has the word.

    Raises
    ------
    InvalidArgumentError
        If ``layer`` is not in the result, or its history was not given.
    """
    demand_result("stability", stability, ("state",), of="covshift.operating_point.stability")
    with style.context():
        if layer is not None:
            return _of_one(stability, history, layer, ax)
        height = layer_height(stability.sizes["layer"], least=3.2)
        figure = style.figure_on(ax, width=12.4, height=height)
        axes = style.panels(figure, 4, sharey=True)
        for panel, part in zip(axes[:2], PARTS, strict=True):
            _drifts(panel, stability, part)
        _changes(axes[2], stability)
        _settled(axes[3], stability)
        # A panel that only says why it is empty has no rows, and names beside it would take no part in the layout.
        drawn = [panel for panel in axes if panel.axison]
        if drawn and stability.sizes["layer"]:
            label_layers(drawn[0], stability["layer"].values)
            drawn[0].tick_params(axis="y", labelleft=True)
        for panel in drawn[1:]:
            unlabel_rows(panel)
        key_of_figure(figure, [*_state_keys(stability, why=_why(stability)), _band_key()])
        _headline(figure, _finding(stability), width=148)
    return figure


def _headline(figure: Figure | SubFigure, text: str, *, width: int) -> None:
    words = wrapped(text, width=width)
    figure.suptitle(words, x=0.01, ha="left", fontsize=10, fontweight="bold", parse_math=False)


def _drifts(ax: Axes, stability: xr.Dataset, part: str) -> None:
    drift, low, high = (stability[f"{part}_{name}"].values for name in ("drift", "low", "high"))
    margin = float(stability.attrs[f"{part}_margin"])
    if not np.isfinite(drift).any():
        style.message(ax, f"{PARTS[part]}: not measured ({_why(stability) or 'not known of any layer'})")
        return
    reach = _reach(drift, margin)
    _band(ax, margin, along="x")
    rows = np.arange(drift.size)
    look = style.look()
    ax.hlines(rows, np.clip(low, -reach, reach), np.clip(high, -reach, reach), color=look.muted, linewidth=0.9)
    _state_marks(ax, np.clip(drift, -reach, reach), rows, stability["state"].values)
    for beyond, edge, marker in ((drift < -reach, 0.0, "<"), (drift > reach, 1.0, ">")):
        mark_edge(ax, rows[beyond], edge=edge, marker=marker, along="y", label="_beyond")
    ax.set_xlim(-reach, reach)
    ax.set_xlabel(PARTS[part])
    ax.grid(axis="x")


def _changes(ax: Axes, stability: xr.Dataset) -> None:
    change, low, high = (stability[f"shape_{name}"].values for name in ("shift", "low", "high"))
    margin = float(stability.attrs["location_margin"])
    if not np.isfinite(change).any():
        broken = stability["broken"].values[of_layers(stability["layer"].values.tolist())]
        why = _why(stability) if broken.all() else "no histograms of known sampling noise in the window"
        style.message(ax, f"{SHAPE}: not measured ({why})")
        return
    reach = _reach(change, margin)
    ax.axvspan(0.0, margin, color=style.look().target, alpha=0.1, linewidth=0)
    ax.axvline(margin, color=style.look().target, linewidth=0.9, linestyle=(0, (4, 2)), label="_margin")
    rows = np.arange(change.size)
    ax.hlines(rows, np.minimum(low, reach), np.minimum(high, reach), color=style.look().muted, linewidth=0.9)
    _state_marks(ax, np.minimum(change, reach), rows, stability["state"].values)
    mark_edge(ax, rows[change > reach], edge=1.0, marker=">", along="y", label="_beyond")
    ax.set_xlim(-0.04 * reach, reach)
    ax.set_xlabel(SHAPE)
    ax.grid(axis="x")


def _reach(drift: FloatArray, margin: float) -> float:
    """Half-width of a drift axis: the bulk of the drifts and the margin."""
    bulk = float(np.nanquantile(np.abs(drift), BULK)) * 1.3
    return float(np.clip(bulk, LEAST_MARGINS * margin, MOST_MARGINS * margin))


def _band(ax: Axes, margin: float, *, along: str) -> None:
    """The band inside which a drift counts as none, and its two ends."""
    span, line = (ax.axvspan, ax.axvline) if along == "x" else (ax.axhspan, ax.axhline)
    span(-margin, margin, color=style.look().target, alpha=0.1, linewidth=0)
    for end in (-margin, margin):
        line(end, color=style.look().target, linewidth=0.9, linestyle=(0, (4, 2)), label="_margin")


def _band_key() -> Line2D:
    return Line2D([], [], color=style.look().target, linestyle=(0, (4, 2)), label="margin")


def _state_marks(ax: Axes, x: FloatArray, y: NDArray[np.generic], states: NDArray[np.generic]) -> None:
    for state, verdict in STATES.items():
        mark, chosen = style.look().verdicts[verdict], np.asarray(states == state)
        face = "none" if state in ("UNDETERMINED", "FROZEN") else mark.color
        ax.plot(
            x[chosen],
            y[chosen],
            linestyle="",
            marker="D" if state == "FROZEN" else mark.marker,
            markersize=4.2 if x.size <= 60 else 2.8,
            color=mark.color,
            markerfacecolor=face,
            label=f"_{state}",
            zorder=3,
        )


def _state_keys(stability: xr.Dataset, *, why: str) -> list[Line2D]:
    """A key for every state there is; ``why`` no state was measured, empty where one was."""
    keys = []
    words = {"UNDETERMINED": "not measured"} if why else {}
    for state, verdict in STATES.items():
        if (stability["state"].values == state).any():
            mark = style.look().verdicts[verdict]
            face = "none" if state in ("UNDETERMINED", "FROZEN") else mark.color
            marker = "D" if state == "FROZEN" else mark.marker
            look = {"color": mark.color, "markerfacecolor": face, "markersize": 4.2}
            keys.append(Line2D([], [], linestyle="", marker=marker, label=words.get(state, state.lower()), **look))  # type: ignore[arg-type]
    return keys


def _settled(ax: Axes, stability: xr.Dataset) -> None:
    step, low, high = (stability[f"settled_{name}"].values.astype(float) for name in ("step", "low", "high"))
    rows = np.arange(step.size)
    known = step >= 0
    if not known.any():
        why = _why(stability)
        style.message(ax, f"settled step: {f'not measured ({why})' if why else 'none (no layer is stable)'}")
        return
    ends = np.array([np.where(low >= 0, low, step), np.where(high >= 0, high, step)])
    ax.hlines(rows[known], *np.sort(ends[:, known], axis=0), color=style.look().muted, linewidth=0.9)
    _state_marks(ax, np.where(known, step, np.nan), rows, stability["state"].values)
    start, end = float(stability.attrs["window_start"]), float(stability.attrs["window_end"])
    ax.axvspan(start, end, color=style.look().line, alpha=0.5, linewidth=0, zorder=0)
    ax.text(end, 1.0, "window", transform=ax.get_xaxis_transform(), ha="right", va="bottom", fontsize=7)
    ax.set_xlim(min(0.0, float(ends[:, known].min())) - 0.02 * end, end + 0.02 * max(end, 1.0))
    ax.set_xlabel("settled since optimizer step")
    ax.grid(axis="x")


def _why(stability: xr.Dataset) -> str:
    """Why the state of no layer is measured; empty where that of any is. The model's input is no layer."""
    return unmeasured(stability.isel(layer=of_layers(stability["layer"].values.tolist())))


def _finding(stability: xr.Dataset) -> str:
    layers = of_layers(stability["layer"].values.tolist())
    window = f"(window: steps {stability.attrs['window_start']}-{stability.attrs['window_end']})"
    if layers and (why := _why(stability)):
        return f"Whether {plural(len(layers), 'layer')} settled is not measured: {why} {window}"
    given = {str(at["layer"].values): str(at["state"].values).lower() for at in _inputs(stability, layers)}
    stability = stability.isel(layer=layers)
    counts = Counter(str(state) for state in stability["state"].values)
    total = plural(stability.sizes["layer"], "layer")
    settled = stability["settled_step"].values[stability["state"].values == "STABLE"]
    words = [f"{counts['STABLE']} of {total} stable"]
    if (settled >= 0).any():
        words[0] += f", the last since step {int(settled.max())}"
    by = {"DRIFTING": _drifts_by(stability)}
    words += [
        f"{counts[state]} {state.lower()}{by.get(state, '')}" for state in STATES if state != "STABLE" and counts[state]
    ]
    words += [f"{name} {state}" for name, state in given.items()]
    return f"{'; '.join(words)} {window}"


def _drifts_by(stability: xr.Dataset) -> str:
    """How many layers drift by which test: a layer may lie inside the margins of all the others."""
    tests = Counter(test for by in stability["drifts_by"].values for test in str(by).split(", ") if test)
    return f" ({', '.join(f'{test}: {number}' for test, number in tests.items())})" if tests else ""


def _inputs(stability: xr.Dataset, layers: list[int]) -> list[xr.Dataset]:
    """What belongs to the model's input, which is no layer."""
    return [stability.isel(layer=at) for at in range(stability.sizes["layer"]) if at not in layers]


def _of_one(stability: xr.Dataset, history: xr.Dataset | None, layer: str, ax: style.Target) -> Figure | SubFigure:
    if layer not in stability["layer"].values or history is None or layer not in history["layer"].values:
        there = ", ".join(short_names(stability["layer"].values)[:8]) or "none"
        raise InvalidArgumentError(f"layer={layer!r}: expected a layer of both results; there are {there}")
    figure = style.figure_on(ax, width=8.4, height=3.8)
    at, past = stability.sel(layer=layer), history.sel(layer=layer)
    why = unmeasured(stability.sel(layer=[layer])) if bool(at["broken"]) else _why(stability)
    for panel, part in zip(style.panels(figure, 2), PARTS, strict=True):
        _course(panel, past, part, float(stability.attrs[f"{part}_margin"]), int(at["settled_step"]))
        if not np.isfinite(past[f"{part}_drift"].values).any():
            style.message(panel, f"{PARTS[part]}: not measured ({why or 'not known of this layer'})")
    lines = {str(line.get_label()): line for panel in figure.get_axes() for line in panel.get_lines()}
    keys = [line for label, line in lines.items() if not label.startswith("_")]
    key_of_figure(figure, [*keys, *_state_keys(past, why=why), _band_key()])
    name = elide(layer, 40)
    _headline(figure, f"Whether '{name}' settled is not measured: {why}" if why else _word(at, layer), width=92)
    return figure


def _course(ax: Axes, past: xr.Dataset, part: str, margin: float, settled: int) -> None:
    drift, low, high = (past[f"{part}_{name}"].values for name in ("drift", "low", "high"))
    ends, look = past["end"].values, style.look()
    if not np.isfinite(drift).any():
        return
    reach = _reach(drift, margin)
    _band(ax, margin, along="y")
    ax.fill_between(
        ends, np.clip(low, -reach, reach), np.clip(high, -reach, reach), color=look.second, alpha=0.25, linewidth=0
    )
    ax.plot(ends, np.clip(drift, -reach, reach), color=look.second, label="drift")
    _state_marks(ax, ends.astype(float), np.clip(drift, -reach, reach), past["state"].values)
    for beyond, edge, marker in ((drift < -reach, 0.0, "v"), (drift > reach, 1.0, "^")):
        mark_edge(ax, ends[beyond], edge=edge, marker=marker, along="x", label="_beyond")
    if settled >= 0:
        ax.axvline(settled, color=look.accent, linewidth=1.1, label=f"settled since step {settled}")
    ax.set_ylim(-reach, reach)
    ax.set_xlabel("last optimizer step of the window")
    ax.set_ylabel(PARTS[part])
    ax.grid(axis="y")
    title(ax, f"90 % interval, margin ±{amount(margin)}", size=9.0)


def _word(at: xr.Dataset, layer: str) -> str:
    state, settled = str(at["state"].item()), int(at["settled_step"])
    since = f" since step {settled}" if settled >= 0 else ""
    by = f" by {at['drifts_by'].item()}" if at["drifts_by"].item() else ""
    drift = f"'{elide(layer, 40)}' is {state.lower()}{by}{since}"
    if not np.isfinite(float(at["location_drift"])):
        return f"{drift}; its drift could not be measured"
    interval = between((float(at["location_low"]), float(at["location_high"])))
    number = amount(float(at["location_drift"]))
    return f"{drift}: location drifts by {number} sd over the last window {interval}"
