"""Planted faults, traps and healthy controls of the calibration: which runs there are, and what they amount to."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from common.resumed import Job
from covshift.selfcheck.controls import CONTROLS
from covshift.selfcheck.faults import FAULTS, TRAPS
from covshift.selfcheck.scoring import Score, score
from covshift.selfcheck.suite import DOSES, NONE, Trial
from covshift.selfcheck.trials import Outcome

FIRST_SEED = {"development": 0, "held-back": 800}
"""Held-back seeds from 100, 200 and 400 on were looked at earlier and led to changes; they are development since."""

SECTIONS = ("faults", "controls")


def trials(section: str, *, held_back: bool, seeds: int, doses: tuple[str, ...] = DOSES) -> Iterator[Trial]:
    """The runs of a section, seed by seed, so that a cut calibration is an even one.

    ``faults``: every fault at every dose; movements also at dose ``none``, because a network that learns moves and may
    be found without a fault. ``controls``: every healthy control, and every trap at every dose.
    """
    first = FIRST_SEED["held-back" if held_back else "development"]
    kind, listed = ("fault", FAULTS) if section == "faults" else ("trap", TRAPS)
    for seed in range(first, first + seeds):
        for fault in listed:
            given = (NONE, *doses) if fault.twin else doses
            yield from (Trial(kind, fault.name, dose, seed, held_back) for dose in given)
        if section == "controls":
            yield from (Trial("control", control.name, "", seed, held_back) for control in CONTROLS)


def key(trial: Trial) -> str:
    """What tells one run from another."""
    return "|".join(
        ["held-back" if trial.held_back else "development", trial.kind, trial.name, trial.dose, str(trial.seed)]
    )


def jobs(planned: list[Trial]) -> dict[str, Job]:
    """The runs by key."""
    return {key(trial): partial(_run, trial) for trial in planned}


def _run(trial: Trial) -> dict[str, Any]:
    return trial.run().to_dict()


def summary(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts by fault and dose, by trap and dose, by control, and the totals that are claimed; JSON types."""
    outcomes = [Outcome(**record) for record in records]
    tables: dict[str, Any] = {
        "faults": [
            {"number": fault.number, "name": fault.name, "local": fault.local}
            | _by_dose(outcomes, "fault", fault.name, "recall")
            for fault in FAULTS
        ],
        "traps": [
            {"number": trap.number, "name": trap.name} | _by_dose(outcomes, "trap", trap.name, "fallen")
            for trap in TRAPS
        ],
        "controls": [_of_control(outcomes, control.name) for control in CONTROLS],
        "totals": _totals(outcomes),
    }
    return tables


def _by_dose(outcomes: list[Outcome], kind: str, name: str, share: str) -> dict[str, Any]:
    mine = [one for one in outcomes if one.kind == kind and one.name == name]
    by_dose = {dose: score(one for one in mine if one.dose == dose) for dose in (NONE, *DOSES)}
    counted = {dose: getattr(of_dose, share).to_dict() for dose, of_dose in by_dose.items()}
    planted = score(one for one in mine if one.dose != NONE)
    return counted | {"localisation": planted.localisation.to_dict(), "everywhere": planted.everywhere.to_dict()}


def _of_control(outcomes: list[Outcome], name: str) -> dict[str, Any]:
    mine = [one for one in outcomes if one.kind == "control" and one.name == name]
    counted = score(mine)
    return {
        "name": name,
        "bad": counted.false_bad.to_dict(),
        "watch": counted.false_watch.to_dict(),
        "undetermined": counted.undetermined if counted.undetermined == counted.undetermined else None,
        "said": sorted({said for one in mine for said in one.bad}),
        "forbidden": sum(one.right_check for one in mine),
    }


def _totals(outcomes: list[Outcome]) -> dict[str, Any]:
    by_dose = {
        dose: score(one for one in outcomes if one.kind == "fault" and one.dose == dose) for dose in (NONE, *DOSES)
    }
    local = {fault.name for fault in FAULTS if fault.local}
    placed: Score = score(one for one in outcomes if one.kind == "fault" and one.dose == "strong" and one.name in local)
    whole = score(outcomes)
    planted = score(one for one in outcomes if one.dose != NONE)
    return {
        "recall": {dose: counted.recall.to_dict() for dose, counted in by_dose.items()},
        "localisation_strong": placed.localisation.to_dict(),
        "everywhere": planted.everywhere.to_dict(),
        "traps": score(one for one in outcomes if one.kind == "trap" and one.dose != NONE).fallen.to_dict(),
        "controls_bad": whole.false_bad.to_dict(),
        "controls_watch": whole.false_watch.to_dict(),
        "undetermined": whole.undetermined if whole.undetermined == whole.undetermined else None,
    }
