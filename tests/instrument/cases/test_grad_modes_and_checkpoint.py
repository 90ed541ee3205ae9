"""No graph, no gradient, and graphs that are built twice."""

from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

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


class Summed(nn.Module):
    """A residual block of which the sum, made in place, is read by a nonlinearity, or returned."""

    def __init__(self, act, *, change=lambda y, x: y.add_(x)):
        super().__init__()
        self.conv, self.norm, self.act, self.change = nn.Conv1d(4, 4, 3, padding=1), nn.BatchNorm1d(4), act, change

    def forward(self, x):
        y = self.norm(self.conv(x))
        self.change(y, x)
        return self.act(y) if self.act is not None else y


def set_one(y, x):
    y[0, 0, 0] = 7


WITHOUT_GRAPH = {
    "residual": lambda: nn.Sequential(Summed(nn.ReLU()), Summed(nn.ReLU())),
    "one element": lambda: nn.Sequential(Summed(nn.ReLU(), change=set_one), nn.Conv1d(4, 4, 1)),
    "nothing changed": lambda: nn.Sequential(Summed(nn.ReLU(), change=lambda y, x: None), nn.Conv1d(4, 4, 1)),
    "in-place ReLU": lambda: nn.Sequential(nn.Conv1d(4, 4, 3), nn.ReLU(inplace=True), nn.Conv1d(4, 4, 3), nn.Tanh()),
    "returned sum": lambda: nn.Sequential(Summed(None), nn.Dropout(), Summed(nn.ReLU6(inplace=True)), nn.Identity()),
}


def evaluated(record, make, context, x, **options):
    torch.manual_seed(3)
    model = make().eval()
    with record(model, **options) as recorder, context(), recorder.evaluation():
        for part in x.split(8):
            model(part)
    return model, recorder.recording


@pytest.mark.parametrize("signals", [None, ("preactivation",)], ids=["all signals", "preactivations"])
@pytest.mark.parametrize("kind", WITHOUT_GRAPH)
def test_rows_under_inference_mode_are_those_under_no_grad_whatever_is_modified_in_place(record, kind, signals):
    options = {} if signals is None else {"signals": signals}
    x = torch.randn(16, 4, 10)
    (_, expected), (_, found) = (
        evaluated(record, WITHOUT_GRAPH[kind], context, x, **options)
        for context in (torch.no_grad, torch.inference_mode)
    )
    for group in ("layers", "histograms", "units"):
        assert found[f"evaluation/{group}"].to_dataset().equals(expected[f"evaluation/{group}"].to_dataset()), group


def test_structural_zeros_under_inference_mode_are_those_of_the_sum_that_the_relu_reads(record, assert_row, cell):
    x = torch.randn(16, 4, 10)
    model, rows = evaluated(record, WITHOUT_GRAPH["residual"], torch.inference_mode, x)
    with torch.no_grad():
        before = model[0].norm(model[0].conv(x))
        summed = before + x
    at = {"step": 0, "group": "evaluation/layers"}
    assert cell(rows, "structural_zero_count", layer="0.act", signal="preactivation", **at) == (summed <= 0).sum()
    assert (summed <= 0).sum() != (before <= 0).sum()
    assert_row(rows, summed, layer="0.act", signal="preactivation", **at)
    assert_row(rows, before, layer="0.norm", signal="activation", **at)


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


def chained(*parts):
    def run(x):
        for part in parts:
            x = part(x)
        return x

    return run


class Kept(nn.Module):
    """Four residual parts around one shared activation that is dead: what it returns tells no call from another."""

    takes = (6,)

    def __init__(self, arrangement, *, is_plain):
        super().__init__()
        torch.manual_seed(3)
        self.act, self.head = nn.ReLU(), nn.Linear(6, 3)
        self.into = nn.ModuleList(nn.Linear(6, 6) for _ in range(4))
        self.out_of = nn.ModuleList(nn.Linear(6, 6) for _ in range(4))
        self.stem, self.arrangement, self.is_plain = nn.Linear(6, 6), arrangement, is_plain

    def part(self, k):
        return lambda x: x + self.out_of[k](self.act(self.into[k](x) - 100))

    def watched_over(self, x):
        with torch.no_grad():
            self.act(x - 100)
        return x

    def kept(self, *parts, reentrant=True):
        run = chained(*parts)
        return run if self.is_plain else lambda x: checkpoint(run, x, use_reentrant=reentrant)

    def forward(self, x):
        parts = [self.part(k) for k in range(4)]
        return self.head(chained(*ARRANGEMENTS[self.arrangement](self, *parts))(self.stem(x)))


