"""One pair of hooks on the optimizers of the process, shared by all that listen.

torch walks through its tables of optimizer hooks while it calls them, so that a recorder which begins or ends in one
thread would raise in the middle of an ``optimizer.step()`` in another. A table with one entry is at its end before the
entry is called, and may change then; so there is one entry, from the first listener to the last.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any

import torch
from torch.compiler import is_compiling
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle

Hook = Callable[[torch.optim.Optimizer, Any, Any, FrameType], None]

_lock = threading.Lock()
_handles: list[RemovableHandle] = []
_listeners: tuple[Listener, ...] = ()


class Listener:
    """Has ``before`` and ``after`` called at every optimizer's step.

    They are given the optimizer, what the step was given, and the frame of the call, the same one before and after.
    Listeners are called in the order in which they were made, until :meth:`remove`; none in a step that is compiled.
    """

    def __init__(self, *, before: Hook, after: Hook) -> None:
        global _listeners
        self.before, self.after = before, after
        with _lock:
            _listeners = (*_listeners, self)
            if not _handles:
                _handles.append(register_optimizer_step_pre_hook(_on_before))
                _handles.append(register_optimizer_step_post_hook(_on_after))

    def remove(self) -> None:
        """Stop listening; removing twice does nothing. After the last listener nothing is left in torch."""
        global _listeners
        with _lock:
            _listeners = tuple(one for one in _listeners if one is not self)
            while _handles and not _listeners:
                _handles.pop().remove()


class OpenCalls:
    """The outermost step now running in each thread, known by the frame of its call.

    A step may call another: ``super().step()`` in a subclass, or that of the optimizer it wraps. Depth could not be
    counted, for a step that raises ends without a hook; so calls are looked for on the stack, where another is open.
    A frame itself is not kept, for it would keep everything that its callers hold.
    """

    def __init__(self) -> None:
        self._open: dict[int, tuple[int, CodeType]] = {}

    def open(self, call: FrameType) -> None:
        """The call is the outermost of this thread."""
        self._open[threading.get_ident()] = id(call), call.f_code

    def encloses(self, call: FrameType) -> bool:
        """Whether the call was made by the one that is open; one that has raised is open no more."""
        known = self._open.get(threading.get_ident())
        if known is None:
            return False
        caller = call.f_back
        while caller is not None:
            if (id(caller), caller.f_code) == known:
                return True
            caller = caller.f_back
        del self._open[threading.get_ident()]
        return False

    def close(self, call: FrameType) -> bool:
        """End the call if it is the one that is open in this thread, and tell whether it was."""
        known = self._open.get(threading.get_ident())
        if known is None or known[0] != id(call):
            return False
        del self._open[threading.get_ident()]
        return True


def after_own_pre_hooks(
    optimizer: torch.optim.Optimizer, then: Callable[[torch.optim.Optimizer], None]
) -> RemovableHandle | None:
    """Have ``then`` called when the optimizer's own pre-hooks have run, which are called after those of the process.

    None where it has none. The handle is to be removed once the step is over: while torch walks through the table of
    hooks, nothing may be taken from it.
    """
    if not getattr(optimizer, "_optimizer_step_pre_hooks", None):
        return None

    def last(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        then(optimizer)

    return optimizer.register_step_pre_hook(last)


def _on_before(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    if not is_compiling():
        call = sys._getframe(1)
        for one in _listeners:
            one.before(optimizer, args, kwargs, call)


def _on_after(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    if not is_compiling():
        call = sys._getframe(1)
        for one in _listeners:
            one.after(optimizer, args, kwargs, call)
