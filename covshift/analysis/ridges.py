"""Distributions side by side: many layers at one step, or one layer at several, on one axis of values.

The atom at zero is held apart from the density, since a rectifier's half a million zeros would flatten everything
else. Means and standard deviations are the exact moments, never those of bins.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from covshift.analysis import arguments, rows
from covshift.analysis.distributions import PROBABILITIES, display_axis, quantiles, rebinned
from covshift.analysis.shift_records import View
from covshift.exceptions import InvalidArgumentError, SignalNotRecorded
from covshift.grid import VALUES

Floats = NDArray[np.float64]


def ridges(
    recording: xr.DataTree,
    *,
    layers: str | Sequence[str] | None = None,
    steps: Sequence[int] | None = None,
    signal: str = "activation",
    stream: str = "train",
    cells: int = 160,
) -> xr.Dataset:
    """Density of the values of chosen layers at chosen steps, on one display axis.

    Parameters
    ----------
    recording : DataTree
        Needs ``histograms`` and ``layers``.
    layers : str or sequence of str, optional
        All nonlinearities by default, all layers where there is none.
    steps : sequence of int, optional
        Steps with a histogram; the first and the last by default.
    signal : {"activation", "preactivation", "input"}
        Which tensor.
    stream : {"train", "evaluation", "probe"}
        Which rows.
    cells : int, default 160
        Even cells on the axis, at least 2.

    Returns
    -------
    Dataset
        ``density`` (step, layer, cell)
            Share of a tensor's finite, nonzero elements in each cell; a row sums to 1 less the shares outside.
        ``zero_share``, ``below_share``, ``above_share``, ``non_finite_share`` (step, layer)
            Shares of all elements: exactly zero, beyond either end of the axis, NaN or infinite.
        ``mean``, ``sd`` (step, layer)
            Exact moments of the finite elements.
        ``elements`` (step, layer)
            Elements counted; 0 where nothing was recorded, and then every other number is NaN.

        Coordinates ``lower`` and ``upper`` (cell) are edges in values; the attributes give ``signal``, ``scale``
        ("linear" or "symlog") and ``linear_within``, see :func:`covshift.analysis.distributions.river`. The axis holds
        the 1-99 % range of every row.

    Raises
    ------
    SignalNotRecorded
        If there are no histograms of the signal.
    InvalidArgumentError
        If a layer or step has no histogram, none is asked for, or ``cells`` is below 2.
    """
    if cells < 2:
        raise InvalidArgumentError(f"cells={cells}: expected at least 2 cells on the display axis")
    if signal not in ("activation", "preactivation", "input"):
        raise InvalidArgumentError(f"signal={signal!r}: expected 'activation', 'preactivation' or 'input'")
    view = View.of(recording, signal, stream)
    wanted = arguments.listed(layers)
    chosen = _positions("layers", _default_layers(recording, stream) if wanted is None else wanted, view.layers)
    ends = view.steps[[0, -1]] if len(view.steps) > 1 else view.steps
    at = _positions("steps", ends.tolist() if steps is None else steps, view.steps)
    counts = np.array([view.record(int(index)).counts[chosen] for index in at], dtype=np.float64)
    moments = view.moments.isel(step=at, layer=chosen)
    coords = {"step": view.steps[at], "layer": view.layers[chosen]}
    return _dataset(counts, moments, coords, cells, signal)


def _default_layers(recording: xr.DataTree, stream: str) -> list[str]:
    layers = rows.group(recording, "layers", stream=stream)
    nonlinear, names = rows.nonlinear(layers), rows.names(layers)
    return list(names[nonlinear] if nonlinear.any() else names)


def _positions(argument: str, wanted: Sequence[object], known: NDArray[np.generic]) -> NDArray[np.int64]:
    place = {value: index for index, value in enumerate(known.tolist())}
    missing = [value for value in wanted if value not in place]
    if missing or not len(wanted):
        there = ", ".join(map(str, list(place)[:8])) + (", ..." if len(place) > 8 else "")
        raise InvalidArgumentError(
            f"{argument}={list(wanted)}: {missing or 'none asked for'}: no histogram of it; there are {there or 'none'}"
        )
    return np.array([place[value] for value in wanted], dtype=np.int64)


def _dataset(
    counts: Floats, moments: xr.Dataset, coords: dict[str, NDArray[np.generic]], cells: int, signal: str
) -> xr.Dataset:
    shape = counts.shape[:2]
    flat = counts.reshape(-1, VALUES.size)
    elements = flat.sum(axis=1)
    if not elements.any():
        raise SignalNotRecorded(f"signal={signal!r}: the layers and steps asked for hold no element")
    axis = display_axis(quantiles(flat, PROBABILITIES))
    edges = axis.edges(cells)
    nonzero = flat.copy()
    nonzero[:, VALUES.zero] = 0.0
    finite = nonzero.copy()
    finite[:, [0, VALUES.nan - 1, VALUES.nan]] = 0.0
    inside = rebinned(nonzero, edges)
    below = rebinned(finite, np.array([-np.ldexp(1.0, VALUES.max_exponent), axis.low]), closed=False)[:, 0]
    total = finite.sum(axis=1)
    parts = {
        "zero_share": flat[:, VALUES.zero],
        "below_share": below,
        "above_share": np.maximum(total - below - inside.sum(axis=1), 0.0),
        "non_finite_share": flat[:, [0, VALUES.nan - 1, VALUES.nan]].sum(axis=1),
    }
    dims = ("step", "layer")
    shares = {name: (dims, rows.ratio(part, elements).reshape(shape), {"units": "1"}) for name, part in parts.items()}
    density = rows.ratio(inside, total[:, None]).reshape(*shape, cells)
    exact = {name: (dims, moments[name].transpose(*dims).values, {"units": "1"}) for name in ("mean", "sd")}
    return xr.Dataset(
        {
            "density": ((*dims, "cell"), density, {"units": "1"}),
            **shares,
            **exact,
            "elements": (dims, elements.astype(np.int64).reshape(shape), {"units": "count"}),
        },
        coords={**coords, "lower": ("cell", edges[:-1]), "upper": ("cell", edges[1:])},
        attrs={"signal": signal, "scale": axis.scale, "linear_within": axis.linear_within},
    )
