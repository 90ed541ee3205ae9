"""Forward passes that an exception ends count for nothing; those that go on around a step, or catch it, count."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from covshift.schema import Mode, Status

GROUPS = ("layers", "histograms", "units")


class TooLarge(nn.Module):
    """Has memory for eight examples."""

    kind = RuntimeError

    def forward(self, x):
        if len(x) > 8:
            raise self.kind("out of memory")
        return torch.relu(x)


class Unlucky(nn.Module):
    """Keeps what its first layers have computed where others can reach it."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.a, self.act, self.narrow, self.b = nn.Linear(6, 5), nn.ReLU(), TooLarge(), nn.Linear(5, 3)
        self.hidden = None

    def forward(self, x):
        self.hidden = self.act(self.a(x))
        return self.b(self.narrow(self.hidden))


def recorded(record, run, **options):
    model = Unlucky()
    with record(model, **options) as recorder:
        run(model)
        recorder.step()
    return recorder.recording


def demand_equal(found, expected):
    for group in GROUPS:
        first, second = (recording[group].to_dataset() for recording in (found, expected))
        assert set(first.data_vars) == set(second.data_vars)
        for name, variable in first.data_vars.items():
            np.testing.assert_array_equal(variable, second[name], err_msg=f"{group} {name}")


def fails(model, x):
    with pytest.raises(TooLarge.kind):
        model(x)


def fails_and_its_first_layers_go_backward(model, x):
    fails(model, x)
    model.hidden.sum().backward()


@pytest.mark.parametrize("interruption", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("first", [fails, fails_and_its_first_layers_go_backward])
def test_a_step_in_which_a_pass_was_interrupted_is_recorded_as_if_it_had_not_been(
    record, monkeypatch, first, interruption
):
    monkeypatch.setattr(TooLarge, "kind", interruption)
    large, small = torch.randn(32, 6), torch.randn(8, 6)

    def interrupted(model):
        first(model, large)
        model.zero_grad()
        model(small).square().sum().backward()

    found = recorded(record, interrupted)
    demand_equal(found, recorded(record, lambda model: model(small).square().sum().backward()))
    assert found["layers"]["count"].sel(layer=["a", "b"], signal="activation", step=0).values.tolist() == [40, 24]


def test_a_batch_that_is_tried_again_in_halves_where_its_failure_is_handled_counts_once(record, cell):
    x = torch.randn(16, 6)

    def in_halves(model):
        try:
            model(x).sum().backward()
        except RuntimeError:
            for half in x.split(8):
                model(half).sum().backward()

    found = recorded(record, in_halves)
    for layer in ("a", "act", "b"):
        for signal in ("activation", "activation_grad"):
            assert cell(found, "example_count", layer=layer, signal=signal) == 16


class Stopped(nn.Module):
    """Is interrupted in code of its own, between two of its modules."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.a, self.act, self.b, self.is_stopped = nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3), False

    def forward(self, x):
        hidden = self.act(self.a(x))
        if self.is_stopped:
            raise KeyboardInterrupt
        return self.b(hidden)


def test_modules_called_by_themselves_after_an_interrupt_are_no_second_calls_of_the_pass_it_ended(record):
    recordings = []
    for is_stopped in (False, True):
        model, x = Stopped(), torch.ones(8, 6)
        with record(model) as recorder:
            model(x).sum().backward()
            recorder.step()
            model.is_stopped = is_stopped
            if is_stopped:
                with pytest.raises(KeyboardInterrupt):
                    model(x)
            model.b(model.act(model.a(x))).sum().backward()
            recorder.step()
        recordings.append(recorder.recording)
    demand_equal(*recordings)
    assert set(recordings[1]["layers"].layer.values) == {"(input)", "a", "act", "b"}


def test_layers_of_an_interrupted_pass_only_are_absent(record, status):
    found = recorded(record, lambda model: fails(model, torch.randn(32, 6)), warned=("forward pass called b",))
    assert (found["layers"]["count"] == 0).all()
    assert (found["layers"]["status"] == Status.ABSENT).all()


def test_the_mode_of_a_record_is_that_of_passes_that_returned(record, cell):
    def in_both_modes(model):
        fails(model.train(), torch.randn(32, 6))
        model.eval()(torch.randn(8, 6)).sum().backward()

    found = recorded(record, in_both_modes)
    assert found["layers"]["mode"].sel(step=0).item() == Mode.EVAL
    assert cell(found, "example_count", layer="b", signal="activation_grad") == 8


@pytest.mark.parametrize("interruption", [RuntimeError, KeyboardInterrupt])
def test_an_evaluation_counts_its_passes_that_returned(record, monkeypatch, cell, interruption):
    monkeypatch.setattr(TooLarge, "kind", interruption)
    model = Unlucky()
    with record(model) as recorder, torch.no_grad(), recorder.evaluation():
        model(torch.randn(8, 6))
        fails(model, torch.randn(32, 6))
    at = {"signal": "activation", "group": "evaluation/layers"}
    assert [cell(recorder.recording, "example_count", layer=layer, **at) for layer in ("a", "b")] == [8, 8]


@pytest.mark.parametrize("interruption", [RuntimeError, KeyboardInterrupt])
def test_a_pass_that_catches_what_its_own_layer_raised_counts(record, assert_row, monkeypatch, interruption):
    class Catches(Unlucky):
        def forward(self, x):
            try:
                return super().forward(x)
            except interruption:
                return self.b(self.hidden)

    monkeypatch.setattr(TooLarge, "kind", interruption)
    model, x = Catches(), torch.randn(16, 6)
    with record(model) as recorder:
        for _ in range(2):
            model(x).sum().backward()
            recorder.step()
    for step in range(2):
        assert_row(recorder.recording, model.a(x), layer="a", signal="activation", step=step)
        assert_row(recorder.recording, torch.ones(16, 3), layer="b", signal="activation_grad", step=step)


@pytest.mark.parametrize("where", ["outside", "where an exception is handled"])
def test_a_pass_that_returns_none_counts(record, assert_row, where):
    class Keeps(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(6, 3)

        def forward(self, x):
            self.loss = self.linear(x).sum()

    model, x = Keeps(), torch.randn(16, 6)
    with record(model) as recorder:
        try:
            if where != "outside":
                raise ArithmeticError
            model(x)
        except ArithmeticError:
            model(x)
        model.loss.backward()
        recorder.step()
    assert_row(recorder.recording, model.linear(x), layer="linear", signal="activation")
    assert_row(recorder.recording, torch.ones(16, 3), layer="linear", signal="activation_grad")


def test_a_pass_around_the_whole_step_counts(record, assert_row):
    class Trainer(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
            self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.1)

        def forward(self, x):
            self.optimizer.zero_grad()
            self.net(x).square().sum().backward()
            self.optimizer.step()

    torch.manual_seed(3)
    model, x = Trainer(), torch.randn(16, 6)
    net, expected = copy.deepcopy(model.net), []
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(3):
        expected.append(net(x))
        optimizer.zero_grad()
        expected[-1].square().sum().backward()
        optimizer.step()
    with record(model) as recorder:
        for _ in range(3):
            model(x)
    for step, output in enumerate(expected):
        assert_row(recorder.recording, output, layer="net.2", signal="activation", step=step)
        assert_row(recorder.recording, 2 * output, layer="net.2", signal="activation_grad", step=step)
