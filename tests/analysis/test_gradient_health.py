"""Zero rates, the slope of gradient norms over depth, and update ratios, against raw arrays and scipy."""

import numpy as np
import pytest
from scipy import stats

from covshift.analysis import gradient_health
from covshift.exceptions import SignalNotRecorded
from covshift.schema import Layer


def nonlinearities(count):
    return [Layer(f"act{i}", "ReLU", count - i, 1, 0, 2, activation="ReLU") for i in range(count)]


def gradients(rng, layers, decades, noise=0.0):
    """Gradients whose rms falls by ``decades`` a layer towards the input (depth 0)."""
    tensors = {}
    for layer in layers:
        size = 10.0 ** (decades * layer.depth + noise * rng.normal())
        tensors[layer.name] = {"activation_grad": size * rng.normal(size=(16, 2, 50))}
    return tensors


def test_the_zero_rate_is_the_share_of_zeros_in_the_raw_array(make_recording):
    gradient = np.random.default_rng(0).normal(size=(8, 4, 3))
    gradient[gradient < 0.3] = 0.0
    gradient[0, 0, 0] = -0.0
    rate = gradient_health.zero_rate(make_recording({3: {"fc": {"activation_grad": gradient}}}))
    assert rate.dims == ("step", "layer")
    assert float(rate.sel(step=3, layer="fc")) == (gradient == 0).mean()


def test_nan_counts_as_not_zero(make_recording):
    gradient = np.array([[0.0, np.nan], [np.inf, 0.0]])
    rate = gradient_health.zero_rate(make_recording({0: {"fc": {"activation_grad": gradient}}}))
    assert rate.values.tolist() == [[0.5]]


def test_the_zero_rate_of_a_layer_that_did_not_run_is_nan(make_recording):
    ones = {"activation_grad": np.ones((2, 2))}
    rate = gradient_health.zero_rate(make_recording({0: {"a": ones, "b": ones}, 1: {"a": ones}}))
    assert np.isnan(rate.sel(step=1, layer="b"))
    assert float(rate.sel(step=1, layer="a")) == 0


def test_the_zero_rate_of_an_absent_signal_is_an_error_that_names_it(make_recording):
    with pytest.raises(SignalNotRecorded, match="signal='activation_grad'.*recorded there: activation"):
        gradient_health.zero_rate(make_recording({0: {"fc": {"activation": np.ones((2, 2))}}}))


def test_the_slope_over_depth_is_scipys_with_its_interval(make_recording):
    rng = np.random.default_rng(1)
    layers = nonlinearities(12)
    recording = make_recording({0: gradients(rng, layers, 0.2, 0.1)}, layers=layers)
    found = gradient_health.norm_profile(recording).sel(step=0)
    assert found["layer"].values.tolist() == [f"act{i}" for i in range(11, -1, -1)]
    logs = np.log10(found["rms"].values)
    fit = stats.linregress(np.arange(12), logs)
    margin = stats.t.ppf(0.95, 10) * fit.stderr
    assert float(found["slope"]) == pytest.approx(fit.slope)
    assert float(found["slope_low"]) == pytest.approx(fit.slope - margin)
    assert float(found["slope_high"]) == pytest.approx(fit.slope + margin)
    assert float(found["total_decades"]) == pytest.approx(11 * fit.slope)
    assert (int(found["n_layers"]), int(found["vanished"])) == (12, 0)


@pytest.mark.parametrize("decades", [0.3, -0.3])
def test_the_slope_is_positive_where_the_gradient_shrinks_towards_the_input(make_recording, decades):
    layers = nonlinearities(6)
    recording = make_recording({0: gradients(np.random.default_rng(2), layers, decades)}, layers=layers)
    assert float(gradient_health.norm_profile(recording)["slope"].squeeze()) == pytest.approx(decades, abs=0.03)


