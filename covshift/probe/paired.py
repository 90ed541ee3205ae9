"""Paired movement: what changed between two states on the same examples, with intervals over examples.

The same examples at both states differ by the weights alone, so a difference is taken example by example and its error
is that of the differences. Examples are resampled, never positions: positions of one example are no independent
observations. See docs/concepts/probe.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import nn

from covshift.exceptions import InvalidArgumentError
from covshift.instrument import sites
from covshift.instrument.hooks import inside_backward
from covshift.probe.batch import as_batch
from covshift.probe.state import SEED, visiting
from covshift.probe.states import State, TwoStates

Floats = NDArray[np.float64]

FEWEST = 2
"""Examples below which there is no interval."""


def paired_movement(
    model: nn.Module,
    batch: Any,
    *,
    before: State,
    after: State | None = None,
    mode: str = "eval",
    layers: sites.Selection | list[sites.Selection] | None = None,
    example_axis: int = 0,
    level: float = 0.95,
    resamples: int = 999,
) -> xr.Dataset:
    """How far every layer's and unit's output moves between two states, paired by example.

    Parameters
    ----------
    model, batch, before, after, mode
        As for :func:`covshift.probe.shift_attribution`. In training mode Batch Normalization makes the examples of a
        batch depend on one another, and intervals over examples are only approximate.
    layers : None, str, re.Pattern, type, callable, or list of these
        Modules without children to compare, as for :func:`covshift.record`, which says what None and "*" take.
    example_axis : int, default 0
        Axis of the model's first input that counts examples.
    level : float, default 0.95
        Of the percentile bootstrap intervals.
    resamples : int, default 999
        Resamples of the examples, the same for all layers.

    Returns
    -------
    Dataset
        Dims ``layer`` and ``unit`` (all units of all layers in a row; coordinates ``layer_index`` and
        ``unit_in_layer``), with h and h' the outputs before and after and sd a unit's standard deviation of h:

        ``movement`` (layer)
            Mean over examples of an example's root mean square of (h' - h) / sd over units and positions; >= 0.
        ``mean_shift`` (unit)
            Mean of (h' - h) / sd.
        ``standard_error``, ``unpaired_standard_error`` (unit)
            Of ``mean_shift``, from the differences; and what it would be if the two passes had different examples.
        ``movement_low``, ``movement_high``, ``mean_shift_low``, ``mean_shift_high``
            Bootstrap intervals over examples.

        Units constant before (sd 0) are NaN and left out of ``movement``. Intervals and errors are NaN with fewer than
        two examples. A percentile interval of few examples is too short: at 20 normal examples it covers about 0.92
        for 0.95.

    Raises
    ------
    InvalidArgumentError
        If an argument cannot be used, or no layer has an output with one entry for each example on its example axis.
    ProbeUnsupported
        If the model cannot be probed.
    """
    given = as_batch(model, batch)
    if not 0 < level < 1:
        raise InvalidArgumentError(f"level={level!r}: expected a number between 0 and 1")
    if isinstance(resamples, bool) or not isinstance(resamples, int) or resamples < 1:
        raise InvalidArgumentError(f"resamples={resamples!r}: expected a whole number from 1")
    examples = _examples(given.inputs, example_axis)
    with visiting(model, mode=mode, graph=False, tensors=given.tensors) as visit:
        states = TwoStates(model, before, after)
        passes = []
        for state in (states.before, states.after):
            visit.rewind()
            states.load(state)
            with _outputs_of(visit.model, sites.select(visit.model, layers), examples) as outputs:
                given.output(visit.model)
            passes.append(outputs)
    first, second = passes
    common = [name for name, h in first.items() if name in second and second[name].shape == h.shape]
    if not common:
        raise InvalidArgumentError(
            f"model: no chosen layer has an output with {examples} examples on its example axis at both states"
        )
    weights = _resampled(examples, resamples)
    return _dataset({name: _Layer(first[name], second[name], weights, level) for name in common})


def _examples(inputs: Any, axis: int) -> int:
    shapes = [tuple(tensor.shape) for _, tensor in sites.leaves(inputs)]
    if not shapes or not -len(shapes[0]) <= axis < len(shapes[0]):
        raise InvalidArgumentError(f"example_axis={axis!r}: the first input has shape {shapes[0] if shapes else ()}")
    return int(shapes[0][axis])


@contextmanager
def _outputs_of(model: nn.Module, chosen: dict[int, str], examples: int) -> Iterator[dict[str, Floats]]:
    """Outputs of chosen modules without children, arranged as (example, unit, position), by call."""
    outputs: dict[str, Floats] = {}
    names = {m: name or sites.ROOT for name, m in model.named_modules() if sites.is_leaf(m) and id(m) in chosen}
    repeats: dict[str, int] = {}

    def after(module: nn.Module, args: Any, output: Any) -> None:
        if inside_backward():
            return
        name = names[module]
        k = repeats[name] = repeats.get(name, -1) + 1
        for path, tensor in sites.leaves(output):
            unit_axis, example_axis = sites.axes(module, tensor, None)
            fits = tensor.is_floating_point() and tensor.ndim > 1 and tensor.shape[example_axis] == examples
            # The last state of a recurrent layer is (layers, examples, units).
            fits = fits and not (isinstance(module, nn.RNNBase) and path.startswith("1"))
            if fits and unit_axis != example_axis:
                label = (f"{name}#{k}" if k else name) + (f":{path}" if path else "")
                arranged = tensor.detach().movedim((example_axis, unit_axis), (0, 1)).cpu().to(torch.float64, copy=True)
                outputs[label] = arranged.reshape(*arranged.shape[:2], -1).numpy()

    handles = [module.register_forward_hook(after) for module in names]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def _resampled(examples: int, resamples: int) -> Floats:
    """Weights of the examples in each resample, shape (resamples, examples), rows summing to 1."""
    rng = np.random.default_rng(SEED)
    weights: Floats = rng.multinomial(examples, np.full(examples, 1 / examples), size=resamples) / examples
    return weights


class _Layer:
    """Numbers of one layer from its outputs before and after, (example, unit, position)."""

    def __init__(self, h: Floats, later: Floats, weights: Floats, level: float) -> None:
        sd = h.std(axis=(0, 2))
        # The sd of a constant may be a rounding error above 0.
        sd[h.min(axis=(0, 2)) == h.max(axis=(0, 2))] = np.nan
        scaled = (later - h) / sd[:, None]
        paired = scaled.mean(axis=2)
        self.mean_shift = paired.mean(axis=0)
        self.mean_shift_low, self.mean_shift_high = _interval(paired, weights, level)
        self.standard_error = _standard_error(paired)
        self.unpaired_standard_error = np.hypot(
            _standard_error(h.mean(axis=2) / sd), _standard_error(later.mean(axis=2) / sd)
        )
        varies = ~np.isnan(sd)
        moved = np.sqrt((scaled[:, varies] ** 2).mean(axis=(1, 2))) if varies.any() else np.full(len(h), np.nan)
        self.movement = float(moved.mean())
        low, high = _interval(moved[:, None], weights, level)
        self.movement_low, self.movement_high = float(low[0]), float(high[0])


def _standard_error(values: Floats) -> Floats:
    """Of the mean over examples, axis 0."""
    if len(values) < FEWEST:
        return np.full(values.shape[1], np.nan)
    error: Floats = values.std(axis=0, ddof=1) / math.sqrt(len(values))
    return error


def _interval(values: Floats, weights: Floats, level: float) -> tuple[Floats, Floats]:
    """Percentile bootstrap interval of the mean over examples, axis 0."""
    if len(values) < FEWEST:
        return np.full(values.shape[1], np.nan), np.full(values.shape[1], np.nan)
    means = weights @ values
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high


_MEANINGS = {
    "movement": "mean over examples of the rms movement of an example, in sds before",
    "movement_low": "lower end of the interval of movement",
    "movement_high": "upper end of the interval of movement",
    "mean_shift": "mean movement of the unit, in sds before",
    "mean_shift_low": "lower end of the interval of mean_shift",
    "mean_shift_high": "upper end of the interval of mean_shift",
    "standard_error": "standard error of mean_shift, from differences within examples",
    "unpaired_standard_error": "standard error of mean_shift if the passes had different examples",
}


def _dataset(rows: dict[str, _Layer]) -> xr.Dataset:
    data: dict[str, Any] = {}
    for name, meaning in _MEANINGS.items():
        values = [getattr(row, name) for row in rows.values()]
        attrs = {"long_name": meaning, "units": "1"}
        by_layer = name.startswith("movement")
        data[name] = ("layer", values, attrs) if by_layer else ("unit", np.concatenate(values), attrs)
    counts = [len(row.mean_shift) for row in rows.values()]
    coords = {
        "layer": list(rows),
        "layer_index": ("unit", np.repeat(np.arange(len(counts)), counts)),
        "unit_in_layer": ("unit", np.concatenate([np.arange(count) for count in counts])),
    }
    return xr.Dataset(data, coords)
