"""Passes of evaluation are records of their own, apart from those of training."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import covshift
from covshift import schema
from covshift.exceptions import CovshiftWarning
from covshift.instrument import rows
from covshift.schema import Status

pytestmark = pytest.mark.usefixtures("seeded")


def convolutional():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 3),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.Linear(6, 3),
    )


def test_an_evaluation_pass_is_one_record_of_its_own(batch, train, cell):
    model = convolutional()
    x, _ = batch(model, 24)
    with covshift.record(model, every=2) as recorder:
        train(model, 3)
        model.eval()
        with torch.no_grad(), recorder.evaluation():
            for part in x.split(10):
                model(part)
        model.train()
        train(model, 1)
        recording = recorder.recording
    rows = recording["evaluation/layers"].to_dataset()
    assert rows.step.values.tolist() == [3]
    assert rows["mode"].values.tolist() == [schema.Mode.EVAL]
    assert rows["source"].values.tolist() == [schema.Source.EVALUATION]
    assert cell(recording, "example_count", layer="0", signal="activation", step=3, group="evaluation/layers") == 24
    status = cell(recording, "status", layer="0", signal="activation_grad", step=3, group="evaluation/layers")
    assert status == Status.NO_GRAD_FORWARD
    assert recording["layers"].step.values.tolist() == [0, 2]


def test_of_evaluation_passes_at_one_step_the_first_is_kept_with_one_warning_and_nothing_raises(perceptron, batch):
    model = perceptron()
    x = batch(model)[0]
    with (
        pytest.warns(CovshiftWarning, match="already recorded after 0 steps; this one is not recorded") as caught,
        covshift.record(model, every=1) as recorder,
    ):
        for rows in (1, 2, 3):
            with recorder.evaluation():
                model(x[:rows])
    assert len(caught) == 1
    assert recorder.step_count == 0
    recording = recorder.recording
    assert recording["layers"].sizes["step"] == 0
    counts = recording["evaluation/layers"]["example_count"].sel(layer="0", signal="activation")
    assert counts.values.tolist() == [1]


def test_an_evaluation_pass_inside_a_pass_is_part_of_it(perceptron, batch):
    model = perceptron()
    x = batch(model)[0]
    with covshift.record(model, every=1) as recorder, recorder.evaluation():
        model(x[:1])
        with recorder.evaluation():
            model(x[:2])
        model(x[:3])
    counts = recorder.recording["evaluation/layers"]["example_count"].sel(layer="0", signal="activation")
    assert counts.values.tolist() == [6]


def test_a_validation_batch_without_no_grad_does_not_mix_with_training(perceptron, batch, cell):
    model = perceptron()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with covshift.record(model, every=1) as recorder:
        model.eval()
        model(batch(model, 5)[0])
        model.train()
        x, y = batch(model)
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        recording = recorder.recording
    assert cell(recording, "example_count", layer="0", signal="activation") == 16


def test_counts_that_one_record_cannot_tell_cost_units_and_histograms_of_those_layers_alone(monkeypatch):
    monkeypatch.setattr(rows, "MOST_COUNTED", 50)
    net = nn.Sequential(nn.Conv1d(1, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[[-1.0]], [[-2.0]]]))
        net[0].bias.zero_()
    with covshift.record(net) as recorder, pytest.warns(CovshiftWarning) as said:
        with torch.no_grad(), recorder.evaluation():
            for _ in range(2):
                net(torch.ones(10, 1, 8))
        recording = recorder.recording
    beginnings = [str(one.message).partition(" elements of a unit, or of a bin")[0] for one in said]
    assert beginnings == [f"layer '{name}': more than 4,294,967,295" for name in "012"]
    assert "fewer examples in one evaluation" in recorder.warnings[0]
    layers = recording["evaluation/layers"]["count"].isel(step=0).sel(layer=["0", "1", "2", "3"], signal="activation")
    assert layers.values.tolist() == [320, 320, 320, 60]
    histograms = recording["evaluation/histograms"]["value_histogram"].isel(step=0).sel(value_signal="activation")
    # Of each of four groups of examples: 40 elements in two bins of the convolution, 80 zeros of what comes after it.
    binned = histograms.sel(layer=["0", "1", "2", "3"]).sum(["group", "value_bin"])
    assert binned.values.tolist() == [320, 0, 0, 60]
    units = recording["evaluation/units"]["unit_count"].isel(step=0).sel(signal="activation")
    owner = recording["layers"].layer.values[recording["evaluation/units"]["layer_index"].values]
    counts = {name: set(units.values[owner == name].tolist()) for name in "0123"}
    assert counts == {"0": {0}, "1": {0}, "2": {20}, "3": {20}}
