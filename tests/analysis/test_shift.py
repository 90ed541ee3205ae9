"""Shift between steps and runs: against raw arrays, under the null, and where there is nothing to compare."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from covshift.analysis import shift
from covshift.exceptions import InvalidArgumentError, SignalNotRecorded
from covshift.schema import Layer, Mode

DISTANCES = [
    "w1",
    "w1_of_moments",
    "ks",
    "energy",
    "js",
    "smd",
    "log_var_ratio",
    "u",
    "u_noise",
    "equivalent_shift",
    "noise_floor",
]


def normal(rng, mean=0.0, sd=1.0, examples=64):
    return {"activation": rng.normal(mean, sd, size=(examples, 3, 8))}


@pytest.fixture
def tensors():
    rng = np.random.default_rng(0)
    return {
        0: {"still": normal(rng), "moves": normal(rng)},
        10: {"still": normal(rng), "moves": normal(rng, 0.5)},
        20: {"still": normal(rng), "moves": normal(rng, 0.5, 2.0)},
    }


@pytest.fixture
def recording(make_recording, tensors):
    return make_recording(tensors)


def test_moment_distances_are_those_of_the_raw_arrays(recording, tensors):
    found = shift.between_steps(recording).sel(step=20, layer="moves")
    before, now = (tensors[step]["moves"]["activation"] for step in (10, 20))
    pooled = np.sqrt((before.var() + now.var()) / 2)
    assert float(found["smd"]) == pytest.approx((now.mean() - before.mean()) / pooled)
    assert float(found["log_var_ratio"]) == pytest.approx(np.log(now.var() / before.var()))
    assert int(found["n_examples"]) == 64


def test_wasserstein_is_scipys_in_units_of_the_references_sd(recording, tensors):
    found = shift.between_steps(recording, reference="first")["w1"]
    for step in (10, 20):
        before, now = (tensors[s]["moves"]["activation"].ravel() for s in (0, step))
        expected = stats.wasserstein_distance(before, now) / before.std()
        assert float(found.sel(step=step, layer="moves")) == pytest.approx(expected, rel=0.02)


def test_each_step_is_compared_with_its_reference(recording):
    previous, first, at_ten = (
        shift.between_steps(recording, reference=ref)["smd"] for ref in ("previous", "first", 10)
    )
    assert np.isnan(previous.sel(step=0)).all()
    assert np.isnan(first.sel(step=0)).all()
    assert np.isnan(at_ten.sel(step=10)).all()
    np.testing.assert_allclose(previous.sel(step=10), first.sel(step=10))
    np.testing.assert_allclose(previous.sel(step=20), at_ten.sel(step=20))
    np.testing.assert_allclose(at_ten.sel(step=0), -first.sel(step=10))


def test_a_still_layer_stays_near_its_noise_floor_and_a_moved_one_leaves_it(recording):
    found = shift.between_steps(recording)
    ratio = found["w1"] / found["noise_floor"]
    assert (ratio.sel(layer="still").dropna("step") < 2).all()
    assert float(ratio.sel(layer="moves", step=10)) > 5
    assert float(found["equivalent_shift"].sel(layer="moves", step=10)) == pytest.approx(0.5, abs=0.1)


def test_the_equivalent_shift_inverts_the_distance_of_two_normals():
    x = np.linspace(-12, 12, 40_001)
    u = np.trapezoid((stats.norm.cdf(x) - stats.norm.cdf(x - 0.1)) ** 2, x)
    assert np.sqrt(u / shift.CRAMER_OF_SMALL_SHIFT) == pytest.approx(0.1, rel=1e-3)


def test_the_equivalent_shift_is_never_negative(recording):
    found = shift.between_steps(recording)
    assert float(found["u"].sel(layer="still").min()) < 0.01
    assert (found["equivalent_shift"].dropna("step") >= 0).all()


def test_identical_records_do_not_differ(make_recording):
    same = normal(np.random.default_rng(1))
    found = shift.between_steps(make_recording({0: {"fc": same}, 1: {"fc": same}})).sel(step=1, layer="fc")
    for name in ("w1", "ks", "js", "smd", "log_var_ratio"):
        assert float(found[name]) == pytest.approx(0, abs=1e-12)


def test_steps_are_those_of_the_histograms(make_recording, tensors):
    found = shift.between_steps(make_recording(tensors, histogram_steps=[0, 20]))
    assert found["step"].values.tolist() == [0, 20]
    assert np.isfinite(found["w1"].sel(step=20)).all()


def test_one_record_has_nothing_to_compare_with(make_recording, tensors):
    found = shift.between_steps(make_recording({0: tensors[0]}))
    assert dict(found.sizes) == {"step": 1, "layer": 2, "window": 1}
    assert all(np.isnan(found[name]).all() for name in DISTANCES)
    assert not found["off_centre"].any()


def test_a_layer_missing_on_one_side_is_nan(make_recording):
    rng = np.random.default_rng(2)
    both = {"a": normal(rng), "b": normal(rng)}
    found = shift.between_steps(make_recording({0: both, 1: {"a": normal(rng)}, 2: both}))
    assert np.isnan(found["w1"].sel(layer="b")).all()
    assert np.isfinite(found["w1"].sel(layer="a", step=[1, 2])).all()


@pytest.mark.parametrize("value", [0.0, 3.0, np.nan, np.inf])
def test_a_constant_or_non_finite_reference_gives_nan(make_recording, value):
    steps = {0: {"fc": {"activation": np.full((8, 3), value)}}, 1: {"fc": normal(np.random.default_rng(3))}}
    found = shift.between_steps(make_recording(steps)).sel(step=1, layer="fc")
    for name in ("w1", "u", "equivalent_shift", "noise_floor", "log_var_ratio"):
        assert np.isnan(found[name]), name


def test_off_centre_layers_are_flagged_and_their_moments_still_hold(make_recording):
    rng = np.random.default_rng(4)
    steps = {step: {"near": normal(rng, 2.0), "far": normal(rng, 100.0 + step)} for step in (0, 1)}
    found = shift.between_steps(make_recording(steps)).sel(step=1)
    assert not bool(found["off_centre"].sel(layer="near"))
    assert bool(found["off_centre"].sel(layer="far"))
    assert float(found["smd"].sel(layer="far")) == pytest.approx(1.0, abs=0.15)


@pytest.mark.parametrize("examples", [1, 3])
def test_noise_needs_two_example_groups(make_recording, examples):
    rng = np.random.default_rng(5)
    steps = {step: {"fc": normal(rng, examples=examples)} for step in (0, 1)}
    found = shift.between_steps(make_recording(steps)).sel(step=1, layer="fc")
    assert np.isfinite(found["w1"])
    assert np.isnan(found["noise_floor"]) == np.isnan(found["u"]) == (examples == 1)


def test_gradients_have_no_example_groups_hence_no_noise_floor(make_recording):
    rng = np.random.default_rng(6)
    steps = {step: {"fc": {"activation_grad": rng.normal(0, 1e-12, size=(64, 4))}} for step in (0, 1)}
    found = shift.between_steps(make_recording(steps), signal="activation_grad").sel(step=1, layer="fc")
    assert 0 < float(found["w1"]) < 1
    assert np.isnan(found["u"])
    assert np.isnan(found["noise_floor"])


def test_preactivations_are_compared_under_their_nonlinearity(make_recording):
    layers = [
        Layer("conv", "Conv2d", 0, 1, 0, 3),
        Layer("act", "ReLU", 1, 1, 0, 3, activation="ReLU", preactivation_of="conv"),
        Layer("own", "ReLU", 2, 1, 0, 3, activation="ReLU"),
    ]
    rng = np.random.default_rng(7)
    steps = {
        step: {"conv": normal(rng, 0.3 * step), "own": {"preactivation": rng.normal(size=(64, 3))}} for step in (0, 1)
    }
    recording = make_recording(steps, layers=layers)
    joined = shift.between_steps(recording, signal="preactivation").sel(step=1)
    produced = shift.between_steps(recording).sel(step=1)
    for name in DISTANCES:
        known = float(produced[name].sel(layer="conv"))
        assert float(joined[name].sel(layer="act")) == pytest.approx(known, rel=1e-12)
    assert np.isfinite(joined["w1"].sel(layer="own"))
    assert np.isnan(joined["w1"].sel(layer="conv"))


@pytest.mark.parametrize("reference", ["last", 5, 10.5, None])
def test_a_reference_that_is_no_step_is_refused_with_those_that_are(recording, reference):
    with pytest.raises(InvalidArgumentError, match=r"expected 'previous', 'first', a step .*: 0, 10, 20"):
        shift.between_steps(recording, reference=reference)


def test_without_histograms_the_missing_group_is_named(make_recording, tensors):
    with pytest.raises(SignalNotRecorded, match="no group 'histograms'"):
        shift.between_steps(make_recording(tensors, without=["histograms"]))
    with pytest.raises(SignalNotRecorded, match="no step has both moments and a histogram"):
        shift.between_steps(make_recording(tensors, histogram_steps=[]))


def test_runs_are_compared_at_their_last_common_step(make_recording, tensors):
    rng = np.random.default_rng(8)
    other = make_recording({10: {"moves": normal(rng, 1.5), "extra": normal(rng)}, 30: {"moves": normal(rng)}})
    found = shift.between_runs(make_recording(tensors), other)
    assert int(found["step"]) == 10
    assert found["layer"].values.tolist() == ["moves"]
    assert float(found["smd"].sel(layer="moves")) == pytest.approx(1.0, abs=0.1)


def test_two_runs_of_one_recording_differ_as_its_steps_do(make_recording, tensors, recording):
    other = make_recording({10: tensors[0]})
    between = shift.between_runs(other, recording, step=10)
    stepped = shift.between_steps(recording).sel(step=10)
    for name in DISTANCES:
        np.testing.assert_allclose(between[name], stepped[name])


def test_runs_with_nothing_in_common_are_refused(make_recording, recording):
    rng = np.random.default_rng(9)
    with pytest.raises(InvalidArgumentError, match="share 0 steps with histograms and 1 layers"):
        shift.between_runs(recording, make_recording({5: {"moves": normal(rng)}}))
    with pytest.raises(InvalidArgumentError, match="share 1 steps with histograms and 0 layers"):
        shift.between_runs(recording, make_recording({10: {"other": normal(rng)}}))
    with pytest.raises(InvalidArgumentError, match="step=7: expected a step with histograms in both runs: 0, 10, 20"):
        shift.between_runs(recording, recording, step=7)


def test_the_energy_distance_is_scipys_in_units_of_the_references_sd(recording, tensors):
    found = shift.between_steps(recording)["energy"].sel(step=10, layer="moves")
    before, now = (tensors[step]["moves"]["activation"].ravel() for step in (0, 10))
    expected = stats.energy_distance(before / before.std(), now / before.std())
    assert float(found) == pytest.approx(expected, rel=0.02)


def test_the_moment_distance_is_that_of_two_normals(make_recording):
    rng = np.random.default_rng(10)
    steps = {0: {"fc": normal(rng, 300.0)}, 1: {"fc": normal(rng, 300.5, 1.4)}}
    found = shift.between_steps(make_recording(steps)).sel(step=1, layer="fc")
    one, two = (steps[step]["fc"]["activation"] for step in (0, 1))
    quantiles = stats.norm.ppf((np.arange(200_000) + 0.5) / 200_000)
    coupled = np.abs(two.mean() - one.mean() + (two.std() - one.std()) * quantiles).mean() / one.std()
    assert bool(found["off_centre"])
    assert float(found["w1_of_moments"]) == pytest.approx(coupled, rel=1e-4)


def test_a_pooled_reference_is_the_record_of_all_its_examples(make_recording, tensors):
    joined = {"moves": {"activation": np.concatenate([tensors[s]["moves"]["activation"] for s in (0, 10)])}}
    together = shift.between_steps(make_recording({0: joined, 20: tensors[20]}), reference="first")
    window = shift.between_steps(make_recording(tensors), reference=(0, 15))
    assert np.isnan(window["w1"].sel(step=[0, 10])).all()
    for name in DISTANCES:
        np.testing.assert_allclose(window[name].sel(step=20, layer="moves"), together[name].sel(step=20, layer="moves"))


def test_a_reference_window_without_histograms_is_refused(recording):
    with pytest.raises(InvalidArgumentError, match="two steps with histograms between them: 0, 10, 20"):
        shift.between_steps(recording, reference=(11, 19))


def test_on_the_same_examples_nothing_is_subtracted(recording):
    sampled = shift.between_steps(recording).sel(step=10)
    paired = shift.between_steps(recording, same_examples=True).sel(step=10)
    np.testing.assert_allclose(paired["u"], sampled["u"] + sampled["u_noise"])
    assert (paired["u_noise"] == 0).all()
    assert (paired["noise_floor"] == 0).all()
    assert np.isnan(paired["p"]).all()


def many_records(rng, count, drift=0.0, correlation=0.3):
    """Records of one layer whose elements share their example's value; every other record ``drift`` sd apart."""
    for record in range(count):
        common, own = rng.normal(size=(24, 1)), rng.normal(size=(24, 6))
        yield record % 2 * drift + np.sqrt(correlation) * common + np.sqrt(1 - correlation) * own


