"""From the tensors of a call to rows of the open block: inputs, preactivations, activations, and their gradients.

Every tensor is summarised where it lies, at once, and none is kept; the gradient of each is asked for. What is recorded
is what a module's ``forward`` was given and returned: forward hooks of the user's own run after covshift's.
"""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import nn

from covshift import schema
from covshift.instrument import sites
from covshift.instrument.block import ACTIVATION, ACTIVATION_GRAD, INPUT, PREACTIVATION, PREACTIVATION_GRAD
from covshift.instrument.calls import in_reentrant_checkpoint
from covshift.instrument.callsites import Call, Module, Observed, Read, reading
from covshift.instrument.describing import Describer, Settings
from covshift.instrument.forward import Forward, Running, Seen
from covshift.instrument.functional import ELEMENTWISE, Function
from covshift.instrument.gradients import Gradients, Row
from covshift.instrument.incidents import Incidents
from covshift.instrument.structural import ZeroSet, zero_set
from covshift.schema import Status
from covshift.summary.table import NOBODY, is_summarizable


class Collector:
    """Fills the blocks of one recorder.

    Attributes
    ----------
    observed : list of Observed
        Every layer observed so far, in the order of first appearance.
    gradients : Gradients
        What was asked for and has not come.
    """

    def __init__(self, settings: Settings, incidents: Incidents) -> None:
        self._wants = [signal in settings.signals for signal in schema.SIGNALS]
        self._incidents = incidents
        self._describer = Describer(settings, incidents)
        self._inputs: dict[str, Observed] = {}
        self._names: set[str] = set()
        self._naming = threading.Lock()
        self.gradients = Gradients(incidents)
        self.observed: list[Observed] = []

    @property
    def layers(self) -> list[schema.Layer]:
        """Descriptions of the layers observed so far; whoever reads them may rely on their staying as they are."""
        for one in self.observed:
            if not one.is_described:
                # Its output failed or was of a kind that is not summarised: it has no axes, now and later.
                one.describe(one.layer)
        return [one.layer for one in self.observed]

    def _new_layer(self, name: str) -> Observed:
        """A layer; where another has its name already, as names of modules may look like call sites, with ``~1``."""
        distinct, k = name, 0
        while distinct in self._names:
            k += 1
            distinct = f"{name}~{k}"
        self._names.add(distinct)
        layer = Observed(schema.Layer(distinct, module_type="", depth=len(self.observed)), len(self.observed))
        self.observed.append(layer)
        return layer

    def _layer_of(self, call: Call, path: str) -> Observed:
        layer = call.layers.get(path)
        return layer or self._first_seen(call.layers, path, f"{call.name}:{path}" if path else call.name)

    def _first_seen(self, known: dict[str, Observed], path: str, name: str) -> Observed:
        """The layer ``known`` under ``path``, now if not before; of threads that meet it together one makes it."""
        with self._naming:
            if path not in known:
                known[path] = self._new_layer(name)
            return known[path]

    def inputs(self, forward: Forward, tensors: list[tuple[str, torch.Tensor]]) -> None:
        """Record what the model is given; the first positional argument has the path "0"."""
        for path, tensor in tensors:
            name = sites.INPUT if path == "0" else f"{sites.INPUT}:{path}"
            layer = self._inputs.get(path) or self._first_seen(self._inputs, path, name)
            if not layer.is_described:
                layer.describe(self._describer.of_input(forward, layer.layer, tensor))
            if self._wants[INPUT]:
                forward.rows.add(layer.key + INPUT, tensor, layer.values, units=False)
                forward.rows.set_status(layer.key + INPUT, Status.OK)

    def first_read(self, forward: Forward, call: Call, z: object, reads: Seen | None, within: Call | None) -> None:
        """Keep for the description of a call's layers what it is given, before it has returned for the first time."""
        call.read = self._describer.units.read(forward, z, reads, within.read if within is not None else None)

    def preactivation(
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
                rows.add_structural_zeros(layer.place, zeros.count(z, rows.row(row)))
            else:
                count = zeros.counted_on_device(z.detach())
                rows.later(count, lambda found: rows.add_structural_zeros(layer.place, int(found[0])))

    def _add_preactivation(
        self, forward: Forward, call: Call, layer: Observed, module: nn.Module, z: torch.Tensor
    ) -> int:
        if call.preactivation is None:
            read = self._describer.of_preactivation(forward, layer.layer, module, z)
            call.preactivation = reading(read, gradients=False)
            call.preactivation_grad = reading(read, gradients=True)
        rows, key = forward.rows, layer.key + PREACTIVATION
        wanted = self._wants[PREACTIVATION]
        row = rows.add(key if wanted else NOBODY, z, call.preactivation, units=False)
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

    def outputs(self, forward: Forward, running: Running, known: Module, output: Any) -> None:
        """Record the tensors of what a module returned; of containers, those that no layer inside has produced."""
        if not known.is_observed:
            self._unrecorded(forward, running, output)
            return
        zeros = None
        for path, tensor in sites.parts(output):
            if not isinstance(tensor, torch.Tensor):
                self._name_unopened(running, known, path, tensor)
            elif not known.is_leaf and forward.has_met(tensor):
                continue
            elif is_summarizable(tensor):
                layer = self._layer_of(running.call, path)
                if not layer.is_described:
                    zeros = zero_set(running.module) if known.zeros_move else known.zeros
                    layer.describe(self._described(forward, layer, running, path, tensor, zeros))
                self._activation(forward, running, layer, tensor)
            elif known.is_leaf or _holds_values(tensor):
                forward.pass_over(tensor)
                self._name_unsupported(running, path, tensor)
        running.call.has_returned = True

    def _unrecorded(self, forward: Forward, running: Running, output: Any) -> None:
        """Learn the unit axis of what a module returned that is not recorded: layers behind it take it over."""
        call = running.call
        _, tensor = next(sites.leaves(output), ("", None))
        if tensor is None or not is_summarizable(tensor):
            return
        if not call.has_returned:
            units = self._describer.units
            call.unit_axis = units.of_unrecorded(forward, running.module, tensor, call.read or Read())
            call.has_returned = True
        if call.unit_axis is not None:
            forward.know_axis(tensor, call.unit_axis)

    def _name_unsupported(self, running: Running, path: str, tensor: torch.Tensor) -> None:
        name, layout = _named(running, path), "nested" if tensor.is_nested else tensor.layout
        self._incidents.warn_once(
            "unsupported",
            name,
            f"layer '{name}': output of {tensor.dtype}, {layout} on {tensor.device.type} is not "
            "summarised (expected a strided floating-point tensor); the layer is left out",
        )

    def _name_unopened(self, running: Running, known: Module, path: str, part: object) -> None:
        """Say that an object was not looked into; what containers return in one, modules inside them have made."""
        name = _named(running, path)
        name_once = self._incidents.warn_once if known.is_leaf else self._incidents.note_once
        name_once(
            "unopened",
            name,
            f"layer '{name}': returned an object of type {type(part).__name__}, which is not looked into: tensors in "
            "it are recorded only where a module inside returned them. Expected tensors, alone or in tuples, lists, "
            "mappings or dataclasses",
        )

    def function(self, forward: Forward, running: Running, tensor: torch.Tensor, function: Function) -> None:
        """Record what an activation that was called as a function returned."""
        layer = self._layer_of(running.call, "")
        if not layer.is_described:
            described = self._described(forward, layer, running, "", tensor, function.zeros)
            layer.describe(function.describe(described))
        self._activation(forward, running, layer, tensor)

    def _described(
        self,
        forward: Forward,
        layer: Observed,
        running: Running,
        path: str,
        tensor: torch.Tensor,
        zeros: ZeroSet | None,
    ) -> schema.Layer:
        module, call, _ = running
        read, producer = call.read or Read(), call.producer or ""
        described = self._describer.of_output(
            forward, layer.layer, module, tensor, read, path=path, zeros=zeros, producer=producer
        )
        self._describer.units.meet(tensor, described.unit_axis)
        return described

    def _activation(self, forward: Forward, running: Running, layer: Observed, tensor: torch.Tensor) -> None:
        """Record values now, and the gradient when it comes."""
        rows, key, row = forward.rows, layer.key + ACTIVATION, NOBODY
        seen = layer.seen_by(tensor, forward.batch_size)
        if self._wants[ACTIVATION]:
            row = rows.add(key, tensor, seen.values)
            rows.set_status(key, Status.OK if seen.example_axis is not None else Status.AXIS_UNKNOWN)
        elif tensor.is_inference():
            row = rows.add(NOBODY, tensor, seen.values)
        # Whatever is wanted of it: what passes it on is no layer of its own, what reads it takes over its axes.
        forward.remember(tensor, layer, seen.values, row)
        if self._wants[ACTIVATION_GRAD]:
            place = Row(forward.block, rows, layer.key + ACTIVATION_GRAD, seen.gradients, True, layer.layer.name)
            self._ask_for_gradient(forward, place, running.module, tensor, seen.values)

    def _ask_for_gradient(
        self, forward: Forward, row: Row, module: nn.Module, tensor: torch.Tensor, values: Any
    ) -> None:
        if tensor.requires_grad:
            self.gradients.ask(row, tensor)
        elif not forward.grad_enabled:
            row.rows.mark(row.key, Status.NO_GRAD_FORWARD)
        elif torch.is_grad_enabled():
            row.rows.mark(row.key, Status.NO_GRAD_REQUIRED)
        elif module is ELEMENTWISE:
            self._give_up(row)
        else:
            # Grad mode was switched off inside the forward pass: a checkpoint may run this again during backward.
            self.gradients.await_second_pass(row, id(module), tensor, values)

    def _give_up(self, row: Row) -> None:
        """Say that the gradient of a function will not be seen; which of a module's calls repeats it, no hook tells."""
        if not in_reentrant_checkpoint():
            row.rows.mark(row.key, Status.NO_GRAD_REQUIRED)
            return
        row.rows.mark(row.key, Status.NO_GRADIENT_ARRIVED)
        self._incidents.warn_once(
            "reentrant",
            "functions",
            f"layer '{row.layer}': gradients of activations called as functions inside a reentrant checkpoint are not "
            "recorded; use_reentrant=False records them",
        )


def _named(running: Running, path: str) -> str:
    return f"{running.call.name}:{path}" if path else running.call.name


def _holds_values(tensor: torch.Tensor) -> bool:
    """Whether an output that is not summarised is more than indices, lengths or a mask, which containers hand on."""
    return tensor.is_floating_point() or tensor.is_complex() or tensor.is_quantized
