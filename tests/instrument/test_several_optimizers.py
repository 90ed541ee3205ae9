"""A step in which several optimizers update one model. Oracle: copies of the weights that the test itself takes."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import nn

import covshift
from covshift.schema import Status


class Halves(nn.Module):
    """A model whose matrices and vectors have an optimizer each; its parts may be called from outside."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.decoder = nn.Linear(6, 4), nn.Sequential(nn.Tanh(), nn.Linear(4, 2))

    def forward(self, x):
        return self.decoder(self.encoder(x))


def optimizers_of(model):
    matrices = [p for p in model.parameters() if p.ndim == 2]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    return torch.optim.SGD(matrices, lr=0.1, momentum=0.9), torch.optim.AdamW(vectors, lr=0.01)


def copies(model):
    return [p.detach().clone() for p in model.parameters()]


def changes(before, after):
    return [(new.double() - old.double()).norm().item() for new, old in zip(after, before, strict=True)]


def stored(recording, name):
    return recording["parameters"][name].values


def backward(model):
    model(torch.randn(8, 6)).square().mean().backward()


@pytest.mark.parametrize("every", [1, 2])
def test_every_optimizer_of_a_step_has_its_updates_measured(every):
    model = Halves()
    optimizers, expected = optimizers_of(model), []
    with covshift.record(model, every=every) as recorder:
        for step in range(4):
            before = copies(model)
            backward(model)
            for optimizer in optimizers:
                optimizer.step()
            assert recorder.step_count == step + 1
            for optimizer in optimizers:
                optimizer.zero_grad()
            expected.append(changes(before, copies(model)))
    assert recorder.recording["layers"].step.values.tolist() == list(range(0, 4, every))
    np.testing.assert_allclose(stored(recorder.recording, "update_norm"), expected[::every], rtol=1e-6)


def test_each_optimizers_gradients_are_those_that_it_found():
    model = Halves()
    first, second = optimizers_of(model)
    with covshift.record(model, every=1) as recorder:
        backward(model)
        found = {name: p.grad.double().norm().item() for name, p in model.named_parameters()}
        first.step()
        with torch.no_grad():
            for parameter in (model.encoder.bias, model.decoder[1].bias):
                parameter.grad *= 0.125
                found |= {n: p.grad.double().norm().item() for n, p in model.named_parameters() if p is parameter}
        first.zero_grad()
        second.step()
    norms = recorder.recording["parameters"]["gradient_norm"].isel(step=0).to_series().to_dict()
    assert norms == pytest.approx(found, rel=1e-12)
    assert stored(recorder.recording, "gradient_measured").all()


def test_of_adversaries_that_take_turns_each_step_has_the_updates_of_its_own_optimizer():
    model = Halves()
    generator = torch.optim.SGD(model.encoder.parameters(), lr=0.1)
    critic = torch.optim.SGD(model.decoder.parameters(), lr=0.1)
    expected = []
    with covshift.record(model, every=1) as recorder:
        for optimizer in (critic, generator, critic, generator):
            before = copies(model)
            model.decoder(model.encoder(torch.randn(8, 6))).square().mean().backward()
            optimizer.step()
            model.zero_grad()
            expected.append(changes(before, copies(model)))
    assert recorder.step_count == 4
    updates = recorder.recording["parameters"].to_dataset()["update_norm"]
    theirs = ["encoder.weight", "encoder.bias"], ["decoder.1.weight", "decoder.1.bias"]
    for step in range(4):
        own, other = theirs[::-1] if step % 2 == 0 else theirs
        place = slice(2, 4) if step % 2 == 0 else slice(0, 2)
        np.testing.assert_allclose(updates.sel(step=step, parameter=own), expected[step][place], rtol=1e-6)
        # Not 0: no optimizer that holds them had its turn.
        assert updates.sel(step=step, parameter=other).isnull().all()


def end_by(how, model, recorder):
    if how == "forward":
        model(torch.randn(2, 6))
    elif how == "evaluation":
        with recorder.evaluation():
            pass
    elif how == "pause":
        with recorder.pause():
            pass
    elif how == "step":
        recorder.step()
    elif how == "read":
        assert recorder.recording["layers"].step.values.tolist() == [0]


