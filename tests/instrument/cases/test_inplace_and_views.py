"""In-place operations after a recorded tensor, and views: numbers are those of the out-of-place model."""

import weakref

import pytest
import torch
from torch import nn

from covshift.instrument.hooks import version_counter
from covshift.instrument.views import view_of
from covshift.schema import Status


def rectified(inplace):
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(inplace=inplace), nn.Linear(8, 3))


def test_case_08_an_in_place_relu_leaves_the_numbers_before_it_right(beside, assert_row):
    kept, recording = beside(rectified(inplace=True), rectified(inplace=False))
    for layer in ("0", "1", "2"):
        assert_row(recording, kept[layer][0].value, layer=layer, signal="activation")
        assert_row(recording, kept[layer][0].grad, layer=layer, signal="activation_grad")


class Residual(nn.Module):
    """ReLU6 saves its input for backward; ReLU saves its output, so that torch itself refuses the sum in place."""

    def __init__(self, *, inplace):
        super().__init__()
        torch.manual_seed(3)
        self.linear, self.act, self.head, self.inplace = nn.Linear(6, 6), nn.ReLU6(), nn.Linear(6, 3), inplace

    def forward(self, x):
        y = self.act(self.linear(x))
        if self.inplace:
            y += x
        else:
            y = y + x
        return self.head(y)


def test_case_09_a_sum_in_place_after_a_relu_leaves_the_relus_numbers_right(beside, assert_row, cell):
    kept, recording = beside(Residual(inplace=True), Residual(inplace=False))
    assert_row(recording, kept["act"][0].value, layer="act", signal="activation")
    assert_row(recording, kept["act"][0].grad, layer="act", signal="activation_grad")
    assert cell(recording, "zero_count", layer="act", signal="activation") > 0


def flattened(inplace):
    torch.manual_seed(3)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.ReLU(inplace=inplace), nn.Linear(64, 3))
    model.takes = (1, 6, 6)
    return model


def test_case_10_a_view_modified_in_place_has_its_gradient_from_its_base(beside, assert_row, status):
    kept, recording = beside(flattened(inplace=True), flattened(inplace=False))
    assert status(recording, "1") == Status.VIA_BASE
    assert_row(recording, kept["1"][0].grad, layer="1", signal="activation_grad")
    assert (kept["1"][0].grad == 0).any()


class Permuted(nn.Module):
    def __init__(self, *axes):
        super().__init__()
        self.axes = axes

    def forward(self, x):
        return x.permute(*self.axes)


