"""The statistics against scipy, brute force and hand computation; their behaviour under the null has its own file."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from covshift.analysis import divergence, inference
from covshift.exceptions import InvalidArgumentError
from covshift.grid import VALUES


def test_the_trend_is_a_regression_of_batch_means():
    series = np.random.default_rng(0).normal(size=(80, 1)).cumsum(axis=1) + 0.01 * np.arange(80)[:, None]
    found = inference.trend(series)
    fit = stats.linregress(np.arange(8) * 10 + 4.5, series[:, 0].reshape(8, 10).mean(axis=1))
    assert found.drift[0] == pytest.approx(fit.slope * 79)
    assert found.standard_error[0] == pytest.approx(fit.stderr * 79)
    assert found.p_value[0] == pytest.approx(fit.pvalue)
    margin = stats.t.ppf(0.95, 6) * fit.stderr * 79
    assert np.ravel(found.interval(0.9)) == pytest.approx([fit.slope * 79 - margin, fit.slope * 79 + margin])


def test_strong_correlation_makes_fewer_batches():
    walk = np.random.default_rng(1).normal(size=(400, 1)).cumsum(axis=0)
    found = inference.trend(walk)
    fit = stats.linregress(np.arange(5) * 80 + 39.5, walk[:, 0].reshape(5, 80).mean(axis=1))
    assert found.correlation[0] > 0.9
    assert found.degrees[0] == 3
    assert found.drift[0] == pytest.approx(fit.slope * 399)


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.8])
def test_the_correlation_is_unbiased_though_a_line_was_fitted(correlation):
    rng = np.random.default_rng(2)
    series = np.zeros((60, 2000))
    for _ in range(260):
        series = np.vstack([series[1:], correlation * series[-1:] + rng.normal(size=(1, 2000))])
    assert inference.trend(series).correlation.mean() == pytest.approx(correlation, abs=0.04)


def test_what_is_too_short_or_has_holes_is_not_judged():
    rng = np.random.default_rng(3)
    short = inference.trend(rng.normal(size=(15, 2)))
    assert np.isnan(short.drift).all()
    assert not short.reliable.any()
    holed = rng.normal(size=(80, 2))
    holed[10:20, 0] = np.nan
    found = inference.trend(holed)
    assert found.reliable.tolist() == [False, True]
    assert inference.equivalence(found, 1e9).tolist() == ["UNDETERMINED", "STABLE"]
    assert np.isnan(found.p_value[0])


def test_a_hole_that_leaves_two_records_a_batch_is_bridged():
    series = np.arange(80.0)[:, None] + np.random.default_rng(4).normal(0, 0.1, (80, 1))
    series[3:9] = np.nan
    assert inference.trend(series).drift[0] == pytest.approx(79, abs=1)


def test_constant_series_do_not_drift_and_lines_do():
    series = np.stack([np.full(40, 3.0), np.linspace(0, 1, 40)], axis=1)
    found = inference.trend(series)
    assert found.drift == pytest.approx([0, 1])
    assert inference.equivalence(found, 0.2).tolist()[0] == "STABLE"
    assert found.p_value[0] == 1


def test_verdicts_follow_the_intervals():
    rng = np.random.default_rng(5)
    line = np.linspace(0, 1, 200)[:, None]
    series = 0.05 * rng.normal(size=(200, 3)) + line * np.array([0.0, 0.19, 0.5])
    assert inference.equivalence(inference.trend(series), 0.2).tolist() == ["STABLE", "UNDETERMINED", "DRIFTING"]


def test_relabellings_are_all_ways_to_split_up_to_swapping_the_sides():
    ways = {tuple(way) for way in inference.relabellings(3).tolist()}
    by_hand = {way if way[0] else tuple(1 - part for part in way) for way in permutations([1, 1, 1, 0, 0, 0])}
    assert ways == by_hand
    assert inference.relabellings(3)[0].tolist() == [1, 1, 1, 0, 0, 0]


def test_every_relabelling_has_the_distance_of_its_regrouped_counts():
    rng = np.random.default_rng(6)
    groups = np.array(
        [[np.bincount(VALUES.ids(rng.normal(0.1 * g, 1, 50 + g)), minlength=VALUES.size) for g in range(8)]]
    )
    ways = inference.relabellings(4)
    found = divergence.relabelled_cramer(groups[:, :4], groups[:, 4:], ways, VALUES)
    expected = [divergence.noise_corrected_cramer(groups[:, way == 1], groups[:, way == 0], VALUES)[0] for way in ways]
    np.testing.assert_allclose(found[0], expected, atol=1e-14)


def test_a_group_without_elements_cannot_be_relabelled():
    counts = np.zeros((2, 4, VALUES.size), dtype=np.int64)
    counts[0, :, VALUES.zero] = 5
    counts[1, :3, VALUES.zero] = 5
    found = divergence.relabelled_cramer(counts, counts, inference.relabellings(4), VALUES)
    assert np.isnan(found).all(axis=1).tolist() == [False, True]


def test_the_p_value_counts_the_draws_that_reach_the_recorded_labels():
    rng = np.random.default_rng(7)
    table = rng.normal(size=(12, 35, 3))
    table[:, 0, 1] = 9.0
    table[3:, :, 2] = np.nan
    found = inference.relabelling_p_value(table, draws=499, seed=5)
    chosen = np.random.default_rng(5).integers(35, size=(499, 12))
    sums = np.array([sum(table[pair, way, 0] for pair, way in enumerate(draw)) for draw in chosen])
    assert found[0] == (1 + (sums >= table[:, 0, 0].sum()).sum()) / 500
    assert found[1] == 1 / 500
    assert np.isnan(found[2])


def test_ties_count_as_reached():
    assert inference.relabelling_p_value(np.zeros((10, 35, 1)), draws=99).tolist() == [1.0]


@given(p=st.lists(st.floats(0, 1), min_size=1, max_size=20), holes=st.integers(0, 3))
def test_benjamini_hochberg_is_scipys_and_holm_is_the_textbooks(p, holes):
    values = np.array(p + [np.nan] * holes)
    found = inference.benjamini_hochberg(values)
    assert found[: len(p)] == pytest.approx(stats.false_discovery_control(p))
    stepped = inference.holm(values)
    ranked = sorted(p)
    by_hand = [min(1.0, max(ranked[j] * (len(p) - j) for j in range(i + 1))) for i in range(len(p))]
    assert np.sort(stepped[: len(p)]) == pytest.approx(by_hand)
    assert np.isnan(found[len(p) :]).all()
    assert np.isnan(stepped[len(p) :]).all()


def test_wilsons_interval_is_that_of_the_formula():
    k, n, z = 7, 40, stats.norm.ppf(0.975)
    middle, half = k / n + z**2 / (2 * n), z * np.sqrt(k / n * (1 - k / n) / n + z**2 / (4 * n**2))
    expected = ((middle - half) / (1 + z**2 / n), (middle + half) / (1 + z**2 / n))
    assert inference.wilson(k, n) == pytest.approx(expected)
    assert inference.wilson(0, 0) == (0.0, 1.0)
    with pytest.raises(InvalidArgumentError, match="expected 0 <= successes <= trials"):
        inference.wilson(3, 2)
