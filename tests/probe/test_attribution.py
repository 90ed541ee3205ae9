"""The three parts of a layer's movement are exact, and name the one who moved."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from covshift.exceptions import InvalidArgumentError
from covshift.probe import shift_attribution


def moved(model, scale=0.1):
    """A later state: every float entry pushed a little."""
    state = copy.deepcopy(model.state_dict())
    return {
        k: v + scale * torch.randn_like(v) if v.is_floating_point() and "var" not in k else v for k, v in state.items()
    }


def test_two_linear_layers_by_hand():
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1))
    before = {"0.weight": torch.tensor([[2.0]]), "1.weight": torch.tensor([[3.0]]), "1.bias": torch.tensor([1.0])}
    after = {"0.weight": torch.tensor([[2.5]]), "1.weight": torch.tensor([[3.3]]), "1.bias": torch.tensor([1.2])}
    x = torch.tensor([[-1.0], [1.0]])
    result = shift_attribution(model, x, before=before, after=after)
    # Second layer: x_2 = 2 x, z = 6 x + 1 with sd 6; upstream 3 * 0.5 x, own 0.3 * 2 x + 0.2, interaction 0.3 * 0.5 x.
    second = result.sel(layer="1")
    assert float(second.upstream_rms) == pytest.approx(1.5 / 6, rel=1e-6)
    assert float(second.own_rms) == pytest.approx(np.sqrt(0.36 + 0.04) / 6, rel=1e-6)
    assert float(second.interaction_rms) == pytest.approx(0.15 / 6, rel=1e-6)
    assert float(second.movement_rms) == pytest.approx(np.sqrt(2.25**2 + 0.04) / 6, rel=1e-6)
    assert float(second.upstream_share) == pytest.approx(1.5 / (1.5 + np.sqrt(0.4)), rel=1e-6)
    first = result.sel(layer="0")
    assert float(first.upstream_rms) == 0
    assert float(first.own_rms) == pytest.approx(0.25)


MODELS = {
    "linear": (lambda: nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4)), (5,), "2", -1),
    "tokens": (lambda: nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4)), (7, 5), "2", -1),
    "conv1d": (lambda: nn.Sequential(nn.Conv1d(2, 3, 3), nn.Tanh(), nn.Conv1d(3, 4, 3, stride=2)), (2, 11), "2", 1),
    "conv2d": (
        lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.SELU(), nn.Conv2d(4, 4, 3, padding="same", groups=2)),
        (2, 7, 7),
        "2",
        1,
    ),
    "reflecting": (
        lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.SELU(), nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")),
        (2, 7, 7),
        "2",
        1,
    ),
    "dilated 3d": (
        lambda: nn.Sequential(nn.Conv3d(1, 2, 2), nn.Tanh(), nn.Conv3d(2, 3, 2, dilation=2, bias=False)),
        (1, 5, 5, 5),
        "2",
        1,
    ),
    "transposed": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3), nn.Tanh(), nn.ConvTranspose2d(4, 3, 3, stride=2, padding=1, output_padding=1)
        ),
        (2, 6, 6),
        "2",
        1,
    ),
}


@pytest.mark.parametrize("kind", MODELS)
def test_parts_are_those_of_swapping_inputs_and_weights_by_hand(kind):
    make, takes, name, unit_axis = MODELS[kind]
    model, x = make().double(), torch.randn(9, *takes, dtype=torch.float64)
    before, after = copy.deepcopy(model.state_dict()), moved(model)
    result = shift_attribution(model, x, before=before, after=after).sel(layer=name)

    def pass_of(stem, head):
        """Output of the last layer with its inputs from one state and its weights from another."""
        model[0].load_state_dict({key[2:]: value for key, value in stem.items() if key.startswith("0.")})
        model[2].load_state_dict({key[2:]: value for key, value in head.items() if key.startswith("2.")})
        with torch.no_grad():
            return model(x)

    z, z_up, z_own, z_both = (
        pass_of(s, h) for s, h in ((before, before), (after, before), (before, after), (after, after))
    )
    sd = z.movedim(unit_axis, 0).flatten(1).std(dim=1, correction=0)

    def rms(part):
        return float((part.movedim(unit_axis, 0).flatten(1) / sd[:, None]).square().mean().sqrt())

    assert float(result.upstream_rms) == pytest.approx(rms(z_up - z), rel=1e-9)
    assert float(result.own_rms) == pytest.approx(rms(z_own - z), rel=1e-9)
    assert float(result.movement_rms) == pytest.approx(rms(z_both - z), rel=1e-9)
    assert float(result.interaction_rms) == pytest.approx(rms(z_both - z_up - z_own + z), rel=1e-6)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**16), st.sampled_from(["0", "1", "3", "5"]))
def test_only_layers_after_the_one_that_moved_are_moved_by_others(seed, who):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 5), nn.SELU(), nn.Linear(5, 2))
    before = copy.deepcopy(model.state_dict())
    model.get_submodule(who).weight.data += 0.3
    result = shift_attribution(model, torch.randn(20, 4), before=before)
    for layer in ("0", "1", "3", "5"):
        row = result.sel(layer=layer)
        assert (float(row.own_rms) > 0) == (layer == who)
        assert (float(row.upstream_rms) > 0) == (layer > who)
        if layer < who:
            assert np.isnan(row.upstream_share)
        else:
            assert float(row.upstream_share) == (layer > who)


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("kind", ["convolutional", "transformer", "recurrent"])
def test_the_model_is_left_as_it_was(build, batch, train, photograph, assert_same, kind, mode):
    model = build(kind)
    earlier = copy.deepcopy(model.state_dict())
    train(model, steps=3)
    given_batch = batch(model)
    before = photograph(model)
    result = shift_attribution(model, given_batch, before=earlier, mode=mode)
    assert_same(before, photograph(model))
    ok = result.isel(layer=result.status == "ok")
    assert (ok.movement_rms > 0).all()
    assert (ok.movement_rms <= ok.upstream_rms + ok.own_rms + ok.interaction_rms + 1e-9).all()


def test_running_statistics_are_part_of_a_state(build, batch):
    model = build()
    earlier = copy.deepcopy(model.state_dict())
    model[1].running_mean += 5
    result = shift_attribution(model, batch(model), before=earlier)
    assert float(result.upstream_rms.sel(layer="4")) > 0
    assert float(result.own_rms.sel(layer="4")) == 0


def test_a_weight_that_is_computed_is_the_effective_one():
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 4)), nn.Linear(4, 2))
    earlier = copy.deepcopy(model.state_dict())
    model[0].parametrizations.weight.original0.data *= 2
    model[0].bias.data *= 2
    result = shift_attribution(model, torch.randn(10, 3), before=earlier)
    # Doubling weight and bias moves z by z itself: by at least its sd.
    assert result.status.values.tolist() == ["ok", "ok"]
    assert float(result.own_rms[0]) >= 1


def test_a_layer_that_does_more_than_its_weights_say_is_not_attributed():
    class Scaled(nn.Linear):
        def forward(self, x):
            return super().forward(x) * 3

    model = nn.Sequential(Scaled(3, 4), nn.Linear(4, 2))
    result = shift_attribution(model, torch.randn(5, 3), before=copy.deepcopy(model.state_dict()))
    assert result.status.values.tolist() == ["not linear", "ok"]
    assert np.isnan(result.movement_rms[0])
    assert float(result.movement_rms[1]) == 0
    assert np.isnan(result.upstream_share[1])


def test_constant_units_are_counted_and_left_out():
    model = nn.Linear(3, 4)
    model.weight.data[1] = 0
    earlier = copy.deepcopy(model.state_dict())
    model.bias.data += 1
    result = shift_attribution(model, torch.randn(6, 3), before=earlier)
    assert result.constant_unit_count.item() == 1
    assert np.isfinite(result.own_rms.item())
    alone = shift_attribution(model, torch.randn(1, 3), before=earlier)
    assert alone.constant_unit_count.item() == 4
    assert np.isnan(alone.own_rms.item())


def test_a_state_with_nan_gives_nan_and_no_number():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    later = copy.deepcopy(model.state_dict())
    later["0.weight"][0, 0] = float("nan")
    result = shift_attribution(model, torch.randn(5, 3), before=copy.deepcopy(model.state_dict()), after=later)
    assert result.movement_rms.isnull().all()


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (lambda m: m.state_dict(), None, r"before: holds the model's own tensors.*copy.deepcopy"),
        (lambda m: {}, None, r"before: does not fit the model; in one and not in the other: 0.bias, 0.weight"),
        (lambda m: 3, None, r"before=int: expected a state dict"),
        (
            lambda m: moved(m),
            lambda m: {**moved(m), "0.bias": torch.zeros(9)},
            r"after: '0.bias' is \(9,\): the model has \(4,\)",
        ),
    ],
)
def test_states_that_do_not_fit_are_named(before, after, message):
    model = nn.Sequential(nn.Linear(3, 4))
    later = None if after is None else after(model)
    with pytest.raises(InvalidArgumentError, match=message):
        shift_attribution(model, torch.randn(5, 3), before=before(model), after=later)


def test_a_model_without_linear_layers_is_named():
    with pytest.raises(InvalidArgumentError, match=r"model: calls no nn.Linear and no convolution"):
        shift_attribution(nn.Tanh(), torch.randn(5, 3), before={})


@pytest.mark.parametrize(
    "batch", [torch.zeros(0, 3), torch.full((2, 3), float("nan")), torch.zeros(2, 3, device="meta")]
)
def test_batches_that_cannot_be_used_are_named(batch):
    model = nn.Linear(3, 4)
    with pytest.raises(InvalidArgumentError, match="batch: a tensor"):
        shift_attribution(model, batch, before=copy.deepcopy(model.state_dict()))


def test_the_two_passes_draw_the_same_dropout_masks(build, batch):
    model = build()
    result = shift_attribution(model, batch(model), before=copy.deepcopy(model.state_dict()), mode="train")
    assert (result.movement_rms == 0).all()


def test_the_later_state_may_be_the_models_own_tensors():
    model = nn.Sequential(nn.Linear(3, 4))
    before, x = copy.deepcopy(model.state_dict()), torch.randn(5, 3)
    model[0].weight.data += 1
    result = shift_attribution(model, x, before=before, after=model.state_dict())
    assert result.equals(shift_attribution(model, x, before=before))
    assert float(result.own_rms[0]) > 0
