"""Reading rows by label: moments against raw arrays, the joined view of pre-activations, and what is missing."""

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from covshift.analysis import gradient_health, linkage, operating_point, rows, shift
from covshift.analysis.dead_units import survival
from covshift.analysis.distributions import river
from covshift.exceptions import InvalidArgumentError, SignalNotRecorded
from covshift.schema import Layer, Status

CONV = Layer("conv", "Conv2d", 0, 1, 0, 3)
ACT = Layer("act", "ReLU", 1, 1, 0, 3, activation="ReLU", preactivation_of="conv")
OWN = Layer("own", "ReLU", 2, 1, 0, 3, activation="ReLU")


@pytest.fixture
def tensors():
    rng = np.random.default_rng(0)
    z, own = rng.normal(1.0, 2.0, size=(2, 8, 3, 5))
    return {
        "conv": {"activation": z, "activation_grad": rng.normal(size=z.shape)},
        "act": {"activation": np.maximum(z, 0)},
        "own": {"preactivation": own, "preactivation_grad": own * 2, "activation": np.maximum(own, 0)},
    }


@pytest.fixture
def recording(make_recording, tensors):
    return make_recording({0: tensors, 10: tensors}, layers=[CONV, ACT, OWN])


def test_moments_are_those_of_the_raw_elements(recording, tensors):
    raw = tensors["conv"]["activation"].ravel()
    found = rows.moments(recording).sel(step=10, layer="conv")
    expected = {
        "n": raw.size,
        "n_examples": 8,
        "mean": raw.mean(),
        "sd": raw.std(),
        "rms": np.sqrt((raw**2).mean()),
        "skewness": stats.skew(raw),
        "kurtosis": stats.kurtosis(raw),
    }
    for name, value in expected.items():
        assert float(found[name]) == pytest.approx(value), name


def test_moments_are_over_finite_elements(make_recording):
    raw = np.array([[1.0, 2.0], [np.nan, 4.0], [np.inf, -np.inf]])
    found = rows.moments(make_recording({0: {"fc": {"activation": raw}}})).squeeze()
    assert float(found["n"]) == 3
    assert float(found["mean"]) == pytest.approx(7 / 3)
    assert float(found["sd"]) == pytest.approx(np.std([1, 2, 4]))


def test_moments_without_finite_elements_are_nan(make_recording):
    found = rows.moments(make_recording({0: {"fc": {"activation": np.full((2, 2), np.nan)}}})).squeeze()
    assert float(found["n"]) == 0
    assert all(np.isnan(found[name]) for name in ("mean", "sd", "rms", "skewness", "kurtosis"))


def test_a_constant_has_no_shape(make_recording):
    found = rows.moments(make_recording({0: {"fc": {"activation": np.full((4, 2), 3.0)}}})).squeeze()
    assert (float(found["mean"]), float(found["sd"])) == (3.0, 0.0)
    assert np.isnan(found["skewness"])
    assert np.isnan(found["kurtosis"])


def test_a_layer_that_did_not_run_reads_nan_not_zero(make_recording):
    steps = {0: {"a": {"activation": np.ones((2, 2))}, "b": {"activation": np.ones((2, 2))}}, 1: {}}
    steps[1] = {"a": {"activation": np.ones((2, 2))}}
    mean = rows.moments(make_recording(steps))["mean"]
    assert float(mean.sel(step=0, layer="b")) == 1.0
    assert np.isnan(mean.sel(step=1, layer="b"))


def test_the_joined_view_shows_a_preactivation_under_its_nonlinearity(recording, tensors):
    z = rows.layer_rows(recording, signal="preactivation")
    assert float(z["sum"].sel(step=0, layer="act")) == pytest.approx(tensors["conv"]["activation"].sum())
    assert float(z["sum"].sel(step=0, layer="own")) == pytest.approx(tensors["own"]["preactivation"].sum())
    assert int(z["status"].sel(step=0, layer="act")) == Status.OK
    assert int(z["count"].sel(step=0, layer="conv")) == 0
    assert z["count"].dtype == recording["layers"]["count"].dtype


def test_the_joined_view_of_gradients_reads_the_producers_output_gradient(recording, tensors):
    gradient = rows.layer_rows(recording, signal="preactivation_grad")
    assert float(gradient["sum"].sel(step=0, layer="act")) == pytest.approx(tensors["conv"]["activation_grad"].sum())
    assert float(gradient["sum"].sel(step=0, layer="own")) == pytest.approx(tensors["own"]["preactivation_grad"].sum())


def test_structural_zeros_stay_with_the_nonlinearity_in_the_joined_view(make_recording, tensors):
    flat = {"act": lambda z: z <= 0, "own": lambda z: z <= 0}
    recording = make_recording({0: tensors}, layers=[CONV, ACT, OWN], flat=flat)
    zeros = rows.layer_rows(recording, signal="preactivation")["structural_zero_count"].sel(step=0)
    assert int(zeros.sel(layer="act")) == (tensors["conv"]["activation"] <= 0).sum()
    assert int(zeros.sel(layer="own")) == (tensors["own"]["preactivation"] <= 0).sum()


