"""Units are channels, never positions. Oracle: the test's own channels, held at or below zero before an activation."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from covshift import schema

DEAD = (3, 4, 5)


class LayerNorm2d(nn.LayerNorm):
    """As in torchvision's ConvNeXt."""

    def forward(self, x):
        return F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias).permute(0, 3, 1, 2)


class Float32LayerNorm(nn.LayerNorm):
    """As in CLIP."""

    def forward(self, x):
        return super().forward(x.float()).type(x.dtype)


class RMSNorm2d(nn.RMSNorm):
    def forward(self, x):
        return super().forward(x.movedim(1, -1)).movedim(-1, 1).contiguous()


class Does(nn.Module):
    """Modules by name, and a function of them and the input."""

    def __init__(self, does, **modules):
        super().__init__()
        self.does = does
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, *x):
        return self.does(self, *x)


def permute(*axes):
    return Does(lambda _, x: x.permute(axes))


def kill(module):
    """Let channels be negative whatever comes in."""
    with torch.no_grad():
        module.weight[list(DEAD)], module.bias[list(DEAD)] = 0.0, -50.0
    return module


def once(record, model, *inputs, **options):
    with record(model, **options) as recorder:
        model(*inputs).square().sum().backward()
        recorder.step()
    return recorder.recording


def axes(recording):
    layers = recording["layers"].to_dataset()
    return dict(zip(layers["layer"].values.tolist(), layers["unit_axis"].values.tolist(), strict=True))


def never_active(recording, layer):
    """Places of the units of a layer that no example activates."""
    units = recording["units"].to_dataset().sel(step=0, signal="activation")
    place = recording["layers"]["layer"].values.tolist().index(layer)
    active = units["unit_active_examples"].values[units["layer_index"].values == place]
    return tuple(k for k, count in enumerate(active) if count == 0), len(active)


@pytest.mark.parametrize("size", [5, 8])
@pytest.mark.parametrize("norm", [LayerNorm2d, RMSNorm2d])
def test_channels_that_die_after_a_norm_that_moves_axes_are_found_whatever_the_size_of_the_image(record, norm, size):
    """Of 8 channels and 8 columns no length tells which are which."""
    norm = norm(8)
    with torch.no_grad():
        norm.weight[list(DEAD)] = 0.0
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), norm, nn.ReLU(), nn.Conv2d(8, 2, 1))
    recording = once(record, model, torch.randn(4, 3, size, size))
    assert axes(recording)["1"] == 1
    assert never_active(recording, "2") == (DEAD, 8)


def temporal(*, functional=False):
    """A residual block of a TCN, as of Bai et al., whose second convolution kills channels whatever x is."""

    def does(self, x):
        y = self.c2(self.r1(self.c1(x))) + x
        return F.relu(y) if functional else self.r2(y)

    modules = {"c1": nn.Conv1d(8, 8, 3, padding=1), "r1": nn.ReLU(), "c2": kill(nn.Conv1d(8, 8, 3, padding=1))}
    return Does(does, **modules, **({} if functional else {"r2": nn.ReLU()}))


@pytest.mark.parametrize("time", [12, 8])
def test_channels_that_die_after_a_sum_in_a_temporal_convolution_are_found(record, time):
    blocks = nn.Sequential(nn.Conv1d(3, 8, 1), temporal(), temporal())
    recording = once(record, blocks, torch.randn(4, 3, time))
    for layer in ("1.r2", "2.r2"):
        assert never_active(recording, layer) == (DEAD, 8)


def test_channels_that_die_in_an_activation_called_as_a_function_after_a_sum_are_found(record):
    model = nn.Sequential(nn.Conv1d(3, 8, 1), temporal(functional=True))
    recording = once(record, model, torch.randn(4, 3, 12), functional=True)
    assert never_active(recording, "1:relu") == (DEAD, 8)


