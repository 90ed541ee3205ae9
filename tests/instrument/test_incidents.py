"""Warnings show the line of the user's own that they are about."""

import inspect
import time
import warnings

import pytest
import torch
from torch import nn

import covshift
from covshift.exceptions import CovshiftWarning
from covshift.instrument import observer


class Integers(nn.Module):
    def forward(self, x):
        return (x > 0).long()


def line_of(function, text):
    lines, start = inspect.getsourcelines(function)
    return start + next(number for number, line in enumerate(lines) if text in line)


def of_a_forward(model):
    with covshift.record(model, every=1):
        model(torch.randn(2, 3))  # here


def of_a_step(model):
    with covshift.record(model, every=1):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        optimizer.step()  # here


def of_the_end(model):
    with covshift.record(model, every=1):  # here
        for _ in range(2):
            model[0](torch.randn(2, 3)).sum().backward()


@pytest.mark.parametrize("loop", [of_a_forward, of_a_step, of_the_end])
def test_a_warning_shows_the_line_that_it_is_about(loop):
    model = nn.Sequential(nn.Linear(3, 3), Integers())
    with pytest.warns(CovshiftWarning) as caught:
        loop(model)
    assert [(one.filename, one.lineno) for one in caught] == [(__file__, line_of(loop, "# here"))]


def test_a_failure_of_covshift_shows_the_line_that_ran_into_it(monkeypatch):
    def broken(*args):
        raise ArithmeticError("planted")

    monkeypatch.setattr(observer.Observer, "_begin", broken)
    with pytest.warns(CovshiftWarning, match="planted") as caught:
        of_a_forward(nn.Sequential(nn.Linear(3, 3)))
    assert [(one.filename, one.lineno) for one in caught] == [(__file__, line_of(of_a_forward, "# here"))]


def of_a_full_memory(model):
    with covshift.record(model, every=1, max_memory=1) as recorder:
        model(torch.randn(2, 3)).sum().backward()
        recorder.step()  # here
    return recorder


def test_a_recording_in_memory_that_is_full_shows_the_users_line_and_is_among_the_recorders_warnings():
    with pytest.warns(CovshiftWarning, match="in memory has reached") as caught:
        recorder = of_a_full_memory(nn.Sequential(nn.Linear(3, 3)))
    assert [(one.filename, one.lineno) for one in caught] == [(__file__, line_of(of_a_full_memory, "# here"))]
    assert recorder.warnings == [str(caught[0].message)]
    assert recorder.recording.attrs["warnings"] == recorder.warnings


def test_a_filter_on_the_users_module_applies():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", category=CovshiftWarning, module=__name__.replace(".", r"\."))
        of_a_forward(nn.Sequential(nn.Linear(3, 3), Integers()))


def of_changed(model, change, **options):
    with covshift.record(model, every=1, **options) as recorder:
        for _ in range(2):
            model(torch.randn(2, 3)).sum().backward()
            recorder.step()
            change(model)
    return recorder


def put_in_place(model):
    model[1] = nn.Sequential(nn.Linear(3, 3), nn.ReLU())


def put_beside(model):
    model.append(nn.Linear(3, 3))


@pytest.mark.parametrize(("change", "name"), [(put_in_place, "1"), (put_beside, "2, 3")])
def test_modules_that_come_after_record_are_named_once(change, name):
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    with pytest.warns(CovshiftWarning, match=rf"modules have come .* beside: {name}; what they give") as caught:
        recorder = of_changed(model, change)
    assert len(caught) == 1
    assert recorder.recording.attrs["warnings"] == [str(caught[0].message)]


def test_modules_that_nobody_asked_for_and_those_that_only_moved_are_not_named():
    assert of_changed(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)), put_in_place, layers="0").warnings == []
    shared = nn.Linear(3, 3)
    model = nn.Sequential(shared, nn.Linear(3, 3), shared)
    assert of_changed(model, lambda model: model.__setitem__(0, model[1])).warnings == []


def test_a_recording_that_was_never_closed_tells_by_its_last_commit_what_it_lacks(tmp_path, monkeypatch):
    monkeypatch.setattr("covshift.store.writer.Writer.close", lambda self: None)
    model = nn.Sequential(nn.Linear(3, 3), Integers())
    with (
        pytest.warns(CovshiftWarning, match="output of torch.int64"),
        covshift.record(model, tmp_path / "run", every=1),
    ):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(70):  # a fold comes after 64 records
            model[0].weight.grad = torch.ones(3, 3)
            model(torch.randn(2, 3))
            optimizer.step()
    for _ in range(100):
        if warned := covshift.open(tmp_path / "run").attrs.get("warnings"):
            break
        time.sleep(0.1)
    assert any("output of torch.int64" in message for message in warned)
