"""One training run in a process of its own, and the peak of its resident memory: a child of ``memory_overhead``.

Run ``python -m common.peak_memory NETWORK bare|recorded STEPS``; it prints JSON. Linux only: peaks are read from, and
reset by, ``/proc/self``.
"""

from __future__ import annotations

import ctypes
import gc
import json
import sys
import tempfile
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

import covshift
from common.process_memory import resident
from common.workloads import MEMORY_WORKLOADS


def peak_above_level(workload: str, *, recorded: bool, steps: int) -> dict[str, int]:
    """Resident bytes after one warm-up step, and the most that ``steps`` further steps hold."""
    trainer = MEMORY_WORKLOADS[workload].make()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run"
        recorder: AbstractContextManager[Any] = (
            covshift.record(trainer.model, path, every=1) if recorded else nullcontext()
        )
        with recorder:
            trainer.steps(1)
            gc.collect()
            # What the warm-up step freed goes back to the system, so that the level is what is held, not what was.
            ctypes.CDLL(None).malloc_trim(0)
            level = resident("VmRSS")
            Path("/proc/self/clear_refs").write_text("5")
            trainer.steps(steps)
            peak = resident("VmHWM")
    return {"level": level, "peak": peak}


if __name__ == "__main__":
    torch.set_num_threads(1)
    network, arm, count = sys.argv[1:]
    print(json.dumps(peak_above_level(network, recorded=arm == "recorded", steps=int(count))))
