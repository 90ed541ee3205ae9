"""Numbers and states of one run that claims are judged by, from its summary."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from common.summaries import Summary

GradientFate = Literal["alive", "dead", "diverged", "not measured"]

DEATHS = ("gradient arrives", "scale over depth")
"""Checks of ``covshift.diagnose`` whose verdict "bad" is a gradient that died, exactly or in size."""


def silent_share(run: Summary) -> float:
    """Share of a run's units that were silent on all watched images at its end."""
    return sum(run["units"]["silent"][-1]) / sum(run["units"]["units"])


def mean_shift(run: Summary) -> float:
    """Mean equivalent shift between evaluations, over layers and evaluations, in sd."""
    return _middle(run["shift"]["equivalent_shift"], np.nanmean)


def median_ics(run: Summary) -> float:
    """Median gradient covariate shift over noise, over layers but the first (0 by definition) and evaluations."""
    return _middle([moment["ics_to_noise"][1:] for moment in run["measured"]], np.nanmedian)


def median_upstream(run: Summary) -> float:
    """Median share of a layer's movement made by the layers below, over layers but the first and evaluations."""
    return _middle([moment["upstream_share"][1:] for moment in run["measured"]], np.nanmedian)


def share_in(state: str) -> Callable[[Summary], float]:
    """Share of layers whose operating point is in a state."""
    return lambda run: float(run["operating_points"].get(state, 0) / sum(run["operating_points"].values()))


def diverged(run: Summary) -> bool:
    """Whether a run ended with a loss, or went on with outputs or gradients, that were not finite."""
    return run["test_loss"] is None or bool(_count(run, "non-finite", "bad"))


def gradient_fate(run: Summary) -> GradientFate:
    """Whether covshift found that the gradient died; of a net that diverged it says nothing."""
    if diverged(run):
        return "diverged"
    if any(_count(run, check, "bad") for check in DEATHS):
        return "dead"
    measured = all(_count(run, check, "ok") + _count(run, check, "watch") for check in DEATHS)
    return "alive" if measured else "not measured"


def gradient_loss(run: Summary) -> float:
    """Decades by which the gradient is smaller at the input than at the output, in the last record."""
    sizes = run["profiles"]["activation_grad"]["rms"][-1]
    first, last = sizes[0], sizes[-1]
    return math.log10(last / first) if first and last else math.nan


def forward_fate(run: Summary) -> str:
    """What becomes of the signal on its way through the net in the first record: vanishing, exploding or carried."""
    sizes = run["profiles"]["activation"]["rms"][0]
    first, last = sizes[0], sizes[-1]
    if first is None or last is None or _count(run, "non-finite", "bad"):
        return "not finite"
    factor = last / first if first else 0.0
    return "vanishing" if factor < 0.01 else "exploding" if factor > 100 else "carried"


def _count(run: Summary, check: str, verdict: str) -> int:
    """Layers to which a check of the run's diagnosis gave a verdict."""
    return int(run["diagnosis"]["checks"].get(check, {}).get(verdict, 0))


def _middle(rows: list[list[float | None]], summary: Callable[..., np.floating[Any]]) -> float:
    values = np.array([[math.nan if value is None else value for value in row] for row in rows], dtype=np.float64)
    return float(summary(values)) if np.isfinite(values).any() else math.nan
