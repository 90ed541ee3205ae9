"""States of layers and saturated activations as findings, in words that carry the evidence."""

import numpy as np
import pytest

from covshift.analysis.operating_point import stability
from covshift.diagnosis.operating_rules import operating_points, saturation
from covshift.schema import Layer

RECORDS, EXAMPLES, UNITS = 90, 100, 12


def run(make_recording, change, *, update=1e-3):
    draws = np.random.default_rng(0).normal(size=(RECORDS, EXAMPLES, UNITS))
    steps = {10 * i: {"fc": {"activation": change(z, i / (RECORDS - 1))}} for i, z in enumerate(draws)}
    row = {"weight_norm": 1.0, "update_norm": update, "gradient_norm": 1.0, "gradient_measured": 1}
    return make_recording(steps, parameters={step: {"fc.weight": row} for step in steps})


def test_a_still_layer_is_ok_with_its_interval_and_since_when(make_recording):
    (found,) = operating_points(run(make_recording, lambda z, t: z))
    assert (found.verdict, found.advice) == ("ok", "")
    assert found.interval[0] < found.value < 0.2
    assert "'fc': stable, since step " in found.reason
    assert "(90 % interval" in found.reason


def test_a_drifting_layer_is_to_watch(make_recording):
    (found,) = operating_points(run(make_recording, lambda z, t: z + 2 * t))
    # 2 sd over the run, of which the window of 40 records is 39/89.
    assert (found.verdict, found.since_step, found.reached_step, found.history) == ("watch", None, 500, "")
    assert found.value == pytest.approx(2 * 39 / 89, abs=0.15)
    assert found.reason.startswith("'fc': drifting: units by 0.")
    assert "at the price of" in found.advice


@pytest.mark.parametrize(("change", "part"), [
    (lambda z, t: z - 2 * t, "location"), (lambda z, t: z * (1 + 2 * t), "scale"),
    (lambda z, t: z / (1 + 2 * t), "scale"),
])  # fmt: skip
def test_the_value_of_a_drift_is_that_of_a_part_that_drifts_with_its_own_interval(make_recording, change, part):
    recording = run(make_recording, change)
    (found,) = operating_points(recording)
    point = stability(recording).isel(layer=0)
    assert part in str(point["drifts_by"].values)
    low, high = found.interval
    assert found.value > 0.2
    assert 0 < low < found.value < high
    margin = {"location": 0.2, "scale": np.log(1.2)}[part]
    assert found.value == pytest.approx(abs(float(point[f"{part}_drift"])) * 0.2 / margin)
    ends = sorted(abs(float(point[f"{part}_{end}"])) * 0.2 / margin for end in ("low", "high"))
    assert (low, high) == pytest.approx(tuple(ends))


def test_rest_where_hardly_anything_is_active_asks_for_no_further_records(make_recording):
    layers = [
        Layer("fc", "Linear", 0, 1, 0, UNITS),
        Layer("act", "Tanh", 1, 1, 0, UNITS, activation="Tanh", preactivation_of="fc"),
    ]
    draws = np.random.default_rng(0).normal(size=(RECORDS, EXAMPLES, UNITS))
    steps = {i: {"fc": {"activation": 9 + z}, "act": {"activation": np.tanh(9 + z)}} for i, z in enumerate(draws)}
    row = {"weight_norm": 1.0, "update_norm": 1e-3, "gradient_norm": 1.0, "gradient_measured": 1}
    recording = make_recording(steps, layers=layers, parameters={step: {"fc.weight": row} for step in steps})
    (found,) = [one for one in operating_points(recording) if one.layer == "act"]
    assert found.verdict == "not measured"
    assert "no rest where under 5 % is active" in found.reason
    assert found.advice.startswith("an activation of which more works: further records cannot show rest")


def test_a_layer_whose_weights_do_not_move_is_frozen_and_to_watch(make_recording):
    (found,) = operating_points(run(make_recording, lambda z, t: z, update=0.0))
    assert (found.verdict, found.since_step, found.reached_step, found.history) == ("watch", None, 500, "")
    assert found.reason.startswith("'fc': frozen")


def test_a_wandering_layer_is_not_measured_and_told_what_is_needed(make_recording):
    walk = np.random.default_rng(1).normal(0, 0.1, RECORDS).cumsum()
    (found,) = operating_points(run(make_recording, lambda z, t: z + walk[round(t * (RECORDS - 1))]))
    assert found.verdict in ("watch", "not measured")
    assert found.advice


@pytest.mark.parametrize(("scale", "verdict"), [(1.0, "ok"), (10.0, "watch"), (40.0, "bad")])
def test_a_tanh_is_judged_by_the_share_of_z_where_it_is_flat(make_recording, scale, verdict):
    layers = [
        Layer("fc", "Linear", 0, 1, 0, UNITS),
        Layer("act", "Tanh", 1, 1, 0, UNITS, activation="Tanh", preactivation_of="fc"),
        Layer("relu", "ReLU", 2, 1, 0, UNITS, activation="ReLU"),
    ]
    rng = np.random.default_rng(2)
    z = [scale * rng.normal(size=(EXAMPLES, UNITS)) for _ in range(5)]
    steps = {i: {"fc": {"activation": v}, "act": {"activation": np.tanh(v)}} for i, v in enumerate(z)}
    (found,) = saturation(make_recording(steps, layers=layers))
    assert (found.layer, found.verdict) == ("act", verdict)
    assert found.value == pytest.approx((1 - np.tanh(np.array(z)) ** 2 < 0.1).mean(), abs=0.02)
    without = make_recording(steps, layers=layers, without=["histograms"])
    assert [finding.verdict for finding in saturation(without)] == ["not measured"]


def in_two_streams(make_recording, probe):
    """Training rows that wander without a trend, and probes of which every value is moved as ``probe`` says."""
    walk = np.random.default_rng(2).normal(0, 0.1, RECORDS).cumsum()
    draws = np.random.default_rng(0).normal(size=(RECORDS, EXAMPLES, UNITS))
    steps = {10 * i: {"fc": {"activation": z + walk[i]}} for i, z in enumerate(draws)}
    noise = np.random.default_rng(3).normal(0, 1e-3, RECORDS)
    probes = {10 * i: {"fc": {"activation": draws[0] + noise[i] + probe(i / (RECORDS - 1))}} for i in range(RECORDS)}
    row = {"weight_norm": 1.0, "update_norm": 1e-3, "gradient_norm": 1.0, "gradient_measured": 1}
    return steps, probes, {step: {"fc.weight": row} for step in steps}


@pytest.mark.parametrize(("drift", "verdict"), [(0.0, "ok"), (2.0, "watch")])
def test_probes_tell_what_training_rows_leave_open(make_recording, drift, verdict):
    steps, probes, parameters = in_two_streams(make_recording, lambda t: drift * t)
    (alone,) = operating_points(make_recording(steps, parameters=parameters))
    assert alone.verdict == "not measured"
    (found,) = operating_points(make_recording(steps, probe=probes, parameters=parameters))
    assert found.verdict == verdict
    assert "40 records of the probe from step 500" in found.reason


def test_probes_tell_of_operating_points_where_training_has_too_few_records(make_recording):
    steps, probes, parameters = in_two_streams(make_recording, lambda t: 0.0)
    few = {step: rows for step, rows in steps.items() if step % 100 == 0 or step == 890}
    (found,) = operating_points(make_recording(few, probe=probes, parameters=parameters))
    assert (found.layer, found.verdict) == ("fc", "ok")
