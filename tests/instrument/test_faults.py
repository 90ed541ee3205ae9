"""What fails while it is recorded costs a row and a warning, never the training or the user's own exception."""

import shutil
import warnings

import pytest
import torch

import covshift
from covshift.exceptions import CovshiftWarning
from covshift.instrument.schedule import Schedule

pytestmark = pytest.mark.usefixtures("seeded")


def test_a_fault_of_covshift_costs_a_row_and_one_warning_not_the_training(perceptron, train, monkeypatch):
    from covshift.summary.table import Table

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
