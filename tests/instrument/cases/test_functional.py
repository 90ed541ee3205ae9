"""torch.func, and the user's own function modes."""

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from covshift.schema import Status

TRANSFORMED = "ran under torch.func"


# jvp compiles its decompositions with torch.jit when it is first used.
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
def test_case_46_transforms_are_passed_over_with_one_warning_and_keep_their_numbers(build, train, record, cell):
    model, x = build("perceptron").eval(), torch.randn(16, 6)
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def loss(parameters, x):
        return torch.func.functional_call(model, parameters, (x,)).square().mean()

    def transforms():
        gradients = torch.func.grad(loss)(parameters, x)
        by_example = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, x)
        slopes = torch.func.jvp(model, (x,), (torch.ones_like(x),))
        return [*gradients.values(), *by_example.values(), torch.func.vmap(model)(x), *slopes]

    expected = transforms()
    with record(model, warned=[TRANSFORMED]) as recorder:
        found = transforms()
        train(model)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert len(recorder.warnings) == 1
    assert recorder.recording["layers"].step.values.tolist() == [0]
    for signal in ("activation", "activation_grad"):
        assert cell(recorder.recording, "example_count", layer="0", signal=signal) == 16


def test_a_call_with_other_parameters_is_a_call_like_any_other(record, assert_row):
    model, x = nn.Linear(6, 3), torch.randn(16, 6)
    parameters = {name: (2 * p).detach().requires_grad_() for name, p in model.named_parameters()}
    with record(model) as recorder:
        output = torch.func.functional_call(model, parameters, (x,))
        output.sum().backward()
        recorder.step()
    assert_row(recorder.recording, output, layer="(root)", signal="activation")
    assert_row(recorder.recording, torch.ones(16, 3), layer="(root)", signal="activation_grad")


class Listing(TorchFunctionMode):
    """A user's own function mode, which lists what it sees."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.seen.append(getattr(function, "__name__", str(function)))
        return function(*args, **(kwargs or {}))


def listed(model, x, step):
    with Listing() as listing:
        loss = F.cross_entropy(model(x), torch.zeros(len(x), dtype=torch.long))
        loss.backward()
    step()
    return listing.seen


def test_a_users_function_mode_sees_its_own_model_and_nothing_of_the_recorder(build, batch, record, status):
    # In-place, flattened and channels-last tensors are the ones the recorder has to ask more about.
    torch.manual_seed(3)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Flatten(), nn.ReLU(inplace=True), nn.Linear(64, 3))
    x = torch.randn(16, 1, 6, 6).to(memory_format=torch.channels_last)
    expected = listed(model, x, lambda: None)
    with record(model) as recorder:
        found = listed(model, x, recorder.step)
    assert found == expected
    assert status(recorder.recording, "0") == Status.OK


class Logging(TorchDispatchMode):
    """A user's own dispatch mode, which lists the operations it sees."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.seen.append(str(function))
        return function(*args, **(kwargs or {}))


def test_a_users_dispatch_mode_sees_its_own_model_and_nothing_of_the_recorder(record, assert_row):
    torch.manual_seed(3)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU6(), nn.Flatten(), nn.Hardtanh(inplace=True), nn.Linear(64, 3))
    x, seen = torch.randn(16, 1, 6, 6), []
    for recorded in (False, True):
        model.zero_grad()
        with record(model) if recorded else nullcontext() as recorder:
            with Logging() as log:
                model(x).sum().backward()
            if recorder is not None:
                recorder.step()
        seen.append(log.seen)
    assert seen[0] == seen[1]
    assert_row(recorder.recording, model[:2](x), layer="1", signal="activation")


class Refusing(TorchFunctionMode):
    """A user's function mode that bears no other call than its own model's."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if getattr(function, "__name__", "") not in ("linear", "relu", "sum", "backward"):
            raise AssertionError(f"called {function}")
        return function(*args, **(kwargs or {}))


def test_rows_are_complete_under_a_function_mode_that_refuses_everything_else(record, assert_row):
    model, x = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3)), torch.randn(16, 6)
    with record(model) as recorder:
        with Refusing():
            model(x).sum().backward()
        recorder.step()
    assert_row(recorder.recording, model[:2](x), layer="1", signal="activation")
    assert_row(recorder.recording, torch.ones(16, 3), layer="2", signal="activation_grad")
