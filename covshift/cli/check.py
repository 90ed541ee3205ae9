"""``covshift check``: the verdict table of a recording, and an exit code for continuous integration."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from covshift.cli.common import CANNOT, UNJUDGED, Debug, Quiet, console, one_line_errors
from covshift.exceptions import InvalidArgumentError
from covshift.store import reader

Level = Literal["watch", "bad"]


def check(
    run: Annotated[Path, typer.Argument(help="A recording.", show_default=False)],
    fail_on: Annotated[Level, typer.Option(help="Exit with 1 on any finding at or above this level.")] = "bad",
    require: Annotated[
        list[str] | None, typer.Option(help="Exit with 2 if this check was measured in no layer; may be repeated.")
    ] = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Judge a recording: print its findings, exit with 1 if any is as bad as --fail-on.

    Exits with 2 if the recording cannot be read, is empty, or nothing in it could be measured.

    Example: covshift check runs/relu.zarr --fail-on bad
    """
    from covshift.analysis import rows
    from covshift.diagnosis import diagnose

    with one_line_errors(debug=debug, code=UNJUDGED):
        recording = reader.open(run)
        diagnosis = diagnose(recording)
        known = {finding.check for finding in diagnosis.findings}
        for name in require or []:
            if name not in known:
                raise InvalidArgumentError(f"require={name!r}: expected one of {', '.join(sorted(known))}")
    console(quiet=quiet).print(diagnosis)
    measured = {finding.check for finding in diagnosis.findings if finding.verdict != "not measured"}
    failing = ("watch", "bad") if fail_on == "watch" else ("bad",)
    unmeasured = known - measured
    if rows.is_left_open(recording) and not quiet:
        typer.echo("the recording is not closed: it is still being written, or was cut short; `covshift info` tells")
    if not quiet:
        typer.echo(f"{len(unmeasured)} of {len(known)} checks not measured in any layer")
    if not measured or unmeasured & set(require or []):
        raise typer.Exit(UNJUDGED)
    if any(finding.verdict in failing for finding in diagnosis.findings):
        raise typer.Exit(CANNOT)
