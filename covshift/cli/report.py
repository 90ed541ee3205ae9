"""``covshift report``: recordings in, one HTML page out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from covshift.cli.common import Debug, Overwrite, Quiet, console, one_line_errors, open_runs


def report(
    runs: Annotated[list[Path], typer.Argument(help="Recordings; several give a comparison.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="Where the page goes.")] = Path("report.html"),
    json: Annotated[Path | None, typer.Option(help="Also write the findings as JSON here.")] = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Write a self-contained report of one recording, or a comparison of several.

    Example: covshift report runs/relu.zarr runs/linked.zarr -o report.html
    """
    from covshift.reporting import write_report

    with one_line_errors(debug=debug), console(quiet=quiet).status("Reading recordings"):
        written = write_report(open_runs(runs), out, json=json, overwrite=overwrite)
    typer.echo(str(written))
