"""Oracle: gradients of every micro-batch, taken by the test; cosines and covariances by numpy in float64."""

from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import covshift
from covshift.exceptions import CovshiftWarning
from covshift.instrument import directions
from covshift.instrument.block import Block
from covshift.instrument.directions import GradientSamples
from covshift.summary.norms import Before

NAMES = ["0.weight", "0.bias", "2.weight", "2.bias"]


def flat(tensor):
    return tensor.detach().double().numpy().ravel().copy()


def stored(recorder, variable):
    table = recorder.recording["parameters"].to_dataset()[variable]
    return table.sel(parameter=NAMES).values, table["step"].values


def train(model, steps, *, micro_batches=1, loss=None, clip=None):
    """The gradient of every micro-batch, shape (steps, micro_batches) of lists over parameters."""
    generator = torch.Generator().manual_seed(1)
    optimizer, seen = torch.optim.SGD(model.parameters(), lr=0.05), []
    for _ in range(steps):
        own, so_far = [], [np.zeros(p.numel()) for p in model.parameters()]
        for _ in range(micro_batches):
            x, y = torch.randn(8, 6, generator=generator), torch.randint(3, (8,), generator=generator)
            (loss or F.cross_entropy)(model(x), y).backward()
            now = [flat(p.grad) for p in model.parameters()]
            own.append([b - a for a, b in zip(so_far, now, strict=True)])
            so_far = now
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        optimizer.zero_grad()
        seen.append(own)
    return seen


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))


@pytest.mark.parametrize("clip", [None, 1e-3])
@pytest.mark.parametrize("every", [1, 3])
def test_the_cosine_is_that_to_the_gradient_of_the_record_before(model, every, clip):
    with covshift.record(model, every=every) as recorder:
        seen = train(model, 7, clip=clip)
    found, steps = stored(recorder, "gradient_cosine")
    assert np.isnan(found[0]).all()
    for row, step in enumerate(steps[1:].tolist(), 1):
        for column, (a, b) in enumerate(zip(seen[step - every][0], seen[step][0], strict=True)):
            assert found[row, column] == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b), abs=1e-6)


def penalise(model):
    (10 * sum(p.square().sum() for p in model.parameters())).backward()


def write_anew(model):
    for p in model.parameters():
        p.grad = p.grad.flip(0) + torch.randn_like(p)


def steps_by(model, optimizers, change, steps):
    """Gradients that optimizers stepped by, of steps in which ``change`` came between the backward pass and those."""
    seen = []
    for _ in range(steps):
        model(torch.randn(8, 6)).square().mean().backward()
        change(model)
        seen.append([flat(p.grad) for p in model.parameters()])
        for optimizer in optimizers:
            optimizer.step()
        model.zero_grad()
    return seen


def cosines(seen):
    pairs = [zip(*both, strict=True) for both in pairwise(seen)]
    return np.array([[a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in pair] for pair in pairs])


@pytest.mark.filterwarnings("ignore:gradients changed between:covshift.exceptions.CovshiftWarning")
@pytest.mark.parametrize("change", [penalise, write_anew])
@pytest.mark.parametrize("count", [1, 2])
def test_of_gradients_changed_since_the_backward_pass_the_cosine_is_that_of_the_step(model, change, count):
    held = [model.parameters()] if count == 1 else [model[0].parameters(), model[2].parameters()]
    with covshift.record(model, every=1) as recorder:
        seen = steps_by(model, [torch.optim.SGD(own, lr=0.01) for own in held], change, 4)
    np.testing.assert_allclose(stored(recorder, "gradient_cosine")[0][1:], cosines(seen), atol=1e-6)


@pytest.mark.filterwarnings("ignore:gradients changed between:covshift.exceptions.CovshiftWarning")
@pytest.mark.parametrize("preclip", [True, False])
def test_of_gradients_changed_between_two_optimizers_there_is_no_cosine(model, preclip, monkeypatch):
    if not preclip:
        monkeypatch.setattr(Block, "can_tell_end_of_backward", lambda: False)
    first, second = (torch.optim.SGD(model[k].parameters(), lr=0.01) for k in (0, 2))
    seen = []
    with covshift.record(model, every=1) as recorder:
        for step in range(4):
            model(torch.randn(8, 6)).square().mean().backward()
            seen.append([flat(p.grad) for p in model.parameters()])
            first.step()
            if step == 1:
                write_anew(model[2])
            second.step()
            model.zero_grad()
    expected = cosines(seen)
    expected[:2, 2:] = np.nan
    np.testing.assert_allclose(stored(recorder, "gradient_cosine")[0][1:], expected, atol=1e-6)


