"""Planted drifts of location, scale, shape and activity; stillness with and without learning; too little data."""

import numpy as np
import pytest

from covshift.analysis import operating_point, weight_path
from covshift.exceptions import InvalidArgumentError, SignalNotRecorded
from covshift.schema import Layer, Mode

RECORDS, EXAMPLES, UNITS = 100, 100, 16


def record_of(change, kind="fc", seed=0):
    """``change(values, t)`` of independent normal values in every record, t rising from 0 to 1 over the run."""
    rng = np.random.default_rng(seed)
    draws = rng.normal(size=(RECORDS, EXAMPLES, UNITS))
    return [{"activation": change(values, index / (RECORDS - 1))} for index, values in enumerate(draws)]


def build(make_recording, *, update=1e-3, layers=None, **series):
    steps = {10 * i: {name: records[i] for name, records in series.items()} for i in range(RECORDS)}
    names = list(series) if layers is None else [layer.name for layer in layers]
    row = {"weight_norm": 1.0, "update_norm": update, "gradient_norm": 1.0, "gradient_measured": 1}
    rows = {step: {f"{name}.weight": row for name in names} for step in steps}
    return make_recording(steps, layers=layers, parameters=rows)


def test_still_layers_are_stable_and_drifting_ones_are_not(make_recording):
    recording = build(
        make_recording,
        still=record_of(lambda v, t: v),
        mean=record_of(lambda v, t: v + 2.0 * t, seed=1),
        scale=record_of(lambda v, t: v * np.exp(1.5 * t), seed=2),
        opposite=record_of(lambda v, t: v + 2.0 * t * np.tile([1, -1], UNITS // 2), seed=3),
    )
    found = operating_point.stability(recording)
    assert dict(zip(found["layer"].values, found["state"].values, strict=True)) == {
        "still": "STABLE",
        "mean": "DRIFTING",
        "scale": "DRIFTING",
        "opposite": "DRIFTING",
    }
    # The window of 40 records is 0.394 of the run.
    assert float(found["location_drift"].sel(layer="mean")) == pytest.approx(2.0 * 39 / 99, abs=0.15)
    assert float(found["location_drift"].sel(layer="opposite")) == pytest.approx(2.0 * 39 / 99, abs=0.15)
    assert float(found["scale_drift"].sel(layer="scale")) == pytest.approx(1.5 * 39 / 99, abs=0.1)
    assert found["by_units"].all()
    assert found.attrs["window_start"] == 600
    still = found.sel(layer="still")
    assert -0.2 < float(still["location_low"]) < float(still["location_high"]) < 0.2


def test_a_layer_settles_when_it_comes_within_the_band_for_good(make_recording):
    found = operating_point.stability(
        build(make_recording, late=record_of(lambda v, t: v + 5.0 * max(0.3 - t, 0.0), seed=4))
    ).sel(layer="late")
    assert str(found["state"].values) == "STABLE"
    low, settled, high = (int(found[f"settled_{name}"]) for name in ("low", "step", "high"))
    # 5 (0.3 - t) falls to 0.2 sd at t = 0.26, step 257.
    assert 150 <= settled <= 300
    assert low <= settled
    assert high == -1 or high >= settled


def test_a_change_of_shape_alone_is_drift(make_recording):
    def widen_tails(values, t):
        heavy = np.sign(values) * values**2
        return (values if t < 0.7 else heavy) / np.std(values if t < 0.7 else heavy)

    found = operating_point.stability(build(make_recording, shape=record_of(widen_tails, seed=5))).sel(layer="shape")
    assert float(found["shape_shift"]) > 0.2
    assert str(found["state"].values) == "DRIFTING"


def test_without_updates_a_still_layer_is_frozen_and_not_stable(make_recording):
    found = operating_point.stability(build(make_recording, update=1e-8, still=record_of(lambda v, t: v)))
    assert found["state"].values.tolist() == ["FROZEN"]


def test_without_a_gradient_a_layer_is_frozen(make_recording):
    records = [record | {"activation_grad": np.zeros((EXAMPLES, UNITS))} for record in record_of(lambda v, t: v)]
    assert operating_point.stability(build(make_recording, fc=records))["state"].values.tolist() == ["FROZEN"]


def test_few_records_are_undetermined_however_still(make_recording):
    steps = {i: {"fc": record} for i, record in enumerate(record_of(lambda v, t: v)[:70])}
    found = operating_point.stability(make_recording(steps))
    assert found["state"].values.tolist() == ["UNDETERMINED"]
    assert found["records"].values.tolist() == [35]
    assert found["settled_step"].values.tolist() == [-1]


def test_a_random_walk_is_not_called_stable(make_recording):
    walk = np.random.default_rng(6).normal(0, 0.1, RECORDS).cumsum()
    records = record_of(lambda v, t: v + walk[round(t * (RECORDS - 1))], seed=7)
    assert operating_point.stability(build(make_recording, fc=records))["state"].values.tolist() != ["STABLE"]


def test_the_state_of_an_empty_or_constant_layer_is_undetermined(make_recording):
    constant = [{"activation": np.full((EXAMPLES, UNITS), 2.0)} for _ in range(RECORDS)]
    assert operating_point.stability(build(make_recording, fc=constant))["state"].values.tolist() == ["UNDETERMINED"]
    with pytest.raises(SignalNotRecorded):
        operating_point.stability(make_recording({}))


def relu_net(make_recording, shift):
    layers = [
        Layer("fc", "Linear", 0, 1, 0, UNITS),
        Layer("act", "ReLU", 1, 1, 0, UNITS, activation="ReLU", preactivation_of="fc", structural_measured=True),
    ]
    z = [record["activation"] + shift * index / RECORDS for index, record in enumerate(record_of(lambda v, t: v))]
    steps = {i: {"fc": {"activation": v}, "act": {"activation": np.maximum(v, 0)}} for i, v in enumerate(z)}
    return make_recording(steps, layers=layers, flat={"act": lambda z: z <= 0}, mode=Mode.TRAIN)


def test_the_active_mass_is_the_share_with_a_derivative_and_its_drift_counts(make_recording):
    still = operating_point.stability(relu_net(make_recording, 0.0)).sel(layer="act")
    assert float(still["active_mass"]) == pytest.approx(0.5, abs=0.02)
    assert float(still["mass_low"]) < 0 < float(still["mass_high"])
    assert str(still["state"].values) == "STABLE"
    sinking = operating_point.stability(relu_net(make_recording, -1.5)).sel(layer="act")
    assert float(sinking["mass_high"]) < 0
    assert str(sinking["state"].values) == "DRIFTING"


def test_susceptibility_is_drift_by_the_way_the_weights_went(make_recording):
    found = operating_point.stability(
        build(make_recording, update=1e-3, mean=record_of(lambda v, t: v + 2.0 * t, seed=1))
    ).sel(layer="mean")
    # 40 records 10 steps apart: 391 steps of 1e-3 each.
    assert float(found["weight_path"]) == pytest.approx(0.391)
    assert float(found["susceptibility"]) == pytest.approx(float(found["location_drift"]) / 0.391)


def test_parameters_lie_upstream_of_every_layer_at_or_after_their_module(make_recording):
    names = ["block.fc", "block.act", "head:0", "head:1", "tail#2"]
    layers = [Layer(name, "Linear", depth, 1, 0, 2) for depth, name in enumerate(names)]
    recording = make_recording({0: {name: {"activation": np.ones((2, 2))} for name in names}}, layers=layers)
    parameters = np.array(["block.fc.weight", "block.scale", "head.weight", "tail.bias", "elsewhere"])
    depths = weight_path.parameter_depths(parameters, recording["layers"].to_dataset())
    assert depths.tolist() == [0, 0, 2, 4, 0]


@pytest.mark.parametrize("wrong", [{"share": 0.0}, {"share": 1.5}, {"min_records": 21}])
def test_windows_that_cannot_be_are_refused(make_recording, wrong):
    with pytest.raises(InvalidArgumentError, match="expected 0 < share <= 1 and min_records >= 22"):
        operating_point.stability(build(make_recording, fc=record_of(lambda v, t: v)), **wrong)


def masked(values, t):
    hidden = np.random.default_rng(0).random(values.shape) < 0.1 + 0.7 * t
    return np.where(hidden, -np.inf, values)


@pytest.mark.parametrize(
    "change",
    [masked, lambda v, t: v * 1e-24, lambda v, t: v * 1e24, lambda v, t: v + 1e9],
    ids=["masked", "tiny", "huge", "far"],
)
def test_a_still_layer_does_not_drift_where_float32_or_a_mask_hides_its_units(make_recording, change):
    found = operating_point.stability(build(make_recording, still=record_of(change))).sel(layer="still")
    assert found["state"].item() in ("STABLE", "UNDETERMINED")
    assert abs(float(found["scale_drift"])) < 0.1


def test_units_known_in_some_records_only_drift_by_those_they_are_known_in(make_recording):
    still, wide = record_of(lambda v, t: v), record_of(lambda v, t: v * np.r_[np.full(8, 1e6), np.ones(8)])
    for index, record in enumerate(wide):
        if index > 80:
            record["activation"][0, :8] = np.nan
    found = operating_point.stability(build(make_recording, still=still, wide=wide)).sel(layer="wide")
    assert abs(float(found["scale_drift"])) < 0.1
