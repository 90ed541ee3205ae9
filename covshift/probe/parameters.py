"""Parameters of a visited model: writing them, putting them back, and their values as one vector."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def parameters_put_back(model: nn.Module) -> Iterator[None]:
    """Write back what every parameter held, the same bits into the same tensors."""
    found = [(parameter, parameter.detach().clone()) for parameter in model.parameters()]
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, value in found:
                parameter.copy_(value)


def write(parameters: Sequence[torch.Tensor], values: Sequence[torch.Tensor]) -> None:
    """Overwrite parameters in place."""
    with torch.no_grad():
        for parameter, value in zip(parameters, values, strict=True):
            parameter.copy_(value)


def flat(values: Sequence[torch.Tensor | None], like: Sequence[torch.Tensor]) -> torch.Tensor:
    """All values of a layer in one float64 vector, zeros where a parameter has no gradient."""
    parts = [torch.zeros_like(p) if v is None else v.detach() for v, p in zip(values, like, strict=True)]
    return torch.cat([part.to(torch.float64).flatten() for part in parts])


def norm(vector: torch.Tensor) -> float:
    """L2 norm."""
    return float(torch.linalg.vector_norm(vector))
