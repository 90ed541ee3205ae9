"""What the store costs: in the training loop, in processor time, on disk, and to read again.

Run ``python analyses/storage_cost.py --json storage.json``; ``--quick`` writes a tenth of the records. Workload W is
100 layers, 10,000 units, at the default cadence (``common/store_workload.py``). Processor times can be compared across
a busy machine, wall times hardly; so the loop's share is given in both.

Sections: ``append`` (a loop with 10 ms of work between records), ``long`` (20,000 records: processor time a record,
size, files, cost of a flush early and late, opening, one layer, whole-store sum under dask), ``rivals`` (the same
records by xarray's ``to_zarr(append_dim)`` and netCDF4).
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from common import store_workload as workload
from common.process_memory import resident
from common.store_rivals import AppendingNetCDF, AppendingZarr, Blocks, stacked
from covshift import store
from covshift.schema import Row
from covshift.store import Writer
from covshift.store.rows import size_in_bytes

FLUSH = 64

TARGETS: dict[str, tuple[str, float]] = {
    "append.background.mean_cpu_ms": ("mean processor time in append, ms", 1.0),
    "append.background.mean_ms": ("mean wall time in append, ms", 1.0),
    "append.background.p99_ms": ("99th percentile of append, wall ms", 15.0),
    "long.raw_bytes_per_record": ("raw bytes a record", 150_000),
    "long.largest_buffer_bytes": ("bytes buffered", 32 * 2**20),
    "long.cpu_ms_per_record": ("processor time a record, ms", 3.0),
    "long.packed_share": ("disk bytes / raw bytes", 0.4),
    "long.flush_growth": ("flush late / early, processor time", 1.5),
    "long.files_above_bound": ("files beyond records/256 x arrays + 2 x arrays", 0.0),
    "long.open_seconds": ("opening, processor seconds", 1.0),
    "long.dask_peak_mb": ("whole-store sum under dask, peak MB", 500.0),
}
"""Most that each number may be."""


def writer(path: Path, **options: Any) -> Writer:
    """A writer with the axes of W declared."""
    made = Writer(path, attrs={"title": "workload W"}, **options)
    made.declare_layers(workload.layers())
    made.declare_parameters(workload.parameters())
    return made


def raw_bytes(rows: list[Row]) -> int:
    """Bytes of the arrays of one record, histograms sparse."""
    return sum(map(size_in_bytes, rows))


def append_in_a_loop(folder: Path, records: int, *, background: bool) -> dict[str, float]:
    """Time in ``append`` of a loop that works 10 ms between records: wall, and processor time of the loop's thread."""
    pool = list(workload.records(records))
    made = writer(folder / f"append-{background}", background=background)
    wall, cpu = [], []
    for rows in pool:
        end = time.perf_counter() + 0.01
        while time.perf_counter() < end:
            np.dot(_WORK, _WORK)
        began, spent = time.perf_counter(), time.thread_time()
        made.append(rows)
        wall.append(time.perf_counter() - began)
        cpu.append(time.thread_time() - spent)
    made.close()
    milliseconds = np.array(wall) * 1e3
    return {
        "records": records,
        "mean_cpu_ms": float(np.mean(cpu) * 1e3),
        "mean_ms": float(milliseconds.mean()),
        "p50_ms": float(np.median(milliseconds)),
        "p99_ms": float(np.quantile(milliseconds, 0.99)),
        "max_ms": float(milliseconds.max()),
    }


_WORK = np.random.default_rng(0).normal(size=(200, 200))


def measure_append(folder: Path, *, quick: bool) -> dict[str, Any]:
    """The loop, with the fold in a thread beside it and in the loop itself."""
    records = 400 if quick else 1500
    return {
        "background": append_in_a_loop(folder, records, background=True),
        "foreground": append_in_a_loop(folder, records, background=False),
    }


def batches(records: int, size: int = FLUSH) -> Iterator[list[list[Row]]]:
    """Records in lists of ``size``, drawn before they are timed."""
    source = workload.records(records)
    while batch := list(islice(source, size)):
        yield batch


