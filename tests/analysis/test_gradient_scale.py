"""Growth over time, trust ratios and the ends of a dtype's range, against raw arrays."""

import numpy as np
import pytest
import torch

from covshift.analysis import gradient_health
from covshift.exceptions import InvalidArgumentError
from covshift.schema import Layer


def gradients(*sizes, seed=0):
    rng = np.random.default_rng(seed)
    return {i: {"fc": {"activation_grad": size * rng.normal(size=(50, 8))}} for i, size in enumerate(sizes)}


def test_growth_is_in_decades_over_the_median_of_the_records_before(make_recording):
    sizes = [1.0, 1.0, 10.0, 1.0, 1.0, 1000.0, 1.0]
    steps = gradients(*sizes)
    found = gradient_health.growth_over_time(make_recording(steps)).sel(layer="fc").values
    logs = np.log10([np.sqrt((steps[i]["fc"]["activation_grad"] ** 2).mean()) for i in steps])
    assert np.isnan(found[:3]).all()
    np.testing.assert_allclose(found[3:], [logs[i] - np.median(logs[:i]) for i in range(3, 7)])


def test_only_the_trailing_records_are_the_standard(make_recording):
    found = gradient_health.growth_over_time(make_recording(gradients(*[1.0] * 5, *[100.0] * 4)), trailing=3)
    assert found.squeeze("layer").values[3:] == pytest.approx([0, 0, 2, 2, 0, 0], abs=0.1)


def test_a_vanished_gradient_has_no_growth(make_recording):
    found = gradient_health.growth_over_time(make_recording(gradients(1.0, 1.0, 1.0, 1.0, 0.0, 1.0)))
    assert np.isfinite(found.squeeze("layer").values).tolist() == [False, False, False, True, False, True]
    with pytest.raises(InvalidArgumentError, match="trailing=2: expected at least 3"):
        gradient_health.growth_over_time(make_recording(gradients(1.0)), trailing=2)


def test_the_trust_ratio_is_weight_over_gradient(make_recording):
    row = {"weight_norm": 4.0, "gradient_norm": 0.5, "gradient_measured": 1}
    parameters = {0: {"a": row, "b": row | {"gradient_norm": 0.0}}, 1: {"a": row | {"gradient_norm": np.nan}}}
    found = gradient_health.trust_ratio(make_recording(parameters=parameters))
    assert float(found.sel(step=0, parameter="a")) == 8.0
    assert np.isfinite(found.values).sum() == 1


@pytest.mark.parametrize(("dtype", "smallest"), [("float16", 2.0**-24), ("bfloat16", 2.0**-126)])
def test_the_share_that_would_be_flushed_is_that_of_the_raw_elements(make_recording, dtype, smallest):
    rng = np.random.default_rng(1)
    gradient = (rng.normal(size=(60, 10)) * smallest * 4.0 ** rng.integers(-1, 3, size=(60, 10))).astype(np.float32)
    gradient[gradient < -smallest * 20] = 0.0
    recording = make_recording({0: {"fc": {"activation": np.ones((60, 10)), "activation_grad": gradient}}})
    found = gradient_health.range_risk(recording, dtype=dtype)["underflow_share"]
    nonzero = gradient[gradient != 0]
    if dtype == "float16":
        assert float(found.squeeze()) == (np.abs(nonzero) < smallest).mean()
    else:
        assert float(found.squeeze()) == pytest.approx((np.abs(nonzero) < smallest).mean(), abs=0.02)


def test_what_is_already_half_precision_is_judged_by_its_subnormals(make_recording):
    gradient = np.full((10, 4), 1e-3)
    layers = [Layer("fc", "Linear", 0, 1, 0, 4, dtype="torch.float16")]
    recording = make_recording(
        {0: {"fc": {"activation": np.ones((10, 4)), "activation_grad": gradient}}}, layers=layers
    )
    recording["layers"]["subnormal_count"].loc[{"signal": "activation_grad"}] = 10
    assert float(gradient_health.range_risk(recording)["underflow_share"].squeeze()) == 0.25


def test_overflow_is_the_largest_magnitude_over_the_largest_number(make_recording):
    steps = {0: {"fc": {"activation": np.array([[1.0], [-3e4]])}}, 1: {"fc": {"activation": np.full((2, 1), np.nan)}}}
    found = gradient_health.range_risk(make_recording(steps))["overflow_share"].squeeze("layer").values
    assert found[0] == pytest.approx(3e4 / float(np.finfo(np.float16).max))
    assert np.isnan(found[1])
    with pytest.raises(InvalidArgumentError, match="dtype='float8'"):
        gradient_health.range_risk(make_recording(steps), dtype="float8")
    found, named = (gradient_health.range_risk(make_recording(steps), dtype=one) for one in (torch.float16, "float16"))
    assert found.identical(named)


def test_the_clip_factor_is_what_was_left_of_the_whole_gradients_length(make_recording):
    row = {"weight_norm": 1.0, "gradient_measured": 1}
    known = {"gradient_norm": 1.5, "gradient_norm_preclip": 3.0}, {"gradient_norm": 2.0, "gradient_norm_preclip": 4.0}
    rows = {
        0: {"a": row | known[0], "b": row | known[1], "c": row | {"gradient_norm": 7.0}},
        1: {"a": row | {"gradient_norm": 1.0}},
    }
    found = gradient_health.clip_factor(make_recording(parameters=rows)).values
    assert found[0] == pytest.approx(0.5)
    assert np.isnan(found[1])
