"""A module that returns its own parameter, a prompt say: its gradient counts once for each backward pass.

Oracle: the parameter's own ``grad``.
"""

import pytest
import torch
from torch import nn

SIGNAL = "activation_grad"


class Prompt(nn.Module):
    def __init__(self):
        super().__init__()
        self.values = nn.Parameter(torch.ones(6, 4))

    def forward(self):
        return self.values


class Prompted(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.prompt, self.linear = Prompt(), nn.Linear(4, 1)

    def forward(self, x):
        y = self.linear(x + self.prompt())
        if x.isnan().any():
            raise RuntimeError
        return y.square().sum()


def together(model):
    sum(model(torch.randn(6, 4)) for _ in range(3)).backward()


def in_turn(model):
    for _ in range(3):
        model(torch.randn(6, 4)).backward()


def forward_first(model):
    for loss in [model(torch.randn(6, 4)) for _ in range(3)]:
        loss.backward()


def after_a_failure(model):
    with pytest.raises(RuntimeError):
        model(torch.full((6, 4), torch.nan))
    model(torch.randn(6, 4)).backward()


@pytest.mark.parametrize(("run", "gradients"), [(together, 1), (in_turn, 3), (forward_first, 3), (after_a_failure, 1)])
def test_gradients_of_a_returned_parameter_add_up_to_its_own(record, cell, run, gradients):
    model = Prompted()
    with record(model) as recorder:
        run(model)
        recorder.step()
    values = model.prompt.values
    found = {name: cell(recorder.recording, name, layer="prompt", signal=SIGNAL) for name in ("count", "sum")}
    assert found == {"count": gradients * 24, "sum": pytest.approx(values.grad.double().sum().item(), rel=1e-5)}
    assert values._backward_hooks is None


def test_a_further_backward_pass_through_a_returned_parameter_is_named(record):
    model = Prompted()
    with record(model, warned=("a further backward pass reached the same forward pass",)) as recorder:
        loss = model(torch.randn(6, 4))
        loss.backward(retain_graph=True)
        loss.backward()
        recorder.step()
