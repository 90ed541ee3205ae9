"""What torch tells no module hook of a call, read off Python's own stack: its keywords, and whether it still runs.

A global pre-hook is given positional arguments only, and an interrupt (KeyboardInterrupt) ends a call without any hook.
Only calls that need it are looked up: it takes microseconds.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator, Mapping
from itertools import islice
from types import CodeType, FrameType
from typing import Any, NamedTuple

from torch import nn
from torch.autograd.function import FunctionCtx
from torch.utils.checkpoint import CheckpointFunction

from covshift.instrument.opaque import original

_CALL = nn.Module._call_impl.__code__
# Where this torch has its hooks called from; without such a function keywords stay unknown.
_INNER = next((part for part in _CALL.co_consts if isinstance(part, CodeType) and part.co_name == "inner"), _CALL)
_UNPACK = "unpack_hook"  # torch's, in which checkpoints that are not reentrant run again
_NEAR = 8  # frames between a hook of ours and the function that calls it, and some more


def _frames() -> Iterator[FrameType]:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back


def keywords() -> Mapping[str, Any]:
    """Keyword arguments of the module call whose hooks are running."""
    for _, frame in zip(range(_NEAR), _frames(), strict=False):
        if frame.f_code is _INNER:
            given = frame.f_locals.get("kwargs")
            return given if isinstance(given, dict) else {}
    return {}


def given(args: tuple[Any, ...]) -> Any:
    """What the call whose hooks are running is given first; None where it is given nothing."""
    return args[0] if args else next(iter(keywords().values()), None)


def is_running(module: nn.Module, *, calls: int = 1) -> bool:
    """Whether so many calls of the module are under way in this thread, one inside the other."""
    found = (frame for frame in _frames() if frame.f_code is _CALL and _stands_for(frame.f_locals.get("self"), module))
    return sum(1 for _ in islice(found, calls)) == calls


def _stands_for(called: Any, module: nn.Module) -> bool:
    return called is module or (isinstance(called, nn.Module) and original(called) is module)


def calls_compiled() -> bool:
    """Whether the call whose hooks are running is one of what torch.compile has made of a module."""
    called = next((frame.f_locals.get("self") for frame in _frames() if frame.f_code is _CALL), None)
    return isinstance(called, nn.Module) and original(called) is not None


def runs_within(module: nn.Module, modules: Collection[int]) -> bool:
    """Whether a call of another module, of these identities, is under way in this thread."""
    called = (frame.f_locals.get("self") for frame in _frames() if frame.f_code is _CALL)
    return any(one is not module and id(one) in modules for one in called)


class Recomputation(NamedTuple):
    """Where a call stands among activation checkpoints, which torch makes as autograd functions.

    Attributes
    ----------
    repeats : object or None
        The checkpoint inside whose backward the call runs again, None where it runs for the first time.
    repeated_by : object or None
        The checkpoint inside whose forward the call runs without a graph, and whose backward will run it again.
    function : str or None
        Name of an autograd function of another kind inside whose forward the call runs.
    """

    repeats: object | None
    repeated_by: object | None
    function: str | None


def recomputation() -> Recomputation:
    """Of the call whose hooks are running; inside several functions, the outermost that this run is part of counts.

    A call that another kind of checkpoint repeats, to fill in what it did not save, is part of none.
    """
    repeated_by = function = None
    for frame in _frames():
        name = frame.f_code.co_name
        if name == _UNPACK:
            return Recomputation(None, None, None)
        if name in ("forward", "backward") and frame.f_code.co_argcount:
            node = frame.f_locals.get(frame.f_code.co_varnames[0])
            if not isinstance(node, FunctionCtx):
                continue
            # Whose context it is; one that is no autograd function's of torch's making is nobody's checkpoint.
            kind = getattr(getattr(type(node), "_forward_cls", type(node)), "__name__", "")
            if kind != CheckpointFunction.__name__:
                # Its backward may be given, or give its parts, gradients of anything: an adjoint, a part of a step.
                function = kind if name == "forward" else function
            elif name == "backward":
                return Recomputation(node, repeated_by, function)
            else:
                repeated_by = node
    return Recomputation(None, repeated_by, function)


def in_reentrant_checkpoint() -> bool:
    """Whether this thread is in the first pass of a reentrant activation checkpoint, which builds no graph."""
    return any(frame.f_code is CheckpointFunction.forward.__code__ for frame in _frames())