@pytest.mark.filterwarnings("ignore:gradients changed between:covshift.exceptions.CovshiftWarning")
def test_of_gradients_that_an_optimizers_own_hook_writes_anew_there_is_no_cosine(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    optimizer.register_step_pre_hook(lambda *_: write_anew(model))
    with covshift.record(model, every=1) as recorder:
        steps_by(model, [optimizer], lambda _: None, 3)
    assert np.isnan(stored(recorder, "gradient_cosine")[0]).all()


def test_the_noise_is_the_covariance_of_the_sum_of_the_micro_batches(model):
    with covshift.record(model, every=1) as recorder:
        seen = train(model, 3, micro_batches=5)
    found, steps = stored(recorder, "gradient_noise_norm")
    for row, step in enumerate(steps.tolist()):
        for column in range(len(NAMES)):
            gradients = np.stack([micro[column] for micro in seen[step]])
            trace = np.atleast_2d(np.cov(gradients.T, ddof=1)).trace()
            assert found[row, column] == pytest.approx(np.sqrt(5 * trace), rel=1e-5)


def test_without_micro_batches_there_is_no_noise(model):
    with covshift.record(model, every=1) as recorder:
        train(model, 3)
    assert np.isnan(stored(recorder, "gradient_noise_norm")[0]).all()


def test_two_losses_of_one_output_are_no_micro_batches(model):
    def two_losses(output, y):
        output.square().mean().backward(retain_graph=True)
        return F.cross_entropy(output, y)

    with (
        pytest.warns(CovshiftWarning, match="rows hold the gradients of the first"),
        covshift.record(model, every=1) as recorder,
    ):
        train(model, 2, loss=two_losses)
    assert np.isnan(stored(recorder, "gradient_noise_norm")[0]).all()


class WithCriterion(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
        self.criterion = nn.MSELoss()

    def forward(self, x):
        return self[2](self[1](self[0](x)))


def criterion_within(model, x):
    output = model(x)
    return model.criterion(output, torch.zeros_like(output)), output.abs().mean()


def trunk_and_head(model, x):
    output = model[2](model[0](x))
    return output[:, 0].square().mean(), output[:, 1].square().mean()


def siamese(model, x):
    one, two = model(x), model(x.flip(0))
    return (one - two).square().mean(), one.square().mean() + two.square().mean()


@pytest.mark.filterwarnings("ignore::covshift.exceptions.CovshiftWarning")
@pytest.mark.parametrize("two_losses", [criterion_within, trunk_and_head, siamese])
def test_two_losses_are_no_micro_batches_though_two_calls_reach_the_model(two_losses):
    model = WithCriterion()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with covshift.record(model, every=1) as recorder:
        for _ in range(2):
            first, second = two_losses(model, torch.randn(8, 6))
            first.backward(retain_graph=True)
            second.backward()
            optimizer.step()
            optimizer.zero_grad()
    assert any("rows hold the gradients of the first" in message for message in recorder.warnings)
    assert np.isnan(stored(recorder, "gradient_noise_norm")[0]).all()


@pytest.mark.parametrize("set_to_none", [True, False])
def test_passes_between_which_gradients_were_zeroed_are_no_micro_batches(model, set_to_none):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with covshift.record(model, every=1) as recorder:
        for _ in range(2):
            for _ in range(3):
                optimizer.zero_grad(set_to_none=set_to_none)
                model(torch.randn(8, 6)).square().mean().backward()
            optimizer.step()
    assert np.isnan(stored(recorder, "gradient_noise_norm")[0]).all()


def test_evaluations_of_a_closure_are_no_micro_batches(model):
    optimizer, x = torch.optim.LBFGS(model.parameters(), max_iter=3), torch.randn(8, 6)

    def closure():
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        return loss

    with covshift.record(model, every=1) as recorder:
        for _ in range(2):
            optimizer.step(closure)
    assert np.isnan(stored(recorder, "gradient_noise_norm")[0]).all()
    assert (stored(recorder, "gradient_norm")[0] > 0).all()


def test_two_losses_in_a_closure_are_no_micro_batches(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)

    def closure():
        optimizer.zero_grad()
        output = model(torch.randn(8, 6))
        output[:, 0].square().mean().backward(retain_graph=True)
        output[:, 1].square().mean().backward()

    told = pytest.warns(CovshiftWarning, match="rows hold the gradients of the first")
    with told, covshift.record(model, every=1) as recorder:
        for _ in range(2):
            optimizer.step(closure)
    assert np.isnan(stored(recorder, "gradient_noise_norm")[0]).all()


@pytest.mark.parametrize("before_closure", [0, 2])
def test_micro_batches_in_a_closure_have_the_noise_of_their_sum(model, before_closure):
    optimizer, micro = torch.optim.SGD(model.parameters(), lr=0.05), []

    def backward(count):
        for _ in range(count):
            before = [np.zeros(p.numel()) if p.grad is None else flat(p.grad) for p in model.parameters()]
            model(torch.randn(8, 6)).square().mean().backward()
            micro.append([flat(p.grad) - a for p, a in zip(model.parameters(), before, strict=True)])

    with covshift.record(model, every=1) as recorder:
        backward(before_closure)
        optimizer.step(lambda: backward(4 - before_closure))
    found = stored(recorder, "gradient_noise_norm")[0][0]
    for column in range(len(NAMES)):
        trace = np.atleast_2d(np.cov(np.stack([one[column] for one in micro]).T, ddof=1)).trace()
        assert found[column] == pytest.approx(np.sqrt(4 * trace), rel=1e-5)


def test_a_gradient_that_one_micro_batch_has_left_alone_has_no_noise():
    samples, always, rarely = GradientSamples(), torch.zeros(2), torch.zeros(2)
    for adding in ([always, rarely], [always], [always, rarely]):
        for gradient in adding:
            gradient += torch.rand(2)
        samples.after_backward([always, rarely], scale=1.0)
    noise = samples.noise_norm(np.array([2, 2]))
    assert noise[0] > 0
    assert np.isnan(noise[1])


def test_a_loss_scale_leaves_turn_and_noise_as_they_are(model):
    twin = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
    twin.load_state_dict(model.state_dict())
    results = []
    for one, scale in ((model, 1.0), (twin, 2.0**8)):
        scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=10**6)
        optimizer = torch.optim.SGD(one.parameters(), lr=0.05)
        generator = torch.Generator().manual_seed(1)
        with covshift.record(one, every=1, scaler=scaler) as recorder:
            for _ in range(3):
                for _ in range(3):
                    x, y = torch.randn(8, 6, generator=generator), torch.randint(3, (8,), generator=generator)
                    scaler.scale(F.cross_entropy(one(x), y)).backward()
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad()
        results.append([stored(recorder, name)[0] for name in ("gradient_cosine", "gradient_noise_norm")])
    for plain, scaled in zip(*results, strict=True):
        np.testing.assert_allclose(scaled, plain, rtol=1e-4)


def test_neither_is_measured_with_updates_off(model):
    with covshift.record(model, every=1, updates="off") as recorder:
        train(model, 3, micro_batches=2)
    for name in ("gradient_cosine", "gradient_noise_norm"):
        assert np.isnan(stored(recorder, name)[0]).all()


def test_a_parameter_without_gradient_or_with_a_sparse_one_has_no_turn():
    model = nn.Sequential(nn.Embedding(5, 4, sparse=True), nn.Linear(4, 3), nn.Linear(3, 3))
    model[1].requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with covshift.record(model, every=1) as recorder:
        for _ in range(3):
            model(torch.arange(5)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    found = recorder.recording["parameters"].to_dataset()["gradient_cosine"].isel(step=-1).to_series()
    assert found.index[found.isna()].tolist() == ["0.weight", "1.weight", "1.bias"]


def test_of_a_non_finite_gradient_there_is_no_cosine():
    samples = GradientSamples()
    for values in ([1.0, 2.0], [float("inf"), 1.0], [1.0, 1.0]):
        samples.at_step([torch.tensor(values)])
        cosine = samples.cosine()
        samples.forget()
    assert np.isnan(cosine).all()


def test_of_non_finite_micro_batches_there_is_no_noise():
    samples, gradient = GradientSamples(), torch.zeros(2)
    for values in ([1.0, 2.0], [float("inf"), -1.0], [0.0, 2.0]):
        gradient += torch.tensor(values)
        samples.after_backward([gradient], scale=1.0)
    assert np.isnan(samples.noise_norm(np.array([2]))).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.complex64])
