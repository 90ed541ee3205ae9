"""Forward hooks of the user's own, which run after covshift's and may put other values in place of what is recorded.

torch runs global hooks first, so covshift reads what ``forward`` was given before a module's own pre-hooks, and what it
returned before a module's own hooks. Nothing tells afterwards whether one of them has replaced a value, and many return
something by chance, as a lambda that appends to a list does: so they are noted and not warned of.
"""

from __future__ import annotations

import dis
import weakref
from typing import Any

from torch import nn

from covshift.instrument import sites
from covshift.instrument.incidents import Incidents, listed


class UserHooks:
    """Names once the modules of a model that have hooks which may replace values."""

    def __init__(self, model: nn.Module, incidents: Incidents) -> None:
        self._model = weakref.ref(model)
        self._incidents = incidents
        self._seen: set[tuple[int, int, int]] = set()

    def look_at(self, module: nn.Module) -> None:
        """Look at a module that is about to run, unless it has the same number of hooks as when last looked at."""
        state = (id(module), len(module._forward_hooks), len(module._forward_pre_hooks))
        if state not in self._seen:
            self._seen.add(state)
            self._name_if_any_replaces()

    def _name_if_any_replaces(self) -> None:
        model = self._model()
        named = [] if model is None else model.named_modules()
        names = [name or sites.ROOT for name, module in named if may_replace(module)]
        if names:
            self._incidents.note_once(
                "hooks",
                "model",
                f"forward hooks on {listed(names)} may return other values, and run after covshift's: what is recorded "
                "is what forward returned (for pre-hooks, what the module was given), not what other modules read. To "
                "record changed values, change them in a module of their own",
            )


def may_replace(module: nn.Module) -> bool:
    """Whether a forward hook of the module, other than torch's own, may put another value in place."""
    hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    return any(returns_something(hook) for hook in hooks if not _is_torchs(hook))


def _is_torchs(hook: Any) -> bool:
    home = getattr(hook, "__module__", None) or type(hook).__module__
    return home.split(".")[0] == "torch"


def returns_something(function: Any) -> bool:
    """Whether a function may return anything but None; True for what is not written in Python."""
    code = getattr(getattr(function, "__func__", function), "__code__", None)
    if code is None:
        return True
    steps = list(dis.get_instructions(code))
    for before, step in zip([None, *steps], steps, strict=False):
        if step.opname == "RETURN_CONST" and step.argval is not None:
            return True
        if step.opname == "RETURN_VALUE":
            is_none = before is not None and before.opname == "LOAD_CONST" and before.argval is None
            if not is_none:
                return True
    return False
