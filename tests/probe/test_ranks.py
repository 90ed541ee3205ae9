"""Two ranks of DDP, each with a probe of its own: no communication, the same training, rows pooled when asked."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import covshift

WORKER = Path(__file__).with_name("worker.py")
ROOT = Path(__file__).parents[2]


def launch(folder, case):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(WORKER), str(folder), case],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(2)]


def check(path, outputs):
    """Probe rows of the first layer against outputs computed by the ranks' own weights before each step."""
    rows = covshift.open(path)["probe/layers"].to_dataset().sel(signal="activation", layer="module.0")
    assert rows.step.values.tolist() == [0, 2, 4]
    for step, values in outputs.items():
        row = rows.sel(step=step)
        assert int(row.example_count) == len(values)
        assert float(row["sum"]) == pytest.approx(float(values.double().sum()), rel=1e-6, abs=1e-6)


@pytest.mark.slow
def test_ranks_probe_alone_train_the_same_and_pool_their_rows(tmp_path):
    folders = {case: tmp_path / case for case in ("bare", "separate", "merge")}
    for folder in folders.values():
        folder.mkdir()
    ranks = {case: launch(folder, case) for case, folder in folders.items()}
    for case in ("separate", "merge"):
        for probed, bare in zip(ranks[case], ranks["bare"], strict=True):
            torch.testing.assert_close(probed["state"], bare["state"], rtol=0, atol=0)
    for number, rank in enumerate(ranks["separate"]):
        check(folders["separate"] / f"run.rank{number:05d}.zarr", rank["outputs"])
    together = {
        step: torch.cat([rank["outputs"][step] for rank in ranks["merge"]]) for step in ranks["merge"][0]["outputs"]
    }
    check(folders["merge"] / "run.zarr", together)