@pytest.mark.parametrize("copies", [False, True])
def test_a_module_that_permutes_takes_the_units_along(record, copies):
    def permuted(*axes):
        return Does(lambda _, x: x.permute(axes).contiguous() if copies else x.permute(axes))

    model = nn.Sequential(
        kill(nn.Conv2d(3, 8, 3)), permuted(0, 2, 3, 1), nn.ReLU(), permuted(0, 3, 1, 2), nn.ReLU(), nn.Conv2d(8, 2, 1)
    )
    recording = once(record, model, torch.randn(4, 3, 7, 7))
    assert [axes(recording)[name] for name in "01234"] == [1, 3, 3, 1, 1]
    assert never_active(recording, "2") == never_active(recording, "4") == (DEAD, 8)


def test_a_permuted_square_view_has_its_units_where_memory_has_them(record):
    model = nn.Sequential(kill(nn.Conv2d(3, 8, 3)), permute(0, 2, 3, 1), nn.ReLU(), nn.Linear(8, 2))
    assert never_active(once(record, model, torch.randn(4, 3, 10, 10)), "2") == (DEAD, 8)


def test_an_activation_that_reads_a_view_made_outside_of_modules_has_the_units_of_what_it_shows(record):
    does = Does(lambda m, x: m.h(m.r(m.c(x).flatten(2).transpose(1, 2))), c=kill(nn.Conv2d(3, 8, 3)), r=nn.ReLU())
    does.h = nn.Linear(8, 2)
    assert never_active(once(record, does, torch.randn(4, 3, 7, 7)), "r") == (DEAD, 8)


def test_layers_whose_units_cannot_be_told_have_none_and_are_named_with_the_way_out(record, assert_row):
    """8 channels of a convolution over 8 times, 8 units of a layer over 8 times: their sum may be either."""

    def build():
        def mixed(m, x):
            return m.h(m.d(m.r(m.c(x) + m.l(x))))

        torch.manual_seed(1)
        return Does(mixed, c=nn.Conv1d(8, 8, 1), l=nn.Linear(8, 8), r=nn.ReLU(), d=nn.Dropout(0.0), h=nn.Linear(8, 2))

    model, x = build(), torch.randn(4, 8, 8)
    said = [f"layer '{name}': more than one axis of its output (4, 8, 8) may count its units" for name in "rd"]
    recording = once(record, model, x, warned=[*said, "unit_axis={'r': axis}"])
    layers = recording["layers"].to_dataset()
    assert layers["unit_count_of_layer"].sel(layer=["r", "d", "h"]).values.tolist() == [0, 0, 2]
    assert_row(recording, torch.relu(model.c(x) + model.l(x)), layer="r", signal="activation")
    assert int(layers["example_count"].sel(step=0, layer="r", signal="activation")) == 4
    named = axes(once(record, build(), x, unit_axis={"r": 1}))
    assert (named["r"], named["d"]) == (1, 1)


def test_two_layouts_in_two_blocks_do_not_dispute_each_others_sums(record):
    """A convolution over 8 times and a transformer's block over 8 tokens, of 8 units each."""
    token = Does(lambda m, x: m.n(x + m.d(m.l(x) + x)), l=nn.Linear(8, 8), d=nn.Dropout(0.0), n=Float32LayerNorm(8))
    turn = permute(0, 2, 1)
    found = axes(once(record, nn.Sequential(nn.Conv1d(3, 8, 1), temporal(), turn, token), torch.randn(4, 3, 8)))
    assert [found[name] for name in ("1.c2", "1.r2", "2", "3.l", "3.d", "3.n")] == [1, 1, 2, 2, 2, 2]


LAYOUTS = {
    "tokens": (nn.Sequential(nn.Linear(6, 8), Float32LayerNorm(8), nn.GELU(), nn.Dropout(0.1)), (4, 5, 6), 2),
    "tokens, stock": (nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.GELU()), (4, 8, 6), 2),
    "images": (nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)), (4, 3, 10, 10), 1),
    "sequences": (nn.Sequential(nn.Conv1d(3, 8, 3), nn.BatchNorm1d(8), nn.ReLU(), nn.MaxPool1d(2)), (4, 3, 10), 1),
    "channels last": (nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.ReLU()), (4, 5, 5, 6), 3),
    "examples": (nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Tanh()), (4, 6), 1),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_plain_layouts_have_their_units_where_they_had_them(record, layout):
    model, shape, axis = LAYOUTS[layout]
    found = axes(once(record, model, torch.randn(shape)))
    assert {found[name] for name in found if name != "(input)"} == {axis}


