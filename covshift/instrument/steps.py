"""The step clock: optimizer steps of this model, and nobody else's, as seen by torch's own optimizer hooks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle


class StepClock:
    """Calls ``before`` and ``after`` around every optimizer step that updates a parameter of ``model``.

    A hand-written update is not seen; ``recorder.step()`` states such boundaries. A step that ``GradScaler`` skips
    calls no hook.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        before: Callable[[torch.optim.Optimizer], None],
        after: Callable[[torch.optim.Optimizer], None],
    ) -> None:
        self._parameters = {id(parameter) for parameter in model.parameters()}
        self._before, self._after = before, after
        self._handles: list[RemovableHandle] = []

    def install(self) -> None:
        """Start listening to optimizers."""
        self._handles = [
            register_optimizer_step_pre_hook(self._on_before),
            register_optimizer_step_post_hook(self._on_after),
        ]

    def remove(self) -> None:
        """Stop listening."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _is_ours(self, optimizer: torch.optim.Optimizer) -> bool:
        return any(id(p) in self._parameters for group in optimizer.param_groups for p in group["params"])

    def _on_before(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if self._is_ours(optimizer):
            self._before(optimizer)

    def _on_after(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if self._is_ours(optimizer):
            self._after(optimizer)
