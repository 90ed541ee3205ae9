"""What modules return: values that are known by hand, every container, and everything that is no float tensor."""

from collections import OrderedDict, namedtuple
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from covshift.schema import Mode, Status


def test_case_11_units_killed_by_their_bias_are_zero_in_every_example(record, train):
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    with torch.no_grad():
        model[0].bias[[1, 5]] = -1e3
    with record(model) as recorder:
        train(model)
    units = recorder.recording["units"].to_dataset().sel(step=0, signal="activation")
    mine = units.isel(unit=units["layer_index"].values == list(recorder.recording["layers"].layer.values).index("1"))
    dead = mine["unit_zero_count"].values == mine["unit_count"].values
    assert dead[[1, 5]].all()
    assert mine["unit_count"].values.tolist() == [16] * 8
    assert mine["unit_active_examples"].values[[1, 5]].tolist() == [0, 0]
    assert (mine["unit_active_examples"].values == 16 - mine["unit_zero_count"].values).all()


def test_case_12_a_net_of_two_by_two_has_the_rates_computed_by_hand(record, cell):
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        model[0].weight[:] = torch.tensor([[1.0, -1.0], [1.0, 1.0]])
        model[2].weight[:] = torch.tensor([[2.0, -3.0]])
    with record(model) as recorder:
        # z = [[1, 3], [-1, 3], [0, 2]]; relu keeps 4 of 6; dL/da is (2, -3) in each row, and passes where z > 0.
        model(torch.tensor([[2.0, 1.0], [1.0, 2.0], [1.0, 1.0]])).sum().backward()
        recorder.step()
    expected = {
        ("0", "activation"): (1, 1, 8.0),
        ("1", "activation"): (2, 0, 9.0),
        ("1", "activation_grad"): (0, 3, -3.0),
        ("0", "activation_grad"): (2, 3, -7.0),
        ("2", "activation_grad"): (0, 0, 3.0),
    }
    for (layer, signal), (zeros, negative, total) in expected.items():
        at = {"layer": layer, "signal": signal}
        assert cell(recorder.recording, "zero_count", **at) == zeros
        assert cell(recorder.recording, "negative_count", **at) == negative
        assert cell(recorder.recording, "sum", **at) == pytest.approx(total, rel=1e-14)
    assert cell(recorder.recording, "structural_zero_count", layer="1", signal="preactivation") == 2


class Given(nn.Module):
    """Returns whatever it was told to."""

    def __init__(self, make):
        super().__init__()
        self.make = make

    def forward(self, x):
        return self.make(x)


def recorded_output(record, make, *, warned=()):
    model = Given(make)
    with record(model, warned=warned) as recorder:
        model(torch.ones(4, 6))
        recorder.step()
    return recorder.recording


def test_case_13_negative_zero_is_zero_and_nan_is_not(record, cell):
    values = torch.tensor([[0.0, -0.0, float("nan"), float("inf"), -float("inf"), 1e-45, -2.0]])
    recording = recorded_output(record, lambda x: values.expand(4, 7).clone())
    names = ("count", "zero_count", "nan_count", "posinf_count", "neginf_count", "negative_count", "subnormal_count")
    found = {name: cell(recording, name, layer="(root)", signal="activation") / 4 for name in names}
    assert found == {
        "count": 7,
        "zero_count": 2,
        "nan_count": 1,
        "posinf_count": 1,
        "neginf_count": 1,
        "negative_count": 2,
        "subnormal_count": 1,
    }
    assert cell(recording, "sum", layer="(root)", signal="activation") == pytest.approx(-8)


@dataclass
class Both:
    left: torch.Tensor
    right: float


class ModelOutput(OrderedDict):
    """Like the outputs of transformers: a mapping and a dataclass at once."""


Pair = namedtuple("Pair", ["first", "second"])


