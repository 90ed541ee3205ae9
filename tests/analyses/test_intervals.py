"""Intervals over seeds are those of the textbook, and none where there are too few runs."""

import math

import numpy as np
import pytest
from scipy import stats

from common.intervals import mean_interval, prediction_interval, ratio_interval


def test_intervals_are_students(tmp_path):
    values = [0.3, 0.5, 0.4, 0.45]
    found = mean_interval(values)
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((low, high))
    further = prediction_interval(values)
    reach = stats.t.ppf(0.975, 3) * np.std(values, ddof=1) * math.sqrt(1 + 1 / 4)
    assert (further.low, further.high) == pytest.approx((np.mean(values) - reach, np.mean(values) + reach))
    ratios = ratio_interval([2.0, 4.0, 8.0], [1.0, 2.0, 4.0])
    assert (ratios.value, ratios.low, ratios.high) == pytest.approx((2, 2, 2))


def test_fewer_than_three_runs_have_no_interval():
    for values in ([], [0.1], [0.1, 0.2], [0.1, 0.2, math.nan]):
        assert not mean_interval(values).known


def test_a_prediction_of_an_accuracy_stays_between_0_and_1():
    found = prediction_interval([0.01, 0.5, 0.99])
    assert (found.low, found.high) == (0, 1)
