"""Gradient ICS is Santurkar et al.'s definition 2.1, computed here a second time by deep copies and backward()."""

import copy
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import covshift
from covshift.exceptions import InvalidArgumentError, ProbeUnsupported
from covshift.probe import gradient_ics

OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.01),
}


def by_brute_force(model, optimizer, batch, layers):
    """Definition 2.1 by copies: layer name -> (G, G'), flat float64 vectors."""
    x, y = batch

    def gradients(net):
        torch.manual_seed(0)
        net = copy.deepcopy(net)
        net.zero_grad()
        F.cross_entropy(net(x), y).backward()
        return {name: p.grad for name, p in net.named_parameters()}

    stepped = copy.deepcopy(model)
    twin = type(optimizer)(stepped.parameters(), **{k: optimizer.defaults[k] for k in ("lr",)})
    twin.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for name, gradient in gradients(model).items():
        stepped.get_parameter(name).grad = gradient.clone()
    twin.step()
    first, found = gradients(model), {}
    for place, layer in enumerate(layers):
        mixed = copy.deepcopy(model)
        for before in layers[:place]:
            own = dict(stepped.get_submodule(before).named_parameters(recurse=False))
            for name, value in own.items():
                getattr(mixed.get_submodule(before), name).data.copy_(value)
        second = gradients(mixed)
        names = [f"{layer}.{name}" for name, _ in model.get_submodule(layer).named_parameters(recurse=False)]
        found[layer] = [torch.cat([g[n].double().flatten() for n in names]).numpy() for g in (first, second)]
    return found


LAYERS = {
    "convolutional": ["0", "1", "4", "5", "9"],
    "recurrent": ["lstm", "head"],
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("kind", LAYERS)
def test_it_is_definition_2_1_by_brute_force(build, batch, train, kind, optimizer):
    model = build(kind)
    stepper = OPTIMIZERS[optimizer](model.parameters())
    train(model, stepper, steps=3)
    given_batch = batch(model)
    expected = by_brute_force(model, stepper, given_batch, LAYERS[kind])
    result = gradient_ics(model, F.cross_entropy, given_batch, stepper)
    assert result.layer.values.tolist() == LAYERS[kind]
    for layer, (g, shifted) in expected.items():
        row = result.sel(layer=layer)
        assert float(row.ics) == pytest.approx(np.linalg.norm(g - shifted), rel=1e-5, abs=1e-9)
        assert float(row.gradient_norm) == pytest.approx(np.linalg.norm(g), rel=1e-5)
        assert float(row.relative_ics) == pytest.approx(
            np.linalg.norm(g - shifted) / np.linalg.norm(g), rel=1e-5, abs=1e-9
        )
        assert float(row.cosine) == pytest.approx(
            float(g @ shifted / np.linalg.norm(g) / np.linalg.norm(shifted)), rel=1e-6
        )
    assert (result.ics.values[1:] > 0).all()


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("kind", ["convolutional", "transformer", "recurrent"])
def test_the_first_layer_has_none_exactly(build, batch, kind, mode):
    model = build(kind)
    result = gradient_ics(model, F.cross_entropy, batch(model), torch.optim.SGD(model.parameters(), lr=0.1), mode=mode)
    assert float(result.ics[0]) == 0.0
    assert float(result.cosine[0]) == pytest.approx(1.0)
    assert result.gradient_noise.isnull().all()


def test_two_linear_layers_by_hand():
    # L = (w2 w1 x)^2 / 2 with x = 1, w1 = 2, w2 = 3: dL/dw1 = w2^2 w1 = 18, dL/dw2 = w1^2 w2 = 12. A step of 0.1 takes
    # w1 to 0.2, and G'_2 = 0.2^2 * 3 = 0.12.
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)).double()
    model[0].weight.data.fill_(2)
    model[1].weight.data.fill_(3)
    x = torch.ones(1, 1, dtype=torch.float64)
    step = torch.optim.SGD(model.parameters(), lr=0.1)
    result = gradient_ics(model, lambda output: output.square().sum() / 2, x, step)
    np.testing.assert_allclose(result.gradient_norm, [18, 12])
    np.testing.assert_allclose(result.ics, [0, 11.88])
    np.testing.assert_allclose(result.update_norm, [1.8, 1.2])
    np.testing.assert_allclose(result.cosine, [1, 1])


