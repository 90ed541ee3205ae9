"""One trial: train a case, record it, judge it, and set the findings against what was planted."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import torch
import xarray as xr
from torch import nn

from covshift.attach import record
from covshift.diagnosis import Diagnosis, diagnose
from covshift.diagnosis.finding import WHOLE_RUN
from covshift.selfcheck.nets import STEPS, Case


@dataclass(frozen=True)
class Outcome:
    """What was said of one run.

    Attributes
    ----------
    kind : {"fault", "trap", "control"}
        What was run.
    name, dose, seed, held_back : str, str, int, bool
        Which one; ``dose`` is ``"weak"``, ``"medium"`` or ``"strong"`` and empty for controls.
    found : bool
        A finding of an expected check was raised, near the planted layer where it has one, and not on every layer.
    right_check : bool
        A finding of an expected check was raised anywhere.
    everywhere : bool
        Findings of the expected checks name every layer of a run whose fault has a place: a false alarm.
    bad, watch : list of str
        Findings of each verdict as ``"check: layer"``.
    undetermined : float
        Share of the layers whose operating point could not be told; NaN as None where none was judged.
    """

    kind: str
    name: str
    dose: str
    seed: int
    held_back: bool
    found: bool
    right_check: bool
    bad: list[str] = field(default_factory=list)
    watch: list[str] = field(default_factory=list)
    undetermined: float | None = None
    everywhere: bool = False

    def to_dict(self) -> dict[str, Any]:
        """The outcome as JSON types."""
        return asdict(self)


def recorded(case: Case, *, steps: int = STEPS, update: bool = True) -> xr.DataTree:
    """The recording of ``steps`` training steps, every one of them recorded with histograms and units.

    With ``update=False`` batches run under the same weights throughout.
    """
    optimizer = _optimizer(case)
    with record(case.model, None, every=1, histograms_every=1, units_every=1) as recorder:
        for step in range(steps):
            for hook in case.before:
                hook(step)
            loss = case.loss(*case.batch(step))
            torch.autograd.backward(loss)
            if case.clip is not None:
                nn.utils.clip_grad_norm_(case.model.parameters(), case.clip)
            for group in optimizer.param_groups:
                group["lr"] = case.learning_rate * group["pace"]
            if update and bool(torch.isfinite(loss)):
                optimizer.step()
            else:
                recorder.step()
            if (step + 1) % case.clear_every == 0:
                case.model.zero_grad()
            with torch.no_grad():
                for hook in case.after:
                    hook(step)
    return recorder.recording


def _optimizer(case: Case) -> torch.optim.Optimizer:
    paces: dict[float, list[nn.Parameter]] = {}
    for name, parameter in case.model.named_parameters():
        if pace := case.pace.get(name, 1.0):
            paces.setdefault(pace, []).append(parameter)
    groups = [{"params": parameters, "pace": pace} for pace, parameters in paces.items()]
    if case.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=case.learning_rate)
    return torch.optim.Adam(groups, lr=case.learning_rate)


def judged(
    case: Case,
    *,
    kind: str,
    name: str,
    seed: int,
    dose: str = "",
    held_back: bool = False,
    checks: Iterable[str] = (),
    planted: str | None = None,
    update: bool = True,
    steps: int = STEPS,
) -> Outcome:
    """Outcome of a case; ``planted`` is the nonlinearity next to which the fault lies, None for the whole run."""
    diagnosis = diagnose(recorded(case, steps=steps, update=update))
    flagged = {
        verdict: [f"{f.check}: {f.layer}" for f in diagnosis.findings if f.verdict == verdict]
        for verdict in ("bad", "watch")
    }
    place = located(diagnosis, checks, planted)
    return Outcome(
        kind,
        name,
        dose,
        seed,
        held_back,
        found=place.near,
        right_check=place.anywhere,
        bad=flagged["bad"],
        watch=flagged["watch"],
        undetermined=_undetermined(diagnosis),
        everywhere=place.everywhere,
    )


class Located(NamedTuple):
    """Whether findings of the expected checks lie near the planted layer, anywhere, and on every layer."""

    near: bool
    anywhere: bool
    everywhere: bool


def located(diagnosis: Diagnosis, checks: Iterable[str], planted: str | None) -> Located:
    """Where the causes of ``checks`` lie, against the nonlinearity at which a fault was planted.

    Findings that others explain do not count. Near are the nonlinearity, the layer that feeds it, and one layer on
    either side of the two; nothing is near if every layer is named. Without a place any finding is near.
    """
    expected = [f for f in diagnosis.causes if f.check in frozenset(checks)]
    if planted is None:
        return Located(bool(expected), bool(expected), False)
    here = diagnosis.layers.index(planted)
    around = set(diagnosis.layers[max(here - 2, 0) : here + 2])
    named = {f.layer for f in expected}
    everywhere = named >= set(diagnosis.layers)
    return Located(bool(named & around) and not everywhere, bool(expected), everywhere)


def _undetermined(diagnosis: Diagnosis) -> float | None:
    points = [f.verdict for f in diagnosis.findings if f.check == "operating point" and f.layer != WHOLE_RUN]
    return points.count("not measured") / len(points) if points else None
