"""Which axis counts examples. Oracle: the shapes of the tensors that the test itself feeds."""

import re

import pytest
import torch
import xarray as xr
from torch import nn

import covshift
from covshift.exceptions import CovshiftWarning
from covshift.schema import Status


def examples(recording, layer, signal="activation"):
    return int(recording["layers"]["example_count"].sel(step=0, layer=layer, signal=signal))


def once(model, *inputs, **options):
    with covshift.record(model, every=1, **options) as recorder:
        for x in inputs:
            model(x).sum().backward()
        recorder.step()
    return recorder.recording


@pytest.mark.parametrize("tokens", [5, 3])
def test_examples_are_counted_on_the_axis_that_was_named(tokens):
    """(tokens, batch, units), also where both are of one length and no check could tell them apart."""
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    recording = once(model, torch.randn(tokens, 3, 4), example_axis=1)
    assert [examples(recording, layer) for layer in ("0", "1", "2")] == [3, 3, 3]
    units = recording["units"].to_dataset().sel(step=0, signal="activation")
    assert units["unit_active_examples"].values[units["layer_index"].values == 1].tolist() == [3] * 6


def test_a_stock_encoder_with_its_sequence_first_has_units_in_every_layer():
    layer = nn.TransformerEncoderLayer(8, 2, 16, activation=nn.GELU(), dropout=0.0)
    with pytest.warns(CovshiftWarning, match="self_attn.out_proj"):
        recording = once(layer, torch.randn(7, 3, 8), example_axis=1)
    statuses = recording["layers"]["status"].sel(step=0, signal="activation", layer=["linear1", "activation", "norm2"])
    assert (statuses == Status.OK).all()
    assert examples(recording, "linear2") == 3


class Flattens(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 6)

    def forward(self, x):
        return self.inner(x.flatten(0, 1)).sum()


def test_a_layer_whose_axis_is_not_the_batch_in_a_later_call_counts_no_examples_there():
    """(8, 1, 4) flattens to 8 rows, (8, 7, 4) to 56, which are no examples."""
    recording = once(Flattens(), torch.randn(8, 1, 4), torch.randn(8, 7, 4))
    assert examples(recording, "inner") == 8
    assert int(recording["layers"]["count"].sel(step=0, layer="inner", signal="activation")) == 64 * 6
    assert int(recording["layers"]["status"].sel(step=0, layer="inner", signal="activation")) == Status.AXIS_UNKNOWN


def test_what_mixes_examples_has_no_units_by_any_name_and_the_warning_offers_none():
    """The tokens that an expert is given are no examples, and no axis of theirs counts any."""
    for named in ({}, {"inner": 1}):
        with pytest.warns(CovshiftWarning, match=r"where examples end is not known.*example_axis=$") as said:
            recording = once(Flattens(), torch.randn(8, 7, 4), unit_axis=named)
        assert not any("unit_axis=" in str(one.message) for one in said)
        layers = recording["layers"]["layer"].values.tolist()
        assert layers.index("inner") not in recording["units"]["layer_index"].values


def test_an_axis_that_the_input_lacks_is_named():
    with pytest.warns(CovshiftWarning, match=r"example_axis=9: the model's input \(8, 4\) has no such axis"):
        once(nn.Linear(4, 2), torch.randn(8, 4), example_axis=9)


@pytest.mark.parametrize(("name", "axis"), [("0", 2), ("0", -3), ("*", 5)])
def test_a_unit_axis_that_a_layer_lacks_is_named_with_its_shape_and_costs_no_row(name, axis):
    model, x = nn.Sequential(nn.Linear(4, 2)), torch.randn(8, 4)
    message = rf"unit_axis=.'{re.escape(name)}': {axis}.: layer '0' has an output of shape \(8, 2\), expected .* to 1"
    with pytest.warns(CovshiftWarning) as said:
        recording = once(model, x, unit_axis={name: axis})
    assert sum(re.match(message, str(one.message)) is not None for one in said) == 1
    assert not any("report this" in str(one.message) for one in said)
    xr.testing.assert_equal(recording["layers"].to_dataset(), once(model, x)["layers"].to_dataset())


def test_the_batch_is_that_of_the_first_tensor_whatever_its_type():
    class Embeds(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.head = nn.Embedding(9, 4), nn.Linear(4, 2)

        def forward(self, ids, mask):
            return self.head(self.table(ids) * mask)

    model = Embeds()
    with (
        pytest.warns(CovshiftWarning, match=r"'\(input\):1': axis 0 .* is not the batch of 8"),
        covshift.record(model, every=1) as recorder,
    ):
        model(torch.randint(9, (8, 5)), torch.ones(1, 5, 1)).sum().backward()
        recorder.step()
    assert examples(recorder.recording, "head") == 8
    assert len(recorder.warnings) == 1
