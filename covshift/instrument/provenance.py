"""Where a recording comes from: the model, the machine's software, the command and the commit."""

from __future__ import annotations

import platform
import subprocess
import sys
from typing import Any

import numpy as np
import torch
from torch import nn


def describe(model: nn.Module) -> dict[str, Any]:
    """Attributes of a recording of ``model`` made now: sizes, device, versions, seed, command line, commit."""
    first = next(model.parameters(), None)
    return {
        "model": type(model).__name__,
        "parameter_count": sum(p.numel() for p in model.parameters() if not nn.parameter.is_lazy(p)),
        "device": "cpu" if first is None else str(first.device),
        "torch_version": torch.__version__,
        "numpy_version": np.__version__,
        "python_version": platform.python_version(),
        "torch_seed": torch.initial_seed(),
        "torch_threads": torch.get_num_threads(),
        "world_size": torch.distributed.get_world_size() if _distributed() else 1,
        "command_line": " ".join(sys.argv),
        "git_commit": _git_commit(),
    }


def _distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _git_commit() -> str:
    """Commit of the working directory, "" outside a checkout or without git."""
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()
