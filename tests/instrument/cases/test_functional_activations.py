"""Activations that are functions: recorded on request under the module that calls them, else stated invisible."""

import copy
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import BaseTorchFunctionMode

import covshift
from covshift.exceptions import CovshiftWarning
from covshift.schema import Status

FUNCTIONS = {
    "F.relu": (F.relu, nn.ReLU()),
    "torch.relu": (torch.relu, nn.ReLU()),
    "tensor.relu": (lambda z: z.relu(), nn.ReLU()),
    "tensor.relu_": (lambda z: z.relu_(), nn.ReLU()),
    "F.relu in place": (lambda z: F.relu(z, inplace=True), nn.ReLU()),
    "clamp": (lambda z: z.clamp(min=0), nn.ReLU()),
    "torch.clamp": (lambda z: torch.clamp(z, min=0), nn.ReLU()),
    "clamp_min": (lambda z: z.clamp_min(0), nn.ReLU()),
    "gelu": (F.gelu, nn.GELU()),
    "silu": (F.silu, nn.SiLU()),
    "elu": (F.elu, nn.ELU()),
    "leaky_relu": (lambda z: F.leaky_relu(z, 0.1), nn.LeakyReLU(0.1)),
    "F.sigmoid": (F.sigmoid, nn.Sigmoid()),
    "torch.sigmoid": (torch.sigmoid, nn.Sigmoid()),
    "tensor.sigmoid": (lambda z: z.sigmoid(), nn.Sigmoid()),
    "torch.tanh": (torch.tanh, nn.Tanh()),
    "tensor.tanh": (lambda z: z.tanh(), nn.Tanh()),
}
NAMED = {
    "F.relu": "relu",
    "torch.relu": "relu",
    "gelu": "gelu",
    "silu": "silu",
    "elu": "elu",
    "leaky_relu": "leaky_relu",
}


class Net(nn.Module):
    takes = (6,)

    def __init__(self, act):
        super().__init__()
        torch.manual_seed(3)
        self.first, self.act, self.last = nn.Linear(6, 8), act, nn.Linear(8, 3)

    def forward(self, x):
        return self.last(self.act(self.first(x)))


def functional(recording):
    return [name for name in recording["layers"].layer.values.tolist() if name.split(":")[0] != name]


def numbers(recording, layer, signal):
    """The row of a signal, read at its producer where it is kept there."""
    layers = recording["layers"].to_dataset()
    if layers["status"].sel(layer=layer, signal=signal).isel(step=0) == Status.UNDER_PRODUCER:
        producer = layers["preactivation_of"].sel(layer=layer).item()
        layer, signal = producer, signal.replace("preactivation", "activation")
    row = layers.sel(layer=layer, signal=signal)
    return {name: row[name].values for name in ("count", "zero_count", "negative_count", "sum", "m2", "min", "max")}


@pytest.mark.parametrize("form", FUNCTIONS)
def test_case_47_a_function_is_recorded_like_the_module_of_the_same_name(record, train, form):
    function, module = FUNCTIONS[form]
    recordings = []
    for act, options in ((module, {}), (function, {"functional": True})):
        torch.manual_seed(4)
        model = Net(act)
        torch.manual_seed(5)
        with record(model, **options) as recorder:
            train(model, 2)
        recordings.append(recorder.recording)
    expected, found = recordings
    (layer,) = functional(found)
    assert layer.startswith("(root):")
    if form in NAMED:
        assert layer == f"(root):{NAMED[form]}"
    for signal in ("preactivation", "activation", "activation_grad", "preactivation_grad"):
        for name, values in numbers(expected, "act", signal).items():
            np.testing.assert_array_equal(numbers(found, layer, signal)[name], values, err_msg=f"{signal} {name}")


class Nested(nn.Module):
    takes = (6,)

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.layers = nn.ModuleList(Twice() for _ in range(2))
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.head(F.relu(F.relu(x) - 0.1))


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 6)

    def forward(self, x):
        return F.gelu(F.gelu(self.linear(x)))


def test_functions_are_named_by_their_enclosing_module_and_counted_within_one_forward(record, train):
    with record(model := Nested(), functional=True) as recorder:
        train(model, 2)
    assert functional(recorder.recording) == [
        "layers.0:gelu",
        "layers.0:gelu#1",
        "layers.1:gelu",
        "layers.1:gelu#1",
        "(root):relu",
        "(root):relu#1",
    ]
    assert recorder.recording["layers"].sizes["step"] == 2


def test_inside_a_module_that_is_an_activation_nothing_is_recorded_twice(build, record, train, layers_equal):
    recordings = []
    for options in ({}, {"functional": True}):
        model = build("perceptron")
        torch.manual_seed(4)
        with record(model, **options) as recorder:
            train(model, 2)
        recordings.append(recorder.recording)
    layers_equal(*recordings)


class Attention(nn.Module):
    takes = (5, 6)

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.project, self.head = nn.Linear(6, 18), nn.Linear(6, 3)

    def forward(self, x):
        attended = F.scaled_dot_product_attention(*self.project(x).chunk(3, -1))
        return self.head(attended.mean(1))


