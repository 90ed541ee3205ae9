"""A step that runs another, a closure or hooks is one step. Oracle: weights and gradients copied by the test."""

import numpy as np
import pytest
import torch
from torch import nn

import covshift


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.LBFGS])
def test_an_optimizer_that_runs_the_model_in_a_closure_has_its_parameters_measured(shallow, make):
    model = shallow()
    optimizer = make(model.parameters(), lr=0.1)
    x = torch.randn(8, 6)

    def closure():
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        return loss

    before = [p.detach().clone() for p in model.parameters()]
    with covshift.record(model, every=1) as recorder:
        optimizer.step(closure)
    after = [p.detach().clone() for p in model.parameters()]
    row = recorder.recording["parameters"].to_dataset().sel(step=0)
    changes = [(new - old).double().norm().item() for new, old in zip(after, before, strict=True)]
    np.testing.assert_allclose(row["update_norm"], changes, rtol=1e-6)
    np.testing.assert_allclose(row["weight_norm"], [p.double().norm().item() for p in before], rtol=1e-6)
    np.testing.assert_allclose(
        row["gradient_norm"], [p.grad.double().norm().item() for p in model.parameters()], rtol=1e-6
    )


@pytest.fixture
def subclass():
    """An optimizer whose ``step`` and the one it calls are both hooked by torch: the base class was used before."""
    torch.optim.Adam(nn.Linear(1, 1).parameters())

    class ClippedAdam(torch.optim.Adam):
        def step(self, closure=None):
            for group in self.param_groups:
                nn.utils.clip_grad_norm_(group["params"], 0.01)
            return super().step(closure)

    return ClippedAdam


class Lookahead(torch.optim.Optimizer):
    """Pulls the weights back to a slow copy at every second step of another optimizer."""

    def __init__(self, base):
        super().__init__(base.param_groups, {})
        self.base, self.param_groups, self.steps = base, base.param_groups, 0
        self.slow = [p.detach().clone() for p in base.param_groups[0]["params"]]

    @torch.no_grad()
    def step(self, closure=None):
        self.base.step()
        self.steps += 1
        for slow, fast in zip(self.slow, self.param_groups[0]["params"], strict=True):
            if self.steps % 2 == 0:
                fast.copy_(slow.add_(fast - slow, alpha=0.5))


def observed_training(model, optimizer, *, steps, every=1):
    """A recorder, and norms of true updates and of the gradients that each step has left behind."""
    updates, gradients = [], []
    with covshift.record(model, every=every) as recorder:
        for _ in range(steps):
            optimizer.zero_grad()
            model(torch.randn(8, 6)).square().mean().backward()
            before = [p.detach().clone() for p in model.parameters()]
            optimizer.step()
            changed = zip(model.parameters(), before, strict=True)
            updates.append([(p.detach().double() - old.double()).norm().item() for p, old in changed])
            gradients.append([p.grad.double().norm().item() for p in model.parameters()])
    return recorder, np.array(updates), np.array(gradients)


@pytest.mark.parametrize("every", [1, 2])
def test_a_step_that_calls_super_is_one_step_by_the_gradients_that_super_found(shallow, subclass, every):
    model = shallow()
    recorder, updates, gradients = observed_training(model, subclass(model.parameters()), steps=5, every=every)
    assert recorder.step_count == 5
    parameters = recorder.recording["parameters"].to_dataset()
    assert parameters.step.values.tolist() == list(range(0, 5, every))
    np.testing.assert_allclose(parameters["update_norm"], updates[::every], rtol=1e-6)
    np.testing.assert_allclose(parameters["gradient_norm"], gradients[::every], rtol=1e-6)
    assert (parameters["gradient_norm_preclip"] > 2 * parameters["gradient_norm"]).all()


def test_the_update_of_an_optimizer_that_wraps_another_is_what_both_have_made_of_it(shallow):
    model = shallow()
    optimizer = Lookahead(torch.optim.SGD(model.parameters(), lr=0.1))
    recorder, updates, gradients = observed_training(model, optimizer, steps=4)
    assert recorder.step_count == 4
    parameters = recorder.recording["parameters"].to_dataset()
    np.testing.assert_allclose(parameters["update_norm"], updates, rtol=1e-6)
    np.testing.assert_allclose(parameters["gradient_norm"], gradients, rtol=1e-6)
    assert recorder.recording["scalars"]["learning_rate"].values.tolist() == [0.1] * 4


