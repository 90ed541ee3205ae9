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


def smd_of(one, two):
    return (two.mean(axis=0) - one.mean(axis=0)) / np.sqrt((one.var(axis=0) + two.var(axis=0)) / 2)


@pytest.mark.parametrize("offset", [0.0, 1e4, 1e8])
@pytest.mark.parametrize("scale", [1e-30, 1e-18, 1.0, 1e18, 1e30])
def test_a_mean_or_variance_that_float32_cannot_hold_is_not_known(make_recording, offset, scale):
    rng = np.random.default_rng(5)
    one, two = scale * (offset + rng.normal(size=(2, 200, 6)))
    found = shift.between_units(make_recording(steps_of(one, two))).sel(step=10)
    smd, expected = found["smd"].values, smd_of(one, two)
    known = np.isfinite(smd)
    assert known.all() if offset <= 1e4 and scale in (1e-18, 1.0, 1e18) else not known.all()
    np.testing.assert_allclose(smd[known], expected[known], atol=0.1)
    assert found["units"].item() == known.sum()


@pytest.mark.parametrize("lost", [np.nan, -np.inf])
def test_units_with_elements_that_are_not_finite_are_not_compared(make_recording, lost):
    rng = np.random.default_rng(6)
    one, two = rng.normal(size=(2, 60, 4))
    two[:30, 1] = lost
    found = shift.between_units(make_recording(steps_of(one, two, one))).transpose("step", ...)
    assert np.isfinite(found["smd"].values).tolist() == [
        [False] * 4,
        [True, False, True, True],
        [True, False, True, True],
    ]
    assert found["units"].values[:, 0].tolist() == [0, 3, 3]
    np.testing.assert_allclose(
        found["smd"].values[1, [0, 2, 3]], smd_of(one[:, [0, 2, 3]], two[:, [0, 2, 3]]), rtol=1e-5
    )
