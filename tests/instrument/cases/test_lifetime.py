"""Nothing is left behind, nothing is kept alive, and what comes too late is not recorded."""

import copy
import gc
import io
import sys
import weakref
from collections import OrderedDict
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules import module as module_internals
from torch.optim import optimizer as optimizer_internals
from torch.profiler import profile

import covshift
from covshift.schema import Status


def traces(model):
    """Everything that hooks and modes leave on a model, on its parameters and on torch itself."""
    modules = [
        (sorted(vars(module)), {name: len(value) for name, value in vars(module).items() if name.endswith("hooks")})
        for module in model.modules()
    ]
    full = [module._is_full_backward_hook for module in model.modules()]
    parameters = [(p._backward_hooks, p._post_accumulate_grad_hooks, sorted(vars(p))) for p in model.parameters()]
    process = [
        {name: len(value) for name, value in vars(module).items() if "global" in name and isinstance(value, dict)}
        for module in (module_internals, optimizer_internals)
    ]
    modes = torch._C._len_torch_function_stack(), torch._C._len_torch_dispatch_stack()
    return modules, full, parameters, process, modes


@pytest.mark.parametrize("kind", ["perceptron", "convolutional", "recurrent"])
def test_case_41_after_exit_model_and_torch_are_as_before(build, train, record, kind):
    model = build(kind)
    train(model)
    before = copy.deepcopy(traces(model))
    with record(model, may_warn=("is not the batch",)):
        train(model, 2)
    assert traces(model) == before


def test_an_exception_in_the_training_loop_leaves_nothing_behind_and_loses_no_record(build, train, record, tmp_path):
    model = build("perceptron")
    train(model)
    before = copy.deepcopy(traces(model))
    with pytest.raises(ZeroDivisionError), record(model, path=tmp_path / "run"):
        train(model, 2)
        raise ZeroDivisionError
    assert traces(model) == before
    assert covshift.open(tmp_path / "run.zarr")["layers"].step.values.tolist() == [0, 1]


