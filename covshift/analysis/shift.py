"""How far every layer's distribution moved, between steps of a run or between two runs, against its noise floor.

Two records differ even where nothing moved, because they saw different examples. Every comparison here therefore
comes with the size that sampling alone would give, estimated from example groups (never from elements or positions,
which are dependent), and with a distance from which that part has been subtracted. Whether anything moved at all is
tested over at least ten disjoint pairs of records. A distance says that a layer moved, not that the movement does harm.

References
----------
S. Ioffe & C. Szegedy, Batch Normalization (2015), for the notion; the noise-corrected distance and its calibration are
described in docs/concepts/shift.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from covshift.analysis import divergence, inference, shift_windows, turns
from covshift.analysis.distribution_functions import Gap, in_blocks
from covshift.analysis.shift_records import Record, View
from covshift.analysis.shift_windows import CRAMER_OF_SMALL_SHIFT
from covshift.analysis.unit_shift import between_units
from covshift.exceptions import InvalidArgumentError
from covshift.grid import Grid

__all__ = ["CRAMER_OF_SMALL_SHIFT", "between_runs", "between_steps", "between_units", "equivalent_interval"]

Floats = NDArray[np.float64]

_UNITS = {
    "w1": "sd of the reference",
    "w1_of_moments": "sd of the reference",
    "ks": "1",
    "energy": "root of sd of the reference",
    "js": "nat",
    "smd": "pooled sd",
    "log_var_ratio": "1",
    "u": "sd of the reference",
    "u_noise": "sd of the reference",
    "equivalent_shift": "sd of the reference",
    "noise_floor": "sd of the reference",
    "off_centre": "1",
    "n_examples": "count",
}


def between_steps(
    recording: xr.DataTree,
    *,
    reference: Literal["previous", "first"] | int | tuple[int, int] = "previous",
    signal: str = "activation",
    stream: str = "train",
    same_examples: bool = False,
    pairs_per_window: int = inference.MIN_PAIRS,
    js: bool = True,
) -> xr.Dataset:
    """Distance of every layer's distribution from the one at a reference step.

    Parameters
    ----------
    recording : DataTree
        Needs the groups ``layers`` and ``histograms``.
    reference : {"previous", "first"}, int or (int, int), default "previous"
        Compare with the histogram before (where optimizers take turns, that of the same one's turn before), with the
        first, with the one at this step, or with all from the first to the last of two steps pooled.
    signal : str, default "activation"
        One of :data:`covshift.schema.SIGNALS`. Gradients are recorded without example groups, so for them everything
        that needs the sampling noise is NaN.
    stream : {"train", "evaluation", "probe"}
        Which rows.
    same_examples : bool, default False
        State that every record saw the same examples, such as evaluation passes over one set. There is no sampling
        noise then: ``u`` is the plain distance, ``u_noise`` and ``noise_floor`` are 0, and nothing is tested.
    pairs_per_window : int, default 10
        Disjoint pairs that one p-value pools, at least 10.
    js : bool, default True
        Whether to compute ``js``, which no rule and no figure asks for and which takes a sixth of the time.

    Returns
    -------
    Dataset
        Dims ``(step, layer)``; the steps are those of the histograms, which may be fewer than those of the moments.
        NaN where either side was not recorded, where the reference's standard deviation is 0, and at the reference
        itself (for ``"previous"``: the first step). Distances are in standard deviations of the reference.

        ``w1``, ``ks``, ``js``
            See :mod:`covshift.analysis.divergence`. They include sampling noise; ``js`` is for display only.
        ``energy``
            Energy distance ``sqrt(2 int (F - G)^2 dx / sd)``, sampling noise included.
        ``smd``
            Standardised mean difference, ``(mean - mean_ref) / sqrt((var + var_ref) / 2)``, signed.
        ``log_var_ratio``
            ``ln(var / var_ref)``; NaN where either is 0.
        ``w1_of_moments``
            ``w1`` of two normals with the exact means and variances: the stand-in where ``off_centre``.
        ``u``
            Noise-corrected squared Cramer distance; unbiased, hence negative at times.
        ``u_noise``
            What was subtracted: the part of the squared Cramer distance that sampling adds. Too high where
            ``noise_known`` is False.
        ``equivalent_shift``
            The shift of mean, in sd, at which two normals have this ``u``: ``sqrt(2 sqrt(pi) max(u, 0))``. Understated
            above about 2 sd.
        ``noise_floor``
            The ``w1`` that sampling alone would typically give. Too high where ``noise_known`` is False.
        ``noise_known``
            False under batch norm in training mode, here or at a lower depth, which normalises the example groups
            together, and where a side has fewer than two groups of examples. ``u`` and ``equivalent_shift`` are no
            evidence there.
        ``off_centre``
            Whether the bins are too wide to resolve a shift: ``|mean| / sd`` of either side exceeds 8, or so many
            elements are below 2^-24 or above 2^16 in size, the range of the bins of values, that distances could be
            off by 0.05 sd. ``smd``, ``log_var_ratio`` and ``w1_of_moments``, which come from exact moments, still hold
            there.
        ``n_examples``
            Examples behind the smaller side.

        Dims ``(window, layer)``, windows of disjoint pairs of consecutive histograms, with the coordinates
        ``window_start`` and ``window_end`` (steps) and ``pairs``:

        ``p``
            That nothing moved within any pair, by relabelling example groups. NaN (not measured) with fewer than 10
            pairs, under a reference other than ``"previous"``, with ``same_examples``, and where the noise is unknown.
        ``p_holm``, ``q``
            The same adjusted over the layers of the window: Holm's for a statement about the run, Benjamini and
            Hochberg's for the list of layers.
        ``pooled_shift``
            Equivalent shift of the mean ``u`` of the pairs.

        The attribute ``finite_until`` is the last of the steps at which any layer gave a finite element, -1 for none.

    Raises
    ------
    InvalidArgumentError
        If ``reference`` is neither a word above nor a step with a histogram, a window holds none, or
        ``pairs_per_window`` is below 10.
    SignalNotRecorded
        If the signal or the histograms were not recorded.
    """
    if pairs_per_window < inference.MIN_PAIRS:
        raise InvalidArgumentError(f"pairs_per_window={pairs_per_window}: expected at least {inference.MIN_PAIRS}")
    view = View.of(recording, signal, stream)
    anchor = _anchor(reference, view)
    testing = anchor is None and not same_examples
    named = [name for name in (*_UNITS, "noise_known") if js or name != "js"]
    blank = dict.fromkeys(named, np.full(len(view.layers), np.nan))
    kind = turns.kinds(recording, view.steps, stream=stream)
    left = turns.left(kind)
    compared, tables = [], []
    for index, (before, now) in enumerate(_pairs(view, anchor, kind)):
        compared.append(
            blank if before is None else distances(before, now, view.grid, same_examples=same_examples, js=js)
        )
        # Counted from the end, so that the last pair holds the last record.
        if testing and before is not None and left[index] % 2:
            tables.append(shift_windows.relabelled(before, now, view.grid))
    columns = {name: np.array([row[name] for row in compared]).reshape(len(compared), -1) for name in blank}
    steps = _dataset(columns, {"step": view.steps, "layer": view.layers})
    tested = shift_windows.windows(tables, view, pairs_per_window=pairs_per_window if testing else 0)
    finite = view.steps[(view.moments["n"] > 0).any("layer").values]
    return steps.merge(tested).assign_attrs(finite_until=int(finite[-1]) if len(finite) else -1)


def between_runs(
    a: xr.DataTree,
    b: xr.DataTree,
    *,
    step: int | None = None,
    signal: str = "activation",
    stream: str = "train",
) -> xr.Dataset:
    """Distance of run ``b`` from run ``a``, layer by layer, at one step.

    Parameters
    ----------
    a, b : DataTree
        ``a`` is the reference. Layers are matched by name; those that only one run has are left out.
    step : int, optional
        A step at which both have histograms; the last such step by default.
    signal, stream : str
        As :func:`between_steps`.

    Returns
    -------
    Dataset
        Dims ``(layer,)``, the distances of :func:`between_steps`, and the scalar coordinate ``step``.

    Raises
    ------
    InvalidArgumentError
        If the runs share no step, not the one asked for, or no layer; for a gradient, also if their numbers of ranks
        put its histograms on scales that differ by no power of two.
    SignalNotRecorded
        If either run lacks the signal or histograms.
    """
    views = [View.of(run, signal, stream) for run in (a, b)]
    common = np.intersect1d(views[0].steps, views[1].steps)
    layers = [name for name in views[0].layers if name in set(views[1].layers)]
    if not len(common) or not layers:
        raise InvalidArgumentError(
            f"between_runs: the runs share {len(common)} steps with histograms and {len(layers)} layers; expected at "
            "least one of each"
        )
    chosen = int(common[-1]) if step is None else step
    if chosen not in common:
        raise InvalidArgumentError(f"step={step}: expected a step with histograms in both runs: {_some(common)}")
    records = [view.record(int(np.searchsorted(view.steps, chosen))) for view in views]
    scales = [float(view.factors[0]) for view in views]
    if scales[0] != scales[1]:
        records = [record.rescaled(scale) for record, scale in zip(records, scales, strict=True)]
    picked = [record.take(_positions(view.layers, layers)) for record, view in zip(records, views, strict=True)]
    columns = distances(picked[0], picked[1], views[0].grid)
    return _dataset(columns, {"layer": np.array(layers)}).assign_coords(step=chosen)


def equivalent_interval(square: float, noise: float, pairs: int) -> tuple[float, float]:
    """90 % interval of an equivalent shift, from the mean of ``pairs`` noise-corrected squares and their noise.

    Without a shift the 95 % point of the mean is about ``3 noise / sqrt(pairs)`` (measured for 4 example groups,
    elements of an example independent or not); a shift adds the variance ``2 square noise`` of the cross term.

    Parameters
    ----------
    square : float
        Mean squared shift, noise taken off, in sd^2; may be negative.
    noise : float
        What was taken off, in sd^2.
    pairs : int
        Comparisons averaged.

    Returns
    -------
    (float, float)
        In sd, the lower end 0 where sampling alone may explain the shift.
    """
    margin = math.sqrt((9 * noise**2 + 1.645**2 * 2 * max(square, 0.0) * noise) / pairs)
    return math.sqrt(max(square - margin, 0.0)), math.sqrt(max(square + margin, 0.0))


def _anchor(reference: object, view: View) -> tuple[set[int], Record] | None:
    """Positions and pooled record of a fixed reference; None for the previous record."""
    steps = view.steps
    if reference == "previous":
        return None
    if reference == "first":
        chosen = [0]
    elif isinstance(reference, tuple) and len(reference) == 2:
        chosen = np.flatnonzero((steps >= reference[0]) & (steps <= reference[1])).tolist()
    else:
        chosen = np.flatnonzero(steps == reference).tolist() if isinstance(reference, (int, np.integer)) else []
    if not chosen:
        raise InvalidArgumentError(
            f"reference={reference!r}: expected 'previous', 'first', a step with a histogram or two steps with "
            f"histograms between them: {_some(steps)}"
        )
    records = [view.record(index) for index in chosen]
    return set(chosen), records[0] if len(records) == 1 else Record.pooled(records, view.grid)


def _pairs(
    view: View, anchor: tuple[set[int], Record] | None, kind: NDArray[np.int64]
) -> Iterator[tuple[Record | None, Record]]:
    """Each record after its reference: without an anchor the last of its kind, see :mod:`covshift.analysis.turns`."""
    before: dict[int, Record] = {}
    for index, now in enumerate(view.records(0, len(view.steps))):
        if anchor is None:
            yield before.get(int(kind[index])), now
            before[int(kind[index])] = now
        else:
            yield (None if index in anchor[0] else anchor[1]), now


def distances(
    before: Record, now: Record, grid: Grid, *, same_examples: bool = False, js: bool = True
) -> dict[str, Floats]:
    """The distances of :func:`between_steps` between two records, each of shape ``(layer,)``."""
    scale = np.where(before.sd > 0, before.sd, np.nan)
    variances = before.sd**2 + now.sd**2
    noise, floor = before.cramer_noise + now.cramer_noise, np.hypot(before.wasserstein1_noise, now.wasserstein1_noise)
    known = before.noise_known & now.noise_known & np.isfinite(noise)
    if same_examples:
        known, noise, floor = np.ones_like(known), np.zeros_like(noise), np.zeros_like(floor)
    w1, ks, apart, spread = _of_counts(before.counts, now.counts, grid, js=js)
    u = (apart - noise) / scale
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.log(np.where(now.sd > 0, now.sd, np.nan) ** 2 / scale**2)
        smd = (now.mean - before.mean) / np.sqrt(np.where(variances > 0, variances, np.nan) / 2)
    return {
        "w1": w1 / scale,
        "w1_of_moments": divergence.normal_wasserstein1(before.mean, before.sd, now.mean, now.sd) / scale,
        "ks": ks,
        "energy": np.sqrt(2 * apart / scale),
        **({"js": spread} if js else {}),
        "smd": smd,
        "log_var_ratio": ratio,
        "u": u,
        "u_noise": noise / scale,
        "equivalent_shift": np.sqrt(np.maximum(u, 0.0) / CRAMER_OF_SMALL_SHIFT),
        "noise_floor": floor / scale,
        "off_centre": (before.is_off_centre | now.is_off_centre).astype(np.float64),
        "n_examples": np.minimum(before.n_examples, now.n_examples),
        "noise_known": known.astype(np.float64),
    }


def _of_counts(before: NDArray[Any], now: NDArray[Any], grid: Grid, *, js: bool) -> Floats:
    """W1, KS, squared Cramer distance and Jensen-Shannon divergence, shape ``(4, layer)``; NaN with an empty side.

    The divergence is NaN throughout unless asked for.
    """
    found = np.full((4, len(before)), np.nan)
    for layers in in_blocks(np.asarray(before.any(axis=1) & now.any(axis=1))):
        gap = Gap.of(before[layers], now[layers], grid)
        spread = divergence.jensen_shannon(before[layers], now[layers], grid) if js else np.nan
        for row, measure in zip(found, (gap.area, gap.largest, gap.squared_area, spread), strict=True):
            row[layers] = measure
    return found


def _dataset(columns: dict[str, Floats], coords: dict[str, NDArray[Any]]) -> xr.Dataset:
    shape = tuple(len(values) for values in coords.values())
    units = _UNITS | {"noise_known": "1"}
    dataset = xr.Dataset(
        {name: (tuple(coords), column.reshape(shape), {"units": units[name]}) for name, column in columns.items()},
        coords=coords,
    )
    return dataset.assign(
        off_centre=dataset["off_centre"] == 1.0,
        noise_known=dataset["noise_known"] == 1.0,
        n_examples=dataset["n_examples"].fillna(0).astype(np.int64).assign_attrs(units="count"),
    )


def _positions(layers: NDArray[np.str_], chosen: list[str]) -> list[int]:
    position = {name: index for index, name in enumerate(layers)}
    return [position[name] for name in chosen]


def _some(steps: NDArray[np.int64], most: int = 8) -> str:
    shown = ", ".join(str(step) for step in steps[:most])
    return f"{shown}, ... {steps[-1]}" if len(steps) > most else shown or "none"
