"""Small perceptrons, a training loop, and one number of a recording."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import covshift


@pytest.fixture
def seeded():
    """The same random numbers in every run of a test."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def perceptron():
    """A new perceptron of two hidden layers, with weights as they come."""
    return lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))


@pytest.fixture(scope="session")
def shallow():
    """A new perceptron of one hidden layer, always with the same weights."""

    def built():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))

    return built


def _batch(model, n=16):
    flat = next(model.parameters()).ndim == 2
    return torch.randn((n, 6) if flat else (n, 1, 6, 6)), torch.randint(3, (n,))


@pytest.fixture(scope="session")
def batch():
    """Inputs and labels drawn for a model."""
    return _batch


def _train(model, steps, *, recorder=None):
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(steps):
        x, y = _batch(model)
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if recorder is not None:
            recorder.log(loss=loss)
    return losses


@pytest.fixture(scope="session")
def train():
    """Losses of a short training run; the random numbers drawn do not depend on recording."""
    return _train


@pytest.fixture(scope="session")
def record_training():
    """The recording of a short training run."""

    def recorded(model, steps=3, *, every=1, **options):
        with covshift.record(model, every=every, **options) as recorder:
            _train(model, steps, recorder=recorder)
        return recorder.recording

    return recorded


@pytest.fixture(scope="session")
def cell():
    """One number of a recording."""

    def found(recording, variable, *, layer, signal, step=0, group="layers"):
        return recording[group][variable].sel(layer=layer, signal=signal, step=step).item()

    return found
