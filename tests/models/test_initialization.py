import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, special, stats
from torch import Tensor, nn

from covshift.exceptions import InvalidArgumentError, UnsupportedModelError
from covshift.models import activation_members, glorot_uniform_, mean_square_gain, variance_preserving_


class Concatenated(nn.Module):
    """A linked activation known by its attributes only."""

    linkage_dim = 1
    linkage_layout = "concatenated"

    def __init__(self, *members: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.linkage_members = members

    def forward(self, z: Tensor) -> Tensor:
        return torch.cat([member(z) for member in self.linkage_members], self.linkage_dim)


def mirrored(base: Callable[[Tensor], Tensor]) -> Concatenated:
    return Concatenated(base, lambda z: base(-z))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def weight_of(module: nn.Module) -> Tensor:
    assert isinstance(module.weight, Tensor)
    return module.weight


SELU_SCALE, SELU_ALPHA = 1.0507009873554805, 1.6732632423543772
FORMULAS: list[tuple[nn.Module, Callable[[float], float]]] = [
    (nn.ReLU(), lambda z: max(z, 0)),
    (nn.ReLU(inplace=True), lambda z: max(z, 0)),
    (nn.LeakyReLU(0.1), lambda z: max(z, 0.1 * z)),
    (nn.ReLU6(), lambda z: min(max(z, 0), 6)),
    (nn.Hardtanh(), lambda z: min(max(z, -1), 1)),
    (nn.Hardswish(), lambda z: z * min(max(z + 3, 0), 6) / 6),
    (nn.ELU(), lambda z: z if z > 0 else math.expm1(z)),
    (nn.SELU(), lambda z: SELU_SCALE * (z if z > 0 else SELU_ALPHA * math.expm1(z))),
    (nn.SiLU(), lambda z: z * special.expit(z)),
    (nn.GELU(), lambda z: z * stats.norm.cdf(z)),
    (nn.Tanh(), math.tanh),
    (nn.Sigmoid(), special.expit),
    (nn.Softplus(), lambda z: math.log1p(math.exp(z))),
]


@pytest.mark.parametrize(("activation", "formula"), FORMULAS, ids=lambda x: type(x).__name__)
def test_gain_agrees_with_adaptive_quadrature_of_the_formula(
    activation: nn.Module, formula: Callable[[float], float]
) -> None:
    def integrand(z: float) -> float:
        return float(formula(z)) ** 2 * math.exp(-z * z / 2) / math.sqrt(2 * math.pi)

    pieces = [-12, -3, -1, 0, 1, 3, 6, 12]
    expected = sum(integrate.quad(integrand, a, b, epsabs=1e-14, epsrel=1e-12)[0] for a, b in pairwise(pieces))
    assert mean_square_gain(activation) == pytest.approx(expected, rel=1e-10)


@given(slope=st.floats(-3, 3))
def test_gain_of_two_half_lines_is_the_mean_of_their_squared_slopes(slope: float) -> None:
    assert mean_square_gain(nn.LeakyReLU(slope)) == pytest.approx((1 + slope**2) / 2, rel=1e-12)


@pytest.mark.parametrize("base", [torch.relu, torch.tanh, nn.functional.silu, nn.functional.selu])
def test_gain_of_a_mirror_linkage_is_that_of_its_base(base: Callable[[Tensor], Tensor]) -> None:
    assert mean_square_gain(mirrored(base)) == pytest.approx(mean_square_gain(base), rel=1e-12)


def test_gain_is_the_mean_over_unequal_members() -> None:
    assert mean_square_gain(Concatenated(torch.relu, nn.Identity())) == pytest.approx((0.5 + 1) / 2, rel=1e-12)


def test_gain_of_slopes_learned_per_unit_is_the_mean_over_units() -> None:
    activation = nn.PReLU(3)
    with torch.no_grad():
        activation.weight.copy_(torch.tensor([0.0, 1.0, 2.0]))
    assert mean_square_gain(activation, units=3) == pytest.approx((0.5 + 1 + 2.5) / 3, rel=1e-6)


def test_gain_of_slopes_for_another_number_of_units_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="PReLU cannot be used as an activation of 4 units"):
        mean_square_gain(nn.PReLU(3), units=4)


@pytest.mark.parametrize(
    ("activation", "name"),
    [
        (nn.Softmax(dim=0), "Softmax"),
        (nn.RReLU(), "RReLU"),
        (lambda z: torch.cat([z, -z]), "<lambda>"),
        (lambda z: z.numpy(), "<lambda>"),
    ],
)
def test_what_is_no_fixed_function_of_each_number_has_no_gain(activation: nn.Module, name: str) -> None:
    with torch.random.fork_rng(devices=[]), pytest.raises(UnsupportedModelError, match=f"{name} is not an activation"):
        mean_square_gain(activation)


