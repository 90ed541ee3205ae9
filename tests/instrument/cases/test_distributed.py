"""Two processes over gloo: each rank's bits are its own, and so are its rows."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

RANKS = Path(__file__).with_name("ranks.py")


def reports(wrapper, tmp_path, *, world_size=2):
    """What every rank found; see ranks.py."""
    processes = [
        subprocess.Popen(
            [sys.executable, str(RANKS), wrapper, str(rank), str(world_size), str(tmp_path / "meeting")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world_size)
    ]
    try:
        ends = [process.communicate(timeout=240) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (_, errors) in zip(processes, ends, strict=True):
        assert process.returncode == 0, errors
    return [json.loads(output) for output, _ in ends]


def demand_own_bits_and_rows(found):
    for rank, report in enumerate(found):
        examples = 8 + 4 * rank
        assert report["same losses"]
        assert report["same parameters"]
        assert report["layers"] == ["(input)", "a", "act", "norm", "b"]
        assert report["zeros"] == report["zeros kept"]
        assert report["examples"] == [examples] * 3
        assert report["gradients"] == [examples * 8] * 3


@pytest.mark.slow
def test_case_32_distributed_data_parallel_keeps_its_bits_and_every_rank_its_rows(tmp_path):
    found = reports("ddp", tmp_path)
    demand_own_bits_and_rows(found)
    for report in found:
        assert report["warnings"] == []
        assert report["weight norm"][0] == pytest.approx(report["weight norms"][0], rel=1e-12)


@pytest.mark.slow
def test_case_33_fully_sharded_training_keeps_its_bits_and_every_rank_its_rows(tmp_path):
    found = reports("fsdp2", tmp_path)
    demand_own_bits_and_rows(found)
    for report in found:
        assert report["warnings"] == []
        # Each rank measures the share of a parameter that it holds.
        assert report["weight norm"][0] == pytest.approx(report["weight norms"][1], rel=1e-12)