def test_layers_with_a_zero_gradient_are_counted_and_do_not_bend_the_fit(make_recording):
    rng = np.random.default_rng(3)
    layers = nonlinearities(10)
    tensors = gradients(rng, layers, 0.25)
    for name in ("act9", "act8"):
        tensors[name]["activation_grad"] = np.zeros((16, 2, 50))
    found = gradient_health.norm_profile(make_recording({0: tensors}, layers=layers)).sel(step=0)
    logs = np.log10(found["rms"].values[2:])
    assert float(found["slope"]) == pytest.approx(stats.linregress(np.arange(2, 10), logs).slope)
    assert float(found["total_decades"]) == pytest.approx(7 * float(found["slope"]))
    assert (int(found["n_layers"]), int(found["vanished"])) == (8, 2)


def test_zeros_beside_nan_are_no_zero_gradient_and_have_no_size(make_recording):
    layers = nonlinearities(10)
    tensors = gradients(np.random.default_rng(3), layers, 0.25)
    tensors["act9"]["activation_grad"] = np.zeros((16, 2, 50))
    tensors["act8"]["activation_grad"] = np.where(np.arange(50) == 7, np.nan, np.zeros((16, 2, 50)))
    found = gradient_health.norm_profile(make_recording({0: tensors}, layers=layers)).sel(step=0)
    rms = dict(zip(found["layer"].values.tolist(), found["rms"].values.tolist(), strict=True))
    assert rms["act9"] == 0
    assert np.isnan(rms["act8"])
    assert (int(found["n_layers"]), int(found["vanished"])) == (8, 1)


def test_float32_norms_that_would_underflow_are_kept(make_recording):
    layers = nonlinearities(5)
    tensors = {layer.name: {"activation_grad": np.full((4, 2), 1e-30)} for layer in layers}
    found = gradient_health.norm_profile(make_recording({0: tensors}, layers=layers))
    np.testing.assert_allclose(found["rms"], 1e-30)
    assert int(found["vanished"].squeeze()) == 0


def test_only_nonlinearities_enter_where_there_are_enough(make_recording):
    rng = np.random.default_rng(4)
    layers = nonlinearities(5)
    convolution = Layer("conv", "Conv2d", 99, 1, 0, 2)
    tensors = gradients(rng, [*layers, convolution], 0.1)
    found = gradient_health.norm_profile(make_recording({0: tensors}, layers=[*layers, convolution]))
    assert "conv" not in found["layer"].values
    fewer = gradient_health.norm_profile(
        make_recording({0: gradients(rng, [*layers[:4], convolution], 0.1)}, layers=[*layers[:4], convolution])
    )
    assert found.sizes["layer"] == fewer.sizes["layer"] == 5
    assert "conv" in fewer["layer"].values


def test_too_few_layers_have_norms_but_no_slope(make_recording):
    layers = nonlinearities(4)
    found = gradient_health.norm_profile(
        make_recording({0: gradients(np.random.default_rng(5), layers, 0.2)}, layers=layers)
    )
    assert np.isfinite(found["rms"]).all()
    assert int(found["n_layers"].squeeze()) == 4
    assert all(np.isnan(found[name].squeeze()) for name in ("slope", "slope_low", "slope_high", "total_decades"))


def test_steps_with_different_layers_are_fitted_each_on_its_own(make_recording):
    layers = nonlinearities(8)
    rng = np.random.default_rng(6)
    all_layers = gradients(rng, layers, 0.2)
    some = {name: all_layers[name] for name in list(all_layers)[:6]}
    found = gradient_health.norm_profile(make_recording({0: all_layers, 1: some}, layers=layers))
    assert found["n_layers"].values.tolist() == [8, 6]
    logs = np.log10(found["rms"].sel(step=1).values)
    kept = np.flatnonzero(np.isfinite(logs))
    assert float(found["slope"].sel(step=1)) == pytest.approx(stats.linregress(kept, logs[kept]).slope)


def parameter(weight, update):
    return {"weight_norm": weight, "update_norm": update, "gradient_norm": 1.0, "gradient_measured": 1}


