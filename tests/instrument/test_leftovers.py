"""Gradients that nobody clears between steps are named, others never. Oracle: the sum of the batches' own gradients."""

import re
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import covshift
from covshift import CovshiftWarning

CLEARED = ["to none", "in place"]
SAID = "gradients are not cleared"


def clear(optimizer, how):
    if how != "never":
        optimizer.zero_grad(set_to_none=how == "to none")


def loss_of(model):
    return F.cross_entropy(model(torch.randn(16, 6)), torch.randint(2, (16,)))


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.01)


def train(model, *, how, steps=6, clip=False, micro_batches=1, optimizer=None):
    optimizer = optimizer or sgd(model)
    for _ in range(steps):
        clear(optimizer, how)
        for _ in range(micro_batches):
            loss_of(model).backward()
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()


def recorded(model, loop, *, every=1, **options):
    """Messages about gradients left over, and the recorder."""
    with warnings.catch_warnings(record=True) as said, covshift.record(model, every=every, **options) as recorder:
        warnings.simplefilter("always", CovshiftWarning)
        loop(model)
    return [str(one.message) for one in said if str(one.message).startswith(SAID)], recorder


@pytest.mark.parametrize(("every", "micro_batches"), [(1, 1), (1, 2), (3, 1)])
@pytest.mark.parametrize("clip", [False, True])
def test_a_loop_that_never_clears_is_told_once_and_how_to(shallow, every, clip, micro_batches):
    model = shallow()
    said, recorder = recorded(
        model, lambda m: train(m, how="never", steps=12, clip=clip, micro_batches=micro_batches), every=every
    )
    assert len(said) == 1
    assert said == [one for one in recorder.warnings if one.startswith(SAID)]
    # The first record has no step before it that was watched where only some are recorded, or none at all.
    assert re.search(rf"at step {2 * every}, as in the step recorded before.*zero_grad\(\) before backward", said[0])


def test_what_the_warning_says_is_so(shallow):
    model, twin, own = shallow(), shallow(), []
    optimizer = sgd(model)
    with covshift.record(model, every=1) as recorder, pytest.warns(CovshiftWarning, match=SAID):
        for _ in range(4):
            x, y = torch.randn(16, 6), torch.randint(2, (16,))
            twin.load_state_dict(model.state_dict())
            own.append(torch.autograd.grad(F.cross_entropy(twin(x), y), twin[0].weight)[0].double())
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    norms = recorder.recording["parameters"]["gradient_norm"].sel(parameter="0.weight").values
    assert norms.tolist() == pytest.approx([sum(own[: k + 1]).norm().item() for k in range(4)], rel=1e-5)


@pytest.mark.parametrize(("every", "micro_batches"), [(1, 1), (1, 3), (3, 1)])
@pytest.mark.parametrize("how", CLEARED)
@pytest.mark.parametrize("clip", [False, True])
def test_a_loop_that_clears_is_not(shallow, every, how, clip, micro_batches):
    said, _ = recorded(
        shallow(), lambda m: train(m, how=how, steps=12, clip=clip, micro_batches=micro_batches), every=every
    )
    assert said == []


BY_HAND = {
    "data": lambda p: p.grad.data.zero_(),
    "numpy": lambda p: p.grad.numpy().fill(0),
    "detached": lambda p: p.grad.detach_().zero_(),
    "copied": lambda p: p.grad.copy_(torch.zeros_like(p)),
    "deleted": lambda p: setattr(p, "grad", None),
    "another": lambda p: setattr(p, "grad", torch.zeros_like(p)),
}


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("when", ["before forward", "before backward", "after the step"])
@pytest.mark.parametrize("by", BY_HAND)
def test_gradients_cleared_by_hand_are_no_leftover(shallow, every, when, by):
    def loop(model):
        optimizer = sgd(model)

        def clear_at(now):
            for parameter in model.parameters():
                if now == when and parameter.grad is not None:
                    BY_HAND[by](parameter)

        for _ in range(12):
            clear_at("before forward")
            loss = loss_of(model)
            clear_at("before backward")
            loss.backward()
            optimizer.step()
            clear_at("after the step")

    assert recorded(shallow(), loop, every=every)[0] == []


@pytest.mark.parametrize("how", CLEARED)
@pytest.mark.parametrize("steps_with", [1, 2])
def test_a_penalty_that_goes_backward_first_is_no_leftover(shallow, how, steps_with):
    def loop(model):
        optimizer = sgd(model)
        for step in range(12):
            clear(optimizer, how)
            if step % steps_with == 0:
                (1e-3 * sum(p.square().sum() for p in model.parameters())).backward()
            loss_of(model).backward()
            optimizer.step()

    assert recorded(shallow(), loop)[0] == []


