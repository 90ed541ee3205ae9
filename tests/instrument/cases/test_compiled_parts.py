"""What is seen of a model of which something is compiled, and what its user is told. Oracle: the same model, eager."""

import pytest
import torch
import torch.distributed as dist
import xarray as xr
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from covshift.schema import Status

pytestmark = [
    pytest.mark.usefixtures("no_code_compiled_before"),
    pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning"),
    pytest.mark.filterwarnings("ignore:Using `torch.compile.module.` when there are global hooks:UserWarning"),
]

OPAQUE = "compiled, so only their own outputs can be seen: "
IN_PLACE = "compiled in place, so not even their outputs can be seen: "
UNSEEN = "no forward pass of it was seen: compiled in place, wrapped"
INSIDE = "To see inside, compile only the parts you need not see, or let record(probe=) run a batch uncompiled"
AROUND = {"(input)", "0", "2"}


def net():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 6), nn.Sequential(nn.Linear(6, 6), nn.ReLU()), nn.Linear(6, 3))


def loss_of(output):
    return output.square().mean()


def train(model, parameters, steps=4):
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    for _ in range(steps):
        loss_of(model(torch.randn(16, 6))).backward()
        optimizer.step()
        optimizer.zero_grad()


def compile_before(how):
    """A model of which something is compiled already."""
    model = net()
    if how == "whole":
        model = torch.compile(model, backend="eager")
    elif how == "part":
        model[1] = torch.compile(model[1], backend="eager")
    elif how == "part in place":
        model[1].compile(backend="eager")
    elif how == "scripted part":
        model[1] = torch.jit.script(model[1])
    return model


@pytest.mark.parametrize(
    ("how", "said", "seen"),
    [
        ("whole", OPAQUE + "(root). ", {"(input)", "(root)"}),
        ("part", OPAQUE + "1. ", AROUND | {"1"}),
        ("part in place", IN_PLACE + "1. ", AROUND),
        ("scripted part", OPAQUE + "1. ", AROUND | {"1"}),
    ],
)
def test_training_rows_are_of_what_lies_around_compiled_code_and_the_rest_is_named_once(record, how, said, seen):
    model = compile_before(how)
    with record(model, warned=[said]) as recorder:
        train(model, model.parameters())
    assert len(recorder.warnings) == 1
    assert INSIDE in recorder.warnings[0]
    layers = recorder.recording["layers"].to_dataset()
    assert set(layers["layer"].values) == seen
    outputs = layers.sel(layer=sorted(seen - {"(input)"}))
    assert (outputs["status"].sel(signal=["activation", "activation_grad"]) == Status.OK).all()
    assert recorder.recording["parameters"].sizes["step"] == 4


@pytest.mark.parametrize("how", ["whole", "part", "part in place"])
def test_a_probe_sees_inside_what_the_eager_model_gives(record, how):
    x = torch.randn(32, 6, generator=torch.Generator().manual_seed(1))
    model, eager = compile_before(how), net()
    with record(
        model, probe=(x, loss_of), probe_every=2, warned=[OPAQUE if how != "part in place" else IN_PLACE]
    ) as rec:
        train(model, model.parameters())
    probe = rec.recording["probe/layers"].to_dataset()
    inner = next(name for name in probe["layer"].values if str(name).replace("_orig_mod.", "") == "1.1")
    output = eager[1](eager[0](x))
    output.retain_grad()
    loss_of(eager[2](output)).backward()
    row = probe.sel(layer=inner, step=0)
    for signal, tensor in (("activation", output.detach()), ("activation_grad", output.grad)):
        assert float(row["sum"].sel(signal=signal)) == pytest.approx(float(tensor.double().sum()), rel=1e-6)
        assert int(row["zero_count"].sel(signal=signal)) == int((tensor == 0).sum())
    assert probe["step"].values.tolist() == [0, 2, 4]


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("functional", [False, True])
def test_a_call_of_what_was_compiled_stands_for_one_of_the_model_that_is_recorded(record, when, functional):
    """Rows equal those of the compiled module recorded itself, under the names of the model."""
    recordings = []
    for recorded in ("model", "compiled"):
        torch._dynamo.reset()
        model = net()
        compiled = torch.compile(model, backend="eager") if when == "before" or recorded == "compiled" else None
        torch.manual_seed(4)
        target = model if recorded == "model" else compiled
        with record(target, functional=functional, warned=[OPAQUE + "(root). "]) as recorder:
            train(compiled or torch.compile(model, backend="eager"), model.parameters())
        assert len(recorder.warnings) == 1
        recordings.append(recorder.recording)
    ours, theirs = recordings
    xr.testing.assert_equal(*(one["layers"].to_dataset().drop_vars("module_type") for one in recordings))
    assert ours["layers"]["layer"].values.tolist() == ["(input)", "(root)"]
    renamed = theirs["parameters"].to_dataset()
    renamed["parameter"] = [name.removeprefix("_orig_mod.") for name in renamed["parameter"].values]
    xr.testing.assert_equal(ours["parameters"].to_dataset(), renamed)


