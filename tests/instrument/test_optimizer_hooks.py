"""A user's hooks on optimizers may come and go as torch lets them, and nothing of covshift's stays among them."""

import copy
from contextlib import ExitStack, nullcontext

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import optimizer as tables
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

import covshift
from covshift.instrument.optimizerhooks import Behind


@pytest.fixture
def removed_at_end():
    """Handles of hooks on the process's optimizers."""
    handles = []
    yield handles
    for handle in handles:
        handle.remove()


def train(model, optimizer, steps=3):
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(8, 6)).square().mean().backward()
        optimizer.step()


REGISTER = {
    "own pre": lambda optimizer, hook: optimizer.register_step_pre_hook(hook),
    "own post": lambda optimizer, hook: optimizer.register_step_post_hook(hook),
    "global pre": lambda optimizer, hook: register_optimizer_step_pre_hook(hook),
    "global post": lambda optimizer, hook: register_optimizer_step_post_hook(hook),
}


@pytest.mark.parametrize("other", [False, True], ids=["alone", "behind another"])
@pytest.mark.parametrize("deed", ["goes", "brings another"])
@pytest.mark.parametrize("kind", REGISTER)
@pytest.mark.parametrize("every", [1, 2])
def test_the_last_hook_may_change_its_table_as_it_may_without_a_recorder(
    shallow, removed_at_end, every, kind, deed, other
):
    def trained(context):
        model, calls = shallow(), []
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

        def register(hook):
            removed_at_end.append(REGISTER[kind](optimizer, hook))

        def once(*given):
            calls.append("once")
            if deed == "goes":
                removed_at_end[-1].remove()
            elif calls.count("once") == 1:
                register(lambda *given: calls.append("brought"))

        if other:
            register(lambda *given: calls.append("other"))
        register(once)
        with context(model) as recorder:
            train(model, optimizer)
        while removed_at_end:
            removed_at_end.pop().remove()
        return calls, [p.detach().clone() for p in model.parameters()], recorder

    bare, weights, _ = trained(nullcontext)
    calls, same, recorder = trained(lambda model: covshift.record(model, every=every))
    assert calls == bare
    assert all(torch.equal(a, b) for a, b in zip(weights, same, strict=True))
    assert recorder.step_count == 3
    assert recorder.recording["parameters"].step.values.tolist() == list(range(0, 3, every))
    assert recorder.warnings == []


@pytest.mark.parametrize("when", ["before", "inside"])
def test_what_hooks_on_all_optimizers_make_of_gradients_and_weights_is_in_the_record(shallow, removed_at_end, when):
    model = shallow()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    gradients, updates = [], []

    def clip(stepping, args, kwargs):
        nn.utils.clip_grad_norm_(model.parameters(), 0.01)
        gradients.append([p.grad.double().norm().item() for p in model.parameters()])
        clip.before = [p.detach().clone() for p in model.parameters()]

    def shrink(stepping, args, kwargs):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(0.5)
        changed = zip(model.parameters(), clip.before, strict=True)
        updates.append([(p.detach() - old).double().norm().item() for p, old in changed])

    def register():
        removed_at_end.append(register_optimizer_step_pre_hook(clip))
        removed_at_end.append(register_optimizer_step_post_hook(shrink))

    if when == "before":
        register()
    with covshift.record(model, every=1) as recorder:
        if when == "inside":
            register()
        train(model, optimizer)
        assert recorder.step_count == 3
    parameters = recorder.recording["parameters"].to_dataset()
    np.testing.assert_allclose(parameters["gradient_norm"], gradients, rtol=1e-6)
    np.testing.assert_allclose(parameters["update_norm"], updates, rtol=1e-6)
    assert list(tables._global_optimizer_pre_hooks.values()) == [clip]
    assert list(tables._global_optimizer_post_hooks.values()) == [shrink]


def test_two_recorders_see_each_step_once_through_hooks_that_come_between_them(shallow, removed_at_end):
    model, calls = shallow(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with ExitStack() as stack:
        recorders = []
        for count in range(2):
            recorders.append(stack.enter_context(covshift.record(model, every=1)))
            optimizer.register_step_pre_hook(lambda *given: calls.append("own"))
            for register in (register_optimizer_step_pre_hook, register_optimizer_step_post_hook):
                removed_at_end.append(register(lambda *given: calls.append("global")))
            train(model, optimizer, 2)
            assert len(calls) == (6, 18)[count]
    assert [recorder.step_count for recorder in recorders] == [4, 2]
    assert not any(isinstance(hook, Behind) for hook in tables._global_optimizer_pre_hooks.values())
    assert not any(isinstance(hook, Behind) for hook in optimizer._optimizer_step_pre_hooks.values())


def test_a_closure_that_a_hook_puts_in_is_known_for_one(shallow, removed_at_end):
    model, x = shallow(), torch.randn(8, 6)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        return loss

    removed_at_end.append(register_optimizer_step_pre_hook(lambda optimizer, args, kwargs: ((optimizer, closure), {})))
    with covshift.record(model, every=1) as recorder:
        optimizer.step()
    assert recorder.warnings == []
    norms = recorder.recording["parameters"]["gradient_norm"].sel(step=0)
    np.testing.assert_allclose(norms, [p.grad.double().norm().item() for p in model.parameters()], rtol=1e-6)


class Whole(torch.optim.SGD):
    """An optimizer whose copies take everything along, hooks too."""

    def __getstate__(self):
        return self.__dict__.copy()


def test_a_copy_made_during_a_step_has_the_users_hooks_alone(shallow):
    model, copies = shallow(), []
    optimizer = Whole(model.parameters(), lr=0.1)

    def keep(stepping, args, kwargs):
        copies.append(copy.deepcopy(stepping))

    optimizer.register_step_pre_hook(keep)
    with covshift.record(model, every=1):
        train(model, optimizer, 1)
    assert [list(one._optimizer_step_pre_hooks.values()) for one in copies] == [[keep]]


@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
def test_what_stands_twice_in_one_hooks_place_goes_in_any_order(order):
    calls = []

    def hook(*given):
        calls.append("hook")

    table = {0: print, 1: hook}
    both = [Behind(table, lambda *given, name=name: calls.append(name)) for name in "ab"]
    table[1](None, (), {})
    both[order[0]].remove()
    table[1](None, (), {})
    assert calls == ["hook", "a", "b", "hook", "ab"[order[1]]]
    both[order[1]].remove()
    assert table == {0: print, 1: hook}
