"""What a loop is told of which no step was seen: nothing was recorded of it, and it should not end in silence."""

from __future__ import annotations

from covshift.instrument.incidents import Incidents
from covshift.instrument.steps import StepClock


def name_unseen(clock: StepClock, incidents: Incidents, *, without_gradient: int, has_taken: bool) -> None:
    """Say once why nothing was recorded, as far as can be told.

    Parameters
    ----------
    clock : StepClock
        Has seen no step of the model.
    incidents : Incidents
        Takes the warning.
    without_gradient : int
        Forward passes under ``no_grad`` that no evaluation asked for.
    has_taken : bool
        Whether anything was recorded all the same: an evaluation, a probe.
    """
    passes, reason = clock.forwards_of_step, ""
    if passes > 1:
        reason = (
            f"{passes} forward passes, but no optimizer step of the model was seen, so nothing was recorded: for "
            "hand-written updates call recorder.step() after each"
        )
    elif passes == 0 and clock.has_moved:
        reason = (
            "parameters have changed, but no forward pass and no optimizer step of the model was seen, so nothing was "
            "recorded: a training step compiled as a whole? Compile the model, or parts of it, instead"
        )
    elif passes == 0 and without_gradient and not has_taken:
        reason = (
            f"nothing was recorded: every forward pass ({without_gradient}) ran under no_grad or inference_mode, from "
            "which no training step follows; to record an evaluation, write 'with recorder.evaluation():' around it"
        )
    elif passes == 0 and clock.has_seen_others and not has_taken:
        reason = (
            "nothing was recorded: optimizers made steps, but of no parameter of the recorded model, of which no "
            "forward pass was seen either. Record the model that is trained; a copy of it is another one"
        )
    if reason:
        incidents.warn_once("no step", "model", reason)
