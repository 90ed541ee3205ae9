"""What measuring costs, against what it is compared with, in one run on one core.

Run ``python analyses/overhead.py --section kernels --json overhead.json``; ``--quick`` takes a tenth of the time.

The section ``kernels`` times one summary with everything in it (float64 moments, counts, histogram in 4 example groups,
per-unit numbers) by the fused kernels, by torch operations, and against the floor of a single read, ``x.sum()``.
The section ``steps`` times training steps of three networks: bare, recorded, attached and paused, and under what people
do otherwise (naive hooks, TensorBoard histograms, ``wandb.watch``, clones of everything).
The section ``report`` times the page of a long recording of 100 layers, and that of the demo's four runs.
The section ``memory`` compares peak resident memory of bare and recorded training, in processes of their own.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from common import analysis_cost, memory_overhead, report_cost, step_overhead
from common.paired import Blocks, interleave, ratio
from common.workloads import MEMORY_WORKLOADS, STEP_WORKLOADS
from covshift.grid import VALUES
from covshift.summary import prepare, summarize
from covshift.summary.device import summarize_by_torch

LAYOUTS: dict[str, tuple[tuple[int, ...], int]] = {
    "NCHW": ((16, 64, 32, 32), 1),
    "channels last": ((16, 64, 32, 32), 1),
    "(N, D)": ((1024, 1024), 1),
    "tokens (B, T, D)": ((16, 512, 128), 2),
    "small NCHW": ((64, 4, 8, 8), 1),
}
"""Shape and unit axis; all but the last have 2**20 elements."""

DTYPES = {torch.float32: 1.5, torch.bfloat16: 2.5, torch.float16: 2.5, torch.float64: 2.5}
"""Most ns an element may take, by the design targets; 8 times less than torch operations is the other one."""

FIRST_CALL = """
import time, torch
from covshift.summary import summarize
x = torch.ones(4, 3, 8, 8)
start = time.perf_counter()
summarize(x, unit_axis=1)
print(time.perf_counter() - start)
"""


def activation(layout: str, dtype: torch.dtype) -> torch.Tensor:
    """Normal values after a ReLU: half of them zero, which is what histograms find hardest."""
    shape, _ = LAYOUTS[layout]
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0)).relu().to(dtype)
    return values.contiguous(memory_format=torch.channels_last) if layout == "channels last" else values


def block_of(call: Callable[[], object], calls: int) -> Callable[[], None]:
    """A block of many calls, long against the clock's own cost."""

    def block() -> None:
        for _ in range(calls):
            call()

    return block


def measure_kernel(layout: str, dtype: torch.dtype, *, rounds: int) -> dict[str, Any]:
    """One row of the table: microseconds a call of the three ways, and the paired ratio of the first two."""
    tensor, unit_axis = activation(layout, dtype), LAYOUTS[layout][1]
    arguments: dict[str, Any] = {"unit_axis": unit_axis, "example_axis": 0, "grid": VALUES, "groups": 4, "units": True}
    calls = {"fused": 2**24 // tensor.numel(), "torch": max(2**18 // tensor.numel(), 1), "sum": 2**25 // tensor.numel()}
    blocks = interleave(
        {
            "fused": block_of(lambda: summarize(tensor, **arguments), calls["fused"]),
            "torch": block_of(lambda: summarize_by_torch(tensor, **arguments), calls["torch"]),
            "sum": block_of(lambda: tensor.sum(), calls["sum"]),
        },
        rounds=rounds,
    )
    each = {name: _microseconds(block, calls[name]) for name, block in blocks.items()}
    faster = ratio(each["torch"], each["fused"])
    return {
        "layout": layout,
        "dtype": str(dtype).removeprefix("torch."),
        "elements": tensor.numel(),
        **{f"{name}_us": np.quantile(taken, [0.25, 0.5, 0.75]).tolist() for name, taken in each.items()},
        "times_faster": [faster.low, faster.central, faster.high],
        "target_ns": DTYPES[dtype] if tensor.numel() == 2**20 else None,
    }


def _microseconds(block: Blocks, calls: int) -> NDArray[np.float64]:
    return block.cpu * 1e6 / calls


def first_calls() -> dict[str, float]:
    """Seconds of the first summary in a new process: with nothing compiled, and with the kernels in numba's cache."""
    root = Path(__file__).parents[1]
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "NUMBA_CACHE_DIR": cache, "PYTHONPATH": str(root)}
        done = [
            subprocess.run(
                [sys.executable, "-c", FIRST_CALL], env=environment, capture_output=True, check=True, text=True
            )
            for _ in range(2)
        ]
    return {"cold_seconds": float(done[0].stdout), "warm_seconds": float(done[1].stdout)}


