"""Gradient norms before clipping, measured as gradients accumulate."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn


def norms_of(model):
    return {name: p.grad.double().norm().item() for name, p in model.named_parameters() if p.grad is not None}


def stored(recording, variable, step=0):
    return recording["parameters"][variable].sel(step=step).to_series().to_dict()


def clipped_training(model, steps, *, micro_batches=1, clip=1e-3):
    """Norms before and after clipping of every step."""
    optimizer, norms = torch.optim.SGD(model.parameters(), lr=0.1), []
    for _ in range(steps):
        for _ in range(micro_batches):
            F.cross_entropy(model(torch.randn(16, 6)), torch.randint(3, (16,))).backward()
        before = norms_of(model)
        nn.utils.clip_grad_norm_(model.parameters(), clip)
        norms.append((before, norms_of(model)))
        optimizer.step()
        optimizer.zero_grad()
    return norms


@pytest.mark.parametrize("micro_batches", [1, 3])
def test_norms_are_measured_before_and_after_clipping(build, record, micro_batches):
    with record(model := build("perceptron")) as recorder:
        norms = clipped_training(model, 3, micro_batches=micro_batches)
    for step, (before, after) in enumerate(norms):
        assert stored(recorder.recording, "gradient_norm_preclip", step) == pytest.approx(before, rel=1e-12)
        assert stored(recorder.recording, "gradient_norm", step) == pytest.approx(after, rel=1e-12)
        assert sum(norm**2 for norm in before.values()) > 1e-4


def test_a_parameter_without_gradient_has_no_norm_before_clipping(record):
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 3))
    model[0].requires_grad_(False)
    with record(model) as recorder:
        clipped_training(model, 1)
    found = recorder.recording["parameters"]["gradient_norm_preclip"].isel(step=0).to_series()
    assert found[found.isna()].index.tolist() == ["0.weight", "0.bias"]


def test_norms_before_clipping_are_unscaled(record):
    model, twin = nn.Linear(6, 3), nn.Linear(6, 3)
    twin.load_state_dict(model.state_dict())
    x, y = torch.randn(16, 6), torch.randint(3, (16,))
    F.cross_entropy(twin(x), y).backward()
    optimizer, scaler = torch.optim.SGD(model.parameters(), lr=0.1), torch.amp.GradScaler("cpu", init_scale=2.0**10)
    with record(model, scaler=scaler) as recorder:
        scaler.scale(F.cross_entropy(model(x), y)).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
        scaler.step(optimizer)
        scaler.update()
    assert stored(recorder.recording, "gradient_norm_preclip") == pytest.approx(norms_of(twin), rel=1e-6)


def test_tied_weights_have_the_norm_of_their_total_gradient(record):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)
            self.b.weight = self.a.weight

        def forward(self, x):
            return self.b(torch.tanh(self.a(x)))

    model = Tied()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with record(model) as recorder:
        model(torch.randn(16, 6)).square().sum().backward()
        expected = norms_of(model)
        optimizer.step()
    assert stored(recorder.recording, "gradient_norm_preclip") == pytest.approx(expected, rel=1e-12)


def penalised(model, *, clip=None, steps=2):
    """Norms of the gradient that is clipped, of steps whose penalty on the weights goes backward on its own."""
    optimizer, norms = torch.optim.SGD(model.parameters(), lr=0.1), []
    for _ in range(steps):
        F.cross_entropy(model(torch.randn(16, 6)), torch.randint(3, (16,))).backward()
        (10 * sum(p.square().sum() for p in model.parameters())).backward()
        norms.append(norms_of(model))
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        optimizer.zero_grad()
    return norms


@pytest.mark.parametrize("updates", ["sampled", "off"])
@pytest.mark.parametrize("clip", [None, 1e-3])
def test_after_a_backward_pass_that_reached_no_layer_the_norm_before_clipping_is_not_measured(
    build, record, clip, updates
):
    warned = ["gradients changed between the backward pass that reached the layers"]
    with record(model := build("perceptron"), updates=updates, warned=warned) as recorder:
        norms = penalised(model, clip=clip)
    for step in range(2):
        assert all(map(math.isnan, stored(recorder.recording, "gradient_norm_preclip", step).values()))
        if clip is None:
            assert stored(recorder.recording, "gradient_norm", step) == pytest.approx(norms[step], rel=1e-12)


def clip_in_groups(model):
    for number, parameter in enumerate(model.parameters(), 1):
        nn.utils.clip_grad_norm_([parameter], 1e-4 * number)


def clip_values(model):
    nn.utils.clip_grad_value_(model.parameters(), 1e-3)


def leave_one_out(model):
    model[0].bias.grad.zero_()


@pytest.mark.parametrize("clip", [clip_in_groups, clip_values, leave_one_out])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_however_gradients_are_clipped_the_norm_before_is_measured(build, record, clip, dtype):
    with record(model := build("perceptron").to(dtype)) as recorder:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        F.cross_entropy(model(torch.randn(16, 6, dtype=dtype)), torch.randint(3, (16,))).backward()
        before = norms_of(model)
        clip(model)
        after = norms_of(model)
        optimizer.step()
    assert stored(recorder.recording, "gradient_norm_preclip") == pytest.approx(before, rel=1e-12)
    assert stored(recorder.recording, "gradient_norm") == pytest.approx(after, rel=1e-12)
    assert len({round(after[name] / before[name], 3) for name in before}) > 1


def test_parameters_are_left_as_they_were_during_and_after_recording(build, record):
    model = build("perceptron")
    attributes = [sorted(vars(p)) for p in model.parameters()]
    with record(model, every=2):
        clipped_training(model, 1)
        F.cross_entropy(model(torch.randn(16, 6)), torch.randint(3, (16,))).backward()
        # Step 1 is not recorded: nothing listens.
        assert all(not p._post_accumulate_grad_hooks for p in model.parameters())
        clipped_training(model, 2)
    assert [p._post_accumulate_grad_hooks for p in model.parameters()] == [None] * len(attributes)
    assert [sorted(vars(p)) for p in model.parameters()] == attributes


def test_a_users_own_hooks_on_parameters_stay(build, record):
    model, seen = build("perceptron"), []
    handle = model[0].weight.register_post_accumulate_grad_hook(lambda p: seen.append(p.shape))
    with record(model):
        clipped_training(model, 2)
    clipped_training(model, 1)
    assert len(seen) == 3
    assert list(model[0].weight._post_accumulate_grad_hooks) == [handle.id]


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_clipped_training_keeps_its_bits(build, unchanged, micro_batches):
    def run(model):
        return [value for pair in clipped_training(model, 5, micro_batches=micro_batches) for value in pair]

    unchanged(lambda: build("perceptron"), run)
