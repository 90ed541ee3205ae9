"""GradScaler: skipped steps are steps, and gradients are those of an unscaled run.

The scales are powers of two, so that scaling changes no mantissa: unscaled numbers equal those of an unscaled run.
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import covshift

SCALE = 2.0**10
FUSED = pytest.mark.parametrize("fused", [False, True], ids=["loops", "fused"])
"""Of a fused optimizer the scaler leaves the gradients scaled, and calls its step even where it must be skipped."""


def net():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def grad_scaler(scale=SCALE):
    return torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=2)


def scaled_training(model, scaler, steps, *, fused=False, broken=()):
    """Losses and scales of every step; the loss of a ``broken`` step is infinite, so that its gradients are."""
    torch.manual_seed(4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=fused)
    losses, scales = [], []
    for step in range(steps):
        x, y = torch.randn(16, 6), torch.randint(3, (16,))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = F.cross_entropy(model(x), y) * (float("inf") if step in broken else 1.0)
        losses.append(loss.item())
        scales.append(scaler.get_scale())
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    return losses, scales


@pytest.mark.parametrize("every", [1, 2])
def test_case_29_a_step_that_the_scaler_skips_is_a_step_and_says_so(record, every):
    scaler = grad_scaler()
    with record(model := net(), every=every, scaler=scaler) as recorder:
        _, scales = scaled_training(model, scaler, 5, broken=[2])
    assert recorder.step_count == 5
    recorded = list(range(0, 5, every))
    assert recorder.recording["layers"].step.values.tolist() == recorded
    scalars = recorder.recording["scalars"].to_dataset().sel(step=recorded)
    assert scalars["step_skipped"].values.tolist() == [float(step == 2) for step in recorded]
    assert scalars["loss_scale"].values.tolist() == [scales[step] for step in recorded]
    assert len(set(scales)) > 1


def test_case_29_a_last_step_that_is_skipped_counts_too(record):
    scaler = grad_scaler()
    with record(model := net(), scaler=scaler) as recorder:
        scaled_training(model, scaler, 2, broken=[1])
    assert recorder.step_count == 2
    assert recorder.recording["scalars"]["step_skipped"].values.tolist() == [0, 1]


@pytest.mark.parametrize("every", [1, 2])
def test_after_a_step_that_the_scaler_skips_an_evaluation_and_a_checkpoint_count_it(record, tmp_path, every):
    scaler, counted, states = grad_scaler(), [], []
    with record(model := net(), every=every, scaler=scaler, path=tmp_path / "run") as recorder:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for step in range(5):
            loss = F.cross_entropy(model(torch.randn(16, 6)), torch.randint(3, (16,)))
            scaler.scale(loss * (float("inf") if step in (2, 4) else 1.0)).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            counted.append(recorder.step_count)
            states.append(recorder.state_dict())
            with recorder.evaluation(), torch.no_grad():
                model(torch.randn(4 + step, 6))
    assert counted == [1, 2, 3, 4, 5]
    assert states == [{"step": step, "records": -(-step // every)} for step in counted]
    assert recorder.state_dict() == states[-1]
    rows = covshift.open(tmp_path / "run.zarr")
    assert rows["evaluation/layers"].step.values.tolist() == counted
    counts = rows["evaluation/layers"]["example_count"].sel(layer="0", signal="activation")
    assert counts.values.tolist() == [4, 5, 6, 7, 8]
    assert rows["layers"].step.values.tolist() == list(range(0, 5, every))
    skipped = rows["scalars"]["step_skipped"].sel(step=rows["layers"].step)
    assert skipped.values.tolist() == [0, 0, 1, 0, 1][::every]


def test_a_skipped_step_after_which_an_exception_ends_the_loop_counts_and_what_the_scaler_does_later_does_not(record):
    scaler = grad_scaler()
    with pytest.raises(KeyError), record(model := net(), scaler=scaler) as recorder:
        scaled_training(model, scaler, 2, broken=[1])
        raise KeyError
    assert recorder.state_dict() == {"step": 2, "records": 2}
    scaled_training(net(), scaler, 1, broken=[0])
    assert recorder.state_dict() == {"step": 2, "records": 2}


@pytest.mark.parametrize("broken", [0, 1], ids=["first", "second"])
@pytest.mark.parametrize("last", [False, True], ids=["in the middle", "last"])
def test_case_29_a_step_of_which_one_of_two_optimizers_is_skipped_says_so(record, broken, last):
    model, scaler = net(), grad_scaler()
    optimizers = [torch.optim.SGD(model[place].parameters(), lr=0.1) for place in (0, 2)]
    with record(model, scaler=scaler) as recorder:
        for step in range(3 if last else 4):
            scaler.scale(F.cross_entropy(model(torch.randn(16, 6)), torch.randint(3, (16,)))).backward()
            if step == 2:
                model[2 * broken].weight.grad.fill_(float("inf"))
            for optimizer in optimizers:
                scaler.step(optimizer)
            scaler.update()
            model.zero_grad()
    recording = recorder.recording
    assert recording["scalars"]["step_skipped"].values.tolist() == [0, 0, 1, 0][: 3 if last else 4]
    updates = recording["parameters"]["update_norm"].sel(step=2)
    assert np.isnan(updates.sel(parameter=f"{2 * broken}.weight"))
    assert updates.sel(parameter=f"{2 - 2 * broken}.weight") > 0


def test_case_29_the_rows_of_a_skipped_step_are_its_own(record, cell):
    scaler = grad_scaler()
    with record(model := net(), scaler=scaler) as recorder:
        scaled_training(model, scaler, 4, broken=[1])
    for step in range(4):
        at = {"layer": "2", "signal": "activation_grad", "step": step}
        kinds = [cell(recorder.recording, name, **at) for name in ("nan_count", "posinf_count", "neginf_count")]
        assert cell(recorder.recording, "count", **at) == 48
        assert (sum(kinds) > 0) == (step == 1)


@pytest.mark.parametrize("skips", [False, True], ids=["every second step", "skipped"])
def test_norms_of_an_optimizer_that_does_not_step_are_not_measured_and_others_unscaled(record, skips):
    model, twin, scaler = net(), net(), torch.amp.GradScaler("cpu", init_scale=SCALE, growth_interval=100)
    first, second = (torch.optim.SGD(model[place].parameters(), lr=0.0) for place in (0, 2))
    expected, stepped = [], []
    with record(model, scaler=scaler) as recorder:
        for step in range(4):
            x, y = torch.randn(16, 6), torch.randint(3, (16,))
            F.cross_entropy(twin(x), y).backward()
            expected.append([p.grad.double().norm().item() for p in twin.parameters()])
            scaler.scale(F.cross_entropy(model(x), y)).backward()
            scaler.step(first)
            stepped.append(skips or step % 2 == 1)
            if skips and step == 1:
                model[2].bias.grad.fill_(float("inf"))
                stepped[-1] = False
            if skips or step % 2 == 1:
                scaler.step(second)
                second.zero_grad()
                twin[2].zero_grad()
            scaler.update()
            first.zero_grad()
            twin[0].zero_grad()
    parameters = recorder.recording["parameters"].to_dataset()
    norms, expected = parameters["gradient_norm"].values, np.array(expected)
    np.testing.assert_allclose(norms[:, :2], expected[:, :2], rtol=1e-5)
    np.testing.assert_allclose(norms[stepped, 2:], expected[stepped, 2:], rtol=1e-5)
    assert np.isnan(norms[~np.array(stepped), 2:]).all()
    np.testing.assert_array_equal(parameters["gradient_measured"].values[:, 2:] > 0, ~np.isnan(norms[:, 2:]))


@FUSED
def test_case_29_training_with_skipped_steps_keeps_its_bits(record, fused):
    bare, recorded = net(), net()
    expected = scaled_training(bare, grad_scaler(), 6, fused=fused, broken=[2, 3])
    scaler = grad_scaler()
    with record(recorded, scaler=scaler):
        found = scaled_training(recorded, scaler, 6, fused=fused, broken=[2, 3])
    assert found == expected
    for name, value in bare.state_dict().items():
        assert torch.equal(recorded.state_dict()[name], value), name


def recorded_step(record, scaler, *, fused, told=True):
    """The recording of one step; the recorder is told of the scaler, or not."""
    with record(model := net(), **({"scaler": scaler} if told else {})) as recorder:
        scaled_training(model, scaler, 1, fused=fused)
    return recorder.recording


def gradient_norms(recording):
    return recording["parameters"]["gradient_norm"].isel(step=0).to_series().to_dict()


@FUSED
def test_case_30_gradients_are_those_of_an_unscaled_run_in_parameters_and_in_layers(record, cell, fused):
    bare = recorded_step(record, grad_scaler(1.0), fused=fused)
    found = recorded_step(record, grad_scaler(), fused=fused)
    assert gradient_norms(found) == pytest.approx(gradient_norms(bare), rel=1e-12)
    assert min(gradient_norms(found).values()) > 0
    for layer in ("0", "1", "2"):
        at = {"layer": layer, "signal": "activation_grad"}
        for name in ("sum", "m2", "m3", "m4", "min", "max"):
            assert cell(found, name, **at) == pytest.approx(cell(bare, name, **at), rel=1e-9)
        for name in ("count", "zero_count", "negative_count"):
            assert cell(found, name, **at) == cell(bare, name, **at)
    assert found["scalars"]["loss_scale"].values.tolist() == [SCALE]
    assert found["scalars"]["step_skipped"].values.tolist() == [0]


@FUSED
def test_case_30_histograms_and_units_of_gradients_are_those_of_an_unscaled_run(record, fused):
    bare = recorded_step(record, grad_scaler(1.0), fused=fused)
    found = recorded_step(record, grad_scaler(), fused=fused)
    for group, name in (("histograms", "gradient_histogram"), ("histograms", "value_histogram")):
        np.testing.assert_array_equal(found[group][name], bare[group][name], err_msg=name)
    for name, values in bare["units"].data_vars.items():
        np.testing.assert_allclose(found["units"][name], values, rtol=1e-6, err_msg=name)


@FUSED
def test_case_30_of_a_scaler_it_was_not_told_of_a_recorder_keeps_what_flowed(record, cell, fused):
    bare = recorded_step(record, grad_scaler(1.0), fused=fused)
    found = recorded_step(record, grad_scaler(), fused=fused, told=False)
    # The optimizer itself is told what its gradients are multiplied by.
    assert gradient_norms(found) == pytest.approx(gradient_norms(bare), rel=1e-12)
    at = {"layer": "0", "signal": "activation_grad"}
    assert cell(found, "sum", **at) == pytest.approx(SCALE * cell(bare, "sum", **at), rel=1e-9)
    assert not {"loss_scale", "step_skipped"} & set(found["scalars"].data_vars)


@FUSED
def test_case_30_gradient_norms_are_those_of_a_run_without_a_scaler(record, fused):
    twin = net()
    torch.manual_seed(4)
    x, y = torch.randn(16, 6), torch.randint(3, (16,))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = F.cross_entropy(twin(x), y)
    loss.backward()
    expected = {name: p.grad.double().norm().item() for name, p in twin.named_parameters()}
    assert gradient_norms(recorded_step(record, grad_scaler(), fused=fused)) == pytest.approx(expected, rel=1e-9)


def test_case_30_the_scale_rescues_gradients_that_underflow_in_float16_and_rows_say_so(record, cell):
    zeros = []
    for scale in (1.0, 2.0**16):
        model, scaler = nn.Linear(4, 4), grad_scaler(scale)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with record(model, scaler=scaler) as recorder:
            with torch.autocast("cpu", dtype=torch.float16):
                output = model(torch.randn(8, 4))
            scaler.scale((output.float() * 1e-8).sum()).backward()
            scaler.step(optimizer)
            scaler.update()
        assert recorder.recording["layers"]["dtype"].sel(layer="(root)").item() == "float16"
        zeros.append(cell(recorder.recording, "zero_count", layer="(root)", signal="activation_grad"))
    assert zeros == [32, 0]


@FUSED
def test_an_explicit_unscale_is_not_undone_twice(record, fused):
    model, twin, scaler = net(), net(), grad_scaler()
    x, y = torch.randn(16, 6), torch.randint(3, (16,))
    F.cross_entropy(twin(x), y).backward()
    expected = {name: p.grad.double().norm().item() for name, p in twin.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=fused)
    with record(model, scaler=scaler) as recorder:
        scaler.scale(F.cross_entropy(model(x), y)).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
    assert gradient_norms(recorder.recording) == pytest.approx(expected, rel=1e-6)


def test_without_a_scaler_there_is_no_scale_and_no_skipped_step(build, train, record):
    with record(model := build("perceptron")) as recorder:
        train(model, 2)
    assert not {"loss_scale", "step_skipped"} & set(recorder.recording["scalars"].data_vars)


def test_a_scaler_whose_scale_falls_to_zero_is_named_and_every_skip_until_then_recorded(record):
    scaler = grad_scaler(2.0**-140)
    with record(model := net(), scaler=scaler, warned=("its scale has fallen to 0",)) as recorder:
        _, scales = scaled_training(model, scaler, 12, broken=range(12))
    # Of the steps under 0 the scaler tells nothing.
    expected = [scale for scale in scales if scale > 0]
    assert 0.0 in scales
    scalars = recorder.recording["scalars"].to_dataset()
    assert scalars["loss_scale"].values.tolist() == expected
    assert scalars["step_skipped"].values.tolist() == [1] * len(expected)
    assert recorder.recording["layers"].step.values.tolist() == list(range(len(expected)))
    assert recorder.step_count == len(expected)


class Vanished:
    def get_scale(self):
        return 0.0


@FUSED
def test_under_a_scale_of_zero_gradients_are_not_measured_and_everything_else_is(record, cell, assert_row, fused):
    model, x = net(), torch.randn(16, 6)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, fused=fused)
    with record(model, scaler=Vanished(), warned=("its scale has fallen to 0",)) as recorder:
        (model(x).sum() * 0).backward()
        # What GradScaler.step hands to a fused optimizer.
        optimizer.grad_scale, optimizer.found_inf = (torch.tensor(0.0), torch.tensor(1.0)) if fused else (None, None)
        optimizer.step()
        del optimizer.grad_scale, optimizer.found_inf
    rows = recorder.recording
    assert_row(rows, model(x), layer="2", signal="activation")
    at = {"layer": "2", "signal": "activation_grad"}
    assert (cell(rows, "count", **at), cell(rows, "zero_count", **at)) == (48, 48)
    assert np.isnan([cell(rows, name, **at) for name in ("sum", "m2", "m3", "m4", "min", "max")]).all()
    assert rows["histograms"]["gradient_histogram"].sum() == 0
    parameters = rows["parameters"].isel(step=0)
    assert np.isnan(parameters["gradient_norm_preclip"]).all()
    assert np.isnan(parameters["gradient_norm"]).all() == fused
    assert (parameters["weight_norm"] > 0).all()
    assert rows["scalars"]["loss_scale"].values.tolist() == [0]


def test_a_disabled_scaler_is_none(record):
    model = net()
    optimizer, scaler = torch.optim.SGD(model.parameters(), lr=0.1), torch.amp.GradScaler("cpu", enabled=False)
    with record(model, scaler=scaler) as recorder:
        scaler.scale(model(torch.randn(16, 6)).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
    assert recorder.step_count == 1
    skipped = recorder.recording["scalars"].get("step_skipped")
    assert skipped is None or skipped.values.tolist() == [0.0]


def test_the_scaler_of_another_model_says_nothing_of_this_one(build, train, record):
    model, other = build("perceptron"), net()
    with record(model) as recorder:
        scaled_training(other, grad_scaler(), 3, broken=[1])
        train(model, 2)
    assert recorder.step_count == 2
    assert not {"loss_scale", "step_skipped"} & set(recorder.recording["scalars"].data_vars)
