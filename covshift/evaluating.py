"""Which thread evaluates, which trains beside it, and which helps: whose forward passes an evaluation pass takes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from covshift.instrument.block import Block


class _Here(threading.local):
    """What is known of the thread that asks."""

    is_home: bool = False  # it has entered the recorder
    has_trained: bool = False
    is_evaluating: bool = False


class Evaluating:
    """The evaluation pass under way, and who takes part in it.

    Attributes
    ----------
    block : Block or None
        What the pass fills; None where there is none.
    """

    def __init__(self) -> None:
        self.block: Block | None = None
        self._here = _Here()
        self._is_apart = False

    def come_home(self) -> None:
        """The calling thread has entered the recorder."""
        self._here.is_home = True

    def trains(self) -> None:
        """The calling thread begins a forward pass of the training."""
        self._here.has_trained = True

    @contextmanager
    def by_this_thread(self) -> Iterator[None]:
        """What this thread computes inside the ``with`` belongs to the evaluation."""
        was_evaluating, self._here.is_evaluating = self._here.is_evaluating, True
        try:
            yield
        finally:
            self._here.is_evaluating = was_evaluating

    def is_apart(self) -> bool:
        """Whether the pass that this thread now begins goes on beside the training, of which it has done nothing."""
        self._is_apart = not self._here.has_trained
        return self._is_apart

    def includes_this_thread(self, *, is_probed: bool) -> bool:
        """Whether this thread evaluates, or helps the one that does; not where it goes on training beside it.

        While the model is probed, ``is_probed``, only a thread that evaluates is sure not to be the one that probes.
        """
        if self.block is None or self._here.is_evaluating:
            return self.block is not None
        return not is_probed and not (self._is_apart and (self._here.has_trained or self._here.is_home))
