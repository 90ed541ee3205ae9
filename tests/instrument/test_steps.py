"""Where a step of the record ends. Oracle: what the optimizers of the test themselves did."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import covshift
from covshift.exceptions import CovshiftWarning
from covshift.instrument.observer import Observer
from covshift.schema import Status

pytestmark = pytest.mark.usefixtures("seeded")


def test_optimizers_that_step_inside_backward_end_one_step_when_the_next_forward_begins(shallow):
    model = shallow()
    optimizers = {parameter: torch.optim.SGD([parameter], lr=0.1) for parameter in model.parameters()}

    def update(parameter):
        optimizers[parameter].step()
        optimizers[parameter].zero_grad()

    handles = [parameter.register_post_accumulate_grad_hook(update) for parameter in model.parameters()]
    with covshift.record(model, every=1) as recorder:
        for step in range(3):
            model(torch.randn(4, 6)).square().mean().backward()
            assert recorder.step_count == step
        recorder.log(loss=1.0)
    for handle in handles:
        handle.remove()
    assert recorder.step_count == 3
    layers = recorder.recording["layers"].to_dataset()
    assert layers.step.values.tolist() == [0, 1, 2]
    # Every gradient is there, although the last layer was updated before the first layer's gradient came.
    gradients = layers["status"].sel(signal="activation_grad", layer=["0", "1", "2"])
    assert (gradients == Status.OK).all()
    assert (layers["count"].sel(signal="activation_grad", layer="0") == 20).all()
    assert "parameters" not in recorder.recording.children


def test_all_evaluations_of_one_lbfgs_step_are_one_record(shallow):
    model, calls = shallow(), []
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=4, line_search_fn="strong_wolfe")
    x = torch.randn(8, 6)

    def closure():
        optimizer.zero_grad()
        loss = (model(x) - 1.0).square().mean()
        loss.backward()
        calls.append(loss.item())
        return loss

    with covshift.record(model, every=1) as recorder:
        optimizer.step(closure)
        evaluations = len(calls)
    assert evaluations > 1
    assert recorder.step_count == 1
    layers = recorder.recording["layers"].to_dataset()
    assert layers["count"].sel(step=0, layer="0", signal="activation") == 8 * 5 * evaluations


def test_an_optimizer_that_steps_inside_backward_loses_nothing_of_steps_recorded_now_and_then(shallow):
    model = shallow()
    optimizers = {parameter: torch.optim.SGD([parameter], lr=0.1) for parameter in model.parameters()}
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(lambda p: optimizers[p].step())
    with covshift.record(model, every=3) as recorder:
        for _ in range(4):
            model(torch.randn(4, 6)).square().mean().backward()
    layers = recorder.recording["layers"].to_dataset()
    assert layers.step.values.tolist() == [0, 3]
    assert (layers["count"].sel(layer="(input)", signal="input") == 24).all()
    assert (layers["status"].sel(layer="1", signal="preactivation") == Status.UNDER_PRODUCER).all()


class TwoHalves(nn.Module):
    """A model whose halves are called from outside, never itself."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.decoder = nn.Linear(6, 4), nn.Sequential(nn.ReLU(), nn.Linear(4, 2))


def train_halves(model, steps, recorder):
    first, second = (torch.optim.SGD(half.parameters(), lr=0.1) for half in (model.encoder, model.decoder))
    for step in range(steps):
        model.decoder(model.encoder(torch.randn(3, 6))).square().mean().backward()
        recorder.log(before=step)
        for optimizer in (first, second):
            optimizer.step()
            optimizer.zero_grad()
        recorder.log(after=step)


@pytest.mark.parametrize("every", [1, 3, 100])
def test_steps_and_logs_are_those_of_the_loop_whether_or_not_they_are_recorded(every):
    """Two optimizers after one forward end one step, also where calls are not followed."""
    model = TwoHalves()
    with covshift.record(model, every=every) as recorder:
        train_halves(model, 7, recorder)
        assert recorder.step_count == 7
    recording = recorder.recording
    assert recording["layers"].step.values.tolist() == list(range(0, 7, every))
    scalars = recording["scalars"].to_dataset()
    assert scalars["before"].values.tolist() == list(range(7))
    assert scalars["after"].values.tolist() == list(range(7))


