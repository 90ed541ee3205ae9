"""Arguments that would record nothing, or too much, are refused with the way out."""

import re

import pytest
import torch
from torch import nn

import covshift
from covshift.exceptions import InvalidArgumentError


def wide(modules):
    return nn.Sequential(*(nn.Identity() for _ in range(modules)))


def test_a_model_of_more_modules_than_max_layers_is_refused_with_its_number_and_the_way_out():
    with pytest.raises(InvalidArgumentError, match=r"(?s)1[23].*layers=") as raised:
        covshift.record(wide(12), max_layers=10)
    assert "max_layers" in str(raised.value)


def test_max_layers_is_2000_by_default(tmp_path):
    with pytest.raises(InvalidArgumentError, match=r"(?s)2\D?50[01].*layers="):
        covshift.record(wide(2500), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []
    covshift.record(wide(1500))


def test_a_selection_within_max_layers_is_not_refused(record):
    model = nn.Sequential(nn.Linear(6, 3), wide(50))
    with record(model, layers="0", max_layers=1) as recorder:
        model(torch.randn(4, 6))
        recorder.step()
    assert recorder.recording["layers"].layer.values.tolist() == ["0"]


@pytest.mark.parametrize("entry", ["encodr.layers.0", re.compile("encodr"), ["encoder*", "encodr.*"]])
def test_a_selection_that_matches_nothing_lists_near_names(build, entry):
    with pytest.raises(InvalidArgumentError, match=r"layers=.*matches no module.*near names: .*encoder"):
        covshift.record(build("transformer"), layers=entry)


def test_while_paused_nothing_is_recorded_and_steps_count(build, train, record):
    with record(model := build("perceptron")) as recorder:
        train(model)
        with recorder.pause():
            train(model, 2)
        train(model)
    assert recorder.step_count == 4
    assert recorder.recording["layers"].step.values.tolist() == [0, 3]
