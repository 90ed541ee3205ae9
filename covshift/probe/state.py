"""Visiting a model: running it beside its training and leaving everything as it was, also when the visit fails.

What is put back: the training flag of every module, parameters, buffers, ``.grad`` references, random numbers (of torch
on the CPU and on every device used, of numpy and of Python), grad mode, autocast, and the stance of the compiler.
Buffers and gradients are not copied back but set aside: the visit works on others, so the originals are never written
to. Parameters stay where they are, for optimizers and closures know them, and are written back where a pass has changed
them, as the ``forward`` of a model with a momentum encoder or of ``nn.Embedding(max_norm=...)`` does.

What is not: state that a model keeps elsewhere than in parameters and buffers, and whatever the model's own code does
to the outside world; and, of parameters in memory shared by processes, what is written through ``.data``, which cannot
be told from the step of another process.

Random numbers and the compiler's stance belong to the whole process: visits of several threads take turns, lest one
puts back what another has set. Everything else a visit changes is the model's own, or its thread's.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.overrides import BaseTorchFunctionMode

from covshift.exceptions import InvalidArgumentError, ProbeUnsupported
from covshift.instrument import opaque, sites
from covshift.instrument.hooks import shown_only_to
from covshift.probe.parameters import Originals

MODES = ("eval", "train")
SEED = 0
"""Of every pass of a visit: passes that are compared draw the same dropout masks."""

_SHARDED = ("FullyShardedDataParallel", "FSDPModule")
_WITHOUT_RANDOM_NUMBERS = ("cpu", "meta")

_turn = threading.RLock()


class Visit:
    """A model while it is visited.

    Attributes
    ----------
    model : Module
        The unwrapped model, to be run.
    """

    def __init__(self, model: nn.Module, devices: list[torch.device]) -> None:
        self.model = unwrapped(model)
        self._buffers = [(module._buffers, dict(module._buffers)) for module in model.modules()]
        self._parameters = Originals(model)
        self._devices = devices

    def rewind(self, *, but: Iterable[torch.Tensor] = ()) -> None:
        """Let the next pass begin as the first one did.

        With the same random numbers, and buffers and parameters as they were found, ``but`` these parameters, which
        the caller has written.
        """
        self._parameters.put_back(but=but)
        self._begin()

    def _begin(self) -> None:
        random.seed(SEED)
        # Models draw from numpy's global state, so that is the one to seed.
        np.random.seed(SEED)  # noqa: NPY002
        torch.default_generator.manual_seed(SEED)
        for device in self._devices:
            backend = torch.get_device_module(device)
            # MPS is one device, and has no context to choose it.
            with backend.device(device) if hasattr(backend, "device") else nullcontext():
                backend.manual_seed(SEED)
        copies: dict[int, torch.Tensor | None] = {}
        for held, found in self._buffers:
            held.clear()
            held.update({name: _copy(buffer, copies) for name, buffer in found.items()})

    def leave(self) -> None:
        """Put the buffers and the parameters back."""
        for held, found in self._buffers:
            held.clear()
            held.update(found)
        self._parameters.put_back()


@contextmanager
def visiting(
    model: nn.Module,
    *,
    mode: str,
    graph: bool = True,
    tensors: Iterable[torch.Tensor] = (),
    seen_by: object | None = None,
) -> Iterator[Visit]:
    """Run a model inside the ``with``; see the module docstring for what is put back.

    Parameters
    ----------
    model : Module
        Wrapped or not; DistributedDataParallel and ``torch.compile`` are looked through.
    mode : {"eval", "train"}
        Training flags during the visit. "train" keeps the flags of a model that is in training mode as they stand, so
        that parts frozen in evaluation mode stay so. Flags are set without calling ``model.train``, which models
        override to do more.
    graph : bool, default True
        Whether passes build a graph.
    tensors : iterable of Tensor
        What the model will be given; their devices' random numbers are put back, too.
    seen_by : object, optional
        The one watcher that hooks of covshift tell of these passes; by default no recorder sees them.

    Raises
    ------
    InvalidArgumentError
        If ``model`` is no Module, or ``mode`` is unknown.
    ProbeUnsupported
        If the model cannot be run beside its training.
    """
    demand_supported(model)
    if mode not in MODES:
        raise InvalidArgumentError(f"mode={mode!r}: expected one of {', '.join(MODES)}")
    held = [*model.parameters(), *model.buffers(), *tensors]
    visit = Visit(model, sorted({t.device for t in held if t.device.type not in _WITHOUT_RANDOM_NUMBERS}, key=str))
    with ExitStack() as stack:
        stack.enter_context(_turn)
        stack.enter_context(shown_only_to(seen_by if seen_by is not None else visit))
        stack.enter_context(_random_numbers(visit._devices))
        stack.enter_context(_flags(model, mode))
        stack.enter_context(_gradients(model))
        stack.enter_context(_autocast({tensor.device.type for tensor in held}))
        stack.enter_context(_uncompiled(model))
        # Stock transformer layers call their parts, which their fused inference path hides, where a mode is in force.
        # Unlike torch.backends.mha.set_fastpath_enabled that holds for this thread alone.
        stack.enter_context(BaseTorchFunctionMode())
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.set_grad_enabled(graph))
        stack.callback(visit.leave)
        visit._begin()
        yield visit


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside DistributedDataParallel and ``torch.compile``, however nested."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def demand_supported(model: object) -> None:
    """Demand a model that one rank can run alone, eagerly, and whose buffers can be set aside.

    Raises
    ------
    InvalidArgumentError
        If ``model`` is no Module.
    ProbeUnsupported
        If it has parts of another kind; the message names the first.
    """
    if not isinstance(model, nn.Module):
        raise InvalidArgumentError(f"model: {type(model).__name__}: expected a torch.nn.Module")
    for name, module in model.named_modules():
        reason = _obstacle(module)
        if reason:
            raise ProbeUnsupported(f"model: '{name or sites.ROOT}' is a {type(module).__name__}, {reason}")


def _obstacle(module: nn.Module) -> str:
    if any(base.__name__ in _SHARDED and base.__module__.startswith("torch.") for base in type(module).__mro__):
        return (
            "whose ranks must run together, so no rank can run a probe of its own; gather the weights into an "
            "unsharded copy (get_model_state_dict with full_state_dict=True) and probe that"
        )
    if isinstance(module, nn.SyncBatchNorm):
        return (
            "which talks to all ranks when it runs; probe a copy in which it is replaced by BatchNorm with the same "
            "state"
        )
    if isinstance(module, torch.jit.ScriptModule):
        return "whose buffers cannot be set aside; probe the model before scripting it"
    held = (*module._parameters.values(), *module._buffers.values())
    if any(tensor is not None and nn.parameter.is_lazy(tensor) for tensor in held):
        return "whose parameters have no shape yet; run one batch through the model first"
    return ""


def _copy(buffer: torch.Tensor | None, copies: dict[int, torch.Tensor | None]) -> torch.Tensor | None:
    """A copy to work on, the same one wherever modules share a buffer."""
    if id(buffer) not in copies:
        copies[id(buffer)] = None if buffer is None else buffer.detach().clone().requires_grad_(buffer.requires_grad)
    return copies[id(buffer)]


@contextmanager
def _flags(model: nn.Module, mode: str) -> Iterator[None]:
    found = [(module, module.training) for module in model.modules()]
    try:
        if mode == "eval" or not model.training:
            for module, _ in found:
                module.training = mode == "train"
        yield
    finally:
        for module, training in found:
            module.training = training


@contextmanager
def _gradients(model: nn.Module) -> Iterator[None]:
    found = [(parameter, parameter.grad) for parameter in model.parameters()]
    try:
        for parameter, _ in found:
            parameter.grad = None
        yield
    finally:
        for parameter, gradient in found:
            parameter.grad = gradient


@contextmanager
def _random_numbers(devices: list[torch.device]) -> Iterator[None]:
    own, of_numpy, of_cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    of_devices = [(device, _device_state(device)) for device in devices]
    try:
        yield
    finally:
        random.setstate(own)
        np.random.set_state(of_numpy)  # noqa: NPY002
        torch.set_rng_state(of_cpu)
        for device, state in of_devices:
            torch.get_device_module(device).set_rng_state(state, *_which(device))


def _device_state(device: torch.device) -> Any:
    return torch.get_device_module(device).get_rng_state(*_which(device))


def _which(device: torch.device) -> tuple[torch.device, ...]:
    """How a device is named to its backend: of MPS there is only one."""
    return () if device.type == "mps" else (device,)


@contextmanager
def _autocast(kinds: set[str]) -> Iterator[None]:
    """The autocast now in force, without its cache: a weight cast without a graph would be handed to training."""
    with ExitStack() as stack:
        for kind in sorted(kinds):
            if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
                dtype = torch.get_autocast_dtype(kind)
                stack.enter_context(torch.autocast(kind, dtype=dtype, cache_enabled=False))
        yield


@contextmanager
def _uncompiled(model: nn.Module) -> Iterator[None]:
    if not (opaque.compiled(model) or opaque.compiled_in_place(model)):
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield
