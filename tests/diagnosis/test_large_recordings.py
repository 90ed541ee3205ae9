"""A recording too large to hold is judged like any other. Oracle: the same recording, read at once."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import xarray as xr
from torch import nn
from typer.testing import CliRunner

import covshift
from covshift.analysis import rows
from covshift.cli import app
from covshift.store import reader


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A net with dead units, a saturated layer and a frozen one, resumed once, with evaluation passes."""
    path = tmp_path_factory.mktemp("large") / "run.zarr"

    def train(steps, **options):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 3), nn.SELU())
        with torch.no_grad():
            model[0].bias[:4] = -100
            model[2].weight *= 30
        model[4].weight.requires_grad_(False)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        with covshift.record(model, path, every=1, histograms_every=2, units_every=2, **options) as recorder:
            for _ in range(steps):
                loss = model(torch.randn(32, 6)).square().mean()
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                recorder.log(loss=loss)
            with recorder.evaluation(), torch.no_grad():
                model(torch.randn(32, 6))

    train(50)
    train(60, resume=True, start_step=40)
    return path


@pytest.fixture
def lazily(monkeypatch):
    monkeypatch.setattr(reader, "EAGER_BYTES", 1000)
    monkeypatch.setattr(rows, "HELD_BYTES", 1000)


@pytest.mark.slow
def test_a_diagnosis_does_not_depend_on_whether_the_recording_fits_into_memory(path, lazily, monkeypatch):
    large = covshift.open(path)
    assert large["layers/count"].chunks is not None
    assert large["units/unit_mean"].chunks is not None
    found = covshift.diagnose(large)
    assert {finding.verdict for finding in found.findings} >= {"watch", "ok"}
    monkeypatch.undo()
    whole = covshift.open(path)
    assert whole["layers/count"].chunks is None
    assert found.to_dict() == covshift.diagnose(whole).to_dict()


def test_large_groups_are_not_read_as_a_whole_and_superseded_rows_not_at_all(path, lazily, monkeypatch):
    read = []
    load = xr.DataTree.load

    def counted(self, **options):
        read.append(self.path)
        return load(self, **options)

    monkeypatch.setattr(xr.DataTree, "load", counted)
    covshift.diagnose(covshift.open(path))
    assert read == []
    monkeypatch.setattr(rows, "HELD_BYTES", 2**27)
    covshift.diagnose(covshift.open(path))
    assert "/layers" in read
    assert not [group for group in read if "superseded" in group or "histograms" in group]


@pytest.mark.slow
def test_check_and_report_say_the_same_of_a_large_recording(path, lazily, monkeypatch, tmp_path):
    def said(name):
        runner = CliRunner()
        checked = runner.invoke(app, ["check", str(path), "--fail-on", "watch"])
        options = ["-o", str(tmp_path / f"{name}.html"), "--json", str(tmp_path / f"{name}.json"), "--quiet"]
        reported = runner.invoke(app, ["report", str(path), *options])
        assert reported.exit_code == 0, reported.output
        findings = json.loads((tmp_path / f"{name}.json").read_text())
        return checked.exit_code, checked.stdout, findings, (tmp_path / f"{name}.html").read_bytes()

    large = said("large")
    assert large[0] == 1
    monkeypatch.undo()
    assert said("whole") == large


PEAK = """
import sys
sys.path.insert(0, sys.argv[2])
from common import store_workload as workload
from common.process_memory import resident
import covshift
from covshift.store import Writer, reader
with Writer(sys.argv[1], attrs={}) as writer:
    writer.declare_layers(workload.layers())
    writer.declare_parameters(workload.parameters())
    for rows in workload.records(1500):
        writer.append(rows)
reader.EAGER_BYTES = 2**20
recording = covshift.open(sys.argv[1])
print(sum(node.to_dataset(inherit=False).nbytes for node in recording.subtree) / 2**20)
print(len(covshift.diagnose(recording).findings))
print(resident("VmHWM") / 2**20)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the most that was resident is read from /proc")
def test_the_memory_of_a_diagnosis_is_bounded_though_the_recording_is_larger(tmp_path):
    analyses = Path(__file__).parents[2] / "analyses"
    words = [sys.executable, "-W", "ignore", "-c", PEAK, tmp_path / "run.zarr", analyses]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    dense, findings, peak = map(float, done.stdout.split())
    assert findings > 500
    assert dense > 750
    assert peak < 700
