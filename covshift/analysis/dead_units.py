"""Units that never fire: which, since when, and how strong the evidence is.

A unit is a channel or feature of a nonlinearity; the members of one linkage are one unit, silent only when all are.
"Silent" is a statement about the examples seen. It becomes "dead" only where those examples bound the unit's firing
rate tightly, or are all there are. Evidence counts examples, never positions: the positions of one image share their
fate, and counting them would call rare units dead.

Units are recorded less often than layers. Where all that a layer gave in a record was zero, so was all of each of its
units: such a record is evidence about every unit, whether units were due or not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from covshift import schema
from covshift.analysis import rows
from covshift.analysis.unit_columns import unit_columns
from covshift.exceptions import InvalidArgumentError

DEAD_RATE = 1e-3
"""A unit silent since at least :data:`DEAD_WINDOWS` records is dead when its firing rate is bounded by this."""

DEAD_WINDOWS = 3
RARE_RATE = 0.01
"""Below this share of examples a firing unit is rare (Dohare et al., Nature 2024, count units active in < 1 %)."""

SILENCE_RATE = 0.01
"""A past silence counts as a death that ended in a revival when it bounds the firing rate by this."""

RATE_RECORDS = 10
"""Records behind the firing rate of a unit that does fire."""

_NEVER = np.iinfo(np.int64).max


def rate_upper_bound(silent_examples: ArrayLike, *, tests: int = 1, alpha: float = 0.05) -> NDArray[np.float64]:
    """One-sided upper bound on the firing rate of a unit that was silent on every example.

    ``1 - (alpha / tests) ** (1 / N)``: the exact binomial bound with Bonferroni's correction for ``tests`` units; for
    one unit about ``3 / N`` (the rule of three).

    Parameters
    ----------
    silent_examples : array_like of int
        Independent examples ``N`` without a firing, >= 0.
    tests : int, default 1
        Units looked at, among which silent ones are picked out.
    alpha : float, default 0.05
        Probability that any bound is too low.

    Returns
    -------
    ndarray of float64
        In (0, 1], the shape of ``silent_examples``; 1 for no examples.

    Raises
    ------
    InvalidArgumentError
        If ``tests`` is below 1, ``alpha`` outside (0, 1) or an entry of ``silent_examples`` negative.

    Examples
    --------
    >>> print(rate_upper_bound([299, 2995]).round(4))
    [0.01  0.001]
    """
    examples = np.asarray(silent_examples, dtype=np.float64)
    if tests < 1 or not 0 < alpha < 1 or (examples < 0).any():
        raise InvalidArgumentError(
            f"tests={tests}, alpha={alpha}, fewest silent_examples={examples.min(initial=0):g}: expected tests >= 1, "
            "0 < alpha < 1 and silent_examples >= 0"
        )
    exponent = np.divide(np.log(alpha / tests), examples, out=np.full(examples.shape, -np.inf), where=examples > 0)
    return np.asarray(-np.expm1(exponent))


def dead_units(
    recording: xr.DataTree,
    *,
    layers: Sequence[str] | None = None,
    signal: str = "activation",
    stream: str = "train",
    distinct_examples: int | None = None,
    alpha: float = 0.05,
) -> xr.Dataset:
    """State of every unit at the end of the recording, and the record behind it.

    Parameters
    ----------
    recording : DataTree
        Needs the groups ``units`` and ``layers``.
    layers : sequence of str, optional
        Look at these layers' units; all nonlinearities by default.
    signal : {"activation", "activation_grad"}
        With the gradient, "fires" reads "receives a gradient", and dead units are those that stopped learning: also
        those stuck at a constant output that is not 0.
    stream : {"train", "evaluation", "probe"}
        Which rows. An evaluation pass is a finite set of examples: silent on all of them is dead, exactly. Passes may
        repeat their examples, so those of the last one are all the evidence, however many passes there were.
    distinct_examples : int, optional
        Size of the data set the batches are drawn from: further passes over it are no further evidence. Without it
        every example seen counts.
    alpha : float, default 0.05
        Probability that any of the rate bounds is too low.

    Returns
    -------
    Dataset
        Dims ``unit`` and ``step``; coordinates ``layer``, ``unit_in_layer`` (the linkage's number for linked units)
        and ``members`` on ``unit``. Units that were never recorded are left out.

        ``silent`` (step, unit)
            No member gave anything but zero on any example of the record.
        ``examples`` (step, unit)
            Examples of the record; 0 where the unit was not recorded.
        ``silent_examples``, ``silent_records`` (unit)
            Examples (at most ``distinct_examples``; of evaluation passes those of the last) and records since the unit
            last fired: records of units, and those between them in which its whole layer was silent.
        ``rate_upper_bound`` (unit)
            Bound on its firing rate from those, see :func:`rate_upper_bound`, over all units of the result.
        ``firing_rate`` (unit)
            Share of examples on which it fired, over its last ten records; of a linkage, of its most active member.
        ``state`` (unit)
            ``"dead"``: silent for at least 3 records and the bound at most 1e-3, or silent on every example of the
            last evaluation pass. ``"silent"``: silent at the end, with less evidence. ``"rare"``: fires on under 1 %
            of examples, or silent for no longer than its own earlier rate makes likely. ``"alive"``: the rest.
        ``since_step`` (unit)
            First step of the silence of a silent or dead unit, -1 for others.
        ``born_dead`` (unit)
            Silent in every record, from the first one on.
        ``revivals``, ``revived_step`` (unit)
            Silences of at least 3 records that bound the firing rate by 1 % and ended, and the step at which the last
            of them did; -1 for none.

    Raises
    ------
    SignalNotRecorded
        If no units or no such signal were recorded, or a name in ``layers`` has no units.
    InvalidArgumentError
        If ``signal`` is another, ``distinct_examples`` below 1 or ``alpha`` outside (0, 1).
    """
    if signal not in schema.UNIT_SIGNALS:
        raise InvalidArgumentError(f"signal={signal!r}: units are recorded for {' and '.join(schema.UNIT_SIGNALS)}")
    if distinct_examples is not None and distinct_examples < 1:
        raise InvalidArgumentError(f"distinct_examples={distinct_examples}: expected a number of examples >= 1")
    activity = _activity(recording, layers, signal, stream)
    silence = _Silence.at_the_end(activity, _SilentLayers.between(recording, activity.steps, signal, stream))
    exact = stream == "evaluation"
    evidence = np.minimum(silence.examples, activity.last_examples if exact else distinct_examples or np.inf)
    bound = rate_upper_bound(evidence, tests=max(len(activity.layer), 1), alpha=alpha)
    firing = _firing_rate(activity)
    state = _states(activity, silence, bound, firing, exact=exact, alpha=alpha)
    gone = np.isin(state, ["silent", "dead"])
    revivals, revived = _revivals(activity, distinct_examples, alpha, repeated=exact)
    return xr.Dataset(
        {
            "silent": (("step", "unit"), activity.silent),
            "examples": (("step", "unit"), activity.examples),
            "silent_examples": ("unit", evidence.astype(np.int64), {"units": "count"}),
            "silent_records": ("unit", silence.records),
            "rate_upper_bound": ("unit", bound, {"units": "1"}),
            "firing_rate": ("unit", firing, {"units": "1"}),
            "state": ("unit", state),
            "since_step": ("unit", np.where(gone, silence.since_step, -1)),
            "born_dead": ("unit", gone & (silence.last_active < 0)),
            "revivals": ("unit", revivals, {"units": "count"}),
            "revived_step": ("unit", revived),
        },
        coords={
            "step": activity.steps,
            "layer": ("unit", activity.layer),
            "unit_in_layer": ("unit", activity.unit_in_layer),
            "members": ("unit", activity.members),
        },
    )


def survival(dead: xr.Dataset) -> xr.DataArray:
    """Share of each layer's units that fire at all, at every recorded step.

    Parameters
    ----------
    dead : Dataset
        From :func:`dead_units`.

    Returns
    -------
    DataArray
        Dims ``(step, layer)``, in [0, 1]; NaN where the layer was not recorded at the step.

    Raises
    ------
    InvalidArgumentError
        If ``dead`` is something else, such as the recording.
    """
    rows.demand_result(dead, ("layer", "examples", "silent"), of="covshift.gradient_health.dead_units")
    layer = dead["layer"].values
    names, first, member = np.unique(layer, return_index=True, return_inverse=True)
    recorded = dead["examples"].values > 0
    of_layer = (member[:, None] == np.arange(len(names))).astype(np.float64)
    total = recorded @ of_layer
    firing = (recorded & ~dead["silent"].values) @ of_layer
    share = np.divide(firing, total, out=np.full(total.shape, np.nan), where=total > 0)
    coords = {"step": dead["step"].values, "layer": names}
    ordered = np.argsort(first)
    return xr.DataArray(share, coords, ("step", "layer"), "survival", {"units": "1"}).isel(layer=ordered)


@dataclass(frozen=True)
class _Activity:
    """Which units fired on how many examples, members of a linkage joined; arrays of shape (step, unit)."""

    steps: NDArray[np.int64]
    layer: NDArray[np.str_]
    owner: NDArray[np.int64]
    unit_in_layer: NDArray[np.int64]
    members: NDArray[np.int64]
    active: NDArray[np.int64]
    examples: NDArray[np.int64]

    @property
    def recorded(self) -> NDArray[np.bool_]:
        return np.asarray(self.examples > 0)

    @property
    def last_examples(self) -> NDArray[np.int64]:
        """Examples of the last record of each unit; shape (unit,)."""
        position = np.arange(len(self.steps))[:, None]
        last = np.where(self.recorded, position, -1).max(axis=0, initial=-1)
        return np.asarray(self.examples[last, np.arange(len(last))])

    @property
    def silent(self) -> NDArray[np.bool_]:
        return np.asarray(self.recorded & (self.active == 0))


@dataclass(frozen=True)
class _SilentLayers:
    """Records in which units were not due: examples of layers that gave only zeros, else 0; shape (record, layer)."""

    steps: NDArray[np.int64]
    examples: NDArray[np.int64]

    @classmethod
    def between(cls, recording: xr.DataTree, unit_steps: NDArray[np.int64], signal: str, stream: str) -> _SilentLayers:
        owners = rows.layer_rows(recording, signal=signal, stream=stream)
        steps = owners["step"].values.astype(np.int64)
        between = ~np.isin(steps, unit_steps)
        count = owners["count"].values[between]
        silent = (count > 0) & (owners["zero_count"].values[between] == count)
        return cls(steps[between], np.where(silent, owners["example_count"].values[between], 0).astype(np.int64))

    def after(
        self, step: NDArray[np.int64], owner: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Examples, records and first step of silence after a unit's ``step``, in the layer ``owner``, unit by unit."""
        begin = np.searchsorted(self.steps, step, side="right")
        silent = self.examples > 0
        at = np.where(silent, self.steps[:, None], _NEVER)
        first = np.minimum.accumulate(at[::-1], axis=0)[::-1]
        return (
            _tail_sums(self.examples)[begin, owner],
            _tail_sums(silent.astype(np.int64))[begin, owner],
            np.concatenate([first, np.full((1, first.shape[1]), _NEVER)])[begin, owner],
        )


def _tail_sums(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Sum of each row and all rows after it, and a last row of zeros."""
    sums = np.cumsum(counts[::-1], axis=0)[::-1]
    return np.concatenate([sums, np.zeros((1, counts.shape[1]), dtype=np.int64)])


@dataclass(frozen=True)
class _Silence:
    """The unbroken silence at the end of the recording; arrays of shape (unit,).

    ``last_active`` is the position of the record of units with the last activity (-1 none), ``since_step`` that of the
    first silent record after it (meaningless where there is none).
    """

    last_active: NDArray[np.int64]
    since_step: NDArray[np.int64]
    examples: NDArray[np.int64]
    records: NDArray[np.int64]

    @classmethod
    def at_the_end(cls, activity: _Activity, layers: _SilentLayers) -> _Silence:
        position = np.arange(len(activity.steps))[:, None]
        fired = activity.recorded & ~activity.silent
        last = np.where(fired, position, -1).max(axis=0, initial=-1)
        after = activity.recorded & (position > last)
        begun = np.where(after, activity.steps[:, None], _NEVER).min(axis=0, initial=_NEVER)
        last_step = np.concatenate([activity.steps, [-1]])[last]
        examples, records, first = layers.after(last_step, activity.owner)
        return cls(
            last,
            np.minimum(begun, first),
            np.where(after, activity.examples, 0).sum(axis=0) + examples,
            after.sum(axis=0) + records,
        )


def _activity(recording: xr.DataTree, layers: Sequence[str] | None, signal: str, stream: str) -> _Activity:
    units = rows.group(recording, "units", stream=stream)
    owners = rows.layer_rows(recording, signal=signal, stream=stream)
    columns = unit_columns(units, owners, layers)
    chosen = units.sel(signal=signal)[["unit_count", "unit_active_examples"]]
    counts = chosen["unit_count"].values[:, columns.order].astype(np.int64)
    active = chosen["unit_active_examples"].values[:, columns.order].astype(np.int64)
    examples = owners["example_count"].reindex(step=units["step"], fill_value=0).values.astype(np.int64)
    seen = examples[:, columns.owner] * columns.smallest(counts > 0)
    kept = (seen > 0).any(axis=0)
    return _Activity(
        units["step"].values.astype(np.int64),
        rows.names(owners)[columns.owner[kept]],
        columns.owner[kept],
        columns.unit[kept],
        columns.members[kept],
        columns.largest(active)[:, kept],
        seen[:, kept],
    )


def _firing_rate(activity: _Activity) -> NDArray[np.float64]:
    """Share of examples with activity over each unit's last records; NaN without any."""
    from_end = np.cumsum(activity.recorded[::-1], axis=0)[::-1]
    recent = activity.recorded & (from_end <= RATE_RECORDS)
    return _share(activity, recent)


def _share(activity: _Activity, records: NDArray[np.bool_]) -> NDArray[np.float64]:
    seen = np.where(records, activity.examples, 0).sum(axis=0)
    fired = np.where(records, activity.active, 0).sum(axis=0)
    return np.asarray(np.divide(fired, seen, out=np.full(seen.shape, np.nan), where=seen > 0))


def _revivals(
    activity: _Activity, distinct_examples: int | None, alpha: float, *, repeated: bool
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """How many silences that counted as deaths ended, and at which step the last of them did.

    ``repeated`` where further records may show the same examples, and so are no further evidence.
    """
    units = len(activity.layer)
    needed = np.log(alpha / max(units, 1)) / np.log1p(-SILENCE_RATE)
    records, examples, revivals = (np.zeros(units, dtype=np.int64) for _ in range(3))
    revived = np.full(units, -1, dtype=np.int64)
    for step, seen, active in zip(activity.steps, activity.examples, activity.active, strict=True):
        fired = (seen > 0) & (active > 0)
        back = fired & (records >= DEAD_WINDOWS) & (np.minimum(examples, distinct_examples or np.inf) >= needed)
        revivals += back
        revived[back] = step
        silent = np.maximum(examples, seen) if repeated else examples + seen
        records, examples = np.where(fired, 0, records + (seen > 0)), np.where(fired, 0, silent)
    return revivals, revived


def _states(
    activity: _Activity,
    silence: _Silence,
    bound: NDArray[np.float64],
    firing: NDArray[np.float64],
    *,
    exact: bool,
    alpha: float,
) -> NDArray[np.str_]:
    silent = silence.records > 0
    if exact:
        dead, expected = silent, np.zeros_like(silent)
    else:
        dead = silent & (silence.records >= DEAD_WINDOWS) & (bound <= DEAD_RATE)
        expected = silent & _silence_was_to_be_expected(activity, silence, alpha)
    rare = expected | (~silent & (firing < RARE_RATE))
    return np.select([rare, dead, silent], ["rare", "dead", "silent"], "alive")


def _silence_was_to_be_expected(activity: _Activity, silence: _Silence, alpha: float) -> NDArray[np.bool_]:
    """Whether a unit that fired before would fall silent for so long anyway, at its own earlier rate."""
    before = activity.recorded & (np.arange(len(activity.steps))[:, None] <= silence.last_active)
    rate = np.nan_to_num(_share(activity, before))
    chance = (1 - rate) ** silence.examples
    return np.asarray((rate > 0) & (chance > alpha / max(len(rate), 1)))