class Scrambled(torch.autograd.Function):
    """Hands on what it is given, and a gradient that lies in memory in another order."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient.transpose(0, -1).contiguous().transpose(0, -1)


class Scrambles(nn.Module):
    def forward(self, x):
        return Scrambled.apply(x)


class Early(nn.Module):
    """Reads a view of its own input before it is modified in place, and after."""

    def __init__(self, *, inplace):
        super().__init__()
        self.flatten, self.inplace = nn.Flatten(), inplace

    def forward(self, x):
        flat = self.flatten(x)
        early = (3 * flat - 1).relu()
        return early + nn.functional.relu(flat, inplace=self.inplace)


class Doubled(nn.Module):
    def __init__(self, *, inplace):
        super().__init__()
        self.inplace = inplace

    def forward(self, x):
        return x.mul_(2) if self.inplace else x * 2


def linear_on_sequences(inplace):
    return (5, 4), nn.Linear(4, 6), nn.ReLU(inplace=inplace), nn.Linear(6, 3), nn.Flatten(), nn.Linear(15, 3)


def as_long_as_wide(inplace):
    conv = nn.Conv1d(2, 4, 3, padding=1)
    return (2, 4), conv, Permuted(0, 2, 1), nn.ReLU(inplace=inplace), nn.Flatten(), nn.Linear(16, 3)


def another_order(inplace):
    conv = nn.Conv2d(1, 4, 3).to(memory_format=torch.channels_last)
    tail = Scrambles(), nn.ReLU(inplace=inplace), Scrambles(), nn.Flatten(), nn.Linear(64, 3)
    return (1, 6, 6), conv, Permuted(0, 2, 3, 1), *tail[1:]


def one_view_after_another(inplace):
    first = nn.Linear(4, 6), Doubled(inplace=inplace), Permuted(0, 2, 1), nn.ReLU(inplace=inplace)
    return (6, 4), *first, nn.Flatten(), nn.Linear(36, 3)


def convolution_flattened(inplace):
    return (1, 6, 6), nn.Conv2d(1, 4, 3), nn.Flatten(), nn.ReLU(inplace=inplace), nn.Linear(64, 3)


def read_before(inplace):
    return (2, 4), nn.Conv1d(2, 4, 1), Early(inplace=inplace), nn.Linear(16, 3)


def recorded_units(recording, layer):
    units = recording["units"].to_dataset().sel(step=0, signal="activation_grad")
    place = recording["layers"].layer.values.tolist().index(layer)
    return units.isel(unit=units["layer_index"].values == place)


@pytest.mark.parametrize(
    ("parts", "layer"),
    [
        (linear_on_sequences, "0"),
        (as_long_as_wide, "1"),
        (convolution_flattened, "1"),
        (another_order, "1"),
        (one_view_after_another, "0"),
        (one_view_after_another, "2"),
        (read_before, "1.flatten"),
    ],
)
def test_a_view_modified_in_place_has_the_units_and_examples_of_the_twin_that_is_not(
    beside, assert_row, status, cell, parts, layer
):
    models = []
    for inplace in (True, False):
        torch.manual_seed(3)
        takes, *modules = parts(inplace)
        models.append(nn.Sequential(*modules))
        models[-1].takes = takes
    kept, recording = beside(*models)
    expected = kept[layer][0].grad
    assert status(recording, layer) == Status.VIA_BASE
    assert_row(recording, expected, layer=layer, signal="activation_grad")
    assert cell(recording, "example_count", layer=layer, signal="activation_grad") == len(expected) == 16
    axis = recording["layers"]["unit_axis"].sel(layer=layer).item()
    by_unit = expected.movedim(axis, 0).flatten(1).double()
    units = recorded_units(recording, layer)
    zeros = (by_unit == 0).sum(1)
    assert zeros.unique().numel() > 1
    assert units["unit_zero_count"].values.tolist() == zeros.tolist()
    assert units["unit_positive_count"].values.tolist() == (by_unit > 0).sum(1).tolist()
    torch.testing.assert_close(
        torch.from_numpy(units["unit_mean"].values).double(), by_unit.mean(1), rtol=1e-5, atol=1e-9
    )


COVERING = {
    "flattened": lambda base: base.view(-1),
    "permuted": lambda base: base.permute(2, 0, 1),
    "unsqueezed and unfolded": lambda base: base.unsqueeze(0).unfold(3, 2, 2),
    "by strides": lambda base: base.as_strided((12, 2), (1, 12)),
}


@pytest.mark.parametrize("layout", ["as the base", "expanded", "reversed"])
@pytest.mark.parametrize("kind", COVERING)
def test_a_bases_gradient_is_presented_with_the_axes_of_its_view_however_it_lies_in_memory(kind, layout):
    base = torch.randn(2, 3, 4, requires_grad=True) * 1
    # The gradient of the base lies inside other memory, as those of a flat buffer do.
    buffer = torch.randn(100)
    gradient = {
        "as the base": buffer[7:31].view(2, 3, 4),
        "expanded": buffer[7:8].expand(2, 3, 4),
        "reversed": buffer[7:31].view(4, 3, 2).permute(2, 1, 0),
    }[layout]
    expected = COVERING[kind](gradient.clone(memory_format=torch.contiguous_format))
    assert torch.equal(view_of(COVERING[kind](base), base).of(gradient), expected)


@pytest.mark.parametrize(
    "make",
    [
        lambda base: base[:, :2],
        lambda base: base.as_strided((2, 12), (0, 1)),
        lambda base: base[0].expand(2, 3, 4),
        lambda base: torch._neg_view(base),
        lambda base: base.detach().requires_grad_().view(-1),
    ],
    ids=["a part", "overlapping", "repeated", "negated", "view of a leaf"],
)
def test_no_gradient_is_presented_for_what_does_not_show_each_element_of_its_base_once(make):
    view = make(torch.randn(2, 3, 4, requires_grad=True) * 1)
    assert view_of(view, view._base) is None


class Half(nn.Module):
    def forward(self, x):
        return x[:, :4]


def test_a_partial_view_modified_in_place_has_no_gradient_and_says_so(record, train, status, cell):
    model = nn.Sequential(nn.Linear(6, 8), Half(), nn.ReLU(inplace=True), nn.Linear(4, 3))
    with record(model) as recorder:
        train(model)
    assert status(recorder.recording, "1") == Status.NO_GRADIENT_ARRIVED
    assert cell(recorder.recording, "count", layer="1", signal="activation_grad") == 0


class ReadsBefore(nn.Module):
    """Reads half of a layer, and may rectify it in place after that."""

    def __init__(self, *, rectifies):
        super().__init__()
        torch.manual_seed(3)
        self.linear, self.part, self.head, self.rectifies = nn.Linear(6, 8), Half(), nn.Linear(4, 3), rectifies

    def forward(self, x):
        half = self.part(self.linear(x))
        before = half + 1
        return self.head(before + (half.relu_() if self.rectifies else half))


def test_a_partial_view_read_and_then_modified_in_place_has_no_gradient_where_one_only_read_has_its_own(
    record, beside, assert_row, status, cell, train
):
    model = ReadsBefore(rectifies=True)
    with record(model) as recorder:
        train(model)
    assert status(recorder.recording, "part") == Status.NO_GRADIENT_ARRIVED
    assert cell(recorder.recording, "count", layer="part", signal="activation_grad") == 0
    kept, recording = beside(ReadsBefore(rectifies=False), ReadsBefore(rectifies=False))
    assert_row(recording, kept["part"][0].grad, layer="part", signal="activation_grad")


@pytest.mark.parametrize("rest", [slice(None, 2), slice(2, None)], ids=["first columns", "last columns"])
def test_an_assignment_after_a_layer_leaves_its_activation_and_its_gradient_as_produced(record, assert_row, rest):
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(6, 4)

        def forward(self, x):
            y = self.linear(x)
            y[:, rest] = 0
            return y

    model, x = Masked(), torch.randn(16, 6)
    with record(model) as recorder:
        model(x).sum().backward()
        recorder.step()
    reached = torch.ones(16, 4)
    reached[:, rest] = 0
    assert_row(recorder.recording, model.linear(x), layer="linear", signal="activation")
    assert_row(recorder.recording, reached, layer="linear", signal="activation_grad")


def test_a_tensor_modified_in_place_since_its_layer_is_read_anew_as_a_preactivation(record, assert_row, status):
    class Shifted(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.act = nn.Linear(6, 6), nn.Tanh()

        def forward(self, x):
            y = self.linear(x)
            y += 3
            return self.act(y)

    model, x = Shifted(), torch.randn(16, 6)
    with record(model) as recorder:
        model(x).sum().backward()
        recorder.step()
    assert_row(recorder.recording, model.linear(x), layer="linear", signal="activation")
    assert_row(recorder.recording, model.linear(x) + 3, layer="act", signal="preactivation")
    assert status(recorder.recording, "act", "preactivation") == Status.OK


class ViewBeside(nn.Module):
    """A view that covers its base, and a base that others use; the view may be used, or modified, or neither."""

    def __init__(self, fate):
        super().__init__()
        torch.manual_seed(3)
        self.linear, self.flatten, self.head, self.fate = nn.Linear(6, 8), nn.Flatten(0), nn.Linear(8, 3), fate

    def forward(self, x):
        h = self.linear(x)
        flat = self.flatten(h)
        if self.fate == "unused":
            return self.head(h).sum()
        if self.fate == "used":
            return self.head(h).sum() + (3 * flat).sum()
        return (3 * flat.relu_()).sum()


@pytest.mark.parametrize("fate", ["unused", "used", "modified"])
def test_a_view_has_its_bases_gradient_only_where_it_was_modified(record, assert_row, status, fate):
    model, x = ViewBeside(fate), torch.randn(16, 6)
    with record(model, may_warn=("is not the batch", "called head")) as recorder:
        model(x).backward()
        recorder.step()
    rows = recorder.recording
    expected = {"unused": Status.NO_GRADIENT_ARRIVED, "used": Status.OK, "modified": Status.VIA_BASE}
    assert status(rows, "flatten") == expected[fate]
    if fate == "unused":
        assert int(rows["layers"]["count"].sel(step=0, layer="flatten", signal="activation_grad")) == 0
    elif fate == "used":
        assert_row(rows, torch.full((16, 8), 3.0), layer="flatten", signal="activation_grad")
    else:
        assert_row(rows, 3.0 * (model.linear(x) > 0), layer="flatten", signal="activation_grad")


def test_the_counter_of_a_tensors_modifications_keeps_nothing_of_it_alive():
    base = torch.randn(64, requires_grad=True) * 2
    reference, counter = weakref.ref(base), version_counter(base)
    base.view(8, 8).mul_(2)
    assert counter._version == base._version == 1
    assert counter.untyped_storage().nbytes() == 0
    del base
    assert reference() is None
