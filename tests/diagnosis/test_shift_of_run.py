"""The statement about the run (Holm) and the list of layers (Benjamini-Hochberg): nulls, power and words.

Seeds were fixed before any result was seen.
"""

import math

import numpy as np
import pytest
from scipy import stats

from covshift.analysis import inference, shift
from covshift.diagnosis import diagnose
from covshift.diagnosis.finding import WHOLE_RUN
from covshift.diagnosis.shift_rules import LEVEL, distribution_shift

LAYERS, HISTOGRAMS = 8, 20
NULLS = 200


def run(make_recording, rng, *, shifts=(), examples=16, positions=4):
    """Layers that share part of every example's noise; the first ones move by ``shifts`` sd a histogram."""
    steps = {}
    for step in range(HISTOGRAMS):
        common, own = rng.normal(size=(examples, 1)), rng.normal(size=(LAYERS, examples, positions))
        steps[step] = {
            f"layer{index}": {
                "activation": math.sqrt(0.5) * (common + values)
                + (shifts[index] * step if index < len(shifts) else 0.0)
            }
            for index, values in enumerate(own)
        }
    return make_recording(steps, unit_steps=[])


def of_run(recording):
    (found,) = [f for f in distribution_shift(recording) if f.layer == WHOLE_RUN]
    return found


@pytest.fixture(scope="module")
def nulls(make_recording):
    """Adjusted p-values of recordings in which nothing moves, each through the whole analysis."""
    rng = np.random.default_rng(201)
    found = []
    for _ in range(NULLS):
        moved = shift.between_steps(run(make_recording, rng)).isel(window=-1)
        found.append([moved[name].values for name in ("p", "p_holm", "q")])
    return np.array(found)


@pytest.mark.slow
def test_holm_and_benjamini_hochberg_err_in_at_most_a_twentieth_of_still_runs(nulls):
    most = stats.binom.ppf(0.999, NULLS, 0.05) / NULLS
    p, holm, listed = nulls[:, 0], nulls[:, 1], nulls[:, 2]
    assert (holm.min(axis=1) <= LEVEL).mean() <= most
    assert (listed.min(axis=1) <= LEVEL).mean() <= most
    # Without a correction most of the errors a family makes come back: the control that this test can fail.
    assert (p.min(axis=1) <= LEVEL).mean() > most


@pytest.mark.slow
def test_the_adjusted_values_are_those_of_scipy_and_of_the_definition(nulls):
    for p, holm, listed in nulls[:20]:
        np.testing.assert_allclose(listed, stats.false_discovery_control(p, method="bh"))
        order = np.argsort(p)
        steps = np.minimum(np.maximum.accumulate(p[order] * np.arange(LAYERS, 0, -1)), 1.0)
        np.testing.assert_allclose(holm[order], steps)


def test_a_still_run_is_said_to_be_still_with_the_number_of_tests(make_recording):
    found = of_run(run(make_recording, np.random.default_rng(202)))
    assert (found.verdict, found.value) == ("ok", 0.0)
    assert found.reason.startswith("whole run: nothing is shown to have moved: smallest p-value ")
    assert "after Holm over 8 tests, one a layer of 10 disjoint pairs" in found.reason


def test_a_run_of_which_one_layer_moves_is_flagged_and_explained_by_it(make_recording):
    recording = run(make_recording, np.random.default_rng(203), shifts=[1.0], examples=64)
    found = of_run(recording)
    assert (found.verdict, found.value) == ("watch", pytest.approx(1.0, rel=0.15))
    assert "something moved" in found.reason
    assert "'layer0' moved most" in found.reason
    whole = {f.layer: f for f in diagnose(recording).findings if f.check == "shift"}
    assert whole[WHOLE_RUN].explained_by == "shift in layer0"
    assert "after Benjamini-Hochberg over 8 tests" in whole["layer0"].reason
    assert [f.layer for f in diagnose(recording).causes] == ["layer0"]


def test_a_movement_below_a_small_effect_is_stated_and_not_flagged(make_recording):
    recording = run(make_recording, np.random.default_rng(204), shifts=[0.12], examples=800)
    found = of_run(recording)
    assert found.verdict == "ok"
    assert "something moved" in found.reason
    assert 0.05 < found.value < 0.2


def test_fewer_than_ten_disjoint_pairs_make_no_statement_about_the_run(make_recording):
    rng = np.random.default_rng(205)
    steps = {step: {"fc": {"activation": rng.normal(size=(16, 3))}} for step in range(2 * inference.MIN_PAIRS - 1)}
    found = of_run(make_recording(steps))
    assert found.verdict == "not measured"
    assert found.advice.startswith("at least 10 disjoint pairs of training histograms (20 histograms)")
