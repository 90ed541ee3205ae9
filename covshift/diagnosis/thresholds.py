"""Every default a verdict rests on, in one table, with unit and source.

"Ours" marks a threshold that is this project's proposal; the others name who proposed them. A threshold without
``bad`` never makes more than ``watch``: where the literature gives no harmful size, none is invented.
"""

from __future__ import annotations

from collections.abc import Mapping

from covshift.diagnosis.threshold import Threshold

_DEPTH_NOTE = (
    "slope and total must both exceed: a healthy 50-layer batch-norm net has -0.08 a layer, over 3 decades in all"
)
_RECORDED = "of the window's records in which a gradient was due"

IDLE_SHARE = 0.1
"""Share of a layer's units above which idle ones are worth a look."""

THRESHOLDS: Mapping[str, Threshold] = {
    "gradient_missing": Threshold(
        "gradient arrives",
        f"share {_RECORDED} and none, or only zeros, arrived",
        None,
        0.99,
        "share",
        "ours",
        "alternating losses skip a layer in some steps, so only a layer never reached is flagged",
    ),
    "structural_zeros": Threshold(
        "gradient zeros",
        "share of the pre-activations at which the derivative is zero",
        0.95,
        0.999,
        "share",
        "ours",
        "rectifier nets have 40-60 % at the start of training and up to about 90 % when trained sparse",
    ),
    "gradient_zeros": Threshold(
        "gradient zeros",
        "share of gradient elements that are zero and not structurally so",
        0.999,
        None,
        "share",
        "ours",
        "pooling, dropout and padding mask most elements of healthy nets (76 % behind one 2 x 2 max-pool)",
    ),
    "zero_gradient_units": Threshold(
        "gradient zeros",
        "share of units that no longer receive a gradient",
        IDLE_SHARE,
        0.5,
        "share",
        "ours, by analogy with dead units",
        "counted where the examples bound their rate by 1 %; also finds units stuck at an output that is not 0",
    ),
    "dead_units": Threshold(
        "units",
        "share of dead units",
        IDLE_SHARE,
        0.5,
        "share",
        "bad: threshold_layer of the DeadRelu rule of Amazon SageMaker Debugger; watch: ours, above the one or two in "
        "32 that healthy ReLU nets lose",
        "a unit is dead when it is silent and its firing rate is bounded by 0.1 % at 95 %, all units together",
    ),
    "silent_units": Threshold(
        "units",
        "share of silent units, dead ones included",
        IDLE_SHARE,
        None,
        "share",
        "ours; the evidence asked for, a rate below 1 %, is the DeadRelu rule's threshold_inactivity",
        "where their firing rate is bounded by 1 % at 95 %, all units together; else not measured",
    ),
    "stuck_units": Threshold(
        "units",
        "share of units whose output is constant and not 0",
        IDLE_SHARE,
        0.5,
        "share",
        "ours, by analogy with dead units; generalises them to tanh at 1, ReLU6 at 6",
        "constant: no record varies by more than 1e-6 of the variance of the layer's median unit, in the last window",
    ),
    "saturated_share": Threshold(
        "saturation",
        "share of z at which the derivative is below a tenth of its maximum",
        0.7,
        0.9,
        "share",
        "bad: the unit-level definition of saturated, applied to a layer; watch: ours (a tanh of normal z has 7 %, "
        "54 % and 86 % at 1, 3 and 10 sd)",
        "tanh and sigmoid, from histograms of z; Glorot & Bengio (2010) show that saturated layers may recover",
    ),
    "depth_slope": Threshold(
        "scale over depth",
        "size of the slope of log10 gradient rms over layers",
        0.10,
        0.15,
        "decades per layer",
        "ours, calibrated at initialisation: He 0.01, LeCun-init ReLU 0.156, sigmoid 0.63",
        _DEPTH_NOTE,
    ),
    "depth_total": Threshold(
        "scale over depth",
        "size of the fitted change of gradient rms from the first to the last layer",
        2.0,
        4.0,
        "decades",
        "ours",
        _DEPTH_NOTE,
    ),
    "gradient_growth": Threshold(
        "scale over time",
        "growth of gradient rms against its median over the records before, held for three records",
        1.0,
        2.0,
        "decades",
        "ours; single spikes are normal (Bjorck et al. 2018, heavy tails)",
        "after the warm-up (first tenth of the records)",
    ),
    "trust_spread": Threshold(
        "trust ratio",
        "decades between the largest and the smallest weight-to-gradient ratio of any two weights",
        3.0,
        None,
        "decades",
        "ours, after You, Gitman & Ginsburg (2017), who scale learning rates by this ratio",
        "adaptive optimizers even it out, so it is never bad",
    ),
    "clipped_steps": Threshold(
        "clipping",
        "share of records in which the gradient was shortened before the optimizer step",
        0.9,
        None,
        "share",
        "ours",
        "clipping is meant for exceptions; where it is the rule, the limit sets the step",
    ),
    "gradient_turn": Threshold(
        "gradient turn",
        "median cosine of the gradient to that of the step before",
        (-0.3, 1.0),
        None,
        "1",
        "ours",
        "between neighbouring steps only; batch noise makes it 0; along a curvature c, gradient descent at a rate r "
        "multiplies the gradient by 1 - rc, so it tends to -1 where r is too high; near 1 is no fault (full batches)",
    ),
    "gradient_noise": Threshold(
        "gradient noise",
        "noise scale of the gradient, in batches of a step",
        100.0,
        None,
        "batches",
        "noise scale: McCandlish et al. (2018); that 100 batches are too many is ours",
        "only where steps accumulate micro-batches; late training is naturally noisy, so it is never bad",
    ),
    "underflow": Threshold(
        "precision",
        "share of nonzero gradient elements that are subnormal in their half-precision dtype",
        0.05,
        0.5,
        "share",
        "ours; torch's AMP notes describe the flush to zero that follows",
        "after loss scaling, as recorded",
    ),
    "overflow": Threshold(
        "precision",
        "largest magnitude of the output relative to the largest finite number of its dtype",
        0.25,
        0.9,
        "share",
        "ours",
        "half-precision layers only",
    ),
    "drift": Threshold(
        "operating point",
        "drift over the window, in the location's unit where another part drifts more",
        0.2,
        None,
        "sd",
        "J. Cohen (1988): 0.2 sd is small; scale: a factor of 1.2; active mass: 0.05 (ours)",
        "a 95 % interval excludes 0 as well; being inside the margin is tested too (two one-sided tests)",
    ),
    "unit_shift": Threshold(
        "shift",
        "root mean square shift of the units' means from one record of units to the next, less sampling noise",
        0.5,
        None,
        "sd",
        "J. Cohen (1988): 0.5 sd is medium",
        "finds units that trade places, which the pooled distribution hides; movement is no proof of harm",
    ),
    "update_ratio": Threshold(
        "update ratio",
        "median length of an update relative to the parameter",
        (1e-4, 1e-2),
        (1e-6, 1e-1),
        "1",
        "A. Karpathy's rule of thumb: about 1e-3; the bands are ours",
        "parameters of two or more axes; below the band only if also since the warm-up (first tenth), because learning "
        "rates are lowered on purpose",
    ),
    "update_jump": Threshold(
        "update ratio",
        "length of one update relative to the parameter, where that is ten times what it was",
        0.1,
        1.0,
        "1",
        "ours: 0.1 is where the median is bad, and at 1 nothing of the parameter need be left",
        "after the warm-up (first tenth of the records), against the median of the 20 records before; one record is "
        "enough, for the parameter grows by such an update and the ratio falls at once",
    ),
    "shift": Threshold(
        "shift",
        "noise-corrected shift from one histogram to the next, as an equivalent shift of the mean",
        0.2,
        None,
        "sd",
        "J. Cohen, Statistical Power Analysis for the Behavioral Sciences (1988): 0.2 sd is small",
        "movement is no proof of harm, so it is never bad by itself",
    ),
    "run_shift": Threshold(
        "shift",
        "largest shift among the layers that moved at 5 % after Holm's correction over all layers",
        0.2,
        None,
        "sd",
        "Holm (1979); J. Cohen (1988): 0.2 sd is small",
        "a statement about the run; the list of layers is corrected after Benjamini & Hochberg (1995)",
    ),
    "non_finite_values": Threshold(
        "non-finite",
        "share of records with NaN or infinite activations",
        None,
        0.0,
        "share",
        "ours",
        "one such element reaches the loss",
    ),
    "non_finite_gradients": Threshold(
        "non-finite",
        "share of records with NaN or infinite gradients",
        None,
        0.05,
        "share",
        "ours; torch.amp.GradScaler skips isolated steps with infinite gradients by design",
        "and more than one; of the records after step 100, else of those whose step is not logged as skipped",
    ),
    "non_finite_run": Threshold(
        "non-finite",
        "records in a row with NaN or infinite gradients",
        None,
        2.0,
        "records",
        "ours",
        "of the records after step 100 where there are any: loss scales are found by overflowing",
    ),
    "linkage": Threshold(
        "linkage",
        "share of pre-activations at which no member has a derivative",
        0.01,
        0.5,
        "share",
        "ours; the condition of Riera Molina & Pujol Vila (2017) asks for none",
        "masked gradients are no violation and do not count",
    ),
}
"""By name. A report prints this table, a figure draws the limits it shows from it."""
