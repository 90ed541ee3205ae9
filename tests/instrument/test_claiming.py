"""A recording is claimed when its recorder is entered; asking for one claims nothing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import covshift
from covshift.exceptions import InvalidArgumentError, RecordingError, RecordingExists, StoreLocked


def train(model, recorder, steps=1):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with recorder:
        for _ in range(steps):
            optimizer.zero_grad()
            model(torch.randn(4, 3)).sum().backward()
            optimizer.step()


def test_a_recorder_that_is_never_entered_claims_and_creates_nothing(tmp_path):
    model = nn.Linear(3, 2)
    idle = [covshift.record(model, tmp_path / "run", every=1) for _ in range(3)]
    assert list(tmp_path.iterdir()) == []
    recorder = covshift.record(model, tmp_path / "run", every=1)
    train(model, recorder, 2)
    assert recorder.path == tmp_path / "run.zarr"
    assert covshift.open(recorder.path)["layers"].step.values.tolist() == [0, 1]
    assert [one.step_count for one in idle] == [0, 0, 0]


def test_a_recorder_that_is_never_entered_replaces_nothing(tmp_path):
    model = nn.Linear(3, 2)
    train(model, covshift.record(model, tmp_path / "run", every=1), 3)
    idle = covshift.record(model, tmp_path / "run", overwrite=True)
    assert covshift.open(tmp_path / "run")["layers"].step.values.tolist() == [0, 1, 2]
    train(model, idle)
    assert covshift.open(tmp_path / "run")["layers"].step.values.tolist() == [0]


def test_what_stands_at_the_path_is_refused_when_the_recorder_is_asked_for_and_when_it_is_entered(tmp_path):
    model = nn.Linear(3, 2)
    early = covshift.record(model, tmp_path / "run")
    train(model, covshift.record(model, tmp_path / "run", every=1))
    for attempt in (lambda: covshift.record(model, tmp_path / "run"), early.__enter__):
        with pytest.raises(RecordingExists, match=r"holds a recording: resume=True continues it, overwrite=True"):
            attempt()
    (tmp_path / "other.zarr").mkdir()
    (tmp_path / "other.zarr" / "mine.txt").touch()
    with pytest.raises(RecordingError, match="is a directory but no covshift recording"):
        covshift.record(model, tmp_path / "other", overwrite=True)
    with pytest.raises(InvalidArgumentError, match="attrs cannot be stored as JSON"):
        covshift.record(model, tmp_path / "new", attrs={"a": object()})


def test_two_recorders_of_one_path_cannot_be_entered_together(tmp_path):
    model = nn.Linear(3, 2)
    first, second = (covshift.record(model, tmp_path / "run", every=1) for _ in range(2))
    with first, pytest.raises(StoreLocked, match=f"pid {os.getpid()} "):
        second.__enter__()


def test_a_path_is_free_again_when_entering_failed(tmp_path, monkeypatch):
    model = nn.Linear(3, 2)
    recorder = covshift.record(model, tmp_path / "run", every=1)

    def broken():
        raise ArithmeticError("planted")

    monkeypatch.setattr(recorder._surroundings, "prepare", broken)
    with pytest.raises(ArithmeticError):
        recorder.__enter__()
    train(model, covshift.record(model, tmp_path / "run", every=1, overwrite=True))


def test_a_recorder_that_was_not_entered_has_no_recording_and_says_so():
    with pytest.raises(RecordingError, match="not entered yet"):
        _ = covshift.record(nn.Linear(3, 2)).recording


def test_another_process_may_record_where_this_one_only_asked_for_a_recorder(tmp_path):
    idle = covshift.record(nn.Linear(3, 2), tmp_path / "run")
    code = (
        "import sys, torch, covshift\n"
        "model = torch.nn.Linear(3, 2)\n"
        "with covshift.record(model, sys.argv[1], every=1) as recorder:\n"
        "    model(torch.randn(4, 3)).sum().backward()\n"
        "    recorder.step()\n"
    )
    root = Path(covshift.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "run")],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert done.returncode == 0, done.stderr
    assert covshift.open(tmp_path / "run")["layers"].step.values.tolist() == [0]
    with pytest.raises(RecordingExists):
        idle.__enter__()


def test_a_recording_is_written_where_it_was_asked_for_wherever_the_process_goes(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    model = nn.Linear(3, 2)
    recorder = covshift.record(model, "runs/run", every=1)
    monkeypatch.chdir("elsewhere")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with recorder:
        for step in range(80):
            if step == 10:
                monkeypatch.chdir(tmp_path)
            optimizer.zero_grad()
            model(torch.randn(4, 3)).sum().backward()
            optimizer.step()
    assert recorder.path == tmp_path / "runs" / "run.zarr"
    assert recorder.recording["layers"].sizes["step"] == 80
    assert recorder.warnings == list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("a\0b", "cannot be used .*null byte.*: choose another path"),
        ("x" * 300, "cannot be used .*too long.*: choose another path"),
        ("foo://bucket/run", "path='foo://bucket/run.zarr': fsspec cannot reach it .*foo"),
        ("file:///tmp/run", "path='file:///tmp/run.zarr': give a local directory as a path, '/tmp/run.zarr'"),
    ],
)
def test_a_path_that_no_file_system_takes_is_named(path, message):
    with pytest.raises(RecordingError, match=message):
        covshift.record(nn.Linear(3, 2), path)