@pytest.mark.parametrize("clear", [lambda p: p.grad.data.zero_(), lambda p: p.grad.zero_()], ids=["data", "in place"])
def test_gradients_of_an_attack_on_the_input_are_cleared_before_the_real_ones(shallow, clear):
    def loop(model):
        optimizer = sgd(model)
        for _ in range(8):
            x = torch.randn(16, 6, requires_grad=True)
            model(x).square().sum().backward()
            for parameter in model.parameters():
                clear(parameter)
            F.cross_entropy(model(x.detach() + 0.1 * x.grad.sign()), torch.randint(2, (16,))).backward()
            optimizer.step()
            for parameter in model.parameters():
                clear(parameter)

    assert recorded(shallow(), loop)[0] == []


def test_gradients_through_the_model_between_clearing_and_backward_are_no_leftover(shallow):
    def loop(model):
        optimizer = sgd(model)
        for _ in range(8):
            optimizer.zero_grad(set_to_none=False)
            x = torch.randn(16, 6, requires_grad=True)
            torch.autograd.grad(model(x).square().sum(), x)
            loss_of(model).backward()
            optimizer.step()

    assert recorded(shallow(), loop)[0] == []


@pytest.mark.parametrize(("how", "times"), [("never", 1), ("to none", 0), ("in place", 0)])
def test_heads_that_go_backward_one_after_the_other_are_told_apart(how, times):
    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.actor, self.critic = nn.Linear(6, 2), nn.Linear(6, 1)

        def forward(self, x):
            return self.actor(x), self.critic(x)

    def loop(model):
        optimizer = sgd(model)
        for _ in range(6):
            clear(optimizer, how)
            actor, critic = model(torch.randn(8, 6))
            actor.square().mean().backward()
            critic.square().mean().backward()
            optimizer.step()

    assert len(recorded(Heads(), loop)[0]) == times


class Experts(nn.Module):
    """Two experts of which a batch reaches one, and a head."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.head = nn.Linear(6, 4), nn.Linear(6, 4), nn.Linear(4, 2)
        self.turn = 0

    def forward(self, x):
        self.turn += 1
        return self.head((self.first if self.turn % 4 < 2 else self.second)(x))


@pytest.mark.parametrize("how", CLEARED)
@pytest.mark.parametrize("micro_batches", [1, 2])
def test_an_expert_that_no_batch_reached_is_no_leftover(how, micro_batches):
    assert recorded(Experts(), lambda m: train(m, how=how, steps=16, micro_batches=micro_batches))[0] == []


class Adversaries(nn.Module):
    """A generator and the discriminator that its gradients pass through."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.generator, self.discriminator = nn.Linear(3, 6), nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 1))

    def forward(self, x, *, is_noise):
        return self.discriminator(self.generator(x) if is_noise else x)


@pytest.mark.parametrize("how", CLEARED)
def test_gradients_that_pass_through_an_adversary_are_cleared_before_its_step(how):
    def loop(model):
        generator, discriminator = sgd(model.generator), sgd(model.discriminator)
        for _ in range(8):
            clear(discriminator, how)
            F.softplus(model(torch.randn(8, 6), is_noise=False)).mean().backward()
            F.softplus(-model(torch.randn(8, 3), is_noise=True)).mean().backward()
            discriminator.step()
            clear(generator, how)
            F.softplus(model(torch.randn(8, 3), is_noise=True)).mean().backward()
            generator.step()

    assert recorded(Adversaries(), loop)[0] == []


@pytest.mark.parametrize("how", CLEARED)
def test_an_optimizer_that_runs_the_model_clears_in_its_closure(shallow, how):
    def loop(model):
        optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3)

        def closure():
            clear(optimizer, how)
            loss = loss_of(model)
            loss.backward()
            return loss

        for _ in range(4):
            optimizer.step(closure)

    assert recorded(shallow(), loop)[0] == []


@pytest.mark.parametrize(("how", "times"), [("never", 1), ("to none", 0), ("in place", 0)])
def test_a_scaler_hides_nothing(shallow, how, times):
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)

    def loop(model):
        optimizer = sgd(model)
        for _ in range(6):
            clear(optimizer, how)
            scaler.scale(loss_of(model)).backward()
            scaler.step(optimizer)
            scaler.update()

    assert len(recorded(shallow(), loop, scaler=scaler)[0]) == times


def test_steps_that_are_not_recorded_next_to_each_other_are_watched_all_the_same(shallow):
    said, _ = recorded(shallow(), lambda m: train(m, how="never", steps=12), every=covshift.at_steps(0, 5, 10))
    assert len(said) == 1
    assert "at step 10" in said[0]
