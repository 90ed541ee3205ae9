"""Units that never fire: which, since when, and how strong the evidence is.

A unit is a channel or feature of a nonlinearity; the members of one linkage are one unit, silent only when all are.
"Silent" is a statement about the examples seen. It becomes "dead" only where those examples bound the unit's firing
rate tightly, or are all there are. Evidence counts examples, never positions: the positions of one image share their
fate, and counting them would call rare units dead.

Silence is followed record by record by :func:`silences`, and judged by :meth:`Silence.judged`: the state at the end and
the history of :mod:`covshift.analysis.unit_history` are the same account, read at its end and at each of its steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from covshift import schema
from covshift.analysis import arguments, rows
from covshift.analysis.unit_activity import NEVER, UnitActivity
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
    layers: str | Sequence[str] | None = None,
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
    layers : str or sequence of str, optional
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
            Examples of the record; 0 where the unit was not recorded, or gave no finite element.
        ``not_finite`` (step, unit)
            Recorded, and every element NaN or infinite: such a record says nothing of the unit. Of a linkage, those of
            any member.
        ``silent_examples``, ``silent_records`` (unit)
            Examples (at most ``distinct_examples``; of evaluation passes those of the last) and records since the unit
            last fired: records of units, and those between them in which its whole layer was silent.
        ``rate_upper_bound`` (unit)
            Bound on its firing rate from those, see :func:`rate_upper_bound`, over all units of the result.
        ``firing_rate`` (unit)
            Share of examples on which it fired, over its last ten records with a finite element; of a linkage, of its
            most active member. NaN without any.
        ``state`` (unit)
            ``"dead"``: silent for at least 3 records and the bound at most 1e-3, or silent on every example of the
            last evaluation pass. ``"silent"``: silent at the end, with less evidence. ``"rare"``: fires on under 1 %
            of examples, or silent for no longer than its own earlier rate makes likely. ``"not finite"``: gave nothing
            finite when last recorded, itself or its whole layer. ``"alive"``: the rest.
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
    activity = UnitActivity.of(recording, layers=layers, signal=signal, stream=stream)
    exact = stream == "evaluation"
    course = silences(activity, distinct_examples=distinct_examples, alpha=alpha, exact=exact)
    silence = reduce(lambda _, known: known, course, Silence.never_seen(len(activity.layer)))
    evidence = silence.evidence(distinct_examples, exact=exact)
    firing = _firing_rate(activity)
    judged = silence.judged(distinct_examples, alpha=alpha, exact=exact)
    state = np.where((judged == "alive") & (firing < RARE_RATE), "rare", judged)
    gone = np.isin(state, ["silent", "dead"])
    return xr.Dataset(
        {
            "silent": (("step", "unit"), activity.silent),
            "examples": (("step", "unit"), activity.examples),
            "not_finite": (("step", "unit"), activity.not_finite),
            "silent_examples": ("unit", evidence.astype(np.int64), {"units": "count"}),
            "silent_records": ("unit", silence.records),
            "rate_upper_bound": (
                "unit",
                rate_upper_bound(evidence, tests=max(evidence.size, 1), alpha=alpha),
                {"units": "1"},
            ),
            "firing_rate": ("unit", firing, {"units": "1"}),
            "state": ("unit", state),
            "since_step": ("unit", np.where(gone, silence.since_step, -1)),
            "born_dead": ("unit", gone & ~silence.fired),
            "revivals": ("unit", silence.revivals, {"units": "count"}),
            "revived_step": ("unit", silence.revived_step),
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
        Dims ``(step, layer)``, in [0, 1], of the units that gave a finite element; NaN where none did, or the layer was
        not recorded at the step. The coordinate ``broken`` (layer) tells where no unit gave one when last recorded.

    Raises
    ------
    InvalidArgumentError
        If ``dead`` is something else, such as the recording.
    """
    arguments.demand_result("dead", dead, ("layer", "examples", "silent"), of="covshift.gradient_health.dead_units")
    layer = dead["layer"].values
    names, first, member = np.unique(layer, return_index=True, return_inverse=True)
    recorded = dead["examples"].values > 0
    of_layer = (member[:, None] == np.arange(len(names))).astype(np.float64)
    total = recorded @ of_layer
    firing = (recorded & ~dead["silent"].values) @ of_layer
    share = np.divide(firing, total, out=np.full(total.shape, np.nan), where=total > 0)
    not_finite = dead["not_finite"].values if "not_finite" in dead else np.zeros(recorded.shape, dtype=bool)
    position = np.arange(len(recorded))[:, None]
    broken, finite = (
        np.where(part @ of_layer > 0, position, -1).max(axis=0, initial=-1) for part in (not_finite, recorded)
    )
    coords = {"step": dead["step"].values, "layer": names, "broken": ("layer", broken > finite)}
    ordered = np.argsort(first)
    return xr.DataArray(share, coords, ("step", "layer"), "survival", {"units": "1"}).isel(layer=ordered)


