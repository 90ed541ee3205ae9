"""Every experiment at its smallest, and a verdict on every recording: that the machinery of the trial still runs.

    python analyses/smoke.py --out DIR

Two processes, so that torch is imported twice and not ten times. Exits with 1 if a script fails, a script has no
recording that ``covshift check`` can judge, or the results pages cannot be made from the summaries.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import sys
import tempfile
import time
import traceback
from pathlib import Path

from common.processes import pool

SCRIPTS = (
    "no_batchnorm", "parameter_matched", "resnet", "input_shift", "allcnn",
    "width", "depth", "covariate_shift", "step_time",
)  # fmt: skip
"""Longest first."""

JUDGED = (0, 1)
"""Exit codes of ``covshift check`` that are verdicts."""


def run_script(name: str, out: Path) -> tuple[bool, str]:
    """Make the smoke runs of one script; returns whether it came to its end, and what it said."""
    said, begun = io.StringIO(), time.perf_counter()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            code = importlib.import_module(name).EXPERIMENT.main(["--preset", "smoke", "--out", str(out)])
    except SystemExit as exit_:
        code = exit_.code
    except Exception:  # noqa: BLE001 - whatever ended the script is shown, and fails the check
        traceback.print_exc(file=said)
        code = 1
    report = f"{name}: {time.perf_counter() - begun:.0f} s, exit code {code}"
    return code == 0, report if code == 0 else f"{report}\n{said.getvalue()}"


def judged(recordings: list[Path]) -> bool:
    """Whether ``covshift check`` comes to a verdict on each of the recordings."""
    from covshift.cli import app

    verdicts = []
    for recording in recordings:
        said = io.StringIO()
        try:
            with contextlib.redirect_stdout(said):
                code = int(app(["check", str(recording)]) or 0)
        except SystemExit as exit_:
            code = int(exit_.code or 0)
        verdicts.append(code in JUDGED)
        if code not in JUDGED:
            print(f"covshift check {recording}: exit code {code}\n{said.getvalue()}", flush=True)
    return bool(verdicts) and all(verdicts)


def run_all(out: Path) -> bool:
    """Run every script, judge every recording, and write the results pages; returns whether all went well."""
    with pool(2) as workers:
        jobs = [workers.submit(run_script, name, out) for name in SCRIPTS]
        ran = []
        for job in jobs:
            fine, report = job.result()
            ran.append(fine)
            print(report, flush=True)
    recordings = sorted(out.glob("*/recording.zarr"))
    silent = [name for name in SCRIPTS if not any(path.parent.name.startswith(f"{name}_") for path in recordings)]
    if silent:
        print(f"no recording of {', '.join(silent)}")
    fine = all(ran) and not silent and judged(recordings)
    pages = importlib.import_module("results").main(["--smoke", "--collect", str(out), "--out", str(out / "results")])
    print(f"{len(recordings)} recordings of {len(SCRIPTS)} scripts: {'all judged' if fine else 'FAILED'}")
    return fine and pages == 0


def main(arguments: list[str] | None = None) -> int:
    """Run everything; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, help="keep the recordings here; by default they are thrown away")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        return 0 if run_all(options.out or Path(folder)) else 1


if __name__ == "__main__":
    sys.exit(main())
