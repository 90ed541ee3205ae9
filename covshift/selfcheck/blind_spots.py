"""Faults of the list that a passive record does not show, why, and what finds them instead."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BlindSpot:
    """Row ``number`` of the list of faults, or the part of it that is named."""

    number: int
    name: str
    why: str
    instead: str


BLIND_SPOTS: tuple[BlindSpot, ...] = (
    BlindSpot(
        17,
        "optimizer wired to none of the model's parameters",
        "no optimizer that holds the model's parameters ever steps, so that no step is recorded",
        "the recorder's warning that the loop made no step; with recorder.step() the row of stale parameters above",
    ),
    BlindSpot(
        27,
        "training and evaluation inputs prepared differently",
        "training batches are what they always were",
        "an evaluation pass in the recording, or probe=, and covshift.shift.between_runs",
    ),
    BlindSpot(
        28,
        "batch norm: tiny batches, momentum 1, eval() left on, stale running statistics",
        "batch statistics are right for their batch, and running statistics are not used in training; batches of two "
        "raise 'scale over depth' in a plain net and nothing in a convolutional one; the mode is recorded, not judged",
        "a probe in both modes (probe_mode='eval', 'train'), whose distributions must agree",
    ),
    BlindSpot(
        31,
        "rank collapse and cloned units",
        "needs covariances between units; the record holds every unit by itself, so that clones are equal rows in it "
        "that no rule compares",
        "singular values of a layer's raw output on a batch",
    ),
)