@dataclass
class Logits(ModelOutput):
    logits: torch.Tensor

    def __post_init__(self):
        self["logits"] = self.logits


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda x: (x + 1, x + 2), ["(root):0", "(root):1"]),
        (lambda x: [x + 1, (x + 2, None)], ["(root):0", "(root):1.0"]),
        (lambda x: {"a": x + 1, "b": {"c": x + 2}}, ["(root):a", "(root):b.c"]),
        (lambda x: Both(x + 1, 0.5), ["(root):left"]),
        (lambda x: Pair(x + 1, x + 2), ["(root):first", "(root):second"]),
        (lambda x: Logits(x + 1), ["(root):logits"]),
        (lambda x: None, []),
        (lambda x: 7, []),
        (lambda x: "text", []),
    ],
    ids=["tuple", "list", "dict", "dataclass", "namedtuple", "mapping and dataclass", "None", "int", "str"],
)
def test_case_14_every_float_tensor_of_an_output_is_recorded_once(record, cell, make, names):
    recording = recorded_output(record, make)
    assert recording["layers"].layer.values.tolist() == ["(input)", *names]
    for index, name in enumerate(names):
        assert cell(recording, "count", layer=name, signal="activation") == 24
        assert cell(recording, "sum", layer=name, signal="activation") == 24 * (2 + index)


def test_case_15_of_a_packed_sequence_only_the_data_is_recorded(record, assert_row):
    lengths = [5, 3, 2]
    packed = nn.utils.rnn.pack_sequence([torch.randn(n, 4) for n in lengths])
    model = nn.LSTM(4, 7)
    with record(model, may_warn=("is not the batch",)) as recorder:
        output, _ = model(packed)
        output.data.sum().backward()
        recorder.step()
    layers = recorder.recording["layers"]
    assert {"(root):0.data", "(root):1.0", "(root):1.1"} <= set(layers.layer.values.tolist())
    assert not any(part in name for name in layers.layer.values for part in ("batch_sizes", "indices"))
    assert_row(recorder.recording, output.data, layer="(root):0.data", signal="activation")
    assert_row(recorder.recording, torch.ones(sum(lengths), 7), layer="(root):0.data", signal="activation_grad")


