"""The numbers that the paper published (arXiv 1712.02609), as data: nothing on a results page is typed by hand.

What they are follows from the authors' script that made their tables: of each run the best test accuracy over all
epochs, and of several runs of one variant the median or, in table D, the largest and the median. How many runs there
were is not stated; all had seed 100.
"""

from __future__ import annotations

from collections.abc import Mapping

from common.variants import BASES

Accuracy = Mapping[str, float]


def _by_variant(single: tuple[float, ...], linked: tuple[float, ...], wide: tuple[float, ...] = ()) -> dict[str, float]:
    """Accuracies by name of variant, given in the order of the bases."""
    kinds = {"{}": single, "linked-{}": linked, "{}-wide": wide}
    return {
        pattern.format(base): value
        for pattern, values in kinds.items()
        for base, value in zip(BASES, values, strict=False)
    }


WIDTH: Mapping[int, Accuracy] = {
    50: _by_variant((0.5767, 0.5771, 0.4992, 0.5559), (0.5909, 0.5908, 0.5730, 0.5488)),
    400: _by_variant((0.6154, 0.6156, 0.5227, 0.5442), (0.6165, 0.6168, 0.599, 0.5405)),
}
"""Table W, by units."""

DEPTH_MAX: Accuracy = {
    **_by_variant((0.1, 0.1, 0.5654, 0.1), (0.5667, 0.5458, 0.5876, 0.1), (0.1, 0.1, 0.5707, 0.1)),
    "batch-norm": 0.5202,
}
DEPTH_MEDIAN: Accuracy = {
    **_by_variant((0.1, 0.1, 0.5643, 0.1), (0.5607, 0.5210, 0.5670, 0.1), (0.1, 0.1, 0.5703, 0.1)),
    "batch-norm": 0.5114,
}
"""Table D: largest and median over runs of the best epoch of a run."""

EXTENDED: Accuracy = _by_variant(
    (0.7337, 0.7201, 0.6981, 0.6961), (0.7696, 0.7687, 0.7559, 0.7368), (0.7581, 0.7568, 0.7012, 0.7376)
)
"""Table E."""

ALL_CNN: Accuracy = _by_variant((0.9301, 0.9422, 0.9304, 0.9261), (0.9468, 0.9232, 0.9197, 0.8971))
"""Table A."""

RESNET: Accuracy = _by_variant((0.8973, 0.8907, 0.9041, 0.905), (0.9027, 0.9027, 0.9134, 0.9139))
"""Table R."""

NO_BATCH_NORM: Mapping[str, Mapping[str, tuple[float, float]]] = {
    "batch-norm": {"linked-relu": (0.9027, 2.09), "selu": (0.9041, 2.07), "linked-selu": (0.9134, 2.08)},
    "none": {"linked-relu": (0.9048, 1.0), "selu": (0.8611, 1.38), "linked-selu": (0.9088, 1.6)},
}
"""Table N: accuracy, and training time relative to linked ReLU without Batch Normalization."""

ADDED: Mapping[str, str] = {
    "covariate_shift": "no experiment of the paper; nets and training of its table D",
    "input_shift": "no experiment of the paper; net and training of its table E, ReLU only",
    "step_time": "the paper does not say how it took its times; here on upscaled digits",
}
"""Experiments of ours that the paper does not have, and whose protocol they follow."""

EVERYWHERE = (
    "padding of strided convolutions is even (one pixel off), PReLU has one slope a layer instead of one an element, "
    "augmented images move by whole pixels, seeds are 0, 1, ... (paper 100). As in Keras, running moments of Batch "
    "Normalization weigh a batch by 0.01, and lag behind in a short run, where batch_norm_momentum says nothing else: "
    "accuracies of BN after a few hundred steps are then lower than its training losses let expect"
)
"""What differs in every run."""

CLAIMS: Mapping[str, str] = {
    "C1": "No unit dies where units are linked",
    "C2": "No gradient death at any depth without normalisation",
    "C3": "Internal covariate shift is implicitly solved",
    "C4": "About half the training time of Batch Normalization",
    "C5": "No need to standardise the input data",
    "C6": "Competitive accuracy",
}