def test_units_of_a_block_are_those_of_the_layers_in_it(record):
    """What it returns was permuted outside of any module, as ConvNeXt's blocks do."""

    def does(m, x):
        return x + m.l2(m.g(m.l(m.c(x).permute(0, 2, 3, 1)))).permute(0, 3, 1, 2)

    block = Does(does, c=nn.Conv2d(8, 8, 3, padding=1), l=nn.Linear(8, 16), g=nn.GELU(), l2=nn.Linear(16, 8))
    found = axes(once(record, nn.Sequential(nn.Conv2d(3, 8, 1), block, nn.ReLU()), torch.randn(4, 3, 5, 5)))
    assert [found[name] for name in ("1", "1.c", "1.l", "1.g", "1.l2", "2")] == [1, 1, 3, 3, 3, 1]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_units_of_a_layer_do_not_depend_on_what_else_is_recorded(record, layout):
    model, shape, axis = LAYOUTS[layout]
    for name, _ in model.named_children():
        assert axes(once(record, model, torch.randn(shape), layers=name)) == {name: axis}


def test_channels_that_die_are_found_where_only_activations_are_recorded(record):
    """What activations read: a convolution, a sum of two layers, a permuted view in a module of its own."""
    model = nn.Sequential(kill(nn.Conv1d(3, 8, 3)), nn.Dropout(0.0), nn.ReLU(), temporal(), permute(0, 2, 1), nn.ReLU())
    for _ in range(2):
        recording = once(record, model, torch.randn(4, 3, 12), layers=nn.ReLU)
        assert axes(recording) == {"2": 1, "3.r1": 1, "3.r2": 1, "5": 2}
        assert never_active(recording, "2") == never_active(recording, "5") == (DEAD, 8)


def test_an_activation_first_called_in_a_later_pass_has_the_units_of_the_layer_before_it(record):
    def does(m, x):
        x = m.c(x)
        return m.r(x) if m.training else x

    model = Does(does, c=kill(nn.Conv1d(3, 8, 3)), r=nn.ReLU())
    with record(model, layers="r") as recorder:
        for training in (False, True):
            model.train(training)
            model(torch.randn(4, 3, 12)).square().sum().backward()
            recorder.step()
    assert axes(recorder.recording) == {"r": 1}


def test_what_a_layer_left_out_returned_tells_more_than_layers_of_its_shape(record):
    """8 channels over 8 times and 8 units over 8 times, each read by an activation of its own."""

    def does(m, x):
        return m.r2(m.l(m.r1(m.c(x))))

    model = Does(does, c=kill(nn.Conv1d(8, 8, 1)), r1=nn.ReLU(), l=kill(nn.Linear(8, 8)), r2=nn.ReLU())
    recording = once(record, model, torch.randn(4, 8, 8), layers=nn.ReLU)
    assert axes(recording) == {"r1": 1, "r2": 2}
    assert never_active(recording, "r1") == never_active(recording, "r2") == (DEAD, 8)


def test_layers_that_are_not_recorded_dispute_units_as_recorded_ones_do(record):
    """8 channels over 8 times and 8 units over 8 times: their sum may be either."""

    def mixed(m, x):
        return m.h(m.r(m.c(x) + m.l(x)))

    model = Does(mixed, c=nn.Conv1d(8, 8, 1), l=nn.Linear(8, 8), r=nn.ReLU(), h=nn.Linear(8, 2))
    said = ["layer 'r': more than one axis of its output (4, 8, 8) may count its units", "unit_axis={'r': axis}"]
    assert axes(once(record, model, torch.randn(4, 8, 8), layers="r", warned=said)) == {"r": schema.UNKNOWN_AXIS}
