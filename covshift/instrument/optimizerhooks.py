"""One pair of hooks on the optimizers of the process, shared by all that listen.

torch walks through its tables of optimizer hooks while it calls them, so that a recorder which begins or ends in one
thread would raise in the middle of an ``optimizer.step()`` in another. The last hook of a table is called when the walk
is at its end, and may change the table; so there is one entry, from the first listener to the last. For the same reason
a user's hook may take itself away, or add another, where it is the last: nothing of covshift's comes after it. The
entry stands first, and what must be done behind the last hook is done by an object in that one's place.
"""

from __future__ import annotations

import sys
import threading
from collections import OrderedDict
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any, cast

import torch
from torch.compiler import is_compiling
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle

Hook = Callable[[torch.optim.Optimizer, Any, Any, FrameType], None]

_lock = threading.Lock()
_entries: list[_Entry] = []
_listeners: tuple[Listener, ...] = ()


class Listener:
    """Has ``before`` and ``after`` called at every optimizer's step.

    They are given the optimizer, what the step was given, and the frame of the call, the same one before and after.
    Listeners are called in the order in which they were made, until :meth:`remove`; none in a step that is compiled.
    They are told behind every other hook that torch has for all optimizers.
    """

    def __init__(self, *, before: Hook, after: Hook) -> None:
        global _listeners
        self.before, self.after = before, after
        with _lock:
            _listeners = (*_listeners, self)
            if not _entries:
                _entries.append(_Entry(register_optimizer_step_pre_hook, _tell_before))
                _entries.append(_Entry(register_optimizer_step_post_hook, _tell_after))

    def remove(self) -> None:
        """Stop listening; removing twice does nothing. After the last listener nothing is left in torch."""
        global _listeners
        with _lock:
            _listeners = tuple(one for one in _listeners if one is not self)
            while _entries and not _listeners:
                _entries.pop().remove()


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


class Behind:
    """Stands in the place of the last hook of a table, and does something once that hook has run.

    Where several stand in one place, each can be removed at any time. Copies and pickles hold the hook alone.
    """

    def __init__(self, table: dict[int, Any], then: Hook) -> None:
        self._table, self._key, self._then = table, next(reversed(table)), then
        self._hook: Callable[[torch.optim.Optimizer, Any, Any], Any] = table[self._key]
        self._is_over = False
        # Another value for a key that is there: a walk through the table goes on.
        table[self._key] = self

    def __call__(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> Any:
        """Call the hook, whose result torch is to have, and then what is to be done."""
        is_over = self._is_over or is_compiling()
        result = self._hook(optimizer, args, kwargs)
        if not is_over:
            # torch takes what a pre-hook returns for the arguments.
            args, kwargs = result if isinstance(result, tuple) and len(result) == 2 else (args, kwargs)
            self._then(optimizer, args, kwargs, sys._getframe(1))
        return result

    def __reduce__(self) -> tuple[Any, ...]:
        return _itself, (self._hook,)

    def remove(self) -> None:
        """Put the hook back, unless it was taken away meanwhile; removing twice does nothing."""
        self._is_over = True
        if self._table.get(self._key) is self:
            hook = self._hook
            while isinstance(hook, Behind) and hook._is_over:
                hook = hook._hook
            self._table[self._key] = hook


def after_own_pre_hooks(
    optimizer: torch.optim.Optimizer, then: Callable[[torch.optim.Optimizer], None]
) -> Behind | None:
    """Have ``then`` called when the optimizer's own pre-hooks have run, which are called after those of the process.

    None where it has none. What is returned is to be removed once the step is over.
    """
    table = getattr(optimizer, "_optimizer_step_pre_hooks", None)
    return Behind(table, lambda optimizer, args, kwargs, call: then(optimizer)) if table else None


class _Entry:
    """The hook in one of torch's two tables for all optimizers: ``tell`` is called behind every other hook there."""

    def __init__(self, register: Callable[[Any], RemovableHandle], tell: Hook) -> None:
        self._tell = tell
        self._behind: Behind | None = None
        self._handle = register(self)
        self._table = cast(OrderedDict[int, Any], self._handle.hooks_dict_ref())
        self._table.move_to_end(self._handle.id, last=False)

    def __call__(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if is_compiling():
            return
        last = next(reversed(self._table.values()))
        if last is self:
            self._tell(optimizer, args, kwargs, sys._getframe(1))
        elif last is not self._behind:
            self._stand_behind()

    def _stand_behind(self) -> None:
        with _lock:
            # Another thread may have been here meanwhile.
            if next(reversed(self._table.values())) is not self._behind:
                self._leave()
                self._behind = Behind(self._table, self._tell)

    def _leave(self) -> None:
        if self._behind is not None:
            self._behind.remove()
            self._behind = None

    def remove(self) -> None:
        """Take the hook from torch; the hooks of others are as they were."""
        self._handle.remove()
        self._leave()


def _itself(hook: Any) -> Any:
    return hook


def _tell_before(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any, call: FrameType) -> None:
    for one in _listeners:
        one.before(optimizer, args, kwargs, call)


def _tell_after(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any, call: FrameType) -> None:
    for one in _listeners:
        one.after(optimizer, args, kwargs, call)
