"""What fails while it is recorded costs a row and a warning, never the training or the user's own exception."""

import os
import shutil
import warnings
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import nn

import covshift
from covshift.exceptions import CovshiftWarning
from covshift.instrument.schedule import Schedule
from covshift.summary.table import Table

pytestmark = pytest.mark.usefixtures("seeded")


def test_a_fault_of_covshift_costs_a_row_and_one_warning_not_the_training(perceptron, train, monkeypatch):
    def broken(*args, **kwargs):
        raise ArithmeticError("planted")

    monkeypatch.setattr(Table, "add", broken)
    model = perceptron()
    with (
        pytest.warns(
            CovshiftWarning, match="covshift failed to record it .ArithmeticError: planted.; training goes on"
        ),
        covshift.record(model, every=1) as recorder,
    ):
        losses = train(model, 2)
    assert len(losses) == 2
    assert len(recorder.warnings) == len(set(recorder.warnings))


class StepsWithin(nn.Module):
    """A model whose forward pass makes the training step, which so ends while the pass is running."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 4), nn.Linear(4, 2)
        self.optimizer = torch.optim.SGD(self.parameters(), lr=0.1)

    def forward(self, x):
        loss = self.second(self.first(x)).sum()
        if self.optimizer is not None:
            loss.backward()
            self.optimizer.step()
        return loss


class StepsOutside(StepsWithin):
    def __init__(self):
        super().__init__()
        self.optimizer = None


def one_step(model):
    loss = model(torch.ones(4, 6))
    if model.optimizer is None:
        loss.backward()
        torch.optim.SGD(model.parameters(), lr=0.1).step()


@pytest.mark.parametrize("make", [StepsOutside, StepsWithin])
def test_a_fault_where_a_pass_is_counted_costs_its_row_and_one_warning_neither_training_nor_other_rows(
    make, monkeypatch
):
    entered, calls = Table.enter, []

    def fails_once(self, *row):
        calls.append(row)
        if len(calls) == 1:
            raise ArithmeticError("planted")
        entered(self, *row)

    monkeypatch.setattr(Table, "enter", fails_once)
    model = make()
    before = model.first.weight.detach().clone()
    with (
        pytest.warns(CovshiftWarning, match="ArithmeticError: planted.; training goes on") as caught,
        covshift.record(model, every=1) as recorder,
    ):
        one_step(model)
    assert len(caught) == recorder.step_count == 1
    assert not torch.equal(model.first.weight, before)
    counts = recorder.recording["layers"]["count"].sel(step=0)
    assert counts.sel(layer="(input)", signal="input") == 0
    assert counts.sel(layer=["first", "second"], signal="activation").values.tolist() == [16, 8]
    assert counts.sel(layer=["first", "second"], signal="activation_grad").values.tolist() == [16, 8]


@pytest.mark.parametrize("told", ["warnings are errors", "numpy raises"])
@pytest.mark.parametrize("size", [1e160, 1e-160])
def test_a_model_whose_numbers_leave_float64_is_recorded_and_trained_whatever_numpy_is_told_to_do_then(told, size):
    torch.manual_seed(0)
    model = nn.Linear(4, 4).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with (
        np.errstate(all="raise") if told == "numpy raises" else nullcontext(),
        warnings.catch_warnings(),
        covshift.record(model, every=1) as recorder,
    ):
        warnings.simplefilter("error", RuntimeWarning)
        for _ in range(2):
            passes = [model(torch.randn(8, 4).double() * size) for _ in range(2)]
            sum(output.sum() for output in passes).backward()
            optimizer.step()
    assert recorder.warnings == []
    rows = recorder.recording["layers"].to_dataset().sel(layer="(root)", step=1)
    both = torch.cat(passes).detach().numpy()
    assert rows["count"].sel(signal="activation") == both.size
    assert rows["sum"].sel(signal="activation").item() == pytest.approx(both.sum(), rel=1e-9)
    assert np.isfinite(rows["m2"].sel(signal="activation")) == (size < 1)


@pytest.mark.parametrize("error", [None, ValueError("the user's own")])
def test_a_recording_that_cannot_be_written_warns_and_hides_no_exception(perceptron, train, error, tmp_path):
    def run():
        model = perceptron()
        with covshift.record(model, tmp_path / "run", every=1):
            train(model, 1)
            shutil.rmtree(tmp_path / "run.zarr")
            (tmp_path / "run.zarr").touch()
            if error is not None:
                raise error

    with pytest.warns(CovshiftWarning, match="the end of the recording is not written"):
        if error is None:
            run()
        else:
            with pytest.raises(ValueError, match="the user's own"):
                run()


def test_a_schedule_that_raises_is_named_and_training_goes_on(shallow):
    def rule(step):
        if step == 1:
            raise ArithmeticError("planted")
        return True

    model = shallow()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CovshiftWarning)
        with covshift.record(model, every=Schedule(rule, "odd")) as recorder:
            for _ in range(3):
                model(torch.randn(4, 6)).sum().backward()
                optimizer.step()
                optimizer.zero_grad()
    assert all("ArithmeticError: planted" in message for message in recorder.warnings)
    assert recorder.warnings
    assert recorder.step_count == 3
    assert 0 in recorder.recording["layers"].step.values


@pytest.mark.parametrize("path", [None, "run"])
def test_a_forked_child_that_trains_is_told_once_and_leaves_the_recording_to_its_parent(
    train, monkeypatch, tmp_path, path
):
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    recorder = covshift.record(model, None if path is None else tmp_path / path, every=1)
    with recorder:
        train(model, 2)
        # Stands for a fork, after which the child holds a copy of everything under another number.
        monkeypatch.setattr(os, "getpid", lambda: -1)
        with pytest.warns(CovshiftWarning, match="this process was forked") as told:
            train(model, 3, recorder=recorder)
            recorder._handover.close()
        assert len(told) == 1
        monkeypatch.undo()
        train(model, 1)
    assert len(recorder.warnings) == 1
    assert recorder.recording["layers"].step.values.tolist() == [0, 1, 5]
