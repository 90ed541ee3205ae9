"""How often the diagnosis is right: planted faults, healthy controls, and the tests where nothing moves.

Every result is a line of ``--out``; what the file already holds is not computed again, so a calibration that was cut
off, even by kill -9, goes on where it stopped and ends with the same numbers. Rules and thresholds were set on the
development networks and seeds (``--set development``); what is claimed is what ``--set held-back`` gives.

    python analyses/calibration.py --processes 1 --write-docs     # everything; about 2 s a run, some 700 runs
    python analyses/calibration.py --section nulls --section power
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from common import calibration_page, calibration_trials, estimator_tables, simulated_tests
from common.resumed import Job, Results, code_digest
from covshift.selfcheck.suite import DOSES

SECTIONS = ("faults", "controls", "nulls", "power", "tables")
CONCEPTS = Path(__file__).parent.parent / "docs" / "concepts"
SIMULATED = {
    "nulls": simulated_tests.null_jobs,
    "power": simulated_tests.power_jobs,
    "tables": estimator_tables.table_jobs,
}


def planned(section: str, options: argparse.Namespace) -> dict[str, Job]:
    """The jobs of a section by key."""
    if section in SIMULATED:
        return SIMULATED[section]()
    held_back = options.set == "held-back"
    chosen = calibration_trials.trials(section, held_back=held_back, seeds=options.seeds, doses=options.doses)
    named = options.only or ["*"]
    return calibration_trials.jobs([one for one in chosen if any(fnmatch(one.name, pattern) for pattern in named)])


def gathered(results: Results, jobs: dict[str, dict[str, Job]], options: argparse.Namespace) -> dict[str, Any]:
    """What the sections amount to, as JSON types."""
    found: dict[str, Any] = {}
    for section, keys in jobs.items():
        if section in SIMULATED:
            found[section] = {key: results.result(key) for key in keys}
            continue
        if not keys:
            continue
        seconds = results.seconds(keys)
        meta = {
            "set": options.set,
            "first_seed": calibration_trials.FIRST_SEED[options.set],
            "seeds": options.seeds,
            "runs": len(keys),
            "seconds": sum(seconds) / len(seconds),
            "code": code_digest(),
        }
        found[section] = calibration_trials.summary([results.result(key) for key in keys]) | {"meta": meta}
    return found


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    """The options, checked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--section", action="append", choices=SECTIONS, help="repeatable; all by default")
    parser.add_argument(
        "--set", choices=list(calibration_trials.FIRST_SEED), default="held-back", help="networks and seeds"
    )
    parser.add_argument("--seeds", type=int, default=5, help="runs of each fault, dose and control")
    parser.add_argument("--only", action="append", help="names of faults, traps and controls, with * and ?; repeatable")
    parser.add_argument("--doses", default=",".join(DOSES), help="comma-separated")
    parser.add_argument("--processes", type=int, default=2, help="1: none besides this one")
    parser.add_argument("--out", type=Path, default=Path("calibration.jsonl"), help="results; continued if it exists")
    parser.add_argument("--json", type=Path, help="also write the summary here")
    parser.add_argument("--write-docs", action="store_true", help="rewrite docs/concepts/calibration.md and .json")
    options = parser.parse_args(arguments)
    options.doses = tuple(options.doses.split(","))
    if unknown := set(options.doses) - set(DOSES):
        parser.error(f"--doses: unknown {', '.join(sorted(unknown))}; expected some of {', '.join(DOSES)}")
    for name in ("seeds", "processes"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} {getattr(options, name)}: expected at least 1")
    if options.write_docs and (options.set != "held-back" or options.doses != DOSES or options.only):
        parser.error(
            "--write-docs: the page claims what all held-back networks give at all doses; leave --set, --doses and "
            "--only out"
        )
    return options


def show_progress(text: str) -> None:
    """One line that is written over on a terminal, and lines of their own elsewhere."""
    end = "" if sys.stderr.isatty() else "\n"
    print(f"\r\033[K{text}" if end == "" else text, end=end, file=sys.stderr, flush=True)


def main(arguments: list[str] | None = None) -> None:
    """Compute the chosen sections, print them and write them where asked."""
    options = parsed(arguments)
    results = Results(options.out)
    jobs = {section: planned(section, options) for section in options.section or SECTIONS}
    together = {key: job for of_section in jobs.values() for key, job in of_section.items()}
    results.complete(together, processes=options.processes, show=show_progress)
    found = _without_nan(gathered(results, jobs, options))
    sections = calibration_page.blocks(found)
    for name, block in sections.items():
        print(f"\n## {name}\n\n{block}")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1, allow_nan=False) + "\n")
    if options.write_docs:
        _write_docs(found, sections)


def _write_docs(found: dict[str, Any], sections: dict[str, str]) -> None:
    path = CONCEPTS / "calibration.json"
    before = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(before | found, indent=1, allow_nan=False) + "\n")
    calibration_page.rewrite(CONCEPTS / "calibration.md", sections)


def _without_nan(value: Any) -> Any:
    """The same with None for what JSON cannot hold."""
    if isinstance(value, dict):
        return {key: _without_nan(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_without_nan(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


if __name__ == "__main__":
    main()
