"""Results on disk: written whole or not at all, in JSON that any reader takes."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

LARGEST_SUMMARY = 50_000
"""Bytes that a summary may have: they live in the repository."""


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a document at once, one line an entry; NaN and infinities become null."""
    lines = (f"{json.dumps(key)}: {json.dumps(value, allow_nan=False)}" for key, value in _plain(content).items())
    _replace(path, ("{\n" + ",\n".join(lines) + "\n}\n").encode())


def read_json(path: Path) -> dict[str, Any] | None:
    """The document, None where there is none."""
    if not path.exists():
        return None
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def write_state(path: Path, state: dict[str, Any]) -> None:
    """Write tensors and plain values at once."""
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    os.replace(partial, path)


def read_state(path: Path) -> dict[str, Any] | None:
    """What :func:`write_state` wrote, None where there is nothing."""
    if not path.exists():
        return None
    found: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
    return found


def digits_of(value: float, digits: int = 4) -> float:
    """The number to so many significant digits, for what nobody reads further."""
    return float(f"{value:.{digits}g}")


def thinned(values: Sequence[Any], most: int) -> list[Any]:
    """At most so many of the values, evenly spaced, the first and the last among them; ``most`` is at least 2."""
    if len(values) <= most:
        return list(values)
    return [values[index * (len(values) - 1) // (most - 1)] for index in range(most)]


def _replace(path: Path, content: bytes) -> None:
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
