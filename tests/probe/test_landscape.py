"""The loss along the gradient of a quadratic is known in closed form."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from covshift.exceptions import InvalidArgumentError
from covshift.probe import loss_landscape


class Point(nn.Module):
    """A point, whose loss is a quadratic form."""

    def __init__(self, values):
        super().__init__()
        self.values = nn.Parameter(torch.tensor(values, dtype=torch.float64))

    def forward(self, form):
        return self.values @ form @ self.values / 2


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**16), st.lists(st.floats(1e-3, 2), min_size=1, max_size=4))
def test_on_a_quadratic_everything_is_in_closed_form(seed, sizes):
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(3, 3))
    form, theta = root @ root.T, rng.normal(size=3)
    result = loss_landscape(Point(theta.tolist()), lambda loss: loss, torch.from_numpy(form), step_sizes=sizes)
    gradient = form @ theta
    for size, row in zip(sizes, range(len(sizes)), strict=True):
        there = theta - size * gradient
        found = result.isel(step_size=row)
        assert float(found.loss) == pytest.approx(there @ form @ there / 2, rel=1e-9)
        assert float(found.loss_change) == pytest.approx(
            there @ form @ there / 2 - theta @ form @ theta / 2, rel=1e-6, abs=1e-9
        )
        assert float(found.gradient_change) == pytest.approx(size * np.linalg.norm(form @ gradient), rel=1e-6)
        # Never above the largest curvature.
        assert float(found.smoothness) <= np.linalg.eigvalsh(form)[-1] * (1 + 1e-6)
    assert float(result.gradient_norm) == pytest.approx(np.linalg.norm(gradient))


def test_a_point_whose_loss_is_not_finite_has_no_numbers():
    model = Point([1.0])
    result = loss_landscape(
        model, lambda loss: torch.exp(loss * 1e3 - 500), torch.eye(1, dtype=torch.float64), step_sizes=[1e-4, 1e3]
    )
    assert math.isfinite(result.loss[0])
    assert result.isel(step_size=1).to_array().sel(variable=["loss", "loss_change", "gradient_change"]).isnull().all()


def test_a_flat_point_has_no_smoothness():
    result = loss_landscape(Point([0.0]), lambda loss: loss, torch.eye(1, dtype=torch.float64), step_sizes=[1.0])
    assert float(result.gradient_change[0]) == 0
    assert math.isnan(result.smoothness[0])


@pytest.mark.parametrize("kind", ["convolutional", "transformer", "recurrent"])
def test_the_model_is_left_as_it_was(build, batch, train, photograph, assert_same, kind):
    model = build(kind)
    train(model)
    given_batch = batch(model)
    before = photograph(model)
    loss_landscape(model, F.cross_entropy, given_batch, step_sizes=[0.1, 1.0])
    assert_same(before, photograph(model))


@pytest.mark.parametrize("sizes", [[], [0.0], [-1.0], [float("nan")]])
def test_step_sizes_that_are_none_are_named(sizes):
    with pytest.raises(InvalidArgumentError, match=r"step_sizes=.*expected at least one, each finite and above 0"):
        loss_landscape(Point([1.0]), lambda loss: loss, torch.eye(1, dtype=torch.float64), step_sizes=sizes)


def test_a_model_without_parameters_is_named():
    with pytest.raises(InvalidArgumentError, match=r"model: has no trainable parameter"):
        loss_landscape(nn.Tanh(), lambda output: output.sum(), torch.ones(1), step_sizes=[1.0])
