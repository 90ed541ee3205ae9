"""Handwritten digits that need no download: the 1,797 images of 8x8 pixels bundled with scikit-learn.

The images are scaled and split, never standardised or augmented. Data other than the known ones are refused.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch

from covshift.datasets.split import ImageSplit, IntArray, stratified_split
from covshift.exceptions import CovshiftError

_SHA256 = "87ff0c9e40dc7e2c0e34e7257799c2e3f3aec1a016363bb11cad869ec428a826"
_DESCRIPTION = (
    "1,797 handwritten digits of 13 writers, 8x8 pixels. Each pixel counts the dark ones (0 to 16) in a 4x4 block of "
    "a 32x32 bitmap; here divided by 16."
)
_SOURCE = (
    "E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998, "
    "https://doi.org/10.24432/C50P49 (the test part, as bundled with scikit-learn)"
)
_LICENCE = "CC BY 4.0"


def digits(*, train_size: int = 1400, seed: int = 0) -> ImageSplit:
    """Load the handwritten digits bundled with scikit-learn, split by class.

    Pixels are divided by their maximum of 16 and not standardised, as in the paper (arXiv 1712.02609, claim C5: no need
    to standardise), so inputs lie in [0, 1] with mean 0.31 and mean square 0.23. The split depends on nothing but
    ``train_size`` and ``seed``: see :func:`~covshift.datasets.stratified_split`.

    Parameters
    ----------
    train_size : int, default 1400
        Training examples, from 10 to 1,787; the remaining ones (397) are for testing. Each class has the same share of
        both parts within one example.
    seed : int, default 0
        Non-negative seed of the split.

    Returns
    -------
    ImageSplit
        Images of shape ``(examples, 1, 8, 8)`` in shuffled order.

    Raises
    ------
    CovshiftError
        If scikit-learn is missing, or its digits are not the known ones.
    InvalidArgumentError
        If ``train_size`` or ``seed`` is out of range.

    Examples
    --------
    >>> data = digits()
    >>> data.train_images.shape, data.test_images.shape
    (torch.Size([1400, 1, 8, 8]), torch.Size([397, 1, 8, 8]))
    """
    pixels, labels = _bundled_digits()
    images = torch.from_numpy(pixels).to(torch.float32).div_(16).unsqueeze_(1)
    targets = torch.from_numpy(labels)
    train, test = map(torch.from_numpy, stratified_split(labels, train_size=train_size, seed=seed))
    return ImageSplit(
        train_images=images[train],
        train_labels=targets[train],
        test_images=images[test],
        test_labels=targets[test],
        name="digits",
        classes=10,
        description=_DESCRIPTION,
        source=_SOURCE,
        licence=_LICENCE,
        sha256=_SHA256,
    )


def _bundled_digits() -> tuple[np.ndarray, IntArray]:
    """Pixels (0 to 16, uint8) and labels as bundled, checked byte for byte."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise CovshiftError(
            'the digits are bundled with scikit-learn, which is not installed; pip install "covshift[demo]"'
        ) from error
    bundle = load_digits()
    pixels, labels = bundle.images.astype(np.uint8), bundle.target.astype(np.int64)
    found = hashlib.sha256(pixels.tobytes() + labels.astype(np.uint8).tobytes()).hexdigest()
    if found != _SHA256:
        raise CovshiftError(
            f"the digits bundled with this scikit-learn have SHA-256 {found}; expected {_SHA256}, the data of every "
            "published number; install a scikit-learn release that bundles them"
        )
    return pixels, labels
