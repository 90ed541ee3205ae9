"""Norms of weights, gradients and true updates at the optimizer step, in float64.

The update is measured, not derived from the learning rate: the weights before the step are kept and subtracted after
it, so momentum, weight decay and adaptive scaling are all in it. Norms are accumulated in float64, because a float32
norm of elements of 1e-23 reads 0 and of 1e19 reads infinity.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from covshift import schema
from covshift.exceptions import InvalidArgumentError

UPDATES = ("exact", "sampled", "off")
EXACT_UP_TO = 1_000_000
SAMPLE_SIZE = 65_536
FLAT_UP_TO = 65_536
"""Parameters up to this size are measured together, in one flat tensor: a deep net has hundreds of tiny ones."""


Array = np.ndarray[Any, Any]


class ParameterMeter:
    """Measures all parameters of one model around one optimizer step.

    Parameters
    ----------
    model : Module
        Its parameters as ``named_parameters`` lists them, tied ones once.
    updates : {"sampled", "exact", "off"}
        "sampled" measures the updates of parameters above a million elements on a fixed strided sample of 65,536 and
        scales the norm by the square root of the share; "exact" copies every parameter; "off" measures no update.
    """

    def __init__(self, model: nn.Module, *, updates: str = "sampled") -> None:
        if updates not in UPDATES:
            raise InvalidArgumentError(f"updates={updates!r}: expected one of {', '.join(UPDATES)}")
        self._named = list(model.named_parameters())
        self._updates = updates
        self._before: list[torch.Tensor] | None = None
        self._row: dict[str, Array] = {}

    @property
    def parameters(self) -> list[schema.Parameter]:
        """Static descriptions, in the order of the arrays."""
        return [schema.Parameter(name, p.numel(), p.ndim) for name, p in self._named]

    @torch.no_grad()
    def before_step(self) -> None:
        """Measure weights and gradients, and keep what the update will be measured against."""
        weights = [p.detach() for _, p in self._named]
        gradients = [_dense(p.grad) for _, p in self._named]
        measured = np.array([gradient is not None for gradient in gradients], dtype=bool)
        present = [gradient for gradient in gradients if gradient is not None]
        self._row = {
            "weight_norm": np.sqrt(_sums(weights, _squares)),
            "gradient_norm": _scatter(np.sqrt(_sums(present, _squares)), measured, np.nan),
            "gradient_zero_count": _scatter(_sums(present, _zeros), measured, 0),
            "gradient_nonfinite_count": _scatter(_sums(present, _nonfinite), measured, 0),
            "gradient_measured": measured.astype(np.uint8),
        }
        if self._updates != "off":
            self._before = [self._sample(weight).clone() for weight in weights]

    @torch.no_grad()
    def after_step(self) -> Mapping[str, Array]:
        """The arrays of one ``parameters`` row; call after :meth:`before_step` and the update."""
        unknown = np.full(len(self._named), np.nan)
        row = self._row | {"update_norm": unknown, "sampled_share": unknown}
        if self._before is not None:
            after = [self._sample(p.detach()) for _, p in self._named]
            share = np.array([new.numel() / max(p.numel(), 1) for new, (_, p) in zip(after, self._named, strict=True)])
            changes = [_wide(new) - _wide(old) for new, old in zip(after, self._before, strict=True)]
            norms = np.sqrt(_sums(changes, _squares))
            row |= {"update_norm": norms / np.sqrt(np.where(share > 0, share, 1)), "sampled_share": share}
        self._row, self._before = {}, None
        return row

    def _sample(self, weight: torch.Tensor) -> torch.Tensor:
        if self._updates == "exact" or weight.numel() <= EXACT_UP_TO:
            return weight
        # Every n-th element draws no random number and is the same sample at every step.
        return weight.reshape(-1)[:: -(-weight.numel() // SAMPLE_SIZE)]


def _dense(gradient: torch.Tensor | None) -> torch.Tensor | None:
    if gradient is None:
        return None
    # Repeated rows of a sparse embedding gradient must be summed before anything is counted.
    return gradient.coalesce().to_dense() if gradient.is_sparse else gradient.detach()


def _wide(values: torch.Tensor) -> torch.Tensor:
    return values.to(torch.complex128 if values.is_complex() else torch.float64)


def _squares(values: torch.Tensor) -> torch.Tensor:
    wide = _wide(values)
    return wide.real**2 + wide.imag**2 if wide.is_complex() else wide * wide


def _zeros(values: torch.Tensor) -> torch.Tensor:
    return (values == 0).double()


def _nonfinite(values: torch.Tensor) -> torch.Tensor:
    return torch.isfinite(values).logical_not().double()


def _sums(tensors: list[torch.Tensor], measure: Callable[[torch.Tensor], torch.Tensor]) -> Array:
    """Sum of ``measure`` over each tensor, in float64; small tensors of one device are measured together."""
    sums = np.zeros(len(tensors))
    small: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for index, tensor in enumerate(tensors):
        if tensor.numel() <= FLAT_UP_TO:
            small.setdefault((tensor.device, tensor.dtype), []).append(index)
        else:
            sums[index] = float(measure(tensor).sum())
    for (device, _), indices in small.items():
        # numpy repeats hundreds of times faster than torch.repeat_interleave.
        owner = np.repeat(np.arange(len(indices)), [tensors[index].numel() for index in indices])
        flat = torch.cat([tensors[index].reshape(-1) for index in indices])
        totals = torch.zeros(len(indices), dtype=torch.float64, device=device)
        sums[indices] = totals.index_add_(0, torch.from_numpy(owner).to(device), measure(flat)).cpu().numpy()
    return sums


def _scatter(values: Array, where: Array, fill: float) -> Array:
    array = np.full(where.shape, fill, dtype=np.float64 if isinstance(fill, float) else np.uint64)
    array[where] = values
    return array
