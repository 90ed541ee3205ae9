"""What a data set is here, and how one is cut into a training and a test part.

The cut is made from the labels and a seed alone, with integer arithmetic and raw random bits, so that it is the same
with every version of every library. This room refuses to load or change images.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from covshift.exceptions import InvalidArgumentError

IntArray = NDArray[np.int64]


@dataclass(frozen=True, eq=False)  # tensors have no single truth value to compare by
class ImageSplit:
    """Images and labels in a training and a test part, with where they come from.

    Attributes
    ----------
    train_images, test_images : Tensor
        float32 in [0, 1], shape ``(examples, channels, height, width)``.
    train_labels, test_labels : Tensor
        int64 in ``[0, classes)``, shape ``(examples,)``.
    name : str
        Short name, fit for a file name.
    classes : int
        Number of classes.
    description, source, licence : str
        What the images show and how they were prepared; who made them; under which terms they may be used.
    sha256 : str
        SHA-256 of the 8-bit pixels and labels as read, which tells data of one name apart: results state it.
    """

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    name: str
    classes: int
    description: str
    source: str
    licence: str
    sha256: str


def stratified_split(labels: ArrayLike, *, train_size: int, seed: int = 0) -> tuple[IntArray, IntArray]:
    """Cut examples into a training and a test part in which every class keeps its share.

    Each class gives its exact share of ``train_size`` rounded down, and the classes with the largest remainders one
    example more until the size is met (ties: the lower label). Which examples, and in what order, follows from the
    raw 64-bit stream of PCG64, which numpy guarantees never to change, unlike the methods of its ``Generator``.
    Both parts come shuffled, so that any run of examples is a fair sample.

    Parameters
    ----------
    labels : array_like of int
        Class of each example, shape ``(examples,)``.
    train_size : int
        Examples in the training part; at least one for each class must fit in either part.
    seed : int, default 0
        Non-negative seed of the order.

    Returns
    -------
    train, test : ndarray of int64
        Disjoint positions that together are ``0 .. examples - 1``.

    Raises
    ------
    InvalidArgumentError
        If labels are not a one-dimensional array of integers, or a number is out of range.

    Examples
    --------
    >>> train, test = stratified_split([0, 0, 0, 0, 1, 1], train_size=3)
    >>> sorted(train.tolist() + test.tolist())
    [0, 1, 2, 3, 4, 5]
    """
    classes = np.asarray(labels)
    if classes.ndim != 1 or not np.issubdtype(classes.dtype, np.integer):
        raise InvalidArgumentError(
            f"labels have dtype {classes.dtype} and shape {classes.shape}; expected integers of shape (examples,)"
        )
    kinds, inverse, counts = np.unique(classes, return_inverse=True, return_counts=True)
    _require_integer("train_size", train_size, kinds.size, classes.size - kinds.size)
    _require_integer("seed", seed, 0)

    order = np.argsort(np.random.PCG64(seed).random_raw(classes.size), kind="stable")
    quotas = _apportion(counts, train_size)
    chosen = np.zeros(classes.size, dtype=bool)
    for kind, quota in enumerate(quotas):
        chosen[order[inverse[order] == kind][:quota]] = True
    return order[chosen[order]], order[~chosen[order]]


def _apportion(counts: IntArray, total: int) -> IntArray:
    """Shares of ``total`` in proportion to ``counts``, rounded by largest remainder."""
    shares, remainders = np.divmod(counts * total, counts.sum())
    rounded_up = np.argsort(-remainders, kind="stable")[: total - shares.sum()]
    shares[rounded_up] += 1
    return shares


def _require_integer(name: str, value: object, low: int, high: float = math.inf) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not low <= value <= high:
        bounds = f"from {low} to {high}" if high < math.inf else f"of at least {low}"
        raise InvalidArgumentError(f"{name}={value!r}; expected an integer {bounds}")
