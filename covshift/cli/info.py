"""``covshift info``: what a recording holds, whether it is whole, and who writes it."""

from __future__ import annotations

import json as json_text
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from covshift.cli.common import Debug, Quiet, console, one_line_errors

if TYPE_CHECKING:
    from covshift.store.description import Description


def info(
    run: Annotated[Path, typer.Argument(help="A recording.", show_default=False)],
    json: Annotated[bool, typer.Option("--json", help="Print the same as JSON.")] = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Say what a recording holds: records, layers, signals, size, versions, whether it is closed, and what is wrong.

    Reads no data, and works while the recording is being written.

    Example: covshift info runs/relu.zarr
    """
    from covshift.store.description import describe

    with one_line_errors(debug=debug):
        description = describe(run)
    if not json:
        console(quiet=quiet).print(_table(description))
    elif not quiet:
        typer.echo(json_text.dumps(description.to_dict(), indent=2))


def _table(description: Description) -> Table:
    table = Table(show_header=False, box=None, title=description.path, title_justify="left")
    for label, text in _lines(description).items():
        if text:
            table.add_row(label, text)
    return table


def _lines(one: Description) -> dict[str, str]:
    torch = f", torch {one.torch_version}" if one.torch_version else ""
    resumes = [
        f"at step {resume['step']} after {_last(resume.get('last_step'))} ({resume['time_utc']})"
        for resume in one.resumes
    ]
    return {
        "run": one.name,
        "state": one.state,
        "created": one.created,
        "versions": f"covshift {one.covshift_version}{torch}, schema {one.schema_version}",
        "steps": f"{one.steps[0]} to {one.steps[1]}" if one.steps else "none recorded",
        "records": ", ".join(f"{count} {group}" for group, count in one.records.items()),
        "in the journal": ", ".join(f"{count} {group}" for group, count in one.in_journal.items()),
        "axes": f"{one.layers} layers, {one.units} units, {one.parameters} parameters",
        "signals": ", ".join(one.signals),
        "logged": ", ".join(one.scalars),
        "resumed": "; ".join(resumes),
        "size": f"{_size(one.bytes)} in {one.files} files, {_size(one.dense_bytes)} in memory",
        "warning": "\n".join(one.warnings),
    }


def _last(step: int | None) -> str:
    return "no record" if step is None else f"step {step}"


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.4g} GB"
