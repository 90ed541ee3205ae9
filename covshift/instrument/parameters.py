"""Norms of weights, gradients and true updates at the optimizer step, in float64.

The update is measured, not derived from the learning rate: the weights before the step are kept and subtracted after
it, so momentum, weight decay and adaptive scaling are all in it. Norms are accumulated in float64, because a float32
norm of elements of 1e-23 reads 0 and of 1e19 reads infinity.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from covshift import schema
from covshift.exceptions import InvalidArgumentError

UPDATES = ("exact", "sampled", "off")
EXACT_UP_TO = 1_000_000
SAMPLE_SIZE = 65_536


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
        self._named = [(name, p) for name, p in model.named_parameters() if isinstance(p, torch.Tensor)]
        self._updates = updates
        self._before: list[torch.Tensor] | None = None
        self._row: dict[str, np.ndarray[Any, Any]] = {}

    @property
    def parameters(self) -> list[schema.Parameter]:
        """Static descriptions, in the order of the arrays."""
        return [schema.Parameter(name, p.numel(), p.ndim) for name, p in self._named]

    @torch.no_grad()
    def before_step(self) -> None:
        """Measure weights and gradients, and keep what the update will be measured against."""
        weights = [p.detach() for _, p in self._named]
        gradients = [_dense(p.grad) for _, p in self._named]
        measured = np.array([gradient is not None for gradient in gradients])
        present = [gradient for gradient in gradients if gradient is not None]
        self._row = {
            "weight_norm": _norms(weights),
            "gradient_norm": _scatter(_norms(present), measured, np.nan),
            "gradient_zero_count": _scatter([g.numel() - int(g.count_nonzero()) for g in present], measured, 0),
            "gradient_nonfinite_count": _scatter(_nonfinite_counts(present), measured, 0),
            "gradient_measured": measured.astype(np.uint8),
        }
        if self._updates != "off":
            self._before = [self._sample(weight).clone() for weight in weights]

    @torch.no_grad()
    def after_step(self) -> Mapping[str, np.ndarray[Any, Any]]:
        """The arrays of one ``parameters`` row; call after :meth:`before_step` and the update."""
        unknown = np.full(len(self._named), np.nan)
        row = self._row | {"update_norm": unknown, "sampled_share": unknown}
        if self._before is not None:
            after = [self._sample(p.detach()) for _, p in self._named]
            sizes = np.array([max(p.numel(), 1) for _, p in self._named], dtype=np.float64)
            share = np.array([sample.numel() for sample in after]) / sizes
            change = _norms([new.double() - old.double() for new, old in zip(after, self._before, strict=True)])
            row |= {"update_norm": change / np.sqrt(np.where(share > 0, share, 1)), "sampled_share": share}
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


def _norms(tensors: list[torch.Tensor]) -> np.ndarray[Any, np.dtype[np.float64]]:
    if not tensors:
        return np.zeros(0)
    norms = torch._foreach_norm([tensor.double() for tensor in tensors], 2)
    return torch.stack([norm.cpu() for norm in norms]).numpy()


def _nonfinite_counts(gradients: list[torch.Tensor]) -> list[int]:
    return [gradient.numel() - int(torch.isfinite(gradient).sum()) for gradient in gradients]


def _scatter(values: Any, where: np.ndarray[Any, Any], fill: float) -> np.ndarray[Any, Any]:
    array = np.full(where.shape, fill, dtype=np.float64 if isinstance(fill, float) else np.uint64)
    array[where] = values
    return array
