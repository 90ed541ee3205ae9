"""Every experiment at its smallest, and a verdict on every recording: that the machinery of the trial still runs.

    python analyses/smoke.py --out DIR

Two scripts at a time. Exits with 1 if a script fails, a run has no recording that ``covshift check`` can judge, or the
results page cannot be made from the summaries.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SCRIPTS = (
    "no_batchnorm", "parameter_matched", "resnet", "input_shift", "allcnn",
    "width", "depth", "covariate_shift", "step_time",
)  # fmt: skip
"""Longest first."""

HERE = Path(__file__).parent
JUDGED = (0, 1)
"""Exit codes of ``covshift check`` that are verdicts."""


def run_script(name: str, *arguments: str) -> bool:
    """Run one script; on failure print what it said."""
    begun = time.perf_counter()
    command = [sys.executable, str(HERE / f"{name}.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    print(f"{name}: {time.perf_counter() - begun:.0f} s, exit code {done.returncode}", flush=True)
    if done.returncode:
        print(done.stdout + done.stderr, flush=True)
    return done.returncode == 0


def judged(recordings: list[Path]) -> bool:
    """Whether ``covshift check`` comes to a verdict on each of the recordings."""
    from covshift.cli import app

    verdicts = []
    for recording in recordings:
        try:
            code = int(app(["check", str(recording), "--quiet"]) or 0)
        except SystemExit as exit_:
            code = int(exit_.code or 0)
        verdicts.append(code in JUDGED)
        if code not in JUDGED:
            print(f"covshift check {recording}: exit code {code}", flush=True)
    return bool(verdicts) and all(verdicts)


def main(arguments: list[str] | None = None) -> int:
    """Run everything; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, help="keep the recordings here; by default they are thrown away")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        out = options.out or Path(folder)
        with ThreadPoolExecutor(2) as pool:
            ran = list(pool.map(lambda name: run_script(name, "--preset", "smoke", "--out", str(out)), SCRIPTS))
        recordings = sorted(out.glob("*/recording.zarr"))
        missing = [name for name in SCRIPTS if not any(path.parent.name.startswith(f"{name}_") for path in recordings)]
        if missing:
            print(f"no recording of {', '.join(missing)}")
        ran.append(run_script("results", "--smoke", "--collect", str(out), "--out", str(out / "results")))
        fine = all(ran) and not missing and judged(recordings)
    print(f"{len(recordings)} recordings of {len(SCRIPTS)} scripts: {'all judged' if fine else 'FAILED'}")
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
