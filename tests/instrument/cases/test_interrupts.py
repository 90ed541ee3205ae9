"""A model called in parts, and an interrupt in one of them: no hook is told of it, and names and numbers stay right."""

import pytest
import torch
from torch import nn


class Interruptible(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.is_interrupted = nn.Linear(6, 6), False

    def forward(self, x):
        y = self.linear(x)
        if self.is_interrupted:
            raise KeyboardInterrupt
        return y


class Parts(nn.Module):
    """Halves that are called from outside, never together."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.encoder = nn.Sequential(Interruptible(), nn.Tanh())
        self.decoder = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3))


NAMES = {"encoder.0.linear", "encoder.1", "decoder.0", "decoder.1", "decoder.2"}


def interrupt(model, x):
    model.encoder[0].is_interrupted = True
    with pytest.raises(KeyboardInterrupt):
        model.encoder(x)
    model.encoder[0].is_interrupted = False


@pytest.mark.parametrize("first", ["encoder", "decoder"])
def test_after_an_interrupt_the_calls_of_the_same_step_keep_their_names(record, assert_row, cell, first):
    model, x, again = Parts(), torch.randn(4, 6), torch.randn(16, 6)
    with record(model) as recorder:
        interrupt(model, x)
        if first == "decoder":
            model.decoder(again)
        model.decoder(model.encoder(again)).sum().backward()
        recorder.step()
    rows = recorder.recording
    assert set(rows["layers"].layer.values) == NAMES
    assert_row(rows, model.encoder[0].linear(again), layer="encoder.0.linear", signal="activation")
    passes = 2 if first == "decoder" else 1
    assert cell(rows, "example_count", layer="decoder.2", signal="activation") == 16 * passes
    assert cell(rows, "example_count", layer="decoder.2", signal="activation_grad") == 16


def test_after_an_interrupt_of_a_pass_that_is_not_recorded_the_next_steps_are(record, cell):
    model = Parts()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with record(model) as recorder:
        with torch.no_grad():
            interrupt(model, torch.randn(4, 6))
        for _ in range(2):
            model.decoder(model.encoder(torch.randn(16, 6))).sum().backward()
            optimizer.step()
    assert recorder.recording["layers"].step.values.tolist() == [0, 1]
    for step in range(2):
        assert cell(recorder.recording, "example_count", layer="encoder.1", signal="activation", step=step) == 16


def test_after_an_interrupt_of_a_pass_that_is_not_recorded_an_evaluation_is(record, cell):
    model = Parts()
    with record(model) as recorder, torch.no_grad():
        interrupt(model, torch.randn(4, 6))
        with recorder.evaluation():
            model.decoder(torch.randn(16, 6))
    group = {"layer": "decoder.2", "signal": "activation", "group": "evaluation/layers"}
    assert cell(recorder.recording, "example_count", **group) == 16


class Listed(nn.Module):
    """Calls modules that are not its children: they are another's, and one keeps them in a list."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.blocks = nn.ModuleList(nn.Linear(6, 6) for _ in range(2))
        self.caller = Caller(list(self.blocks))

    def forward(self, x):
        return self.caller(self.blocks[0](x))


class Caller(nn.Module):
    def __init__(self, modules):
        super().__init__()
        self.act, self.others = nn.Tanh(), tuple(modules)

    def forward(self, x):
        for module in self.others:
            x = self.act(module(x))
        return x


def test_calls_of_modules_that_are_no_children_of_their_caller_are_not_taken_for_an_interrupt(record, cell):
    model = Listed()
    with record(model) as recorder:
        for _ in range(2):
            model(torch.randn(16, 6)).sum().backward()
            recorder.step()
    names = {"(input)", "blocks.0", "blocks.0#1", "blocks.1", "caller.act", "caller.act#1"}
    assert set(recorder.recording["layers"].layer.values) == names
    assert cell(recorder.recording, "example_count", layer="blocks.0#1", signal="activation_grad", step=1) == 16
