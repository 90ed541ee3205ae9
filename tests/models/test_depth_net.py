from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from covshift.exceptions import InvalidArgumentError, UnsupportedModelError
from covshift.models import depth_net


class ConcatenatedReLU(nn.Module):
    """A user's own linked activation: it owes nothing to covshift.linked but the three attributes."""

    linkage_members = (torch.relu, lambda z: torch.relu(-z))
    linkage_dim = 1
    linkage_layout = "concatenated"

    def forward(self, z: Tensor) -> Tensor:
        return torch.cat([member(z) for member in self.linkage_members], self.linkage_dim)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def digits_net(depth: int = 3, **options: object) -> nn.Sequential:
    return depth_net(depth, in_channels=1, image_size=8, stem="3x3", **options)  # type: ignore[arg-type]


def parameters(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


@pytest.mark.parametrize(
    ("activation", "norm", "expected"),
    [
        # conv0 4*1*9 + 4 = 40; 49 convolutions 4*4*9 + 4 = 148; head 10*4*64 + 10 = 2570
        (nn.ReLU, None, 40 + 49 * 148 + 2570),
        # the layers that read a linked activation see 8 channels: 4*8*9 + 4 = 292; head 10*8*64 + 10 = 5130
        (ConcatenatedReLU, None, 40 + 49 * 292 + 5130),
        # a scale and an offset for each of 4 units in each of 50 norms
        (nn.ReLU, nn.BatchNorm2d, 40 + 49 * 148 + 50 * 8 + 2570),
    ],
)
def test_digits_net_of_50_convolutions_has_the_parameters_counted_by_hand(
    activation: Callable[[], nn.Module], norm: Callable[[int], nn.Module] | None, expected: int
) -> None:
    assert parameters(digits_net(50, activation=activation, norm=norm)) == expected


@pytest.mark.parametrize(
    ("activation", "width", "expected"),
    [
        # conv0 4*3*49 + 4 = 592; 50 convolutions; head 10*4*256 + 10 = 10250
        (nn.ReLU, 4, 592 + 50 * 148 + 10250),
        (ConcatenatedReLU, 4, 592 + 50 * 292 + 20490),
        # conv0 6*3*49 + 6 = 888; 6*6*9 + 6 = 330; head 10*6*256 + 10 = 15370
        (nn.ReLU, 6, 888 + 50 * 330 + 15370),
    ],
)
def test_cifar_net_has_the_parameters_counted_by_hand(
    activation: Callable[[], nn.Module], width: int, expected: int
) -> None:
    assert parameters(depth_net(50, width=width, activation=activation)) == expected


@pytest.mark.parametrize(("stem", "convolutions"), [("7x7", 51), ("3x3", 50)])
def test_depth_counts_the_3x3_convolutions_and_the_7x7_stem_comes_on_top(stem: str, convolutions: int) -> None:
    net = depth_net(50, stem=stem)  # type: ignore[arg-type]
    shapes = [(module.kernel_size, module.stride) for module in net if isinstance(module, nn.Conv2d)]
    first = ((7, 7), (2, 2)) if stem == "7x7" else ((3, 3), (1, 1))
    assert shapes == [first] + [((3, 3), (1, 1))] * (convolutions - 1)


def test_layers_are_named_by_kind_and_position() -> None:
    assert [name for name, _ in digits_net(2).named_children()] == [
        "conv0", "act0", "conv1", "act1", "flatten", "head",
    ]  # fmt: skip
    assert [name for name, _ in digits_net(2, norm=nn.BatchNorm2d).named_children()] == [
        "conv0", "norm0", "act0", "conv1", "norm1", "act1", "flatten", "head",
    ]  # fmt: skip


def test_every_layer_has_an_activation_and_a_norm_of_its_own() -> None:
    net = digits_net(5, activation=nn.PReLU, norm=nn.BatchNorm2d)
    assert len({id(module) for module in net}) == len(net) == 17


@settings(max_examples=25, deadline=None)
@given(
    depth=st.integers(1, 4),
    width=st.integers(1, 5),
    in_channels=st.integers(1, 3),
    image_size=st.integers(1, 33),
    classes=st.integers(1, 12),
    stem=st.sampled_from(["7x7", "3x3"]),
    activation=st.sampled_from([nn.ReLU, ConcatenatedReLU]),
)
def test_any_net_maps_its_images_to_one_finite_logit_per_class(
    depth: int,
    width: int,
    in_channels: int,
    image_size: int,
    classes: int,
    stem: str,
    activation: Callable[[], nn.Module],
) -> None:
    net = depth_net(
        depth,
        width=width,
        in_channels=in_channels,
        image_size=image_size,
        classes=classes,
        stem=stem,  # type: ignore[arg-type]
        activation=activation,
    )
    logits = net(torch.ones(2, in_channels, image_size, image_size))
    assert logits.shape == (2, classes)
    assert torch.isfinite(logits).all()


def test_convolutions_keep_the_image_size_and_the_7x7_stem_halves_it_rounding_up() -> None:
    for image_size, expected in [(32, 16), (33, 17), (1, 1)]:
        net = depth_net(2, image_size=image_size)
        assert net[:-2](torch.zeros(1, 3, image_size, image_size)).shape == (1, 4, expected, expected)


@pytest.mark.parametrize("initialization", ["variance-preserving", "keras"])
def test_biases_start_at_zero(initialization: str) -> None:
    net = digits_net(initialization=initialization, activation=ConcatenatedReLU)
    biases = [module.bias for module in net if isinstance(module, nn.Conv2d | nn.Linear)]
    assert len(biases) == 4
    assert all(bias is not None and not bias.any() for bias in biases)


def test_variance_preserving_weights_count_the_doubled_channels_of_a_linked_feed() -> None:
    net = digits_net(3, width=64, activation=ConcatenatedReLU, generator=seeded())
    weight = net.get_submodule("conv1").weight
    assert isinstance(weight, Tensor)
    assert weight.shape == (64, 128, 3, 3)
    # 73,728 draws: the sample variance has a relative standard deviation of 0.5 %.
    assert weight.var().item() * 128 * 9 * 0.5 == pytest.approx(1, abs=0.02)


def test_keras_weights_are_uniform_within_the_glorot_bound() -> None:
    weight = digits_net(3, width=64, initialization="keras", generator=seeded()).get_submodule("conv1").weight
    assert isinstance(weight, Tensor)
    bound = (6 / (64 * 9 + 64 * 9)) ** 0.5
    assert 0.999 * bound < weight.abs().max().item() <= bound
    assert weight.var().item() == pytest.approx(bound**2 / 3, rel=0.02)


@pytest.mark.parametrize("initialization", ["variance-preserving", "keras"])
def test_a_generator_decides_all_weights_and_leaves_the_global_random_state_alone(initialization: str) -> None:
    state = torch.get_rng_state()
    nets = [digits_net(initialization=initialization, generator=seeded(seed)) for seed in (3, 3, 4)]
    assert torch.equal(torch.get_rng_state(), state)
    first, same, other = (torch.nn.utils.parameters_to_vector(net.parameters()) for net in nets)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_without_a_generator_the_global_seed_decides() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        from_global_seed = digits_net()
    from_generator = digits_net(generator=seeded(7))
    for a, b in zip(from_global_seed.parameters(), from_generator.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_default_device_is_honoured() -> None:
    with torch.device("meta"):
        net = digits_net()
    assert {parameter.device.type for parameter in net.parameters()} == {"meta"}


@pytest.mark.parametrize("argument", ["depth", "width", "in_channels", "image_size", "classes"])
@pytest.mark.parametrize("value", [0, -1, 2.0, True, "4"])
def test_a_size_that_is_no_positive_integer_is_refused_by_name(argument: str, value: object) -> None:
    with pytest.raises(InvalidArgumentError, match=rf"{argument}={value!r}; expected an integer of at least 1"):
        depth_net(**{argument: value})  # type: ignore[arg-type]


def test_sizes_may_be_numpy_integers() -> None:
    net = depth_net(np.int64(2), width=np.int64(5), image_size=np.int32(8))  # type: ignore[arg-type]
    assert net(torch.zeros(1, 3, 8, 8)).shape == (1, 10)


@pytest.mark.parametrize(
    ("argument", "value", "choices"),
    [("stem", "5x5", "'7x7', '3x3'"), ("initialization", "he", "'variance-preserving', 'keras'")],
)
def test_an_unknown_choice_is_refused_with_the_known_ones(argument: str, value: str, choices: str) -> None:
    with pytest.raises(InvalidArgumentError, match=f"{argument}='{value}'; expected one of {choices}"):
        depth_net(2, **{argument: value})  # type: ignore[arg-type]


def test_a_module_in_place_of_a_factory_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="activation= got a ReLU module; expected a factory"):
        depth_net(2, activation=nn.ReLU())
    with pytest.raises(InvalidArgumentError, match="norm= got a BatchNorm2d module; expected a factory"):
        depth_net(2, norm=nn.BatchNorm2d(4))


def test_a_factory_that_makes_no_module_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="activation= returned a builtin_function_or_method"):
        depth_net(2, activation=lambda: torch.relu)  # type: ignore[arg-type, return-value]


def test_a_linkage_along_another_axis_than_the_channels_is_refused() -> None:
    class AlongWidth(ConcatenatedReLU):
        linkage_dim = -1

    with pytest.raises(UnsupportedModelError, match=r"AlongWidth with linkage_dim -1; .* make it with dim=1"):
        depth_net(2, activation=AlongWidth)
