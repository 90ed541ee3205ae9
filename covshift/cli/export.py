"""``covshift export``: a recording for other tools."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from covshift.cli.common import Debug, Overwrite, Quiet, console, one_line_errors
from covshift.exceptions import CovshiftError

if TYPE_CHECKING:
    import xarray as xr


def export(
    run: Annotated[Path, typer.Argument(help="A recording.", show_default=False)],
    out: Annotated[Path, typer.Argument(help="Where to write: a file, or for csv and tensorboard a directory.")],
    to: Annotated[Literal["netcdf", "csv", "tensorboard"], typer.Option(help="What to write.")] = "netcdf",
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Write a recording as netCDF, as CSV tables, or as TensorBoard events.

    Example: covshift export runs/relu.zarr relu.nc --to netcdf
    """
    from covshift.store import reader

    with one_line_errors(debug=debug), console(quiet=quiet).status("Exporting"):
        written = _exported(reader.open(run, chunks={}), out, to, overwrite=overwrite)
    typer.echo(str(written))


def _exported(recording: xr.DataTree, out: Path, to: str, *, overwrite: bool) -> Path:
    from covshift.store import export as exports

    if to == "netcdf":
        return exports.export_netcdf(recording, out, overwrite=overwrite)
    if to == "csv":
        return exports.export_csv(recording, out, overwrite=overwrite)
    return exports.export_tensorboard(recording, out, _event_writer(), overwrite=overwrite)


def _event_writer() -> Callable[[str], Any]:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise CovshiftError(
            f'--to tensorboard needs torch and the package tensorboard ({error}): pip install "covshift[tensorboard]"'
        ) from error
    make_writer: Callable[[str], Any] = SummaryWriter
    return make_writer
