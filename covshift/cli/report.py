"""``covshift report``: recordings in, one HTML page out, once or as long as they are written."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from threading import Event
from typing import Annotated

import typer
import xarray as xr

from covshift.cli.common import CANNOT, Debug, Overwrite, Quiet, console, one_line_errors, open_readable_runs
from covshift.exceptions import InvalidArgumentError, RecordingDamaged

Runs = dict[str, xr.DataTree | RecordingDamaged]


def report(
    runs: Annotated[list[Path], typer.Argument(help="Recordings; several give a comparison.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="Where the page goes.")] = Path("report.html"),
    json: Annotated[Path | None, typer.Option(help="Also write the findings as JSON here.")] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Write it again while a run goes on, until it ends.")] = False,
    serve: Annotated[bool, typer.Option("--serve", help="With --watch: show it on a local port.")] = False,
    port: Annotated[int, typer.Option(help="Port of --serve; 0 takes a free one.")] = 0,
    seconds: Annotated[float, typer.Option(min=0.1, help="How often --watch looks.")] = 5.0,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Write a self-contained report of one recording, or a comparison of several.

    A recording that is damaged or missing is reported as such, on the page and here; exit code 1 if none could be read,
    and no page if none is there.

    Example: covshift report runs/relu.zarr runs/linked.zarr -o report.html
    """
    from covshift.reporting import write_report

    with one_line_errors(debug=debug):
        if serve and not watch:
            raise InvalidArgumentError("serve: expected together with --watch; a finished page opens from its file")
        if watch:
            opened = _follow(runs, out, json, seconds=seconds, port=port if serve else None, overwrite=overwrite)
        else:
            with console(quiet=quiet).status("Reading recordings"):
                opened = open_readable_runs(runs)
                write_report(opened, out, json=json, overwrite=overwrite)
            typer.echo(str(out))
    damaged = [run for run in opened.values() if isinstance(run, RecordingDamaged)]
    for reason in damaged:
        typer.echo(f"error: {reason}", err=True)
    if len(damaged) == len(opened):
        raise typer.Exit(CANNOT)


def _follow(
    runs: list[Path], out: Path, json: Path | None, *, seconds: float, port: int | None, overwrite: bool
) -> Runs:
    """Write the page whenever a run has grown; after the last record, or when interrupted, it stands finished.

    A page that is served stays so until interrupted, for the browser has yet to fetch its last state. An interrupt
    before the first page writes none: nothing that stands at ``out`` is ours to replace.
    """
    from covshift.cli.following import follow, served
    from covshift.reporting import write_report

    def write(*, goes_on: bool, overwrite: bool) -> Runs:
        refresh = max(round(seconds), 1) if goes_on else None
        opened = open_readable_runs(runs)
        write_report(opened, out, json=json, overwrite=overwrite, refresh_seconds=refresh)
        return opened

    written: Runs = {}
    try:
        with nullcontext(str(out)) if port is None else served(out, port=port) as place:
            for goes_on in follow(runs, seconds=seconds):
                first = not written
                written = write(goes_on=goes_on, overwrite=overwrite or not first)
                if first:
                    typer.echo(place)
            if port is not None:
                Event().wait()
    except KeyboardInterrupt:
        if not written:
            raise
        written = write(goes_on=False, overwrite=True)
    return written
