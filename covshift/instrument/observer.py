"""From a module's calls to rows of the open block: call sites, preactivations, activations and their gradients.

The observer is told of every call of the model's modules. It follows the live stack of calls to name call sites, so
that a module shared between blocks has one site for each; it summarises every output where it lies, at once, and keeps
no tensor; and it asks for the gradient of each output it has summarised.
"""

from __future__ import annotations

import fnmatch
import threading
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from covshift import schema
from covshift.exceptions import InvalidArgumentError
from covshift.instrument import sites
from covshift.instrument.block import Block
from covshift.instrument.forward import Call, Forward, Seen
from covshift.instrument.gradients import Gradients, Row, summarize_value
from covshift.instrument.hooks import unseen
from covshift.instrument.incidents import Incidents
from covshift.instrument.structural import ZeroSet, zero_set
from covshift.schema import Status
from covshift.summary import Summary
from covshift.summary.cpu import FORMS


@dataclass(frozen=True)
class Settings:
    """What the user asked to observe."""

    layers: sites.Selection | list[sites.Selection] | None = None
    signals: tuple[str, ...] = schema.SIGNALS
    unit_axis: Mapping[str, int] = field(default_factory=dict)
    example_axis: int = 0


class _Local(threading.local):
    depth: int = 0
    forward: Forward | None = None


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

    Attributes
    ----------
    layers : dict of str to Layer
        Every layer observed so far, in the order of first appearance.
    """

    def __init__(
        self, model: nn.Module, settings: Settings, incidents: Incidents, open_block: Callable[[], Block | None]
    ) -> None:
        self._root = weakref.ref(model)
        self._settings = settings
        self._incidents = incidents
        self._open_block = open_block
        self._names = {id(module): name or sites.ROOT for name, module in model.named_modules()}
        self._children = {
            (id(parent), id(child)): name for parent in model.modules() for name, child in parent.named_children()
        }
        self._observed = sites.select(model, settings.layers)
        self._preactivation_of: dict[str, str] = {}
        # Learned slopes move the zeros of a PReLU, so only activations without parameters are looked up once.
        self._zero_sets = {
            id(module): zero_set(module) for module in model.modules() if not any(True for _ in module.parameters())
        }
        self._gradients = Gradients(incidents)
        self._called: set[int] = set()
        self._local = _Local()
        self.layers: dict[str, schema.Layer] = {}

    @property
    def never_called(self) -> list[str]:
        """Observed modules without children that no recorded forward pass called."""
        root = self._root()
        leaves = [] if root is None else [m for m in root.modules() if sites.is_leaf(m) and id(m) in self._observed]
        return [self._names[id(module)] for module in leaves if id(module) not in self._called]

    def enter(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Follow a call; a call of the root, or outside any other, starts a forward pass."""
        local = self._local
        if local.depth == 0 or module is self._root():
            # An interrupt may have left a stale stack behind: a new pass starts clean.
            local.depth, local.forward = 0, None
            with self._incidents.guard("forward"), unseen():
                local.forward = self._begin(module, args)
        local.depth += 1
        if local.forward is not None:
            try:
                with unseen():
                    self._follow(local.forward, module, args)
            except Exception as error:  # noqa: BLE001 - see Incidents.failed
                self._incidents.failed(self._names[id(module)], error)

    def leave(self, module: nn.Module, output: Any) -> None:
        """Observe the output of a call; ``output`` is None where the call raised."""
        local = self._local
        forward = local.forward
        local.depth = max(local.depth - 1, 0)
        if local.depth == 0:
            local.forward = None
        if forward is not None:
            try:
                call = forward.leave(module)
                if call is not None and output is not None and id(module) in self._observed:
                    with unseen():
                        self._observe_outputs(forward, call, output)
            except Exception as error:  # noqa: BLE001 - see Incidents.failed
                self._incidents.failed(self._names[id(module)], error)

    def pass_over(self, module: nn.Module) -> None:
        """Say once that calls under torch.func are not recorded."""
        self._incidents.warn_once(
            "torch.func",
            "model",
            f"layer '{self._names[id(module)]}' ran under torch.func (vmap, grad, jvp): such calls are not recorded",
        )

    def recompute(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """A module runs again inside backward, to recompute what activation checkpointing dropped."""
        if id(module) in self._observed and sites.activation_kind(module):
            self._rejoin(module, "preactivation_grad", args[:1])

    def recomputed(self, module: nn.Module, output: Any) -> None:
        """A module has run again inside backward: gradients arrive on these tensors."""
        if id(module) in self._observed:
            self._rejoin(module, "activation_grad", output)

    def _rejoin(self, module: nn.Module, signal: str, values: Any) -> None:
        try:
            with unseen():
                for _, tensor in sites.leaves(values):
                    if tensor.requires_grad and _is_summarizable(tensor):
                        self._gradients.rejoin(id(module), signal, tensor)
        except Exception as error:  # noqa: BLE001 - see Incidents.failed
            self._incidents.failed(self._names[id(module)], error)

    def _begin(self, module: nn.Module, args: tuple[Any, ...]) -> Forward | None:
        block = self._open_block()
        if block is None:
            return None
        root = self._root()
        forward = Forward(block, block.in_mode(training=(root or module).training), torch.is_grad_enabled())
        inputs = [(path, leaf) for path, leaf in sites.leaves(args) if _is_summarizable(leaf)]
        axis = self._settings.example_axis
        if inputs and -inputs[0][1].ndim <= axis < inputs[0][1].ndim:
            forward.batch_size = inputs[0][1].shape[axis]
        if module is root and "input" in self._settings.signals and id(module) in self._observed:
            for path, tensor in inputs:
                name = sites.INPUT if path == "0" else f"{sites.INPUT}:{path}"
                layer = replace(self._describe(forward, name, nn.Identity(), tensor, None), module_type="input")
                self.layers[name] = layer
                forward.rows.add(name, "input", summarize_value(Row(block, forward.rows, layer, "input"), tensor))
        return forward

    def _follow(self, forward: Forward, module: nn.Module, args: tuple[Any, ...]) -> None:
        parent = forward.stack[-1] if forward.stack else None
        child = self._children.get((id(parent.module), id(module))) if parent else None
        if parent is None or child is None:
            path = self._names[id(module)]
        else:
            path = child if parent.site == sites.ROOT else f"{parent.site}.{child}"
        z = args[0] if args and isinstance(args[0], torch.Tensor) else None
        call = Call(module, forward.name(path), forward.find(z) if z is not None else None)
        forward.stack.append(call)
        self._called.add(id(module))
        if z is not None and id(module) in self._observed and sites.activation_kind(module) and _is_summarizable(z):
            self._observe_preactivation(forward, call, z)

    def _observe_preactivation(self, forward: Forward, call: Call, z: torch.Tensor) -> None:
        site, rows, producer = call.site, forward.rows, call.reads
        if producer is not None and self._is_joined(site, producer):
            summary = producer.summary
            rows.mark(site, "preactivation", Status.UNDER_PRODUCER)
            rows.mark(site, "preactivation_grad", Status.UNDER_PRODUCER)
        else:
            row = Row(forward.block, rows, self._reading(forward, site, call.module, z), "preactivation_grad")
            summary = summarize_value(row, z)
            if "preactivation" in self._settings.signals:
                rows.add(site, "preactivation", summary)
            self._ask_for_gradient(forward, row, call.module, z, summary)
        zeros = self._zeros_of(call.module)
        if zeros is not None and zeros.covers(z.dtype):
            rows.add_structural_zeros(site, zeros.count(z, summary))

    def _is_joined(self, site: str, producer: Seen) -> bool:
        """Whether the producer's rows hold everything asked for of this pre-activation, now and at the first call."""
        signals = self._settings.signals
        if "activation" not in signals or ("preactivation_grad" in signals and "activation_grad" not in signals):
            return False
        return self._preactivation_of.setdefault(site, producer.layer) == producer.layer

    def _observe_outputs(self, forward: Forward, call: Call, output: Any) -> None:
        is_leaf = sites.is_leaf(call.module)
        for path, tensor in sites.leaves(output):
            name = f"{call.site}:{path}" if path else call.site
            if not is_leaf and forward.find(tensor) is not None:
                continue
            if _is_summarizable(tensor):
                self._observe_activation(forward, call, name, tensor)
            elif is_leaf:
                self._incidents.warn_once(
                    "unsupported",
                    name,
                    f"layer '{name}': output of {tensor.dtype}, {tensor.layout} on {tensor.device.type} is not "
                    "summarised (expected a strided floating-point tensor); the layer is left out",
                )

    def _observe_activation(self, forward: Forward, call: Call, name: str, tensor: torch.Tensor) -> None:
        layer = self.layers.get(name) or self._describe(forward, name, call.module, tensor, call.reads)
        row = Row(forward.block, forward.rows, layer, "activation_grad")
        summary = summarize_value(row, tensor)
        if "activation" in self._settings.signals:
            status = Status.AXIS_UNKNOWN if layer.example_axis == schema.UNKNOWN_AXIS else Status.OK
            forward.rows.add(name, "activation", summary, status)
        unit_axis = None if layer.unit_axis == schema.UNKNOWN_AXIS else layer.unit_axis
        forward.remember(tensor, name, summary, unit_axis=unit_axis)
        self._ask_for_gradient(forward, row, call.module, tensor, summary)

    def _describe(
        self, forward: Forward, name: str, module: nn.Module, tensor: torch.Tensor, reads: Seen | None
    ) -> schema.Layer:
        """Static description of a layer from its first output."""
        source = reads.tensor() if reads is not None else None
        inherited = reads.unit_axis if reads and source is not None and source.ndim == tensor.ndim else None
        unit_axis, example_axis = sites.axes(module, tensor, inherited)
        for pattern, axis in self._settings.unit_axis.items():
            if fnmatch.fnmatchcase(name, pattern):
                unit_axis = self._checked_axis(name, axis, tensor)
        if unit_axis == example_axis and tensor.ndim > 1:
            # A single example without a batch axis.
            example_axis = schema.UNKNOWN_AXIS
        zeros = self._zeros_of(module)
        layer = replace(
            self._undescribed(name, module),
            structural_measured=zeros is not None and zeros.covers(tensor.dtype),
            unit_axis=unit_axis,
            example_axis=example_axis,
            unit_count=tensor.shape[unit_axis] if tensor.ndim > 1 else 0,
            dtype=str(tensor.dtype).removeprefix("torch."),
            memory_format=_memory_format(tensor),
        )
        known = forward.batch_size is not None and tensor.ndim > 0 and example_axis != schema.UNKNOWN_AXIS
        if known and tensor.shape[example_axis] != forward.batch_size:
            layer = self._without_axes(layer, tensor, forward.batch_size or 0)
        self.layers[name] = layer
        return layer

    def _checked_axis(self, name: str, axis: int, tensor: torch.Tensor) -> int:
        if -tensor.ndim <= axis < tensor.ndim:
            return axis % tensor.ndim
        raise InvalidArgumentError(f"unit_axis={axis} for layer '{name}': its output has {tensor.ndim} axes")

    def _reading(self, forward: Forward, site: str, module: nn.Module, z: torch.Tensor) -> schema.Layer:
        """The layer as reader of ``z``: no units, and examples where the example axis holds the batch."""
        example_axis = sites.axes(module, z, None)[1]
        matches = forward.batch_size is None or (z.ndim > 0 and z.shape[example_axis] == forward.batch_size)
        return replace(self._undescribed(site, module), example_axis=example_axis if matches else schema.UNKNOWN_AXIS)

    def _undescribed(self, name: str, module: nn.Module) -> schema.Layer:
        return schema.Layer(
            name,
            module_type=type(module).__name__,
            depth=len(self.layers),
            activation=sites.activation_kind(module),
            linkage_members=len(module.linkage_members) if sites.is_linkage(module) else 0,  # type: ignore[arg-type]
            preactivation_of=self._preactivation_of.get(name, ""),
        )

    def _zeros_of(self, module: nn.Module) -> ZeroSet | None:
        return self._zero_sets[id(module)] if id(module) in self._zero_sets else zero_set(module)

    def _without_axes(self, layer: schema.Layer, tensor: torch.Tensor, batch_size: int) -> schema.Layer:
        self._incidents.warn_once(
            "axis",
            layer.name,
            f"layer '{layer.name}': axis {layer.example_axis} of its output {tuple(tensor.shape)} is not the batch of "
            f"{batch_size}; recorded without units and example groups. Name the axes with example_axis= and unit_axis=",
        )
        return replace(layer, unit_axis=schema.UNKNOWN_AXIS, example_axis=schema.UNKNOWN_AXIS, unit_count=0)

    def _ask_for_gradient(
        self, forward: Forward, row: Row, module: nn.Module, tensor: torch.Tensor, summary: Summary
    ) -> None:
        if row.signal not in self._settings.signals:
            return
        if tensor.requires_grad:
            self._gradients.ask(row, tensor)
        elif not forward.grad_enabled:
            row.mark(Status.NO_GRAD_FORWARD)
        elif torch.is_grad_enabled():
            row.mark(Status.NO_GRAD_REQUIRED)
        else:
            # Grad mode was switched off inside the forward pass: a checkpoint may run this again during backward.
            self._gradients.await_second_pass(row, id(module), summary)


def _is_summarizable(tensor: torch.Tensor) -> bool:
    return tensor.layout == torch.strided and tensor.dtype in FORMS and not tensor.is_nested and not tensor.is_meta


def _memory_format(tensor: torch.Tensor) -> str:
    if tensor.is_contiguous():
        return "contiguous"
    if tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
        return "channels_last"
    return "strided"
