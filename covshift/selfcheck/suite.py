"""Trials by name, and the two-minute subset with known answers that ``covshift selfcheck`` runs."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

from covshift.exceptions import CovshiftWarning, InvalidArgumentError
from covshift.selfcheck.controls import CONTROLS, Control
from covshift.selfcheck.faults import FAULTS, TRAPS, Fault
from covshift.selfcheck.trials import Outcome, judged

DOSES = ("weak", "medium", "strong")
NONE = "none"
"""Dose of a movement's twin: the same network with nothing planted, for how often it would be found anyway."""

QUICK_FAULTS = (
    "dead units",
    "stuck at a plateau",
    "saturated tanh",
    "vanishing initialisation",
    "linkage violated",
    "detached",
    "left out of the optimizer",
    "learning rate too high",
    "strangled by clipping",
    "injected shift",
    "drift of the mean",
    "swapped units",
    "float16 without a loss scale",
    "broken numbers",
)
"""At least one of every family of checks."""
QUICK_TRAPS = ("rarely firing units", "masked, not structural")
QUICK_CONTROLS = ("He ReLU MLP", "linked ReLU", "dropout", "max pooling", "residual")


@dataclass(frozen=True)
class Trial:
    """One run of the suite, by name: what to build, how strong, which seed, on which networks."""

    kind: str
    name: str
    dose: str
    seed: int
    held_back: bool

    def run(self) -> Outcome:
        """Train, record and judge it.

        Raises
        ------
        InvalidArgumentError
            If there is no fault, trap or control of this name.
        """
        with warnings.catch_warnings():
            # What the recorder warns of is planted here.
            warnings.simplefilter("ignore", CovshiftWarning)
            return self._control() if self.kind == "control" else self._fault()

    def _fault(self) -> Outcome:
        fault = _named(FAULTS if self.kind == "fault" else TRAPS, self.name)
        dose = 0.0 if self.dose == NONE else fault.doses[DOSES.index(self.dose)]
        case = (fault.held_back if self.held_back else fault.build)(self.seed, dose)
        return judged(
            case,
            kind=self.kind,
            name=self.name,
            dose=self.dose,
            seed=self.seed,
            held_back=self.held_back,
            checks=fault.checks,
            planted=fault.planted(case),
        )

    def _control(self) -> Outcome:
        control = _named(CONTROLS, self.name)
        case = (control.held_back if self.held_back else control.build)(self.seed)
        return judged(
            case,
            kind="control",
            name=self.name,
            seed=self.seed,
            held_back=self.held_back,
            checks=control.forbidden,
            update=control.update,
            steps=control.steps,
        )


Listed = TypeVar("Listed", Fault, Control)


def _named(listed: tuple[Listed, ...], name: str) -> Listed:
    found = next((one for one in listed if one.name == name), None)
    if found is None:
        raise InvalidArgumentError(f"name={name!r}: expected one of {', '.join(one.name for one in listed)}")
    return found


def quick(seed: int = 0) -> Iterator[tuple[Trial, Outcome, bool]]:
    """The subset: each trial with its outcome, and whether that is the known answer.

    Every fault must be found in the right layer and no trap taken for one; no control may have a finding that is bad or
    of a forbidden check.
    """
    trials = [Trial("fault", name, "strong", seed, False) for name in QUICK_FAULTS]
    trials += [Trial("trap", name, "strong", seed, False) for name in QUICK_TRAPS]
    for trial in [*trials, *(Trial("control", name, "", seed, False) for name in QUICK_CONTROLS)]:
        outcome = trial.run()
        yield trial, outcome, known(outcome)


def known(outcome: Outcome) -> bool:
    """Whether an outcome is the known answer of its kind of trial."""
    if outcome.kind == "control":
        return not outcome.bad and not outcome.right_check
    return outcome.found == (outcome.kind == "fault")
