"""Oracle: float64 norms by numpy over copies taken by the test."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from covshift.exceptions import InvalidArgumentError
from covshift.instrument import parameters
from covshift.instrument.parameters import ParameterMeter
from covshift.summary.norms import stride


def stepped(model, *, updates="sampled", gradients=None):
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    for index, parameter in enumerate(model.parameters()):
        parameter.grad = torch.randn_like(parameter) if gradients is None else gradients[index]
    before = [p.detach().clone() for p in model.parameters()]
    meter = ParameterMeter(model, updates=updates)
    meter.before_step(optimizer)
    optimizer.step()
    meter.after_step(optimizer)
    return meter.row(), before, [p.detach().clone() for p in model.parameters()]


def norm(tensor):
    return np.linalg.norm(tensor.double().numpy().ravel())


def test_norms_are_those_of_the_weights_gradients_and_the_true_update():
    model = nn.Linear(5, 3)
    row, before, after = stepped(model)
    np.testing.assert_allclose(row["weight_norm"], [norm(p) for p in before], rtol=1e-12)
    np.testing.assert_allclose(row["gradient_norm"], [norm(p.grad) for p in model.parameters()], rtol=1e-12)
    changes = [norm(a.double() - b.double()) for a, b in zip(after, before, strict=True)]
    np.testing.assert_allclose(row["update_norm"], changes, rtol=1e-12)
    assert row["sampled_share"].tolist() == [1.0, 1.0]


def test_tiny_and_huge_gradients_keep_their_norm():
    model = nn.Linear(2, 2, bias=False)
    row, *_ = stepped(model, gradients=[torch.full((2, 2), 1e-23)])
    assert row["gradient_norm"][0] == pytest.approx(2e-23, rel=1e-6)
    row, *_ = stepped(model, gradients=[torch.full((2, 2), 1e19)])
    assert row["gradient_norm"][0] == pytest.approx(2e19, rel=1e-6)


def test_a_parameter_without_gradient_is_told_apart_from_one_with_a_zero_gradient():
    model = nn.Linear(2, 2)
    row, *_ = stepped(model, gradients=[None, torch.zeros(2)])
    assert row["gradient_measured"].tolist() == [0, 1]
    assert np.isnan(row["gradient_norm"][0])
    assert row["gradient_norm"][1] == 0
    assert row["gradient_zero_count"].tolist() == [0, 2]


def test_non_finite_gradients_are_counted():
    model = nn.Linear(2, 2, bias=False)
    gradient = torch.tensor([[float("nan"), float("inf")], [1.0, 0.0]])
    row, *_ = stepped(model, gradients=[gradient])
    assert row["gradient_nonfinite_count"].tolist() == [2]
    assert row["gradient_zero_count"].tolist() == [1]


def test_sparse_gradients_are_summed_over_repeated_rows_first():
    model = nn.Embedding(4, 2, sparse=True)
    model(torch.tensor([1, 1])).sum().backward()
    meter = ParameterMeter(model)
    optimizer = torch.optim.SparseAdam(model.parameters())
    meter.before_step(optimizer)
    meter.after_step(optimizer)
    row = meter.row()
    assert row["gradient_norm"][0] == pytest.approx(np.sqrt(8))
    assert row["gradient_zero_count"].tolist() == [6]


def test_large_parameters_are_sampled_within_the_estimator_error(monkeypatch):
    monkeypatch.setattr(parameters, "EXACT_UP_TO", 1_000)
    monkeypatch.setattr(parameters, "SAMPLE_SIZE", 2_000)
    torch.manual_seed(0)
    model = nn.Linear(200, 100, bias=False)
    row, before, after = stepped(model)
    # Every 11th element: 10 has factors in common with 20,000.
    assert row["sampled_share"][0] == pytest.approx(1 / 11, rel=1e-3)
    exact = norm(after[0].double() - before[0].double())
    assert row["update_norm"][0] == pytest.approx(exact, rel=0.05)
    row, before, after = stepped(model, updates="exact")
    assert row["sampled_share"][0] == 1
    assert row["update_norm"][0] == pytest.approx(norm(after[0].double() - before[0].double()), rel=1e-12)


@pytest.mark.parametrize("axis", [0, 1], ids=["units", "features"])
@pytest.mark.parametrize("dead", [0.0, 0.9, 0.99])
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_sampling_meets_dead_rows_and_columns_as_often_as_live_ones(axis, dead, optimizer):
    torch.manual_seed(0)
    model = nn.Linear(2048, 1024, bias=False)
    shape = [1, 1]
    shape[axis] = model.weight.shape[axis]
    live = (torch.arange(shape[axis]) >= dead * shape[axis]).float().reshape(shape)
    before = model.weight.detach().clone()
    meter, stepping = ParameterMeter(model), optimizer(model.parameters(), lr=0.1)
    model.weight.grad = torch.randn(1024, 2048) * live
    meter.before_step(stepping)
    stepping.step()
    meter.after_step(stepping)
    row = meter.row()
    assert row["sampled_share"][0] == pytest.approx(1 / 33, rel=1e-3)
    assert row["update_norm"][0] == pytest.approx(norm((model.weight.detach() - before).double()), rel=0.05)


@settings(max_examples=30, deadline=None)
@given(
    shape=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    at_most=st.integers(2, 500),
)
def test_a_stride_meets_every_place_of_every_axis_equally_often(shape, at_most):
    size = math.prod(shape)
    step = stride(size, at_most)
    picked = np.unravel_index(np.arange(0, size, step), shape)
    assert len(picked[0]) <= at_most
    # A lattice of n points meets a place of the last axis n / length times, but for the round it is in.
    counts = np.bincount(picked[-1], minlength=shape[-1])
    assert counts.max() - counts.min() <= 1
    assert step == 1 or math.gcd(step, size) == 1


def test_updates_can_be_off_and_are_then_not_measured():
    row, *_ = stepped(nn.Linear(2, 2), updates="off")
    assert np.isnan(row["update_norm"]).all()


def test_an_unknown_way_to_measure_updates_is_named():
    with pytest.raises(InvalidArgumentError, match=r"updates='some': expected one of exact, sampled, off"):
        ParameterMeter(nn.Linear(1, 1), updates="some")


def test_the_norm_of_a_complex_parameter_counts_both_parts():
    model = nn.Linear(2, 1, bias=False, dtype=torch.complex64)
    with torch.no_grad():
        model.weight[:] = torch.tensor([[3j, 4]])
    row, before, after = stepped(model)
    assert row["weight_norm"][0] == pytest.approx(5)
    assert row["update_norm"][0] == pytest.approx(np.linalg.norm((after[0] - before[0]).numpy()), rel=1e-5)


def test_a_parameter_whose_memory_was_freed_reads_nan_and_is_not_read():
    model = nn.Linear(500, 500)
    model.weight.requires_grad_(False).untyped_storage().resize_(0)
    meter = ParameterMeter(model, updates="exact")
    meter.before_step(torch.optim.SGD([model.bias], lr=0.1))
    meter.after_step(torch.optim.SGD([model.bias], lr=0.1))
    weight, bias = meter.row()["weight_norm"]
    assert math.isnan(weight)
    assert bias == pytest.approx(norm(model.bias.detach()), rel=1e-12)