def test_a_producer_outside_the_recording_leaves_the_row_empty(make_recording, tensors):
    recording = make_recording({0: {name: tensors[name] for name in ("act", "own")}}, layers=[ACT, OWN])
    assert int(rows.layer_rows(recording, signal="preactivation")["count"].sel(step=0, layer="act")) == 0


def test_a_signal_that_was_not_recorded_is_named_with_those_that_were(recording):
    with pytest.raises(SignalNotRecorded) as caught:
        rows.layer_rows(recording, signal="input")
    assert str(caught.value) == (
        "signal='input': no input of the model was recorded (2 records of 3 layers); "
        "recorded there: preactivation, activation, activation_grad, preactivation_grad; "
        "signals= of covshift.record says what is"
    )
    assert isinstance(caught.value, KeyError)


def test_an_empty_recording_has_no_signals(make_recording):
    with pytest.raises(SignalNotRecorded, match=r"0 records of 0 layers\); recorded there: nothing"):
        rows.moments(make_recording({}))


def test_a_missing_group_is_named_with_those_that_are_there(make_recording, tensors):
    recording = make_recording({0: tensors}, layers=[CONV, ACT, OWN], without=["units"])
    with pytest.raises(SignalNotRecorded, match="no group 'units'; it holds layers, histograms"):
        rows.group(recording, "units")
    with pytest.raises(SignalNotRecorded, match="no group 'evaluation/layers'"):
        rows.group(recording, "layers", stream="evaluation")


@pytest.mark.parametrize("not_a_tree", ["run.zarr", xr.Dataset(), None])
def test_what_is_no_recording_is_refused(not_a_tree):
    with pytest.raises(InvalidArgumentError, match=r"recording: expected the xarray.DataTree that covshift.open"):
        rows.group(not_a_tree, "layers")


def test_an_unknown_stream_is_refused(recording):
    with pytest.raises(InvalidArgumentError, match="stream='test': expected one of 'train', 'evaluation'"):
        rows.group(recording, "layers", stream="test")


def test_evaluation_rows_are_read_apart_from_training_rows(make_recording):
    recording = make_recording(
        {0: {"fc": {"activation": np.zeros((2, 2))}}}, evaluation={5: {"fc": {"activation": np.ones((4, 2))}}}
    )
    assert float(rows.moments(recording)["mean"].squeeze()) == 0
    evaluated = rows.moments(recording, stream="evaluation")
    assert evaluated["step"].values.tolist() == [5]
    assert float(evaluated["mean"].squeeze()) == 1


@pytest.mark.parametrize("records", [0, 1, 4, 5, 24, 25, 26, 1000])
def test_the_last_window_is_a_fifth_and_at_least_five_records(records):
    window = rows.last_window(records)
    size = window.stop - window.start
    assert window.stop == records
    assert size == min(records, max(5, -(-records // 5)))


@given(values=st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=9), holes=st.integers(0, 5))
def test_the_typical_value_is_the_median_of_what_was_measured(values, holes):
    series = np.array(values + [np.nan] * holes)[:, None]
    assert rows.median(series) == pytest.approx([np.median(values)])


def test_the_typical_value_of_nothing_is_nan():
    assert np.isnan(rows.median(np.full((3, 2), np.nan))).all()
    assert np.isnan(rows.median(np.zeros((0, 2)))).all()


def test_a_recording_in_place_of_a_result_is_refused_with_the_call_that_makes_one(make_recording):
    recording = make_recording({0: {"a": {"activation": np.ones((2, 2))}}})
    call = r"call covshift\.gradient_health\.dead_units first"
    with pytest.raises(InvalidArgumentError, match=f"got a recording; {call}"):
        survival(recording)
    with pytest.raises(InvalidArgumentError, match=f"got one without layer, examples, silent .*{call}"):
        survival(xr.Dataset({"w1": ("step", [1.0])}))
    with pytest.raises(InvalidArgumentError, match="got dict"):
        survival({})


@pytest.mark.parametrize(
    "function",
    [
        shift.between_steps,
        shift.between_units,
        operating_point.stability,
        gradient_health.zero_rate,
        gradient_health.dead_units,
        gradient_health.norm_profile,
        gradient_health.update_ratio,
        gradient_health.trust_ratio,
        gradient_health.clip_factor,
        gradient_health.growth_over_time,
        gradient_health.range_risk,
        gradient_health.unit_profile,
        gradient_health.gradient_turn,
        gradient_health.signal_to_noise,
        linkage.violation_rate,
        river,
    ],
)
@pytest.mark.parametrize("wrong", [xr.Dataset(), "run.zarr", None])
def test_what_is_no_recording_is_refused_by_every_analysis(function, wrong):
    with pytest.raises(InvalidArgumentError, match=r"expected the xarray\.DataTree that covshift\.open returns, got"):
        function(wrong, layer="a") if function is river else function(wrong)
