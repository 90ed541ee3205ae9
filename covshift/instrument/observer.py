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
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from covshift import schema
from covshift.grid import GRADIENTS, VALUES, Grid
from covshift.instrument import sites
from covshift.instrument.block import Block, Pass
from covshift.instrument.hooks import hook_gradient
from covshift.instrument.incidents import Incidents
from covshift.instrument.structural import ZeroSet, zero_set
from covshift.schema import Status
from covshift.summary import FLOATING, Summary, summarize


@dataclass(frozen=True)
class Settings:
    """What the user asked to observe."""

    layers: sites.Selection | list[sites.Selection] | None = None
    signals: tuple[str, ...] = schema.SIGNALS
    unit_axis: Mapping[str, int] = field(default_factory=dict)
    example_axis: int = 0


@dataclass(frozen=True)
class Seen:
    """A tensor already summarised in this forward pass: whose output it is, and its numbers."""

    tensor: weakref.ref[torch.Tensor]
    version: int
    layer: str
    summary: Summary
    unit_axis: int | None


@dataclass(frozen=True)
class Call:
    """A module now running: its site and the recorded tensor it reads, if any."""

    module: nn.Module
    site: str
    reads: Seen | None


@dataclass
class Forward:
    """State of one forward pass of one thread."""

    block: Block
    rows: Pass
    grad_enabled: bool
    batch_size: int | None = None
    stack: list[Call] = field(default_factory=list)
    calls: dict[str, int] = field(default_factory=dict)
    seen: dict[int, Seen] = field(default_factory=dict)

    def find(self, tensor: torch.Tensor) -> Seen | None:
        """The row of this very tensor, unless it was modified in place since."""
        seen = self.seen.get(id(tensor))
        return seen if seen and seen.tensor() is tensor and seen.version == _version(tensor) else None

    def name(self, path: str) -> str:
        """``path``, with ``#k`` for its k-th repetition in this forward pass."""
        call = self.calls.get(path, 0)
        self.calls[path] = call + 1
        return f"{path}#{call}" if call else path


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
        self._local = _Local()
        self.layers: dict[str, schema.Layer] = {}

    def enter(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Follow a call; a call of the root, or outside any other, starts a forward pass."""
        local = self._local
        if local.depth == 0 or module is self._root():
            # An interrupt may have left a stale stack behind: a new pass starts clean.
            local.depth, local.forward = 0, None
            with self._incidents.guard("forward"), _unseen():
                local.forward = self._begin(module, args)
        local.depth += 1
        if local.forward is not None:
            try:
                with _unseen():
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
                call = _pop(forward, module)
                if call is not None and output is not None and id(module) in self._observed:
                    with _unseen():
                        self._observe_outputs(forward, call, output)
            except Exception as error:  # noqa: BLE001 - see Incidents.failed
                self._incidents.failed(self._names[id(module)], error)

    def _begin(self, module: nn.Module, args: tuple[Any, ...]) -> Forward | None:
        block = self._open_block()
        if block is None:
            return None
        root = self._root()
        forward = Forward(block, block.in_mode(training=(root or module).training), torch.is_grad_enabled())
        inputs = [(path, leaf) for path, leaf in sites.leaves(args) if _is_summarizable(leaf)]
        if inputs and inputs[0][1].ndim:
            forward.batch_size = inputs[0][1].shape[self._settings.example_axis]
        if module is root and "input" in self._settings.signals and id(module) in self._observed:
            for path, tensor in inputs:
                name = sites.INPUT if path == "0" else f"{sites.INPUT}:{path}"
                layer = self._describe(forward, name, nn.Identity(), tensor, None)
                forward.rows.add(name, "input", self._summary(forward, layer, tensor, units=False))
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
        if z is not None and id(module) in self._observed and sites.activation_kind(module) and _is_summarizable(z):
            self._observe_preactivation(forward, call, z)

    def _observe_preactivation(self, forward: Forward, call: Call, z: torch.Tensor) -> None:
        site, rows, producer = call.site, forward.rows, call.reads
        if producer is not None:
            self._preactivation_of.setdefault(site, producer.layer)
        if producer is not None and self._preactivation_of[site] == producer.layer:
            summary = producer.summary
            rows.mark(site, "preactivation", Status.UNDER_PRODUCER)
            rows.mark(site, "preactivation_grad", Status.UNDER_PRODUCER)
        else:
            layer = self._reading(forward, site, call.module, z)
            summary = self._summary(forward, layer, z, units=False)
            if "preactivation" in self._settings.signals:
                rows.add(site, "preactivation", summary)
            self._ask_for_gradient(forward, layer, "preactivation_grad", z)
        zeros = self._zeros_of(call.module)
        if zeros is not None and zeros.covers(z.dtype):
            rows.structural_zeros[site] = rows.structural_zeros.get(site, 0) + zeros.count(z, summary)

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
        summary = self._summary(forward, layer, tensor, units=forward.block.units)
        if "activation" in self._settings.signals:
            status = Status.AXIS_UNKNOWN if layer.example_axis == schema.UNKNOWN_AXIS else Status.OK
            forward.rows.add(name, "activation", summary, status)
        unit_axis = None if layer.unit_axis == schema.UNKNOWN_AXIS else layer.unit_axis
        forward.seen[id(tensor)] = Seen(weakref.ref(tensor), _version(tensor), name, summary, unit_axis)
        self._ask_for_gradient(forward, layer, "activation_grad", tensor)

    def _describe(
        self, forward: Forward, name: str, module: nn.Module, tensor: torch.Tensor, reads: Seen | None
    ) -> schema.Layer:
        """Static description of a layer from its first output."""
        source = reads.tensor() if reads is not None else None
        inherited = reads.unit_axis if reads and source is not None and source.ndim == tensor.ndim else None
        unit_axis, example_axis = sites.axes(module, tensor, inherited)
        for pattern, axis in self._settings.unit_axis.items():
            if fnmatch.fnmatchcase(name, pattern):
                unit_axis = axis % max(tensor.ndim, 1)
        layer = replace(
            self._undescribed(name, module),
            unit_axis=unit_axis,
            example_axis=example_axis,
            unit_count=tensor.shape[unit_axis] if tensor.ndim > 1 else 0,
            dtype=str(tensor.dtype).removeprefix("torch."),
            memory_format=_memory_format(tensor),
        )
        if forward.batch_size is not None and tensor.ndim and tensor.shape[example_axis] != forward.batch_size:
            layer = self._without_axes(layer, tensor, forward.batch_size)
        self.layers[name] = layer
        return layer

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
            structural_measured=self._zeros_of(module) is not None,
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

    def _summary(self, forward: Forward, layer: schema.Layer, tensor: torch.Tensor, *, units: bool) -> Summary:
        return _summarize(forward.block, layer, tensor, grid=VALUES, groups=schema.EXAMPLE_GROUPS, units=units)

    def _ask_for_gradient(self, forward: Forward, layer: schema.Layer, signal: str, tensor: torch.Tensor) -> None:
        if signal not in self._settings.signals:
            return
        if not tensor.requires_grad:
            reason = Status.NO_GRAD_REQUIRED if forward.grad_enabled else Status.NO_GRAD_FORWARD
            forward.rows.mark(layer.name, signal, reason)
            return
        forward.rows.mark(layer.name, signal, Status.NO_GRADIENT_ARRIVED)
        hook_gradient(tensor, _GradientRow(forward.block, forward.rows, layer, signal, self._incidents))


class _GradientRow:
    """Receives one tensor's gradient; holds rows and numbers, never a tensor."""

    def __init__(self, block: Block, rows: Pass, layer: schema.Layer, signal: str, incidents: Incidents) -> None:
        self._block, self._rows, self._layer, self._signal = block, rows, layer, signal
        self._incidents = incidents
        self._arrived = False

    def __call__(self, gradient: torch.Tensor | None, via_base: bool) -> None:
        # Only the first gradient of a forward counts: a retained graph or a second derivative brings more.
        if self._arrived or self._block.closed:
            return
        try:
            with _unseen():
                self._take(gradient, via_base)
        except Exception as error:  # noqa: BLE001 - see Incidents.failed
            self._incidents.failed(self._layer.name, error)

    def _take(self, gradient: torch.Tensor | None, via_base: bool) -> None:
        if gradient is None:
            self._rows.statuses[self._layer.name, self._signal] = Status.UNUSED_OUTPUT
            return
        self._arrived = True
        units = self._block.units and self._signal in schema.UNIT_SIGNALS
        summary = _summarize(self._block, self._layer, gradient, grid=GRADIENTS, groups=1, units=units)
        status = Status.VIA_BASE if via_base else Status.OK
        self._rows.add(self._layer.name, self._signal, summary, status)


def _summarize(
    block: Block, layer: schema.Layer, tensor: torch.Tensor, *, grid: Grid, groups: int, units: bool
) -> Summary:
    """Summary of one tensor of ``layer``, leaving out what this record or the tensor's shape does not allow."""
    known = layer.example_axis != schema.UNKNOWN_AXIS and layer.example_axis < tensor.ndim
    unit_axis = layer.unit_axis if layer.unit_count > 0 and layer.unit_axis < tensor.ndim else None
    if unit_axis is not None and tensor.shape[unit_axis] != layer.unit_count:
        unit_axis = None
    return summarize(
        tensor,
        unit_axis=unit_axis,
        example_axis=layer.example_axis if known else None,
        grid=grid if block.histograms else None,
        groups=groups,
        units=units,
    )


def _pop(forward: Forward, module: nn.Module) -> Call | None:
    """Leave ``module``; calls above it were left by an exception."""
    while forward.stack:
        call = forward.stack.pop()
        if call.module is module:
            return call
    return None


def _is_summarizable(tensor: torch.Tensor) -> bool:
    return tensor.layout == torch.strided and tensor.dtype in FLOATING and not tensor.is_nested and not tensor.is_meta


def _version(tensor: torch.Tensor) -> int:
    """In-place modifications so far; inference tensors do not count theirs."""
    return -1 if tensor.is_inference() else tensor._version


def _memory_format(tensor: torch.Tensor) -> str:
    if tensor.is_contiguous():
        return "contiguous"
    if tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
        return "channels_last"
    return "strided"


_NOTHING = nullcontext()


def _unseen() -> AbstractContextManager[Any]:
    """Keep reading a tensor from the user's function modes; free where there are none."""
    return torch._C.DisableTorchFunction() if torch._C._len_torch_function_stack() else _NOTHING
