"""What every command shares: options, one-line errors, and reading recordings by path."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, TypeVar

import typer
import xarray as xr
from rich.console import Console

from covshift.exceptions import CovshiftError, InvalidArgumentError, RecordingDamaged, RecordingError
from covshift.store import reader

Run = TypeVar("Run")

Quiet = Annotated[bool, typer.Option("--quiet", help="Print only the paths of what was written, and errors.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what stands at the output path.")]

CANNOT = 1
UNJUDGED = 2


def console(*, quiet: bool = False) -> Console:
    """Where a command prints; silent with ``--quiet``."""
    return Console(quiet=quiet, highlight=False)


@contextmanager
def one_line_errors(*, debug: bool, code: int = CANNOT) -> Iterator[None]:
    """Turn errors into one line on standard error and exit code ``code``; ``--debug`` lets the traceback through."""
    try:
        yield
    except typer.Exit:
        raise
    except CovshiftError as error:
        if debug:
            raise
        typer.echo(f"error: {' '.join(str(error).split())}", err=True)
        raise typer.Exit(code) from error
    except Exception as error:
        # Lazily read chunks fail late and in any library's words; a user of the command line is owed one line.
        if debug:
            raise
        words = " ".join(str(error).split())
        typer.echo(f"error: {type(error).__name__}: {words}; --debug shows where", err=True)
        raise typer.Exit(code) from error


def open_runs(paths: Sequence[Path]) -> dict[str, xr.DataTree]:
    """Recordings by run name; runs of equal name are told apart by their paths."""
    _demand_different(paths)
    return _by_name({path: reader.open(path) for path in paths})


def open_readable_runs(paths: Sequence[Path]) -> dict[str, xr.DataTree | RecordingDamaged]:
    """The same, with the error in place of a recording that is damaged or missing, unless all are missing."""
    _demand_different(paths)
    opened = {path: _opened(path) for path in paths}
    missing = [
        one for one in opened.values() if isinstance(one, RecordingError) and not isinstance(one, RecordingDamaged)
    ]
    if missing and len(missing) == len(opened):
        raise missing[0]
    return _by_name(
        {path: RecordingDamaged(str(run)) if isinstance(run, RecordingError) else run for path, run in opened.items()}
    )


def _opened(path: Path) -> xr.DataTree | RecordingError:
    try:
        return reader.open(path)
    except RecordingError as error:
        return error


def _demand_different(paths: Sequence[Path]) -> None:
    if len({path.resolve() for path in paths}) < len(paths):
        raise InvalidArgumentError(f"runs={', '.join(map(str, paths))}: a recording is named twice")


def _by_name(opened: Mapping[Path, Run]) -> dict[str, Run]:
    names = {path: _name(path, run) for path, run in opened.items()}
    repeated = {name for name in names.values() if list(names.values()).count(name) > 1}
    return {f"{names[path]} ({path})" if names[path] in repeated else names[path]: run for path, run in opened.items()}


def _name(path: Path, run: object) -> str:
    return str(run.attrs.get("run_name", path.stem)) if isinstance(run, xr.DataTree) else path.stem
