"""torch.compile: the compiled model's own bits, no graph break, no recompilation, and the opaque part named."""

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

# Tracing reads .grad of inner tensors, and sees global hooks; torch warns of both, and inductor of torch's own scripts.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning"),
    pytest.mark.filterwarnings("ignore:Using `torch.compile.module.` when there are global hooks:UserWarning"),
]

OPAQUE = "compiled, so only their own outputs can be seen"
UNSEEN = "no forward pass of it was seen"


@pytest.fixture(autouse=True)
def _no_compiled_code_of_other_tests():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def net():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 6), nn.Sequential(nn.Linear(6, 6), nn.GELU()), nn.Linear(6, 3))


def counted(module, backend):
    """The module compiled in one graph (a break is an error), and the count of its compilations."""
    counter = CompileCounterWithBackend(backend)
    return torch.compile(module, backend=counter, fullgraph=True), counter


def bare_losses(train, backend):
    torch._dynamo.reset()
    compiled, counter = counted(model := net(), backend)
    torch.manual_seed(4)
    return train(model, 4, forward=compiled), model.state_dict(), counter.frame_count


def demand_the_bits_of_the_compiled_run(train, record, backend, *, when):
    losses, state, frames = bare_losses(train, backend)
    torch._dynamo.reset()
    compiled, counter = counted(model := net(), backend)
    if when == "before record, after its first run":
        compiled(torch.randn(16, 6)).sum().backward()
        model.zero_grad()
    recorded, texts = (model, [UNSEEN]) if when == "after record" else (compiled, [OPAQUE])
    torch.manual_seed(4)
    with record(recorded, warned=texts, may_warn=[OPAQUE, UNSEEN]) as recorder:
        assert train(model, 4, forward=compiled) == losses
    assert all(torch.equal(model.state_dict()[name], value) for name, value in state.items())
    assert counter.frame_count == frames == 1
    assert recorder.step_count == 4


WHEN = ["after record", "before record", "before record, after its first run"]


@pytest.mark.parametrize("when", WHEN)
def test_case_31_a_compiled_model_keeps_its_bits_and_its_one_graph(train, record, when):
    demand_the_bits_of_the_compiled_run(train, record, "aot_eager", when=when)


@pytest.mark.slow
@pytest.mark.parametrize("when", WHEN)
def test_a_model_compiled_by_inductor_keeps_its_bits_and_its_one_graph(train, record, compiler, when):
    demand_the_bits_of_the_compiled_run(train, record, "inductor", when=when)


def test_what_a_compiled_model_returns_is_recorded(record, train, assert_row):
    compiled, _ = counted(net(), "eager")
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
        with record(model, functional=functional, warned=[OPAQUE]) as recorder:
            losses.append(train(model, 3))
    assert losses[0] == losses[1]
    assert "(root):relu" in recorder.recording["layers"].layer.values