def test_a_large_gradient_is_sampled_and_the_sample_is_all_that_is_kept(monkeypatch, dtype):
    # Of 1,000 elements every 11th: 10 has factors in common with 1,000.
    monkeypatch.setattr(directions, "SAMPLE_SIZE", 100)
    generator = torch.Generator().manual_seed(0)
    one, two = (torch.randn(250, 4, generator=generator).to(dtype) for _ in range(2))
    samples = GradientSamples()
    samples.at_step([one])
    assert samples.cosine() is None
    samples.at_step([two])
    wide = torch.complex128 if dtype.is_complex else torch.float64
    a, b = (tensor.reshape(-1)[::11].to(wide).numpy() for tensor in (one, two))
    expected = np.vdot(a, b).real / np.linalg.norm(a) / np.linalg.norm(b)
    assert samples.cosine()[0] == pytest.approx(expected, rel=1e-9)
    samples.forget()
    held = [one for one in vars(samples).values() if isinstance(one, Before)]
    assert sum(one.flat.size + sum(copy.numel() for copy in one.others.values()) for one in held) == 91


def test_sampled_noise_is_scaled_to_the_whole_gradient(monkeypatch):
    monkeypatch.setattr(directions, "SAMPLE_SIZE", 2_000)
    generator = torch.Generator().manual_seed(0)
    micro = torch.randn(6, 20_000, generator=generator)
    samples, accumulated = GradientSamples(), torch.zeros(20_000)
    for gradient in micro:
        accumulated += gradient
        samples.after_backward([accumulated], scale=1.0)
    exact = np.sqrt(6 * micro.double().var(dim=0).sum().item())
    assert samples.noise_norm(np.array([20_000]))[0] == pytest.approx(exact, rel=0.05)
