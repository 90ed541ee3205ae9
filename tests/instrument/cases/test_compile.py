"""torch.compile: the compiled model's own bits, no graph break, no recompilation, and the opaque part named."""

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

# Tracing reads .grad of inner tensors, and sees global hooks; torch warns of both, and inductor of torch's own scripts.
pytestmark = [
    pytest.mark.usefixtures("no_code_compiled_before"),
    pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning"),
    pytest.mark.filterwarnings("ignore:Using `torch.compile.module.` when there are global hooks:UserWarning"),
]

OPAQUE = "compiled, so only their own outputs can be seen"
IN_PLACE = "compiled in place, so not even their outputs can be seen"
NO_STEP = "but no optimizer step of the model was seen"


def but_slow(*values, unless):
    """Parameters of a test that has a quick example and slow ones."""
    return pytest.param(*values, marks=() if unless else pytest.mark.slow)


def net():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 6), nn.Sequential(nn.Linear(6, 6), nn.GELU()), nn.Linear(6, 3))


def counted(module, backend):
    """The module compiled in one graph (a break is an error), and the count of its compilations."""
    counter = CompileCounterWithBackend(backend)
    return torch.compile(module, backend=counter, fullgraph=True), counter


class Part(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x):
        return self.outer(F.gelu(self.inner(x)))


class Student(nn.Module):
    """Not a container, so that dynamo calls it instead of tracing it as one of torch's own."""

    takes = (6,)

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.part, self.head = Part(), nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.part(x))


def bare_losses(train, backend):
    torch._dynamo.reset()
    compiled, counter = counted(model := net(), backend)
    torch.manual_seed(4)
    return train(model, 4, forward=compiled), model.state_dict(), counter.frame_count


def demand_the_bits_of_the_compiled_run(train, record, backend, *, when, **options):
    losses, state, frames = bare_losses(train, backend)
    torch._dynamo.reset()
    compiled, counter = counted(model := net(), backend)
    if when == "before record, after its first run":
        compiled(torch.randn(16, 6)).sum().backward()
        model.zero_grad()
    torch.manual_seed(4)
    with record(model if when == "after record" else compiled, warned=[OPAQUE], **options) as recorder:
        assert train(model, 4, forward=compiled) == losses
    assert all(torch.equal(model.state_dict()[name], value) for name, value in state.items())
    assert counter.frame_count == frames == 1
    assert recorder.step_count == 4


WHEN = ["after record", "before record", "before record, after its first run"]


@pytest.mark.parametrize("options", [{"every": 1}, {"every": 10}, {"every": 1, "functional": True}], ids=str)
@pytest.mark.parametrize("when", WHEN)
def test_case_31_a_compiled_model_keeps_its_bits_and_its_one_graph(train, record, when, options):
    demand_the_bits_of_the_compiled_run(train, record, "aot_eager", when=when, **options)


@pytest.mark.parametrize("when", [but_slow(when, unless=when == "before record") for when in WHEN])
def test_a_model_compiled_by_inductor_keeps_its_bits_and_its_one_graph(train, record, compiler, when):
    demand_the_bits_of_the_compiled_run(train, record, "inductor", when=when)


@pytest.mark.parametrize("make", [net, Student])
def test_what_a_compiled_model_returns_is_recorded(record, train, assert_row, make):
    compiled, _ = counted(make(), "eager")
    x = torch.randn(16, 6)
    with record(compiled, warned=[OPAQUE]) as recorder:
        output = compiled(x)
        output.square().sum().backward()
        recorder.step()
    assert_row(recorder.recording, output, layer="(root)", signal="activation")
    assert_row(recorder.recording, 2 * output, layer="(root)", signal="activation_grad")


def test_around_a_compiled_part_everything_is_recorded(train, record, watch, assert_row):
    losses = []
    for recorded in (False, True):
        torch._dynamo.reset()
        model = net()
        model[1], _ = counted(model[1], "aot_eager")
        torch.manual_seed(4)
        if recorded:
            with record(model, warned=[OPAQUE + ": 1."]) as recorder:
                losses.append(train(model, 2))
        else:
            losses.append(train(model, 2))
    assert losses[0] == losses[1]
    layers = recorder.recording["layers"]
    assert layers.layer.values.tolist() == ["(input)", "0", "1", "2"]
    assert (layers["count"].sel(layer=["0", "1"], signal="activation_grad") == 16 * 6).all()


