"""Results that survive a kill: one line of JSON each, and what a file already holds is not computed again."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import as_completed
from pathlib import Path
from typing import Any

import torch

import covshift
from common.processes import pool

Job = Callable[[], Any]


class Results:
    """A file of results by key, made by one state of the code.

    Raises
    ------
    SystemExit
        If the file was made by other code: its runs and new ones would be no one calibration.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.held = path, {}
        lines = _whole_lines(path)
        code = code_digest()
        if lines and lines[0].get("code") != code:
            raise SystemExit(f"{path}: made by other code ({lines[0].get('code')}, now {code}); give another --out")
        self.held: dict[str, Any] = {line["key"]: line for line in lines[1:]}
        if not lines:
            self._append({"code": code, "version": covshift.__version__})

    def missing(self, keys: Iterable[str]) -> list[str]:
        """Those of ``keys`` that the file does not hold."""
        return [key for key in keys if key not in self.held]

    def result(self, key: str) -> Any:
        """What was computed under ``key``."""
        return self.held[key]["result"]

    def seconds(self, keys: Iterable[str]) -> list[float]:
        """How long each took, on the core it had."""
        return [self.held[key]["seconds"] for key in keys]

    def complete(self, jobs: dict[str, Job], *, processes: int, show: Callable[[str], None]) -> None:
        """Run the jobs that are missing, in ``processes``; every result is on disk before the next is waited for."""
        missing, started = self.missing(jobs), time.monotonic()
        done = 0

        def keep(key: str, outcome: tuple[Any, float]) -> None:
            nonlocal done
            line = {"key": key, "result": outcome[0], "seconds": round(outcome[1], 3)}
            self._append(line)
            self.held[key] = line
            done += 1
            left = (time.monotonic() - started) / done * (len(missing) - done)
            show(f"{done} of {len(missing)}, about {left / 60:.0f} min left: {key}")

        if processes == 1:
            for key in missing:
                keep(key, timed(jobs[key]))
            return
        with pool(processes) as workers:
            running = {workers.submit(timed, jobs[key]): key for key in missing}
            for future in as_completed(running):
                keep(running[future], future.result())

    def _append(self, line: dict[str, Any]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())


def timed(job: Job) -> tuple[Any, float]:
    """Result of a job and its seconds of CPU, on one thread."""
    torch.set_num_threads(1)
    started = time.process_time()
    result = job()
    return result, time.process_time() - started


def code_digest() -> str:
    """Digest of the package's source: results of different code must not mix."""
    digest = hashlib.sha256()
    root = Path(covshift.__file__).parent
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def _whole_lines(path: Path) -> list[dict[str, Any]]:
    """Lines of a results file; what a kill cut off is taken away, so that the next line begins a new one."""
    if not path.exists():
        return []
    text = path.read_bytes()
    whole = text[: text.rfind(b"\n") + 1]
    if len(whole) < len(text):
        os.truncate(path, len(whole))
    return [json.loads(line) for line in whole.splitlines()]
