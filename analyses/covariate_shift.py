"""Claim C3: is internal covariate shift "implicitly solved"? Plain, linked and normalised nets from the same seeds.

    python analyses/covariate_shift.py --data DIR --preset cpu --depth 10

Three measures, none of which is accuracy: how far layers' distributions move on the same images between evaluations
(and whose movement that is, the layers before or the layer's own), how much the step of the layers before changes a
layer's gradient (Santurkar et al. 2018), and whether layers come to rest at an operating point.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import numpy as np
import torch.nn.functional as F
import xarray as xr

import covshift
import depth
from common.evidence import MOST_PASSES
from common.experiment import Experiment
from common.files import digits_of, thinned
from common.training import Moment, Trainer

AXES = (("initialization", ("variance-preserving",)), ("depth", (10, 50)))
FOUR = ("relu", "relu-wide", "linked-relu", "batch-norm")

PAPER = replace(depth.PAPER, variants=FOUR, axes=AXES)
CPU = replace(depth.CPU, variants=FOUR, axes=AXES, record_every=10, detail_every=1, watched_examples=1_000)
SMOKE = replace(depth.SMOKE, variants=("linked-relu",), steps=16)


def measure(moment: Moment) -> dict[str, Any]:
    """Gradient shift of the step to come, and whose movement the layers made since the evaluation before."""
    gradients = covshift.probe.gradient_ics(
        moment.model, F.cross_entropy, moment.batch, moment.optimizer, noise_batch=moment.other_batch
    )
    movement = covshift.probe.shift_attribution(moment.model, moment.batch[0], before=moment.before)
    return {
        "layers": gradients["layer"].values.tolist(),
        "ics_to_noise": _short(gradients["ics_to_noise"]),
        "relative_ics": _short(gradients["relative_ics"]),
        "cosine": _short(gradients["cosine"]),
        "upstream_share": _short(movement["upstream_share"]),
        "movement_rms": _short(movement["movement_rms"]),
    }


def judge(recording: xr.DataTree) -> dict[str, Any]:
    """Movement of activations between evaluations of the same images, and states of the operating points."""
    moved = covshift.shift.between_steps(recording, stream="evaluation", same_examples=True)
    rest = covshift.operating_point.stability(recording)
    states, counts = np.unique(rest["state"].values, return_counts=True)
    return {
        "shift": {
            "layers": moved["layer"].values.tolist(),
            "step": thinned(moved["step"].values.tolist(), MOST_PASSES),
            "equivalent_shift": thinned([_short(row) for row in moved["equivalent_shift"]], MOST_PASSES),
        },
        "operating_points": dict(zip(states.tolist(), counts.tolist(), strict=True)),
    }


def _short(values: xr.DataArray) -> list[float]:
    return [digits_of(float(value)) for value in values]


EXPERIMENT = Experiment(
    "covariate_shift",
    "Covariate shift: plain, linked and normalised nets from the same seeds (claim C3)",
    {"smoke": SMOKE, "cpu": CPU, "paper": PAPER},
    Trainer(depth.build, measure=measure, judge=judge),
)

if __name__ == "__main__":
    sys.exit(EXPERIMENT.main())
