"""How often the diagnosis is right: planted faults, healthy controls, and the tests where nothing moves.

``--part trials`` trains, records and judges small networks, in two processes, one line of JSON a run; a run that the
file already holds is not repeated, so an interrupted calibration goes on where it stopped. Rules and thresholds were
set on the development networks and seeds (``--set development``); what is claimed is what ``--set held-back`` gives.
``--part tests`` reproduces the tables of docs/concepts/calibration.md on simulated data.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from common import simulated_tests
from covshift.selfcheck.controls import CONTROLS
from covshift.selfcheck.faults import FAULTS, MOVEMENT
from covshift.selfcheck.scoring import score
from covshift.selfcheck.suite import DOSES, NONE, Trial
from covshift.selfcheck.trials import Outcome

FIRST_SEED = {"development": 0, "held-back": 200}
"""Held-back seeds from 100 on were looked at once and led to changes; they are development since."""


def trials(*, held_back: bool, seeds: int, doses: tuple[str, ...]) -> Iterator[Trial]:
    """Every fault at every dose and every control, seed by seed, so that a cut calibration is an even one.

    Movements come with their twins (dose ``none``): a network that learns moves, and may be found without a fault.
    """
    first = FIRST_SEED["held-back" if held_back else "development"]
    for seed in range(first, first + seeds):
        for fault in FAULTS:
            given = (NONE, *doses) if fault.checks == MOVEMENT else doses
            yield from (Trial("fault", fault.name, dose, seed, held_back) for dose in given)
        yield from (Trial("control", control.name, "", seed, held_back) for control in CONTROLS)


def key(record: dict[str, Any]) -> tuple[Any, ...]:
    """What tells one run from another."""
    return tuple(record[name] for name in ("kind", "name", "dose", "seed", "held_back"))


def run(trial: Trial) -> dict[str, Any]:
    """Outcome of one trial as JSON types, on one thread."""
    torch.set_num_threads(1)
    return trial.run().to_dict()


def completed(path: Path) -> list[dict[str, Any]]:
    """The runs a results file holds; a last line that was cut off is left out."""
    records = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            print(f"{path}: left out a line that was cut off")
    return records


def run_missing(wanted: list[Trial], path: Path, *, processes: int) -> list[dict[str, Any]]:
    """Run what the file does not hold yet, appending a line a run, and return all that was wanted."""
    done = {key(record): record for record in completed(path)}
    missing = [trial for trial in wanted if key(vars(trial)) not in done]
    # spawn: a forked child would inherit torch's and numba's threads.
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool, path.open("a") as file:
        jobs = {pool.submit(run, trial): trial for trial in missing}
        for index, job in enumerate(as_completed(jobs)):
            record = job.result()
            done[key(record)] = record
            file.write(json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())
            print(f"\r{index + 1} of {len(missing)} runs", end="", flush=True)
    print()
    return [done[key(vars(trial))] for trial in wanted]


def show(records: list[dict[str, Any]]) -> None:
    """Recall by fault and dose, false alarms by control, and the totals that are claimed."""
    outcomes = [Outcome(**record) for record in records]
    print(f"\n{'fault':28} {'dose':8} found in its layer, of runs [95 % Wilson interval]")
    for fault in FAULTS:
        for dose in (NONE, *DOSES):
            mine = [one for one in outcomes if one.name == fault.name and one.dose == dose]
            if mine:
                print(f"{fault.name:28} {dose:8} {score(mine).recall}")
    print(f"\n{'control':28} {'bad':28} to watch or bad")
    for control in CONTROLS:
        mine = [one for one in outcomes if one.name == control.name]
        if mine:
            counted = score(mine)
            print(f"{control.name:28} {counted.false_bad!s:28} {counted.false_watch}")
            for said in sorted({said for one in mine for said in one.bad}):
                print(f"{'':28} bad: {said}")
    strong, total = score(one for one in outcomes if one.dose == "strong"), score(outcomes)
    print(f"\nrecall at strong dose        {strong.recall}   (target 0.9)")
    print(f"localisation, strong dose    {strong.localisation}   (target 0.9)")
    print(f"controls with a bad finding  {total.false_bad}   (target at most 0.05)")
    print(f"layers of controls undetermined: {total.undetermined:.2f} on average (target at most 0.20)")


def main(arguments: list[str] | None = None) -> None:
    """Run the chosen part and print it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--part", choices=["tests", "trials", "all"], default="all", help="what to calibrate")
    parser.add_argument("--set", choices=list(FIRST_SEED), default="held-back", help="networks and seeds")
    parser.add_argument("--seeds", type=int, default=5, help="runs of each fault, dose and control")
    parser.add_argument("--doses", default="weak,medium,strong", help="comma-separated")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("calibration.jsonl"), help="results; continued if it exists")
    options = parser.parse_args(arguments)
    doses = tuple(options.doses.split(","))
    if unknown := set(doses) - set(DOSES):
        parser.error(f"--doses: unknown {', '.join(sorted(unknown))}; expected some of {', '.join(DOSES)}")
    if options.part in ("tests", "all"):
        simulated_tests.show(simulated_tests.measure())
    if options.part in ("trials", "all"):
        wanted = list(trials(held_back=options.set == "held-back", seeds=options.seeds, doses=doses))
        show(run_missing(wanted, options.out, processes=options.processes))


if __name__ == "__main__":
    main()
