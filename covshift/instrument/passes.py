"""Rows of the forward passes of a step, and what a pass now running adds to them once it has returned.

A pass that an exception ends in its midst has given some layers their rows and others none. Were those kept, a batch
that did not fit into memory and was tried again in halves would count twice in the first layers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from covshift import schema
from covshift.schema import Status
from covshift.summary.numbers import Numbers
from covshift.summary.summary import Histogram, UnitSummary
from covshift.summary.table import Reading, Table, Taker

_BLANK = bytes(256 * len(schema.SIGNALS))


class Pass:
    """Rows of all forward passes of a step that ran in one mode (training or evaluation flag).

    Attributes
    ----------
    table : Table
        Numbers by key.
    statuses : bytearray
        :class:`covshift.schema.Status` by key; may be shorter than there are keys.
    structural_zeros : dict of int to int
        Elements of z at which a layer has no derivative, by the layer's place.
    is_empty : bool
        Whether no forward pass has been kept.
    begun : int
        Forward passes that have begun, kept or not.
    """

    def __init__(self, *, histograms: bool, units: bool) -> None:
        self.table = Table(histograms=histograms, units=units)
        self.statuses = bytearray(_BLANK)
        self.structural_zeros: dict[int, int] = {}
        self.is_empty = True
        self.begun = 0

    def set_status(self, key: int, status: Status) -> None:
        """Say how the row came about."""
        while key >= len(self.statuses):
            self.statuses += _BLANK
        self.statuses[key] = status

    def mark(self, key: int, status: Status) -> None:
        """Say why the row has no numbers, unless that or how it has some was said already."""
        if key >= len(self.statuses) or not self.statuses[key]:
            self.set_status(key, status)

    def add_structural_zeros(self, layer: int, count: int) -> None:
        """Count elements of z at which the layer has no derivative."""
        self.structural_zeros[layer] = self.structural_zeros.get(layer, 0) + count


class Draft:
    """What one forward pass adds to a :class:`Pass`: read at once, counted when it is kept, never when it is dropped.

    It has the methods by which a pass is filled. Gradients, which come later, go the same way.

    Attributes
    ----------
    backward : int
        The last backward pass that has brought it a gradient, as autograd numbers them; -1 before any has.
    """

    def __init__(self, rows: Pass) -> None:
        self._rows, self._earlier = rows, rows.begun
        rows.begun += 1
        self._waiting: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self._is_kept = self._is_dropped = False
        self.backward = -1

    @property
    def is_over(self) -> bool:
        """Whether the draft was kept or dropped."""
        return self._is_kept or self._is_dropped

    @property
    def is_dropped(self) -> bool:
        """Whether nothing of the pass counts."""
        return self._is_dropped

    def add(self, key: int, tensor: torch.Tensor, reading: Reading, *, units: bool = True) -> int:
        """Summarise a tensor; returns its row, for :meth:`row`. See :meth:`covshift.summary.table.Table.add`."""
        groups = self._groups_before(tensor, reading) if self._earlier else 0
        enter = partial(self._enter, groups=groups) if groups else self._enter
        return self._rows.table.add(key, tensor, reading, units=units, enter=enter)

    def _groups_before(self, tensor: torch.Tensor, reading: Reading) -> int:
        """Example groups that earlier micro-batches of this size have filled, as often as all were.

        0 for a batch with as many examples as groups or more: it fills all, and may hold the same examples as the pass
        before, which belong into the same groups then. Small ones would fill the first groups only, however many.
        """
        _, example = reading.axes_of(tensor)
        examples = reading.groups if example is None else tensor.shape[example]
        return self._earlier * examples % reading.groups if examples < reading.groups else 0

    def _enter(
        self, row: int, key: int, histogram: Histogram | None, units: UnitSummary | None, *, groups: int = 0
    ) -> None:
        if histogram is not None and groups:
            histogram = histogram.moved_on(groups)
        self._do(self._rows.table.enter, row, key, histogram, units)

    def row(self, row: int) -> Numbers:
        """Numbers of one tensor as it was added, shape ``(14,)``."""
        return self._rows.table.row(row)

    def later(self, vector: torch.Tensor, take: Taker) -> None:
        """Give a vector to ``take`` when it has reached CPU memory."""
        self._rows.table.later(vector, take)

    def set_status(self, key: int, status: Status) -> None:
        """Say how the row came about."""
        self._do(self._rows.set_status, key, status)

    def mark(self, key: int, status: Status) -> None:
        """Say why the row has no numbers, unless that or how it has some was said already."""
        self._do(self._rows.mark, key, status)

    def add_structural_zeros(self, layer: int, count: int) -> None:
        """Count elements of z at which the layer has no derivative."""
        self._do(self._rows.add_structural_zeros, layer, count)

    def _do(self, action: Callable[..., None], *arguments: Any) -> None:
        if self._is_kept and not self._waiting:
            action(*arguments)
            return
        if not self._is_dropped:
            self._waiting.append((action, arguments))
        # Looked at last: another thread may keep the draft meanwhile.
        if self._is_kept:
            self._count()

    def keep(self) -> None:
        """The pass has returned: count its rows."""
        if not self.is_over:
            self._rows.is_empty = False
            self._is_kept = True
            self._count()

    def _count(self) -> None:
        """Do what waits. What fails is raised in the end, so that it costs no other row."""
        failure = None
        while self._waiting:
            try:
                action, arguments = self._waiting.popleft()
            except IndexError:
                break
            try:
                action(*arguments)
            except Exception as error:  # noqa: BLE001 - raised below
                failure = failure or error
        if failure is not None:
            raise failure

    def drop(self) -> None:
        """The pass was interrupted: forget its rows, and the gradients that may still come."""
        if not self._is_kept:
            self._is_dropped = True
            self._waiting.clear()
