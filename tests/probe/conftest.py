"""Models to probe, and a photograph of everything a probe must put back."""

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn


class Encoder(nn.Module):
    """Two stock transformer layers; attention uses its output weights without calling their module."""

    takes = (5, 8)

    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.encoder(x).mean(1))


class Recurrent(nn.Module):
    takes = (5, 6)

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(6, 7, num_layers=2, batch_first=True, dropout=0.2)
        self.head = nn.Linear(7, 3)

    def forward(self, x):
        return self.head(self.lstm(x)[0][:, -1])


def _convolutional():
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.Tanh(),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.Linear(36, 3),
    )
    model.takes = (1, 6, 6)
    return model


_MODELS = {"convolutional": _convolutional, "transformer": Encoder, "recurrent": Recurrent}


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture
def build():
    """A model by name, always with the same weights."""

    def built(kind="convolutional"):
        torch.manual_seed(1)
        return _MODELS[kind]()

    return built


def _batch(model, n=16):
    return torch.randn(n, *model.takes), torch.randint(3, (n,))


@pytest.fixture
def batch():
    """Inputs and labels drawn for a model."""
    return _batch


def _train(model, optimizer=None, steps=1):
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for _ in range(steps):
        x, y = _batch(model)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.fixture
def train():
    """Losses of a few steps, the last gradients left in place."""
    return _train


class _Photograph:
    """All state around a model that a probe has to leave alone: the objects, and copies of their values."""

    def __init__(self, model):
        self.objects = [
            *((p, p.grad) for p in model.parameters()),
            *((b, b._version) for b in model.buffers()),
        ]
        self.values = {name: value.clone() for name, value in model.state_dict().items()}
        self.gradients = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
        self.flags = [module.training for module in model.modules()]
        self.hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
        of_numpy = np.random.get_state()[1].tolist()  # noqa: NPY002 - the global state is what models draw from
        self.random = (torch.get_rng_state(), of_numpy, random.getstate())
        self.modes = (
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
            torch.is_autocast_enabled("cpu"),
            torch.get_autocast_dtype("cpu"),
            torch.is_autocast_cache_enabled(),
            torch.backends.mha.get_fastpath_enabled(),
        )


@pytest.fixture
def photograph():
    """What a model and its surroundings look like now."""
    return _Photograph


@pytest.fixture
def assert_same():
    """Demand that two photographs show the same objects with the same bits."""

    def check(before, after):
        assert len(before.objects) == len(after.objects)
        for (own, held), (other, now) in zip(before.objects, after.objects, strict=True):
            assert own is other
            assert held is now or held == now
        assert before.values.keys() == after.values.keys()
        assert all(torch.equal(value, after.values[name]) for name, value in before.values.items())
        for gradient, other in zip(before.gradients, after.gradients, strict=True):
            assert (gradient is None and other is None) or torch.equal(gradient, other)
        assert before.flags == after.flags
        assert before.hooks == after.hooks
        assert torch.equal(before.random[0], after.random[0])
        assert before.random[1:] == after.random[1:]
        assert before.modes == after.modes

    return check
