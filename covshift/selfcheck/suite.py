"""Trials by name, and the two-minute subset with known answers that ``covshift selfcheck`` runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from covshift.exceptions import InvalidArgumentError
from covshift.selfcheck.controls import CONTROLS
from covshift.selfcheck.faults import FAULTS
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
    "injected shift",
    "drift of the mean",
    "broken numbers",
)
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
            If there is no fault or control of this name.
        """
        return self._fault() if self.kind == "fault" else self._control()

    def _fault(self) -> Outcome:
        fault = next((one for one in FAULTS if one.name == self.name), None)
        if fault is None:
            raise InvalidArgumentError(f"name={self.name!r}: expected one of {', '.join(f.name for f in FAULTS)}")
        dose = 0.0 if self.dose == NONE else fault.doses[DOSES.index(self.dose)]
        case = (fault.held_back if self.held_back else fault.build)(self.seed, dose)
        place = case.middle if fault.at is None else fault.at
        return judged(
            case,
            kind="fault",
            name=self.name,
            dose=self.dose,
            seed=self.seed,
            held_back=self.held_back,
            checks=fault.checks,
            planted=case.activations[place] if fault.local else None,
        )

    def _control(self) -> Outcome:
        control = next((one for one in CONTROLS if one.name == self.name), None)
        if control is None:
            raise InvalidArgumentError(f"name={self.name!r}: expected one of {', '.join(c.name for c in CONTROLS)}")
        case = (control.held_back if self.held_back else control.build)(self.seed)
        return judged(
            case,
            kind="control",
            name=self.name,
            seed=self.seed,
            held_back=self.held_back,
            checks=control.forbidden,
            update=control.update,
        )


def quick(seed: int = 0) -> Iterator[tuple[Trial, Outcome, bool]]:
    """The subset: each trial with its outcome, and whether that is the known answer.

    Every fault must be found in the right layer; no control may have a finding that is bad or of a forbidden check.
    """
    trials = [Trial("fault", name, "strong", seed, False) for name in QUICK_FAULTS]
    for trial in [*trials, *(Trial("control", name, "", seed, False) for name in QUICK_CONTROLS)]:
        outcome = trial.run()
        known = outcome.found if trial.kind == "fault" else not outcome.bad and not outcome.right_check
        yield trial, outcome, known