@pytest.mark.parametrize(
    ("function", "value"),
    [(torch.zeros_like, "0.0"), (lambda z: z / 0, "inf"), (lambda z: (-z * z).log(), "nan")],
)
def test_a_mean_square_that_no_scale_can_make_up_for_is_refused(
    function: Callable[[Tensor], Tensor], value: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=f"has mean square {value} on standard normal input"):
        mean_square_gain(function)


def test_a_plain_activation_is_its_own_only_member() -> None:
    activation = nn.ReLU()
    assert list(activation_members(activation)) == [activation]


def test_members_that_are_not_concatenated_or_not_there_are_refused() -> None:
    summed = mirrored(torch.relu)
    summed.linkage_layout = "summed"
    with pytest.raises(UnsupportedModelError, match="2 linkage_members in linkage_layout 'summed'; expected"):
        activation_members(summed)
    with pytest.raises(UnsupportedModelError, match="0 linkage_members in linkage_layout 'concatenated'; expected"):
        activation_members(Concatenated())


@pytest.mark.parametrize(
    ("before", "fan_in", "mean_square"),
    [
        ([], 200, 1.0),
        ([nn.ReLU()], 200, 0.5),
        ([mirrored(torch.relu)], 400, 0.5),
        ([nn.BatchNorm1d(200), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5), nn.Identity()], 200, 0.5),
        ([nn.ReLU(), nn.BatchNorm1d(200)], 200, 1.0),
        ([nn.Sequential(nn.Sequential(nn.PReLU(200, init=1.0)))], 200, 1.0),
        ([nn.Sequential(nn.ReLU(), nn.LayerNorm(200)), nn.LeakyReLU(2.0)], 200, 2.5),
    ],
)
def test_the_activation_that_feeds_a_layer_sets_its_scale(
    before: Sequence[nn.Module], fan_in: int, mean_square: float
) -> None:
    layer = nn.Linear(fan_in, 300)
    variance_preserving_(nn.Sequential(nn.Linear(5, 200), *before, layer, nn.Tanh()), generator=seeded())
    # At least 60,000 draws: the sample variance has a relative standard deviation of at most 0.6 %.
    assert layer.weight.var().item() * fan_in * mean_square == pytest.approx(1, abs=0.025)
    assert abs(layer.weight.mean().item()) < 4 * (fan_in * mean_square * layer.weight.numel()) ** -0.5


@pytest.mark.parametrize(
    ("layer", "fan_in"),
    [
        (nn.Conv2d(8, 256, 3), 8 * 9),
        (nn.Conv2d(32, 256, 3, groups=4), 8 * 9),
        (nn.Conv1d(16, 256, 5), 16 * 5),
        (nn.Conv3d(4, 256, 3), 4 * 27),
        (nn.Linear(64, 256, bias=False), 64),
    ],
)
def test_fan_in_counts_what_one_output_reads(layer: nn.Conv2d, fan_in: int) -> None:
    variance_preserving_(layer, generator=seeded())
    assert layer.weight.var().item() * fan_in == pytest.approx(1, abs=0.05)


ACTIVATIONS = {
    "ReLU": nn.ReLU(),
    "linked ReLU": mirrored(torch.relu),
    "SELU": nn.SELU(),
    "SiLU": nn.SiLU(),
    "linked SiLU": mirrored(nn.functional.silu),
    "tanh": nn.Tanh(),
}


def preactivation_mean_squares(net: nn.Sequential, batch: Tensor) -> list[float]:
    found = []
    with torch.no_grad():
        for module in net:
            batch = module(batch)
            if isinstance(module, nn.Linear | nn.Conv2d):
                found.append(batch.square().mean().item())
    return found


