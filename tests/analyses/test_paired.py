"""Ratios of paired blocks: known ratios are recovered through drift that both arms share; rare costs are counted."""

import numpy as np
import pytest

from common.paired import interleave, ratio
from common.step_overhead import block_steps


@pytest.fixture
def bare():
    """Thirty blocks on a machine that becomes five times slower, with noise."""
    generator = np.random.default_rng(0)
    return np.geomspace(1, 5, 30) * (1 + generator.normal(scale=0.01, size=30))


def test_a_ratio_is_recovered_through_drift_and_lies_in_its_interval(bare):
    noise = 1 + np.random.default_rng(1).normal(scale=0.01, size=30)
    found = ratio(1.1 * bare * noise, bare)
    assert found.central == pytest.approx(1.1, abs=0.01)
    assert found.low < 1.1 < found.high
    assert found.high - found.low < 0.03


def test_rounds_that_an_arm_sat_out_do_not_count(bare):
    arm = 2 * bare
    arm[1::3] = np.nan
    assert ratio(arm, bare).central == pytest.approx(2)


def test_a_cost_in_one_block_of_five_is_passed_over_by_the_median_and_counted_by_the_mean(bare):
    arm = bare * np.where(np.arange(30) % 5 == 0, 1.5, 1.0)
    assert ratio(arm, bare).central == pytest.approx(1)
    assert ratio(arm, bare, statistic=np.mean).central == pytest.approx(1.1)


def test_every_arm_runs_in_every_round_and_sparse_arms_in_every_third():
    calls = []
    arms = {name: (lambda name=name: calls.append(name)) for name in ("bare", "recorded", "rival")}
    blocks = interleave(arms, rounds=9, warm_up=2, sparse=["rival"])
    assert {name: calls.count(name) for name in arms} == {"bare": 11, "recorded": 11, "rival": 5}
    assert np.isfinite(blocks["bare"].cpu).all()
    np.testing.assert_array_equal(np.flatnonzero(np.isfinite(blocks["rival"].cpu)), [0, 3, 6])


def test_what_a_block_accounts_for_elsewhere_is_left_out():
    blocks = interleave({"bare": lambda: (1000.0, 2000.0)}, rounds=1)
    assert blocks["bare"].cpu[0] == pytest.approx(-1000, abs=1)
    assert blocks["bare"].wall[0] == pytest.approx(-2000, abs=1)


@pytest.mark.parametrize(("step_seconds", "steps"), [(0.5, 20), (0.0101, 40), (0.001, 300)])
def test_blocks_are_multiples_of_twenty_steps_and_long_enough(step_seconds, steps):
    assert block_steps(step_seconds) == steps