def test_an_optimizer_that_climbs_first_is_one_step_by_the_gradients_found_up_there(shallow):
    class Climbing(torch.optim.Optimizer):
        """Sharpness-aware: steps from the weights by the gradient at a place near by."""

        def __init__(self, base):
            super().__init__(base.param_groups, {})
            self.base, self.param_groups = base, base.param_groups

        def step(self, closure):
            weights = [p.detach().clone() for p in self.param_groups[0]["params"]]
            with torch.no_grad():
                for parameter in self.param_groups[0]["params"]:
                    parameter.add_(parameter.grad, alpha=10.0)
            self.zero_grad()
            with torch.enable_grad():
                loss = closure()
            with torch.no_grad():
                for parameter, weight in zip(self.param_groups[0]["params"], weights, strict=True):
                    parameter.copy_(weight)
            self.base.step()
            return loss

    model, x = shallow(), torch.randn(8, 6)
    optimizer = Climbing(torch.optim.SGD(model.parameters(), lr=0.1))

    def evaluation():
        loss = model(x).square().mean()
        loss.backward()
        return loss

    with covshift.record(model, every=1) as recorder:
        evaluation()
        before = [p.detach().clone() for p in model.parameters()]
        optimizer.step(evaluation)
    assert recorder.step_count == 1
    row = recorder.recording["parameters"].to_dataset().sel(step=0)
    changes = [(p.detach() - old).double().norm().item() for p, old in zip(model.parameters(), before, strict=True)]
    np.testing.assert_allclose(row["update_norm"], changes, rtol=1e-6)
    np.testing.assert_allclose(row["gradient_norm"], [p.grad.double().norm().item() for p in model.parameters()])
    np.testing.assert_allclose(row["weight_norm"], [old.double().norm().item() for old in before], rtol=1e-6)


@pytest.mark.parametrize("where", ["inner", "outer"])
def test_a_step_that_raised_is_none_that_later_ones_are_part_of(shallow, where):
    class Stumbling(Lookahead):
        def step(self, closure=None):
            if where == "inner":
                with pytest.raises(ZeroDivisionError):
                    self.base.step(lambda: 1 / 0)
            elif not self.steps:
                self.steps += 1
                raise ZeroDivisionError
            super().step()

    model = shallow()
    optimizer = Stumbling(torch.optim.SGD(model.parameters(), lr=0.1))
    with covshift.record(model, every=1) as recorder:
        for _ in range(4):
            optimizer.zero_grad()
            model(torch.randn(4, 6)).sum().backward()
            try:
                optimizer.step()
            except ZeroDivisionError:
                assert recorder.step_count == 0
                optimizer.step()
    assert recorder.step_count == 4


def test_steps_that_another_models_optimizer_calls_are_steps_of_their_own(shallow):
    model, other = shallow(), shallow()
    inner, outer = torch.optim.SGD(model.parameters(), lr=0.1), torch.optim.SGD(other.parameters(), lr=0.1)

    def unrolled():
        for _ in range(3):
            inner.zero_grad()
            model(torch.randn(4, 6)).sum().backward()
            inner.step()
        return 0.0

    with covshift.record(model, every=1) as recorder:
        outer.step(unrolled)
        outer.step(unrolled)
    assert recorder.step_count == 6


@pytest.mark.parametrize("every", [1, 2])
def test_gradients_are_those_that_the_optimizers_own_pre_hooks_have_left(shallow, every):
    model = shallow()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def clip(stepping, args, kwargs):
        nn.utils.clip_grad_norm_(model.parameters(), 0.01)

    optimizer.register_step_pre_hook(clip)
    recorder, updates, gradients = observed_training(model, optimizer, steps=4, every=every)
    parameters = recorder.recording["parameters"].to_dataset()
    np.testing.assert_allclose(parameters["gradient_norm"], gradients[::every], rtol=1e-6)
    np.testing.assert_allclose(parameters["update_norm"], updates[::every], rtol=1e-5)
    assert (parameters["gradient_norm_preclip"] > 2 * parameters["gradient_norm"]).all()
    assert list(optimizer._optimizer_step_pre_hooks.values()) == [clip]


def test_a_pre_hook_that_raises_costs_its_step_and_leaves_nothing_on_the_optimizer(shallow):
    model, calls = shallow(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def stumble(stepping, args, kwargs):
        calls.append(1)
        if len(calls) == 1:
            raise ZeroDivisionError

    optimizer.register_step_pre_hook(stumble)
    with covshift.record(model, every=2) as recorder:
        model(torch.randn(4, 6)).sum().backward()
        with pytest.raises(ZeroDivisionError):
            optimizer.step()
        optimizer.register_step_pre_hook(stumble)
        for _ in range(3):
            optimizer.step()
            assert set(optimizer._optimizer_step_pre_hooks.values()) == {stumble}
            model(torch.randn(4, 6)).sum().backward()
    assert recorder.step_count == 3
