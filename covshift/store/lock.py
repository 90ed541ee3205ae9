"""One writer per recording: an advisory lock that the operating system takes back when its process ends.

POSIX systems hold ``flock`` on a file inside the recording. Windows has none; there the lock file only says who
writes, and nothing keeps a second writer out (docs/concepts/storage.md).
"""

from __future__ import annotations

import importlib
import json
import os
import socket
import time
import weakref
from pathlib import Path
from types import ModuleType

from covshift.exceptions import StoreLocked

fcntl: ModuleType | None
try:
    fcntl = importlib.import_module("fcntl")
except ImportError:
    fcntl = None

_HELD: weakref.WeakSet[Lock] = weakref.WeakSet()


class DisplacedError(OSError):
    """The recording does not lie where its writer opened it."""


class Lock:
    """Holds the lock file at ``path`` until :meth:`release`, or until nothing refers to the lock any more.

    Raises
    ------
    StoreLocked
        If another writer holds it; the message names its pid and host.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
        if not _locked(descriptor):
            os.close(descriptor)
            raise StoreLocked(f"recording '{path.parents[1]}' is being written by {_holder_and_way_out(path)}")
        os.ftruncate(descriptor, 0)
        os.write(descriptor, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode())
        self._path, self._descriptor = path, descriptor
        self._close = weakref.finalize(self, os.close, descriptor)
        _HELD.add(self)

    def demand_in_place(self) -> None:
        """Demand that the recording lies where it was locked: what took its place is not the holder's.

        A lock that was released demands nothing.

        Raises
        ------
        DisplacedError
            If its directory is gone, or another lock file stands there.
        """
        if not self._close.alive:
            return
        there = self._path.stat() if self._path.exists() else None
        if os.path.samestat(there, os.fstat(self._descriptor)) if there else self._path.parent.exists():
            return
        raise DisplacedError("it was deleted, moved or replaced since this writer opened it")

    def release(self) -> None:
        """Let the next writer in; releasing twice does nothing."""
        self._close()


def _locked(descriptor: int) -> bool:
    """Take the lock; a second try tells a writer from somebody who asked :func:`is_held` in this very moment."""
    if fcntl is None:
        return True
    for pause in (0.1, 0.0):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            time.sleep(pause)
        else:
            return True
    return False


def _holder_and_way_out(path: Path) -> str:
    if any(lock._path == path and lock._close.alive for lock in _HELD):
        return f"{holder(path)}, a recorder of this very process: leave its with, or choose another path"
    return f"{holder(path)}: wait for it to end, stop it, or choose another path"


def holder(path: Path) -> str:
    """Who wrote the lock file at ``path``, in words."""
    try:
        written = json.loads(path.read_bytes())
        return f"pid {written['pid']} on host {written['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


def is_held(path: Path) -> bool:
    """Whether some process, perhaps this one, writes the recording with the lock file at ``path``; False on Windows."""
    if fcntl is None or not path.exists():
        return False
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def _drop_in_child() -> None:
    """A forked child shares the lock, and a worker that outlives its parent would keep it."""
    for lock in list(_HELD):
        lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_drop_in_child)
