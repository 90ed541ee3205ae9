"""Gradient norms before clipping, measured as gradients accumulate."""

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
