"""A recording for other tools: netCDF, CSV tables, TensorBoard events.

Nothing is reduced except where the other tool has no place for a number; what is left out is said at each function.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from covshift import schema
from covshift.exceptions import RecordingError
from covshift.store import layout

_BLOCK = 64
"""Steps that are held in memory at once."""


def export_netcdf(recording: xr.DataTree, out: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
    """Write a netCDF-4 file with the groups of the recording.

    Everything is kept; attributes that netCDF cannot hold become JSON text.

    Raises
    ------
    RecordingError
        If something stands at ``out`` and ``overwrite`` is False, the package ``netCDF4`` is missing, or the file
        cannot be written.
    """

    def write(partial: Path) -> None:
        plain = recording.map_over_datasets(lambda data: data.assign_attrs(_plain(data.attrs)))
        encoding = {
            path: {str(name): {"zlib": True, "complevel": 1} for name, one in node.data_vars.items() if one.ndim > 1}
            for path, node in plain.to_dict().items()
        }
        try:
            plain.to_netcdf(partial, engine="netcdf4", encoding={path: one for path, one in encoding.items() if one})
        except (ImportError, ModuleNotFoundError, ValueError) as error:
            if "netCDF4" in str(error) or isinstance(error, ImportError):
                raise RecordingError(
                    f'netCDF export needs the package netCDF4 ({error}): pip install "covshift[netcdf]"'
                ) from error
            raise

    return _written(Path(out), write, overwrite=overwrite, holds=None)


def _plain(attrs: Mapping[Any, Any]) -> dict[str, Any]:
    return {
        str(name): value if isinstance(value, str | int | float) and not isinstance(value, bool) else json.dumps(value)
        for name, value in attrs.items()
        if name not in ("flag_values",)
    }


def export_csv(recording: xr.DataTree, out: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
    """Write a directory of CSV tables, one per group, one line per labelled cell.

    ``layers.csv`` has a line per step, layer and signal that is not absent; ``histograms.csv`` one per occupied bin,
    with its edges; ``units.csv`` one per step, layer, unit and signal that was counted.

    Raises
    ------
    RecordingError
        If something stands at ``out`` and ``overwrite`` is False, or the tables cannot be written.
    """

    def write(partial: Path) -> None:
        partial.mkdir()
        for path in layout.PATHS:
            if f"/{path}" in recording.groups:
                table = partial / f"{path.replace('/', '-')}.csv"
                _write_table(table, path, recording[path].to_dataset(), _names(recording))

    return _written(Path(out), write, overwrite=overwrite, holds="*.csv")


def _names(recording: xr.DataTree) -> NDArray[Any]:
    return np.asarray(recording["layers"].layer.values)


def _write_table(file: Path, path: str, dataset: xr.Dataset, layers: NDArray[Any]) -> None:
    name = schema.group_of(path).name
    for first in range(0, max(1, dataset.sizes["step"]), _BLOCK if name != "histograms" else 8):
        block = dataset.isel(step=slice(first, first + (_BLOCK if name != "histograms" else 8))).load()
        tables = _histogram_tables(block) if name == "histograms" else [_table(block, name, layers)]
        for table in tables:
            table.to_csv(file, mode="a", header=not file.exists(), index=False)


def _table(block: xr.Dataset, name: str, layers: NDArray[Any]) -> pd.DataFrame:
    kept = [
        coordinate for coordinate in ("source", "mode", "layer_index", "unit_in_layer") if coordinate in block.coords
    ]
    dims = list(dict.fromkeys(str(dim) for one in block.data_vars.values() for dim in one.dims)) or ["step"]
    table = block.reset_coords(kept).to_dataframe(dim_order=dims).reset_index()
    if name == "layers":
        table = table[table["status"] != schema.Status.ABSENT]
    if name == "units":
        table = table[table["unit_count"] > 0]
        table.insert(1, "layer", layers[table["layer_index"].to_numpy()])
        table = table.drop(columns=["unit", "layer_index", "linked_unit"])
    labels = {str(coordinate) for coordinate in block.coords} - set(dims) - set(kept)
    return table.drop(columns=[label for label in labels if label in table])


def _histogram_tables(block: xr.Dataset) -> Iterator[pd.DataFrame]:
    columns = ["step", "layer", "signal", "group", "lower", "upper", "count"]
    for kind in ("value", "gradient"):
        counts = block[f"{kind}_histogram"]
        if "group" not in counts.dims:
            counts = counts.expand_dims(group=[-1], axis=3)
        where = np.nonzero(counts.values)
        labels = [counts[dim].values[index] for dim, index in zip(counts.dims[:4], where, strict=False)]
        edges = [block[f"{kind}_bin_{side}"].values[where[4]] for side in ("lower", "upper")]
        yield pd.DataFrame(dict(zip(columns, [*labels, *edges, counts.values[where]], strict=True)))


class EventWriter(Protocol):
    """What :func:`export_tensorboard` asks of a ``torch.utils.tensorboard.SummaryWriter``."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int, walltime: float | None = None) -> Any:
        """Keep a number."""

    def add_histogram_raw(
        self,
        tag: str,
        min: float,  # noqa: A002 - torch's name
        max: float,  # noqa: A002 - torch's name
        num: int,
        sum: float,  # noqa: A002 - torch's name
        sum_squares: float,
        bucket_limits: list[float],
        bucket_counts: list[int],
        global_step: int,
        walltime: float | None = None,
    ) -> Any:
        """Keep a histogram."""


