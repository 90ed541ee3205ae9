"""Units that are not silent and yet do nothing: each definition against raw arrays."""

import numpy as np
import pytest

from covshift.analysis.dead_units import dead_units
from covshift.analysis.unit_profile import unit_profile
from covshift.schema import Layer


def record_of(make_recording, kind, *outputs, gradients=None, **options):
    layer = Layer("act", kind, 0, 1, 0, outputs[0].shape[1], activation=kind, **options)
    signals = [{"activation": output} for output in outputs]
    for signal, gradient in zip(signals, gradients or [], strict=False):
        signal["activation_grad"] = gradient
    return make_recording({10 * i: {"act": signal} for i, signal in enumerate(signals)}, layers=[layer])


def test_a_unit_above_zero_nearly_everywhere_is_always_on(make_recording):
    z = np.random.default_rng(0).normal([0.0, 4.0], 1.0, (3, 500, 2))
    found = unit_profile(record_of(make_recording, "ReLU", *np.maximum(z, 0)))
    np.testing.assert_allclose(found["positive_rate"], (z > 0).mean(axis=(0, 1)))
    assert (found["positive_rate"].values > 0.99).tolist() == [False, True]
    assert found["examples"].values.tolist() == [1500, 1500]
    assert np.isnan(unit_profile(record_of(make_recording, "Sigmoid", *z))["positive_rate"]).all()


def test_a_unit_stuck_at_a_value_that_is_not_zero_is_constant_and_not_silent(make_recording):
    z = np.random.default_rng(1).normal(size=(4, 200, 4))
    output = np.clip(z * np.array([1, 1, 0, 1]) + np.array([0, 100, -1, 0]), 0, 6)
    recording = record_of(make_recording, "ReLU6", *output)
    found = unit_profile(recording)
    assert found["constant"].values.tolist() == [False, True, True, False]
    assert found["stuck"].values.tolist() == [False, True, False, False]
    assert dead_units(recording)["silent_examples"].values.tolist() == [0, 0, 800, 0]


def test_a_unit_that_hardly_ever_fires_is_not_stuck_at_what_it_gave(make_recording):
    output = np.abs(np.random.default_rng(6).normal(size=(4, 64, 3)))
    output[:, :, 1] = 0.0
    output[1, 5, 1] = 1e-4
    found = unit_profile(record_of(make_recording, "ReLU", *output))
    assert found["constant"].values.tolist() == [False, True, False]
    assert not found["stuck"].any()


def test_a_unit_that_gives_no_number_is_not_stuck(make_recording):
    output = np.abs(np.random.default_rng(7).normal(size=(4, 64, 3)))
    output[:, :, 1] = np.nan
    assert not unit_profile(record_of(make_recording, "ReLU", *output))["stuck"].any()


def test_a_unit_that_is_constant_in_a_batch_and_moves_between_batches_is_constant(make_recording):
    z = np.random.default_rng(2).normal(size=(4, 50, 3))
    z[:, :, 1] = np.arange(4)[:, None]
    assert unit_profile(record_of(make_recording, "SELU", *z))["constant"].values.tolist() == [False, True, False]


@pytest.mark.parametrize("kind", ["Tanh", "Sigmoid"])
def test_the_mean_derivative_is_that_of_the_raw_elements_and_bounds_the_active_share(make_recording, kind):
    z = np.random.default_rng(3).normal(0, [0.5, 3.0, 400.0], (3, 400, 3)).astype(np.float32).astype(np.float64)
    output = np.tanh(z) if kind == "Tanh" else 1 / (1 + np.exp(-np.clip(z, -700, 700)))
    derivative = 1 - output**2 if kind == "Tanh" else 4 * output * (1 - output)
    found = unit_profile(record_of(make_recording, kind, *output))["mean_derivative"]
    np.testing.assert_allclose(found, derivative.mean(axis=(0, 1)), rtol=1e-4, atol=1e-6)
    assert ((derivative >= 0.1).mean(axis=(0, 1)) <= 10 * found.values + 1e-9).all()
    assert np.isnan(unit_profile(record_of(make_recording, "ReLU", *output))["mean_derivative"]).all()


