"""Paired movement against numpy on raw outputs, and intervals that cover."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from covshift.exceptions import InvalidArgumentError
from covshift.probe import paired_movement


def units_of(result, layer):
    place = result.layer.values.tolist().index(layer)
    return result.isel(unit=result.layer_index == place)


def two_states(model):
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return before


def test_numbers_are_those_of_raw_outputs_by_numpy():
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(48, 2))
    x = torch.randn(12, 1, 6, 6)
    before = two_states(model)
    result = paired_movement(model, x, before=before)
    with torch.no_grad():
        later = model[:2](x).double().numpy()
        model.load_state_dict(before)
        h = model[:2](x).double().numpy()
    assert result.layer.values.tolist() == ["0", "1", "2", "3"]
    sd = h.std(axis=(0, 2, 3))
    scaled = (later - h) / sd[:, None, None]
    found = units_of(result, "1")
    by_example = scaled.mean(axis=(2, 3))
    np.testing.assert_allclose(found.mean_shift, by_example.mean(0), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(found.standard_error, by_example.std(0, ddof=1) / np.sqrt(12), rtol=1e-5)
    movement = np.sqrt((scaled**2).mean(axis=(1, 2, 3))).mean()
    assert float(result.movement.sel(layer="1")) == pytest.approx(movement, rel=1e-5)
    of_h, of_later = (v.mean(axis=(2, 3)).std(0, ddof=1) / sd / np.sqrt(12) for v in (h, later))
    np.testing.assert_allclose(found.unpaired_standard_error, np.hypot(of_h, of_later), rtol=1e-5)
    assert found.unit_in_layer.values.tolist() == [0, 1, 2]
    inside = (result.movement_low <= result.movement) & (result.movement <= result.movement_high)
    assert inside.all()


def test_pairing_takes_away_what_the_examples_differ_by():
    model = nn.Linear(4, 8)
    before = copy.deepcopy(model.state_dict())
    model.bias.data += 0.01
    result = paired_movement(model, torch.randn(64, 4), before=before)
    # Every example moves by the very same amount: the difference has no error, the unpaired one that of 64 examples.
    assert (result.standard_error < 1e-5).all()
    np.testing.assert_allclose(result.unpaired_standard_error, np.sqrt(2 / 63), rtol=1e-2)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**16), st.floats(-2, 2).filter(lambda c: abs(c) > 1e-3))
def test_moving_every_unit_by_its_own_sd_is_a_shift_of_so_many_sds(seed, sds):
    torch.manual_seed(seed)
    model, x = nn.Linear(3, 5).double(), torch.randn(20, 3, dtype=torch.float64)
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        model.bias += sds * model(x).std(0, correction=0)
    result = paired_movement(model, x, before=before)
    np.testing.assert_allclose(result.mean_shift, sds, rtol=1e-9)
    np.testing.assert_allclose(result.movement, abs(sds), rtol=1e-9)


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    # z' - z = (w' - w) x with x normal: the mean shift in sds is exactly 0 over the population.
    rng = torch.Generator().manual_seed(11)
    covered = []
    for _ in range(100):
        model = nn.Linear(1, 1, bias=False)
        before = {"weight": torch.ones(1, 1)}
        model.weight.data.fill_(1.5)
        x = torch.randn(40, 1, generator=rng)
        result = paired_movement(model, x, before=before, level=0.9, resamples=399)
        covered.append(float(result.mean_shift_low[0]) <= 0 <= float(result.mean_shift_high[0]))
    # Exact binomial 99.9 % band of 100 draws at 0.88, the coverage of a percentile interval of 40 examples.
    assert 76 <= sum(covered) <= 97


def test_examples_are_resampled_and_not_positions():
    model = nn.Conv1d(1, 1, 1)
    before = copy.deepcopy(model.state_dict())
    model.weight.data *= 2
    x = torch.randn(16, 1, 1).expand(16, 1, 50).contiguous()
    one = paired_movement(model, x[..., :1], before=before)
    many = paired_movement(model, x, before=before)
    # Fifty copies of one position are no more evidence than one.
    np.testing.assert_allclose(
        many.mean_shift_high - many.mean_shift_low, one.mean_shift_high - one.mean_shift_low, rtol=1e-5
    )


def test_constant_units_and_single_examples_have_no_numbers():
    model = nn.Linear(3, 2)
    model.weight.data[0] = 0
    before = copy.deepcopy(model.state_dict())
    model.bias.data += 1
    result = paired_movement(model, torch.randn(6, 3), before=before)
    assert np.isnan(result.mean_shift[0])
    assert np.isfinite(result.mean_shift[1])
    assert np.isfinite(result.movement[0])
    alone = paired_movement(model, torch.randn(1, 3), before=before)
    assert alone.movement.isnull().all()
    assert alone.standard_error.isnull().all()
    assert alone.movement_low.isnull().all()


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("kind", ["convolutional", "transformer", "recurrent"])
def test_the_model_is_left_as_it_was_and_its_outputs_move(build, batch, train, photograph, assert_same, kind, mode):
    model = build(kind)
    earlier = copy.deepcopy(model.state_dict())
    train(model, steps=2)
    given_batch = batch(model)
    before = photograph(model)
    result = paired_movement(model, given_batch, before=earlier, mode=mode)
    assert_same(before, photograph(model))
    assert float(result.movement[-1]) > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"level": 1.0}, r"level=1.0: expected a number between 0 and 1"),
        ({"resamples": 0}, r"resamples=0: expected a whole number from 1"),
        ({"example_axis": 2}, r"example_axis=2: the first input has shape \(5, 3\)"),
        ({"layers": "head"}, r"layers='head': matches no module"),
    ],
)
def test_bad_arguments_are_named(options, message):
    model = nn.Sequential(nn.Linear(3, 2))
    with pytest.raises(InvalidArgumentError, match=message):
        paired_movement(model, torch.randn(5, 3), before=copy.deepcopy(model.state_dict()), **options)


def test_a_model_whose_outputs_have_no_example_axis_is_named():
    model = nn.Flatten(0)
    with pytest.raises(
        InvalidArgumentError, match=r"no chosen layer has an output with 5 examples on its example axis"
    ):
        paired_movement(model, torch.randn(5, 3), before={})


def test_examples_may_lie_on_another_axis():
    model = nn.GRU(3, 4)
    before = two_states(model)
    x = torch.randn(6, 10, 3)
    result = paired_movement(model, x, before=before, example_axis=1)
    first = nn.GRU(3, 4, batch_first=True)
    first.load_state_dict(model.state_dict())
    other = paired_movement(first, x.transpose(0, 1), before=before)
    np.testing.assert_allclose(result.mean_shift, other.mean_shift, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(result.standard_error, other.standard_error, rtol=1e-5)
    assert result.sizes["layer"] == 1