def test_gradient_noise_is_the_distance_of_two_minibatch_gradients(build, batch):
    model = build("recurrent")
    one, other = batch(model), batch(model)
    result = gradient_ics(model, F.cross_entropy, one, torch.optim.SGD(model.parameters(), lr=0.1), noise_batch=other)
    model.lstm.dropout = 0.0
    without = gradient_ics(model, F.cross_entropy, one, torch.optim.SGD(model.parameters(), lr=0.1), noise_batch=other)
    gradients = []
    for x, y in (one, other):
        model.zero_grad()
        F.cross_entropy(model(x), y).backward()
        gradients.append(torch.cat([p.grad.double().flatten() for p in model.head.parameters()]))
    expected = float((gradients[0] - gradients[1]).norm())
    assert float(without.gradient_noise.sel(layer="head")) == pytest.approx(expected, rel=1e-5)
    assert float(without.ics_to_noise.sel(layer="head")) == pytest.approx(
        float(without.ics.sel(layer="head")) / expected, rel=1e-5
    )
    assert (result.gradient_noise > 0).all()


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**16), st.floats(0.5, 8))
def test_scaling_the_loss_scales_norms_and_leaves_ratios(seed, scale):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    x = torch.randn(6, 3, dtype=torch.float64)

    def measured(factor):
        # A learning rate over the factor makes the very same step.
        step = torch.optim.SGD(model.parameters(), lr=0.1 / factor)
        return gradient_ics(model, lambda output: factor * output.square().mean(), x, step)

    one, other = measured(1.0), measured(scale)
    np.testing.assert_allclose(other.ics, scale * one.ics, rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(other.relative_ics, one.relative_ics, rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(other.update_norm, one.update_norm, rtol=1e-6)
    assert (abs(one.cosine) <= 1).all()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_nothing_of_the_step_remains(build, batch, train, photograph, assert_same, optimizer):
    model = build()
    stepper = OPTIMIZERS[optimizer](model.parameters())
    train(model, stepper, steps=2)
    states = {p: {k: (v, v.clone()) for k, v in stepper.state[p].items() if torch.is_tensor(v)} for p in stepper.state}
    groups = [dict(group) for group in stepper.param_groups]
    given_batch = batch(model)
    before = photograph(model)
    gradient_ics(model, F.cross_entropy, given_batch, stepper)
    assert_same(before, photograph(model))
    for parameter, kept in states.items():
        for key, (held, value) in kept.items():
            assert stepper.state[parameter][key] is held
            assert torch.equal(held, value)
    assert [dict(group) for group in stepper.param_groups] == groups


def test_training_goes_on_as_if_never_probed(build, batch, train):
    losses = []
    for probed in (False, True):
        torch.manual_seed(5)
        model = build()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        torch.manual_seed(6)
        given_batch = batch(model)
        losses.append([])
        for _ in range(5):
            losses[-1] += train(model, optimizer)
            if probed:
                gradient_ics(model, F.cross_entropy, given_batch, optimizer)
    assert losses[0] == losses[1]


def test_a_step_that_fails_leaves_the_model_and_the_optimizer(build, batch, train, photograph, assert_same):
    model = build()
    optimizer = torch.optim.Adam(model.parameters())
    train(model, optimizer, steps=2)
    given_batch = batch(model)
    before, state = photograph(model), optimizer.state

    def fail():
        optimizer.step()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        gradient_ics(model, F.cross_entropy, given_batch, fail)
    assert_same(before, photograph(model))
    assert optimizer.state is state


def test_a_callable_may_clip_before_it_steps(build, batch):
    model = build()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)

    def clipped():
        nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
        optimizer.step()

    given_batch = batch(model)
    result = gradient_ics(model, F.cross_entropy, given_batch, clipped)
    plain = gradient_ics(model, F.cross_entropy, given_batch, optimizer)
    assert float(np.square(result.update_norm).sum()) == pytest.approx(1e-6, rel=1e-3)
    np.testing.assert_allclose(result.gradient_norm, plain.gradient_norm)


def test_layers_come_in_the_order_of_calls_and_own_what_nobody_calls():
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.second, self.first, self.unused = nn.Linear(4, 2), nn.MultiheadAttention(4, 1), nn.Linear(9, 9)
            self.offset = nn.Parameter(torch.zeros(4))

        def forward(self, x):
            return self.second(self.first(x + self.offset, x, x)[0])

    model, x = Backwards(), torch.randn(5, 3, 4)
    result = gradient_ics(model, lambda out: out.square().sum(), x, torch.optim.SGD(model.parameters(), lr=0.01))
    assert result.layer.values.tolist() == ["(root)", "first", "second"]
    model.zero_grad()
    model(x).square().sum().backward()
    expected = torch.cat([p.grad.flatten() for p in model.first.parameters()]).norm()
    assert float(result.gradient_norm.sel(layer="first")) == pytest.approx(float(expected), rel=1e-4)


def test_a_shared_parameter_belongs_to_the_layer_called_first():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.head, self.embedding = nn.Linear(4, 7, bias=False), nn.Embedding(7, 4)
            self.head.weight = self.embedding.weight

        def forward(self, x):
            return self.head(self.embedding(x))

    model, x, y = Tied(), torch.randint(7, (5,)), torch.randint(7, (5,))
    result = gradient_ics(model, F.cross_entropy, (x, y), torch.optim.SGD(model.parameters(), lr=0.1))
    assert result.layer.values.tolist() == ["embedding"]


def test_a_layer_without_gradient_has_no_ratio():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
    model[1].bias.data.fill_(-100)
    result = gradient_ics(
        model, lambda output: output.sum(), torch.randn(4, 2), torch.optim.SGD(model.parameters(), lr=0.1)
    )
    assert float(result.gradient_norm[0]) == 0
    assert np.isnan(result.relative_ics[0])
    assert np.isnan(result.cosine[0])


class Counting(nn.Linear):
    """Keeps state where no probe can see it."""

    calls = 0

    def forward(self, x):
        self.calls += 1
        return super().forward(x) * (1 + self.calls)


class OwnRandom(nn.Linear):
    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.source = random.Random(0)

    def forward(self, x):
        return super().forward(x) * (1 + self.source.random())


@pytest.mark.parametrize("kind", [Counting, OwnRandom])
def test_a_model_that_does_not_repeat_itself_fails_the_self_test(kind):
    model = nn.Sequential(kind(3, 3), nn.Linear(3, 2))
    with pytest.raises(ProbeUnsupported, match=r"layer '0': its two gradients, of the same state on the same batch"):
        gradient_ics(
            model, lambda out: out.square().sum(), torch.randn(4, 3), torch.optim.SGD(model.parameters(), lr=0.1)
        )


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (lambda model: 3, r"optimizer_step=3: expected an optimizer, or a callable"),
        (lambda model: lambda: None, r"optimizer_step: changed no parameter of the model"),
        (lambda model: torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.1), r"optimizer_step: changed no parameter"),
        (lambda model: torch.optim.SGD(model.parameters(), lr=float("inf")), r"made a parameter NaN or infinite"),
    ],
)
def test_steps_that_are_none_are_named(build, batch, step, message):
    model = build()
    with pytest.raises(InvalidArgumentError, match=message):
        gradient_ics(model, F.cross_entropy, batch(model), step(model))


def test_a_model_without_parameters_is_named():
    for model in (nn.Tanh(), nn.Linear(2, 2).requires_grad_(False)):
        with pytest.raises(InvalidArgumentError, match=r"model: has no trainable parameter in a module it calls"):
            gradient_ics(model, lambda output: output.sum(), torch.randn(2, 2), lambda: None)


def test_a_recorder_sees_neither_the_passes_nor_the_step(build, batch, train):
    model = build()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with covshift.record(model, every=1) as recorder:
        train(model, optimizer)
        gradient_ics(model, F.cross_entropy, batch(model), optimizer)
        assert recorder.step_count == 1
        train(model, optimizer)
    assert recorder.step_count == 2
    assert recorder.recording["layers"].step.values.tolist() == [0, 1]
    assert (recorder.recording["layers"].example_count.sel(signal="activation", layer="0") == 16).all()
