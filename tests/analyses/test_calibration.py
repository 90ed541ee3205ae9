"""The calibration survives kill -9, never mixes two states of the code, and its page holds what was measured."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from common import calibration_page, calibration_trials, resumed
from common.resumed import Results
from covshift.selfcheck.faults import FAULTS
from covshift.selfcheck.suite import DOSES, NONE

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "analyses" / "calibration.py"


def script():
    spec = importlib.util.spec_from_file_location("calibration", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def held(path):
    return {line["key"]: line["result"] for line in lines(path)[1:]}


def silent(text):
    pass


def test_what_a_file_holds_is_not_computed_again(tmp_path):
    path, calls = tmp_path / "results.jsonl", []
    jobs = {name: lambda name=name: calls.append(name) or name.upper() for name in "abc"}
    Results(path).complete({"a": jobs["a"]}, processes=1, show=silent)
    results = Results(path)
    assert results.missing(jobs) == ["b", "c"]
    results.complete(jobs, processes=1, show=silent)
    assert calls == ["a", "b", "c"]
    assert [Results(path).result(name) for name in "abc"] == ["A", "B", "C"]


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_a_line_that_was_cut_off_is_computed_again(tmp_path, cut):
    path = tmp_path / "results.jsonl"
    Results(path).complete({"a": lambda: 1, "b": lambda: 2}, processes=1, show=silent)
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    results = Results(path)
    assert results.missing(["a", "b"]) == ["b"]
    results.complete({"a": lambda: 1, "b": lambda: 2}, processes=1, show=silent)
    assert held(path) == {"a": 1, "b": 2}


def test_results_of_other_code_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "results.jsonl"
    Results(path)
    monkeypatch.setattr(resumed, "code_digest", lambda: "another")
    with pytest.raises(SystemExit, match="made by other code"):
        Results(path)


def test_a_file_that_was_killed_before_its_first_line_begins_anew(tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text('{"code": "hal')
    Results(path)
    assert lines(path)[0]["code"] == resumed.code_digest()


def test_every_fault_has_every_dose_and_every_seed_and_movements_a_twin():
    planned = list(calibration_trials.trials("faults", held_back=True, seeds=5))
    first = calibration_trials.FIRST_SEED["held-back"]
    for fault in FAULTS:
        doses = (NONE, *DOSES) if fault.twin else DOSES
        mine = {(trial.dose, trial.seed) for trial in planned if trial.name == fault.name}
        assert mine == {(dose, seed) for dose in doses for seed in range(first, first + 5)}
    assert len({calibration_trials.key(trial) for trial in planned}) == len(planned)


def test_held_back_seeds_are_apart_from_all_that_were_looked_at():
    assert calibration_trials.FIRST_SEED["development"] == 0
    assert calibration_trials.FIRST_SEED["held-back"] > 500


def record(kind, name, dose, *, found=False, bad=(), undetermined=None):
    return {
        "kind": kind,
        "name": name,
        "dose": dose,
        "seed": 400,
        "held_back": True,
        "found": found,
        "right_check": found,
        "bad": list(bad),
        "watch": [],
        "undetermined": undetermined,
        "everywhere": False,
    }


def test_totals_leave_out_twins_and_faults_without_a_place():
    records = [
        record("fault", "dead units", "strong", found=True),
        record("fault", "dead units", "strong"),
        record("fault", "sigmoid vanishing", "strong", found=True),
        record("fault", "jump", NONE, found=True),
        record("trap", "rarely firing units", "weak", found=True),
        record("control", "CNN", "", bad=["units: act0"], undetermined=0.5),
        record("control", "CNN", "", undetermined=0.1),
    ]
    totals = calibration_trials.summary(records)["totals"]
    assert (totals["recall"]["strong"]["hits"], totals["recall"]["strong"]["runs"]) == (2, 3)
    assert (totals["recall"][NONE]["hits"], totals["recall"][NONE]["runs"]) == (1, 1)
    assert (totals["localisation_strong"]["hits"], totals["localisation_strong"]["runs"]) == (1, 1)
    assert (totals["traps"]["hits"], totals["traps"]["runs"]) == (1, 1)
    assert (totals["controls_bad"]["hits"], totals["controls_bad"]["runs"]) == (1, 2)
    assert totals["undetermined"] == pytest.approx(0.3)


def test_the_page_takes_a_block_between_its_marks_and_keeps_the_rest(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- calibration: power -->\nold\n<!-- end: power -->\nafter\n")
    calibration_page.rewrite(page, {"power": "new \\1"})
    calibration_page.rewrite(page, {"power": "newer \\1"})
    assert page.read_text() == "before\n<!-- calibration: power -->\n\nnewer \\1\n\n<!-- end: power -->\nafter\n"
    with pytest.raises(SystemExit, match="no marks"):
        calibration_page.rewrite(page, {"nulls": "x"})


def test_the_documentation_has_a_place_for_every_section():
    text = (ROOT / "docs" / "concepts" / "calibration.md").read_text()
    for section in script().SECTIONS:
        assert text.count(f"<!-- calibration: {section} -->") == text.count(f"<!-- end: {section} -->") == 1


def test_the_page_is_written_from_held_back_networks_at_all_doses_only(capsys):
    for arguments in (["--set", "development"], ["--doses", "strong"], ["--only", "dead*"]):
        with pytest.raises(SystemExit):
            script().parsed(["--write-docs", *arguments])
        assert "the page claims what all held-back networks give" in capsys.readouterr().err


def command(out, processes):
    sections = ["--section", "faults", "--set", "development", "--seeds", "1", "--only", "linkage*"]
    return [sys.executable, str(SCRIPT), *sections, "--processes", str(processes), "--out", str(out)]


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_calibration_killed_in_the_middle_ends_with_the_same_results(tmp_path, processes):
    undisturbed, killed = tmp_path / "undisturbed.jsonl", tmp_path / "killed.jsonl"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    whole = subprocess.run(command(undisturbed, 1), env=environment, capture_output=True, text=True, check=True)
    running = subprocess.Popen(command(killed, processes), env=environment, stderr=subprocess.DEVNULL)
    _wait_for(lambda: killed.exists() and killed.read_bytes().count(b"\n") >= 3, seconds=300)
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert 1 < len(lines(killed)) < len(lines(undisturbed))
    again = subprocess.run(command(killed, processes), env=environment, capture_output=True, text=True, check=True)
    assert held(killed) == held(undisturbed)
    assert _tables(again.stdout) == _tables(whole.stdout)


def _tables(text):
    return [line for line in text.splitlines() if line.startswith("|")]


WORKERS = """
import sys, time
from multiprocessing import get_context
from pathlib import Path
from common.resumed import Results

def slow():
    time.sleep(60)

if __name__ == "__main__":
    Results(Path(sys.argv[1])).complete({"a": slow, "b": slow}, processes=2, show=print)
"""


@pytest.mark.slow
def test_workers_end_when_their_parent_is_killed(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(WORKERS)
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'analyses'}"}
    parent = subprocess.Popen([sys.executable, str(program), str(tmp_path / "out.jsonl")], env=environment)
    workers = _wait_for(lambda: _workers(parent.pid))
    parent.kill()
    parent.wait()
    _wait_for(lambda: not any(_alive(pid) for pid in workers))


def _wait_for(condition, seconds=60):
    for _ in range(10 * seconds):
        if found := condition():
            return found
        time.sleep(0.1)
    pytest.fail("did not happen in time")


def _workers(parent):
    """Processes that multiprocessing spawned, once there are two of them."""
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    spawned = [pid for pid in children if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text()]
    return spawned if len(spawned) >= 2 else []


def _alive(pid):
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rsplit(")", 1)[1].split()[0] != "Z"
