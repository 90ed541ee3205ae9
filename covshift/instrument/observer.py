"""Follows the calls of a model's modules: which forward pass they belong to, and at which call site they are made.

The live stack of calls names call sites, so that a module shared between blocks has one site for each. What the calls
are given and return goes to the collector, which makes rows of it.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from covshift.instrument import sites
from covshift.instrument.block import ACTIVATION_GRAD, PREACTIVATION_GRAD, SIGNAL_COUNT, Block
from covshift.instrument.calls import calls_compiled, given, is_running, keywords, runs_within
from covshift.instrument.callsites import CallSites, Module
from covshift.instrument.collector import Collector
from covshift.instrument.describing import Settings
from covshift.instrument.forward import Forward, Running
from covshift.instrument.functional import FunctionMode, is_disturbed
from covshift.instrument.hooks import faked, unseen
from covshift.instrument.incidents import Incidents
from covshift.instrument.opaque import warn_of_compiled
from covshift.instrument.steps import StepClock
from covshift.instrument.structural import zero_set
from covshift.instrument.userhooks import UserHooks
from covshift.schema import Layer
from covshift.summary.table import is_summarizable


class _Local(threading.local):
    depth: int = 0
    has_graph: bool = True
    forward: Forward | None = None
    functions: FunctionMode | None = None


class Observer:
    """Watches one model's calls and fills blocks; see the module docstring.

    Parameters
    ----------
    model : Module
        The root; only weakly held.
    settings : Settings
        Selection of layers and signals, axes.
    incidents : Incidents
        Takes warnings.
    open_block : callable
        Called at the start of every outermost forward pass; returns the block to fill, or None to let the pass be.
    clock : StepClock
        Knows whether a forward pass of the step now open was seen.

    Attributes
    ----------
    collector : Collector
        Makes rows of what the calls are given and return.
    call_sites : CallSites
        Of all modules and functions called so far.
    compiled : list of str
        Names of modules in whose place something was called that torch.compile has made of them.
    """

    def __init__(
        self,
        model: nn.Module,
        settings: Settings,
        incidents: Incidents,
        *,
        open_block: Callable[[], Block | None],
        clock: StepClock,
    ) -> None:
        self._root = weakref.ref(model)
        self._settings = settings
        self._incidents = incidents
        self._open_block, self._clock = open_block, clock
        self.compiled: list[str] = []
        names = {id(module): name or sites.ROOT for name, module in model.named_modules()}
        chosen = sites.select(model, settings.layers)
        self._modules = {
            id(module): _described(module, names[id(module)], is_observed=id(module) in chosen)
            for module in model.modules()
        }
        self.call_sites = CallSites(model, names)
        self.collector = Collector(settings, incidents)
        self._user_hooks = UserHooks(model, incidents)
        self._local = _Local()

    @property
    def layers(self) -> list[Layer]:
        """Descriptions of the layers observed so far, see :attr:`Collector.layers`."""
        return self.collector.layers

    @property
    def never_called(self) -> list[str]:
        """Observed modules without children that no recorded forward pass called."""
        known = self._modules.values()
        return [module.name for module in known if module.is_leaf and module.is_observed and not module.was_called]

    def expects(self, module: nn.Module) -> bool:
        """Whether a call that is not followed may begin a forward pass: one of the root, or the first of a step."""
        if self._modules[id(module)].is_parametrization:
            return False
        return module is self._root() or not self._clock.has_begun

    def glimpse(self, module: nn.Module) -> None:
        """Let the recorder know that a forward pass begins; what was followed before has ended."""
        local = self._local
        if not torch.is_grad_enabled():
            local.has_graph = False
        elif not local.has_graph:
            if module is not self._root() and runs_within(module, self._modules):
                # Part of a pass without a graph, which has switched gradients on for itself.
                return
            local.has_graph = True
        self._abandon(local, entering=module)
        if not faked():
            with self._incidents.guard("forward"), unseen():
                self._open_block()

    def enter(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Follow a call; a call of the root, or outside any other, starts a forward pass."""
        local = self._local
        if local.depth == 0 or self._is_left_behind(local, module):
            self._abandon(local, entering=module)
            if self._modules[id(module)].is_parametrization:
                return
            local.has_graph = torch.is_grad_enabled()
            with self._incidents.guard("forward"), unseen():
                local.forward = self._begin(module, args)
            if local.forward is not None and self._settings.functional and local.forward.grad_enabled:
                self._see_functions(local.forward)
        local.depth += 1
        forward = local.forward
        if forward is not None:
            try:
                with unseen():
                    self._follow(forward, module, args)
            except Exception as error:  # noqa: BLE001 - see Incidents.failed
                self._incidents.failed(self._modules[id(module)].name, error)

    def _is_left_behind(self, local: _Local, module: nn.Module) -> bool:
        """Whether the calls followed so far are over: another thread ended the step, or an interrupt the calls."""
        forward = local.forward
        if forward is not None and (forward.block.closed or not forward.stack):
            return forward.block.closed
        if module is self._root() and not is_running(module, calls=2):
            return True
        if forward is None:
            # A pass that is not recorded is over where gradients are on that were off, unless it has itself switched
            # them on: models that differentiate inside (energies and forces) do, under no_grad as well.
            return torch.is_grad_enabled() and not local.has_graph and not runs_within(module, self._modules)
        above = forward.stack[-1]
        site = above.call.children.get(id(module))
        return (site is None or site in forward.calls) and not is_running(above.module)

    def _see_functions(self, forward: Forward) -> None:
        if calls_compiled():
            # It has no functions to see, and torch fails to compile it where a mode of this kind is active.
            return
        root = self._root()
        if root is None or is_disturbed(root):
            self._incidents.warn_once(
                "functions",
                "model",
                "functional=True would change the outputs of transformer layers that are frozen and in evaluation "
                "mode; functions are not recorded while there are any",
            )
            return
        self._local.functions = FunctionMode(forward, self)
        self._local.functions.__enter__()  # type: ignore[no-untyped-call]

    def leave(self, module: nn.Module, output: Any) -> None:
        """Observe the output of a call; ``output`` is None where the call raised."""
        local = self._local
        forward = local.forward
        local.depth = max(local.depth - 1, 0)
        if forward is None:
            return
        running = forward.leave(module)
        try:
            known = self._modules[id(module)]
            if running is not None and output is not None and (known.is_observed or known.is_leaf):
                with unseen():
                    self.collector.outputs(forward, running, known, output)
        except Exception as error:  # noqa: BLE001 - see Incidents.failed
            self._incidents.failed(self._modules[id(module)].name, error)
        if local.depth == 0 or (running is not None and forward.is_outermost(running)):
            self._end(forward, is_kept=not forward.has_raised(output))
            self._abandon(local)

    def _abandon(self, local: _Local, *, entering: nn.Module | None = None) -> None:
        """Follow the forward pass of this thread no more: it has ended, or what it is part of has."""
        forward, functions = local.forward, local.functions
        local.depth, local.forward, local.functions = 0, None, None
        if forward is not None and not forward.rows.is_over:
            self._end(forward, is_kept=forward.is_running(entering=entering))
        if functions is not None:
            functions.leave()

    def _end(self, forward: Forward, *, is_kept: bool) -> None:
        with self._incidents.guard("forward"):
            forward.end(is_kept=is_kept)

    def abandon(self) -> None:
        """Follow the forward pass of this thread no more."""
        self._abandon(self._local)

    def forget_interrupted(self) -> None:
        """Drop what an interrupt has left behind in this thread."""
        forward = self._local.forward
        if forward is not None and not forward.is_running():
            self._abandon(self._local)

    def follows_functions_in(self, module: nn.Module) -> bool:
        """Whether activations that a module calls as functions are layers of their own."""
        known = self._modules[id(module)]
        return known.is_observed and not known.is_activation

    def guard(self, function: str) -> AbstractContextManager[None]:
        """Turn a failure to record a function into one warning."""
        return self._incidents.guard(function)

    def see_compiled(self, module: nn.Module) -> None:
        """Say once that calls inside what torch.compile made of a module are not seen."""
        name = self._modules[id(module)].name
        if name not in self.compiled:
            self.compiled.append(name)
            warn_of_compiled(self._incidents, [name])

    def pass_over(self, module: nn.Module) -> None:
        """Say once that calls under torch.func are not recorded."""
        name = self._modules[id(module)].name
        self._incidents.warn_once(
            "torch.func",
            "model",
            f"layer '{name}' ran under torch.func (vmap, grad, jvp): such calls are not recorded",
        )

    def recompute(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """A module runs again inside backward, to recompute what activation checkpointing dropped."""
        if self.collector.gradients.awaits(id(module)) and self._modules[id(module)].is_activation:
            self._rejoin(module, PREACTIVATION_GRAD, given(args))

    def recomputed(self, module: nn.Module, output: Any) -> None:
        """A module has run again inside backward: gradients arrive on these tensors."""
        if self.collector.gradients.awaits(id(module)):
            self._rejoin(module, ACTIVATION_GRAD, output)

    def _rejoin(self, module: nn.Module, signal: int, values: Any) -> None:
        try:
            with unseen():
                for _, tensor in sites.leaves(values):
                    if is_summarizable(tensor):
                        self.collector.gradients.rejoin(id(module), signal, tensor, signals=SIGNAL_COUNT)
        except Exception as error:  # noqa: BLE001 - see Incidents.failed
            self._incidents.failed(self._modules[id(module)].name, error)

    def _begin(self, module: nn.Module, args: tuple[Any, ...]) -> Forward | None:
        positional, named = list(sites.leaves(args)), list(sites.leaves(keywords()))
        if faked() or any(isinstance(tensor, FakeTensor) for _, tensor in positional + named):
            self._incidents.warn_once(
                "fake",
                "model",
                "a forward pass ran on fake tensors (FakeTensorMode), which hold no numbers: such passes are not "
                "recorded",
            )
            return None
        block = self._open_block()
        if block is None:
            return None
        root = self._root()
        # Not "root or module": a compiled root is false, or raises, where the module in it has no length.
        rows = block.begin(training=(module if root is None else root).training)
        forward = Forward(block, rows, weakref.ref(module), torch.is_grad_enabled())
        forward.batch_size = self._batch_size([tensor for _, tensor in positional], [tensor for _, tensor in named])
        if module is root and self._modules[id(module)].is_observed:
            inputs = [(path, tensor) for path, tensor in positional + named if is_summarizable(tensor)]
            self.collector.inputs(forward, inputs)
        return forward

    def _batch_size(self, positional: list[torch.Tensor], named: list[torch.Tensor]) -> int | None:
        """Length of the first argument's example axis; of keywords only, whose order tells nothing, if all agree."""
        axis = self._settings.example_axis
        lengths = [_length(tensor, axis) for tensor in positional or named]
        if positional and lengths[0] is None and axis and not positional[0].is_nested:
            self._incidents.warn_once(
                "axis",
                sites.INPUT,
                f"example_axis={axis}: the model's input {tuple(positional[0].shape)} has no such axis; examples are "
                "taken from each layer's own axis, unchecked",
            )
        if positional:
            return lengths[0]
        known = {length for length in lengths if length is not None}
        return known.pop() if len(known) == 1 else None

    def _follow(self, forward: Forward, module: nn.Module, args: tuple[Any, ...]) -> None:
        known = self._modules[id(module)]
        parent = forward.stack[-1] if forward.stack else None
        above, within = (parent.module, parent.call) if parent else (None, None)
        call = forward.call(self.call_sites.reached(module, above, within, root=sites.ROOT))
        is_nonlinearity = known.is_activation and known.is_observed
        z = args[0] if args else given(args) if is_nonlinearity else None
        # Of an inference tensor it costs a summary to say. Rows of a nonlinearity depend on what it reads; of other
        # modules only the axes do, which their first call tells.
        is_new = (known.is_observed or known.is_leaf) and not call.has_returned
        is_asked = is_nonlinearity or is_new
        reads = None
        if isinstance(z, torch.Tensor) and (is_asked or not z.is_inference()):
            reads = forward.find(z)
        if is_new:
            self.collector.first_read(forward, call, z, reads, within)
        forward.stack.append(Running(module, call, reads))
        known.was_called = True
        if module._forward_hooks or module._forward_pre_hooks:
            self._user_hooks.look_at(module)
        if is_nonlinearity and isinstance(z, torch.Tensor) and is_summarizable(z):
            zeros = zero_set(module) if known.zeros_move else known.zeros
            self.collector.preactivation(forward, call, module, z, reads, zeros)


def _length(tensor: torch.Tensor, axis: int) -> int | None:
    """How long an axis is; None where there is none, and of nested tensors, where only the first has one length."""
    if not -tensor.ndim <= axis < tensor.ndim or (tensor.is_nested and axis % tensor.ndim):
        return None
    return tensor.size(axis)


def _described(module: nn.Module, name: str, *, is_observed: bool) -> Module:
    # Learned slopes move the zeros of a PReLU, so only activations without parameters are looked up once.
    moves = any(True for _ in module.parameters())
    return Module(
        name,
        is_observed=is_observed,
        is_leaf=sites.is_leaf(module),
        is_activation=bool(sites.activation_kind(module)),
        zeros=None if moves else zero_set(module),
        zeros_move=moves,
        is_parametrization=sites.is_parametrization(name),
    )
