"""A writer that is meant to be killed: rows that any reader can recompute from their step, and a log of what was taken.

Run as ``python crash_workload.py run.zarr acknowledged.log token background steps start pace``. After every append the
step goes to the log, so the log never names a step that was not acknowledged.
"""

import functools
import os
import sys
import time

import numpy as np

from covshift.schema import Layer, Parameter, Row, SparseCounts
from covshift.store import Writer

UNITS = (1, 0, 7, 300)
LATE_AT = 25
"""The last layer appears with this step."""


def layers(count):
    return [Layer(f"fc{k}", "Linear", k, unit_count=UNITS[k]) for k in range(count)]


@functools.cache
def token_rows(token, step):
    """Rows whose every cell follows from ``token`` (which attempt wrote it) and ``step``."""
    rng = np.random.default_rng([token, step])
    width = 4 if step >= LATE_AT else 3
    units = sum(UNITS[:width])
    rows = [
        Row(
            "layers",
            step,
            {"count": rng.integers(1, 2**63, (width, 5), "u8"), "sum": rng.normal(size=(width, 5))},
        ),
        Row("scalars", step, {"wall_time": np.float64(step), "loss": np.float64(token)}),
        Row("parameters", step, {"weight_norm": rng.normal(size=2)}),
    ]
    if step % 3 == 0:
        index = np.unique(rng.integers(0, width * 3 * 4 * 648, 50)).astype("u4")
        cells = SparseCounts((width, 3, 4, 648), index, rng.integers(1, 2**32, len(index), "u4"))
        rows.append(Row("histograms", step, {"value_histogram": cells}))
    if step % 4 == 0:
        rows.append(Row("units", step, {"unit_mean": rng.normal(size=(units, 2)).astype("f4")}))
    return rows


def expected(token, step, name):
    """The cells of one variable at one step, as wide as all four layers are."""
    path, variable = name.rsplit("/", 1)
    cells = next(row for row in token_rows(token, step) if row.group == path).variables[variable]
    dense = cells.dense() if isinstance(cells, SparseCounts) else np.asarray(cells)
    width = {"layers": 4, "histograms": 4, "units": sum(UNITS), "parameters": 2}.get(path)
    if width is None:
        return dense
    full = np.full((width, *dense.shape[1:]), np.nan if dense.dtype.kind == "f" else 0, dense.dtype)
    full[: len(dense)] = dense
    return full


def main(path, log, token, background, steps, start, pace):
    writer = Writer(path, attrs={}, resume=True, flush_records=16, background=background)
    if writer.resumed:
        writer.resume_at(start)
    taken = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(taken, b"open\n")
    writer.declare_parameters([Parameter("w", 3, 2), Parameter("b", 1, 1)])
    writer.declare_layers(layers(3))
    declared = 3
    for step in range(start, start + steps):
        if step >= LATE_AT and declared == 3:
            writer.declare_layers(layers(4)[3:])
            declared = 4
        writer.append(token_rows(token, step))
        os.write(taken, f"{step}\n".encode())
        time.sleep(pace)
    writer.close()


if __name__ == "__main__":
    where, log, token, background, steps, start, pace = sys.argv[1:]
    main(where, log, int(token), background == "background", int(steps), int(start), float(pace))
