"""Steps in which an exception ended a backward pass are named, others are not."""

import threading

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

NAMED = ("an exception ended a backward pass of step 1 in its midst",)


class Runs(torch.autograd.Function):
    """Passes values and gradients on, and calls ``Runs.then`` in between."""

    then = None

    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        if Runs.then is not None:
            then, Runs.then = Runs.then, None
            then()
        return gradient


class Net(nn.Module):
    def __init__(self, *, reentrant=None):
        super().__init__()
        self.a, self.act, self.head, self.reentrant = nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1), reentrant

    def inner(self, x):
        return Runs.apply(self.act(self.a(x)))

    def forward(self, x):
        if self.reentrant is None:
            return self.head(self.inner(x))
        return self.head(checkpoint(self.inner, x.requires_grad_(), use_reentrant=self.reentrant))


@torch.enable_grad()
def another_backward():
    torch.ones(1, requires_grad=True).sum().backward()


def out_of_memory():
    raise torch.OutOfMemoryError("out of memory")


def descend(model, x):
    model(x).square().mean().backward()


@pytest.fixture(autouse=True)
def _nothing_else():
    yield
    Runs.then = None


def test_a_batch_tried_again_in_halves_after_its_backward_pass_failed_is_named_with_its_step(record):
    model, x = Net(), torch.randn(6, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with record(model, warned=NAMED) as recorder:
        for step in range(3):
            if step == 1:
                Runs.then = out_of_memory
                with pytest.raises(torch.OutOfMemoryError):
                    descend(model, x)
                optimizer.zero_grad()
            for half in x.split(3):
                descend(model, half)
            optimizer.step()
    assert len(recorder.warnings) == 1


@pytest.mark.parametrize("reentrant", [None, True, False])
def test_backward_passes_that_end_are_not_named_whatever_runs_inside_of_them(record, reentrant):
    model = Net(reentrant=reentrant)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with record(model):
        for _ in range(3):
            Runs.then = another_backward
            optimizer.zero_grad()
            descend(model, torch.randn(6, 4))
            optimizer.step()


def test_a_backward_pass_that_still_runs_in_another_thread_is_not_named(record):
    model, reached, go_on = Net(), threading.Event(), threading.Event()

    def wait():
        reached.set()
        assert go_on.wait(60)

    Runs.then = wait
    with record(model) as recorder:
        other = threading.Thread(target=descend, args=(model, torch.randn(6, 4)))
        other.start()
        assert reached.wait(60)
        recorder.step()
        go_on.set()
        other.join()
