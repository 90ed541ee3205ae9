import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from covshift.exceptions import InvalidArgumentError, UnsupportedModelError
from covshift.linked import LinkedReLU
from covshift.models import all_cnn, depth_net, extended_cnn, resnet50, width_net

Net = Callable[..., nn.Sequential]
NETS: list[Net] = [width_net, extended_cnn, all_cnn, resnet50]


def parameters(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def convolution(inputs: int, units: int, kernel: int) -> int:
    return units * inputs * kernel * kernel + units


def bottlenecks(inputs: int, inner: int, outer: int, blocks: int, *, members: int = 1, norm: bool = True) -> int:
    """Parameters of a stage: the first block with a projection, the others without."""
    branch = convolution(members * inner, inner, 3) + convolution(members * inner, outer, 1)
    norms = 2 * (2 * inner + outer) if norm else 0
    first = convolution(inputs, inner, 1) + convolution(inputs, outer, 1) + (2 * outer if norm else 0)
    return first + (blocks - 1) * convolution(outer, inner, 1) + blocks * (branch + norms)


@pytest.mark.parametrize(("width", "activation", "expected"), [
    # conv0 50*3*9 + 50; head reads 50 channels of 30x30
    (50, nn.ReLU, 1_400 + 50 * 900 * 10 + 10),
    (50, LinkedReLU, 1_400 + 100 * 900 * 10 + 10),
    (400, nn.ReLU, 11_200 + 400 * 900 * 10 + 10),
])  # fmt: skip
def test_width_net_has_the_parameters_counted_by_hand(
    width: int, activation: Callable[[], nn.Module], expected: int
) -> None:
    assert parameters(width_net(width, activation=activation)) == expected


@pytest.mark.parametrize(("options", "expected"), [
    # 32x32 -> 30x30 -> pool 15x15 -> 13x13 -> pool 6x6
    ({}, 896 + 9_248 + 18_496 + 36_928 + (64 * 36 * 512 + 512) + 5_130),
    ({"activation": LinkedReLU}, 896 + 18_464 + 36_928 + 73_792 + (128 * 36 * 512 + 512) + 10_250),
    ({"width_factor": math.sqrt(2)}, 1_260 + 18_270 + 36_540 + 72_990 + (90 * 36 * 724 + 724) + 7_250),
    # two numbers for each of 32, 32, 64 and 64 channels; the dense layer has no norm
    ({"norm": nn.BatchNorm2d}, 1_250_858 + 2 * 192),
])  # fmt: skip
def test_extended_cnn_has_the_parameters_counted_by_hand(options: dict[str, object], expected: int) -> None:
    assert parameters(extended_cnn(**options)) == expected  # type: ignore[arg-type]


def test_sqrt_2_wide_extended_cnn_matches_the_linked_one_within_a_percent() -> None:
    wide, linked = extended_cnn(width_factor=math.sqrt(2)), extended_cnn(activation=LinkedReLU)
    assert 0.99 < parameters(wide) / parameters(linked) < 1.01


def test_six_units_are_92_percent_of_the_linked_depth_net_of_four() -> None:
    assert parameters(depth_net(width=6)) / parameters(depth_net(activation=LinkedReLU)) == pytest.approx(
        0.92, abs=0.005
    )


@pytest.mark.parametrize(("activation", "members"), [(nn.ReLU, 1), (LinkedReLU, 2)])
def test_all_cnn_has_the_parameters_counted_by_hand(activation: Callable[[], nn.Module], members: int) -> None:
    # A linked activation widens what follows it: not what follows the strided convolutions, which have none.
    expected = (
        convolution(3, 96, 3) + 2 * convolution(members * 96, 96, 3)
        + convolution(96, 192, 3) + 2 * convolution(members * 192, 192, 3)
        + convolution(192, 192, 3) + convolution(members * 192, 192, 1) + convolution(members * 192, 10, 1)
    )  # fmt: skip
    assert parameters(all_cnn(activation=activation)) == expected


@pytest.mark.parametrize(("activation", "members"), [(nn.ReLU, 1), (LinkedReLU, 2)])
@pytest.mark.parametrize("norm", [nn.BatchNorm2d, None])
def test_resnet_has_the_parameters_counted_by_hand(
    activation: Callable[[], nn.Module], members: int, norm: type[nn.Module] | None
) -> None:
    options = {"members": members, "norm": norm is not None}
    stages = [(8, 16, 64, 3), (64, 16, 64, 4), (64, 32, 128, 6), (128, 32, 128, 3)]
    # 32x32 halves three times: 128 channels of 4x4 reach the head
    expected = 224 + (16 if norm else 0) + sum(bottlenecks(*stage, **options) for stage in stages) + 2_048 * 10 + 10
    assert parameters(resnet50(activation=activation, norm=norm)) == expected


def test_plain_resnet_has_the_published_layer_counts() -> None:
    net = resnet50()
    assert sum(isinstance(module, nn.Conv2d) for module in net.modules()) == 1 + 16 * 3 + 4
    assert sum(isinstance(module, nn.BatchNorm2d) for module in net.modules()) == 1 + 16 * 3 + 4
    assert not any(isinstance(module, nn.BatchNorm2d) for module in resnet50(norm=None).modules())


def test_all_cnn_has_no_activation_after_the_strided_and_the_last_convolution() -> None:
    names = [name for name, _ in all_cnn().named_children()]
    assert names == [
        "conv0", "act0", "conv1", "act1", "conv2", "drop2", "conv3", "act3", "conv4", "act4", "conv5", "drop5",
        "conv6", "act6", "conv7", "act7", "conv8", "average", "flatten",
    ]  # fmt: skip
    strides = [module.stride[0] for module in all_cnn() if isinstance(module, nn.Conv2d)]
    assert strides == [1, 1, 2, 1, 1, 2, 1, 1, 1]


def test_resnet_links_inside_the_branches_and_keeps_the_base_after_the_first_convolution_and_the_sums() -> None:
    net = resnet50(activation=LinkedReLU, sum_activation=nn.SELU)
    linked = [name for name, module in net.named_modules() if isinstance(module, LinkedReLU)]
    plain = [name for name, module in net.named_modules() if isinstance(module, nn.SELU)]
    assert linked == [f"block{block}.branch.act{place}" for block in range(16) for place in (0, 1)]
    assert plain == ["act0", *(f"block{block}.activation" for block in range(16))]


def test_a_bottleneck_is_the_activation_of_branch_plus_shortcut() -> None:
    net = resnet50(norm=None, generator=seeded()).eval()
    x = torch.randn(2, 8, 8, 8, generator=seeded(1))
    block = net.get_submodule("block0")
    weights = dict(block.named_parameters())

    def applied(x: Tensor, name: str, padding: int = 0) -> Tensor:
        return nn.functional.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], padding=padding)

    inner = applied(applied(x, "branch.conv0").clamp(min=0), "branch.conv1", 1).clamp(min=0)
    expected = (applied(inner, "branch.conv2") + applied(x, "shortcut.conv0")).clamp(min=0)
    torch.testing.assert_close(block(x), expected)


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("activation", [nn.ReLU, LinkedReLU])
@pytest.mark.parametrize("initialization", ["variance-preserving", "keras", "glorot-normal"])
def test_logits_are_finite_and_biases_zero(net: Net, activation: Callable[[], nn.Module], initialization: str) -> None:
    model = net(activation=activation, initialization=initialization, generator=seeded())
    logits = model(torch.rand(2, 3, 32, 32, generator=seeded()))
    assert logits.shape == (2, 10)
    assert torch.isfinite(logits).all()
    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    assert not any(layer.bias.any() for layer in layers if layer.bias is not None)


