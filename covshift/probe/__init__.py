"""Active measurements: they run the model themselves, on a batch of their own, and leave everything as it was."""

from covshift.probe.attribution import shift_attribution
from covshift.probe.gradient_shift import gradient_ics
from covshift.probe.landscape import loss_landscape
from covshift.probe.paired import paired_movement
from covshift.probe.zero_causes import zeros

__all__ = ["gradient_ics", "loss_landscape", "paired_movement", "shift_attribution", "zeros"]


def __dir__() -> list[str]:
    """The functions; the modules they live in are nobody's business."""
    return sorted(__all__)
