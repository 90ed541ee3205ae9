"""Controls are what they are named after, by the raw tensors of their training: healthy, and odd to look at."""

import math

import pytest
import torch

from covshift.selfcheck.controls import CONTROLS
from covshift.selfcheck.nets import STEPS
from covshift.selfcheck.trials import recorded

NAMED = {control.name: control for control in CONTROLS}


class Run:
    """A control's training: losses, and the outputs of its nonlinearities in the last forty steps."""

    def __init__(self, name, held_back, *, steps=None):
        control = NAMED[name]
        case = (control.held_back if held_back else control.build)(3)
        self.case, self.losses, self.outputs = case, [], {name: [] for name in case.activations}
        for layer in case.activations:
            case.module(layer).register_forward_hook(
                lambda m, a, h, layer=layer: self.outputs[layer].append(h.detach())
            )
        criterion = case.criterion
        case.criterion = lambda logits, y: self.keep(criterion(logits, y))
        recorded(case, steps=steps or control.steps, update=control.update)

    def keep(self, loss):
        self.losses.append(float(loss.detach()))
        return loss


def keeper(gradients):
    def keep(module, args, output):
        output.register_hook(gradients.append)

    return keep


both = pytest.mark.parametrize("held_back", [False, True], ids=["development", "held-back"])


@both
def test_nine_of_ten_activations_of_the_sparse_net_are_zero_and_no_unit_is_dead(held_back):
    run = Run("sparse ReLU", held_back, steps=60)
    for outputs in run.outputs.values():
        seen = torch.cat(outputs[-40:])
        assert 0.8 < float((seen == 0).float().mean()) < 0.95
        assert (seen > 0).any(dim=0).all()


@pytest.mark.slow
@both
def test_the_loss_of_the_converged_net_is_nearly_zero(held_back):
    assert max(Run("converged", held_back).losses[-20:]) < 1e-2


@pytest.mark.slow
@both
def test_healthy_nets_learn(held_back):
    run = Run("He ReLU MLP", held_back)
    assert sum(run.losses[-20:]) < 0.8 * sum(run.losses[:20])


@both
def test_frozen_weights_do_not_move(held_back):
    run = Run("frozen weights", held_back, steps=3)
    fresh = NAMED["frozen weights"].held_back(3) if held_back else NAMED["frozen weights"].build(3)
    for mine, theirs in zip(run.case.model.parameters(), fresh.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def rates(name, held_back):
    case = NAMED[name].held_back(3) if held_back else NAMED[name].build(3)
    found = []
    for step in range(STEPS):
        for hook in case.before:
            hook(step)
        found.append(case.learning_rate)
    return found


@both
def test_learning_rates_follow_their_schedules(held_back):
    decayed, warmed = rates("cosine decay", held_back), rates("warm-up", held_back)
    assert decayed[0] == pytest.approx(1e-3)
    assert decayed[-1] == pytest.approx(0, abs=1e-9)
    assert warmed[:3] == pytest.approx([1e-3 / 30, 2e-3 / 30, 3e-3 / 30])
    assert warmed[-1] == 1e-3


@both
def test_a_loss_scale_search_overflows_three_times_and_goes_on(held_back):
    run = Run("loss-scale search", held_back, steps=6)
    assert all(math.isfinite(loss) for loss in run.losses)
    assert all(torch.isfinite(parameter).all() for parameter in run.case.model.parameters())


@both
def test_most_gradients_behind_pooling_are_masked(held_back):
    control = NAMED["max pooling"]
    case = (control.held_back if held_back else control.build)(3)
    gradients = []
    case.module("act0").register_forward_hook(keeper(gradients))
    case.loss(*case.batch(0)).backward()
    assert float((gradients[0] == 0).float().mean()) > 0.7


def test_the_spare_head_gets_no_gradient():
    case = NAMED["unused head"].build(3)
    case.loss(*case.batch(0)).backward()
    assert all(parameter.grad is None for parameter in case.model.spare.parameters())


def test_most_tokens_are_rare():
    case = NAMED["rare tokens"].build(3)
    embedding = case.model.embed.embedding
    for step in range(20):
        case.loss(*case.batch(step)).backward()
    untouched = (embedding.weight.grad == 0).all(dim=1)
    assert 0.5 < float(untouched.float().mean()) < 1
