"""A run that is interrupted anywhere ends with the numbers of one that is not."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import covshift
import depth
from common.data import load
from common.files import LARGEST_SUMMARY
from common.jobs import CHECKPOINT, RECORDING, SUMMARY, Job, Session
from common.training import Run, Trainer

ANALYSES = Path(depth.__file__).parent
PLAN = replace(
    depth.SMOKE, steps=18, evaluate_every=6, batch_size=8, test_examples=40, watched_examples=40, final_examples=40,
    augmented=True,
)  # fmt: skip


class Killed(BaseException):
    """Ends a run without any of its code being asked, but for what ``with`` blocks do."""


def job(variant: str = "linked-relu", **changed: Any) -> Job:
    return Job(
        "depth", "smoke", variant, {"initialization": "keras", "depth": 3}, 0, replace(PLAN, **changed), depth.PAPER
    )


def dropping(job: Job, data: Any, generator: torch.Generator) -> torch.nn.Module:
    """The depth net with dropout, which draws from the global generator at every step, and a norm with buffers."""
    net = depth.build(job, data, generator)
    parts = [
        part
        for layer in net
        for part in ((layer, torch.nn.Dropout(0.2)) if hasattr(layer, "linkage_dim") else (layer,))
    ]
    return torch.nn.Sequential(*parts[:1], torch.nn.BatchNorm2d(4), *parts[1:])


def run(folder: Path, *, resume: bool = False, stop_at: int | None = None, **changed: Any) -> dict[str, Any]:
    def progress(job: Job, step: int, accuracy: float) -> None:
        if step == stop_at:
            raise Killed

    data = load("digits-32", Path(), download=False)
    trainer = Trainer(dropping)
    torch.manual_seed(12345 if resume else 1)
    session = Session("cpu", resume, float("inf"), progress)
    return trainer(job(**changed), folder, data, session)


def numbers(summary: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in summary.items() if name != "seconds"}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run(tmp_path_factory.mktemp("undisturbed"))


@pytest.mark.parametrize("stop_at", [6, pytest.param(12, marks=pytest.mark.slow)])
def test_a_run_resumed_from_a_checkpoint_ends_with_the_same_numbers(tmp_path, undisturbed, stop_at) -> None:
    with pytest.raises(Killed):
        run(tmp_path, stop_at=stop_at)
    assert not (tmp_path / SUMMARY).exists()
    assert (tmp_path / CHECKPOINT).exists()
    resumed = run(tmp_path, resume=True)
    assert numbers(resumed) == numbers(undisturbed)
    assert not (tmp_path / CHECKPOINT).exists()


def test_a_summary_of_many_evaluations_stays_small_and_keeps_the_statistics_of_all(tmp_path, monkeypatch) -> None:
    def more(run: Run, recorder: covshift.Recorder) -> float:
        for name, values in run.curve.items():
            values[:0] = [run.step / 3_000 if name == "test_accuracy" else math.pi] * 1_000
        return evaluate(run, recorder)

    evaluate = Run.evaluate
    monkeypatch.setattr(Run, "evaluate", more)
    made = run(tmp_path)
    assert made["evaluations"]["count"] == 3_003
    assert len(made["curve"]["test_accuracy"]) == 200
    assert made["curve"]["step"][-1] == 18
    assert (tmp_path / SUMMARY).stat().st_size < LARGEST_SUMMARY


def test_a_run_begun_anew_after_a_stop_ends_with_the_same_numbers(tmp_path, undisturbed) -> None:
    with pytest.raises(Killed):
        run(tmp_path, stop_at=12)
    assert numbers(run(tmp_path)) == numbers(undisturbed)


def test_a_checkpoint_of_another_plan_is_not_continued(tmp_path, undisturbed) -> None:
    with pytest.raises(Killed):
        run(tmp_path, stop_at=6, batch_size=16)
    assert numbers(run(tmp_path, resume=True)) == numbers(undisturbed)


def test_the_recording_holds_every_step_that_was_due_once(tmp_path) -> None:
    run(tmp_path, record_every=5)
    recording = covshift.open(tmp_path / RECORDING)
    assert recording["layers"]["step"].values.tolist() == list(range(18))
    assert recording["evaluation/layers"]["step"].values.tolist() == [6, 12, 18]


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "resume"), [(1, True), (1, False), (2, False)])
def test_depth_killed_in_the_middle_and_run_again_gives_what_an_undisturbed_run_gives(
    tmp_path, processes, resume
) -> None:
    def command(out: Path) -> list[str]:
        more = ["--processes", str(processes), *(["--resume"] if resume else [])]
        return [sys.executable, str(ANALYSES / "depth.py"), "--preset", "smoke", "--out", str(out), *more]

    def summaries(out: Path) -> dict[str, dict[str, Any]]:
        return {path.parent.name: numbers(json.loads(path.read_text())) for path in out.glob("*/summary.json")}

    subprocess.run(command(tmp_path / "whole"), check=True, capture_output=True, timeout=300)
    victim = subprocess.Popen(command(tmp_path / "cut"), stdout=subprocess.PIPE, text=True)
    # The second run of two has made its first evaluation; one process has finished the first by then.
    for line in victim.stdout:
        if "linked-relu_seed-0: step 8" in line:
            break
    os.kill(victim.pid, signal.SIGKILL)
    # The output ends when nobody is left to write to it: a worker that went on would write into the next attempt.
    victim.communicate(timeout=30)
    finished = {path: path.stat().st_mtime_ns for path in (tmp_path / "cut").glob("*/summary.json")}
    assert len(finished) == 1 or (processes == 2 and not finished)
    time.sleep(0.01)
    done = subprocess.run(command(tmp_path / "cut"), check=True, capture_output=True, text=True, timeout=300)
    assert ("1 of 2 runs are finished already" in done.stdout) == (len(finished) == 1)
    assert all(path.stat().st_mtime_ns == before for path, before in finished.items())
    assert summaries(tmp_path / "cut") == summaries(tmp_path / "whole")
    assert len(summaries(tmp_path / "whole")) == 2