@pytest.mark.parametrize("net", NETS)
def test_a_generator_decides_all_weights_and_leaves_the_global_random_state_alone(net: Net) -> None:
    state = torch.get_rng_state()
    first, same, other = (nn.utils.parameters_to_vector(net(generator=seeded(s)).parameters()) for s in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_glorot_normal_weights_have_the_glorot_variance_and_exceed_the_uniform_bound() -> None:
    weight = extended_cnn(initialization="glorot-normal", generator=seeded()).get_submodule("linear4").weight
    assert isinstance(weight, Tensor)
    variance = 2 / (64 * 36 + 512)
    assert weight.var().item() == pytest.approx(variance, rel=0.01)
    assert weight.abs().max().item() > math.sqrt(3 * variance)


def test_variance_preserving_resnet_without_norm_neither_vanishes_nor_explodes() -> None:
    x = torch.randn(64, 3, 32, 32, generator=seeded(1))
    with torch.no_grad():
        for part in resnet50(norm=None, generator=seeded())[:-2]:
            x = part(x)
    # 16 blocks that each doubled the mean square would give 65,536.
    assert 0.1 < x.square().mean().item() < 10


def test_a_linked_sum_is_refused_with_the_way_out() -> None:
    with pytest.raises(
        UnsupportedModelError, match=r"sum_activation= made a LinkedReLU.*the linked one as activation="
    ):
        resnet50(sum_activation=LinkedReLU)


@pytest.mark.parametrize("net", NETS)
def test_wrong_arguments_are_refused_by_name(net: Net) -> None:
    with pytest.raises(InvalidArgumentError, match="classes=0; expected an integer of at least 1"):
        net(classes=0)
    with pytest.raises(InvalidArgumentError, match="initialization='he'; expected one of"):
        net(initialization="he")
    with pytest.raises(InvalidArgumentError, match="activation= got a ReLU module"):
        net(activation=nn.ReLU())


@pytest.mark.parametrize(("net", "image_size"), [(width_net, 2), (extended_cnn, 8)])
def test_an_image_that_shrinks_to_nothing_is_refused_by_its_given_size(net: Net, image_size: int) -> None:
    with pytest.raises(InvalidArgumentError, match=f"image_size={image_size}: .* expected a larger image"):
        net(image_size=image_size)


@pytest.mark.parametrize("factor", [0.0, 0.001, math.nan, math.inf, -1.0])
def test_a_width_factor_that_leaves_no_units_is_refused(factor: float) -> None:
    for net in (extended_cnn, all_cnn):
        with pytest.raises(InvalidArgumentError, match="width_factor=.*expected a finite factor"):
            net(width_factor=factor)
