"""What was mended once and must stay so: each test fails when the one mechanism it is about is taken away."""

import gc
import sys
import threading
from contextlib import nullcontext, suppress

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.checkpoint import checkpoint

import covshift
from covshift.exceptions import CovshiftWarning
from covshift.instrument.schedule import Schedule
from covshift.schema import Status


def perceptron():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))


def train(model, optimizer, steps=1):
    for _ in range(steps):
        model(torch.randn(4, 6)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.fixture
def _alone_in_a_group():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("_alone_in_a_group")
def test_the_process_group_of_merged_ranks_is_let_go_at_the_end(monkeypatch):
    for room in ("recorder", "attach"):
        monkeypatch.setattr(f"covshift.{room}.is_distributed", lambda: True)
    model = perceptron()
    optimizer, groups = torch.optim.SGD(model.parameters(), lr=0.1), dist.distributed_c10d._world.pg_map
    before = len(groups)
    for _ in range(2):
        with covshift.record(model, every=1, ranks="merge") as recorder:
            assert len(groups) == before + 1
            train(model, optimizer, 2)
        assert len(groups) == before
        assert recorder.recording["layers"].step.values.tolist() == [0, 1]


class Shedding(nn.Module):
    """Grows one lazy layer, never uses another, and loses a parameter while it trains."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.lazy = nn.Linear(6, 5), nn.LazyLinear(2)
        self.unused, self.spare = nn.LazyLinear(2), nn.Parameter(torch.ones(3))

    def forward(self, x):
        return self.lazy(self.linear(x))


def test_parameters_that_are_lazy_at_first_or_gone_later_cost_nobody_elses_numbers():
    model = Shedding()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with (
        pytest.warns(CovshiftWarning, match="no recorded forward pass called unused"),
        pytest.warns(CovshiftWarning, match="parameters are absent at step 1: .* of spare any more"),
        covshift.record(model, every=1) as recorder,
    ):
        train(model, optimizer)
        del model.spare
        train(model, optimizer)
    assert len(recorder.warnings) == 2
    rows = recorder.recording["parameters"].to_dataset()
    assert rows["weight_norm"].sel(parameter="spare").values == pytest.approx([np.sqrt(3), np.nan], nan_ok=True)
    assert rows["update_norm"].sel(parameter="spare", step=1).isnull()
    assert rows[["weight_norm", "update_norm"]].sel(parameter="unused.weight").isnull().to_array().all()
    others = ["linear.weight", "linear.bias", "lazy.weight", "lazy.bias"]
    assert (rows["weight_norm"].sel(parameter=others) > 0).all()
    assert (rows["update_norm"].sel(parameter=others) > 0).all()


def test_a_first_parameter_on_meta_does_not_hide_that_autocast_is_on():
    class Sketch(nn.Module):
        def __init__(self):
            super().__init__()
            self.sketch = nn.Parameter(torch.empty(3, device="meta"), requires_grad=False)
            self.linear = nn.Linear(6, 2)

        def forward(self, x):
            return self.linear(x)

    model = Sketch()
    with (
        pytest.warns(CovshiftWarning, match="autocast to float16 without scaler="),
        covshift.record(model, every=1) as recorder,
        torch.autocast("cpu", torch.float16),
    ):
        model(torch.randn(4, 6)).float().sum().backward()
        recorder.step()
    assert recorder.recording["layers"].step.values.tolist() == [0]


def test_forward_passes_that_begin_together_in_two_threads_fill_one_block():
    both, main = threading.Barrier(2), threading.current_thread()

    def rule(step):
        if threading.current_thread() is not main:
            # Both threads get here only where nothing keeps the second one out; else it waits its turn.
            with suppress(threading.BrokenBarrierError):
                both.wait(timeout=1)
        return True

    model, failures = perceptron(), []

    def run():
        try:
            model(torch.randn(4, 6)).sum().backward()
        except BaseException as error:  # noqa: BLE001 - handed to the test's own thread below
            failures.append(error)

    with covshift.record(model, every=Schedule(rule, "always")) as recorder:
        threads = [threading.Thread(target=run) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        recorder.step()
    assert failures == []
    layers = recorder.recording["layers"]["example_count"].sel(step=0, layer=["0", "1", "2"])
    assert (layers.sel(signal=["activation", "activation_grad"]) == 2 * 4).all()


@pytest.mark.slow
def test_threads_that_meet_a_model_together_share_its_layers_and_lose_no_rows():
    interval = sys.getswitchinterval()
    # Threads take turns a thousand times as often as usual, so that what they can do in each other's way they do.
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(60):
            model, together = perceptron(), threading.Barrier(2)

            def run(model=model, together=together):
                together.wait()
                model(torch.randn(4, 6)).sum().backward()

            with covshift.record(model, every=1) as recorder:
                threads = [threading.Thread(target=run) for _ in range(2)]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
                recorder.step()
            layers = recorder.recording["layers"]
            assert sorted(layers["layer"].values.tolist()) == ["(input)", "0", "1", "2"]
            counts = layers["example_count"].sel(step=0, signal=["activation", "activation_grad"])
            assert (counts.sel(layer=["0", "1", "2"]) == 2 * 4).all()
    finally:
        sys.setswitchinterval(interval)


def test_gradients_of_a_batch_of_directions_are_passed_over_and_keep_their_numbers():
    x, directions, found = torch.randn(4, 6), torch.eye(8).reshape(8, 4, 2), []

    def jacobian(model):
        return torch.autograd.grad(model(x), list(model.parameters()), directions, is_grads_batched=True)

    expected = jacobian(perceptron())
    model = perceptron()
    with covshift.record(model, every=1) as recorder:
        found = jacobian(model)
        recorder.step()
    assert recorder.warnings == []
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    status = recorder.recording["layers"]["status"].sel(step=0, layer=["0", "2"], signal="activation_grad")
    assert (status == Status.NO_GRADIENT_ARRIVED).all()


class Bare(torch.optim.Optimizer):
    """An optimizer without a learning rate."""

    def __init__(self, parameters):
        super().__init__(parameters, {})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter -= 0.1 * parameter.grad.sign()


def test_an_optimizer_without_a_learning_rate_is_recorded_without_one():
    model = perceptron()
    with covshift.record(model, every=1) as recorder:
        train(model, Bare(model.parameters()), 2)
    assert recorder.warnings == []
    assert recorder.step_count == 2
    assert "learning_rate" not in recorder.recording["scalars"].data_vars
    assert (recorder.recording["parameters"]["update_norm"] > 0).all()


def test_parameters_put_in_the_place_of_others_are_followed_with_their_new_optimizer():
    model = perceptron()
    optimizer, expected = torch.optim.SGD(model.parameters(), lr=0.1), []
    with covshift.record(model, every=1) as recorder:
        train(model, optimizer)
        for index in (0, 2):
            model[index].weight = nn.Parameter(torch.full_like(model[index].weight, 0.5))
            model[index].bias = nn.Parameter(torch.full_like(model[index].bias, 0.25))
        del optimizer
        gc.collect()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
        for _ in range(2):
            before = [p.detach().clone() for p in model.parameters()]
            train(model, optimizer)
            after = [p.detach().clone() for p in model.parameters()]
            expected.append([(p.double() - q.double()).norm().item() for p, q in zip(after, before, strict=True)])
    assert recorder.warnings == []
    assert recorder.step_count == 3
    rows = recorder.recording["parameters"].to_dataset()
    assert float(rows["weight_norm"].sel(step=1, parameter="0.weight")) == pytest.approx(0.5 * np.sqrt(30))
    np.testing.assert_allclose(rows["update_norm"].sel(step=[1, 2]), expected, rtol=1e-6)


class Checkpointed(nn.Module):
    """Calls its activation as a function: inside an activation checkpoint, or where nothing is to be learned."""

    def __init__(self, how):
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.head, self.how = nn.Linear(6, 6), nn.Linear(6, 2), how

    def body(self, h):
        return torch.relu(h * 2)

    def forward(self, x):
        h = self.linear(x)
        if self.how == "teacher":
            with torch.no_grad():
                h = self.body(h)
            return self.head(h)
        return self.head(checkpoint(self.body, h, use_reentrant=self.how == "reentrant"))


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("reentrant", Status.NO_GRADIENT_ARRIVED),
        ("not reentrant", Status.OK),
        ("teacher", Status.NO_GRAD_REQUIRED),
    ],
)
def test_the_gradient_of_a_function_inside_a_checkpoint_is_there_or_said_to_be_missing(how, expected):
    model = Checkpointed(how)
    x = torch.randn(4, 6)
    said = "inside a reentrant checkpoint are not recorded; use_reentrant=False"
    caught = pytest.warns(CovshiftWarning, match=said) if how == "reentrant" else nullcontext()
    with caught, covshift.record(model, every=1, functional=True) as recorder:
        model(x).sum().backward()
        recorder.step()
    status = recorder.recording["layers"]["status"].sel(step=0, layer="(root):relu")
    assert status.sel(signal="activation_grad") == expected
    assert status.sel(signal="preactivation_grad") == expected