def test_attention_is_recorded_as_a_function(record, assert_row):
    model, x = Attention(), torch.randn(16, 5, 6)
    with record(model, functional=True) as recorder:
        model(x).sum().backward()
        recorder.step()
    (layer,) = functional(recorder.recording)
    assert layer == "(root):scaled_dot_product_attention"
    attended = F.scaled_dot_product_attention(*model.project(x).chunk(3, -1))
    slope = model.head.weight.sum(0).expand(16, 5, 6) / 5
    assert_row(recorder.recording, attended, layer=layer, signal="activation")
    found = recorder.recording["layers"].sel(layer=layer, signal="activation_grad", step=0)
    assert found["count"].item() == slope.numel()
    assert found["sum"].item() == pytest.approx(slope.double().sum().item(), rel=1e-5)


@pytest.mark.parametrize("kind", ["transformer", "three consumers", "recurrent"])
def test_training_bits_are_unchanged_with_functions_recorded(build, train, unchanged, kind):
    recorder = unchanged(
        lambda: build(kind), lambda model: train(model, 5), functional=True, may_warn=("out_proj", "is not the batch")
    )
    if kind == "transformer":
        assert {"encoder.layers.0:relu", "encoder.layers.1:relu"} <= set(functional(recorder.recording))
    if kind == "three consumers":
        assert functional(recorder.recording) == ["branches:tanh", "branches:sigmoid"]


def test_inference_is_left_alone_and_outside_of_the_model_nothing_is_recorded(record, train):
    model = Net(F.relu)
    with record(model, functional=True) as recorder:
        F.relu(torch.randn(16, 8, requires_grad=True)).sum().backward()
        with torch.no_grad(), recorder.evaluation():
            model(torch.randn(16, 6))
        assert torch._C._len_torch_function_stack() == 0
        train(model)
    assert functional(recorder.recording) == ["(root):relu"]
    counts = recorder.recording["layers"]["count"].sel(layer="(root):relu", signal="activation")
    assert counts.values.tolist() == [16 * 8]
    evaluated = recorder.recording["evaluation/layers"]
    assert "(root):relu" not in evaluated.layer or not evaluated["count"].sel(layer="(root):relu").any()


def test_a_function_that_raises_leaves_no_mode_behind(record):
    def act(z):
        raise KeyboardInterrupt

    model = Net(act)
    with record(model, functional=True), pytest.raises(KeyboardInterrupt):
        model(torch.randn(16, 6))
    assert torch._C._len_torch_function_stack() == 0


@pytest.mark.parametrize("kind", [nn.TransformerEncoderLayer, nn.TransformerDecoderLayer])
def test_stock_layers_with_a_functional_activation_are_stated_invisible_once(record, kind):
    layers = nn.ModuleList(kind(8, 2, 16, batch_first=True) for _ in range(2))
    with record(layers, warned=["functional=True"]) as recorder:
        pass
    assert len(recorder.warnings) == 1


def test_stock_layers_whose_activation_is_a_module_are_not_invisible(record):
    with record(nn.TransformerEncoderLayer(8, 2, 16, activation=nn.GELU())) as recorder:
        pass
    assert recorder.warnings == []


def test_without_the_request_functions_are_not_recorded(record, train):
    with record(model := Net(F.relu)) as recorder:
        train(model)
    assert recorder.recording["layers"].layer.values.tolist() == ["(input)", "first", "last"]


def test_a_copy_records_no_functions(record):
    model = Net(F.relu)
    with record(model, functional=True) as recorder:
        copy.deepcopy(model)(torch.randn(16, 6)).sum().backward()
        recorder.step()
    assert functional(recorder.recording) == []


def test_a_frozen_transformer_in_evaluation_mode_keeps_its_bits_and_functions_are_left_out(batch):
    """Its fused path is taken with gradients enabled, too, and any function mode would switch it off."""
    outputs = []
    for functional in (False, True):
        torch.manual_seed(0)
        encoder = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 1, enable_nested_tensor=False
        )
        model = nn.Sequential(encoder.eval().requires_grad_(False), nn.Linear(8, 2))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CovshiftWarning)
            with covshift.record(model, every=1, functional=functional) as recorder:
                outputs.append(model(torch.ones(3, 4, 8)))
        assert any("functional=True would change" in message for message in recorder.warnings) is functional
    assert torch.equal(*outputs)


def test_a_mode_that_the_user_leaves_on_top_does_not_keep_the_recorders_own_there():
    class Entered(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.mode = nn.Linear(4, 4), BaseTorchFunctionMode()

        def forward(self, x):
            self.mode.__enter__()
            return F.relu(self.inner(x))

    model = Entered()
    with covshift.record(model, every=1, functional=True) as recorder:
        try:
            model(torch.ones(2, 4)).sum().backward()
            left = torch.overrides._get_current_function_mode_stack()
        finally:
            model.mode.__exit__(None, None, None)
        recorder.step()
    assert left == [model.mode]
    assert "(root):relu" in recorder.recording["layers"].layer.values
