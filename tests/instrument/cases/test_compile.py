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
