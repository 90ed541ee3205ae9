"""Scale over time, trust ratios and half precision as findings."""

import numpy as np
import pytest

from covshift.diagnosis.scale_rules import clipping, precision, scale_over_time, trust_spread
from covshift.schema import Layer


def gradients(make_recording, sizes):
    rng = np.random.default_rng(0)
    return make_recording(
        {i: {n: {"activation_grad": s * rng.normal(size=(20, 3))} for n in ("a", "b")} for i, s in enumerate(sizes)}
    )


@pytest.mark.parametrize(
    ("sizes", "verdict", "since"),
    [
        ([1.0] * 40, "ok", None),
        ([1.0] * 20 + [1e3] + [1.0] * 19, "ok", None),
        ([1.0] * 20 + [1e4, 1e4] + [1.0] * 18, "ok", None),
        ([1.0] * 20 + [30.0] * 20, "watch", 20),
        ([1.0] * 20 + [1e3] * 20, "bad", 20),
        ([1e-9] * 3 + [1.0] * 60, "ok", None),
    ],
)
def test_growth_counts_where_it_lasts_three_records_after_the_warm_up(make_recording, sizes, verdict, since):
    (found,) = scale_over_time(gradients(make_recording, sizes))
    assert (found.verdict, found.since_step) == (verdict, since)
    if verdict != "ok":
        assert "too much in 2 of 2 layers" in found.reason


def test_too_few_records_say_nothing_about_growth(make_recording):
    (found,) = scale_over_time(gradients(make_recording, [1.0] * 4))
    assert found.verdict == "not measured"


@pytest.mark.parametrize(("gradient", "verdict"), [(1e-2, "ok"), (1e-5, "watch")])
def test_weights_whose_gradients_differ_by_decades_are_to_watch(make_recording, gradient, verdict):
    row = {"weight_norm": 1.0, "update_norm": 1e-3, "gradient_norm": 1.0, "gradient_measured": 1}
    rows = {i: {"a.weight": row, "b.weight": row | {"gradient_norm": gradient}} for i in range(8)}
    (found,) = trust_spread(make_recording(parameters=rows, scalars={0: {"loss": 1.0}}, steps={0: {"a": {}}}))
    assert found.verdict == verdict
    assert found.value == pytest.approx(-np.log10(gradient))
    assert "from 'a.weight' to 'b.weight'" in found.reason


def test_one_weight_has_nothing_to_be_compared_with(make_recording):
    rows = {0: {"a.weight": {"weight_norm": 1.0, "gradient_norm": 1.0, "gradient_measured": 1}}}
    (found,) = trust_spread(make_recording(parameters=rows))
    assert found.verdict == "not measured"


def half(make_recording, value, subnormal):
    layers = [Layer("fc", "Linear", 0, 1, 0, 2, dtype="torch.float16"), Layer("wide", "Linear", 1, 1, 0, 2)]
    array = {"activation": np.full((50, 2), value), "activation_grad": np.full((50, 2), 1e-4)}
    recording = make_recording({i: {"fc": array, "wide": array} for i in range(6)}, layers=layers)
    recording["layers"]["subnormal_count"].loc[{"signal": "activation_grad"}] = subnormal
    return recording


@pytest.mark.parametrize(
    ("value", "subnormal", "verdict"), [(10.0, 0, "ok"), (3e4, 0, "watch"), (6.5e4, 0, "bad"), (10.0, 60, "bad")]
)
def test_half_precision_is_judged_by_both_ends_of_its_range(make_recording, value, subnormal, verdict):
    (found,) = precision(half(make_recording, value, subnormal))
    assert (found.layer, found.verdict) == ("fc", verdict)
    assert found.reason.startswith(f"'fc': in float16, {subnormal} % of its nonzero gradients are subnormal")


def clipped(make_recording, after):
    row = {"weight_norm": 1.0, "gradient_measured": 1}
    rows = {
        i: {
            "a.weight": row | {"gradient_norm": 3 * factor, "gradient_norm_preclip": 3.0},
            "b.weight": row | {"gradient_norm": 4 * factor, "gradient_norm_preclip": 4.0},
            "c.weight": row | {"gradient_norm": 9.0},
        }
        for i, factor in enumerate(after)
    }
    return make_recording(parameters=rows)


@pytest.mark.parametrize(
    ("factors", "verdict", "share"), [([1.0] * 10, "ok", 0.0), ([0.2, 1.0] * 10, "ok", 0.4), ([0.2] * 10, "watch", 1.0)]
)
def test_clipping_is_to_watch_where_it_is_the_rule(make_recording, factors, verdict, share):
    (found,) = clipping(clipped(make_recording, factors))
    assert (found.verdict, found.value) == (verdict, share)
    if share == 1.0:
        assert "to a median of 20 % of their length; since step 0" in found.reason


def test_clipping_is_not_measured_where_only_one_norm_is_known(make_recording):
    row = {"weight_norm": 1.0, "gradient_norm": 1.0, "gradient_measured": 1}
    (found,) = clipping(make_recording(parameters={0: {"a.weight": row}}))
    assert found.verdict == "not measured"
    assert found.advice