def stepped(backend, *, recorded, by_hand, record):
    torch._dynamo.reset()
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(6, 6), nn.GELU(), nn.Linear(6, 3))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    counter = CompileCounterWithBackend(backend)
    step, losses = torch.compile(optimizer.step, backend=counter), []

    def run(recorder=None):
        torch.manual_seed(4)
        for _ in range(4):
            loss = model(torch.randn(16, 6)).square().mean()
            loss.backward()
            step()
            optimizer.zero_grad()
            losses.append(loss.item())
            if by_hand and recorder is not None:
                recorder.step()

    if not recorded:
        run()
        return losses, counter.frame_count, None
    warned = () if by_hand else ("parameters change between forward passes, but no optimizer step",)
    with record(model, warned=warned, may_warn=("forward passes, but no optimizer step of the model",)) as recorder:
        run(recorder)
    return losses, counter.frame_count, recorder


def demand_that_compiled_steps_are_named_and_can_be_stated(backend, record):
    losses, frames, _ = stepped(backend, recorded=False, by_hand=False, record=record)
    for by_hand in (False, True):
        found, compiled, recorder = stepped(backend, recorded=True, by_hand=by_hand, record=record)
        assert found == losses
        assert compiled == frames
        assert recorder.step_count == (4 if by_hand else 0)
        if by_hand:
            assert recorder.warnings == []
            assert recorder.recording["layers"].step.values.tolist() == [0, 1, 2, 3]


def test_a_compiled_optimizer_step_keeps_its_bits_is_named_and_can_be_stated(record):
    demand_that_compiled_steps_are_named_and_can_be_stated("aot_eager", record)


@pytest.mark.slow
def test_an_optimizer_step_compiled_by_inductor_keeps_its_bits_is_named_and_can_be_stated(record, compiler):
    demand_that_compiled_steps_are_named_and_can_be_stated("inductor", record)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["part", "in place"])
def test_functions_are_recorded_around_a_part_compiled_by_inductor_with_its_bits(record, train, compiler, how):
    class Mixed(nn.Module):
        takes = (6,)

        def __init__(self):
            super().__init__()
            torch.manual_seed(3)
            self.first, part = nn.Linear(6, 6), nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3))
            self.part = torch.compile(part) if how == "part" else part
            if how == "in place":
                part.compile()

        def forward(self, x):
            return self.part(torch.relu(self.first(x)))

    losses = []
    for functional in (False, True):
        torch._dynamo.reset()
        model = Mixed()
        torch.manual_seed(4)
        with record(model, functional=functional, warned=[OPAQUE if how == "part" else IN_PLACE]) as recorder:
            losses.append(train(model, 3))
    assert losses[0] == losses[1]
    assert "(root):relu" in recorder.recording["layers"].layer.values


@pytest.mark.parametrize("due", [True, False])
def test_an_export_is_that_of_the_model_without_a_recorder(record, due):
    model, x = Student(), torch.randn(16, 6)
    bare = torch.export.export(model, (x,))
    with record(model, every=10, may_warn=[NO_STEP]) as recorder:
        with nullcontext() if due else recorder.pause():
            exported = torch.export.export(model, (x,))
        assert recorder.warnings == []
    assert exported.graph_module.code == bare.graph_module.code


def compiled_somewhere(where, backend, *, fullgraph=True):
    """A model to train, what to call, what to record, a teacher or None, and the count of compilations."""
    counter, teacher = CompileCounterWithBackend(backend), None
    model = net() if where == "container" else Student()
    called = recorded = model
    if where in ("whole", "container"):
        called = recorded = torch.compile(model, backend=counter, fullgraph=fullgraph)
    elif where == "part":
        model.part = torch.compile(model.part, backend=counter, fullgraph=fullgraph)
    elif where == "part in place":
        model.part.compile(backend=counter, fullgraph=fullgraph)
    elif where == "unrecorded teacher":
        teacher = torch.compile(Student(), backend=counter, fullgraph=fullgraph)
    return model, called, recorded, teacher, counter


