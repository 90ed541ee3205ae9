"""State of one forward pass of one thread: the modules now running, and the tensors already met."""

from __future__ import annotations

import sys
import weakref
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from covshift.instrument.block import Block
from covshift.instrument.calls import is_running
from covshift.instrument.callsites import Call, CallSite, Observed
from covshift.instrument.passes import Draft
from covshift.summary.table import NOBODY, Reading


class Seen(NamedTuple):
    """A tensor already met in this forward pass: whose output it is, how it is read, and its row in the table, if any.

    ``version`` counts its modifications in place until then, and is None for inference tensors, which count none. Those
    always have a row.
    """

    tensor: weakref.ref[torch.Tensor]
    version: int | None
    layer: Observed
    reading: Reading
    row: int


class Running(NamedTuple):
    """A module now running: its call, and the recorded tensor it reads, if any."""

    module: nn.Module
    call: Call
    reads: Seen | None


@dataclass(eq=False)
class Forward:
    """One outermost forward pass, from the entry of a module to its return.

    Attributes
    ----------
    outermost : weakref.ref of Module
        The module that was called from outside the model.
    handled : BaseException or None
        What was being handled when the pass began.
    """

    block: Block
    rows: Draft
    outermost: weakref.ref[nn.Module]
    grad_enabled: bool
    handled: BaseException | None = field(default_factory=sys.exception)
    batch_size: int | None = None
    stack: list[Running] = field(default_factory=list)
    calls: dict[CallSite, int] = field(default_factory=dict)
    seen: dict[int, Seen] = field(default_factory=dict)
    passed_over: dict[int, weakref.ref[torch.Tensor]] = field(default_factory=dict)
    unrecorded: dict[int, tuple[weakref.ref[torch.Tensor], int]] = field(default_factory=dict)

    def is_outermost(self, running: Running) -> bool:
        """Whether the call that has just been left is the outermost, whatever was left unseen inside of it."""
        return not self.stack and running.module is self.outermost()

    def has_raised(self, output: Any) -> bool:
        """Whether the outermost call, which torch says gave ``output``, was ended by an exception.

        Of such a call torch says that it gave None, as many do that return.
        """
        error = sys.exception()
        return output is None and error is not None and error is not self.handled

    def is_running(self, *, entering: nn.Module | None = None) -> bool:
        """Whether the outermost call is still under way; ``entering`` is being called now, and does not count."""
        outermost = self.outermost()
        return outermost is not None and is_running(outermost, calls=2 if outermost is entering else 1)

    def end(self, *, is_kept: bool) -> None:
        """Let the rows of the pass count, or not."""
        self.block.end(self.rows, is_kept=is_kept)

    def find(self, tensor: torch.Tensor) -> Seen | None:
        """What is known of this very tensor, unless it was modified in place since.

        An inference tensor counts as modified unless its row, read anew from all of its elements, is the same to the
        last bit. That costs as much as the row did, and on an accelerator waits for it.
        """
        seen = self.seen.get(id(tensor))
        if seen is None or seen.tensor() is not tensor or seen.version != _version(tensor):
            return None
        return seen if seen.version is not None or self._reads_as_before(tensor, seen) else None

    def _reads_as_before(self, tensor: torch.Tensor, seen: Seen) -> bool:
        row = self.rows.add(NOBODY, tensor, seen.reading)
        return np.array_equal(self.rows.row(row), self.rows.row(seen.row), equal_nan=True)

    def remember(self, tensor: torch.Tensor, layer: Observed, reading: Reading, row: int) -> None:
        """Let :meth:`find` know a tensor, without keeping it alive."""
        self.seen[id(tensor)] = Seen(weakref.ref(tensor), _version(tensor), layer, reading, row)

    def pass_over(self, tensor: torch.Tensor) -> None:
        """Let :meth:`has_met` know a tensor that is not summarised."""
        self.passed_over[id(tensor)] = weakref.ref(tensor)

    def know_axis(self, tensor: torch.Tensor, axis: int) -> None:
        """Let :meth:`axis_of` know the unit axis of what a module returned that is not recorded."""
        self.unrecorded[id(tensor)] = weakref.ref(tensor), axis

    def axis_of(self, tensor: torch.Tensor) -> int | None:
        """Unit axis of what a module that is not recorded returned; None of any other tensor."""
        known, axis = self.unrecorded.get(id(tensor), (None, None))
        return axis if known is not None and known() is tensor else None

    def has_met(self, tensor: torch.Tensor) -> bool:
        """Whether a layer inside has returned this very tensor, summarised or not."""
        passed_over = self.passed_over.get(id(tensor))
        return self.find(tensor) is not None or (passed_over is not None and passed_over() is tensor)

    def call(self, site: CallSite) -> Call:
        """The call that begins at a site now."""
        k = self.calls.get(site, 0)
        self.calls[site] = k + 1
        return site.call(k)

    def leave(self, module: nn.Module) -> Running | None:
        """Take ``module`` off the stack; calls above it were left by an exception."""
        while self.stack:
            running = self.stack.pop()
            if running.module is module:
                return running
        return None


def _version(tensor: torch.Tensor) -> int | None:
    """In-place modifications so far; None for inference tensors, which do not count theirs."""
    return None if tensor.is_inference() else tensor._version
