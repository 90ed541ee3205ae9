"""Which layers a recording has, with which units and examples: what the modules of the test were built to have."""

import pytest
import torch
from torch import nn

import covshift
from covshift.exceptions import CovshiftWarning
from covshift.linked import LinkedReLU
from covshift.schema import Status

pytestmark = pytest.mark.usefixtures("seeded")


class Residual(nn.Module):
    def __init__(self, inplace):
        super().__init__()
        self.linear, self.inplace = nn.Linear(6, 6), inplace

    def forward(self, x):
        y = self.linear(x)
        if self.inplace:
            y += x
            return y
        return y + x


@pytest.mark.parametrize("inplace", [False, True])
def test_a_container_is_a_layer_where_its_output_is_no_childs_output(record_training, cell, inplace):
    model = nn.Sequential(Residual(inplace), nn.Linear(6, 3))
    recording = record_training(model, 1)
    assert recording["layers"].layer.values.tolist() == ["(input)", "0.linear", "0", "1"]
    assert cell(recording, "sum", layer="0", signal="activation") != cell(
        recording, "sum", layer="0.linear", signal="activation"
    )


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.act = nn.ReLU()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.b(self.act(self.a(self.act(self.a(x)))))


def test_the_roots_own_output_and_its_input_are_layers_apart(record_training, cell):
    class Doubled(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(6, 3)

        def forward(self, x):
            return 2 * self.linear(x)

    recording = record_training(Doubled(), 1)
    layers = recording["layers"].to_dataset()
    assert layers.layer.values.tolist() == ["(input)", "linear", "(root)"]
    assert layers["unit_count_of_layer"].values.tolist() == [6, 3, 3]
    inner = cell(recording, "sum", layer="linear", signal="activation")
    assert cell(recording, "sum", layer="(root)", signal="activation") == pytest.approx(2 * inner)


def test_repeated_calls_are_sites_of_their_own(record_training):
    recording = record_training(Shared(), 1)
    assert recording["layers"].layer.values.tolist() == ["(input)", "a", "act", "a#1", "act#1", "b"]
    assert recording["layers"]["preactivation_of"].values.tolist() == ["", "", "a", "", "a#1", ""]


def test_a_linked_layer_announces_its_members_and_links_its_units(record_training):
    model = nn.Sequential(nn.Linear(6, 4), LinkedReLU(dim=1), nn.Linear(8, 3))
    recording = record_training(model, 1)
    layers = recording["layers"].to_dataset()
    assert layers["linkage_members"].sel(layer="1").item() == 2
    units = recording["units"].to_dataset()
    mine = units["layer_index"].values == list(layers.layer.values).index("1")
    assert units["linked_unit"].values[mine].tolist() == [0, 1, 2, 3, 0, 1, 2, 3]


def test_an_axis_that_is_not_the_batch_is_named_once_and_recorded_without_units(record_training, cell):
    class Folds(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.outer = nn.Linear(3, 3), nn.Linear(6, 3)

        def forward(self, x):
            return self.outer(self.inner(x.reshape(-1, 3)).reshape(-1, 6))

    with pytest.warns(CovshiftWarning, match=r"layer 'inner': axis 0 of its output \(32, 3\) is not the batch of 16"):
        recording = record_training(Folds(), 2)
    assert cell(recording, "status", layer="inner", signal="activation") == Status.AXIS_UNKNOWN
    assert cell(recording, "example_count", layer="inner", signal="activation") == 0
    assert cell(recording, "count", layer="inner", signal="activation") == 96


def test_a_single_example_without_a_batch_axis_is_recorded_without_examples(cell):
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU())
    with covshift.record(model, every=1) as recorder:
        model(torch.randn(2, 6, 6)).sum().backward()
        recorder.step()
    assert cell(recorder.recording, "count", layer="0", signal="activation") == 4 * 4 * 4
    assert cell(recorder.recording, "example_count", layer="0", signal="activation") == 0


def test_stock_transformer_layers_with_functional_activations_are_named_with_the_way_out():
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    with (
        pytest.warns(CovshiftWarning, match=r"not seen in \(root\): functional=True records them"),
        covshift.record(layer, every=1),
    ):
        pass
    with (
        pytest.warns(
            CovshiftWarning, match="called self_attn.out_proj: unused, .* or used functionally through their weights"
        ),
        covshift.record(layer, every=1, functional=True) as recorder,
    ):
        layer(torch.randn(2, 3, 8)).sum().backward()
        recorder.step()
    assert len(recorder.warnings) == 1
    assert "(root):relu" in recorder.recording["layers"].layer.values
