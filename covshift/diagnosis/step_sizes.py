"""What an optimizer makes of a gradient, told by lengths: whether steps grow with it, and which are lost on the way.

Recordings do not name the optimizer. Where every step is the learning rate times the gradient, or in proportion to it
while gradients differ by far more, clipping or a gradient that shrinks over depth makes small updates. Adaptive
optimizers even both out, and nothing is said of them, nor where it is not known which kind it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from covshift import schema
from covshift.analysis import gradient_health, rows, turns
from covshift.diagnosis.finding import ROOT
from covshift.diagnosis.thresholds import THRESHOLDS
from covshift.exceptions import SignalNotRecorded

Floats = NDArray[np.float64]

_SPACING = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}
"""Relative distance of neighbouring numbers, by dtype."""

_EQUAL = 0.05
"""By how much a step may differ from learning rate times gradient and still be nothing but that."""

_WIDER = 100.0
"""How many times as far gradients must differ as steps over gradients do, to show that steps grow with them: those of
adaptive optimizers do not, so that of them the two differ alike."""

_LONGEST = 100.0
"""How many times learning rate and gradient momentum makes of a step, of 0.99; longer ones are made of something else,
such as weight decay."""

_BAND = THRESHOLDS["update_ratio"]

_FAINTER = 10.0
"""How many times smaller than the largest gradient one is that accounts for a small update."""


@dataclass(frozen=True)
class StepSizes:
    """Medians of the last window, by parameter of two or more axes.

    Attributes
    ----------
    names : array of str
        The parameters.
    ratio : array
        Length of an update over that of the weight.
    due : array
        The most that could be by the learning rate and the gradient, where steps grow with it; NaN where they do not,
        or it is not known.
    unclipped : array
        The ratio, had the gradient kept its length; NaN as ``due`` is.
    gradient : array
        Length of the gradient; NaN as ``due`` is.
    notices : array
        The least ``due`` of which a part of the weight is expected to notice something, by its dtype and number of
        elements; NaN where the dtype is not known.
    """

    names: NDArray[np.str_]
    ratio: Floats
    due: Floats
    unclipped: Floats
    gradient: Floats
    notices: Floats

    @classmethod
    def of(cls, recording: xr.DataTree) -> StepSizes:
        """Step sizes of a recording; of none if it holds no parameters."""
        try:
            parameters = rows.group(recording, "parameters")
        except SignalNotRecorded:
            return NO_STEPS
        window, gain = rows.last_window(parameters.sizes["step"]), _gain(recording, parameters)
        ratio, gradient = gradient_health.update_ratio(recording).values, _gradient(parameters)
        # Known only of optimizers whose steps grow with the gradient.
        known = np.where(np.isfinite(gain), gradient, np.nan)
        kept = np.where(np.isfinite(known), gradient_health.clip_factor(recording).values[:, None], np.nan)
        due = gain * _learning_rate(recording, parameters)[:, None] * known
        relative = rows.ratio(due, parameters["weight_norm"].values)
        matrix = parameters["parameter_ndim"].values >= 2
        now = [rows.median(values[window])[matrix] for values in (ratio, relative, rows.ratio(ratio, kept), known)]
        names, notices = rows.names(parameters, "parameter")[matrix], _notices(recording, parameters)[matrix]
        return cls(names, now[0], now[1], now[2], now[3], notices)

    @property
    def grow(self) -> bool:
        """Whether steps are known to grow with the gradient."""
        return bool(np.isfinite(self.due).any())

    @cached_property
    def lost(self) -> Mapping[str, float]:
        """What is due to each parameter that moves too little to notice: rounding leaves nothing of its updates."""
        unnoticed = (self.ratio == 0) & (self.due > 0) & (self.due < self.notices)
        return dict(zip(self.names[unnoticed].tolist(), self.due[unnoticed].tolist(), strict=True))

    @cached_property
    def clipped(self) -> frozenset[str]:
        """Owners whose updates are too small by clipping alone: without it, all of them would be well."""
        return self._owners_of_low(np.array([_BAND.verdict(ratio) == "ok" for ratio in self.unclipped], dtype=bool))

    @cached_property
    def faint(self) -> frozenset[str]:
        """Owners whose updates are too small with gradients ten times smaller than the largest, or smaller yet.

        What does not move at all may have no optimizer, so it is among them only where its updates are lost.
        """
        moves = (self.ratio > 0) | np.isin(self.names, list(self.lost))
        return self._owners_of_low(moves & (self.gradient * _FAINTER <= self.gradient.max(initial=0, where=self._has)))

    @property
    def strongest(self) -> str:
        """Owner of the parameter with the largest gradient; empty where none is known."""
        return owner(str(self.names[np.where(self._has, self.gradient, 0).argmax()])) if self._has.any() else ""

    @property
    def _has(self) -> NDArray[np.bool_]:
        return np.asarray(self.gradient > 0)

    def _owners_of_low(self, holds: NDArray[np.bool_]) -> frozenset[str]:
        """Owners of parameters whose updates are too small, if of all of these something ``holds``."""
        low = np.array([_BAND.falls_short(ratio) for ratio in self.ratio], dtype=bool)
        owners = np.array([owner(name) for name in self.names.tolist()], dtype=str)
        return frozenset(owners[low & holds].tolist()) - frozenset(owners[low & ~holds].tolist())


_NONE = np.zeros(0)
NO_STEPS = StepSizes(np.zeros(0, dtype=str), _NONE, _NONE, _NONE, _NONE, _NONE)
"""Of a recording without parameters."""


def owner(parameter: str) -> str:
    """Module that holds a parameter.

    Examples
    --------
    >>> owner("block.0.weight"), owner("table")
    ('block.0', '(root)')
    """
    return parameter.rpartition(".")[0] or ROOT


def dtype(recording: xr.DataTree, parameter: str) -> str:
    """Name of the dtype of a parameter; empty where it is not known."""
    module = schema.attribute(recording.attrs, "covshift_model", {}).get(owner(parameter), "")
    forms = dict(word.partition("=")[::2] for word in module.split(" ")[1:])
    return str(forms.get(parameter.rpartition(".")[2], "").partition("[")[0])


def _notices(recording: xr.DataTree, parameters: xr.Dataset) -> Floats:
    """An update, relative to the weight, below which not one of its elements is expected to be near enough to 0.

    Of n elements spread evenly about 0, the share within t of their length is about t, and one of them notices what is
    more than a quarter of the spacing of its dtype at the least.
    """
    spacing = [_SPACING.get(dtype(recording, name), np.nan) for name in rows.names(parameters, "parameter").tolist()]
    return rows.ratio(np.array(spacing), 4.0 * parameters["parameter_size"].values)


def _gain(recording: xr.DataTree, parameters: xr.Dataset) -> float:
    """By how much steps exceed learning rate times gradient at most; NaN where they do not grow with it, or unknown.

    Told by all parameters that moved. Momentum makes steps longer than the gradient's, alike for all parameters.
    """
    if turns.kinds(recording, parameters["step"].values).any():
        return np.nan
    gradient, update = _gradient(parameters), parameters["update_norm"].values
    steps = np.where(update > 0, rows.ratio(update, _learning_rate(recording, parameters)[:, None] * gradient), np.nan)
    size = np.sqrt(parameters["parameter_size"].values)
    gains, sizes = rows.median(steps), rows.median(np.where(np.isfinite(steps), gradient / size, np.nan))
    moved = np.isfinite(gains) & (sizes > 0)
    if not moved.any():
        return np.nan
    gains, sizes = gains[moved], sizes[moved]
    is_plain = abs(np.median(gains) - 1) <= _EQUAL and gains.max() <= 1 + _EQUAL
    grows = sizes.max() / sizes.min() >= _WIDER * gains.max() / gains.min()
    return float(gains.max()) if is_plain or (grows and gains.max() <= _LONGEST) else np.nan


def _gradient(parameters: xr.Dataset) -> Floats:
    return np.where(parameters["gradient_measured"].values > 0, parameters["gradient_norm"].values, np.nan)


def _learning_rate(recording: xr.DataTree, parameters: xr.Dataset) -> Floats:
    """The one logged at each record of parameters; NaN where none was."""
    steps = parameters["step"].values
    try:
        scalars = rows.group(recording, "scalars")
    except SignalNotRecorded:
        return np.full(len(steps), np.nan)
    if "learning_rate" not in scalars:
        return np.full(len(steps), np.nan)
    return np.asarray(scalars["learning_rate"].reindex(step=steps).values, dtype=np.float64)