def test_the_update_ratio_is_the_update_over_the_weight(make_recording):
    first = {"fc.weight": parameter(4.0, 0.002), "fc.bias": parameter(0.0, 0.1)}
    rows = {0: first, 5: {"fc.weight": parameter(8.0, 0.0)}}
    ratio = gradient_health.update_ratio(make_recording(parameters=rows))
    assert ratio.dims == ("step", "parameter")
    assert float(ratio.sel(step=0, parameter="fc.weight")) == 0.0005
    assert float(ratio.sel(step=5, parameter="fc.weight")) == 0.0
    assert np.isnan(ratio.sel(parameter="fc.bias")).all()


def test_an_update_that_was_not_measured_has_no_ratio(make_recording):
    ratio = gradient_health.update_ratio(make_recording(parameters={0: {"fc.weight": parameter(1.0, np.nan)}}))
    assert np.isnan(ratio).all()


def test_without_parameters_the_missing_group_is_named(make_recording):
    with pytest.raises(SignalNotRecorded, match="no group 'parameters'"):
        gradient_health.update_ratio(make_recording({0: {"fc": {"activation": np.ones((2, 2))}}}))


def test_the_slope_over_depth_has_an_intercept_for_each_number_of_positions(make_recording):
    """Oracle: least squares on a design matrix with one dummy column a group."""
    rng = np.random.default_rng(3)
    positions = [64, 64, 64, 16, 16, 16, 1, 1]
    sizes = {f"layer{i}": 10.0 ** rng.normal(size=1) for i in range(len(positions))}
    layers = [Layer(name, "Conv2d", i, 1, 0, 3) for i, name in enumerate(sizes)]
    steps = {
        0: {
            name: {"activation_grad": size * rng.normal(size=(5, 3, each))}
            for (name, size), each in zip(sizes.items(), positions, strict=True)
        }
    }
    profile = gradient_health.norm_profile(make_recording(steps, layers=layers))
    groups = [[float(each == one) for each in (64, 16, 1)] for one in positions]
    design = np.column_stack([np.arange(len(positions)), groups])
    logs = [np.log10(np.sqrt(np.mean(steps[0][name]["activation_grad"] ** 2))) for name in sizes]
    solution, residual, *_ = np.linalg.lstsq(design, logs, rcond=None)
    assert float(profile["slope"][0]) == pytest.approx(solution[0])
    assert float(profile["total_decades"][0]) == pytest.approx(7 * solution[0])
    error = np.sqrt(residual[0] / 4 * np.linalg.inv(design.T @ design)[0, 0])
    assert float(profile["slope_high"][0]) == pytest.approx(solution[0] + stats.t.ppf(0.95, 4) * error)


def test_a_layer_of_its_own_number_of_positions_tells_nothing_of_a_slope(make_recording):
    steps = {0: {f"layer{i}": {"activation_grad": np.full((4, 2, 2**i), 10.0**-i)} for i in range(6)}}
    layers = [Layer(f"layer{i}", "Conv2d", i, 1, 0, 2) for i in range(6)]
    profile = gradient_health.norm_profile(make_recording(steps, layers=layers))
    assert np.isnan(profile["slope"].values).all()
    assert np.isnan(profile["total_decades"].values).all()


@pytest.mark.parametrize("kind", ["AvgPool2d", "AdaptiveAvgPool2d", "Flatten", "Dropout", "BatchNorm2d", "LayerNorm"])
def test_layers_that_rescale_by_construction_are_no_part_of_the_slope(make_recording, kind):
    layers = [Layer(f"conv{i}", "Conv2d", i, 1, 0, 2) for i in range(5)] + [Layer("other", kind, 5, 1, 0, 2)]
    steps = {
        0: {layer.name: {"activation_grad": np.full((4, 2), 1e3 if i == 5 else 1.0)} for i, layer in enumerate(layers)}
    }
    profile = gradient_health.norm_profile(make_recording(steps, layers=layers))
    assert "other" not in profile["layer"].values
    assert float(profile["slope"][0]) == 0.0
