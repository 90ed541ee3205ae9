"""Fake tensors hold no numbers: what runs on them is passed over with one warning, and everything else is recorded."""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

NAMED = ("a forward pass ran on fake tensors (FakeTensorMode), which hold no numbers",)


def test_a_forward_on_fake_tensors_between_steps_is_passed_over(build, train, record):
    model = build("perceptron")
    with record(model, every=2, warned=NAMED) as recorder:
        for _ in range(3):
            with FakeTensorMode(allow_non_fake_inputs=True):
                model(torch.randn(3, 6))
            train(model)
            with FakeTensorMode(allow_non_fake_inputs=True):
                model(torch.randn(3, 6))
    assert len(recorder.warnings) == 1
    assert recorder.step_count == 3
    layers = recorder.recording["layers"].to_dataset()
    assert layers.step.values.tolist() == [0, 2]
    assert (layers["example_count"].sel(layer="0", signal=["activation", "activation_grad"]) == 16).all()


def test_a_forward_on_fake_tensors_does_not_end_the_time_to_log_for_the_step_before(build, train, record):
    model = build("perceptron")
    with record(model, every=2) as recorder:
        train(model)
        with FakeTensorMode(allow_non_fake_inputs=True):
            model(torch.randn(3, 6))
        recorder.log(loss=0.5)
        train(model)
    assert recorder.recording["scalars"]["loss"].sel(step=0).item() == 0.5


@pytest.mark.parametrize("inside", [True, False], ids=["all within the mode", "tensors of the mode, used outside"])
def test_a_training_on_fake_tensors_ends_without_an_error(record, inside):
    with FakeTensorMode() as mode:
        model, x = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2)), torch.randn(3, 6)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def train():
        with record(model, warned=NAMED, may_warn=("no forward pass of it was seen",)) as recorder:
            for _ in range(2):
                model(x).sum().backward()
                optimizer.step()
                optimizer.zero_grad()
        return recorder

    if inside:
        with mode:
            recorder = train()
    else:
        recorder = train()
    assert recorder.step_count == 2
    assert recorder.recording["layers"].sizes["step"] == 0


def test_an_output_that_is_a_fake_tensor_is_left_out_by_name(record, assert_row):
    class Sketch(nn.Module):
        def forward(self, x):
            with FakeTensorMode():
                return torch.ones(len(x), 3)

    class Sketched(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.sketch = nn.Linear(6, 3), Sketch()

        def forward(self, x):
            y = self.linear(x)
            self.sketch(y)
            return y

    model, x = Sketched(), torch.randn(16, 6)
    with record(model, warned=("layer 'sketch': output of",)) as recorder:
        model(x).sum().backward()
        recorder.step()
    assert_row(recorder.recording, model.linear(x), layer="linear", signal="activation")
