"""Norms of many tensors at once, in float64: by fused kernels in CPU memory, by torch operations elsewhere.

Norms are accumulated in float64, because a float32 norm of elements of 1e-23 reads 0 and of 1e19 reads infinity.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from math import gcd
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from covshift.summary import cpu

Floats = NDArray[np.float64]
_SINGLE = np.empty(0, np.float32)
PART = 2**20
"""Elements that torch operations take in at once: their float64 copies need 16 MiB, whatever the size of the tensor."""


class Norms(NamedTuple):
    """Of each tensor: sum of squares, elements equal to zero, NaN or infinite elements; shape ``(tensors,)``."""

    squares: Floats
    zeros: Floats
    nonfinite: Floats


class Tensors:
    """Tensors of any dtype, device and layout that are measured together; a sparse one counts as if it were dense.

    Examples
    --------
    >>> Tensors([torch.tensor([3.0, 0.0, -4.0])]).norms()
    Norms(squares=array([25.]), zeros=array([1.]), nonfinite=array([0.]))
    """

    def __init__(self, tensors: Sequence[torch.Tensor]) -> None:
        self._tensors = tensors
        plain = [_is_plain(tensor) for tensor in tensors] if _kernels() is not None else [False] * len(tensors)
        self._plain = np.flatnonzero(plain)
        chosen = [tensor for tensor, is_plain in zip(tensors, plain, strict=True) if is_plain]
        self._addresses = np.array([tensor.data_ptr() for tensor in chosen], np.int64)
        self._sizes = np.array([tensor.numel() for tensor in chosen], np.int64)
        self._others = [index for index, is_plain in enumerate(plain) if not is_plain]

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Elements of each tensor, shape ``(tensors,)``."""
        sizes = np.empty(len(self._tensors), np.int64)
        sizes[self._plain] = self._sizes
        sizes[self._others] = [self._tensors[index].numel() for index in self._others]
        return sizes

    def norms(self) -> Norms:
        """Measure every element of every tensor."""
        results = np.empty((len(self._tensors), 3))
        if len(self._plain):
            measured = np.empty((len(self._plain), 3))
            _kernels().measure(self._addresses, self._sizes, measured, _SINGLE)
            results[self._plain] = measured
        for index, row in zip(self._others, _together([_sums(self._tensors[k]) for k in self._others]), strict=True):
            results[index] = row
        return Norms(*results.T)

    def kept(self, steps: NDArray[np.int64]) -> Before:
        """Copies of every ``steps[k]``-th element of each tensor, for :meth:`squared_changes`."""
        every = steps[self._plain]
        counts = -(-self._sizes // every)
        starts = np.cumsum(counts) - counts
        flat = np.empty(int(counts.sum()), np.float32)
        if len(self._plain):
            _kernels().keep(self._addresses, counts, every, starts, flat)
        others = {index: sampled(self._tensors[index], int(steps[index])).clone() for index in self._others}
        return Before(steps, self._plain, counts, starts, flat, others)

    def squared_changes(self, before: Before) -> Floats:
        """Sum of squared changes since ``before`` was kept of the same tensors, over the elements it has copied.

        NaN where a tensor has become another one: of another dtype, device, layout or size.
        """
        results = np.full(len(self._tensors), np.nan)
        same, ours, theirs = np.intersect1d(self._plain, before.plain, return_indices=True)
        sizes, every = self._sizes[ours], before.steps[same]
        unchanged = -(-sizes // every) == before.counts[theirs]
        same, ours, theirs, every = same[unchanged], ours[unchanged], theirs[unchanged], every[unchanged]
        if len(same):
            measured = np.empty(len(same))
            _kernels().measure_changes(
                self._addresses[ours], before.counts[theirs], every, before.starts[theirs], before.flat, measured
            )
            results[same] = measured
        changes = {}
        for index, old in before.others.items():
            new = sampled(self._tensors[index], int(before.steps[index]))
            if (new.shape, new.dtype, new.device) == (old.shape, old.dtype, old.device):
                changes[index] = _squares(_wide(new) - _wide(old)).sum().reshape(1)
        for index, row in zip(changes, _together(list(changes.values())), strict=True):
            results[index] = row[0]
        return results


class Before(NamedTuple):
    """What :meth:`Tensors.kept` has copied: a flat array for the kernels, and copies of what they cannot read.

    ``plain`` lists the tensors of the flat array, whose copies have ``counts`` elements and begin at ``starts``.
    """

    steps: NDArray[np.int64]
    plain: NDArray[np.int64]
    counts: NDArray[np.int64]
    starts: NDArray[np.int64]
    flat: NDArray[np.float32]
    others: dict[int, torch.Tensor]


def products(first: Before, second: Before) -> Floats:
    """Inner products of what was kept of the same tensors at two times, shape ``(tensors, 3)``.

    The columns are ``first . second`` (its real part, for complex tensors), ``first . first`` and ``second . second``.
    NaN where a tensor has become another one: of another dtype, device, layout or size.
    """
    results = np.full((len(first.steps), 3), np.nan)
    same, ours, theirs = np.intersect1d(first.plain, second.plain, return_indices=True)
    unchanged = first.counts[ours] == second.counts[theirs]
    same, ours, theirs = same[unchanged], ours[unchanged], theirs[unchanged]
    if len(same):
        measured = np.empty((len(same), 3))
        starts = first.starts[ours], second.starts[theirs]
        _kernels().measure_products(first.flat, starts[0], second.flat, starts[1], first.counts[ours], measured)
        results[same] = measured
    sums = {}
    for index in first.others.keys() & second.others.keys():
        one, two = first.others[index], second.others[index]
        if (one.shape, one.dtype, one.device) == (two.shape, two.dtype, two.device):
            a, b = _wide(one), _wide(two)
            both = (a * b.conj()).real if a.is_complex() else a * b
            sums[index] = torch.stack([both.sum(), _squares(a).sum(), _squares(b).sum()])
    for index, row in zip(sums, _together(list(sums.values())), strict=True):
        results[index] = row
    return results


def only_shrunk(first: Before, second: Before, *, factor: float = 1.0, tolerance: float) -> NDArray[np.bool_]:
    """Of each tensor, whether every kept element of ``second`` is ``factor * first`` times a number from 0 to about 1.

    ``tolerance`` is by how much that number may be above 1. Elements that are not finite are passed over. False where a
    tensor has become another one. Shape ``(tensors,)``.
    """
    results = np.zeros(len(first.steps), dtype=bool)
    if np.array_equal(first.plain, second.plain) and np.array_equal(first.counts, second.counts):
        grown = _grown(torch.from_numpy(first.flat), torch.from_numpy(second.flat), factor, tolerance).numpy()
        so_far = np.concatenate([[0], grown.cumsum()])
        results[first.plain] = so_far[first.starts + first.counts] == so_far[first.starts]
    for index in first.others.keys() & second.others.keys():
        before, now = first.others[index], second.others[index]
        if (before.shape, before.dtype, before.device) == (now.shape, now.dtype, now.device):
            results[index] = not bool(_grown(before, now, factor, tolerance).any())
    return results


def _grown(before: torch.Tensor, now: torch.Tensor, factor: float, tolerance: float) -> torch.Tensor:
    if now.is_complex():
        before, now = torch.view_as_real(before), torch.view_as_real(now)
    before, now = before.double(), now.double()
    return now * before * (factor * (1 + tolerance)) < now**2


@cache
def stride(size: int, at_most: int) -> int:
    """The least step, without a factor in common with ``size``, that picks at most ``at_most`` of ``size`` elements.

    A step with a factor in common meets some rows or columns of a matrix more often than others, and some never: every
    32nd element of 2048 columns lies in 64 of them.

    Examples
    --------
    >>> stride(1024 * 2048, 65_536), stride(1000, 65_536)
    (33, 1)
    """
    step = max(-(-size // at_most), 1)
    while step > 1 and gcd(step, size) > 1:
        step += 1
    return step


def sampled(tensor: torch.Tensor, step: int) -> torch.Tensor:
    """Every ``step``-th element: draws no random number, and is the same sample every time."""
    return tensor if step == 1 else tensor.reshape(-1)[::step]


def _is_plain(tensor: torch.Tensor) -> bool:
    return (
        tensor.dtype is torch.float32
        and type(tensor) in (torch.Tensor, torch.nn.Parameter)
        and tensor.is_cpu
        and tensor.layout is torch.strided
        and tensor.is_contiguous()
        and not tensor.is_neg()
    )


@torch.no_grad()
def _sums(tensor: torch.Tensor) -> torch.Tensor:
    """The three sums of one tensor, as a float64 vector on its device."""
    values = tensor.detach()
    if values.layout != torch.strided:
        # Repeated entries of a sparse gradient must be summed before anything is counted.
        values = values.coalesce().values() if values.layout == torch.sparse_coo else values.to_dense()
    squares, nonzero, nonfinite = torch.stack([_sums_of(part) for part in _parts(values)]).sum(0)
    return torch.stack([squares, tensor.numel() - nonzero, nonfinite])


def _sums_of(part: torch.Tensor) -> torch.Tensor:
    sums = (_squares(_wide(part)).sum(), (part != 0).sum(), torch.isfinite(part).logical_not().sum())
    return torch.stack([one.to(torch.float64) for one in sums])


def _parts(values: torch.Tensor) -> Iterator[torch.Tensor]:
    """Views of at most :data:`PART` elements that together show each element once; subclasses may refuse to be cut."""
    if values.numel() <= PART or type(values) is not torch.Tensor:
        yield values
        return
    longest = max(range(values.ndim), key=lambda axis: values.shape[axis])
    for half in values.tensor_split(2, dim=longest):
        yield from _parts(half)


def _together(vectors: list[torch.Tensor]) -> list[Floats]:
    """Vectors of equal length as arrays, copied from each device in one transfer."""
    arrays: dict[int, Floats] = {}
    for device in {vector.device for vector in vectors}:
        there = [index for index, vector in enumerate(vectors) if vector.device == device]
        joined = torch.stack([vectors[index] for index in there]).cpu().numpy()
        arrays |= dict(zip(there, joined, strict=True))
    return [arrays[index] for index in range(len(vectors))]


def _wide(values: torch.Tensor) -> torch.Tensor:
    return values.detach().to(torch.complex128 if values.is_complex() else torch.float64)


def _squares(wide: torch.Tensor) -> torch.Tensor:
    return wide.real**2 + wide.imag**2 if wide.is_complex() else wide * wide


@cache
def _kernels() -> Any:
    """The compiled kernels, None where numba cannot be had."""
    if not cpu.is_available():
        return None
    from covshift.summary.kernels import norms as kernels

    for function in (kernels.measure, kernels.keep, kernels.measure_changes, kernels.measure_products):
        cpu.keep_compiled(function, Path(kernels.__file__))
    return kernels