def test_dormancy_is_relative_to_the_layers_mean(make_recording):
    output = np.abs(np.random.default_rng(4).normal(size=(3, 300, 3))) * np.array([1.0, 1.0, 0.01])
    found = unit_profile(record_of(make_recording, "ReLU", *output))
    size = output.mean(axis=(0, 1))
    np.testing.assert_allclose(found["dormancy"], size / size.mean(), rtol=1e-5)
    assert (found["dormancy"].values <= 0.025).tolist() == [False, False, True]
    assert np.isnan(found["gradient_dormancy"]).all()


def test_dormancy_of_outputs_of_both_signs_is_not_known_and_of_dead_layers_zero(make_recording):
    both = np.random.default_rng(5).normal(size=(2, 50, 2))
    assert np.isnan(unit_profile(record_of(make_recording, "SELU", *both))["dormancy"]).all()
    assert unit_profile(record_of(make_recording, "ReLU", *both * 0))["dormancy"].values.tolist() == [0.0, 0.0]


def test_a_nan_in_the_window_leaves_dormancy_unknown_and_never_makes_it_small(make_recording):
    outputs = [np.array([[0.0, 2.0], [4.0, 2.0], [3.0, np.nan if step else 2.0]]) for step in range(2)]
    assert np.isnan(unit_profile(record_of(make_recording, "ReLU", *outputs))["dormancy"].values[1])
    finite = unit_profile(record_of(make_recording, "ReLU", outputs[0], outputs[0]))
    np.testing.assert_allclose(finite["dormancy"], np.array([7, 6]) / 6.5, rtol=1e-6)


def test_gradient_dormancy_compares_root_mean_squares(make_recording):
    rng = np.random.default_rng(6)
    gradients = rng.normal(size=(2, 100, 3)) * np.array([1.0, 2.0, 1e-3])
    found = unit_profile(record_of(make_recording, "ReLU", *rng.random((2, 100, 3)), gradients=list(gradients)))
    size = np.sqrt((gradients**2).mean(axis=(0, 1)))
    np.testing.assert_allclose(found["gradient_dormancy"], size / size.mean(), rtol=1e-5)


def test_a_linkage_is_one_unit_constant_only_if_all_members_are(make_recording):
    z = np.random.default_rng(7).normal(5, 1, (3, 80, 2))
    output = np.concatenate([np.maximum(z, 0), np.maximum(-z, 0)], axis=2)
    found = unit_profile(record_of(make_recording, "LinkedReLU", *output, linkage_members=2))
    assert found["members"].values.tolist() == [2, 2]
    assert found["constant"].values.tolist() == [False, False]
    assert (found["positive_rate"] > 0.99).all()


def test_units_are_those_of_dead_units(make_recording):
    recording = record_of(make_recording, "ReLU", np.ones((5, 3)))
    for name in ("layer", "unit_in_layer", "members"):
        assert unit_profile(recording)[name].values.tolist() == dead_units(recording)[name].values.tolist()
    empty = make_recording({0: {"act": {"activation": np.ones((5, 3))}}}, layers=[Layer("act", "ReLU", 0)])
    assert unit_profile(empty).sizes["unit"] == 0


@pytest.mark.parametrize("scale", [1e-32, 1e-24, 1e-18, 1e18, 1e19, 1e30])
def test_units_whose_variance_float32_cannot_hold_are_not_called_constant(make_recording, scale):
    z = np.random.default_rng(8).normal([0.3, 1.0, -2.0, 0.0], 1.0, (3, 200, 4)) * scale
    found = unit_profile(record_of(make_recording, "LeakyReLU", *z, gradients=list(z)))
    assert not found["constant"].any()
    assert not found["stuck"].any()
    root_mean_squares = np.sqrt(np.square(z / scale).mean(axis=(0, 1)))
    dormancy = found["gradient_dormancy"].values
    if scale in (1e-18, 1e18):
        np.testing.assert_allclose(dormancy, root_mean_squares / root_mean_squares.mean(), rtol=1e-5)
    else:
        assert np.isnan(dormancy).all()


def test_of_a_unit_with_elements_that_are_not_finite_no_moment_is_told(make_recording):
    output = np.tanh(np.random.default_rng(9).normal(size=(3, 200, 3)))
    output[1, :100, 1] = np.nan
    found = unit_profile(record_of(make_recording, "Tanh", *output))
    expected = 1 - np.square(output).mean(axis=(0, 1))
    # The unit's other two records are whole.
    expected[1] = 1 - np.square(output[[0, 2], :, 1]).mean()
    np.testing.assert_allclose(found["mean_derivative"], expected, rtol=1e-5)
    assert not found["constant"].any()
