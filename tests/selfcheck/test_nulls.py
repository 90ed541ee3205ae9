"""Rejections where there is nothing to find: within the exact binomial band of a test that keeps its level.

Seeds were fixed before any result was seen.
"""

import numpy as np
import pytest
from scipy import stats

from covshift.analysis import inference
from covshift.selfcheck import nulls

# Exact central 99.9 % band of the share of 400 nulls that a test of level 0.05 rejects.
BAND = tuple(stats.binom.ppf([0.0005, 0.9995], 400, 0.05) / 400)


def rejected(p_values):
    """Share of nulls rejected at 0.05; a test that declines does not reject."""
    return float((np.nan_to_num(p_values, nan=1.0) <= 0.05).mean())


def test_the_band_is_that_of_the_design():
    assert list(BAND) == pytest.approx([0.0175, 0.09], abs=0.0026)


def test_the_trend_test_keeps_its_level():
    assert BAND[0] <= rejected(nulls.trend_p_values(400, seed=101)) <= BAND[1]


def test_the_relabelling_test_keeps_its_level_though_elements_of_an_example_correlate():
    assert BAND[0] <= rejected(nulls.relabelling_p_values(400, seed=102)) <= BAND[1]


def test_holms_family_error_keeps_its_level():
    families = nulls.family_p_values(400, seed=103)
    worst = np.array([inference.holm(family).min() for family in families])
    assert rejected(worst) <= BAND[1]


@pytest.mark.slow
@pytest.mark.parametrize(("correlation", "most"), [(0.0, 0.07), (0.5, 0.10), (0.8, 0.10), (0.95, 0.10)])
def test_two_thousand_trends_under_autocorrelation(correlation, most):
    share = rejected(nulls.trend_p_values(2000, seed=111, correlation=correlation))
    assert share <= most
    assert correlation or share >= 0.03


@pytest.mark.slow
@pytest.mark.parametrize("correlation", [0.0, 0.3])
@pytest.mark.parametrize("groups", [2, 4])
def test_two_thousand_relabelling_tests(correlation, groups):
    p = nulls.relabelling_p_values(2000, seed=112, correlation=correlation, groups=groups)
    assert 0.03 <= rejected(p) <= 0.07
    # p-values are multiples of 1/200: the distance to uniform is at most that of sampling plus one step.
    assert stats.kstest(p, "uniform").statistic < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("dependence", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("adjust", [inference.holm, inference.benjamini_hochberg])
def test_two_thousand_families_of_layers(dependence, adjust):
    families = nulls.family_p_values(2000, seed=113, dependence=dependence)
    assert rejected(np.array([adjust(family).min() for family in families])) <= 0.07
