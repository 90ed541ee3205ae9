"""State of one forward pass of one thread: the modules now running, and the tensors already summarised."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field

import torch
from torch import nn

from covshift.instrument.block import Block, Pass
from covshift.summary import Summary


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
    """One outermost forward pass, from the entry of the model to its return."""

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

    def remember(self, tensor: torch.Tensor, layer: str, summary: Summary, *, unit_axis: int | None) -> None:
        """Let :meth:`find` know a tensor, without keeping it alive."""
        self.seen[id(tensor)] = Seen(weakref.ref(tensor), _version(tensor), layer, summary, unit_axis)

    def name(self, path: str) -> str:
        """``path``, with ``#k`` for its k-th repetition in this forward pass."""
        call = self.calls.get(path, 0)
        self.calls[path] = call + 1
        return f"{path}#{call}" if call else path

    def leave(self, module: nn.Module) -> Call | None:
        """Take ``module`` off the stack; calls above it were left by an exception."""
        while self.stack:
            call = self.stack.pop()
            if call.module is module:
                return call
        return None


def _version(tensor: torch.Tensor) -> int:
    """In-place modifications so far; inference tensors do not count theirs."""
    return -1 if tensor.is_inference() else tensor._version
