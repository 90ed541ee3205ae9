"""Small models, a training loop, and the three oracles of the fifty cases.

The oracles: a twin that is not recorded (``unchanged``), tensors kept by the test's own hooks on a twin (``watch``),
and a recount of a tensor by numpy (``assert_row``). Everything else goes through covshift's public surface.
"""

import os
import shutil
import warnings
from collections import defaultdict
from contextlib import contextmanager, nullcontext

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import covshift
from covshift.exceptions import CovshiftWarning
from covshift.schema import Status


class Encoder(nn.Module):
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
        self.lstm = nn.LSTM(6, 7, batch_first=True)
        self.gru = nn.GRU(7, 4, batch_first=True, bidirectional=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        sequence, _ = self.lstm(x)
        return self.head(self.gru(sequence)[0][:, -1])


class TwoBranches(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.a, self.b = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x):
        return torch.tanh(self.a(x)) + torch.sigmoid(self.b(x))


class ThreeConsumers(nn.Module):
    """Three consumers of one tensor, some inside a module: a node more in the graph adds them in another order."""

    takes = (64,)

    def __init__(self):
        super().__init__()
        self.stem, self.branches, self.head = nn.Linear(64, 64), TwoBranches(64), nn.Linear(64, 3)

    def forward(self, x):
        h = self.stem(x)
        return self.head(self.branches(h) + torch.sin(h)) + self.head(h * 0.3)


def _perceptron():
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 3))
    model.takes = (6,)
    return model


def _convolutional():
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.Linear(36, 3),
    )
    model.takes = (1, 6, 6)
    return model


_MODELS = {
    "perceptron": _perceptron,
    "convolutional": _convolutional,
    "transformer": Encoder,
    "recurrent": Recurrent,
    "three consumers": ThreeConsumers,
}


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture
def no_code_compiled_before():
    """Keep what other tests have had compiled, and the test itself, from each other."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def build():
    """A model by name, always with the same weights."""

    def built(kind):
        torch.manual_seed(1)
        return _MODELS[kind]()

    return built


def _batch(model, n=16):
    return torch.randn(n, *getattr(model, "takes", (6,))), torch.randint(3, (n,))


@pytest.fixture
def batch():
    """Inputs and labels drawn for a model."""
    return _batch


def _train(model, steps=1, *, forward=None, optimizer=None):
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for _ in range(steps):
        x, y = _batch(model)
        loss = F.cross_entropy((forward or model)(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.fixture
def train():
    """Losses of a few optimizer steps; the random numbers drawn do not depend on recording."""
    return _train


@contextmanager
def _record(model, *, every=1, warned=(), may_warn=(), **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CovshiftWarning)
        with covshift.record(model, every=every, **options) as recorder:
            yield recorder
    for text in warned:
        assert any(text in message for message in recorder.warnings), (text, recorder.warnings)
    assert [m for m in recorder.warnings if not any(text in m for text in (*warned, *may_warn))] == []


@pytest.fixture
def record():
    """``covshift.record`` at every step; its warnings are those with a text of ``warned``, or of ``may_warn``."""
    return _record


@pytest.fixture
def unchanged():
    """Demand that ``run(model)`` gives the same bits with a recorder around it, and return that recorder."""

    def check(make, run, **options):
        outcomes = []
        for recorded in (False, True):
            torch.manual_seed(2)
            model = make()
            with _record(model, **options) if recorded else nullcontext() as recorder:
                result = run(model)
            outcomes.append((result, torch.get_rng_state(), model.state_dict(), recorder))
        (bare, bare_rng, bare_state, _), (result, rng, state, recorder) = outcomes
        torch.testing.assert_close(result, bare, rtol=0, atol=0, equal_nan=True)
        assert torch.equal(rng, bare_rng)
        assert state.keys() == bare_state.keys()
        for name, value in bare_state.items():
            assert torch.equal(state[name], value), name
        return recorder

    return check


class _Call:
    """What one call of a module gave, and the gradient that came back to it."""

    def __init__(self, output):
        self.value, self.grad = output.detach().clone(), None
        if output.requires_grad:
            output.register_hook(self._keep)

    def _keep(self, gradient):
        self.grad = gradient.clone()


def _watch(model):
    calls = defaultdict(list)

    def listen(name):
        def hook(module, args, output):
            calls[name].append(_Call(output))

        return hook

    for name, module in model.named_modules():
        if next(module.children(), None) is None:
            module.register_forward_hook(listen(name))
    return calls


@pytest.fixture
def watch():
    """Calls of every module without children of a model that is not recorded, by name, in order."""
    return _watch


@pytest.fixture
def beside():
    """Train ``model`` recorded, and ``twin`` watched on the same batches: the twin's calls, and the recording."""

    def trained(model, twin, steps=1, **options):
        calls = _watch(twin)
        torch.manual_seed(4)
        _train(twin, steps)
        torch.manual_seed(4)
        with _record(model, **options) as recorder:
            _train(model, steps)
        return calls, recorder.recording

    return trained


def _cell(recording, variable, *, layer, signal, step=0, group="layers"):
    return recording[group][variable].sel(layer=layer, signal=signal, step=step).item()


@pytest.fixture
def cell():
    """One number of a recording."""
    return _cell


@pytest.fixture
def status():
    """Why a row holds its numbers, or none."""

    def found(recording, layer, signal="activation_grad", *, step=0, group="layers"):
        return Status(_cell(recording, "status", layer=layer, signal=signal, step=step, group=group))

    return found


@pytest.fixture
def assert_row():
    """Demand that a row says of ``tensors`` what numpy says of them in float64."""

    def check(recording, *tensors, layer, signal, step=0, group="layers"):
        values = np.concatenate([tensor.detach().double().numpy().ravel() for tensor in tensors])
        finite = values[np.isfinite(values)]
        found = {
            name: _cell(recording, name, layer=layer, signal=signal, step=step, group=group)
            for name in ("count", "zero_count", "negative_count", "nan_count", "sum", "m2", "min", "max")
        }
        expected = {
            "count": values.size,
            "zero_count": (values == 0).sum(),
            "negative_count": (values < 0).sum(),
            "nan_count": np.isnan(values).sum(),
            "sum": pytest.approx(finite.sum(), rel=1e-9, abs=1e-9 * max(np.abs(finite).max(), 1e-30)),
            "m2": pytest.approx(((finite - finite.mean()) ** 2).sum(), rel=1e-9, abs=1e-30),
            "min": finite.min(),
            "max": finite.max(),
        }
        assert found == expected, (layer, signal)

    return check


@pytest.fixture
def layers_equal():
    """Demand that two recordings hold the same layers and numbers."""

    def check(first, second, *, ignore=()):
        first, second = (recording["layers"].to_dataset() for recording in (first, second))
        assert first.layer.values.tolist() == second.layer.values.tolist()
        for name, variable in first.data_vars.items():
            if name not in ignore:
                np.testing.assert_array_equal(variable, second[name], err_msg=name)

    return check


REQUIRE = "COVSHIFT_REQUIRE_COMPILER"
"""Set to 1 where a missing compiler is a failure, as in continuous integration; so is CI."""


@pytest.fixture
def compiler():
    """A C++ compiler, which torch.compile's default backend needs; without one tests are skipped, or fail in CI."""
    if any(map(shutil.which, ("c++", "g++", "clang++"))):
        return
    missing = "no C++ compiler, which torch.compile's default backend needs (Debian: apt-get install g++)"
    if os.environ.get(REQUIRE) == "1" or os.environ.get("CI"):
        pytest.fail(f"{REQUIRE}=1 or CI is set, but there is {missing}")
    pytest.skip(missing)