@pytest.mark.parametrize("order", ["compiled around", "compiled inside"])
def test_a_compiled_model_shared_among_ranks_has_the_rows_of_its_own_output(record, order):
    """As trainers make it: ``torch.compile(DistributedDataParallel(model))``."""
    model = net()
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        if order == "compiled around":
            called = torch.compile(DistributedDataParallel(model), backend="eager")
        else:
            called = DistributedDataParallel(torch.compile(model, backend="eager"))
        with record(model, warned=[OPAQUE + "(root). "]) as recorder:
            train(called, model.parameters())
    finally:
        dist.destroy_process_group()
    layers = recorder.recording["layers"]
    assert layers["layer"].values.tolist() == ["(input)", "(root)"]
    assert (layers["count"].sel(layer="(root)", signal="activation_grad") == 16 * 3).all()


def test_a_probe_of_a_model_that_is_called_compiled_sees_its_functions(record):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.outer = nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, x):
            return self.outer(torch.relu(self.inner(x)))

    model = Model()
    compiled = torch.compile(model, backend="eager")
    options = {"functional": True, "probe": torch.randn(8, 6), "probe_every": 2}
    with record(model, warned=[OPAQUE + "(root). "], **options) as recorder:
        train(compiled, model.parameters())
    seen = recorder.recording["probe/layers"]["status"].sel(layer="(root):relu", signal="activation")
    assert (seen != Status.ABSENT).values.tolist() == [True, True, True]


def test_a_part_compiled_while_recording_goes_on_as_its_layer(record):
    """Eager at the first step, compiled at the others, the part's rows have one name, and nothing is called unused."""
    model = net()
    # torch.compile puts _orig_mod into the names of the part's parameters, which the recording does not know.
    renamed = "parameters are absent at step 1: the model has none of the name and shape of 1.0.weight, 1.0.bias"
    with record(model, warned=[OPAQUE + "1. ", renamed]) as recorder:
        train(model, model.parameters(), steps=1)
        model[1] = torch.compile(model[1], backend="eager")
        train(model, model.parameters(), steps=3)
    assert len(recorder.warnings) == 2
    arrived = recorder.recording["layers"]["status"].sel(signal="activation_grad") == Status.OK
    assert arrived.sel(layer=["0", "2"]).all()
    # Eager, the part gives what its last layer gave, whose row that is.
    assert arrived.sel(layer="1.1").values.tolist() == [True, False, False, False]
    assert arrived.sel(layer="1").values.tolist() == [False, True, True, True]


def test_where_dynamo_leaves_the_code_alone_the_layers_inside_are_recorded(record):
    """As after too many compilations, or with the stance of a debugging session."""
    model, compiled = net(), torch.compile(net(), backend="eager")
    with record(model) as recorder:
        torch.manual_seed(0)
        train(model, model.parameters())
    expected = recorder.recording["layers"].to_dataset()
    with (
        torch.compiler.set_stance("force_eager"),
        record(compiled._orig_mod, warned=[OPAQUE + "(root). "]) as recorder,
    ):
        torch.manual_seed(0)
        train(compiled, compiled.parameters())
    seen = recorder.recording["layers"].to_dataset().sel(layer=expected["layer"])
    for name in ("count", "sum", "m2", "zero_count"):
        xr.testing.assert_equal(seen[name].drop_attrs(), expected[name].drop_attrs())


def test_a_model_that_compiles_its_own_call_is_named_and_has_no_rows(record):
    model = net()
    model.compile(backend="eager")
    with record(model, warned=[IN_PLACE + "(root). ", UNSEEN]) as recorder:
        train(model, model.parameters())
    assert recorder.recording["layers"].sizes["step"] == 0


def test_what_is_compiled_in_place_while_recording_is_named_at_its_end_and_nothing_is_called_unused(record):
    model = net()
    with record(model, warned=[IN_PLACE + "1. "]) as recorder:
        model[1].compile(backend="eager")
        train(model, model.parameters())
    assert len(recorder.warnings) == 1
