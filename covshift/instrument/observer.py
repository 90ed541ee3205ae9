"""From a module's calls to rows of the open block: call sites, preactivations, activations and their gradients.

The observer is told of every call of the model's modules. It follows the live stack of calls to name call sites, so
that a module shared between blocks has one site for each; it summarises every output where it lies, at once, and keeps
no tensor; and it asks for the gradient of each output it has summarised.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from covshift import schema
from covshift.instrument import sites
from covshift.instrument.block import (
    ACTIVATION,
    ACTIVATION_GRAD,
    INPUT,
    PREACTIVATION,
    PREACTIVATION_GRAD,
    SIGNAL_COUNT,
    Block,
)
from covshift.instrument.callsites import Call, CallSites, Module, Observed, reading
from covshift.instrument.describing import Describer, Settings
from covshift.instrument.forward import Forward, Running, Seen
from covshift.instrument.functional import Function, FunctionMode, is_disturbed
from covshift.instrument.gradients import Gradients, Row
from covshift.instrument.hooks import unseen
from covshift.instrument.incidents import Incidents
from covshift.instrument.steps import StepClock
from covshift.instrument.structural import ZeroSet, zero_set
from covshift.schema import Status
from covshift.summary.table import NOBODY, is_summarizable


class _Local(threading.local):
    depth: int = 0
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
    observed : list of Observed
        Every layer observed so far, in the order of first appearance.
    call_sites : CallSites
        Of all modules and functions called so far.
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
        self._wants = [signal in settings.signals for signal in schema.SIGNALS]
        self._incidents = incidents
        self._open_block, self._clock = open_block, clock
        names = {id(module): name or sites.ROOT for name, module in model.named_modules()}
        chosen = sites.select(model, settings.layers)
        self._modules = {
            id(module): _described(module, names[id(module)], is_observed=id(module) in chosen)
            for module in model.modules()
        }
        self.call_sites = CallSites(model, names)
        self._describer = Describer(settings, incidents)
        self._by_name: dict[str, Observed] = {}
        self._gradients = Gradients(incidents)
        self._local = _Local()
        self.observed: list[Observed] = []

    @property
    def layers(self) -> list[schema.Layer]:
        """Descriptions of the layers observed so far; whoever reads them may rely on their staying as they are."""
        for one in self.observed:
            if not one.is_described:
                # Its output failed or was of a kind that is not summarised: it has no axes, now and later.
                one.describe(one.layer)
        return [one.layer for one in self.observed]

    @property
    def never_called(self) -> list[str]:
        """Observed modules without children that no recorded forward pass called."""
        known = self._modules.values()
        return [module.name for module in known if module.is_leaf and module.is_observed and not module.was_called]

    def expects(self, module: nn.Module) -> bool:
        """Whether a call that is not followed may begin a forward pass: one of the root, or the first of a step."""
        return module is self._root() or not self._clock.has_begun

    def glimpse(self, module: nn.Module) -> None:
        """Let the recorder know that a forward pass begins; what was followed before has ended."""
        self._abandon(self._local)
        with self._incidents.guard("forward"), unseen():
            self._open_block()

    def enter(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Follow a call; a call of the root, or outside any other, starts a forward pass."""
        local = self._local
        stale = local.forward is not None and local.forward.block.closed
        if local.depth == 0 or module is self._root() or stale:
            # An interrupt may have left a stack behind, or another thread ended the step: a new pass starts clean.
            self._abandon(local)
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

    def _see_functions(self, forward: Forward) -> None:
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
        try:
            running = forward.leave(module)
            if running is not None and output is not None and self._modules[id(module)].is_observed:
                with unseen():
                    self._observe_outputs(forward, running, output)
        except Exception as error:  # noqa: BLE001 - see Incidents.failed
            self._incidents.failed(self._modules[id(module)].name, error)
        if local.depth == 0:
            self._abandon(local)

    def _abandon(self, local: _Local) -> None:
        """Forget the forward pass of this thread, which has returned or was interrupted."""
        forward, functions = local.forward, local.functions
        local.depth, local.forward, local.functions = 0, None, None
        if forward is not None:
            forward.block.running -= 1
        if functions is not None:
            functions.leave()

    def abandon(self) -> None:
        """Forget whatever an interrupt has left behind in this thread."""
        self._abandon(self._local)

    def follows_functions_in(self, module: nn.Module) -> bool:
        """Whether activations that a module calls as functions are layers of their own."""
        known = self._modules[id(module)]
        return known.is_observed and not known.is_activation

    def guard(self, function: str) -> AbstractContextManager[None]:
        """Turn a failure to record a function into one warning."""
        return self._incidents.guard(function)

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
        if self._gradients.awaits(id(module)) and self._modules[id(module)].is_activation:
            self._rejoin(module, PREACTIVATION_GRAD, args[:1])

    def recomputed(self, module: nn.Module, output: Any) -> None:
        """A module has run again inside backward: gradients arrive on these tensors."""
        if self._gradients.awaits(id(module)):
            self._rejoin(module, ACTIVATION_GRAD, output)

    def _rejoin(self, module: nn.Module, signal: int, values: Any) -> None:
        try:
            with unseen():
                for _, tensor in sites.leaves(values):
                    if tensor.requires_grad and is_summarizable(tensor):
                        self._gradients.rejoin(id(module), signal, tensor, signals=SIGNAL_COUNT)
        except Exception as error:  # noqa: BLE001 - see Incidents.failed
            self._incidents.failed(self._modules[id(module)].name, error)

    def _begin(self, module: nn.Module, args: tuple[Any, ...]) -> Forward | None:
        block = self._open_block()
        if block is None:
            return None
        root = self._root()
        block.begin()
        forward = Forward(block, block.in_mode(training=(root or module).training), torch.is_grad_enabled())
        leaves = list(sites.leaves(args))
        inputs = [(path, leaf) for path, leaf in leaves if is_summarizable(leaf)]
        axis = self._settings.example_axis
        if leaves and -leaves[0][1].ndim <= axis < leaves[0][1].ndim:
            forward.batch_size = leaves[0][1].shape[axis]
        elif leaves and axis:
            self._incidents.warn_once(
                "axis",
                sites.INPUT,
                f"example_axis={axis}: the model's input {tuple(leaves[0][1].shape)} has no such axis; examples are "
                "taken from each layer's own axis, unchecked",
            )
        if module is root and self._wants[INPUT] and self._modules[id(module)].is_observed:
            for path, tensor in inputs:
                layer = self._layer(sites.INPUT if path == "0" else f"{sites.INPUT}:{path}")
                if not layer.is_described:
                    layer.describe(self._describer.of_input(forward, layer.layer, tensor))
                forward.rows.table.add(layer.key + INPUT, tensor, layer.values, units=False)
                forward.rows.set_status(layer.key + INPUT, Status.OK)
        return forward

    def _layer(self, name: str) -> Observed:
        """The layer of that name, new at its first appearance."""
        layer = self._by_name.get(name)
        if layer is None:
            layer = Observed(schema.Layer(name, module_type="", depth=len(self.observed)), len(self.observed))
            self._by_name[name] = layer
            self.observed.append(layer)
        return layer

    def _follow(self, forward: Forward, module: nn.Module, args: tuple[Any, ...]) -> None:
        known = self._modules[id(module)]
        parent = forward.stack[-1] if forward.stack else None
        above, within = (parent.module, parent.call) if parent else (None, None)
        call = forward.call(self.call_sites.reached(module, above, within, root=sites.ROOT))
        z = args[0] if args and isinstance(args[0], torch.Tensor) else None
        reads = forward.find(z) if z is not None else None
        forward.stack.append(Running(module, call, reads))
        known.was_called = True
        if z is not None and known.is_activation and known.is_observed and is_summarizable(z):
            zeros = zero_set(module) if known.zeros_move else known.zeros
            self.observe_preactivation(forward, call, module, z, reads, zeros)

    def observe_preactivation(
        self,
        forward: Forward,
        call: Call,
        module: nn.Module,
        z: torch.Tensor,
        reads: Seen | None,
        zeros: ZeroSet | None,
    ) -> None:
        """Record the input of a nonlinearity: under the layer that produced it, or as a row of its own."""
        rows, layer = forward.rows, call.layers.get("") or self._layer_of(call, "")
        if reads is not None and self._is_joined(call, reads):
            row = reads.row
            rows.mark(layer.key + PREACTIVATION, Status.UNDER_PRODUCER)
            rows.mark(layer.key + PREACTIVATION_GRAD, Status.UNDER_PRODUCER)
        else:
            row = self._add_preactivation(forward, call, layer, module, z)
        if zeros is not None and zeros.covers(z.dtype):
            if z.is_cpu:
                rows.add_structural_zeros(layer.place, zeros.count(z, rows.table.row(row)))
            else:
                count = zeros.counted_on_device(z.detach())
                rows.table.later(count, lambda found: rows.add_structural_zeros(layer.place, int(found[0])))

    def _add_preactivation(
        self, forward: Forward, call: Call, layer: Observed, module: nn.Module, z: torch.Tensor
    ) -> int:
        if call.preactivation is None:
            read = self._describer.of_preactivation(forward, layer.layer, module, z)
            call.preactivation = reading(read, gradients=False)
            call.preactivation_grad = reading(read, gradients=True)
        rows, key = forward.rows, layer.key + PREACTIVATION
        wanted = self._wants[PREACTIVATION]
        row = rows.table.add(key if wanted else NOBODY, z, call.preactivation, units=False)
        if wanted:
            rows.set_status(key, Status.OK)
        if self._wants[PREACTIVATION_GRAD] and call.preactivation_grad is not None:
            place = Row(forward.block, rows, layer.key + PREACTIVATION_GRAD, call.preactivation_grad, False, call.name)
            self._ask_for_gradient(forward, place, module, z, call.preactivation)
        return row

    def _is_joined(self, call: Call, producer: Seen) -> bool:
        """Whether the producer's rows hold everything asked for of this pre-activation, now and at the first call."""
        wants = self._wants
        if not wants[ACTIVATION] or (wants[PREACTIVATION_GRAD] and not wants[ACTIVATION_GRAD]):
            return False
        if call.producer is None:
            call.producer = producer.layer.layer.name
        return call.producer == producer.layer.layer.name

    def _layer_of(self, call: Call, path: str) -> Observed:
        layer = call.layers.get(path)
        if layer is None:
            layer = call.layers[path] = self._layer(f"{call.name}:{path}" if path else call.name)
        return layer

    def _observe_outputs(self, forward: Forward, running: Running, output: Any) -> None:
        is_leaf = self._modules[id(running.module)].is_leaf
        for path, tensor in sites.leaves(output):
            if not is_leaf and forward.find(tensor) is not None:
                continue
            if is_summarizable(tensor):
                self.observe_activation(forward, running, path, tensor)
            elif is_leaf:
                name = f"{running.call.name}:{path}" if path else running.call.name
                self._incidents.warn_once(
                    "unsupported",
                    name,
                    f"layer '{name}': output of {tensor.dtype}, {tensor.layout} on {tensor.device.type} is not "
                    "summarised (expected a strided floating-point tensor); the layer is left out",
                )

    def observe_activation(
        self, forward: Forward, running: Running, path: str, tensor: torch.Tensor, function: Function | None = None
    ) -> None:
        """Record an output of a call: its values now, its gradient when it comes."""
        module, call, _ = running
        layer = self._layer_of(call, path)
        if not layer.is_described:
            self._describe(forward, layer, running, path, tensor, function)
        rows, key = forward.rows, layer.key + ACTIVATION
        seen = layer.seen_by(tensor, forward.batch_size)
        if self._wants[ACTIVATION]:
            row = rows.table.add(key, tensor, seen.values)
            rows.set_status(key, Status.OK if seen.example_axis is not None else Status.AXIS_UNKNOWN)
            forward.remember(tensor, layer, row)
        if self._wants[ACTIVATION_GRAD]:
            place = Row(forward.block, rows, layer.key + ACTIVATION_GRAD, seen.gradients, True, layer.layer.name)
            self._ask_for_gradient(forward, place, module, tensor, seen.values)

    def _describe(
        self,
        forward: Forward,
        layer: Observed,
        running: Running,
        path: str,
        tensor: torch.Tensor,
        function: Function | None,
    ) -> None:
        module, call, reads = running
        if function is None:
            known = self._modules[id(module)]
            zeros = zero_set(module) if known.zeros_move else known.zeros
        else:
            zeros = function.zeros
        described = self._describer.of_output(
            forward, layer.layer, module, tensor, reads, path=path, zeros=zeros, producer=call.producer or ""
        )
        layer.describe(described if function is None else function.describe(described))

    def _ask_for_gradient(
        self, forward: Forward, row: Row, module: nn.Module, tensor: torch.Tensor, values: Any
    ) -> None:
        if tensor.requires_grad:
            self._gradients.ask(row, tensor)
        elif not forward.grad_enabled:
            row.rows.mark(row.key, Status.NO_GRAD_FORWARD)
        elif torch.is_grad_enabled():
            row.rows.mark(row.key, Status.NO_GRAD_REQUIRED)
        else:
            # Grad mode was switched off inside the forward pass: a checkpoint may run this again during backward.
            self._gradients.await_second_pass(row, id(module), tensor, values)


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
    )