def test_ten_pairs_tell_a_moving_layer_from_a_still_one(make_recording):
    rng = np.random.default_rng(11)
    series = {"still": list(many_records(rng, 21)), "moving": list(many_records(rng, 21, 0.5))}
    steps = {10 * i: {name: {"activation": records[i]} for name, records in series.items()} for i in range(21)}
    found = shift.between_steps(make_recording(steps))
    assert (found["pairs"].values.tolist(), found["window_start"].values.tolist()) == ([10], [10])
    assert found["window_end"].values.tolist() == [200]
    p = found["p"].squeeze("window")
    assert float(p.sel(layer="still")) > 0.05
    assert float(p.sel(layer="moving")) <= 0.001
    assert float(found["p_holm"].sel(layer="moving").squeeze()) == pytest.approx(2 * float(p.sel(layer="moving")))
    assert float(found["pooled_shift"].sel(layer="moving").squeeze()) == pytest.approx(0.5, abs=0.12)


def test_fewer_than_ten_pairs_are_not_tested(make_recording):
    rng = np.random.default_rng(12)
    steps = {i: {"fc": {"activation": values}} for i, values in enumerate(many_records(rng, 19, 3.0))}
    found = shift.between_steps(make_recording(steps))
    assert found["pairs"].values.tolist() == [9]
    assert np.isnan(found["p"]).all()
    with pytest.raises(InvalidArgumentError, match="pairs_per_window=9: expected at least 10"):
        shift.between_steps(make_recording(steps), pairs_per_window=9)


