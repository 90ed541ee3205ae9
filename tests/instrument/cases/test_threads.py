"""Several recorders, and several threads, at once."""

import threading
from contextlib import ExitStack

import pytest
import torch
from torch import nn

from covshift.instrument.schedule import Schedule


@pytest.mark.parametrize("first_closed", [0, 1], ids=["first in first out", "last in first out"])
def test_case_44_two_recorders_of_one_model_record_the_same_numbers(build, train, record, layers_equal, first_closed):
    model = build("convolutional")
    stacks = [ExitStack(), ExitStack()]
    recorders = [stack.enter_context(record(model)) for stack in stacks]
    train(model, 2)
    stacks[first_closed].close()
    train(model, 1)
    stacks[1 - first_closed].close()
    assert [recorders[first_closed].step_count, recorders[1 - first_closed].step_count] == [2, 3]
    first, second = (recorder.recording for recorder in recorders)
    both = first["layers"].isel(step=slice(2)), second["layers"].isel(step=slice(2))
    layers_equal({"layers": both[0]}, {"layers": both[1]})


def test_recorders_of_a_model_and_of_a_part_of_it_each_see_their_own(build, train, record, assert_row, cell):
    model = build("perceptron")
    with record(model) as whole, record(model[0]) as part:
        train(model)
    assert part.recording["layers"].layer.values.tolist() == ["(input)", "(root)"]
    for signal in ("activation", "activation_grad"):
        for name in ("zero_count", "sum", "m2"):
            theirs = cell(whole.recording, name, layer="0", signal=signal)
            assert cell(part.recording, name, layer="(root)", signal=signal) == theirs


@pytest.mark.filterwarnings("ignore:nothing was recorded:covshift.exceptions.CovshiftWarning")
def test_a_recorder_that_ends_during_an_optimizer_step_in_another_thread_does_not_break_that_step(build, train, record):
    others, unseen = [ExitStack(), ExitStack()], ("nothing was recorded: optimizers made steps",)

    def leave_and_enter(step):
        # Asked for inside the optimizer's step, between the hooks that torch calls.
        if step == 1:
            thread = threading.Thread(
                target=lambda: (
                    others[0].close(),
                    others[1].enter_context(record(nn.Identity(), may_warn=unseen)),
                )
            )
            thread.start()
            thread.join()
        return True

    model = build("perceptron")
    with record(model, every=Schedule(leave_and_enter, "every step")) as recorder:
        others[0].enter_context(record(build("perceptron"), may_warn=unseen))
        train(model, 3)
    others[1].close()
    assert recorder.recording["layers"].step.values.tolist() == [0, 1, 2]


class Meeting(nn.Module):
    """Waits, in the midst of its forward pass, for the other threads to be in the midst of theirs."""

    def __init__(self, barrier, linear):
        super().__init__()
        self.barrier, self.linear = barrier, linear

    def forward(self, x):
        self.barrier.wait(timeout=60)
        y = self.linear(x)
        self.barrier.wait(timeout=60)
        return y


class Forked(nn.Module):
    """Takes another branch, of another depth, in each thread; they share what is inside."""

    def __init__(self, barrier):
        super().__init__()
        torch.manual_seed(3)
        linear, act = nn.Linear(6, 6), nn.Tanh()
        self.left = nn.Sequential(Meeting(barrier, linear), act)
        self.right = nn.Sequential(nn.Sequential(Meeting(barrier, linear)), act, nn.Linear(6, 3))

    def forward(self, x, branch):
        return getattr(self, branch)(x)


def in_threads(run, branches):
    failures = []

    def guarded(branch):
        try:
            run(branch)
        except BaseException as error:  # noqa: BLE001 - handed to the test's own thread below
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(branch,)) for branch in branches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_case_50_forward_passes_of_two_threads_are_not_mixed(record, assert_row):
    model = Forked(threading.Barrier(2))
    inputs = {"left": torch.randn(16, 6), "right": torch.randn(16, 6)}
    with record(model) as recorder:
        in_threads(lambda branch: model(inputs[branch], branch).sum().backward(), inputs)
        recorder.step()
    layers = recorder.recording["layers"].layer.values.tolist()
    inner = {"left.0.linear", "left.1", "right.0.0.linear", "right.1", "right.2"}
    assert set(layers) == {"(input)", *inner}
    left, right = model.left, model.right
    expected = {
        "left.0.linear": left[0].linear(inputs["left"]),
        "left.1": torch.tanh(left[0].linear(inputs["left"])),
        "right.0.0.linear": right[0][0].linear(inputs["right"]),
        "right.1": torch.tanh(right[0][0].linear(inputs["right"])),
    }
    for layer, tensor in expected.items():
        assert_row(recorder.recording, tensor, layer=layer, signal="activation")
    assert_row(recorder.recording, torch.ones(16, 6), layer="left.1", signal="activation_grad")
    assert_row(recorder.recording, torch.ones(16, 3), layer="right.2", signal="activation_grad")
    assert_row(recorder.recording, *inputs.values(), layer="(input)", signal="input")


def test_forward_passes_of_many_threads_lose_no_counts(record):
    model, x = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), torch.randn(4, 6)

    def run(branch):
        for _ in range(20):
            model(x).sum().backward()

    with record(model) as recorder:
        in_threads(run, range(3))
        recorder.step()
    layers = recorder.recording["layers"].to_dataset().isel(step=0).sel(layer=["0", "1", "2"])
    assert (layers["example_count"].sel(signal=["activation", "activation_grad"]) == 3 * 20 * 4).all()
