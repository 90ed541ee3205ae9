"""One pair of hooks on the optimizers of the process, shared by all that listen.

torch walks through its tables of optimizer hooks while it calls them, so that a recorder which begins or ends in one
thread would raise in the middle of an ``optimizer.step()`` in another. A table with one entry is at its end before the
entry is called, and may change then; so there is one entry, from the first listener to the last.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch.compiler import is_compiling
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle

Hook = Callable[[torch.optim.Optimizer, Any, Any], None]

_lock = threading.Lock()
_handles: list[RemovableHandle] = []
_listeners: tuple[Listener, ...] = ()


class Listener:
    """Has ``before`` and ``after`` called at every optimizer's step, with the optimizer and what the step was given.

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


def _on_before(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    if not is_compiling():
        for one in _listeners:
            one.before(optimizer, args, kwargs)


def _on_after(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    if not is_compiling():
        for one in _listeners:
            one.after(optimizer, args, kwargs)
