"""Oracle: summaries of the unscaled tensors themselves."""

import numpy as np
import pytest
import torch

from covshift.grid import GRADIENTS, VALUES
from covshift.instrument.block import ACTIVATION, ACTIVATION_GRAD
from covshift.instrument.scaling import LossScale, moved, unscaled
from covshift.summary.table import Reading, Table


def table_of(values, gradients):
    table = Table(histograms=True, units=True)
    table.add(ACTIVATION, values, Reading(unit_axis=1, example_axis=0, unit_count=3, grid=VALUES, groups=4))
    table.add(ACTIVATION_GRAD, gradients, Reading(unit_axis=1, example_axis=0, unit_count=3, grid=GRADIENTS, groups=1))
    return table.read()


def tensors():
    torch.manual_seed(0)
    return torch.randn(8, 3), torch.randn(8, 3).relu()


@pytest.mark.parametrize("scale", [1.0, 2.0**16, 0.5])
def test_gradients_under_a_power_of_two_are_recorded_as_without_it(scale):
    values, gradients = tensors()
    found, expected = unscaled(table_of(values, gradients * scale), scale), table_of(values, gradients)
    np.testing.assert_array_equal(found.rows, expected.rows)
    for key in (ACTIVATION, ACTIVATION_GRAD):
        np.testing.assert_array_equal(found.histograms[key].counts, expected.histograms[key].counts)
        np.testing.assert_array_equal(found.units[key].m2, expected.units[key].m2)
        np.testing.assert_array_equal(found.units[key].max, expected.units[key].max)


def test_under_another_scale_moments_are_unscaled_and_gradient_histograms_left_out():
    values, gradients = tensors()
    found, expected = unscaled(table_of(values, gradients * 3), 3.0), table_of(values, gradients)
    np.testing.assert_allclose(found.rows, expected.rows, rtol=1e-6)
    assert set(found.histograms) == {ACTIVATION}


@pytest.mark.parametrize(("size", "scale", "left"), [(1e300, 2.0**-100, np.inf), (1e-300, 2.0**100, 0.0)])
def test_gradients_that_unscaling_takes_beyond_float64_are_infinite_or_zero_and_nothing_is_raised(size, scale, left):
    table = table_of(tensors()[0], torch.full((8, 3), size, dtype=torch.float64))
    with np.errstate(all="raise"):
        found = unscaled(table, scale)
    row = found.summary(ACTIVATION_GRAD)
    assert (row.moments.mean, row.min, row.max) == (left, left, left)
    assert found.units[ACTIVATION_GRAD].mean.tolist() == found.units[ACTIVATION_GRAD].max.tolist() == [left] * 3


def test_values_that_leave_the_grid_join_its_outermost_bins():
    counts = np.zeros((1, GRADIENTS.size), np.int64)
    for value, number in ((2.0**-126, 1), (-(2.0**-120), 2), (0.0, 4), (np.inf, 8), (np.nan, 16), (1.0, 32)):
        counts[0, GRADIENTS.ids(np.float32(value))] += number
    smaller = moved(counts, GRADIENTS, 5)
    assert smaller.sum() == counts.sum()
    assert smaller[0, GRADIENTS.zero] == 4
    assert smaller[0, GRADIENTS.zero + 1] == 1
    assert smaller[0, GRADIENTS.ids(np.float32(-(2.0**-125)))] == 2
    assert smaller[0, GRADIENTS.ids(np.float32(2.0**-5))] == 32
    assert smaller[0, GRADIENTS.nan] == 16
    assert smaller[0, GRADIENTS.ids(np.float32(np.inf))] == 8


class Scaler:
    def __init__(self, *scales):
        self.scales = list(scales)

    def get_scale(self):
        return self.scales[0]


def test_a_scale_that_falls_between_two_forward_passes_tells_of_a_skipped_step():
    scaler = Scaler(8.0)
    scale = LossScale(scaler)
    assert not scale.skipped()
    scale.begin()
    assert (scale.in_force, scale.skipped()) == (8.0, False)
    scaler.scales = [16.0]
    assert not scale.skipped()
    scaler.scales = [4.0]
    assert scale.skipped()
    assert scale.in_force == 8.0
    scale.begin()
    assert (scale.in_force, scale.skipped()) == (4.0, False)


def test_without_a_scaler_nothing_is_scaled_or_skipped():
    scale = LossScale(None)
    scale.begin()
    assert (scale.is_known, scale.in_force, scale.skipped()) == (False, 1.0, False)
