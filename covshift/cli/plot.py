"""``covshift plot``: one figure of a recording as a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from covshift.cli.common import Debug, Overwrite, Quiet, console, one_line_errors, open_runs
from covshift.exceptions import InvalidArgumentError, RecordingError

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure

    from covshift.plots import FigureKind

FORMATS = (".svg", ".pdf", ".png")
RASTER_DPI = 144
"""Resolution of what is stored as an image, in a PNG or inside a vector file."""


def plot(
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="RUN... FIGURE", help="A recording and a figure.", show_default=False)
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Where it goes: .svg, .pdf or .png.")] = None,
    layer: Annotated[str | None, typer.Option(help="Show one layer.")] = None,
    theme: Annotated[Literal["light", "dark"], typer.Option(help="Colours.")] = "light",
    width: Annotated[float | None, typer.Option(help="Width in inches; the figure's own by default.")] = None,
    list_: Annotated[bool, typer.Option("--list", help="Print the figures and what they need.")] = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Draw one figure of a recording; 'comparison' and 'differences' take several recordings.

    For 'ics' the recording is a netCDF file: xarray.DataTree.from_dict({"gradient_ics": result}).to_netcdf("ics.nc").

    Example: covshift plot runs/relu.zarr river -o river.svg --layer act12
    """
    with one_line_errors(debug=debug):
        if list_:
            _print_list()
            return
        runs, kind = _runs_and_figure(arguments or [])
        target = _target(out or Path(f"{kind.name}.svg"), overwrite=overwrite)
        if width is not None and not 1 <= width <= 100:
            raise InvalidArgumentError(f"--width {width:g}: expected 1 to 100 inches")
        with console(quiet=quiet).status("Drawing"):
            _write(kind.figure(_recordings(runs, kind), layer=layer, width=width, theme=theme), target)
    typer.echo(str(target))


def _print_list() -> None:
    from covshift.plots import FIGURES

    name_width = max(map(len, FIGURES))
    for name, kind in FIGURES.items():
        layer = "; --layer" if kind.takes_layer else ""
        typer.echo(f"{name:<{name_width}}  {kind.question}\n{'':<{name_width}}  needs {kind.needs}{layer}")


def _runs_and_figure(arguments: list[str]) -> tuple[list[Path], FigureKind]:
    from covshift.plots import FIGURES, figure_kind

    if len(arguments) < 2:
        raise InvalidArgumentError(
            f"expected RUN FIGURE, got {' '.join(arguments) or 'nothing'}; --list explains {', '.join(FIGURES)}"
        )
    *runs, name = arguments
    kind = figure_kind(name)
    if len(runs) > 1 and not kind.several_runs:
        raise InvalidArgumentError(
            f"{len(runs)} recordings: the figure '{name}' shows one; only 'comparison' and 'differences' take more"
        )
    return [Path(run) for run in runs], kind


def _target(out: Path, *, overwrite: bool) -> Path:
    if out.suffix.lower() not in FORMATS:
        raise InvalidArgumentError(f"--out {out}: expected a name that ends in {', '.join(FORMATS)}")
    if out.exists() and (out.is_dir() or not overwrite):
        raise InvalidArgumentError(f"--out {out}: exists; name another file, or pass --overwrite")
    if not out.absolute().parent.is_dir():
        raise InvalidArgumentError(f"--out {out}: the folder '{out.parent}' does not exist")
    return out


def _recordings(runs: list[Path], kind: FigureKind) -> xr.DataTree | dict[str, xr.DataTree]:
    if any(run.suffix == ".nc" for run in runs):
        return _probe_results(runs[0])
    opened = open_runs(runs)
    return opened if kind.several_runs else next(iter(opened.values()))


def _probe_results(path: Path) -> xr.DataTree:
    import xarray as xr

    if not path.is_file():
        raise RecordingError(f"{path}: no such file")
    tree = xr.open_datatree(path)
    # A single Dataset saved by its own to_netcdf() has its variables at the root.
    return xr.DataTree.from_dict({"gradient_ics": tree.to_dataset()}) if "ics" in tree.data_vars else tree


def _write(figure: Figure, target: Path) -> None:
    import matplotlib

    plain = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(target.suffix.lower(), {})
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "covshift"}):
        figure.savefig(target, dpi=RASTER_DPI, metadata=plain or None)