@dataclass(frozen=True)
class Silence:
    """What was known of every unit at one step: its silence up to then, and what went before; arrays of shape (unit,).

    ``told`` where the step is a record of the unit, or of its layer if that said something of every unit;
    ``not_finite`` where the last such record held nothing finite. ``examples`` and ``records`` are those since the unit
    last fired, ``since_step`` the first of them (:data:`NEVER` for none). ``last_examples`` those of its last
    record. ``seen`` and ``active`` count all its examples and those on which it fired, ``rate`` is its firing rate up
    to its last firing.
    """

    step: int
    told: NDArray[np.bool_]
    not_finite: NDArray[np.bool_]
    fired: NDArray[np.bool_]
    examples: NDArray[np.int64]
    last_examples: NDArray[np.int64]
    records: NDArray[np.int64]
    since_step: NDArray[np.int64]
    seen: NDArray[np.int64]
    active: NDArray[np.int64]
    rate: NDArray[np.float64]
    revivals: NDArray[np.int64]
    revived_step: NDArray[np.int64]

    @classmethod
    def never_seen(cls, units: int) -> Silence:
        """Of so many units, before anything is recorded."""
        no, none = np.zeros(units, dtype=bool), np.zeros(units, dtype=np.int64)
        since, revived = np.full(units, NEVER), np.full(units, -1, dtype=np.int64)
        return cls(-1, no, no, no, none, none, none, since, none, none, np.zeros(units), none, revived)

    def evidence(self, distinct_examples: int | None, *, exact: bool) -> NDArray[np.int64]:
        """Examples that bound the firing rate: as many as there are different ones; if ``exact``, the last record's."""
        return np.minimum(self.examples, self.last_examples if exact else distinct_examples or NEVER)

    def judged(self, distinct_examples: int | None, *, alpha: float, exact: bool) -> NDArray[np.str_]:
        """``"dead"``, ``"silent"``, ``"rare"``, ``"not finite"`` or ``"alive"``, see :func:`dead_units`.

        Here "rare" is silent for no longer than the unit's own earlier rate makes likely: how often one fires that does
        fire is not looked at.
        """
        silent, tests = self.records > 0, max(len(self.records), 1)
        bound = rate_upper_bound(self.evidence(distinct_examples, exact=exact), tests=tests, alpha=alpha)
        dead = silent if exact else silent & (self.records >= DEAD_WINDOWS) & (bound <= DEAD_RATE)
        chance = (1 - self.rate) ** self.examples
        expected = silent & (self.rate > 0) & (chance > alpha / tests) & (not exact)
        return np.select([self.not_finite, expected, dead, silent], ["not finite", "rare", "dead", "silent"], "alive")


def silences(
    activity: UnitActivity, *, distinct_examples: int | None = None, alpha: float = 0.05, exact: bool = False
) -> Iterator[Silence]:
    """What was known at every record of units, and after the last of them where records of layers tell more.

    ``exact`` where each record may show the examples of the one before, and so is no further evidence.
    """
    known = Silence.never_seen(len(activity.layer))
    needed = np.log(alpha / max(len(activity.layer), 1)) / np.log1p(-SILENCE_RATE)
    for row, step in enumerate(activity.steps.tolist()):
        known = _after_gap(known, activity, row, exact=exact)
        seen, active, broken = activity.examples[row], activity.active[row], activity.not_finite[row]
        fires, there = (seen > 0) & (active > 0), seen > 0
        quiet = there & ~fires
        enough = np.minimum(known.examples, distinct_examples or NEVER) >= needed
        back = fires & (known.records >= DEAD_WINDOWS) & enough
        examples = np.maximum(known.examples, seen) if exact else known.examples + seen
        total_seen, total_active = known.seen + seen, known.active + np.where(there, active, 0)
        known = Silence(
            step=step,
            told=there | broken,
            not_finite=np.where(there, False, known.not_finite | broken),
            fired=known.fired | fires,
            examples=np.where(fires, 0, examples),
            last_examples=np.where(there, seen, known.last_examples),
            records=np.where(fires, 0, known.records + there),
            since_step=np.where(fires, NEVER, np.where(quiet, np.minimum(known.since_step, step), known.since_step)),
            seen=total_seen,
            active=total_active,
            rate=np.where(fires, rows.ratio(total_active, total_seen), known.rate),
            revivals=known.revivals + back,
            revived_step=np.where(back, step, known.revived_step),
        )
        yield known
    if activity.gaps.end >= 0:
        yield replace(_after_gap(known, activity, len(activity.steps), exact=exact), step=activity.gaps.end)


def _after_gap(known: Silence, activity: UnitActivity, gap: int, *, exact: bool) -> Silence:
    """What is known once the records of layers before the next record of units, or after the last, are seen too."""
    gaps, owner = activity.gaps, activity.owner
    examples, quiet, broken = (part[gap, owner] for part in (gaps.examples, gaps.silent, gaps.not_finite))
    return replace(
        known,
        told=known.told | quiet | broken,
        not_finite=broken | (known.not_finite & ~quiet),
        examples=np.maximum(known.examples, examples) if exact else known.examples + examples,
        last_examples=np.where(quiet & exact, examples, known.last_examples),
        records=known.records + gaps.records[gap, owner],
        since_step=np.minimum(known.since_step, gaps.first[gap, owner]),
    )


def _firing_rate(activity: UnitActivity) -> NDArray[np.float64]:
    """Share of examples with activity over each unit's last records; NaN without any."""
    from_end = np.cumsum(activity.recorded[::-1], axis=0)[::-1]
    recent = activity.recorded & (from_end <= RATE_RECORDS)
    counts = (np.where(recent, part, 0).sum(axis=0) for part in (activity.active, activity.examples))
    return rows.ratio(*counts)
