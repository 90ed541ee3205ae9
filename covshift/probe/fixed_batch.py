"""The probe of a recorder: the same examples, run beside the training, recorded in rows of their own."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from covshift.exceptions import InvalidArgumentError, UnsupportedModelError
from covshift.instrument.block import Block
from covshift.instrument.schedule import Schedule
from covshift.probe.batch import Batch, checked, gradients_of, is_several
from covshift.probe.state import MODES, visiting

STREAM = "probe"


class FixedBatch:
    """Runs one model on one batch when it is due.

    Parameters
    ----------
    model : Module
        The recorded model, wrapped or not; only weakly held.
    probe : tensor, mapping, tuple, or (inputs, loss)
        Inputs: a tuple is passed as positional arguments, a mapping as keywords. Where the last entry of a tuple is a
        callable, it is the loss of the output, and gradients are recorded, too.
    every : Schedule
        Numbers of steps done after which to run.
    mode : {"eval", "train"}
        Training flags of the passes.
    functional : bool, default False
        Whether the recorder follows activations called as functions, which it does only where a graph is built.

    Raises
    ------
    InvalidArgumentError
        If the batch cannot be used, or the model does not run on it, which is tried once.
    ProbeUnsupported
        If the model cannot be probed.

    Attributes
    ----------
    block : Block or None
        The block to fill while the model runs, None otherwise.
    """

    def __init__(self, model: nn.Module, probe: Any, *, every: Schedule, mode: str, functional: bool = False) -> None:
        if mode not in MODES:
            raise InvalidArgumentError(f"probe_mode={mode!r}: expected one of {', '.join(MODES)}")
        inputs, self._loss = _parted(probe)
        self._model = weakref.ref(model)
        self._batch = checked(model, Batch(inputs), name="probe")
        self._every, self._mode = every, mode
        self._graph = functional or self._loss is not None
        self._autocast: list[tuple[str, torch.dtype]] = []
        self._last = -1
        self.block: Block | None = None
        self._try(model)

    @property
    def description(self) -> dict[str, Any]:
        """Attributes of a recording that tell how its probe rows came about."""
        return {
            "probe_every": str(self._every),
            "probe_mode": self._mode,
            "probe_gradients": self._loss is not None,
        }

    def _try(self, model: nn.Module) -> None:
        try:
            with visiting(model, mode=self._mode, graph=self._graph, tensors=self._batch.tensors) as visit:
                self._pass(visit.model)
        except (InvalidArgumentError, UnsupportedModelError):
            raise
        except Exception as error:
            raise InvalidArgumentError(
                f"probe: the model does not run on it ({type(error).__name__}: {error}); a tuple is passed as "
                "positional arguments, so for (inputs, labels) give (inputs, lambda output: loss_fn(output, labels))"
            ) from error

    def _pass(self, model: nn.Module) -> None:
        if self._loss is None:
            self._batch.output(model)
            return
        # A loss that is not finite has gradients that are not: that is recorded, not refused.
        loss = self._batch.loss(model, self._loss, finite=False)
        gradients_of(loss, [parameter for parameter in model.parameters() if parameter.requires_grad])

    def remember_autocast(self) -> None:
        """A training pass begins: probes run in the precision it runs in."""
        kinds = {tensor.device.type for tensor in self._batch.tensors}
        self._autocast = [(kind, torch.get_autocast_dtype(kind)) for kind in kinds if _is_autocast(kind)]

    def is_due(self, step: int) -> bool:
        """Whether to run after ``step`` steps; once only."""
        if step == self._last or not self._every(step):
            return False
        self._last = step
        return True

    def run(self, step: int, watcher: object) -> Block | None:
        """Run the model, letting ``watcher`` and nobody else see it fill :attr:`block`; None where nothing came."""
        model = self._model()
        if model is None:
            return None
        self.block = block = Block(step, stream=STREAM)
        try:
            with ExitStack() as stack:
                # The recorder's hooks work without the user's function modes (a default device); the model needs them.
                stack.enter_context(torch._C._EnableTorchFunction())
                for kind, dtype in self._autocast:
                    stack.enter_context(torch.autocast(kind, dtype=dtype))
                tensors = self._batch.tensors
                visit = stack.enter_context(
                    visiting(model, mode=self._mode, graph=self._graph, tensors=tensors, seen_by=watcher)
                )
                self._pass(visit.model)
        finally:
            self.block = None
            block.close()
        return None if block.is_empty else block


def _is_autocast(kind: str) -> bool:
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)


def _parted(probe: Any) -> tuple[Any, Callable[..., torch.Tensor] | None]:
    """Inputs, and the loss where there is one."""
    if not isinstance(probe, tuple | list | Mapping | torch.Tensor):
        raise InvalidArgumentError(
            f"probe={type(probe).__name__}: expected a tensor, a tuple or mapping of inputs, or (inputs, loss) with a "
            "callable loss(output)"
        )
    if not is_several(probe) or not probe or isinstance(probe[-1], torch.Tensor | Mapping):
        return probe, None
    if not callable(probe[-1]):
        return probe, None
    inputs = probe[0] if len(probe) == 2 else tuple(probe[:-1])
    return inputs, probe[-1]
