"""No graph, no gradient, and graphs that are built twice."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from covshift.schema import Status


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_case_26_passes_without_a_graph_have_forward_rows_and_disturb_nothing(
    build, train, record, assert_row, status, context
):
    model, x = build("perceptron").eval(), torch.randn(16, 6)
    with record(model) as recorder:
        train(model)
        with context(), recorder.evaluation():
            hidden = model[0](x)
            output = model(x)
        train(model)
    rows = recorder.recording
    assert rows["evaluation/layers"].step.values.tolist() == [1]
    assert_row(rows, output, layer="5", signal="activation", step=1, group="evaluation/layers")
    # Module 0 ran twice in the pass: once by itself, once in the model.
    assert_row(rows, hidden, hidden, layer="0", signal="activation", step=1, group="evaluation/layers")
    assert status(rows, "0", step=1, group="evaluation/layers") == Status.NO_GRAD_FORWARD
    assert rows["layers"].step.values.tolist() == [0, 1]
    assert (rows["layers"]["count"].sel(layer="0", signal="activation_grad") == 16 * 8).all()


class Checkpointed(nn.Module):
    """A block with dropout and a shared activation inside an activation checkpoint, or outside of one."""

    takes = (6,)

    def __init__(self, how, **options):
        super().__init__()
        torch.manual_seed(3)
        self.stem, self.head, self.act = nn.Linear(6, 6), nn.Linear(6, 3), nn.Tanh()
        self.block = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 6))
        self.how, self.options = how, options

    def body(self, x):
        return self.act(self.block(self.act(2 * x)))

    def forward(self, x):
        h = self.stem(x)
        return self.head(self.body(h) if self.how == "plain" else checkpoint(self.body, h, **self.options))


def recorded_training(model, record, train, steps=3):
    torch.manual_seed(4)
    with record(model) as recorder:
        losses = train(model, steps)
    return losses, recorder.recording


def demand_the_plain_numbers(record, train, layers_equal, **options):
    plain_losses, plain = recorded_training(Checkpointed("plain"), record, train)
    losses, found = recorded_training(Checkpointed("checkpoint", **options), record, train)
    assert losses == plain_losses
    layers_equal(plain, found)
    inner = ["block.0", "block.1", "block.2", "block.3", "act", "act#1"]
    assert (plain["layers"]["count"].sel(signal="activation_grad", layer=inner) == 16 * 6).all()


def test_case_27_a_checkpoint_records_the_numbers_of_the_plain_run(record, train, layers_equal):
    demand_the_plain_numbers(record, train, layers_equal, use_reentrant=False)


def test_case_28_a_reentrant_checkpoint_records_the_numbers_of_the_plain_run(record, train, layers_equal):
    demand_the_plain_numbers(record, train, layers_equal, use_reentrant=True)


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpointed_run_keeps_its_bits(train, unchanged, reentrant):
    unchanged(lambda: Checkpointed("checkpoint", use_reentrant=reentrant), lambda model: train(model, 5))


class Parts(nn.Module):
    def __init__(self):
        super().__init__()
        self.frozen, self.branch, self.head = nn.Linear(6, 6), nn.Linear(6, 3), nn.Linear(6, 3)
        self.frozen.requires_grad_(False)

    def forward(self, x):
        h = self.frozen(x)
        return self.head(h) + self.branch(h).detach()


def test_case_35_a_frozen_first_layer_has_no_gradient_and_says_why(record, train, status, cell):
    with record(model := Parts()) as recorder:
        train(model)
    assert status(recorder.recording, "frozen") == Status.NO_GRAD_REQUIRED
    assert cell(recorder.recording, "count", layer="frozen", signal="activation_grad") == 0
    assert cell(recorder.recording, "count", layer="frozen", signal="activation") == 16 * 6


def test_case_36_a_detached_branch_has_no_gradient_and_says_why(record, train, status, cell):
    with record(model := Parts()) as recorder:
        train(model)
    assert status(recorder.recording, "branch") == Status.NO_GRADIENT_ARRIVED
    assert cell(recorder.recording, "count", layer="branch", signal="activation_grad") == 0
    measured = recorder.recording["parameters"]["gradient_measured"].isel(step=0).to_series()
    assert measured[measured == 1].index.tolist() == ["head.weight", "head.bias"]


def test_a_module_that_runs_under_no_grad_inside_training_says_so(record, status):
    class Teacher(nn.Module):
        def __init__(self):
            super().__init__()
            self.teacher, self.student = nn.Linear(6, 3), nn.Linear(6, 3)

        def forward(self, x):
            with torch.no_grad():
                target = self.teacher(x)
            return F.mse_loss(self.student(x), target)

    with record(model := Teacher(), may_warn=("is not the batch",)) as recorder:
        model(torch.randn(16, 6)).backward()
        recorder.step()
    assert status(recorder.recording, "teacher") == Status.NO_GRAD_REQUIRED
    assert status(recorder.recording, "student") == Status.OK