ARRANGEMENTS = {
    "one in each": lambda m, a, b, c, d: [m.kept(a), m.kept(b), m.kept(c), m.kept(d)],
    "all in one": lambda m, a, b, c, d: [m.kept(a, b, c, d)],
    "two in each": lambda m, a, b, c, d: [m.kept(a, b), m.kept(c, d)],
    "some in none": lambda m, a, b, c, d: [a, m.kept(b, c), d],
    "one inside another": lambda m, a, b, c, d: [m.kept(a, m.kept(b, c), d)],
    "two inside another": lambda m, a, b, c, d: [m.kept(m.kept(a), m.kept(b, c), d)],
    "three deep": lambda m, a, b, c, d: [m.kept(a, m.kept(b, m.kept(c)), d)],
    "around another kind": lambda m, a, b, c, d: [m.kept(a, m.kept(b, c, reentrant=False), d)],
    "inside another kind": lambda m, a, b, c, d: [m.kept(a, m.kept(b, c), d, reentrant=False)],
    "beside another kind": lambda m, a, b, c, d: [m.kept(a, b), m.kept(c, reentrant=False), m.kept(d)],
    "with a part that needs no graph": lambda m, a, b, c, d: [m.kept(a, m.watched_over, b), m.kept(c, d)],
}


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True:UserWarning")
@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_calls_that_computed_the_same_numbers_have_their_own_gradients_however_checkpoints_lie(
    record, train, layers_equal, arrangement
):
    plain, found = (
        recorded_training(Kept(arrangement, is_plain=is_plain), record, train, steps=2)[1] for is_plain in (True, False)
    )
    calls = [name for name in plain["layers"].layer.values if name.startswith("act")]
    at = {"layer": calls, "step": 0}
    assert (plain["layers"]["zero_count"].sel(signal="activation", **at) == 16 * 6).all()
    sums = plain["layers"]["sum"].sel(signal="activation_grad", **at).values
    counts = plain["layers"]["count"].sel(signal="activation_grad", **at).values.tolist()
    assert len(set(sums[np.array(counts) > 0])) == sum(count == 16 * 6 for count in counts) == 4
    layers_equal(plain, found)


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


class Selective(nn.Module):
    """A block of which all results but those of its first layer are saved, a threshold made by hand among them."""

    takes = (6,)

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.first, self.act, self.last = nn.Linear(6, 8), nn.ReLU6(), nn.Linear(8, 3)

    def block(self, x):
        h = self.act(4 * self.first(x))
        return self.last(h * (h <= 3.0))

    def forward(self, x):
        contexts = partial(create_selective_checkpoint_contexts, self._policy)
        return checkpoint(self.block, x, use_reentrant=False, context_fn=contexts)

    @staticmethod
    def _policy(context, operation, *args, **options):
        first = operation is torch.ops.aten.addmm.default
        return CheckpointPolicy.MUST_RECOMPUTE if first else CheckpointPolicy.MUST_SAVE


def test_a_selective_checkpoint_saves_nothing_that_the_recorder_computes(train, unchanged, cell):
    recorder = unchanged(Selective, lambda model: train(model, 4), may_warn=("checkpoint",))
    # Of ReLU6 the recorder counts what lies between its bounds, with the operation that the block uses.
    assert cell(recorder.recording, "count", layer="act", signal="activation", step=3) == 16 * 8
    assert cell(recorder.recording, "count", layer="act", signal="activation_grad", step=3) == 16 * 8


class CheckpointFunction(torch.autograd.Function):
    """A checkpoint as other libraries write their own."""

    @staticmethod
    def forward(ctx, run, x, *_):
        ctx.run = run
        ctx.save_for_backward(x)
        return run(x)

    @staticmethod
    def backward(ctx, gradient):
        x = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.enable_grad():
            output = ctx.run(x)
        torch.autograd.backward(output, gradient)
        return (None, x.grad, *(None for _ in ctx.needs_input_grad[2:]))


class HalfStep(torch.autograd.Function):
    """``x + f(x) / 2``, whose backward halves what ``f`` gave, not what it is given."""

    @staticmethod
    def forward(ctx, run, x, *parameters):
        ctx.run, ctx.parameters = run, parameters
        ctx.save_for_backward(x)
        return x + run(x) / 2

    @staticmethod
    def backward(ctx, gradient):
        x = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.enable_grad():
            of_x, *others = torch.autograd.grad(ctx.run(x), (x, *ctx.parameters), gradient)
        return (None, gradient + of_x / 2, *(other / 2 for other in others))


class ByFunction(nn.Module):
    """Two linear layers, the second of them called inside an autograd function, or plainly."""

    takes = (6,)

    def __init__(self, function, plain):
        super().__init__()
        torch.manual_seed(3)
        self.stem, self.inner, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.function, self.plain = function, plain

    def forward(self, x):
        x = self.stem(x)
        if self.function is None:
            return self.head(self.plain(self.inner, x))
        return self.head(self.function.apply(self.inner, x, *self.inner.parameters()))


def test_a_checkpoint_of_another_library_records_the_numbers_of_the_plain_run(record, train, layers_equal):
    plain, found = (
        recorded_training(ByFunction(function, lambda inner, x: inner(x)), record, train)[1]
        for function in (None, CheckpointFunction)
    )
    layers_equal(plain, found)
    assert (plain["layers"]["count"].sel(signal="activation_grad", layer="inner") == 16 * 6).all()


def test_what_another_autograd_function_hands_its_layers_backward_is_not_taken_for_the_gradient(record, train, status):
    said = ("layer 'inner': gradients inside the autograd function HalfStep",)
    runs = []
    for function in (None, HalfStep):
        model = ByFunction(function, lambda inner, x: x + inner(x) / 2)
        with record(model, warned=said if function else ()) as recorder:
            losses = train(model, 3)
        runs.append((losses, recorder.recording))
    (plain_losses, plain), (losses, found) = runs
    np.testing.assert_allclose(losses, plain_losses)
    assert status(plain, "inner") == Status.OK
    assert status(found, "inner") == Status.NO_GRAD_REQUIRED
    layers = found["layers"].sel(layer="inner")
    assert (layers["count"].sel(signal="activation_grad") == 0).all()
    assert (layers["count"].sel(signal="activation") == 16 * 6).all()
    assert status(found, "stem") == status(found, "head") == Status.OK
