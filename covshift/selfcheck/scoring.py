"""Outcomes counted: recall, localisation and false alarms, each a share of runs with Wilson's interval.

The unit is the run, never the layer: layers of one run are dependent.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from covshift.analysis.inference import wilson
from covshift.selfcheck.trials import Outcome


@dataclass(frozen=True)
class Share:
    """``hits`` of ``runs``."""

    hits: int
    runs: int

    @property
    def value(self) -> float:
        """The share; NaN of no runs."""
        return self.hits / self.runs if self.runs else float("nan")

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval."""
        return wilson(self.hits, self.runs)

    def to_dict(self) -> dict[str, Any]:
        """Counts, share and interval as JSON types; None where there are no runs."""
        ends: list[float | None] = [*self.interval] if self.runs else [None, None]
        value = self.value if self.runs else None
        return {"hits": self.hits, "runs": self.runs, "share": value, "low": ends[0], "high": ends[1]}

    def __str__(self) -> str:
        """Counts, share and 95 % interval."""
        low, high = self.interval
        return f"{self.hits}/{self.runs} = {self.value:.2f} [{low:.2f}, {high:.2f}]"


@dataclass(frozen=True)
class Score:
    """What a set of outcomes amounts to.

    Attributes
    ----------
    recall : Share
        Fault runs in which a finding of the expected check named the planted layer or a neighbour.
    localisation : Share
        The same among fault runs in which the expected check spoke at all.
    everywhere : Share
        Fault runs in which the expected check named every layer, though the fault has a place: false alarms.
    fallen : Share
        Trap runs in which a check was taken in, that is, spoke at the trap.
    false_bad, false_watch : Share
        Control runs with any finding that is bad, or to watch or worse.
    undetermined : float
        Mean share of layers of control runs whose operating point could not be told; NaN without any.
    """

    recall: Share
    localisation: Share
    everywhere: Share
    fallen: Share
    false_bad: Share
    false_watch: Share
    undetermined: float


def score(outcomes: Iterable[Outcome]) -> Score:
    """Score of outcomes of one kind of network and dose.

    Examples
    --------
    >>> found = Outcome("fault", "dead units", "strong", 0, False, found=True, right_check=True)
    >>> missed = Outcome("fault", "dead units", "strong", 1, False, found=False, right_check=True)
    >>> str(score([found, missed]).recall)
    '1/2 = 0.50 [0.09, 0.91]'
    """
    outcomes = list(outcomes)
    faults = [outcome for outcome in outcomes if outcome.kind == "fault"]
    traps = [outcome for outcome in outcomes if outcome.kind == "trap"]
    controls = [outcome for outcome in outcomes if outcome.kind == "control"]
    spoke = [outcome for outcome in faults if outcome.right_check]
    told = [outcome.undetermined for outcome in controls if outcome.undetermined is not None]
    return Score(
        Share(sum(outcome.found for outcome in faults), len(faults)),
        Share(sum(outcome.found for outcome in spoke), len(spoke)),
        Share(sum(outcome.everywhere for outcome in faults), len(faults)),
        Share(sum(outcome.found for outcome in traps), len(traps)),
        Share(sum(bool(outcome.bad) for outcome in controls), len(controls)),
        Share(sum(bool(outcome.bad or outcome.watch) for outcome in controls), len(controls)),
        sum(told) / len(told) if told else float("nan"),
    )
