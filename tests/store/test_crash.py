"""kill -9 at random instants, many lives of one recording, readers that loop while it is written."""

import importlib.util
import os
import random
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from covshift import store

WORKLOAD = Path(__file__).with_name("crash_workload.py")
_SPEC = importlib.util.spec_from_file_location("crash_workload", WORKLOAD)
workload = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(workload)

VARIABLES = (
    "layers/count",
    "layers/sum",
    "scalars/loss",
    "parameters/weight_norm",
    "histograms/value_histogram",
    "units/unit_mean",
)
EVERY = {"histograms": 3, "units": 4}
LAG = 15
"""Rows that plain xarray may lack: one fewer than the writer folds at once."""

pytestmark = pytest.mark.skipif(os.name != "posix", reason="kill -9")


def say(text):
    """Into what ``pytest -rP`` or ``-s`` shows: the counts belong in reports."""
    sys.stdout.write(f"{text}\n")


def begin(path, log, *, token, background, steps=400, start=0, pace=0.001):
    words = [path, log, token, background, steps, start, pace]
    return subprocess.Popen([sys.executable, WORKLOAD, *map(str, words)], stderr=subprocess.PIPE, text=True)


def wait_for(log, rows, process):
    """Until the log says that ``rows`` records were acknowledged."""
    for _ in range(20_000):
        if acknowledged(log) >= rows or process.poll() is not None:
            return
        time.sleep(0.005)
    raise AssertionError("the writer does not come forward")


def lines(log):
    return log.read_text().split("\n")[:-1] if log.exists() else []


def acknowledged(log):
    return sum(line != "open" for line in lines(log))


def kill(process):
    process.send_signal(signal.SIGKILL)
    process.wait()
    errors = process.stderr.read()
    process.stderr.close()
    assert not errors, errors


def plain(path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return xr.open_datatree(path)


def torn_rows(tree, tokens):
    """Cells that are not what the attempt that ``tokens`` names for a step has written, counted by row."""
    torn = 0
    for name in VARIABLES:
        path = name.split("/")[0]
        if f"/{path}" not in tree.groups:
            continue
        found = tree[name].load()
        for position, step in enumerate(found.step.values.tolist()):
            wanted = workload.expected(tokens[step], step, name)
            cells = found.values[position]
            # A group of which no row was folded since has not heard of the last layer.
            wanted = wanted[: len(cells)] if wanted.ndim else wanted
            torn += not np.array_equal(cells, wanted, equal_nan=True)
    return torn


def missing(tree, steps):
    """Acknowledged records of any group that the tree lacks."""
    lost = 0
    for path in ("layers", "scalars", "parameters", "histograms", "units"):
        wanted = [step for step in steps if step % EVERY.get(path, 1) == 0]
        found = tree[path].step.values.tolist() if f"/{path}" in tree.groups else []
        lost += len(set(wanted) - set(found))
        assert found == sorted(set(found)), path
    return lost


@pytest.mark.slow
@pytest.mark.parametrize("background", ["background", "foreground"])
def test_no_kill_loses_an_acknowledged_record_or_tears_a_row(tmp_path, background):
    draw = random.Random(background)
    lost = torn = lagging = taken = 0
    for k in range(20):
        path, log = tmp_path / f"{k}.zarr", tmp_path / f"{k}.log"
        process = begin(path, log, token=k, background=background)
        wait_for(log, draw.randint(1, 150), process)
        time.sleep(draw.uniform(0, 0.02))
        kill(process)
        steps = [int(line) for line in lines(log) if line != "open"]
        tokens = dict.fromkeys(range(1000), k)
        tree, committed = store.open(path), plain(path)
        taken += len(steps)
        lost += missing(tree, steps)
        torn += torn_rows(tree, tokens) + torn_rows(committed, tokens)
        lagging = max(lagging, len(steps) - committed["layers"].sizes["step"])
    say(f"{background}: 20 kills, {taken} acknowledged, {lost} lost, {torn} torn, xarray lags by {lagging}")
    assert (lost, torn) == (0, 0)
    assert background == "background" or lagging <= LAG
    assert taken >= 20


@pytest.mark.slow
def test_forty_lives_with_resumes_and_kills_anywhere_lose_nothing(tmp_path):
    draw = random.Random(0)
    path, log = tmp_path / "run.zarr", tmp_path / "log"
    tokens, steps, superseded = {}, [], 0
    lost = torn = taken = early = 0
    for life in range(1, 41):
        back = draw.choice([0, 0, draw.randint(1, 40)])
        start = max(0, (steps[-1] + 1 if steps else 0) - back)
        log.unlink(missing_ok=True)
        process = begin(path, log, token=life, background=draw.choice(["background", "foreground"]), start=start)
        if life % 5 == 0:
            # In the middle of recovery or of the move of superseded rows.
            time.sleep(draw.uniform(0.2, 2.0))
        else:
            wait_for(log, draw.randint(0, 60), process)
            time.sleep(draw.uniform(0, 0.02))
        kill(process)
        opened, own = "open" in lines(log), [int(line) for line in lines(log) if line != "open"]
        early += not opened
        taken += len(own)
        tree = store.open(path) if path.exists() else None
        if tree is None:
            continue
        present = tree["layers"].step.values.tolist()
        if opened:
            steps = [step for step in steps if step < start] + own
        elif len(present) < len(steps):
            # Killed after the move was committed, before the writer could say so.
            steps = [step for step in steps if step < start]
        tokens |= dict.fromkeys(own, life)
        # Killed between the journal's write and the log's, one record more is there.
        for step in set(present) - set(steps):
            assert step == (steps[-1] if steps else start - 1) + 1
            tokens[step] = life
            steps.append(step)
        lost += missing(tree, steps)
        torn += torn_rows(tree, tokens) + torn_rows(plain(path), tokens)
        superseded = max(superseded, len(tree["superseded"].children) if "superseded" in tree.children else 0)
    say(f"40 lives ({early} killed while opening, {superseded} resumes), {taken} taken, {lost} lost, {torn} torn")
    assert (lost, torn) == (0, 0)
    assert superseded > 5


@pytest.mark.slow
def test_readers_that_loop_while_a_writer_folds_meet_no_torn_row_and_never_see_fewer_rows(tmp_path):
    path, log = tmp_path / "run.zarr", tmp_path / "log"
    process = begin(path, log, token=1, background="background", steps=100_000, pace=0.01)
    wait_for(log, 1, process)
    tokens = dict.fromkeys(range(100_001), 1)
    reads = torn = lost = longest = shortest = 0
    end = time.monotonic() + 60
    while time.monotonic() < end:
        steps = acknowledged(log)
        tree, committed = store.open(path), plain(path)
        lost += max(0, steps - tree["layers"].sizes["step"])
        for one, least in ((tree, longest), (committed, shortest)):
            length = one["layers"].sizes["step"]
            assert length >= least
            torn += torn_rows(
                one.map_over_datasets(lambda data: data.isel(step=slice(-40, None)) if data else data), tokens
            )
        longest, shortest = tree["layers"].sizes["step"], committed["layers"].sizes["step"]
        reads += 2
    kill(process)
    say(f"{reads} reads of up to {longest} rows while writing, {torn} torn, {lost} lost")
    assert (torn, lost) == (0, 0)
    assert shortest > 100