def write_long(path: Path, records: int) -> dict[str, float]:
    """Write ``records`` records in the foreground; processor time by block of 64."""
    made = writer(path, background=False)
    blocks, raw, largest = [], 0, 0
    for batch in batches(records):
        raw += sum(map(raw_bytes, batch))
        began = time.process_time()
        for rows in batch:
            made.append(rows)
            largest = max(largest, made.buffered_bytes)
        blocks.append(time.process_time() - began)
    made.close()
    per_block = np.array(blocks[: records // FLUSH])
    late = len(per_block) // 10
    early = per_block[15 : 15 + late] if len(per_block) > 60 else per_block[1 : 1 + max(late, 1)]
    return {
        "records": records,
        "raw_bytes_per_record": raw / records,
        "largest_buffer_bytes": largest,
        "cpu_ms_per_record": float(per_block.sum() / (len(per_block) * FLUSH) * 1e3),
        "flush_ms": float(np.median(per_block) * 1e3),
        "flush_growth": float(np.median(per_block[-max(late, 1) :]) / np.median(early)),
        **size_on_disk(path, raw, records),
    }


def size_on_disk(path: Path, raw: int, records: int) -> dict[str, float]:
    """Bytes and files below ``path``, and files beyond the bound of records/256 an array and two more each."""
    files = [file for file in [path, *path.rglob("*")] if file.is_file()]
    arrays = len({file.parent for file in files if file.name == "zarr.json"})
    total = sum(file.stat().st_size for file in files)
    return {
        "bytes_per_record": total / records,
        "packed_share": total / raw,
        "files": len(files),
        "arrays": arrays,
        "files_above_bound": max(0.0, len(files) - (records / 256 + 2) * arrays),
    }


def read_back(path: Path) -> dict[str, float]:
    """Opening, one layer's history and the sum over everything, each in a process of its own."""
    measured: dict[str, float] = {}
    for name in ("open", "layer", "dask"):
        done = subprocess.run(
            [sys.executable, __file__, "--read", name, "--path", path], capture_output=True, text=True, check=True
        )
        measured |= json.loads(done.stdout)
    return measured


def read_one(name: str, path: Path) -> dict[str, float]:
    """One of the readings of :func:`read_back`."""
    store.open(path.parent / "warm.zarr")
    began, wall, read = time.process_time(), time.perf_counter(), _bytes_read()
    recording = store.open(path, chunks=None if name == "open" else {})
    if name == "open":
        return {"open_seconds": time.process_time() - began, "open_wall_seconds": time.perf_counter() - wall}
    if name == "layer":
        began, wall, read = time.process_time(), time.perf_counter(), _bytes_read()
        for group in ("layers", "histograms"):
            recording[group].to_dataset().isel(layer=7).load(scheduler="synchronous")
        whole = sum(file.stat().st_size for group in ("layers", "histograms") for file in (path / group).rglob("*"))
        return {
            "layer_seconds": time.process_time() - began,
            "layer_wall_seconds": time.perf_counter() - wall,
            "layer_bytes_share": (_bytes_read() - read) / whole,
        }
    dense = 0
    for group in ("layers", "histograms", "units", "parameters"):
        data = recording[group].to_dataset()
        dense += data.nbytes
        data.sum().load(scheduler="single-threaded")
    return {
        "dense_bytes": dense,
        "dask_seconds": time.process_time() - began,
        "dask_wall_seconds": time.perf_counter() - wall,
        "dask_peak_mb": resident("VmHWM") / 2**20,
    }


def _bytes_read() -> int:
    """Bytes this process has read so far; 0 where the system does not say."""
    counters = Path("/proc/self/io")
    return int(counters.read_text().split()[1]) if counters.exists() else 0


def measure_long(folder: Path, *, quick: bool) -> dict[str, Any]:
    """A long recording, written and read."""
    writer(folder / "warm").close()
    path = folder / "long.zarr"
    written = write_long(path, 2_048 if quick else 20_000)
    return {**written, **read_back(path)}


class Rival(Protocol):
    """Takes dense blocks."""

    def write(self, blocks: Blocks) -> None:
        """Append one block to every group."""

    def close(self) -> None:
        """End the file."""


def measure_rivals(folder: Path, *, quick: bool) -> dict[str, Any]:
    """The same records by three writers; a rival has no journal, so stacking the arrays is all it does in the loop."""
    records = 192 if quick else 640
    makers: dict[str, tuple[Path, Callable[[Path], Rival]]] = {
        "xarray to_zarr(append_dim)": (folder / "rival.zarr", AppendingZarr),
        "netCDF4": (folder / "rival.nc", AppendingNetCDF),
    }
    results = {"covshift": write_long(folder / "rival-covshift.zarr", records)}
    for name, (path, make) in makers.items():
        rival, raw, spent = make(path), 0, 0.0
        for batch in batches(records):
            raw += sum(map(raw_bytes, batch))
            began = time.process_time()
            rival.write(stacked(batch))
            spent += time.process_time() - began
        began = time.process_time()
        rival.close()
        spent += time.process_time() - began
        results[name] = {"cpu_ms_per_record": spent / records * 1e3, **size_on_disk(path, raw, records)}
    return results


SECTIONS: dict[str, Callable[..., dict[str, Any]]] = {
    "append": measure_append,
    "long": measure_long,
    "rivals": measure_rivals,
}


def show(results: dict[str, Any]) -> None:
    """Print every number, and beside those that have a target, whether it is met."""
    for section in SECTIONS:
        for name, value in _flat(results.get(section, {}), section):
            meaning, most = TARGETS.get(name, ("", None))
            verdict = "" if most is None else f"  <= {most:g}: {'met' if value <= most else 'MISSED'} ({meaning})"
            print(f"{name:52}{value:>16,.3f}{verdict}")


def _flat(values: dict[str, Any], prefix: str) -> Iterator[tuple[str, float]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}.{name}")
        else:
            yield f"{prefix}.{name}", value


def main(arguments: list[str] | None = None) -> None:
    """Measure the chosen sections and print them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--section", choices=[*SECTIONS, "all"], default="all", help="what to measure")
    parser.add_argument("--quick", action="store_true", help="few records: for a look, not for a claim")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the numbers here")
    parser.add_argument("--read", choices=["open", "layer", "dask"], help=argparse.SUPPRESS)
    parser.add_argument("--path", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.read:
        print(json.dumps(read_one(options.read, options.path)))
        return
    results: dict[str, Any] = {"python": platform.python_version(), "machine": platform.machine()}
    for name in SECTIONS if options.section == "all" else [options.section]:
        with tempfile.TemporaryDirectory() as folder:
            results[name] = SECTIONS[name](Path(folder), quick=options.quick)
    show(results)
    if options.json:
        options.json.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