def test_pairs_that_share_a_reference_are_not_disjoint_and_not_tested(make_recording):
    rng = np.random.default_rng(13)
    steps = {i: {"fc": {"activation": values}} for i, values in enumerate(many_records(rng, 21, 3.0))}
    assert np.isnan(shift.between_steps(make_recording(steps), reference="first")["p"]).all()


def test_under_batch_norm_in_training_mode_the_noise_is_unknown_and_nothing_is_tested(make_recording):
    rng = np.random.default_rng(14)
    layers = [Layer("fc", "Linear", 0, 1, 0, 6), Layer("bn", "BatchNorm1d", 1, 1, 0, 6), Layer("on", "ReLU", 2)]
    series = {name: list(many_records(rng, 20)) for name in ("fc", "bn", "on")}
    steps = {i: {name: {"activation": records[i]} for name, records in series.items()} for i in range(20)}
    options = {"layers": [replace(layer, unit_count=0, example_axis=0) for layer in layers]}
    trained = shift.between_steps(make_recording(steps, mode=Mode.TRAIN, **options))
    evaluated = shift.between_steps(make_recording(steps, mode=Mode.EVAL, **options))
    assert trained["noise_known"].isel(step=-1).values.tolist() == [True, False, False]
    assert np.isnan(trained["p"].values).tolist() == [[False, True, True]]
    assert evaluated["noise_known"].isel(step=-1).all()
    assert np.isfinite(evaluated["p"]).all()


