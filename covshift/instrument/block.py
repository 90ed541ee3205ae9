"""The numbers of one step while they are being collected.

A block is plain data: closures on tensors may hold it without keeping the model, the recorder or any tensor alive.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from torch.autograd import Variable

from covshift import schema
from covshift.instrument.hooks import LeafHook, inside_backward
from covshift.instrument.passes import Draft, Pass
from covshift.schema import Mode

SIGNAL_COUNT = len(schema.SIGNALS)
INPUT, PREACTIVATION, ACTIVATION, ACTIVATION_GRAD, PREACTIVATION_GRAD = range(SIGNAL_COUNT)
"""Places of the signals; a row's key is its layer's place times ``SIGNAL_COUNT`` plus its signal's."""


@dataclass
class Block:
    """One step's rows of one stream.

    Attributes
    ----------
    step : int
        Optimizer steps done before this one.
    stream : str
        "" for training, "evaluation" for an evaluation pass, "probe" for a probe.
    histograms, units : bool
        Whether this record is due for the slower cadences.
    closed : bool
        True once the step is over: late gradients are not recorded.
    running : set of Draft
        Of forward passes that have begun, and have neither returned nor been interrupted.
    handles : list
        Hooks on tensors that outlive the step, to be removed when it closes.
    before_backward, after_backward : callable or None
        Called where a backward pass brings this block its first gradient, and at the end of every such pass.
    shares_forwards : bool
        Whether one forward pass was reached by two backward passes: of two losses, say.
    """

    step: int
    stream: str = ""
    histograms: bool = True
    units: bool = True
    closed: bool = False
    running: set[Draft] = field(default_factory=set)
    passes: dict[Mode, Pass] = field(default_factory=dict)
    handles: list[LeafHook] = field(default_factory=list)
    before_backward: Callable[[], None] | None = None
    after_backward: Callable[[], None] | None = None
    shares_forwards: bool = False
    _backward: int = -1
    _unended: dict[int, int] = field(default_factory=dict)

    def close(self) -> None:
        """End the step: nothing is added any more, and hooks on tensors that outlive it are removed.

        Of forward passes still running, in other threads or around the whole step, what was done so far counts.
        """
        try:
            for draft in tuple(self.running):
                self.end(draft, is_kept=True)
        finally:
            self.closed = True
            self.before_backward = self.after_backward = None
            for handle in self.handles:
                handle.remove()
            self.handles.clear()

    def in_mode(self, *, training: bool) -> Pass:
        """Rows of the forward passes that ran with ``model.training == training``."""
        mode = Mode.TRAIN if training else Mode.EVAL
        rows = self.passes.get(mode)
        if rows is None:
            # Threads may begin the first forward passes of a step together: setdefault lets one of them win.
            rows = self.passes.setdefault(mode, Pass(histograms=self.histograms, units=self.units))
        return rows

    def begin(self, *, training: bool) -> Draft:
        """A forward pass begins: what it adds to the rows of its mode."""
        if not self.running:
            for rows in self.passes.values():
                rows.table.pool()
        draft = Draft(self.in_mode(training=training))
        self.running.add(draft)
        return draft

    def end(self, draft: Draft, *, is_kept: bool) -> None:
        """A forward pass has returned, or was interrupted and does not count."""
        try:
            if is_kept:
                draft.keep()
            else:
                draft.drop()
        finally:
            self.running.discard(draft)

    @staticmethod
    def can_tell_end_of_backward() -> bool:
        """Whether this torch calls back at the end of a backward pass."""
        return hasattr(Variable._execution_engine, "queue_callback")

    def gradient_arrived(self, draft: Draft) -> None:
        """Have ``after_backward`` called at the end of the backward pass now running, which has reached ``draft``."""
        backward = torch._C._current_graph_task_id()
        if draft.backward != backward:
            self.shares_forwards |= draft.backward != -1
            draft.backward = backward
        if backward != self._backward and self.after_backward is not None:
            self._backward = backward
            self._unended[backward] = threading.get_ident()
            if self.before_backward is not None:
                self.before_backward()
            # The engine's own way to be told of the end, by which DDP starts its reduction; it adds no graph node.
            Variable._execution_engine.queue_callback(partial(self._backward_ended, backward))

    def _backward_ended(self, backward: int) -> None:
        self._unended.pop(backward, None)
        if self.after_backward is not None:
            self.after_backward()

    @property
    def has_broken_backward(self) -> bool:
        """Whether an exception has ended a backward pass that had brought gradients, as far as this thread can tell.

        The engine calls nobody back then. In another thread of Python's a backward pass may still be running.
        """
        if not self._unended or inside_backward():
            return False
        others = {thread.ident for thread in threading.enumerate()} - {threading.get_ident()}
        return not others.issuperset(self._unended.values())

    @property
    def mode(self) -> Mode:
        """Mode of the rows that are kept: training mode where the step had any such forward pass.

        A validation batch run without ``no_grad`` between two optimizer steps would otherwise mix with training.
        """
        modes = [mode for mode, rows in self.passes.items() if not rows.is_empty] or list(self.passes)
        return Mode.TRAIN if Mode.TRAIN in modes else Mode.EVAL

    @property
    def is_empty(self) -> bool:
        """Whether no forward pass has returned."""
        return all(rows.is_empty for rows in self.passes.values())

    @property
    def kept(self) -> Pass:
        """Rows of that mode."""
        return self.in_mode(training=self.mode is Mode.TRAIN)