def export_tensorboard(
    recording: xr.DataTree, out: str | os.PathLike[str], make_writer: Callable[[str], Any], *, overwrite: bool = False
) -> Path:
    """Write a directory of TensorBoard events: logged scalars, and a histogram per layer and signal.

    Histograms are those of the recording, their example groups added up, without NaN and infinities, for which
    TensorBoard has no place; evaluation passes have tags that begin with ``evaluation/``. Units and parameters are left
    out.

    Parameters
    ----------
    recording : DataTree
        To be exported.
    out : path-like
        A directory for the events, to be given to ``tensorboard --logdir``.
    make_writer : callable
        From a directory to an :class:`EventWriter` that can be closed: ``torch.utils.tensorboard.SummaryWriter``.
    overwrite : bool, default False
        Replace the earlier export that stands at ``out``; a directory of anything else is never replaced.

    Raises
    ------
    RecordingError
        If something stands at ``out`` and ``overwrite`` is False, or the events cannot be written.
    """

    def write(partial: Path) -> None:
        writer = make_writer(str(partial))
        times = _wall_times(recording)
        _add_scalars(recording, writer, times)
        for stream in schema.STREAMS:
            path = f"{stream}/histograms".lstrip("/")
            if f"/{path}" in recording.groups:
                _add_histograms(recording, path, writer, times)
        writer.close()

    return _written(Path(out), write, overwrite=overwrite, holds="events.out.tfevents.*")


def _wall_times(recording: xr.DataTree) -> dict[int, float]:
    if "scalars" not in recording.children:
        return {}
    times = recording["scalars/wall_time"].to_series().dropna()
    return {int(step): time.timestamp() for step, time in times.items()}


def _add_scalars(recording: xr.DataTree, writer: EventWriter, times: Mapping[int, float]) -> None:
    scalars = recording["scalars"].to_dataset().data_vars if "scalars" in recording.children else {}
    for name, values in scalars.items():
        if name == "wall_time":
            continue
        for step, value in values.to_series().dropna().items():
            writer.add_scalar(str(name), float(value), int(step), times.get(int(step)))


def _add_histograms(recording: xr.DataTree, path: str, writer: EventWriter, times: Mapping[int, float]) -> None:
    stream = path.removesuffix("histograms")
    layers = recording[f"{stream}layers"].to_dataset()
    histograms = recording[path].to_dataset()
    for step in histograms.step.values.tolist():
        moments = layers.sel(step=step).load() if step in layers.indexes["step"] else None
        for (layer, signal), bins, lower, upper in _occupied(histograms.sel(step=step).load()):
            known = None if moments is None else moments.sel(layer=layer, signal=signal)
            summary = _summary(bins, lower, upper, known)
            if summary:
                tag = f"{stream}{layer}/{signal}"
                writer.add_histogram_raw(tag, **summary, global_step=step, walltime=times.get(step))


def _occupied(row: xr.Dataset) -> Iterator[tuple[tuple[str, str], NDArray[Any], NDArray[Any], NDArray[Any]]]:
    """Layer and signal, bin counts and edges of every histogram of one step that holds anything."""
    for kind, signals in (("value", schema.VALUE_SIGNALS), ("gradient", schema.GRADIENT_SIGNALS)):
        counts = row[f"{kind}_histogram"]
        bins = (counts.sum("group") if "group" in counts.dims else counts).values
        lower, upper = row[f"{kind}_bin_lower"].values, row[f"{kind}_bin_upper"].values
        for layer, position in np.argwhere(bins.any(axis=-1)):
            yield (str(row.layer.values[layer]), signals[position]), bins[layer, position], lower, upper


def _summary(bins: NDArray[Any], lower: NDArray[Any], upper: NDArray[Any], known: xr.Dataset | None) -> dict[str, Any]:
    """Arguments of ``add_histogram_raw``; empty where no finite value was counted."""
    finite = np.flatnonzero((bins > 0) & np.isfinite(lower) & np.isfinite(upper))
    if not finite.size:
        return {}
    first, last = int(finite[0]), int(finite[-1])
    counts = bins[first : last + 1].astype(np.int64)
    limits = upper[first : last + 1]
    centres = (lower[first : last + 1] + limits) / 2
    number = int(counts.sum())
    total, squares = float((counts * centres).sum()), float((counts * centres**2).sum())
    smallest, largest = float(lower[first]), float(upper[last])
    if known is not None and np.isfinite(known["sum"]) and np.isfinite(known["min"]):
        total, smallest, largest = float(known["sum"]), float(known["min"]), float(known["max"])
        squares = float(known["m2"]) + total**2 / number
    return {
        "min": smallest,
        "max": largest,
        "num": number,
        "sum": total,
        "sum_squares": squares,
        "bucket_limits": [float(lower[first]), *limits.tolist()],
        "bucket_counts": [0, *counts.tolist()],
    }


def _written(out: Path, write: Callable[[Path], None], *, overwrite: bool, holds: str | None) -> Path:
    """Have ``write`` make a file or directory beside ``out``, and give it that name when it is complete.

    ``holds`` is the glob that the names in such a directory match, None for a file. A directory with anything else in
    it, such as recordings, is never replaced.
    """
    if out.exists() and not overwrite:
        raise RecordingError(
            f"'{out}' exists: choose another path, or replace it with overwrite=True (command line: --overwrite)"
        )
    if out.is_dir() and not (holds and all(one.match(holds) and one.is_file() for one in out.iterdir())):
        raise RecordingError(
            f"'{out}' is a directory and no earlier export of this kind, and is not deleted even with overwrite=True: "
            "choose another path"
        )
    partial = out.with_name(f"{out.name}.{uuid.uuid4().hex}.partial")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write(partial)
        _remove(out)
        partial.replace(out)
    except OSError as error:
        if isinstance(error, RecordingError):
            raise
        raise RecordingError(f"'{out}' cannot be written ({error}): choose a path you may write to") from error
    finally:
        _remove(partial)
    return out


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
