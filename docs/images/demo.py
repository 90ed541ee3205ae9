"""Draw docs/images/demo.png from the recordings of a demo: python docs/images/demo.py runs/demo-1."""

from __future__ import annotations

import sys
from pathlib import Path

import covshift
from covshift.analysis.comparison import paired_layers, scalars
from covshift.plots import plot_comparison

folder = Path(sys.argv[1])
variants = ("relu", "linked-relu", "selu", "batch-norm")
recordings = {variant: covshift.open(folder / f"{variant}-seed0.zarr") for variant in variants}
figure = plot_comparison(
    paired_layers(recordings),
    {name: scalars(recordings, name) for name in ("loss", "train_accuracy")},
    measures=["gradient_zero_rate", "gradient_rms", "activation_sd"],
)
figure.savefig(Path(__file__).with_suffix(".png"), dpi=90)
