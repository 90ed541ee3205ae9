"""One pair of hooks on the modules of the process, shared by all recorders that are open.

Code that torch.compile makes while there are global hooks is guarded by the keys of torch's tables of them, and by
whatever its trace of the hooks reads: when either changes, every compiled module of the process is compiled again,
recorded or not, until dynamo has had enough and leaves it uncompiled, with other bits. So there is one entry in each
table from the first recorder to the last, under a key that stays the same, and all that comes and goes is behind a test
which dynamo takes for a constant. Code compiled while the tables are empty has no such guards. See
docs/decisions/global-hooks.md.
"""

from __future__ import annotations

import threading
from typing import Any, Protocol

from torch import nn
from torch.compiler import is_dynamo_compiling
from torch.nn.modules import module as tables
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils.hooks import RemovableHandle


class Listener(Protocol):
    """What is told of every call of a module, whoever's model it is of.

    Attributes
    ----------
    follows : bool
        Whether to tell of the ends of calls, too.
    """

    follows: bool

    def before(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """A module is about to run."""

    def after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """A module has run; ``output`` is None when it raised."""


_lock = threading.Lock()
_listeners: tuple[Listener, ...] = ()
_handles: tuple[RemovableHandle, RemovableHandle] | None = None
"""Of the two hooks, once there were any: their keys are used again."""


def listen(listener: Listener) -> None:
    """Tell ``listener`` of calls, after those that listen already, until :func:`leave`; none in compiled code."""
    global _listeners
    with _lock:
        if not _listeners:
            _register()
        _listeners = (*_listeners, listener)


def leave(listener: Listener) -> None:
    """Tell ``listener`` no more; leaving twice does nothing. After the last listener nothing is left in torch."""
    global _listeners
    with _lock:
        _listeners = tuple(one for one in _listeners if one is not listener)
        if _handles is not None and not _listeners:
            for handle in _handles:
                handle.remove()


def _register() -> None:
    global _handles
    if _handles is None:
        _handles = register_module_forward_pre_hook(_before), register_module_forward_hook(_after, always_call=True)
        return
    before, after = _handles
    tables._global_forward_pre_hooks[before.id] = _before
    tables._global_forward_hooks[after.id] = _after
    tables._global_forward_hooks_always_called[after.id] = True


# In both, anything that dynamo saw before this test would become a guard. Frames of theirs that it compiles by
# themselves, where it compiles what a module calls, become empty for the same reason.
# A value returned from a hook replaces the module's input or output, so these return nothing.
def _before(module: nn.Module, args: tuple[Any, ...]) -> None:
    if is_dynamo_compiling():
        return
    for one in _listeners:
        one.before(module, args)


def _after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    if is_dynamo_compiling():
        return
    for one in _listeners:
        if one.follows:
            one.after(module, args, output)
