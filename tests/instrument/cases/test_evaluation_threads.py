"""An evaluation belongs to the thread that makes it, and to those that help it; training beside it goes on."""

import threading
from contextlib import contextmanager

import pytest
import torch
from torch import nn

EVALUATED = {"group": "evaluation/layers", "signal": "activation"}


@contextmanager
def elsewhere(run):
    """Run a context in another thread: it is entered before the block, and left after it."""
    begun, over, failures = threading.Event(), threading.Event(), []

    def guarded():
        try:
            with run():
                begun.set()
                assert over.wait(timeout=60)
        except BaseException as error:  # noqa: BLE001 - handed to the test's own thread below
            failures.append(error)
        finally:
            begun.set()

    thread = threading.Thread(target=guarded)
    thread.start()
    assert begun.wait(timeout=60)
    try:
        yield
    finally:
        over.set()
        thread.join()
    assert failures == []


def in_thread(run):
    @contextmanager
    def at_once():
        run()
        yield

    with elsewhere(at_once):
        pass


def model():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def step(network, recorder, examples=16):
    network(torch.randn(examples, 6)).sum().backward()
    recorder.step()


def evaluates(recorder, network, examples=5):
    @contextmanager
    def run():
        with torch.no_grad(), recorder.evaluation():
            network(torch.randn(examples, 6))
            yield

    return run


def demand(recorder, cell, *, training, evaluation, at):
    recording = recorder.recording
    assert recording["layers"].step.values.tolist() == list(range(training))
    for layer in ("0", "1", "2"):
        counts = recording["layers"].to_dataset()["example_count"].sel(layer=layer, signal="activation")
        assert counts.values.tolist() == [16] * training
        assert cell(recording, "example_count", layer=layer, step=at, **EVALUATED) == evaluation
    assert recorder.warnings == []


@pytest.mark.parametrize("before", [0, 2], ids=["from the first step on", "later"])
@pytest.mark.parametrize("every", [1, 2])
def test_a_thread_that_evaluates_takes_no_pass_of_the_one_that_trains(record, cell, before, every):
    network = model()
    with record(network, every=every) as recorder:
        for _ in range(before):
            step(network, recorder)
        with elsewhere(evaluates(recorder, network)):
            step(network, recorder)
            step(network, recorder)
        step(network, recorder)
    assert recorder.step_count == before + 3
    if every == 1:
        demand(recorder, cell, training=before + 3, evaluation=5, at=before)
    else:
        assert recorder.recording["layers"].step.values.tolist() == list(range(0, before + 3, 2))
        assert cell(recorder.recording, "example_count", layer="0", step=before, **EVALUATED) == 5


def test_the_thread_that_entered_evaluates_beside_one_that_trains(record, cell):
    network = model()
    with record(network) as recorder:

        @contextmanager
        def trains():
            step(network, recorder)
            yield
            step(network, recorder)

        with elsewhere(trains), torch.no_grad():
            context = recorder.evaluation()
            context.__enter__()
            network(torch.randn(5, 6))
        # The other thread has made its second step by now.
        context.__exit__(None, None, None)
    demand(recorder, cell, training=2, evaluation=5, at=1)


def test_threads_that_help_an_evaluation_are_part_of_it(record, cell):
    network = model()
    with record(network) as recorder:
        step(network, recorder)
        with torch.no_grad(), recorder.evaluation():
            for _ in range(2):
                in_thread(lambda: network(torch.randn(4, 6)))
    demand(recorder, cell, training=1, evaluation=8, at=1)


def test_helpers_of_a_thread_that_evaluates_beside_the_training_are_part_of_its_evaluation(record, cell):
    network = model()

    @contextmanager
    def evaluates_with_help():
        with recorder.evaluation():
            in_thread(lambda: network(torch.randn(4, 6)))
            yield

    with record(network) as recorder:
        step(network, recorder)
        with elsewhere(evaluates_with_help):
            step(network, recorder)
    demand(recorder, cell, training=2, evaluation=4, at=1)


def test_a_training_thread_that_evaluates_within_the_evaluation_of_another_is_part_of_it(record, cell):
    network = model()
    with record(network) as recorder:
        step(network, recorder)
        with elsewhere(evaluates(recorder, network)), torch.no_grad(), recorder.evaluation():
            network(torch.randn(7, 6))
        step(network, recorder)
    demand(recorder, cell, training=2, evaluation=12, at=1)


def test_an_evaluation_beside_a_probe_takes_its_own_passes_only(record, cell):
    network, begun, over = model(), threading.Event(), threading.Event()

    class Waits(nn.Module):
        def forward(self, x):
            if len(x) == 3 and recording:
                begun.set()
                assert over.wait(timeout=60)
            return x

    recording = False
    network.append(Waits())

    def evaluate():
        assert begun.wait(timeout=60)
        with torch.no_grad(), recorder.evaluation():
            network(torch.randn(5, 6))
        over.set()

    with record(network, probe=torch.ones(3, 6), probe_every=100) as recorder:
        recording = True
        thread = threading.Thread(target=evaluate)
        thread.start()
        step(network, recorder)
        thread.join()
    demand(recorder, cell, training=1, evaluation=5, at=0)
    probed = recorder.recording["probe/layers"].to_dataset()["example_count"].sel(signal="activation", layer="0")
    assert probed.values.tolist() == [3]


def test_pauses_of_two_threads_that_overlap_end_with_the_last(record):
    network = model()
    with record(network) as recorder:
        first = recorder.pause()
        first.__enter__()
        with elsewhere(recorder.pause):
            first.__exit__(None, None, None)
            step(network, recorder)
        step(network, recorder)
    assert recorder.recording["layers"].step.values.tolist() == [1]
