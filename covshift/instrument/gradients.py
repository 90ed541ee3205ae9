"""Gradients of recorded tensors: asking for them, receiving them, and finding them again after a checkpoint.

Under reentrant activation checkpointing the first pass runs without a graph and the gradient arrives, during backward,
on tensors of a second pass. Checkpoints run again last first, but what is inside of one in the order of the first pass:
a call of the second pass repeats the first that is still awaited of its checkpoint and computed the same numbers.
"""

from __future__ import annotations

import weakref
from typing import Any, NamedTuple

import numpy as np
import torch

from covshift.instrument.block import Block
from covshift.instrument.calls import recomputation
from covshift.instrument.hooks import hook_gradient, is_batched, transformed, unseen
from covshift.instrument.incidents import Incidents
from covshift.instrument.passes import Draft
from covshift.instrument.views import View
from covshift.schema import Status
from covshift.summary.numbers import Numbers
from covshift.summary.table import Reading, Table, is_summarizable


class Row(NamedTuple):
    """Where a gradient belongs, and how it is read."""

    block: Block
    rows: Draft
    key: int
    reading: Reading
    units: bool
    layer: str


class Awaited(NamedTuple):
    """A row whose tensor had no graph when it was computed, and what the pass that repeats it is recognised by.

    Attributes
    ----------
    repeated_by : weakref.ref
        The autograd function whose backward runs it again.
    numbers : ndarray
        Of the tensor, read as ``values`` says.
    """

    row: Row
    values: Reading
    numbers: Numbers
    repeated_by: weakref.ref[Any]

    @property
    def is_over(self) -> bool:
        """Whether nothing can come any more."""
        return self.row.block.closed or self.row.rows.is_dropped or self.repeated_by() is None


class Gradients:
    """Asks for the gradients of one recorder's rows."""

    def __init__(self, incidents: Incidents) -> None:
        self._incidents = incidents
        self._awaited: dict[int, list[Awaited]] = {}

    def ask(self, row: Row, tensor: torch.Tensor) -> None:
        """Have the gradient of ``tensor``, which requires one, added to ``row`` when it arrives."""
        row.rows.mark(row.key, Status.NO_GRADIENT_ARRIVED)
        hook_gradient(tensor, _Receiver(row, self._incidents), row.block.handles)

    def await_second_pass(self, row: Row, module_id: int, tensor: torch.Tensor, values: Reading) -> None:
        """Ask for the gradient on the tensor that the same module computes again during backward, if it does."""
        row.rows.mark(row.key, Status.NO_GRAD_REQUIRED)
        place = recomputation()
        if place.repeated_by is None:
            if place.function is not None:
                self._name_function(row, place.function)
            return
        waiting = self._awaited.setdefault(module_id, [])
        waiting[:] = [other for other in waiting if not other.is_over]
        waiting.append(Awaited(row, values, _fingerprint(tensor, values, row), weakref.ref(place.repeated_by)))

    def _name_function(self, row: Row, function: str) -> None:
        self._incidents.warn_once(
            "autograd function",
            "gradients",
            f"layer '{row.layer}': gradients inside the autograd function {function}, which runs layers without a "
            "graph, are its own business and not recorded; those of a CheckpointFunction are",
        )

    def awaits(self, module_id: int) -> bool:
        """Whether any second pass of the module is awaited."""
        return bool(self._awaited.get(module_id))

    def rejoin(self, module_id: int, signal: int, tensor: torch.Tensor, *, signals: int) -> None:
        """Ask on a tensor of a second pass for the gradient of the row that it repeats, if there is one.

        A checkpoint inside another runs without a graph the second time, too: its rows are awaited once more.

        ``signal`` is the row's place among the ``signals`` that a layer has.
        """
        place = recomputation()
        if place.repeats is None:
            return
        waiting = self._awaited.get(module_id, [])
        for awaited in waiting:
            row = awaited.row
            if awaited.is_over or awaited.repeated_by() is not place.repeats or row.key % signals != signal:
                continue
            if np.array_equal(awaited.numbers, _fingerprint(tensor, awaited.values, row), equal_nan=True):
                waiting.remove(awaited)
                if tensor.requires_grad:
                    row.rows.set_status(row.key, Status.NO_GRADIENT_ARRIVED)
                    hook_gradient(tensor, _Receiver(row, self._incidents), row.block.handles)
                elif place.repeated_by is not None:
                    waiting.append(awaited._replace(repeated_by=weakref.ref(place.repeated_by)))
                return


def _fingerprint(tensor: torch.Tensor, values: Reading, row: Row) -> Numbers:
    """Numbers of a tensor, to the last bit: summed in the order that the row's own record would sum in."""
    table = Table(histograms=row.block.histograms, units=row.block.units)
    return table.row(table.add(0, tensor, values, units=row.units))


class _Receiver:
    """Receives one tensor's gradient; holds rows and numbers, never a tensor."""

    __slots__ = ("_arrived", "_incidents", "_row")
    # Asked for by torch.save, which otherwise warns that the hooks of a tensor are not saved with it.
    __torch_unserializable__ = True

    def __init__(self, row: Row, incidents: Incidents) -> None:
        self._row, self._incidents = row, incidents
        self._arrived = False

    @property
    def place(self) -> tuple[object, ...]:
        """The row's block, by identity, and its key."""
        return id(self._row.block), self._row.key

    @property
    def is_over(self) -> bool:
        """Whether the gradient has come, or its forward pass does not count."""
        return self._arrived or self._row.rows.is_dropped

    def __call__(self, gradient: torch.Tensor | None) -> None:
        self.receive(gradient, through=None)

    def receive(self, gradient: torch.Tensor | None, *, through: View | None) -> None:
        """Take the first gradient of a forward: a retained graph or a second derivative brings more.

        What comes later cannot be added up without keeping the first tensor, so it is named and not recorded.
        """
        row = self._row
        if row.block.closed or transformed():
            return
        try:
            if self._arrived:
                self._name_further(gradient, through)
                return
            with unseen():
                if gradient is None:
                    row.rows.set_status(row.key, Status.UNUSED_OUTPUT)
                    return
                if is_batched(gradient):
                    return
                self._arrived = True
                row.block.gradient_arrived(row.rows)
                if is_summarizable(gradient):
                    own = gradient if through is None else through.of(gradient)
                    row.rows.add(row.key, own, row.reading, units=row.units)
                    row.rows.set_status(row.key, Status.OK if through is None else Status.VIA_BASE)
                else:
                    self._pass_over(gradient)
        except Exception as error:  # noqa: BLE001 - see Incidents.failed
            self._incidents.failed(row.layer, error)

    def _name_further(self, gradient: torch.Tensor | None, through: View | None) -> None:
        if gradient is None:
            return
        self._row.block.gradient_arrived(self._row.rows)
        if through is None:
            self._incidents.warn_once(
                "again",
                "gradients",
                f"layer '{self._row.layer}': a further backward pass reached the same forward pass (a retained graph, "
                "or a second derivative); rows hold the gradients of the first. To record those of a sum of losses, "
                "call backward once on the sum",
            )

    def _pass_over(self, gradient: torch.Tensor) -> None:
        row = self._row
        row.rows.set_status(row.key, Status.UNSUPPORTED)
        self._incidents.warn_once(
            "unsupported",
            f"gradient of {row.layer}",
            f"layer '{row.layer}': gradient of {gradient.dtype}, {gradient.layout} is not summarised (expected a "
            "strided floating-point tensor); the layer is recorded without gradients",
        )
