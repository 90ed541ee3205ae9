"""What is amiss in a training step, named once: scales, gradients, parameters, learning rates."""

from __future__ import annotations

from typing import Any

import torch

from covshift.instrument.block import Block
from covshift.instrument.incidents import Incidents, listed
from covshift.instrument.parameters import ParameterMeter


def name_vanished_scale(in_force: float, incidents: Incidents) -> None:
    """Name a loss scale, the one ``in_force``, by which nothing can be unscaled."""
    if in_force == 0.0:
        incidents.warn_once(
            "scale 0",
            "gradients",
            "scaler: its scale has fallen to 0, as it does where every step is skipped: gradients cannot be "
            "unscaled by it and are not measured, and steps that it skips from here on are not seen. Look for the "
            "first loss that is NaN or infinite, or give the scaler a larger init_scale=",
        )


def name_lost_preclip(meter: ParameterMeter, incidents: Incidents) -> None:
    """Name gradients that changed before the optimizer step by more than clipping."""
    if meter.has_lost_preclip:
        incidents.warn_once(
            "changed",
            "gradients",
            "gradients changed between the backward pass that reached the layers and the optimizer step, and not "
            "by clipping (a further backward pass, of a penalty on weights?), so norms before clipping are not "
            "measured there: call backward once, on the sum",
        )


def name_absent_parameters(meter: ParameterMeter, incidents: Incidents, *, step: int) -> None:
    """Name parameters that the model has no longer; the meter's list of them is cleared."""
    absent, meter.newly_absent = meter.newly_absent, []
    if absent:
        incidents.warn_once(
            "absent",
            listed(absent),
            f"parameters are absent at step {step}: the model has none of the name and shape of {listed(absent)} any "
            "more (pruned, parametrized, their module replaced?), so norms of that name read NaN. Record the model "
            "once it is complete",
        )


def name_uncleared_gradients(meter: ParameterMeter, incidents: Incidents, *, step: int) -> None:
    """Name gradients that nobody clears between steps."""
    # Once may be chance: gradients cleared, and others put where they lay.
    if meter.steps_uncleared > 1:
        incidents.warn_once(
            "uncleared",
            "gradients",
            f"gradients are not cleared: at step {step}, as in the step recorded before, the backward pass added to "
            "those that the optimizer had used already, so every update is by the sum of all gradients so far. Call "
            "optimizer.zero_grad() before backward()",
        )


def name_broken_backward(block: Block, incidents: Incidents) -> None:
    """Name a step in which an exception has ended a backward pass."""
    if block.has_broken_backward:
        incidents.warn_once(
            "broken backward",
            "step",
            f"an exception ended a backward pass of step {block.step} in its midst: its forward pass and the "
            "gradients that had come by then count, beside those of a batch tried again. Leave such steps out; "
            "only an exception in the forward pass takes back what it had recorded",
        )


def name_learning_rate(rate: Any, incidents: Incidents) -> None:
    """Name a learning rate that is no single number."""
    many = f"a tensor of {rate.numel()} elements" if isinstance(rate, torch.Tensor) else type(rate).__name__
    incidents.warn_once(
        "learning rate",
        "scalars",
        f"learning_rate is NaN: expected the optimizer's lr to be one real number, got {many}; log what it "
        "stands for at each step by recorder.log(learning_rate=...)",
    )
