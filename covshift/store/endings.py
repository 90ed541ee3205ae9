"""What is still to be done when a process ends: writers left open are closed at exit and on SIGTERM.

The journal holds every acknowledged record anyway; closing folds it, so that readers without covshift see all of it.
A handler for SIGTERM is installed only where the program has none of its own, and only while a writer is open.
"""

from __future__ import annotations

import atexit
import os
import signal
import threading
import warnings
import weakref
from types import FrameType
from typing import Protocol

from covshift.exceptions import CovshiftWarning


class Closable(Protocol):
    """A writer: closes, and says whether it is in the middle of something."""

    @property
    def is_busy(self) -> bool:
        """Whether a call of its methods is under way."""

    def close(self) -> None:
        """Write what waits."""


_OPEN: weakref.WeakSet[Closable] = weakref.WeakSet()


def watch(writer: Closable) -> None:
    """Close ``writer`` when the process ends, unless it is :func:`dismiss` ed or collected before."""
    _OPEN.add(writer)
    if _in_main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _on_sigterm)


def dismiss(writer: Closable) -> None:
    """Forget ``writer``, which was closed."""
    _OPEN.discard(writer)
    if not _OPEN and _in_main_thread() and signal.getsignal(signal.SIGTERM) is _on_sigterm:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _on_sigterm(number: int, frame: FrameType | None) -> None:
    _close_all()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGTERM)


@atexit.register
def _close_all() -> None:
    for writer in list(_OPEN):
        # A signal may arrive inside a call; what that call had acknowledged lies in the journal.
        if writer.is_busy:
            continue
        try:
            writer.close()
        except Exception as error:  # noqa: BLE001 - a process that ends must end; the journal keeps the records
            warnings.warn(f"a recording was not closed: {error}", CovshiftWarning, stacklevel=1)


def _forget_in_child() -> None:
    """A forked child must not write the recording of its parent."""
    _OPEN.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)
