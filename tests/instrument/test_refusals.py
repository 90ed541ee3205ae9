"""What cannot be used is refused by its name, and nothing is taken or lost for it."""

import gc
import subprocess
import sys

import pytest
import torch
from torch import nn

import covshift
from covshift.exceptions import CovshiftError, CovshiftWarning, InvalidArgumentError, UnsupportedModelError


@pytest.mark.parametrize("model", [torch.relu, "model"])
def test_what_is_no_module_cannot_be_recorded(model):
    with pytest.raises(UnsupportedModelError, match="expected an eager torch.nn.Module"):
        covshift.record(model)


def test_unknown_signals_are_named_with_the_known_ones(perceptron):
    with pytest.raises(InvalidArgumentError, match=r"signals=\['weights'\]: expected some of input, preactivation"):
        covshift.record(perceptron(), signals=["weights"])


@pytest.mark.parametrize("named", [True, False])
def test_a_recorder_that_is_never_entered_says_so_when_it_goes_and_shows_the_line_that_made_it(
    perceptron, tmp_path, named
):
    recorder, here = covshift.record(perceptron(), tmp_path / "run" if named else None), current_line()
    where = rf"at '{tmp_path / 'run.zarr'}'" if named else "in memory"
    with pytest.warns(CovshiftWarning, match=f"never entered, so there is no recording {where}: write") as caught:
        del recorder
        gc.collect()
    assert [(one.filename, one.lineno) for one in caught] == [(__file__, here)]


def test_a_program_that_forgot_the_with_is_told_at_its_end():
    program = "import covshift, torch; recorder = covshift.record(torch.nn.Linear(2, 2))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    assert "its recorder was never entered" in done.stderr


def current_line():
    return sys._getframe(1).f_lineno


def test_a_recorder_serves_one_recording(perceptron):
    recorder = covshift.record(perceptron())
    with recorder:
        pass
    with pytest.raises(CovshiftError, match="already entered"), recorder:
        pass


@pytest.mark.parametrize(
    "bad", [{"layers": "typo"}, {"layers": []}, {"updates": "typo"}, {"signals": ["typo"]}, {"every": 0}]
)
def test_a_refused_argument_leaves_an_existing_recording_alone(perceptron, bad, tmp_path):
    with covshift.record(perceptron(), tmp_path / "run", every=1) as recorder:
        pass
    before = (tmp_path / "run.zarr" / "zarr.json").read_bytes()
    with pytest.raises(InvalidArgumentError):
        covshift.record(perceptron(), recorder.path, overwrite=True, **bad)
    assert (tmp_path / "run.zarr" / "zarr.json").read_bytes() == before


@pytest.mark.parametrize("call", ["log", "evaluation"])
def test_what_would_not_be_recorded_is_refused_outside_the_with(shallow, call):
    with covshift.record(shallow(), every=1) as recorder:
        pass
    with pytest.raises(CovshiftError, match=rf"{call}\(\): this recorder is not open; call it inside its with"):
        recorder.log(loss=1.0) if call == "log" else recorder.evaluation().__enter__()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scaler": 3.0}, r"scaler=3.0: expected a torch.amp.GradScaler"),
        ({"ranks": "all"}, r"ranks='all': expected one of separate, merge"),
        ({"loss_reduction": "max"}, r"loss_reduction='max': expected one of mean, sum"),
        ({"signals": "activation"}, r"signals='activation': expected a list of some of input"),
        ({"unit_axis": {"0": "1"}}, r"unit_axis=.*: expected a mapping from globs on layer names to axes"),
        ({"path": b"run"}, r"path=b'run': expected a path"),
        ({"attrs": [1]}, r"attrs=\[1\]: expected a mapping"),
        ({"attrs": {"rank": 7}}, r"attrs: rank are noted by the recorder"),
        ({"layers": nn.Linear(1, 1)}, r"layers=Linear.*: expected a glob, a compiled regex, a module class"),
        ({"max_memory": "1GB"}, r"max_memory='1GB': expected a number of bytes"),
        ({"max_memory": -1}, r"max_memory=-1: expected a number of bytes"),
        ({"max_layers": 0}, r"max_layers=0: expected a whole number from 1"),
        ({"max_layers": 2}, r"max_layers=2: 4 modules are to be observed; .*layers= .*max_layers=4"),
    ],
)
def test_arguments_that_cannot_be_used_are_named(shallow, arguments, message):
    with pytest.raises(InvalidArgumentError, match=message):
        covshift.record(shallow(), **arguments)
