"""Where a step of the record ends. Oracle: what the optimizers of the test themselves did."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn

import covshift
from covshift.exceptions import CovshiftError, CovshiftWarning, InvalidArgumentError
from covshift.instrument.observer import Observer
from covshift.instrument.schedule import Schedule
from covshift.schema import Status


def perceptron():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))


def test_optimizers_that_step_inside_backward_end_one_step_when_the_next_forward_begins():
    model = perceptron()
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


def test_all_evaluations_of_one_lbfgs_step_are_one_record():
    model, calls = perceptron(), []
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


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.LBFGS])
def test_an_optimizer_that_runs_the_model_in_a_closure_has_its_parameters_measured(make):
    model = perceptron()
    optimizer = make(model.parameters(), lr=0.1)
    x = torch.randn(8, 6)

    def closure():
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        return loss

    before = [p.detach().clone() for p in model.parameters()]
    with covshift.record(model, every=1) as recorder:
        optimizer.step(closure)
    after = [p.detach().clone() for p in model.parameters()]
    row = recorder.recording["parameters"].to_dataset().sel(step=0)
    changes = [(new - old).double().norm().item() for new, old in zip(after, before, strict=True)]
    np.testing.assert_allclose(row["update_norm"], changes, rtol=1e-6)
    np.testing.assert_allclose(row["weight_norm"], [p.double().norm().item() for p in before], rtol=1e-6)
    np.testing.assert_allclose(
        row["gradient_norm"], [p.grad.double().norm().item() for p in model.parameters()], rtol=1e-6
    )


def test_a_parameter_that_no_optimizer_holds_does_not_move_once_it_is_known_that_none_does():
    model = perceptron()
    optimizer = torch.optim.SGD(model[0].parameters(), lr=0.1)
    with covshift.record(model, every=1) as recorder:
        for _ in range(3):
            model(torch.randn(4, 6)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    updates = recorder.recording["parameters"].to_dataset()["update_norm"]
    assert np.isnan(updates.sel(parameter="2.weight").values[0])
    assert updates.sel(parameter="2.weight").values[1:].tolist() == [0.0, 0.0]


def test_a_module_put_in_anothers_place_is_the_one_that_is_measured():
    model = perceptron()
    told = pytest.warns(CovshiftWarning, match="called 2"), pytest.warns(CovshiftWarning, match="beside: 2")
    with told[0], told[1], covshift.record(model, every=1) as recorder:
        model[2] = nn.Linear(5, 2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with torch.no_grad():
            model[2].weight.fill_(3.0)
        model(torch.randn(4, 6)).sum().backward()
        optimizer.step()
    norms = recorder.recording["parameters"].to_dataset()["weight_norm"].sel(step=0)
    assert float(norms.sel(parameter="2.weight")) == pytest.approx(np.sqrt(90))


def test_an_optimizer_that_steps_inside_backward_loses_nothing_of_steps_recorded_now_and_then():
    model = perceptron()
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


def test_a_traced_model_is_traced_as_without_a_recorder():
    model = perceptron().eval()
    with pytest.warns(DeprecationWarning, match="trace"), covshift.record(model, every=1):
        traced = torch.jit.trace(model, torch.randn(2, 6))
    x = torch.randn(3, 6)
    torch.testing.assert_close(traced(x), model(x))


@pytest.mark.parametrize("call", ["log", "evaluation"])
def test_what_would_not_be_recorded_is_refused_outside_the_with(call):
    with covshift.record(perceptron(), every=1) as recorder:
        pass
    with pytest.raises(CovshiftError, match=rf"{call}\(\): this recorder is not open; call it inside its with"):
        recorder.log(loss=1.0) if call == "log" else recorder.evaluation().__enter__()


def test_a_parameter_that_was_replaced_is_measured_where_it_now_is():
    model = perceptron()
    with covshift.record(model, every=1) as recorder:
        for _ in range(2):
            optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
            model(torch.randn(4, 6)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            model[2].bias.data = torch.full((2,), 3.0)
    norms = recorder.recording["parameters"].to_dataset()["weight_norm"].sel(parameter="2.bias")
    np.testing.assert_allclose(norms.sel(step=1), np.sqrt(18), rtol=1e-6)


def test_stock_transformer_layers_with_functional_activations_are_named_with_the_way_out():
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    with (
        pytest.warns(CovshiftWarning, match=r"not seen in \(root\): functional=True records them"),
        covshift.record(layer, every=1),
    ):
        pass
    with (
        pytest.warns(CovshiftWarning, match="called self_attn.out_proj: unused, or used functionally"),
        covshift.record(layer, every=1, functional=True) as recorder,
    ):
        layer(torch.randn(2, 3, 8)).sum().backward()
        recorder.step()
    assert len(recorder.warnings) == 1
    assert "(root):relu" in recorder.recording["layers"].layer.values


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scaler": 3.0}, r"scaler=3.0: expected a torch.amp.GradScaler"),
        ({"ranks": "all"}, r"ranks='all': expected one of separate, merge"),
        ({"loss_reduction": "max"}, r"loss_reduction='max': expected one of mean, sum"),
        ({"signals": "activation"}, r"signals='activation': expected a list of some of input"),
        ({"unit_axis": {"0": "1"}}, r"unit_axis=.*: expected a mapping from globs on layer names to axes"),
        ({"path": b"run"}, r"path=b'run': expected a path"),
        ({"attrs": [1]}, r"attrs=\[1\]: expected a mapping"),
        ({"attrs": {"rank": 7}}, r"attrs: rank are noted by the recorder"),
        ({"layers": nn.Linear(1, 1)}, r"layers=Linear.*: expected a glob, a compiled regex, a module class"),
        ({"max_memory": "1GB"}, r"max_memory='1GB': expected a number of bytes"),
        ({"max_memory": -1}, r"max_memory=-1: expected a number of bytes"),
        ({"max_layers": 0}, r"max_layers=0: expected a whole number from 1"),
        ({"max_layers": 2}, r"max_layers=2: 4 modules are to be observed; .*layers= .*max_layers=4"),
    ],
)
def test_arguments_that_cannot_be_used_are_named(arguments, message):
    with pytest.raises(InvalidArgumentError, match=message):
        covshift.record(perceptron(), **arguments)


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


def test_between_recorded_steps_calls_are_not_followed_and_evaluations_are(monkeypatch):
    entered = []
    enter = Observer.enter

    def noted(self, module, args):
        entered.append(module)
        enter(self, module, args)

    monkeypatch.setattr(Observer, "enter", noted)
    model = perceptron()
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


def test_a_schedule_that_raises_is_named_and_training_goes_on():
    def rule(step):
        if step == 1:
            raise ArithmeticError("planted")
        return True

    model = perceptron()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CovshiftWarning)
        with covshift.record(model, every=Schedule(rule, "odd")) as recorder:
            for _ in range(3):
                model(torch.randn(4, 6)).sum().backward()
                optimizer.step()
                optimizer.zero_grad()
    assert all("ArithmeticError: planted" in message for message in recorder.warnings)
    assert recorder.warnings
    assert recorder.step_count == 3
    assert 0 in recorder.recording["layers"].step.values


@pytest.fixture
def subclass():
    """An optimizer whose ``step`` and the one it calls are both hooked by torch: the base class was used before."""
    torch.optim.Adam(nn.Linear(1, 1).parameters())

    class ClippedAdam(torch.optim.Adam):
        def step(self, closure=None):
            for group in self.param_groups:
                nn.utils.clip_grad_norm_(group["params"], 0.01)
            return super().step(closure)

    return ClippedAdam


class Lookahead(torch.optim.Optimizer):
    """Pulls the weights back to a slow copy at every second step of another optimizer."""

    def __init__(self, base):
        super().__init__(base.param_groups, {})
        self.base, self.param_groups, self.steps = base, base.param_groups, 0
        self.slow = [p.detach().clone() for p in base.param_groups[0]["params"]]

    @torch.no_grad()
    def step(self, closure=None):
        self.base.step()
        self.steps += 1
        for slow, fast in zip(self.slow, self.param_groups[0]["params"], strict=True):
            if self.steps % 2 == 0:
                fast.copy_(slow.add_(fast - slow, alpha=0.5))


def observed_training(model, optimizer, *, steps, every=1):
    """A recorder, and norms of true updates and of the gradients that each step has left behind."""
    updates, gradients = [], []
    with covshift.record(model, every=every) as recorder:
        for _ in range(steps):
            optimizer.zero_grad()
            model(torch.randn(8, 6)).square().mean().backward()
            before = [p.detach().clone() for p in model.parameters()]
            optimizer.step()
            changed = zip(model.parameters(), before, strict=True)
            updates.append([(p.detach().double() - old.double()).norm().item() for p, old in changed])
            gradients.append([p.grad.double().norm().item() for p in model.parameters()])
    return recorder, np.array(updates), np.array(gradients)


@pytest.mark.parametrize("every", [1, 2])
def test_a_step_that_calls_super_is_one_step_by_the_gradients_that_super_found(subclass, every):
    model = perceptron()
    recorder, updates, gradients = observed_training(model, subclass(model.parameters()), steps=5, every=every)
    assert recorder.step_count == 5
    parameters = recorder.recording["parameters"].to_dataset()
    assert parameters.step.values.tolist() == list(range(0, 5, every))
    np.testing.assert_allclose(parameters["update_norm"], updates[::every], rtol=1e-6)
    np.testing.assert_allclose(parameters["gradient_norm"], gradients[::every], rtol=1e-6)
    assert (parameters["gradient_norm_preclip"] > 2 * parameters["gradient_norm"]).all()


def test_the_update_of_an_optimizer_that_wraps_another_is_what_both_have_made_of_it():
    model = perceptron()
    optimizer = Lookahead(torch.optim.SGD(model.parameters(), lr=0.1))
    recorder, updates, gradients = observed_training(model, optimizer, steps=4)
    assert recorder.step_count == 4
    parameters = recorder.recording["parameters"].to_dataset()
    np.testing.assert_allclose(parameters["update_norm"], updates, rtol=1e-6)
    np.testing.assert_allclose(parameters["gradient_norm"], gradients, rtol=1e-6)
    assert recorder.recording["scalars"]["learning_rate"].values.tolist() == [0.1] * 4


def test_an_optimizer_that_climbs_first_is_one_step_by_the_gradients_found_up_there():
    class Climbing(torch.optim.Optimizer):
        """Sharpness-aware: steps from the weights by the gradient at a place near by."""

        def __init__(self, base):
            super().__init__(base.param_groups, {})
            self.base, self.param_groups = base, base.param_groups

        def step(self, closure):
            weights = [p.detach().clone() for p in self.param_groups[0]["params"]]
            with torch.no_grad():
                for parameter in self.param_groups[0]["params"]:
                    parameter.add_(parameter.grad, alpha=10.0)
            self.zero_grad()
            with torch.enable_grad():
                loss = closure()
            with torch.no_grad():
                for parameter, weight in zip(self.param_groups[0]["params"], weights, strict=True):
                    parameter.copy_(weight)
            self.base.step()
            return loss

    model, x = perceptron(), torch.randn(8, 6)
    optimizer = Climbing(torch.optim.SGD(model.parameters(), lr=0.1))

    def evaluation():
        loss = model(x).square().mean()
        loss.backward()
        return loss

    with covshift.record(model, every=1) as recorder:
        evaluation()
        before = [p.detach().clone() for p in model.parameters()]
        optimizer.step(evaluation)
    assert recorder.step_count == 1
    row = recorder.recording["parameters"].to_dataset().sel(step=0)
    changes = [(p.detach() - old).double().norm().item() for p, old in zip(model.parameters(), before, strict=True)]
    np.testing.assert_allclose(row["update_norm"], changes, rtol=1e-6)
    np.testing.assert_allclose(row["gradient_norm"], [p.grad.double().norm().item() for p in model.parameters()])
    np.testing.assert_allclose(row["weight_norm"], [old.double().norm().item() for old in before], rtol=1e-6)


@pytest.mark.parametrize("where", ["inner", "outer"])
def test_a_step_that_raised_is_none_that_later_ones_are_part_of(where):
    class Stumbling(Lookahead):
        def step(self, closure=None):
            if where == "inner":
                with pytest.raises(ZeroDivisionError):
                    self.base.step(lambda: 1 / 0)
            elif not self.steps:
                self.steps += 1
                raise ZeroDivisionError
            super().step()

    model = perceptron()
    optimizer = Stumbling(torch.optim.SGD(model.parameters(), lr=0.1))
    with covshift.record(model, every=1) as recorder:
        for _ in range(4):
            model(torch.randn(4, 6)).sum().backward()
            try:
                optimizer.step()
            except ZeroDivisionError:
                assert recorder.step_count == 0
                optimizer.step()
    assert recorder.step_count == 4


def test_steps_that_another_models_optimizer_calls_are_steps_of_their_own():
    model, other = perceptron(), perceptron()
    inner, outer = torch.optim.SGD(model.parameters(), lr=0.1), torch.optim.SGD(other.parameters(), lr=0.1)

    def unrolled():
        for _ in range(3):
            model(torch.randn(4, 6)).sum().backward()
            inner.step()
        return 0.0

    with covshift.record(model, every=1) as recorder:
        outer.step(unrolled)
        outer.step(unrolled)
    assert recorder.step_count == 6


def test_parameters_replaced_again_and_again_stay_those_of_their_optimizer():
    model = perceptron()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with covshift.record(model, every=1) as recorder:
        for step in range(9):
            if step in (3, 6):
                for layer in (model[0], model[2]):
                    layer.weight = nn.Parameter(layer.weight.detach().clone())
                    layer.bias = nn.Parameter(layer.bias.detach().clone())
                optimizer.param_groups[0]["params"] = list(model.parameters())
            model(torch.randn(4, 6)).sum().backward()
            optimizer.step()
    assert recorder.step_count == 9
    updates = recorder.recording["parameters"].to_dataset()["update_norm"]
    assert updates.step.values.tolist() == list(range(9))
    assert (updates > 0).all()


def test_an_optimizer_that_takes_the_model_over_from_another_counts_from_then_on():
    model, other = perceptron(), perceptron()
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
    # Else the parameters that take their places might take their addresses, too.
    _kept = [*model.parameters(), *other.parameters()]
    with covshift.record(model, every=1) as recorder:
        for step in range(4):
            if step == 2:
                for index in (0, 2):
                    model[index].weight = nn.Parameter(model[index].weight.detach().clone())
                    model[index].bias = nn.Parameter(model[index].bias.detach().clone())
                optimizer.param_groups[0]["params"] = list(model.parameters())
            (model if step >= 2 else other)(torch.randn(4, 6)).sum().backward()
            optimizer.step()
    assert recorder.step_count == 2


@pytest.mark.parametrize("every", [1, 2])
def test_gradients_are_those_that_the_optimizers_own_pre_hooks_have_left(every):
    model = perceptron()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def clip(stepping, args, kwargs):
        nn.utils.clip_grad_norm_(model.parameters(), 0.01)

    optimizer.register_step_pre_hook(clip)
    recorder, updates, gradients = observed_training(model, optimizer, steps=4, every=every)
    parameters = recorder.recording["parameters"].to_dataset()
    np.testing.assert_allclose(parameters["gradient_norm"], gradients[::every], rtol=1e-6)
    np.testing.assert_allclose(parameters["update_norm"], updates[::every], rtol=1e-5)
    assert (parameters["gradient_norm_preclip"] > 2 * parameters["gradient_norm"]).all()
    assert list(optimizer._optimizer_step_pre_hooks.values()) == [clip]


def test_a_pre_hook_that_raises_costs_its_step_and_leaves_nothing_on_the_optimizer():
    model, calls = perceptron(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def stumble(stepping, args, kwargs):
        calls.append(1)
        if len(calls) == 1:
            raise ZeroDivisionError

    optimizer.register_step_pre_hook(stumble)
    with covshift.record(model, every=2) as recorder:
        model(torch.randn(4, 6)).sum().backward()
        with pytest.raises(ZeroDivisionError):
            optimizer.step()
        optimizer.register_step_pre_hook(stumble)
        for _ in range(3):
            optimizer.step()
            assert set(optimizer._optimizer_step_pre_hooks.values()) == {stumble}
            model(torch.randn(4, 6)).sum().backward()
    assert recorder.step_count == 3
