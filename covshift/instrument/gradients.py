"""Gradients of recorded tensors: asking for them, receiving them, and finding them again after a checkpoint.

Under reentrant activation checkpointing the first pass runs without a graph and the gradient arrives, during backward,
on tensors of a second pass. The second pass is recognised as the one that computes the same numbers again.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from covshift import schema
from covshift.grid import GRADIENTS, VALUES, Grid
from covshift.instrument.block import Block, Pass
from covshift.instrument.hooks import hook_gradient, unseen
from covshift.instrument.incidents import Incidents
from covshift.schema import Status
from covshift.summary import Summary, summarize


@dataclass(frozen=True)
class Row:
    """Where a gradient belongs."""

    block: Block
    rows: Pass
    layer: schema.Layer
    signal: str

    def mark(self, status: Status) -> None:
        """Say why the row has no numbers, unless it has some."""
        self.rows.mark(self.layer.name, self.signal, status)


@dataclass(frozen=True)
class Awaited:
    """A row whose tensor had no graph in the first pass, and the numbers by which the second pass is recognised."""

    row: Row
    summary: Summary


class Gradients:
    """Asks for the gradients of one recorder's rows."""

    def __init__(self, incidents: Incidents) -> None:
        self._incidents = incidents
        self._awaited: dict[int, list[Awaited]] = {}

    def ask(self, row: Row, tensor: torch.Tensor) -> None:
        """Have the gradient of ``tensor``, which requires one, added to ``row`` when it arrives."""
        row.mark(Status.NO_GRADIENT_ARRIVED)
        row.block.handles += hook_gradient(tensor, _Receiver(row, self._incidents))

    def await_second_pass(self, row: Row, module_id: int, summary: Summary) -> None:
        """Ask for the gradient on the tensor that the same module computes again during backward."""
        row.mark(Status.NO_GRAD_REQUIRED)
        waiting = self._awaited.setdefault(module_id, [])
        waiting[:] = [other for other in waiting if not other.row.block.closed]
        waiting.append(Awaited(row, summary))

    def rejoin(self, module_id: int, signal: str, tensor: torch.Tensor) -> None:
        """Ask on a tensor of a second pass for the gradient of the row that it repeats, if there is one."""
        waiting = self._awaited.get(module_id, [])
        for awaited in waiting:
            row = awaited.row
            if row.signal == signal and not row.block.closed and _same(awaited.summary, summarize_value(row, tensor)):
                waiting.remove(awaited)
                row.rows.statuses[row.layer.name, signal] = Status.NO_GRADIENT_ARRIVED
                row.block.handles += hook_gradient(tensor, _Receiver(row, self._incidents))
                return


def _same(first: Summary, second: Summary) -> bool:
    """Whether two summaries are of the same numbers, as far as their scalars tell."""
    return all(
        getattr(first, name) == getattr(second, name)
        for name in ("count", "zero_count", "negative_count", "nan_count", "moments", "min", "max")
    )


class _Receiver:
    """Receives one tensor's gradient; holds rows and numbers, never a tensor."""

    def __init__(self, row: Row, incidents: Incidents) -> None:
        self._row, self._incidents = row, incidents
        self._arrived = False

    def __call__(self, gradient: torch.Tensor | None, via_base: bool) -> None:
        # Only the first gradient of a forward counts: a retained graph or a second derivative brings more.
        if self._arrived or self._row.block.closed:
            return
        try:
            with unseen():
                self._take(gradient, via_base)
        except Exception as error:  # noqa: BLE001 - see Incidents.failed
            self._incidents.failed(self._row.layer.name, error)

    def _take(self, gradient: torch.Tensor | None, via_base: bool) -> None:
        row = self._row
        if gradient is None:
            row.rows.statuses[row.layer.name, row.signal] = Status.UNUSED_OUTPUT
            return
        self._arrived = True
        units = row.block.units and row.signal in schema.UNIT_SIGNALS
        summary = _summarized(row, gradient, grid=GRADIENTS, groups=1, units=units)
        row.rows.add(row.layer.name, row.signal, summary, Status.VIA_BASE if via_base else Status.OK)


def summarize_value(row: Row, tensor: torch.Tensor) -> Summary:
    """Summary of an input or output of ``row.layer``."""
    units = row.block.units and row.signal in ("activation", "activation_grad")
    return _summarized(row, tensor, grid=VALUES, groups=schema.EXAMPLE_GROUPS, units=units)


def _summarized(row: Row, tensor: torch.Tensor, *, grid: Grid, groups: int, units: bool) -> Summary:
    """Summary of a tensor, leaving out what this record or the tensor's shape does not allow."""
    layer = row.layer
    known = layer.example_axis != schema.UNKNOWN_AXIS and layer.example_axis < tensor.ndim
    unit_axis = layer.unit_axis if layer.unit_count > 0 and layer.unit_axis < tensor.ndim else None
    if unit_axis is not None and tensor.shape[unit_axis] != layer.unit_count:
        unit_axis = None
    return summarize(
        tensor,
        unit_axis=unit_axis,
        example_axis=layer.example_axis if known else None,
        grid=grid if row.block.histograms else None,
        groups=groups,
        units=units,
    )