@pytest.fixture
def _no_collector():
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("_no_collector")
def test_case_45_no_activation_outlives_its_backward(build, batch, record):
    model, alive = build("perceptron"), []
    for module in model.modules():
        module.register_forward_hook(lambda m, args, output: alive.append(weakref.ref(output)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with record(model, warned=("may return other values",)):
        for _ in range(3):
            x, y = batch(model)
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            assert [reference for reference in alive if reference() is not None] == []
            optimizer.step()
    assert len(alive) == 3 * 7


@pytest.mark.usefixtures("_no_collector")
def test_a_model_is_freed_with_its_recorder_closed_and_still_held(build, train, record):
    model = build("perceptron")
    with record(model) as recorder:
        train(model)
    reference = weakref.ref(model)
    del model
    gc.collect()
    assert reference() is None
    assert recorder.recording["layers"].sizes["step"] == 1


def peak_bytes(run):
    """Most bytes of CPU tensors that were alive at once, above the level at the start."""
    with profile(profile_memory=True) as profiled:
        run()
    level = peak = 0
    events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        level += event.nbytes()
        peak = max(peak, level)
    return peak


def test_case_45_the_peak_of_memory_is_that_of_the_bare_run(record):
    model = nn.Sequential(*(nn.Sequential(nn.Linear(32, 32), nn.ReLU()) for _ in range(8)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def step():
        model(torch.randn(4096, 32)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    bare = peak_bytes(step)
    with record(model) as recorder:
        step()
        recorded = peak_bytes(step)
    assert recorder.step_count == 2
    assert bare > 8 * 4096 * 32 * 4
    assert recorded <= 1.05 * bare


def late_backward(recorder_of):
    """Tensors read in a backward pass that comes after the step (or the recorder) closed, and the gradients.

    Calls are counted: what covshift computes is hidden from a dispatch mode.
    """
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    with recorder_of(model) as close:
        loss = F.cross_entropy(model(torch.randn(16, 6)), torch.zeros(16, dtype=torch.long))
        close()
    return tensors_read(loss.backward), [p.grad for p in model.parameters()]


def test_case_49_a_backward_after_the_with_block_runs_as_if_there_had_been_no_recorder(record):
    @contextmanager
    def bare(model):
        yield lambda: None

    recorders = []

    @contextmanager
    def recorded(model):
        with record(model) as recorder:
            recorders.append(recorder)
            yield lambda: None

    (_, gradients), (found, same) = late_backward(bare), late_backward(recorded)
    assert found == 0
    assert all(torch.equal(a, b) for a, b in zip(same, gradients, strict=True))
    assert recorders[0].step_count == 0
    assert recorders[0].recording["layers"].sizes["step"] == 0


def tensors_read(run):
    """Calls made while ``run()`` runs into ``covshift.summary``, where numbers are read from tensors."""
    package, calls = str(Path(covshift.__file__).parent / "summary"), []

    def note(frame, event, argument):
        if event == "call" and frame.f_code.co_filename.startswith(package):
            calls.append(frame.f_code.co_name)

    sys.setprofile(note)
    try:
        run()
    finally:
        sys.setprofile(None)
    return len(calls)


def test_gradients_that_come_too_late_are_not_even_read(record):
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    with record(model) as recorder:
        in_time, after_step, after_exit = (model(torch.randn(16, 6)).sum() for _ in range(3))
        read = tensors_read(in_time.backward)
        recorder.step()
        late = tensors_read(after_step.backward)
    gone = tensors_read(after_exit.backward)
    assert read > 0
    assert late == gone == 0


def test_a_gradient_that_comes_after_its_step_is_in_no_row(record, assert_row, status):
    model, x = nn.Linear(6, 3), torch.randn(16, 6)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with record(model) as recorder:
        late = model(x).sum()
        optimizer.step()
        second = model(x)
        (5 * late).backward()
        (2 * second).sum().backward()
        optimizer.step()
    assert status(recorder.recording, "(root)", step=0) == Status.NO_GRADIENT_ARRIVED
    assert_row(recorder.recording, torch.full((16, 3), 2.0), layer="(root)", signal="activation_grad", step=1)


def test_case_25_gradient_penalty_steps_keep_no_tensor(record):
    critic = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))
    optimizer = torch.optim.SGD(critic.parameters(), lr=0.01)

    def step():
        x = torch.randn(8, 6, requires_grad=True)
        (slope,) = torch.autograd.grad(critic(x).sum(), x, create_graph=True)
        (slope.norm(dim=1) - 1).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    def alive():
        gc.collect()
        return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())

    with record(critic, warned=("rows hold the gradients of the first",)):
        step()
        after_one = alive()
        for _ in range(5):
            step()
        assert alive() == after_one


class Scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(16, 6))

    def forward(self):
        return self.weight


class Scaled(nn.Module):
    """Two of its modules return leaf tensors: a parameter, twice, and what it was given itself."""

    def __init__(self):
        super().__init__()
        self.given, self.scale, self.linear = nn.Identity(), Scale(), nn.Linear(6, 3)

    def forward(self, x):
        return self.linear(self.given(x) * self.scale() * self.scale())


def test_leaf_tensors_are_as_before_when_the_step_is_over(record):
    model, x = Scaled(), torch.randn(16, 6, requires_grad=True)
    with record(model) as recorder:
        for _ in range(3):
            model(x).sum().backward()
            recorder.step()
            assert model.scale.weight._backward_hooks is None
            assert x._backward_hooks is None
    for layer in ("given", "scale", "scale#1"):
        counts = recorder.recording["layers"]["count"].sel(layer=layer, signal="activation_grad")
        assert counts.values.tolist() == [96, 96, 96]


@pytest.mark.parametrize("first_closed", [0, 1], ids=["first in first out", "last in first out"])
def test_leaf_tensors_are_as_before_when_two_recorders_are_closed(record, first_closed):
    model, x = Scaled(), torch.randn(16, 6, requires_grad=True)
    stacks = [ExitStack(), ExitStack()]
    for stack in stacks:
        stack.enter_context(record(model))
    model(x).sum().backward()
    stacks[first_closed].close()
    stacks[1 - first_closed].close()
    assert model.scale.weight._backward_hooks is None
    assert x._backward_hooks is None


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_hooks_of_the_users_own_on_leaf_tensors_stay(record, when):
    model, seen = Scaled(), []
    weight = model.scale.weight
    handle = weight.register_hook(lambda gradient: seen.append(1)) if when == "before" else None
    with record(model) as recorder:
        model(torch.randn(16, 6)).sum().backward()
        handle = handle or weight.register_hook(lambda gradient: seen.append(1))
        recorder.step()
    assert list(weight._backward_hooks) == [handle.id]
    seen.clear()
    model(torch.randn(16, 6)).sum().backward()
    assert seen == [1]


def test_an_empty_table_of_hooks_that_the_user_left_stays(record):
    model = Scaled()
    model.scale.weight.register_hook(lambda gradient: None).remove()
    with record(model) as recorder:
        model(torch.randn(16, 6)).sum().backward()
        recorder.step()
    assert model.scale.weight._backward_hooks == OrderedDict()


@pytest.mark.parametrize("takes", [(16, 6), (4, 4, 6)], ids=["a tensor", "a view"])
def test_what_a_recorded_model_returns_is_saved_without_a_warning(record, takes):
    model = nn.Linear(6, 3)
    with record(model) as recorder:
        output = model(torch.randn(takes))
        assert len(output._backward_hooks) == 1
        buffer = io.BytesIO()
        torch.save(output, buffer)
        output.sum().backward()
        recorder.step()
    buffer.seek(0)
    assert torch.equal(torch.load(buffer), output)
