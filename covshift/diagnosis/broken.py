"""What NaN and infinities leave of the other checks: nothing, where the end of a run holds no other numbers.

A check that finds no number at the end either has none to judge, and would ask for a longer run, or judges what was
before them and calls it well. Either way it says what is so. What it found amiss before stands: that may be the cause.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr

from covshift.analysis import rows
from covshift.diagnosis.finding import ROOT, WHOLE_RUN, Finding, not_measured
from covshift.diagnosis.wording import plural, quoted
from covshift.exceptions import SignalNotRecorded

_SIGNAL_OF: Mapping[str, str] = {
    "gradient arrives": "activation_grad",
    "gradient zeros": "activation_grad",
    "units": "activation",
    "saturation": "activation",
    "scale over depth": "activation_grad",
    "scale over time": "activation_grad",
    "update ratio": "activation_grad",
    "trust ratio": "activation_grad",
    "clipping": "activation_grad",
    "gradient turn": "activation_grad",
    "gradient noise": "activation_grad",
    "shift": "activation",
    "operating point": "activation",
    "precision": "activation_grad",
    "linkage": "activation",
}
"""What each check reads of a layer, parameters apart: those it judges by the gradient that moves them."""

_NOUN = {"activation": "output", "activation_grad": "gradient"}
_MEND = "mend what `non-finite` says first"


@dataclass(frozen=True)
class _End:
    """The last window of one signal: layers of which it holds no finite number, of those of which it holds any."""

    records: int
    seen: Collection[str]
    broken: Collection[str]

    @classmethod
    def of(cls, recording: xr.DataTree, signal: str) -> _End:
        try:
            tensors = rows.layer_rows(recording, signal=signal)
        except SignalNotRecorded:
            return cls(0, frozenset(), frozenset())
        window, names = rows.last_window(tensors.sizes["step"]), rows.names(tensors)
        seen = np.asarray((tensors["count"].values[window] > 0).any(axis=0))
        finite = np.asarray((rows.finite_count(tensors)[window] > 0).any(axis=0))
        records = len(tensors["step"].values[window])
        return cls(records, frozenset(names[seen].tolist()), frozenset(names[seen & ~finite].tolist()))

    def is_broken(self, layer: str) -> bool:
        """Whether no number is left of a layer; of the whole run, of most: some run before the first NaN."""
        if layer == WHOLE_RUN:
            return 2 * len(self.broken) > len(self.seen)
        inside = [name for name in self.seen if name == layer or name.startswith(f"{layer}.") or layer == ROOT]
        return bool(inside) and all(name in self.broken for name in inside)


def without_numbers(findings: Sequence[Finding], recording: xr.DataTree) -> list[Finding]:
    """The findings, with those ``not measured`` whose tensors ended in NaN and infinities and nothing else.

    Those of checks that were not measured get this as their reason; those of the whole run that are ``ok`` were so
    before, and are not measured now.
    """
    if not any(finding.check == "non-finite" and finding.verdict == "bad" for finding in findings):
        return list(findings)
    ends = {signal: _End.of(recording, signal) for signal in _NOUN}
    return [_told(finding, ends) for finding in findings]


def _told(finding: Finding, ends: Mapping[str, _End]) -> Finding:
    signal = _SIGNAL_OF.get(finding.check)
    doubtful = finding.verdict == "not measured" or (finding.verdict == "ok" and finding.layer == WHOLE_RUN)
    if signal is None or not doubtful or not ends[signal].is_broken(finding.layer):
        return finding
    end = ends[signal]
    whose = f"the {_NOUN[signal]} of {len(end.broken)} of {plural(len(end.seen), 'layer')}"
    whose = whose if finding.layer == WHOLE_RUN else f"its {_NOUN[signal]}"
    reason = f"every element of {whose} was NaN or infinite in the last {plural(end.records, 'record')}"
    return not_measured(
        finding.check, finding.layer, f"{quoted(finding.layer)}: {reason}", _MEND, threshold=finding.threshold
    )
