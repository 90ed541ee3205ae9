"""Scalars that belong to steps: what the user logs, and what the recorder notes of the step itself.

Values are kept as they come and read when their row is written, so that logging a loss never waits for a device.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from covshift import schema
from covshift.exceptions import InvalidArgumentError

Scalar = float | torch.Tensor


@dataclass
class _Step:
    number: int
    values: dict[str, Scalar] = field(default_factory=dict)
    is_recorded: bool = False
    wall_time: float = 0.0


class Log:
    """Scalars of the step now open and of the one just closed, to which more may still be logged."""

    def __init__(self) -> None:
        self.begin_at(0)

    def begin_at(self, step: int) -> None:
        """The step now open is number ``step``."""
        self._open = _Step(step)
        self._closed: _Step | None = None

    def add(self, values: dict[str, Any]) -> None:
        """Keep the user's values: for the step just closed, until the next one begins.

        Raises
        ------
        InvalidArgumentError
            If a value is no real number and no tensor of one, or a name cannot name an array.
        """
        checked = {_stored_name(name): _loggable(name, value) for name, value in values.items()}
        (self._closed or self._open).values.update(checked)

    def note(self, **values: float) -> None:
        """Keep what the recorder knows of the step now open, unless the user logged it."""
        for name, value in values.items():
            self._open.values.setdefault(name, value)

    def note_of_closed(self, **values: float) -> None:
        """Keep what the recorder has learned of the step just closed, in place of what it noted before."""
        if self._closed is not None:
            self._closed.values.update(values)

    def close_step(self, *, is_recorded: bool) -> None:
        """The open step has ended."""
        self._closed, self._open = self._open, _Step(self._open.number + 1)
        self._closed.wall_time, self._closed.is_recorded = time.time(), is_recorded

    def end(self) -> None:
        """Nothing more comes: what was logged for the open step is written as if it had ended."""
        if self._open.values:
            self.close_step(is_recorded=False)

    def take(self) -> list[schema.Row]:
        """The row of the step just closed, whose time to log is over; none where nothing was logged or recorded."""
        step, self._closed = self._closed, None
        if step is None or not (step.values or step.is_recorded):
            return []
        values = {"wall_time": np.array(step.wall_time)}
        values |= {name: np.array(float(value)) for name, value in step.values.items()}
        return [schema.Row("scalars", step.number, values)]


LONGEST_NAME = 200  # a file system allows 255 for the name of a directory
_NAME = re.compile(r"[A-Za-z][\w.+ -]*", re.ASCII)


def _stored_name(name: str) -> str:
    """The array's name: a slash would be a group, so ``val/loss`` is kept as ``val.loss``."""
    stored = name.replace("/", ".") if isinstance(name, str) else ""
    if not _NAME.fullmatch(stored) or len(stored) > LONGEST_NAME or stored in ("step", "wall_time", "zarr.json"):
        raise InvalidArgumentError(
            f"log({name!r}): expected a name of letters, digits, '_', '.', '/', '+', '-' and blanks that begins with a "
            f"letter, of {LONGEST_NAME} characters at most, other than step and wall_time"
        )
    return stored


def _loggable(name: str, value: Any) -> Scalar:
    """``value`` as it is kept until its row is written."""
    if isinstance(value, torch.Tensor) and value.numel() == 1 and not value.is_complex() and not value.is_meta:
        # A copy, read when the row is written: no synchronisation now, no graph kept.
        return value.detach().clone()
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value[()]
    try:
        if isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool):
            return float(value)
    except OverflowError as error:
        raise InvalidArgumentError(f"log({name}=...): {error}; expected a number that float64 can hold") from error
    raise InvalidArgumentError(
        f"log({name}={value!r}): expected a real number or a tensor of one element; reduce it first"
    )
