"""Memory of this process, as Linux tells it."""

from __future__ import annotations

from pathlib import Path


def resident(entry: str) -> int:
    """Bytes of ``VmRSS`` (now) or ``VmHWM`` (most since the last reset).

    Not ``ru_maxrss``, in which a child has what its parent held before it.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{entry}:"))