def gains_over_seeds(make_net: Callable[[], nn.Sequential], shape: tuple[int, ...]) -> np.ndarray:
    """Ratio of the mean squares of neighbouring pre-activations, dims (seed, layer)."""
    mean_squares = [
        preactivation_mean_squares(
            variance_preserving_(make_net(), generator=seeded(seed)), torch.randn(shape, generator=seeded(100 + seed))
        )
        for seed in range(3)
    ]
    return np.exp(np.diff(np.log(mean_squares), axis=1))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_mean_square_is_kept_through_ten_linear_layers_of_512_units(name: str) -> None:
    """Geometric mean over 3 seeds and 9 gains in [0.9, 1.1]; over the seeds for each layer alone in [0.8, 1.25]."""
    activation = ACTIVATIONS[name]
    fan_in = 512 * len(activation_members(activation))

    def make_net() -> nn.Sequential:
        hidden = [module for _ in range(9) for module in (activation, nn.Linear(fan_in, 512))]
        return nn.Sequential(nn.Linear(512, 512), *hidden)

    logs = np.log(gains_over_seeds(make_net, (128, 512)))
    assert 0.9 <= math.exp(logs.mean()) <= 1.1
    per_layer = np.exp(logs.mean(axis=0))
    assert per_layer.min() >= 0.8
    assert per_layer.max() <= 1.25


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_mean_square_is_kept_through_convolutions_without_a_border(name: str) -> None:
    """Five circular 3x3 convolutions of 48 units on 6x6 images: geometric mean over 3 seeds and 4 gains."""
    activation = ACTIVATIONS[name]

    def convolution(channels: int) -> nn.Conv2d:
        return nn.Conv2d(channels, 48, 3, padding=1, padding_mode="circular")

    def make_net() -> nn.Sequential:
        channels = 48 * len(activation_members(activation))
        return nn.Sequential(
            convolution(16), *[module for _ in range(4) for module in (activation, convolution(channels))]
        )

    gains = gains_over_seeds(make_net, (16, 16, 6, 6))
    assert 0.9 <= math.exp(np.log(gains).mean()) <= 1.1


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.add(x, self.inner(x))


SHARED = nn.Linear(4, 4)


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ([Residual()], r"model\.2 \(Residual\) is not an nn\.Sequential, .* or use glorot_uniform_"),
        ([SHARED, nn.ReLU(), SHARED], r"model\.4 is the same layer as model\.2"),
        ([nn.Tanh()], r"model\.2 is fed by the activation model\.1, so its input is not standard normal"),
        ([nn.Sequential(nn.Linear(4, 4), nn.Softmax(dim=0))], r"model\.2\.1: Softmax is not an activation"),
        ([nn.Linear(4, 4), nn.LSTM(4, 4)], r"model\.3: LSTM is not an activation"),
        ([nn.Linear(4, 4), nn.ConvTranspose1d(4, 4, 3)], r"model\.3: ConvTranspose1d cannot be used as an activation"),
        ([nn.Linear(4, 4), nn.Threshold(99, 0)], r"model\.3: activation=Threshold has mean square 0\.0"),
    ],
)
def test_a_feed_that_cannot_be_read_is_refused_by_place_and_nothing_is_changed(
    second: Sequence[nn.Module], message: str
) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), *second)
    before = [parameter.clone() for parameter in model.parameters()]
    with pytest.raises(UnsupportedModelError, match=message):
        variance_preserving_(model)
    assert all(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize("initialise", [variance_preserving_, glorot_uniform_])
def test_a_model_without_weights_to_draw_is_refused(initialise: Callable[[nn.Module], nn.Module]) -> None:
    with pytest.raises(UnsupportedModelError, match=r"model \(Sequential\) has nothing to initialise; .* Conv2d"):
        initialise(nn.Sequential(nn.ReLU()))


@pytest.mark.parametrize("initialise", [variance_preserving_, glorot_uniform_])
def test_a_generator_decides_the_draws_and_the_global_random_state_stays(
    initialise: Callable[..., nn.Sequential],
) -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Conv2d(3, 3, 3))
    state = torch.get_rng_state()
    draws = []
    for seed in (1, 1, 2):
        assert initialise(model, generator=seeded(seed)) is model
        draws.append(torch.cat([weight_of(model[0]).flatten(), weight_of(model[2]).flatten()]).detach())
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


@pytest.mark.parametrize("initialise", [variance_preserving_, glorot_uniform_])
def test_biases_become_zero(initialise: Callable[[nn.Module], nn.Module]) -> None:
    layers = [nn.Linear(4, 4), nn.Linear(4, 4)]
    initialise(nn.Sequential(layers[0], nn.ReLU(), layers[1]))
    assert not any(layer.bias.any() for layer in layers)


def test_glorot_weights_are_uniform_with_the_variance_of_both_fans_on_any_architecture() -> None:
    model = nn.Sequential(nn.Conv2d(8, 512, 3), Residual())
    glorot_uniform_(model, generator=seeded())
    weight = weight_of(model[0]).flatten()
    bound = math.sqrt(6 / (8 * 9 + 512 * 9))
    assert stats.kstest(weight.detach().numpy(), stats.uniform(-bound, 2 * bound).cdf).pvalue > 1e-3
    inner = model[1].inner
    assert isinstance(inner, nn.Linear)
    assert inner.weight.abs().max().item() <= math.sqrt(6 / 8)
