"""Bad batches and losses have an answer, and never a number."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from covshift.exceptions import InvalidArgumentError, ProbeUnsupported
from covshift.probe import gradient_ics, loss_landscape, zeros


def model():
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))


def by_zeros(net, loss_fn, batch):
    return zeros(net, loss_fn, batch)


def by_gradient_ics(net, loss_fn, batch):
    return gradient_ics(net, loss_fn, batch, torch.optim.SGD(net.parameters(), lr=0.1))


def by_landscape(net, loss_fn, batch):
    return loss_landscape(net, loss_fn, batch, step_sizes=[0.1])


probes = pytest.mark.parametrize("probe", [by_zeros, by_gradient_ics, by_landscape])
X, Y = torch.randn(5, 3), torch.randint(2, (5,))


@probes
@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ((torch.zeros(0, 3), torch.zeros(0, dtype=torch.long)), r"batch: a tensor of shape \(0, 3\) is empty"),
        ((torch.tensor([[0.0, float("nan"), 1.0]]), Y[:1]), r"batch: a tensor of shape \(1, 3\) has NaN"),
        ((X.to("meta"), Y), r"batch: a tensor is on meta, the model on cpu; move it there"),
        (((), ()), r"batch: holds no tensor"),
        ("text", r"batch: holds no tensor"),
    ],
)
def test_batches_that_cannot_be_used_are_named(probe, batch, message):
    with pytest.raises(InvalidArgumentError, match=message):
        probe(model(), F.cross_entropy, batch)


@probes
@pytest.mark.parametrize(
    ("loss_fn", "message"),
    [
        (
            lambda output, y: (output.argmax(1) == y).float().mean(),
            r"loss_fn: the loss does not depend on the model by",
        ),
        (lambda output, y: output.detach().sum(), r"loss_fn: the loss does not depend on the model by"),
        (lambda output, y: output, r"loss_fn: returned a tensor of shape \(5, 2\): expected a tensor of one element"),
        (lambda output, y: 1.0, r"loss_fn: returned 1.0: expected a tensor"),
        (lambda output, y: output.sum() / 0, r"loss_fn: the loss of this batch is -?(inf|nan)"),
    ],
)
def test_losses_that_cannot_be_used_are_named(probe, loss_fn, message):
    with pytest.raises(InvalidArgumentError, match=message):
        probe(model(), loss_fn, (X, Y))


@probes
def test_reentrant_checkpoints_are_refused_and_others_work(probe):
    class Checkpointed(nn.Module):
        def __init__(self, reentrant):
            super().__init__()
            self.first, self.rest, self.reentrant = nn.Linear(3, 3), model(), reentrant

        def forward(self, x):
            return checkpoint(self.rest, self.first(x), use_reentrant=self.reentrant)

    with pytest.raises(ProbeUnsupported, match=r"use_reentrant=False"):
        probe(Checkpointed(True), F.cross_entropy, (X, Y))
    net = Checkpointed(False)
    plain = nn.Sequential(net.first, *net.rest)
    ours, theirs = probe(net, F.cross_entropy, (X, Y)), probe(plain, F.cross_entropy, (X, Y))
    for name in ours.data_vars:
        np.testing.assert_array_equal(ours[name].values, theirs[name].values, err_msg=name)


@probes
@pytest.mark.parametrize("form", ["keywords", "several", "alone"])
def test_inputs_may_be_keywords_several_or_alone(probe, form):
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = model()

        def forward(self, x, bias=None):
            return self.net(x if bias is None else x + bias)

    batch = {"keywords": {"x": X, "bias": X}, "several": ((X, X),), "alone": 2 * X}[form]
    net = Sum()
    found = probe(net, lambda output: output.square().sum(), batch)
    expected = probe(net, lambda output: output.square().sum(), (2 * X,))
    assert found.equals(expected)


def test_a_packed_sequence_is_one_input():
    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.act, self.head = nn.GRU(3, 4), nn.Tanh(), nn.Linear(4, 2)

        def forward(self, packed):
            return self.head(self.act(self.rnn(packed)[1][-1]))

    packed = nn.utils.rnn.pack_sequence([torch.randn(4, 3), torch.randn(2, 3)])
    result = zeros(Last(), F.cross_entropy, (packed, torch.tensor([0, 1])))
    assert int(result["count"][0]) == 8
    assert zeros(Last(), lambda output: output.sum(), packed).status.item() == "split"
