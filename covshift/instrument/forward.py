"""State of one forward pass of one thread: the modules now running, and the tensors already summarised."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import nn

from covshift.instrument.block import Block, Pass
from covshift.instrument.callsites import Call, CallSite, Observed


class Seen(NamedTuple):
    """A tensor already summarised in this forward pass: whose output it is, and its row in the table."""

    tensor: weakref.ref[torch.Tensor]
    version: int
    layer: Observed
    row: int


class Running(NamedTuple):
    """A module now running: its call, and the recorded tensor it reads, if any."""

    module: nn.Module
    call: Call
    reads: Seen | None


@dataclass(eq=False)
class Forward:
    """One outermost forward pass, from the entry of the model to its return."""

    block: Block
    rows: Pass
    grad_enabled: bool
    batch_size: int | None = None
    stack: list[Running] = field(default_factory=list)
    calls: dict[CallSite, int] = field(default_factory=dict)
    seen: dict[int, Seen] = field(default_factory=dict)

    def find(self, tensor: torch.Tensor) -> Seen | None:
        """The row of this very tensor, unless it was modified in place since."""
        seen = self.seen.get(id(tensor))
        return seen if seen and seen.tensor() is tensor and seen.version == _version(tensor) else None

    def remember(self, tensor: torch.Tensor, layer: Observed, row: int) -> None:
        """Let :meth:`find` know a tensor, without keeping it alive."""
        self.seen[id(tensor)] = Seen(weakref.ref(tensor), _version(tensor), layer, row)

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


def _version(tensor: torch.Tensor) -> int:
    """In-place modifications so far; inference tensors do not count theirs."""
    return -1 if tensor.is_inference() else tensor._version
