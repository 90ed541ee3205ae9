"""Warnings once, named, and collected: what could not be recorded, and failures of covshift itself.

A recorder is a guest in somebody's training run: a fault of its own must cost a row, never the run. So every hook runs
inside :meth:`Incidents.guard` or its like, which lets nothing but a user's own "warnings are errors" pass.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import torch

from covshift.exceptions import CovshiftWarning

_logger = logging.getLogger("covshift")


class Incidents:
    """Messages already given in one recording, by kind and layer."""

    def __init__(self) -> None:
        self._messages: dict[tuple[str, str], str] = {}

    @property
    def messages(self) -> list[str]:
        """Every message so far, in order."""
        return list(self._messages.values())

    @property
    def any_failed(self) -> bool:
        """Whether covshift itself failed anywhere."""
        return any(kind == "failed" for kind, _ in self._messages)

    def warn_once(self, kind: str, layer: str, message: str) -> None:
        """Warn with ``message`` unless this kind of incident was already named for this layer."""
        if (kind, layer) in self._messages:
            return
        self._messages[kind, layer] = message
        line = users_line()
        registry = line.f_globals.setdefault("__warningregistry__", {})
        module, path = line.f_globals.get("__name__"), line.f_code.co_filename
        warnings.warn_explicit(message, CovshiftWarning, path, line.f_lineno, module, registry)

    def note_once(self, kind: str, layer: str, message: str) -> None:
        """Keep ``message`` among the recording's and log it, without a warning: what it says may well be harmless."""
        if (kind, layer) not in self._messages:
            self._messages[kind, layer] = message
            _logger.info(message)

    @contextmanager
    def guard(self, where: str) -> Iterator[None]:
        """Turn any exception of covshift's own into one warning that names ``where``; training goes on."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - a defect of the recorder must never end the user's training
            self.failed(where, error)

    def failed(self, where: str, error: Exception) -> None:
        """Name an exception of covshift's own; the hooks, where microseconds count, call this without :meth:`guard`."""
        if isinstance(error, CovshiftWarning):
            raise error
        self.warn_once(
            "failed",
            where,
            f"layer '{where}': covshift failed to record it ({type(error).__name__}: {error}); training goes on, "
            "the row is missing; please report this",
        )


_PASSED_OVER = (str(Path(__file__).parents[1]), str(Path(torch.__file__).parent), contextlib.__file__)


def users_line() -> FrameType:
    """The innermost frame that is neither covshift's nor torch's: its line made what the warning is about.

    In a thread of torch's own, where there is none, the outermost.
    """
    frame = sys._getframe()
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PASSED_OVER):
        frame = frame.f_back
    return frame


def listed(names: list[str]) -> str:
    """Up to ten names, and how many more there are."""
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
