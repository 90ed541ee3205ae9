"""Movement unit by unit: against raw arrays, blind spots of pooled histograms, and the bound on sampling noise."""

import numpy as np
import pytest

from covshift.analysis import shift
from covshift.exceptions import InvalidArgumentError


def steps_of(*records):
    return {10 * index: {"fc": {"activation": record}} for index, record in enumerate(records)}


def test_units_are_compared_by_their_own_raw_moments(make_recording):
    rng = np.random.default_rng(0)
    one, two = rng.normal([0.0, 3.0], [1.0, 2.0], (50, 2)), rng.normal([1.0, 3.0], [1.0, 4.0], (50, 2))
    found = shift.between_units(make_recording(steps_of(one, two))).sel(step=10)
    pooled = np.sqrt((one.var(axis=0) + two.var(axis=0)) / 2)
    np.testing.assert_allclose(found["smd"], (two.mean(axis=0) - one.mean(axis=0)) / pooled, rtol=1e-5)
    np.testing.assert_allclose(found["log_var_ratio"], np.log(two.var(axis=0) / one.var(axis=0)), rtol=1e-5)
    excess = float((found["smd"] ** 2).mean()) - 2 / 50
    assert float(found["excess"].sel(layer="fc")) == pytest.approx(excess)
    assert float(found["shift"].sel(layer="fc")) == pytest.approx(np.sqrt(excess))
    assert found["unit_layer"].values.tolist() == ["fc", "fc"]


def test_units_that_trade_places_are_seen_though_the_pooled_histogram_stays(make_recording):
    rng = np.random.default_rng(1)
    means = np.linspace(-6, 6, 8)
    recording = make_recording(steps_of(*(rng.normal(m, 0.5, (400, 8)) for m in (means, means[::-1]))))
    pooled = shift.between_steps(recording).sel(step=10, layer="fc")
    assert float(pooled["w1"]) < 0.05
    assert float(shift.between_units(recording)["shift"].sel(step=10, layer="fc")) > 4


@pytest.mark.parametrize("correlation", [0.0, 0.5, 1.0])
def test_without_a_shift_sampling_adds_no_more_than_what_is_subtracted(make_recording, correlation):
    rng = np.random.default_rng(2)
    records = [
        np.sqrt(correlation) * rng.normal(size=(20, 60, 1)) + np.sqrt(1 - correlation) * rng.normal(size=(20, 60, 5))
        for _ in range(30)
    ]
    excess = shift.between_units(make_recording(steps_of(*records)))["excess"].sel(layer="fc").values[1:]
    standard_error = excess.std() / np.sqrt(len(excess) / 2)
    assert excess.mean() < 3 * standard_error
    if correlation == 1.0:
        assert excess.mean() > -0.02


def test_each_record_is_compared_with_its_reference(make_recording):
    rng = np.random.default_rng(3)
    recording = make_recording(steps_of(*(rng.normal(size=(30, 3)) for _ in range(3))))
    previous, first, at = (shift.between_units(recording, reference=r)["smd"] for r in ("previous", "first", 10))
    assert np.isnan(previous.sel(step=0)).all()
    assert np.isnan(at.sel(step=10)).all()
    np.testing.assert_allclose(previous.sel(step=20), at.sel(step=20))
    np.testing.assert_allclose(first.sel(step=10), -at.sel(step=0))


def test_constant_and_missing_units_are_nan(make_recording):
    rng = np.random.default_rng(4)
    moving = rng.normal(size=(2, 8, 2))
    constant = moving * np.array([1, 0])
    recording = make_recording(
        {0: {"a": {"activation": constant[0]}, "b": {"activation": moving[0]}}, 1: {"a": {"activation": constant[1]}}}
    )
    found = shift.between_units(recording).sel(step=1)
    assert np.isfinite(found["smd"].values).tolist() == [True, False, False, False]
    assert found["units"].values.tolist() == [1, 0]
    assert np.isnan(found["shift"].sel(layer="b"))


@pytest.mark.parametrize("wrong", [{"signal": "preactivation"}, {"reference": 7}, {"reference": None}])
def test_what_units_do_not_have_is_refused(make_recording, wrong):
    recording = make_recording(steps_of(np.ones((4, 2))))
    with pytest.raises(InvalidArgumentError, match="units are recorded for|expected 'previous', 'first' or a step"):
        shift.between_units(recording, **wrong)
