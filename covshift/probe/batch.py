"""A batch as a probe takes it: checked, run through the model, and judged by the loss.

Bad batches are refused before the model runs: empty, with NaN, or on a device where the model is not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from covshift.exceptions import InvalidArgumentError, ProbeUnsupported
from covshift.instrument import sites

LossFunction = Callable[..., torch.Tensor]


@dataclass(frozen=True)
class Batch:
    """Inputs of a model, and whatever its loss needs besides the output.

    Attributes
    ----------
    inputs : Any
        A mapping is passed as keywords, a tuple or list as positional arguments, anything else as the one argument.
    targets : tuple
        Passed to the loss function after the output.
    """

    inputs: Any
    targets: tuple[Any, ...] = ()

    @property
    def tensors(self) -> list[torch.Tensor]:
        """Every tensor of the batch."""
        return [tensor for part in (self.inputs, self.targets) for _, tensor in sites.leaves(part)]

    def output(self, model: nn.Module) -> Any:
        """What the model makes of the inputs."""
        if isinstance(self.inputs, Mapping):
            return model(**self.inputs)
        if is_several(self.inputs):
            return model(*self.inputs)
        return model(self.inputs)

    def loss(self, model: nn.Module, loss_fn: LossFunction, *, finite: bool = True) -> torch.Tensor:
        """The loss of the batch.

        Raises
        ------
        InvalidArgumentError
            If it is no scalar, or not finite although ``finite`` is demanded.
        """
        loss = loss_fn(self.output(model), *self.targets)
        if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
            what = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, torch.Tensor) else repr(loss)
            raise InvalidArgumentError(f"loss_fn: returned {what}: expected a tensor of one element; reduce it")
        if finite and not bool(torch.isfinite(loss.detach()).all()):
            raise InvalidArgumentError(
                f"loss_fn: the loss of this batch is {float(loss.detach())}, whose gradients say nothing: probe an "
                "earlier state, or a batch whose loss is finite"
            )
        return loss.reshape(())


def is_several(value: object) -> bool:
    """Whether a value is a tuple or list of things; a packed sequence, though a tuple, is one."""
    return isinstance(value, tuple | list) and not isinstance(value, nn.utils.rnn.PackedSequence)


def as_batch(model: nn.Module, batch: Any, *, name: str = "batch") -> Batch:
    """A batch as training loops have it: ``(inputs, *targets)``, or a mapping or tensor of inputs alone.

    Raises
    ------
    InvalidArgumentError
        See :func:`checked`.
    """
    if is_several(batch) and batch:
        return checked(model, Batch(batch[0], tuple(batch[1:])), name=name)
    return checked(model, Batch(batch), name=name)


def checked(model: nn.Module, batch: Batch, *, name: str) -> Batch:
    """Demand a batch that the model can be probed with.

    Raises
    ------
    InvalidArgumentError
        If it holds no tensor, an empty one, one with NaN, or one on a device that holds no part of the model.
    """
    tensors = batch.tensors
    if not tensors:
        raise InvalidArgumentError(f"{name}: holds no tensor; expected (inputs, *targets), a mapping, or a tensor")
    devices = {held.device for held in (*model.parameters(), *model.buffers())}
    for tensor in tensors:
        if not tensor.numel():
            raise InvalidArgumentError(f"{name}: a tensor of shape {tuple(tensor.shape)} is empty; give some examples")
        if devices and tensor.device not in devices:
            where = ", ".join(sorted(map(str, devices)))
            raise InvalidArgumentError(f"{name}: a tensor is on {tensor.device}, the model on {where}; move it there")
        if tensor.is_floating_point() and bool(torch.isnan(tensor).any()):
            raise InvalidArgumentError(f"{name}: a tensor of shape {tuple(tensor.shape)} has NaN; leave those out")
    return batch


def gradients_of(loss: torch.Tensor, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor | None]:
    """Gradient of the loss with respect to each tensor, None where it does not depend on it; no ``.grad`` is touched.

    Raises
    ------
    InvalidArgumentError
        If autograd cannot differentiate the loss.
    ProbeUnsupported
        If the model uses reentrant activation checkpointing, which cannot.
    """
    if not loss.requires_grad:
        raise InvalidArgumentError(
            "loss_fn: the loss does not depend on the model by operations that autograd can differentiate; expected "
            "the training loss (an accuracy, a detached tensor or frozen parameters have no gradient)"
        )
    try:
        return list(torch.autograd.grad(loss, tensors, allow_unused=True))
    except RuntimeError as error:
        if "checkpoint" not in str(error).lower():
            raise
        raise ProbeUnsupported(
            "model: reentrant activation checkpointing allows no gradients but .grad; use checkpoint(..., "
            "use_reentrant=False)"
        ) from error
