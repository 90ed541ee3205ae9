"""Scalars that the user logs: the step they belong to, their names, and what is no number."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import covshift
from covshift.exceptions import CovshiftWarning, InvalidArgumentError

pytestmark = pytest.mark.usefixtures("seeded")


def test_a_log_after_the_optimizer_step_belongs_to_the_step_just_closed(perceptron, batch):
    model = perceptron()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with covshift.record(model, every=1) as recorder:
        for step in range(3):
            x, y = batch(model)
            loss = F.cross_entropy(model(x), y)
            recorder.log(before=torch.tensor(10.0 + step))
            optimizer.zero_grad()
            loss.backward()
            recorder.log(during=20 + step)
            optimizer.step()
            recorder.log(after=30 + step)
    scalars = recorder.recording["scalars"].to_dataset()
    assert scalars["before"].values.tolist() == [10, 11, 12]
    assert scalars["during"].values.tolist() == [20, 21, 22]
    assert scalars["after"].values.tolist() == [30, 31, 32]
    assert scalars["learning_rate"].values.tolist() == [0.1, 0.1, 0.1]


def test_the_last_log_is_written_at_the_end(perceptron, train):
    model = perceptron()
    with covshift.record(model, every=1) as recorder:
        train(model, 2, recorder=recorder)
        recorder.log(test_accuracy=0.5)
    scalars = covshift.open(recorder._handover.writer.target)["scalars"].to_dataset()
    assert scalars["test_accuracy"].values[-1] == 0.5
    assert scalars.step.values.tolist() == [0, 1]


@pytest.mark.parametrize(
    "value", ["0.5", True, torch.ones(2), None, 1j, np.complex64(1), torch.ones((), device="meta")]
)
def test_what_is_no_number_cannot_be_logged(perceptron, value):
    with (
        covshift.record(perceptron()) as recorder,
        pytest.raises(InvalidArgumentError, match=r"log\(loss=.*expected a real number or a tensor of one element"),
    ):
        recorder.log(loss=value)


@pytest.mark.parametrize("name", ["", "step", "wall_time", "__x", ".", "a\\b", "zarr.json", "\udcff"])
def test_a_name_that_cannot_name_an_array_is_refused_at_once(perceptron, name):
    with (
        covshift.record(perceptron()) as recorder,
        pytest.raises(InvalidArgumentError, match="expected a name of letters, digits"),
    ):
        recorder.log(**{name: 1.0})


def test_a_number_beyond_float64_cannot_be_logged(perceptron):
    with covshift.record(perceptron()) as recorder, pytest.raises(InvalidArgumentError, match="float64 can hold"):
        recorder.log(loss=10**400)


def test_names_with_slashes_are_logged_and_read_with_dots(perceptron, train):
    model = perceptron()
    with covshift.record(model, every=1) as recorder:
        train(model, 1)
        recorder.log({"val/loss": np.array(0.5), "lr": 0.1}, accuracy=0.25)
        recorder.log(**{"val/top-5/error": torch.tensor(0.75)})
    scalars = recorder.recording["scalars"].to_dataset().sel(step=0)
    found = {name: float(scalars[name]) for name in ("val.loss", "lr", "accuracy", "val.top-5.error")}
    assert found == {"val.loss": 0.5, "lr": 0.1, "accuracy": 0.25, "val.top-5.error": 0.75}


@pytest.mark.parametrize("name", ["/loss", "", "step", "9/loss", 3])
def test_names_that_no_array_can_have_are_refused_by_name(perceptron, name):
    with covshift.record(perceptron()) as recorder, pytest.raises(InvalidArgumentError, match=rf"log\({name!r}\)"):
        recorder.log({name: 1.0})


@pytest.mark.parametrize("logged", [False, True])
@pytest.mark.parametrize(
    ("rate", "got"),
    [(lambda step: 0.1, "got function"), (torch.tensor([0.1, 0.2]), "got a tensor of 2 elements"), ("warm", "got str")],
)
def test_a_learning_rate_that_is_no_number_is_named_and_costs_nothing_else(shallow, rate, got, logged):
    model = shallow()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def hide(*given):
        optimizer.param_groups[0]["lr"] = rate

    def show(*given):
        optimizer.param_groups[0]["lr"] = 0.1

    optimizer.register_step_pre_hook(show)
    optimizer.register_step_post_hook(hide)
    with pytest.warns(CovshiftWarning, match=got) as told, covshift.record(model, every=1) as recorder:
        for _ in range(2):
            model(torch.randn(4, 6)).square().mean().backward()
            optimizer.step()
            if logged:
                recorder.log(learning_rate=0.3)
    assert len(told) == len(recorder.warnings) == 1
    rates = recorder.recording["scalars"]["learning_rate"]
    np.testing.assert_array_equal(rates, [0.3 if logged else np.nan] * 2)
    assert (recorder.recording["parameters"]["update_norm"] > 0).all()
