"""What a report costs: of 1,000 records of 100 layers, and of the demo's four runs side by side, on one core."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import covshift
from common.analysis_cost import LAYERS, seconds_of, write_long
from covshift.demo import Plan, run_demo

TARGETS = {"long run": 20.0, "demo": 10.0}
TARGET_MEGABYTES = 5.0


def measure(*, quick: bool) -> dict[str, Any]:
    """Seconds and megabytes of both pages; a look takes 200 records and 40 steps."""
    records, steps = (200, 40) if quick else (1000, 400)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_long(folder / "long.zarr", records)
        plan = Plan(steps=steps)
        paths = [run.path for run in run_demo(folder, plan)]
        pages = {
            "long run": _page(folder / "long.html", [folder / "long.zarr"]),
            "demo": _page(folder / "demo.html", paths),
        }
    return {"records": records, "layers": LAYERS, "runs": len(paths), "steps": steps, "pages": pages}


def _page(page: Path, paths: list[Path]) -> dict[str, float]:
    wall, cpu = seconds_of(lambda: covshift.report([covshift.open(path) for path in paths], page))
    return {"wall_seconds": wall, "cpu_seconds": cpu, "megabytes": page.stat().st_size / 1e6}


def show(result: dict[str, Any]) -> None:
    """Print the section."""
    print(
        f"\nReport of {result['records']:,} records of {result['layers']} layers, and of the demo's {result['runs']} "
        f"runs of {result['steps']} steps, from disk, diagnosis included.\n"
    )
    for name, page in result["pages"].items():
        print(
            f"{name:10} {page['wall_seconds']:6.1f} s wall {page['cpu_seconds']:6.1f} s CPU (target for the whole: "
            f"{TARGETS[name]:.0f} s), {page['megabytes']:.2f} MB (target {TARGET_MEGABYTES:.0f} MB)"
        )