def test_between_recorded_steps_calls_are_not_followed_and_evaluations_are(shallow, monkeypatch):
    entered = []
    enter = Observer.enter

    def noted(self, module, args):
        entered.append(module)
        enter(self, module, args)

    monkeypatch.setattr(Observer, "enter", noted)
    model = shallow()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def followed(run):
        entered.clear()
        run()
        return len(entered)

    def step():
        model(torch.randn(4, 6)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    every_module = len(list(model.modules()))
    with covshift.record(model, every=3) as recorder:
        assert [followed(step) for _ in range(6)] == [every_module, 0, 0, every_module, 0, 0]
        with recorder.pause():
            assert followed(step) == 0
        with recorder.evaluation(), torch.no_grad():
            assert followed(lambda: model(torch.randn(8, 6))) == every_module
        assert followed(step) == 0
    assert followed(step) == 0
    evaluation = recorder.recording["evaluation/layers"].to_dataset()
    assert int(evaluation["example_count"].sel(step=7, layer="0", signal="activation")) == 8


def test_hand_written_updates_are_counted_by_step(perceptron, batch):
    model = perceptron()
    with covshift.record(model, every=1) as recorder:
        for _ in range(3):
            x, y = batch(model)
            F.cross_entropy(model(x), y).backward()
            model.zero_grad()
            recorder.step()
            recorder.step()
        assert recorder.step_count == 3
        assert recorder.recording["layers"].step.values.tolist() == [0, 1, 2]


def test_two_optimizers_stepping_after_one_forward_end_one_step(perceptron, batch):
    model = perceptron()
    first_half, second_half = list(model.parameters())[:2], list(model.parameters())[2:]
    optimizers = [torch.optim.SGD(half, lr=0.1) for half in (first_half, second_half)]
    with covshift.record(model, every=1) as recorder:
        for _ in range(2):
            x, y = batch(model)
            F.cross_entropy(model(x), y).backward()
            for optimizer in optimizers:
                optimizer.step()
        assert recorder.step_count == 2


def test_updates_without_a_forward_that_was_seen_are_counted_and_named_once(batch):
    model = nn.Linear(6, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with (
        pytest.warns(CovshiftWarning, match="no forward pass of it was seen"),
        covshift.record(model, every=1) as recorder,
    ):
        for _ in range(2):
            x, y = batch(model)
            F.cross_entropy(model.forward(x), y).backward()
            optimizer.step()
        assert recorder.step_count == 2
    assert len(recorder.warnings) == 1


@pytest.mark.parametrize("how", ["by place", "by name"])
def test_what_a_step_is_given_is_a_closure_only_where_it_can_be_called(shallow, how):
    class Polyak(torch.optim.Optimizer):
        """Takes the loss for its step size, and puts weight decay into the gradients."""

        @torch.no_grad()
        def step(self, loss):
            for parameter in self.param_groups[0]["params"]:
                parameter.grad.add_(parameter, alpha=0.1)
                parameter.sub_(parameter.grad, alpha=min(0.1, float(loss)))

    model = shallow()
    optimizer = Polyak(model.parameters(), {})
    with covshift.record(model, every=1) as recorder:
        loss = model(torch.randn(4, 6)).square().mean()
        loss.backward()
        norms = [p.grad.double().norm().item() for p in model.parameters()]
        if how == "by place":
            optimizer.step(loss.detach())
        else:
            optimizer.step(loss=loss.detach())
    assert recorder.warnings == []
    row = recorder.recording["parameters"].to_dataset().sel(step=0)
    assert row["gradient_norm"].values.tolist() == pytest.approx(norms, rel=1e-6)
    assert row["gradient_norm_preclip"].values.tolist() == pytest.approx(norms, rel=1e-6)
