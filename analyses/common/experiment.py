"""The command line that all experiments share: which runs are asked for, which are missing, and making those.

A run is finished when its folder holds its summary; asking again makes only what is missing. Runs are independent, so
they may be made by several processes, and a kill costs the unfinished ones at most.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from common.data import DATASETS, load
from common.jobs import Job, Session
from common.plan import Plan, distance
from common.processes import pool
from covshift.datasets import ImageSplit
from covshift.exceptions import CovshiftError

Perform = Callable[[Job, Path, ImageSplit, Session], dict[str, Any]]
"""Makes one run in a folder, writes its summary there and returns it."""


@dataclass(frozen=True)
class Experiment:
    """One script of the paper's trial.

    Attributes
    ----------
    name : str
        Of the script.
    title : str
        What it asks, in a line.
    presets : mapping of str to Plan
        ``smoke``, ``cpu`` and ``paper``, the last being the original protocol.
    perform : callable
        Makes a run; must be importable in another process.
    """

    name: str
    title: str
    presets: Mapping[str, Plan]
    perform: Perform

    def main(self, arguments: list[str] | None = None) -> int:
        """Make the runs that the command line asks for and are not there yet; returns the exit code."""
        parser = self._parser()
        options = parser.parse_args(arguments)
        try:
            plan = self._plan(options)
            data = load(plan.dataset, options.data, download=options.download)
        except CovshiftError as error:
            parser.error(str(error))
        torch.set_num_threads(options.threads)
        jobs = self._jobs(options, plan)
        self._announce(options, plan, data, jobs)
        done, missing = {}, []
        for job in jobs:
            found = job.finished(options.out / job.name, data)
            if found is None:
                missing.append(job)
            else:
                done[job.name] = found
        if done:
            print(f"{len(done)} of {len(jobs)} runs are finished already")
        done |= self._make(missing, options)
        _print_table([done[job.name] for job in jobs if job.name in done])
        return 0

    def _parser(self) -> argparse.ArgumentParser:
        parser = argparse.ArgumentParser(description=self.title)
        add = parser.add_argument
        add("--preset", choices=list(self.presets), default="cpu", help="scale; paper is the original protocol")
        add("--variants", help="comma-separated; an unknown one lists them all")
        add("--seeds", type=int, help="runs of each combination, with seeds 0, 1, ...")
        add("--steps", type=int, help="optimizer steps of a run")
        add("--dataset", choices=list(DATASETS), help="another data set than the preset's")
        add("--data", type=Path, default=Path("data"), help="folder that holds the data set")
        add("--download", action="store_true", help="fetch the data set into --data where it is missing")
        add("--device", default="cpu", help="torch device")
        add("--threads", type=int, default=1, help="of each process; the numbers depend on it in their last bits")
        add("--processes", type=int, default=1, help="runs made at the same time")
        add("--out", type=Path, default=Path("runs/paper"), help="one folder a run")
        add("--resume", action="store_true", help="continue runs from their last checkpoint instead of anew")
        add("--minutes", type=float, default=math.inf, help="stop at the first evaluation after so many; see --resume")
        for name, values in next(iter(self.presets.values())).axes:
            add(f"--{name}", help=f"comma-separated values of {name}, such as {values[0]}")
        return parser

    def _plan(self, options: argparse.Namespace) -> Plan:
        """The preset with what the command line changes; how many runs it asks for is no change."""
        plan = self.presets[options.preset]
        given = {name: getattr(options, name) for name in ("steps", "dataset", "seeds")}
        plan = replace(plan, **{name: value for name, value in given.items() if value is not None})
        if min(plan.steps, plan.seeds) < 1:
            raise CovshiftError("--steps and --seeds: expected whole numbers from 1")
        axes = tuple((name, _values(getattr(options, name), values)) for name, values in plan.axes)
        plan = replace(plan, axes=axes, evaluate_every=min(plan.evaluate_every, plan.steps))
        if options.variants:
            known = self._variants
            chosen = tuple(name.strip() for name in options.variants.split(",") if name.strip())
            unknown = [name for name in chosen if name not in known]
            if unknown or not chosen:
                raise CovshiftError(f"--variants {options.variants}: expected some of {', '.join(known)}")
            plan = replace(plan, variants=chosen)
        return plan

    @property
    def _variants(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for plan in self.presets.values() for name in plan.variants))

    def _jobs(self, options: argparse.Namespace, plan: Plan) -> list[Job]:
        """All runs, seed by seed, so that what is there after a stop is an even part of the whole."""
        preset = self.presets[options.preset]
        changed = [
            str(getattr(plan, name)) for name in ("steps", "dataset") if getattr(plan, name) != getattr(preset, name)
        ]
        label = "-".join([options.preset, *changed])
        return [
            Job(self.name, label, variant, condition, seed, plan, self.presets["paper"])
            for seed in range(plan.seeds)
            for condition in plan.conditions
            for variant in plan.variants
        ]

    def _announce(self, options: argparse.Namespace, plan: Plan, data: ImageSplit, jobs: list[Job]) -> None:
        print(f"{self.title}\n{len(jobs)} runs under {options.out}, preset {options.preset}")
        print(f"data: {data.name}, content SHA-256 {data.sha256}\n  {data.description}")
        for name, values in distance(plan, self.presets["paper"]).items():
            print(f"not the paper's protocol: {name} is {values['here']}, there {values['paper']}")
        sys.stdout.flush()

    def _make(self, jobs: list[Job], options: argparse.Namespace) -> dict[str, dict[str, Any]]:
        deadline = time.monotonic() + 60 * options.minutes
        session = Session(options.device, options.resume, deadline, _show)
        tasks = [_Task(self.perform, job, options, session) for job in jobs]
        if options.processes <= 1 or len(tasks) <= 1:
            return {task.job.name: task() for task in tasks if time.monotonic() < deadline}
        done = {}
        with pool(options.processes) as workers:
            futures = {workers.submit(_perform, task): task for task in tasks}
            for future in as_completed(futures):
                if (summary := future.result()) is not None:
                    done[futures[future].job.name] = summary
        return done


@dataclass(frozen=True)
class _Task:
    """One run as another process needs to know it."""

    perform: Perform
    job: Job
    options: argparse.Namespace
    session: Session

    def __call__(self) -> dict[str, Any]:
        torch.set_num_threads(self.options.threads)
        data = load(self.job.plan.dataset, self.options.data, download=False)
        summary = self.perform(self.job, self.options.out / self.job.name, data, self.session)
        _show_end(summary)
        return summary


def _perform(task: _Task) -> dict[str, Any] | None:
    return task() if time.monotonic() < task.session.deadline else None


def _show(job: Job, step: int, accuracy: float) -> None:
    print(f"{job.name}: step {step:,} of {job.plan.steps:,}, test accuracy {accuracy:.3f}", flush=True)


def _show_end(summary: dict[str, Any]) -> None:
    state = "finished" if summary["complete"] else f"stopped at step {summary['steps']:,}; --resume goes on"
    print(f"  {state}: {summary['diagnosis']['sentence']}", flush=True)


def _values(text: str | None, values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Values given on the command line, of the kind of those of the preset."""
    if text is None:
        return values
    kind = type(values[0])
    try:
        return tuple(kind(part.strip()) for part in text.split(","))
    except ValueError as error:
        raise CovshiftError(f"{text}: expected comma-separated values such as {values[0]}") from error


def _print_table(summaries: list[dict[str, Any]]) -> None:
    print(f"\n{'run':72} {'steps':>8} {'accuracy':>8} {'parameters':>10} {'CPU s':>6}  worst finding")
    for one in summaries:
        condition = " ".join(f"{name} {value}" for name, value in one["condition"].items())
        run = f"{one['title']} {condition} seed {one['seed']}"
        accuracy = "" if one.get("test_accuracy") is None else f"{one['test_accuracy']:.4f}"
        print(
            f"{run:72} {one['steps']:8,} {accuracy:>8} {one['parameters']:10,} {one['seconds']['cpu']:6.0f}  "
            f"{one['diagnosis']['worst']}"
        )