UNSUPPORTED = {
    "sparse": lambda x: x.to_sparse(),
    "quantized": lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8),
    "meta": lambda x: torch.empty_like(x, device="meta"),
    "integer": lambda x: x.long(),
    "bool": lambda x: x > 0,
    "complex": lambda x: torch.complex(x, x),
    "nested": lambda x: torch.nested.nested_tensor([x[:2], x[2:]]),
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage:UserWarning")
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
@pytest.mark.parametrize("kind", UNSUPPORTED)
def test_case_16_what_is_no_strided_float_tensor_is_left_out_with_one_named_warning(record, train, kind):
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.odd = nn.Linear(6, 3), Given(UNSUPPORTED[kind])

        def forward(self, x):
            self.odd(x)
            return self.linear(x)

    with record(model := Mixed(), warned=("layer 'odd'",)) as recorder:
        train(model, 2)
    assert len(recorder.warnings) == 1
    assert recorder.recording["layers"].layer.values.tolist() == ["(input)", "linear"]
    assert (recorder.recording["layers"]["count"].sel(layer="linear", signal="activation_grad") == 48).all()


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage:UserWarning")
@pytest.mark.parametrize("example_axis", [0, 1])
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged], ids=str)
@pytest.mark.parametrize(("layers", "left_out"), [(None, ("inner", "drop")), ("drop", ("drop",)), ("head", ())])
def test_a_model_that_is_given_nested_tensors_is_recorded_where_they_have_been_padded(
    record, assert_row, layout, layers, left_out, example_axis
):
    class Pads(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.drop, self.head = nn.Linear(6, 8), nn.Dropout(0.0), nn.Linear(8, 2)

        def forward(self, x):
            return self.head(torch.nested.to_padded_tensor(self.drop(self.inner(x)), 0.0))

    model, parts = Pads(), [torch.randn(3, 6), torch.randn(5, 6)]
    said = [f"layer '{name}': output of torch.float32, nested on cpu" for name in left_out]
    with record(model, layers=layers, example_axis=example_axis, warned=said) as recorder:
        y = model(torch.nested.nested_tensor(parts, layout=layout))
        y.sum().backward()
        recorder.step()
    assert y.shape == (2, 5, 2)
    assert len(recorder.warnings) == len(left_out)
    if layers != "drop":
        assert_row(recorder.recording, y, layer="head", signal="activation")


@pytest.mark.parametrize("split", [lambda x: x.chunk(2, 1), lambda x: x.split([2, 4], 1)], ids=["chunk", "split"])
def test_case_17_an_output_that_nobody_used_says_so(record, assert_row, status, cell, split):
    class Splits(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.split = nn.Linear(6, 6), Given(split)

        def forward(self, x):
            return 3 * self.split(self.linear(x))[0]

    model, x = Splits(), torch.randn(4, 6)
    with record(model) as recorder:
        model(x).sum().backward()
        recorder.step()
    used, unused = split(torch.full((4, 6), 3.0))
    assert_row(recorder.recording, used, layer="split:0", signal="activation_grad")
    assert status(recorder.recording, "split:1") == Status.UNUSED_OUTPUT
    assert cell(recorder.recording, "count", layer="split:1", signal="activation_grad") == 0
    # The zeros that autograd fills in for the unused part are part of the gradient of what was split.
    assert cell(recorder.recording, "zero_count", layer="linear", signal="activation_grad") == unused.numel()


class Plain:
    """An object that is no container known to anybody."""

    def __init__(self, tensor):
        self.tensor = tensor


class Around(nn.Module):
    """A module around a leaf that returns something odd, or that returns something odd itself."""

    def __init__(self, make, *, by_leaf, hands_on=False):
        super().__init__()
        self.linear, self.inner, self.by_leaf = nn.Linear(6, 6), Given(make), by_leaf
        self.make, self.hands_on = make, hands_on

    def forward(self, x):
        h = self.linear(x)
        odd = self.inner(h) if self.by_leaf else self.make(h)
        return (h * 2, odd) if self.hands_on or not self.by_leaf else h * 2


ODD = {
    "complex": (torch.fft.fft, "output of torch.complex64", "", ["inner"]),
    "sparse": (lambda h: h.to_sparse(), "output of torch.float32, torch.sparse_coo", "", ["inner"]),
    "an object": (Plain, "returned an object of type Plain", "", ["inner", "(root):1"]),
    "an object among others": (
        lambda h: {"of": (h + 1, Plain(h)), "n": 3},
        "returned an object of type Plain",
        "of.1",
        ["inner:of.1", "(root):1.of.1"],
    ),
}


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("where", ["by a leaf", "by a leaf and handed on", "by the model itself"])
def test_what_is_not_recorded_of_an_output_is_named_once_whoever_returned_it(record, kind, where):
    make, said, path, handed_on = ODD[kind]
    model = Around(make, by_leaf=where != "by the model itself", hands_on=where == "by a leaf and handed on")
    with record(model, warned=(said,), may_warn=("called inner",)) as recorder:
        for _ in range(2):
            model(torch.randn(16, 6))
            recorder.step()
    expected = {
        "by a leaf": handed_on[:1],
        "by a leaf and handed on": handed_on,
        "by the model itself": [f"(root):1.{path}".rstrip(".")],
    }
    assert [message.split("'")[1] for message in recorder.warnings if said in message] == expected[where]


@pytest.mark.parametrize(
    "returned", [None, 7, 2.5, "text", torch.float32, (3, None), {"a": True}, torch.Size([2]), Mode.TRAIN]
)
def test_numbers_text_and_the_like_in_an_output_are_not_named(record, returned):
    assert recorded_output(record, lambda x: (x * 2, returned))["layers"].layer.values.tolist() == [
        "(input)",
        "(root):0",
    ]


def test_indices_lengths_and_masks_that_a_model_hands_on_are_not_named(record):
    model = Around(lambda h: (h > 0, h.argmax(1), torch.tensor([6])), by_leaf=False)
    with record(model, may_warn=("called inner",)) as recorder:
        model(torch.randn(16, 6))
        recorder.step()
