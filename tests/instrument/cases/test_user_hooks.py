"""Forward hooks of the user's own: rows hold what ``forward`` was given and returned, and a warning says so."""

import pytest
import torch
from torch import nn

NAMED = ("forward hooks on 0 may return other values",)


def halved(module, args, output):
    return output / 2


def doubled(module, args):
    return (args[0] * 2,)


def looked_at(module, args, output):
    module.last = output.mean().item()


def parts():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3))


@pytest.mark.parametrize("when", ["before", "within"])
def test_a_hook_that_replaces_an_output_leaves_the_row_of_what_forward_returned(record, assert_row, when):
    model, x = parts(), torch.randn(16, 6)
    if when == "before":
        model[0].register_forward_hook(halved)
    with record(model, warned=NAMED) as recorder:
        if when == "within":
            model[0].register_forward_hook(halved)
        model(x).sum().backward()
        recorder.step()
    produced = (x @ model[0].weight.T + model[0].bias).detach().requires_grad_()
    read = produced / 2
    read.retain_grad()
    model[2](torch.tanh(read)).sum().backward()
    assert_row(recorder.recording, produced, layer="0", signal="activation")
    assert_row(recorder.recording, produced.grad, layer="0", signal="activation_grad")
    # The nonlinearity reads what the hook returned, which no layer has produced.
    assert_row(recorder.recording, read, layer="1", signal="preactivation")
    assert_row(recorder.recording, read.grad, layer="1", signal="preactivation_grad")
    assert len(recorder.warnings) == 1


def test_a_hook_that_changes_an_output_in_place_leaves_the_row_of_what_forward_returned(record, assert_row):
    model, x = parts(), torch.randn(16, 6)
    model[0].register_forward_hook(lambda module, args, output: output.mul_(0.5))
    with record(model, warned=NAMED) as recorder:
        model(x).sum().backward()
        recorder.step()
    produced = x @ model[0].weight.T + model[0].bias
    assert_row(recorder.recording, produced, layer="0", signal="activation")
    assert_row(recorder.recording, produced / 2, layer="1", signal="preactivation")


def test_a_pre_hook_that_replaces_an_input_is_named(record, assert_row):
    model, x = parts(), torch.randn(16, 6)
    model[1].register_forward_pre_hook(doubled)
    with record(model, warned=("forward hooks on 1 may return other values",)) as recorder:
        model(x).sum().backward()
        recorder.step()
    z = model[0](x)
    assert_row(recorder.recording, z, layer="0", signal="activation")
    assert_row(recorder.recording, torch.tanh(2 * z), layer="1", signal="activation")


def test_hooks_that_only_look_and_torchs_own_are_not_named(record, train):
    model = parts()
    model.takes = (6,)
    model[0].register_forward_hook(looked_at)
    nn.utils.spectral_norm(model[2])
    with record(model) as recorder:
        train(model, 2)
    assert recorder.warnings == []


def test_bits_of_training_with_hooks_of_the_users_own_stay(unchanged, train):
    def hooked():
        model = parts()
        model.takes = (6,)
        model[0].register_forward_hook(halved)
        model[1].register_forward_pre_hook(doubled)
        return model

    unchanged(hooked, lambda model: train(model, 5), warned=("forward hooks on 0, 1 may return",))
