"""Norms of many tensors at once, in float64: by fused kernels in CPU memory, by torch operations elsewhere.

Norms are accumulated in float64, because a float32 norm of elements of 1e-23 reads 0 and of 1e19 reads infinity.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from covshift.summary import cpu

Floats = NDArray[np.float64]
_SINGLE = np.empty(0, np.float32)


class Norms(NamedTuple):
    """Of each tensor: sum of squares, elements equal to zero, NaN or infinite elements; shape ``(tensors,)``."""

    squares: Floats
    zeros: Floats
    nonfinite: Floats


def norms(tensors: Sequence[torch.Tensor]) -> Norms:
    """Measure tensors of any dtype, device and layout; a sparse one counts as what it would be when dense.

    Examples
    --------
    >>> norms([torch.tensor([3.0, 0.0, -4.0])])
    Norms(squares=array([25.]), zeros=array([1.]), nonfinite=array([0.]))
    """
    results = np.zeros((len(tensors), 3))
    kernels = _kernels()
    plain = [index for index, tensor in enumerate(tensors) if kernels is not None and _is_plain(tensor)]
    if plain:
        addresses = np.array([tensors[index].data_ptr() for index in plain], np.int64)
        sizes = np.array([tensors[index].numel() for index in plain], np.int64)
        measured = np.empty((len(plain), 3))
        kernels.measure(addresses, sizes, measured, _SINGLE)
        results[plain] = measured
    others = sorted(set(range(len(tensors))) - set(plain))
    for index, row in zip(others, _together([_sums(tensors[index]) for index in others]), strict=True):
        results[index] = row
    return Norms(*results.T)


class Before(NamedTuple):
    """What :func:`kept` has copied: a flat array for the kernels, and copies of what they cannot read."""

    flat: NDArray[np.float32]
    counts: NDArray[np.int64]
    steps: NDArray[np.int64]
    plain: list[int]
    others: dict[int, torch.Tensor]


def kept(tensors: Sequence[torch.Tensor], steps: Sequence[int]) -> Before:
    """Copies of every ``steps[k]``-th element of each tensor, for :func:`squared_changes`."""
    kernels = _kernels()
    plain = [index for index, tensor in enumerate(tensors) if kernels is not None and _is_plain(tensor)]
    every = np.array([steps[index] for index in plain], np.int64)
    counts = np.array([-(-tensors[index].numel() // steps[index]) for index in plain], np.int64)
    flat = np.empty(int(counts.sum()), np.float32)
    if plain:
        kernels.keep(np.array([tensors[index].data_ptr() for index in plain], np.int64), counts, every, flat)
    missed = set(range(len(tensors))) - set(plain)
    others = {index: sampled(tensors[index], steps[index]).clone() for index in sorted(missed)}
    return Before(flat, counts, every, plain, others)


def squared_changes(tensors: Sequence[torch.Tensor], steps: Sequence[int], before: Before) -> Floats:
    """Sum of squared changes since :func:`kept`, over the elements it has copied; NaN where a tensor has moved.

    A tensor has moved where its dtype, device, layout or size is another one than before.
    """
    results = np.full(len(tensors), np.nan)
    lengths = dict(zip(before.plain, before.counts.tolist(), strict=True))
    same = [
        _is_plain(tensors[index]) and -(-tensors[index].numel() // steps[index]) == lengths[index]
        for index in before.plain
    ]
    if before.plain and all(same):
        addresses = np.array([tensors[index].data_ptr() for index in before.plain], np.int64)
        measured = np.empty(len(before.plain))
        _kernels().measure_changes(addresses, before.counts, before.steps, before.flat, measured)
        results[before.plain] = measured
    changes = {}
    for index, old in before.others.items():
        new = sampled(tensors[index], steps[index])
        if (new.shape, new.dtype, new.device) == (old.shape, old.dtype, old.device):
            changes[index] = _squares(_wide(new) - _wide(old)).sum().reshape(1)
    for index, row in zip(changes, _together(list(changes.values())), strict=True):
        results[index] = row[0]
    return results


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
    total = tensor.numel()
    values = tensor.detach()
    if values.layout != torch.strided:
        # Repeated entries of a sparse gradient must be summed before anything is counted.
        values = values.coalesce().values() if values.layout == torch.sparse_coo else values.to_dense()
    sums = (_squares(_wide(values)).sum(), (values != 0).sum(), torch.isfinite(values).logical_not().sum())
    squares, nonzero, nonfinite = (part.to(torch.float64) for part in sums)
    return torch.stack([squares, total - nonzero, nonfinite])


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

    for function in (kernels.measure, kernels.keep, kernels.measure_changes):
        cpu.keep_compiled(function, Path(kernels.__file__))
    return kernels
