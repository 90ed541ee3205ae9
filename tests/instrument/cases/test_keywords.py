"""Calls by keyword: inputs, preactivations and the batch are those of the same call by position."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from covshift.schema import Status


class Named(nn.Module):
    """Calls its activation, and is called, by keyword or by position."""

    def __init__(self, *, by_keyword, inplace=False):
        super().__init__()
        torch.manual_seed(3)
        self.first, self.act, self.head = nn.Linear(6, 8), nn.ReLU(inplace=inplace), nn.Linear(8, 3)
        self.by_keyword = by_keyword

    def forward(self, x, shift=None):
        h = self.first(x) + (0 if shift is None else shift)
        return self.head(self.act(input=h) if self.by_keyword else self.act(h))


def rows(recording, *, layer, signal):
    layers = recording["layers"].to_dataset()
    return {name: layers[name].sel(layer=layer, signal=signal).values.tolist() for name in ("count", "sum", "status")}


@pytest.mark.parametrize("inplace", [False, True])
def test_an_activation_called_by_keyword_has_the_preactivation_of_one_called_by_position(record, assert_row, inplace):
    x, recordings = torch.randn(16, 6), []
    for by_keyword in (False, True):
        model = Named(by_keyword=by_keyword, inplace=inplace)
        with record(model) as recorder:
            model(x).sum().backward()
            recorder.step()
        recordings.append(recorder.recording)
    plain, found = recordings
    for signal in ("preactivation", "preactivation_grad", "activation", "activation_grad"):
        assert rows(found, layer="act", signal=signal) == rows(plain, layer="act", signal=signal)
    z = model.first(x)
    assert_row(found, z, layer="act", signal="preactivation")
    dead = found["layers"]["structural_zero_count"].sel(step=0, layer="act", signal="preactivation")
    assert int(dead) == int((z <= 0).sum())


def test_a_model_called_by_keyword_has_its_inputs_and_its_batch(record, assert_row, cell):
    model, x, shift = Named(by_keyword=True), torch.randn(16, 6), torch.randn(16, 8)
    with record(model) as recorder:
        model(shift=shift, x=x).sum().backward()
        recorder.step()
    assert_row(recorder.recording, x, layer="(input):x", signal="input")
    assert_row(recorder.recording, shift, layer="(input):shift", signal="input")
    assert cell(recorder.recording, "example_count", layer="(input):x", signal="input") == 16


def test_keywords_beside_positions_are_inputs_too(record, assert_row):
    model, x, shift = Named(by_keyword=False), torch.randn(16, 6), torch.randn(16, 8)
    with record(model) as recorder:
        model(x, shift=shift).sum().backward()
        recorder.step()
    assert_row(recorder.recording, x, layer="(input)", signal="input")
    assert_row(recorder.recording, shift, layer="(input):shift", signal="input")


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(7, 6), nn.Linear(6, 3)

    def forward(self, *, tokens, positions):
        return self.head((self.embed(tokens) + positions).reshape(-1, 6))


@pytest.mark.parametrize("agree", [True, False])
def test_the_batch_of_a_model_called_by_keyword_is_known_where_all_keywords_agree_on_it(record, status, agree):
    model, tokens = Tokens(), torch.randint(7, (4, 5))
    positions = torch.randn(4 if agree else 1, 5, 6)
    known = {"warned": ("layer 'head': axis 0 of its output (20, 3) is not the batch of 4",)} if agree else {}
    with record(model, **known) as recorder:
        model(tokens=tokens, positions=positions).sum().backward()
        recorder.step()
    expected = Status.AXIS_UNKNOWN if agree else Status.OK
    assert status(recorder.recording, "head", "activation") == expected


class CheckpointedByKeyword(nn.Module):
    def __init__(self, how):
        super().__init__()
        torch.manual_seed(3)
        self.first, self.act, self.head, self.how = nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3), how

    def body(self, h):
        return self.act(input=2 * h)

    def forward(self, x):
        h = self.first(x)
        return self.head(self.body(h) if self.how == "plain" else checkpoint(self.body, h, use_reentrant=True))


def test_the_gradient_of_a_preactivation_given_by_keyword_is_found_again_after_a_checkpoint(record, layers_equal):
    x, recordings = torch.randn(16, 6), []
    for how in ("plain", "checkpoint"):
        model = CheckpointedByKeyword(how)
        with record(model) as recorder:
            F.cross_entropy(model(x), torch.zeros(16, dtype=torch.long)).backward()
            recorder.step()
        recordings.append(recorder.recording)
    layers_equal(*recordings)
