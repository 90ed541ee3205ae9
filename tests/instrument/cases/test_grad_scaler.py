"""GradScaler: skipped steps are steps, layer rows keep what flowed, parameter norms are unscaled.

The scales are powers of two, so that scaling changes no mantissa: unscaled numbers equal those of an unscaled run.
"""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

SCALE = 2.0**10
FUSED = pytest.mark.parametrize("fused", [False, True], ids=["loops", "fused"])
"""Of a fused optimizer the scaler leaves the gradients scaled, and calls its step even where it must be skipped."""


def net():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def scaled_training(model, steps, *, fused, broken=(), scale=SCALE, dtype=torch.bfloat16):
    """The scale of every step; the loss of a ``broken`` step is infinite, so that its gradients are."""
    torch.manual_seed(4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=fused)
    scaler, scales = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=2), []
    for step in range(steps):
        x, y = torch.randn(16, 6), torch.randint(3, (16,))
        with torch.autocast("cpu", dtype=dtype):
            loss = F.cross_entropy(model(x), y) * (float("inf") if step in broken else 1.0)
        scales.append(scaler.get_scale())
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    return scales


@FUSED
@pytest.mark.parametrize("every", [1, 2])
def test_case_29_a_step_that_the_scaler_skips_is_a_step_and_says_so(record, fused, every):
    with record(model := net(), every=every) as recorder:
        scales = scaled_training(model, 5, fused=fused, broken=[2])
    assert recorder.step_count == 5
    recorded = list(range(0, 5, every))
    assert recorder.recording["layers"].step.values.tolist() == recorded
    scalars = recorder.recording["scalars"].to_dataset().sel(step=recorded)
    assert scalars["step_skipped"].values.tolist() == [float(step == 2) for step in recorded]
    assert scalars["loss_scale"].values.tolist() == [scales[step] for step in recorded]
    assert len(set(scales)) > 1


@FUSED
def test_case_29_a_last_step_that_is_skipped_counts_too(record, fused):
    with record(model := net()) as recorder:
        scaled_training(model, 2, fused=fused, broken=[1])
    assert recorder.step_count == 2
    assert recorder.recording["scalars"]["step_skipped"].values.tolist() == [0, 1]


@FUSED
def test_case_29_the_rows_of_a_skipped_step_are_its_own(record, cell, fused):
    with record(model := net()) as recorder:
        scaled_training(model, 4, fused=fused, broken=[1])
    rows = recorder.recording
    at = {"layer": "2", "signal": "activation_grad"}
    finite = [
        cell(rows, "count", **at, step=step)
        - sum(cell(rows, name, **at, step=step) for name in ("nan_count", "posinf_count", "neginf_count"))
        for step in range(4)
    ]
    assert [cell(rows, "count", **at, step=step) for step in range(4)] == [48] * 4
    assert [count == 48 for count in finite] == [True, False, True, True]


@FUSED
def test_case_29_training_with_a_skipped_step_keeps_its_bits(unchanged, fused):
    unchanged(net, lambda model: scaled_training(model, 6, fused=fused, broken=[2, 3]))


@FUSED
def test_case_30_parameter_norms_are_unscaled_and_layer_rows_are_what_flowed(record, cell, fused):
    plain, scaled = net(), net()
    with record(plain) as without:
        scaled_training(plain, 1, fused=fused, scale=1.0)
    with record(scaled) as scaled_recorder:
        scaled_training(scaled, 1, fused=fused)
    bare, found = without.recording, scaled_recorder.recording
    norms = [recording["parameters"]["gradient_norm"].isel(step=0).to_series().to_dict() for recording in (bare, found)]
    assert norms[1] == pytest.approx(norms[0], rel=1e-12)
    assert min(norms[1].values()) > 0
    for layer in ("0", "1", "2"):
        at = {"layer": layer, "signal": "activation_grad"}
        assert cell(found, "sum", **at) == pytest.approx(SCALE * cell(bare, "sum", **at), rel=1e-9)
        assert cell(found, "zero_count", **at) == cell(bare, "zero_count", **at)
    assert found["scalars"]["loss_scale"].values.tolist() == [SCALE]


@FUSED
def test_case_30_gradient_norms_are_those_of_a_run_without_a_scaler_in_float64(record, fused):
    model = net()
    twin = copy.deepcopy(model)
    torch.manual_seed(4)
    x, y = torch.randn(16, 6), torch.randint(3, (16,))
    F.cross_entropy(twin(x), y).backward()
    expected = {name: p.grad.double().norm().item() for name, p in twin.named_parameters()}
    with record(model) as recorder:
        scaled_training(model, 1, fused=fused, dtype=torch.bfloat16)
    found = recorder.recording["parameters"]["gradient_norm"].isel(step=0).to_series().to_dict()
    # bfloat16 keeps 8 bits.
    assert found == pytest.approx(expected, rel=0.05)


def test_case_30_the_scale_rescues_gradients_that_underflow_in_float16_and_rows_say_so(record, cell):
    zeros = []
    for scale in (1.0, 2.0**16):
        model = nn.Linear(4, 4)
        optimizer, scaler = torch.optim.SGD(model.parameters(), lr=0.1), torch.amp.GradScaler("cpu", init_scale=scale)
        with record(model) as recorder:
            with torch.autocast("cpu", dtype=torch.float16):
                output = model(torch.randn(8, 4))
            scaler.scale((output.float() * 1e-8).sum()).backward()
            scaler.step(optimizer)
            scaler.update()
        assert recorder.recording["layers"]["dtype"].sel(layer="(root)").item() == "float16"
        zeros.append(cell(recorder.recording, "zero_count", layer="(root)", signal="activation_grad"))
    assert zeros == [32, 0]


@FUSED
def test_an_explicit_unscale_before_clipping_is_not_undone_twice(record, fused):
    model, twin = net(), net()
    x, y = torch.randn(16, 6), torch.randint(3, (16,))
    F.cross_entropy(twin(x), y).backward()
    expected = {name: p.grad.double().norm().item() for name, p in twin.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=SCALE)
    with record(model) as recorder:
        scaler.scale(F.cross_entropy(model(x), y)).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
    found = recorder.recording["parameters"]["gradient_norm"].isel(step=0).to_series().to_dict()
    assert found == pytest.approx(expected, rel=1e-6)


def test_without_a_scaler_there_is_no_scale_and_no_skipped_step(build, train, record):
    with record(model := build("perceptron")) as recorder:
        train(model, 2)
    assert not {"loss_scale", "step_skipped"} & set(recorder.recording["scalars"].data_vars)


def test_a_disabled_scaler_is_none(record):
    model = net()
    optimizer, scaler = torch.optim.SGD(model.parameters(), lr=0.1), torch.amp.GradScaler("cpu", enabled=False)
    with record(model) as recorder:
        scaler.scale(model(torch.randn(16, 6)).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
    assert recorder.step_count == 1
    skipped = recorder.recording["scalars"].get("step_skipped")
    assert skipped is None or skipped.values.tolist() == [0.0]


def test_the_scaler_of_another_model_says_nothing_of_this_one(build, train, record):
    model, other = build("perceptron"), net()
    with record(model) as recorder:
        scaled_training(other, 3, fused=False, broken=[1])
        train(model, 2)
    assert recorder.step_count == 2
    assert not {"loss_scale", "step_skipped"} & set(recorder.recording["scalars"].data_vars)