@pytest.mark.parametrize("how", ["forward", "step", "pause", "evaluation", "read"])
def test_a_step_that_awaits_an_optimizer_in_vain_is_stored_when_something_else_begins(tmp_path, how):
    model = Halves()
    first, _ = optimizers_of(model)
    with covshift.record(model, tmp_path / "run", every=1) as recorder:
        backward(model)
        first.step()
        assert recorder.step_count == 1
        assert covshift.open(tmp_path / "run")["layers"].step.size == 0
        end_by(how, model, recorder)
        found = covshift.open(tmp_path / "run")
        assert found["layers"].step.values.tolist() == [0]
        assert found["parameters"].step.values.tolist() == [0]
    assert recorder.step_count == 1


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
def test_a_step_that_awaits_an_optimizer_is_stored_at_the_end_whatever_ends_it(tmp_path, error):
    model = Halves()
    first, _ = optimizers_of(model)
    with nullcontext() if error is None else pytest.raises(error):  # noqa: SIM117 - the recorder is left by the error
        with covshift.record(model, tmp_path / "run", every=1):
            backward(model)
            first.step()
            if error is not None:
                raise error
    updates = covshift.open(tmp_path / "run")["parameters"]["update_norm"].to_series().dropna()
    assert [name for _, name in updates.index] == ["encoder.weight", "decoder.1.weight"]


def test_an_optimizer_that_joins_later_has_its_first_update_measured():
    model = Halves()
    first, second = optimizers_of(model)
    expected = []
    with covshift.record(model, every=1) as recorder:
        for step in range(3):
            before = copies(model)
            backward(model)
            first.step()
            if step == 2:
                second.step()
            model.zero_grad()
            expected.append(changes(before, copies(model)))
    updates = stored(recorder.recording, "update_norm")
    np.testing.assert_allclose(updates[2], expected[2], rtol=1e-6)
    assert updates[2].all()
    # Before that nobody was known to hold them: not measured in the first step, unmoved in the next.
    assert np.isnan(updates[0][[1, 3]]).all()
    assert updates[1][[1, 3]].tolist() == [0.0, 0.0]


def test_two_optimizers_with_closures_end_a_step_each():
    model = Halves()
    optimizers, x = optimizers_of(model), torch.randn(8, 6)

    def closure():
        model.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        return loss

    expected = []
    with covshift.record(model, every=1) as recorder:
        for optimizer in optimizers * 2:
            before = copies(model)
            optimizer.step(closure)
            expected.append(changes(before, copies(model)))
    assert recorder.step_count == 4
    updates = stored(recorder.recording, "update_norm")
    for step in range(4):
        own = [0, 2] if step % 2 == 0 else [1, 3]
        np.testing.assert_allclose(updates[step][own], np.array(expected[step])[own], rtol=1e-6)


def test_an_optimizer_inside_backward_beside_one_outside_makes_one_step_and_no_update_of_zero():
    model = Halves()
    inside = torch.optim.SGD([model.encoder.weight], lr=0.1)
    outside = torch.optim.SGD([p for p in model.parameters() if p is not model.encoder.weight], lr=0.1)

    def update(parameter):
        inside.step()
        inside.zero_grad()

    handle = model.encoder.weight.register_post_accumulate_grad_hook(update)
    with covshift.record(model, every=1) as recorder:
        for _ in range(3):
            backward(model)
            outside.step()
            outside.zero_grad()
    handle.remove()
    assert recorder.step_count == 3
    updates = recorder.recording["parameters"].to_dataset()["update_norm"]
    assert updates.sel(parameter="encoder.weight").isnull().all()
    assert (updates.sel(parameter=["encoder.bias", "decoder.1.weight", "decoder.1.bias"]) > 0).all()


def test_an_awaited_optimizer_does_not_keep_the_step_open_for_gradients():
    model = Halves()
    first, _ = optimizers_of(model)
    with covshift.record(model, every=1) as recorder:
        late = model(torch.randn(8, 6)).sum()
        first.step()
        first.zero_grad()
        model.encoder.weight.grad = None
        torch.autograd.grad(late, model.decoder[1].bias)
    status = recorder.recording["layers"]["status"].sel(step=0, layer="decoder.1", signal="activation_grad")
    assert status == Status.NO_GRADIENT_ARRIVED


def test_bits_of_training_with_several_optimizers_stay():
    outcomes = []
    for recorded in (False, True):
        model = Halves()
        optimizers = optimizers_of(model)
        torch.manual_seed(1)
        with covshift.record(model, every=1) if recorded else nullcontext():
            for _ in range(5):
                backward(model)
                for optimizer in optimizers:
                    optimizer.step()
                    optimizer.zero_grad()
        outcomes.append(copies(model))
    assert all(torch.equal(a, b) for a, b in zip(*outcomes, strict=True))
