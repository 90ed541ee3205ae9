"""``covshift demo``: the main job on bundled data, with progress and a verdict table."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
import xarray as xr
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from covshift.cli.common import Debug, Overwrite, Quiet, console, one_line_errors, open_runs

if TYPE_CHECKING:
    from covshift.demo import Plan, Run
    from covshift.diagnosis import Diagnosis


def demo(
    variants: Annotated[
        str, typer.Option(help="Comma-separated variants; an unknown one lists them all.")
    ] = "relu,linked-relu,selu,batch-norm",
    depth: Annotated[int, typer.Option(help="Convolutions of the net.")] = 50,
    steps: Annotated[int, typer.Option(help="Optimizer steps of each run.")] = 400,
    seeds: Annotated[int, typer.Option(help="Runs of each variant, with seeds 0, 1, ...")] = 1,
    device: Annotated[str | None, typer.Option(help="torch device; a GPU is used where there is one.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write to; default runs/demo-<n>.")] = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Train the paper's deep net on handwritten digits with several activations, record it all, write a report.

    Example: covshift demo --variants relu,linked-relu --steps 400
    """
    # torch is imported when training is asked for: the other commands read recordings without it.
    from covshift.demo import Plan, new_folder, prepare

    screen = console(quiet=quiet)
    folder = out or new_folder()
    with one_line_errors(debug=debug):
        names = [name.strip() for name in variants.split(",") if name.strip()]
        plan = Plan(names, depth=depth, steps=steps, seeds=seeds, device=device or _default_device())
        prepare(folder, overwrite=overwrite)
        runs = _train(folder, plan, screen)
        recordings = open_runs([run.path for run in runs])
        with screen.status("Writing the report"):
            diagnoses = _diagnoses(recordings)
            report = _report(recordings, diagnoses, folder)
    screen.print(_verdicts(runs, diagnoses))
    typer.echo(f"report: {report}")


def _default_device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _train(folder: Path, plan: Plan, screen: Console) -> list[Run]:
    from covshift.demo import run_demo

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=screen) as bars:
        tasks = {f"{v} seed {s}": bars.add_task(f"{v} seed {s}", total=plan.steps, start=False) for v, s in plan.runs}

        def show(name: str, step: int) -> None:
            bars.start_task(tasks[name])
            bars.update(tasks[name], completed=step)

        return run_demo(folder, plan, progress=show)


def _diagnoses(recordings: Mapping[str, xr.DataTree]) -> dict[str, Diagnosis]:
    from covshift.diagnosis import diagnose

    return {name: diagnose(recording) for name, recording in recordings.items()}


def _report(recordings: Mapping[str, xr.DataTree], diagnoses: Mapping[str, Diagnosis], folder: Path) -> Path:
    from covshift.reporting import write_report

    page, twin = folder / "report.html", folder / "findings.json"
    return write_report(recordings, page, diagnoses=diagnoses, json=twin, overwrite=True)


def _verdicts(runs: list[Run], diagnoses: Mapping[str, Diagnosis]) -> Table:
    table = Table(title="After training", title_justify="left")
    for heading in ("run", "test accuracy", "verdict", "seconds"):
        table.add_column(heading, justify="right" if heading in ("test accuracy", "seconds") else "left")
    for run in runs:
        table.add_row(run.name, f"{run.test_accuracy:.3f}", diagnoses[run.name].sentence, f"{run.seconds:.0f}")
    return table