def no_context():
    return nullcontext()


def trained(where, backend, around, record, *, every, steps, fullgraph=True):
    """Losses and compilations of a run with a recorder, or without one where ``record`` is None."""
    torch._dynamo.reset()
    model, called, recorded, teacher, counter = compiled_somewhere(where, backend, fullgraph=fullgraph)
    optimizer, losses = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9), []
    with nullcontext() if record is None else record(recorded, every=every, may_warn=[OPAQUE, IN_PLACE]) as recorder:
        # After entering, which may draw what it likes.
        torch.manual_seed(4)
        pause, evaluation = (no_context,) * 2 if recorder is None else (recorder.pause, recorder.evaluation)
        for step in range(steps):
            x, y = torch.randn(16, 6), torch.randint(3, (16,))
            with pause() if around == "pauses" and step % 2 else nullcontext():
                output = called(x)
                loss = F.cross_entropy(output, y)
                if teacher is not None:
                    loss = loss + F.mse_loss(output, teacher(x).detach())
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                losses.append(loss.item())
            if around == "evaluations" and step % 5 == 4:
                with evaluation(), torch.no_grad():
                    losses.append(called(x).sum().item())
    return losses, counter.frame_count


WHERE = ["whole", "container", "part", "part in place", "unrecorded teacher"]


LOOPS = [(10, ""), (2, ""), (1, "pauses"), (10, "evaluations")]
QUICK = [
    ("whole", 10, ""),
    ("container", 1, "pauses"),
    ("part", 2, ""),
    ("part in place", 10, "evaluations"),
    ("unrecorded teacher", 10, ""),
]


@pytest.mark.parametrize(
    ("where", "every", "around"),
    [but_slow(where, *loop, unless=(where, *loop) in QUICK) for where in WHERE for loop in LOOPS],
)
def test_whether_a_step_is_due_compiles_nothing_again(record, where, every, around):
    bare = trained(where, "eager", around, None, every=every, steps=100)
    assert bare[1] == (2 if around == "evaluations" and where != "unrecorded teacher" else 1)
    assert trained(where, "eager", around, record, every=every, steps=100) == bare


@pytest.mark.parametrize(
    ("where", "every"),
    [but_slow(where, every, unless=(where, every) == ("part", 10)) for where in WHERE for every in (10, 2)],
)
def test_beyond_dynamos_limit_inductors_bits_are_those_of_the_run_without_a_recorder(record, compiler, where, every):
    options = {"every": every, "steps": 100, "fullgraph": False}
    assert trained(where, "inductor", "", record, **options) == trained(where, "inductor", "", None, **options)


def once(module):
    return lambda: module(torch.randn(16, 6))


def compilations(counter, run):
    before = counter.frame_count
    run()
    return counter.frame_count - before


def many_recordings(record, model, run):
    for _ in range(torch._dynamo.config.recompile_limit + 2):
        with record(model, every=10, may_warn=[OPAQUE, IN_PLACE]):
            run()


@pytest.mark.parametrize("where", WHERE)
def test_entering_and_leaving_compile_nothing_again_that_was_compiled_before(record, where):
    _, called, recorded, teacher, counter = compiled_somewhere(where, "eager")
    run = once(called if teacher is None else teacher)
    run()
    assert compilations(counter, lambda: many_recordings(record, recorded, run)) == 0
    assert compilations(counter, run) == 0


@pytest.mark.parametrize("where", WHERE)
def test_what_was_compiled_while_recording_is_compiled_once_more_after_it(record, where):
    _, called, recorded, teacher, counter = compiled_somewhere(where, "eager")
    run = once(called if teacher is None else teacher)
    assert compilations(counter, lambda: many_recordings(record, recorded, run)) == 1
    assert compilations(counter, run) == 1
    assert compilations(counter, lambda: many_recordings(record, recorded, run)) == 0


def test_a_recorder_within_another_compiles_nothing_again(record):
    _, called, recorded, _, counter = compiled_somewhere("part", "eager")
    run = once(called)
    with record(recorded, may_warn=[OPAQUE, NO_STEP]):
        run()
        with record(recorded, may_warn=[OPAQUE, NO_STEP]):
            run()
        run()
    assert counter.frame_count == 1
