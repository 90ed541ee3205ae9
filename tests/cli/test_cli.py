"""The command line as a user meets it: exit codes, one-line errors, files written."""

import json
import os
import shutil
import stat
import subprocess
import sys

import numpy as np
import pytest
import torch
import typer
from torch import nn
from typer.testing import CliRunner

import covshift
from covshift.cli import app
from covshift.exceptions import RecordingDamaged

runner = CliRunner()


def invoke(*words):
    return runner.invoke(app, [str(word) for word in words])


def error_line(result):
    lines = [line for line in result.stderr.splitlines() if line]
    assert len(lines) == 1, result.stderr
    return lines[0]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A short healthy recording on disk."""
    path = tmp_path_factory.mktemp("runs") / "healthy.zarr"
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    with covshift.record(model, path, every=1, name="healthy") as recorder:
        for _ in range(30):
            loss = model(torch.randn(64, 8)).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            recorder.log(loss=loss)
    return path


@pytest.fixture(scope="module")
def sick(tmp_path_factory):
    """Every unit of the hidden layer dead from the start."""
    path = tmp_path_factory.mktemp("runs") / "sick.zarr"
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
    nn.init.constant_(model[0].bias, -1e3)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with covshift.record(model, path, every=1, name="sick"):
        for _ in range(30):
            model(torch.randn(64, 8)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    return path


def test_python_dash_m_prints_the_commands():
    done = subprocess.run(
        [sys.executable, "-m", "covshift", "--help"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0
    assert all(command in done.stdout for command in ("demo", "report", "check"))


@pytest.mark.parametrize("command", sorted(typer.main.get_command(app).commands))
def test_every_command_explains_itself_with_an_example_and_can_be_quiet(command):
    result = invoke(command, "--help")
    assert result.exit_code == 0
    told = " ".join(result.stdout.split())
    assert f"Example: covshift {command}" in told
    assert "--quiet" in told
    assert "--debug" in told


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--steps", "0"], "steps=0: expected a whole number from 1"),
        (["--depth", "0"], "depth=0: expected a whole number from 1"),
        (["--seeds", "-1"], "seeds=-1: expected a whole number from 1"),
        (["--variants", "relu,lnked-relu"], "expected different ones of relu, linked-relu, selu, batch-norm"),
        (["--variants", ""], "variants=none"),
        (["--variants", "relu,relu"], "variants=relu, relu: expected different"),
        (["--device", "quantum"], "device=quantum"),
    ],
)
def test_a_bad_demo_is_one_clear_line_and_trains_nothing(words, message, tmp_path):
    result = invoke("demo", *words, "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert message in error_line(result)
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX folders")
def test_a_folder_that_cannot_be_written_is_one_clear_line(tmp_path):
    blocked = tmp_path / "file"
    blocked.touch()
    result = invoke("demo", "--out", blocked / "under")
    assert result.exit_code == 1
    assert "cannot be written" in error_line(result)
    if os.geteuid() != 0:
        tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
        assert "cannot be written" in error_line(invoke("demo", "--out", tmp_path / "new"))


def test_a_folder_that_holds_files_is_not_overwritten_unasked(tmp_path):
    (tmp_path / "precious.txt").write_text("keep me")
    result = invoke("demo", "--out", tmp_path)
    assert result.exit_code == 1
    assert "the folder is not empty" in error_line(result)
    assert (tmp_path / "precious.txt").read_text() == "keep me"


@pytest.mark.slow
def test_the_smallest_demo_writes_recordings_findings_and_a_report(tmp_path):
    out = tmp_path / "demo"
    result = invoke("demo", "--steps", 3, "--depth", 3, "--variants", "relu,linked-relu", "--seeds", 2, "--out", out)
    assert result.exit_code == 0, result.stderr
    assert f"report: {out / 'report.html'}" in result.stdout
    names = sorted(path.name for path in out.iterdir())
    recordings = [f"{variant}-seed{seed}.zarr" for variant in ("linked-relu", "relu") for seed in (0, 1)]
    assert names == sorted([*recordings, "findings.json", "report.html"])
    recording = covshift.open(out / "linked-relu-seed1.zarr")
    assert recording.attrs["variant"] == "linked-relu"
    assert recording["layers"].step.values.tolist() == [0, 1, 2]
    assert recording["evaluation/layers"]["example_count"].max() == 1400
    assert np.isfinite(recording["scalars"]["test_accuracy"].values[-1])


@pytest.mark.slow
def test_the_demo_repeats_bit_for_bit(tmp_path):
    losses = []
    for name in ("a", "b"):
        invoke("demo", "--steps", 3, "--depth", 3, "--variants", "linked-relu", "--out", tmp_path / name)
        losses.append(covshift.open(tmp_path / name / "linked-relu-seed0.zarr")["scalars"]["loss"].values.tolist())
    assert losses[0] == losses[1]


def test_report_writes_a_page_and_its_json_twin_and_prints_the_path(run, sick, tmp_path):
    page, twin = tmp_path / "page.html", tmp_path / "findings.json"
    result = invoke("report", run, sick, "-o", page, "--json", twin)
    assert result.exit_code == 0, result.stderr
    assert str(page) in result.stdout
    assert "sick" in page.read_text()
    assert json.loads(twin.read_text())
    again = invoke("report", run, "-o", page)
    assert again.exit_code == 1
    assert "overwrite" in error_line(again)
    assert invoke("report", run, "-o", page, "--overwrite").exit_code == 0


def test_check_passes_a_healthy_run_and_fails_a_sick_one(run, sick):
    healthy = invoke("check", run)
    assert healthy.exit_code == 0, healthy.stdout
    assert "checks not measured" in healthy.stdout
    assert invoke("check", sick, "--fail-on", "bad").exit_code == 1
    assert invoke("check", sick, "--fail-on", "watch").exit_code == 1
    silent = invoke("check", sick, "--quiet")
    assert (silent.exit_code, silent.stdout) == (1, "")


@pytest.mark.parametrize("level", [pytest.param("watch", marks=pytest.mark.slow), "bad"])
def test_the_exit_code_of_check_is_that_of_its_process(run, sick, tmp_path, level):
    def code(path):
        words = [sys.executable, "-m", "covshift", "check", str(path), "--fail-on", level]
        return subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)

    healthy, failed, absent = (code(path) for path in (run, sick, tmp_path / "absent.zarr"))
    assert (healthy.returncode, failed.returncode, absent.returncode) == (0, 1, 2), healthy.stderr + failed.stderr
    assert healthy.stdout.startswith("Healthy: gradient reaches all ")
    assert failed.stdout.startswith("Unhealthy: gradient does not reach 1 of 3 layers ('0' since step 0; follows from")
    assert absent.stderr.startswith("error: ")
    assert "Traceback" not in absent.stderr


def test_check_turns_an_unmeasured_requirement_into_2_and_a_measured_one_into_nothing(run, sick):
    assert invoke("check", run, "--require", "units").exit_code == 0
    # 30 records hold fewer than 40 in their last half.
    unmeasured = invoke("check", run, "--require", "operating point")
    assert unmeasured.exit_code == 2
    assert invoke("check", sick, "--require", "operating point").exit_code == 2


def test_check_of_a_recording_without_records_is_2(tmp_path):
    with covshift.record(nn.Linear(2, 2), tmp_path / "empty"):
        pass
    assert invoke("check", tmp_path / "empty.zarr").exit_code == 2


def test_check_is_readable_at_80_columns(sick, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    lines = invoke("check", sick).stdout.splitlines()
    assert max(len(line.rstrip()) for line in lines) <= 80
    assert len(lines) <= 60
    assert "Consequences: gradient arrives" in " ".join(" ".join(lines).split())


def test_check_cannot_judge_what_it_cannot_read(tmp_path):
    missing = invoke("check", tmp_path / "nothing.zarr")
    assert missing.exit_code == 2
    assert "nothing.zarr" in error_line(missing)


def test_check_with_an_unknown_requirement_lists_the_checks(run):
    result = invoke("check", run, "--require", "luck")
    assert result.exit_code == 2
    assert "require='luck': expected one of" in error_line(result)


def test_runs_of_one_name_are_told_apart_by_their_paths(run, tmp_path):
    import shutil

    twin = tmp_path / "twin.zarr"
    shutil.copytree(run, twin)
    page = tmp_path / "page.html"
    assert invoke("report", run, twin, "-o", page).exit_code == 0
    assert "twin.zarr" in page.read_text()


def test_the_version_is_told():
    result = invoke("--version")
    assert (result.exit_code, result.stdout) == (0, f"covshift {covshift.__version__}\n")


def test_a_recording_that_lost_a_file_is_not_judged(run, tmp_path):
    path = shutil.copytree(run, tmp_path / "lost.zarr")
    shutil.rmtree(path / "layers/nan_count/c")
    for words in (["check", path], ["report", path, "-o", tmp_path / "page.html"], ["info", path]):
        result = invoke(*words)
        assert result.exit_code in (1, 2)
        assert "'layers/nan_count' (steps 0 to 29, layers" in error_line(result)
    with pytest.raises(RecordingDamaged, match="layers/nan_count"):
        covshift.diagnose(covshift.open(path))
    assert invoke("recover", path).exit_code == 0
    diagnosis = covshift.diagnose(covshift.open(path))
    assert not [finding for finding in diagnosis.findings if finding.check == "non-finite" and finding.verdict == "ok"]
    assert "absent since a repair" in invoke("info", path).stdout.replace("\n", " ")


def test_a_missing_recording_is_reported_beside_the_others(run, tmp_path):
    result = invoke("report", run, tmp_path / "missing.zarr", "--out", tmp_path / "page.html")
    assert result.exit_code == 0
    assert f"no recording at '{tmp_path / 'missing.zarr'}'" in error_line(result)
    page = (tmp_path / "page.html").read_text()
    assert "healthy" in page
    assert "Cannot be read: no recording at" in page


@pytest.mark.parametrize("names", [["a"], ["a", "b"]])
def test_where_all_recordings_are_missing_there_is_no_page(tmp_path, names):
    result = invoke("report", *[tmp_path / f"{name}.zarr" for name in names], "--out", tmp_path / "page.html")
    assert result.exit_code == 1
    assert "no recording at" in error_line(result)
    assert not list(tmp_path.iterdir())