def shaped(values, scale):
    return {"activation": (scale * values).reshape(-1, 10)}


@pytest.mark.parametrize("rectified", [False, True])
@pytest.mark.parametrize("moved", [0.0, 0.3, 2.0])
@pytest.mark.parametrize("exponent", [-30, -12, -9, -8, -7, -6, -3, 0, 3, 4, 5, 6, 9, 30])
def test_whatever_the_scale_a_distance_holds_or_is_said_not_to(make_recording, exponent, moved, rectified):
    rng = np.random.default_rng(exponent + 30)
    one, two = rng.normal(size=(2, 4000)) + np.array([[0.0], [moved]])
    if rectified:
        one, two = np.maximum(one, 0), np.maximum(two, 0)
    recording = make_recording({step: {"a": shaped(part, 10.0**exponent)} for step, part in ((0, one), (1, two))})
    found = shift.between_steps(recording).sel(step=1, layer="a")
    if not -8 < exponent < 6:
        assert found["off_centre"]
    if -6 <= exponent <= 3:
        assert not found["off_centre"]
    if not found["off_centre"]:
        assert float(found["w1"]) == pytest.approx(stats.wasserstein_distance(one, two) / one.std(), abs=0.1)
    moments = (two.mean() - one.mean()) / np.sqrt((one.var() + two.var()) / 2)
    assert float(found["smd"]) == pytest.approx(moments, rel=1e-6)


@pytest.mark.parametrize("outlier", [70_000.0, 1e9])
def test_a_few_elements_beyond_the_bins_hide_no_shift_of_the_others(make_recording, outlier):
    rng = np.random.default_rng(1)
    one, two = rng.normal(size=(2, 4000)) * 1000
    two[0] = outlier
    recording = make_recording({step: {"a": shaped(part, 1.0)} for step, part in ((0, one), (1, two))})
    found = shift.between_steps(recording).sel(step=1, layer="a")
    expected = stats.wasserstein_distance(one, np.minimum(two, 2.0**16)) / one.std()
    assert not found["off_centre"]
    assert float(found["w1"]) == pytest.approx(expected, abs=0.01)
