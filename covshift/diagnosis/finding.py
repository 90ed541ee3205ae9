"""A finding: one check's verdict on one layer, with the evidence and what to try."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from covshift.diagnosis.threshold import Threshold, Verdict
from covshift.schema import is_model_input

SEVERITY: tuple[Verdict, ...] = ("bad", "watch", "not measured", "ok")
"""Verdicts, worst first. What was not measured ranks above what is known to be well."""

WHOLE_RUN = "whole run"
"""In place of a layer where a finding concerns all of them; module paths hold no blanks."""

ROOT = "(root)"
"""Name of the model as a whole among its layers."""


@dataclass(frozen=True)
class Finding:
    """One check's verdict on one layer.

    Attributes
    ----------
    check : str
        The rule that made it.
    layer : str
        Layer it concerns, or :data:`WHOLE_RUN`.
    verdict : {"ok", "watch", "bad", "not measured"}
        The judgement.
    since_step : int or None
        First step from which on the threshold was mostly exceeded, or as often as ``reason`` says; None where ok or
        not measured, and where only a window at the end was judged, so that the onset is not known. What ``value`` says
        of the end need not hold then.
    value : float
        What was compared with the threshold; NaN where not measured.
    interval : (float, float) or None
        90 % interval of ``value`` where one can be given.
    threshold : Threshold or None
        What it was compared with; None where nothing was.
    reason : str
        The evidence in words: layer, what, how much, out of how many, since when. Where not measured: why.
    advice : str
        What to try and what it costs; where not measured, what would be needed. Empty where ok.
    explained_by : str
        Another finding that accounts for this one, as ``"<check> in <layer>"``; empty where none does.
    reached_step : int or None
        First step from which on every record has exactly ``value``, or the records of which it was computed begin; None
        where ``value`` sums up records that differ.
    history : str
        In words what was crossed at ``since_step`` and, where that is later, from which step on ``value`` itself held;
        empty where ``since_step`` is None.
    """

    check: str
    layer: str
    verdict: Verdict
    since_step: int | None
    value: float
    interval: tuple[float, float] | None
    threshold: Threshold | None
    reason: str
    advice: str
    explained_by: str = ""
    reached_step: int | None = None
    history: str = ""

    def _repr_html_(self) -> str:
        from covshift.diagnosis.notebook import finding_html

        return finding_html(self)

    def to_dict(self) -> dict[str, Any]:
        """The finding as JSON types; NaN and infinities become None."""
        record = dict(vars(self))
        record["value"] = _json(self.value)
        record["interval"] = None if self.interval is None else [_json(end) for end in self.interval]
        if self.threshold is not None:
            record["threshold"] = {
                key: list(value) if isinstance(value, tuple) else value for key, value in vars(self.threshold).items()
            }
        return record


def not_measured(check: str, layer: str, reason: str, advice: str, *, threshold: Threshold | None = None) -> Finding:
    """A finding that states why there is none, and in ``advice`` what would be needed."""
    return Finding(check, layer, "not measured", None, math.nan, None, threshold, reason, advice)


def of_layers(places: Sequence[str]) -> list[int]:
    """Positions in ``places``, which findings concern, of layers: not of the whole run, nor of the model's input.

    Examples
    --------
    >>> of_layers(["whole run", "(input)", "conv0", "act0"])
    [2, 3]
    """
    return [at for at, place in enumerate(places) if place != WHOLE_RUN and not is_model_input(str(place))]


def worst(verdicts: Sequence[Verdict]) -> Verdict:
    """The worst verdict; ``not measured`` counts only where nothing else was said.

    Examples
    --------
    >>> worst(["ok", "not measured", "watch"]), worst(["ok", "not measured"]), worst([])
    ('watch', 'ok', 'not measured')
    """
    known: tuple[Verdict, ...] = ("bad", "watch", "ok")
    return next((verdict for verdict in known if verdict in verdicts), "not measured")


def _json(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