def kernels(*, quick: bool) -> dict[str, Any]:
    """The kernel section: a row for each layout and dtype, and what the first call costs."""
    for dtype in DTYPES:
        prepare(dtype)
    rows = [measure_kernel(layout, dtype, rounds=5 if quick else 50) for layout in LAYOUTS for dtype in DTYPES]
    return {"rows": rows, "first_call": None if quick else first_calls()}


def show_kernels(result: dict[str, Any]) -> None:
    """Print the kernel section."""
    print("One summary with everything in it: processor time on one core, median [quartiles] of interleaved rounds")
    show_rows([row for row in result["rows"] if row["target_ns"]], "ns an element", per_element=True)
    show_rows([row for row in result["rows"] if not row["target_ns"]], "us a call", per_element=False)
    if result["first_call"] is not None:
        cold, warm = result["first_call"]["cold_seconds"], result["first_call"]["warm_seconds"]
        print(f"\nFirst call in a new process, imports included: {cold:.1f} s compiling, {warm:.2f} s from the cache")


def show_rows(rows: list[dict[str, Any]], unit: str, *, per_element: bool) -> None:
    """Print rows of the kernel table in one unit."""
    print(f"\n{unit:16} {'dtype':9}{'fused':>20}{'target':>8}{'torch operations':>20}{'x.sum()':>9}  times faster")
    for row in rows:
        scale = 1e3 / row["elements"] if per_element else 1.0
        fused, by_torch, total = ([part * scale for part in row[f"{way}_us"]] for way in ("fused", "torch", "sum"))
        target = f"{row['target_ns']:.1f}" if row["target_ns"] else ""
        low, median, high = row["times_faster"]
        print(
            f"{row['layout']:16} {row['dtype']:9}{_spread(fused):>20}{target:>8}{_spread(by_torch):>20}"
            f"{total[1]:9.3f}  {median:.0f} [{low:.0f}, {high:.0f}]"
        )


def _spread(quartiles: list[float]) -> str:
    low, median, high = quartiles
    digits = 2 if median < 10 else 1 if median < 100 else 0
    return f"{median:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


SECTIONS: dict[str, tuple[Callable[..., dict[str, Any]], Callable[[dict[str, Any]], None]]] = {
    "kernels": (kernels, show_kernels),
    "steps": (step_overhead.measure, step_overhead.show),
    "memory": (memory_overhead.measure, memory_overhead.show),
    "analysis": (analysis_cost.measure, analysis_cost.show),
    "report": (report_cost.measure, report_cost.show),
}
"""What each section measures with, and prints with."""

MODELS: dict[str, Collection[str]] = {"steps": STEP_WORKLOADS, "memory": MEMORY_WORKLOADS}
"""Networks of the sections that have some; these measure one network a call."""


def parts(section: str, model: str | None) -> list[dict[str, str]]:
    """Arguments of the calls a section is measured in: one for each of its networks, or only for ``model``."""
    if section not in MODELS:
        return [{}]
    return [{"model": name} for name in MODELS[section] if model in (None, name)]


def main(arguments: list[str] | None = None) -> None:
    """Measure the chosen sections and print them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--section", choices=[*SECTIONS, "all"], default="all", help="what to measure")
    parser.add_argument(
        "--model", choices=sorted({*STEP_WORKLOADS, *MEMORY_WORKLOADS}), help="steps, memory: this only"
    )
    parser.add_argument("--quick", action="store_true", help="few rounds: for a look, not for a claim")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the numbers here")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    results: dict[str, Any] = {"torch": torch.__version__, "python": platform.python_version()}
    for section in SECTIONS if options.section == "all" else [options.section]:
        measure, show = SECTIONS[section]
        for part in parts(section, options.model):
            measured = measure(quick=options.quick, **part)
            show(measured)
            sys.stdout.flush()
            if part:
                results.setdefault(section, {})[part["model"]] = measured
            else:
                results[section] = measured
            if options.json:
                # After each part: all of them take hours.
                options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
