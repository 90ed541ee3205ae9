"""Laws of the conversion: the same output shape, kept and fresh weights, and what cannot be followed."""

import copy
import re

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from covshift.exceptions import InvalidArgumentError, UnsupportedModelError
from covshift.linked import Linked, LinkedPReLU, LinkedReLU, LinkedSELU, LinkedSiLU, link_model


def mlp(activation=nn.ReLU):
    return nn.Sequential(nn.Linear(6, 5), activation(), nn.Dropout(0.0), nn.Linear(5, 4), activation(), nn.Linear(4, 3))


def cnn(activation=nn.ReLU):
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), activation(), nn.MaxPool2d(2)),
        nn.Sequential(nn.ReflectionPad2d(1), nn.Conv2d(4, 6, 3, bias=False), activation(), nn.BatchNorm2d(6)),
        nn.Sequential(nn.Flatten(), nn.Linear(96, 8), nn.BatchNorm1d(8), activation(), nn.Linear(8, 2)),
    )


def signal_net(activation=nn.ReLU):
    return nn.Sequential(
        nn.Conv1d(2, 3, 3), activation(), nn.BatchNorm1d(3), nn.Flatten(start_dim=2), nn.AdaptiveAvgPool1d(4),
        nn.Flatten(), nn.Linear(12, 2),
    )  # fmt: skip


def volume_net(activation=nn.ReLU):
    return nn.Sequential(nn.Conv3d(1, 2, 2), activation(), nn.AvgPool3d(2), nn.Conv3d(2, 3, 1), nn.LogSoftmax(1))


def token_net(activation=nn.ReLU):
    return nn.Sequential(nn.Embedding(9, 6), nn.Linear(6, 5), nn.LayerNorm(5), activation(), nn.Linear(5, 4))


def twice_activated(activation=nn.ReLU):
    return nn.Sequential(nn.Linear(6, 5), activation(), nn.BatchNorm1d(5), activation(), nn.Linear(5, 2))


INPUTS = {
    mlp: (7, 6),
    cnn: (5, 3, 8, 8),
    signal_net: (5, 2, 9),
    volume_net: (4, 1, 5, 5, 5),
    token_net: (4, 7),
    twice_activated: (6, 6),
}
every_net = pytest.mark.parametrize("net", INPUTS, ids=lambda net: net.__name__)


def an_input(net):
    torch.manual_seed(2)
    return torch.randint(9, INPUTS[net]) if net is token_net else torch.randn(INPUTS[net])


def weighted(model):
    return [layer for layer in model.modules() if isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d))]


def norms(model):
    return [layer for layer in model.modules() if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d))]


def silence_the_mirrored_members(linked, single):
    """Give the linked model the single one's weights for the first members, and zero for all others."""
    with torch.no_grad():
        for wide, narrow in zip(weighted(linked), weighted(single), strict=True):
            wide.weight.zero_()
            wide.weight[:, : narrow.weight.shape[1]] = narrow.weight
            if narrow.bias is not None:
                wide.bias.copy_(narrow.bias)
        for wide, narrow in zip(norms(linked), norms(single), strict=True):
            wide.weight[: len(narrow.weight)] = narrow.weight
            wide.bias[: len(narrow.bias)] = narrow.bias


@every_net
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.PReLU, nn.SELU, nn.SiLU, nn.Tanh])
def test_with_its_mirrored_members_silenced_the_linked_model_is_the_single_one(net, training, activation):
    single = net(activation).train(training)
    linked = link_model(single)
    silence_the_mirrored_members(linked, single)
    x = an_input(net)
    torch.testing.assert_close(linked(x), single(x))


@every_net
def test_the_original_is_left_untouched(net):
    model = net(nn.PReLU)
    before, text = copy.deepcopy(model.state_dict()), repr(model)
    linked = link_model(model)
    linked(an_input(net))
    assert repr(model) == text
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    owned = {tensor.data_ptr() for tensor in model.state_dict().values()}
    assert owned.isdisjoint(tensor.data_ptr() for tensor in linked.state_dict().values())


def test_layers_of_unchanged_width_keep_their_weights_and_widened_ones_are_drawn_afresh():
    model = mlp()
    linked = link_model(model)
    assert torch.equal(linked[0].weight, model[0].weight)
    assert (linked[3].in_features, linked[3].weight.shape) == (10, (4, 10))
    assert not torch.isin(linked[3].weight, model[3].weight).any()
    assert not torch.isin(linked[3].bias, model[3].bias).any()
    assert 0 < linked[3].weight.abs().max() <= 10**-0.5  # the bound of Linear's own initialisation, by fan-in


def test_fresh_weights_come_from_the_global_generator_in_order():
    model = mlp()
    torch.manual_seed(5)
    first = link_model(model).state_dict()
    torch.manual_seed(5)
    expected = [nn.Linear(10, 4), nn.Linear(8, 3)]
    assert torch.equal(first["3.weight"], expected[0].weight)
    assert torch.equal(first["5.bias"], expected[1].bias)


def test_a_widened_batch_norm_starts_anew_over_all_members():
    model = cnn()
    model(an_input(cnn))
    norm = link_model(model)[1][3]
    assert (norm.num_features, norm.weight.tolist(), norm.bias.tolist()) == (12, [1] * 12, [0] * 12)
    assert (norm.running_mean.tolist(), norm.running_var.tolist()) == ([0] * 12, [1] * 12)
    assert norm.num_batches_tracked == 0
    assert torch.equal(link_model(model)[0][1].running_mean, model[0][1].running_mean)


def test_a_batch_norm_without_parameters_or_statistics_is_widened_too():
    model = nn.Sequential(
        nn.Linear(3, 4), nn.ReLU(), nn.BatchNorm1d(4, affine=False, track_running_stats=False), nn.Linear(4, 2)
    )
    linked = link_model(model)
    assert linked[2].num_features == 8
    assert linked(torch.randn(5, 3)).shape == (5, 2)


@pytest.mark.parametrize(
    ("activation", "expected"),
    [
        (nn.ReLU(inplace=True), LinkedReLU),
        (nn.SELU(inplace=True), LinkedSELU),
        (nn.SiLU(inplace=True), LinkedSiLU),
        (nn.PReLU(), LinkedPReLU),
        *[
            (base, Linked)
            for base in (
                nn.ELU(0.5, inplace=True), nn.GELU("tanh"), nn.LeakyReLU(0.3), nn.Tanh(), nn.Softplus(2.0), nn.Mish(),
                nn.Hardswish(), nn.Sigmoid(), nn.ReLU6(), nn.Hardtanh(-2, 2), nn.Softsign(), nn.CELU(),
            )
        ],
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)  # fmt: skip
def test_every_activation_becomes_its_mirror_linkage_with_its_own_settings(activation, expected):
    linked = link_model(nn.Sequential(nn.Linear(2, 3), activation, nn.Linear(3, 2)))[1]
    assert type(linked) is expected
    z = torch.randn(4, 3)
    assert torch.equal(linked(z), torch.cat([activation(z.clone()), activation(-z)], -1))


def test_units_of_a_linear_are_linked_along_the_last_axis_and_of_a_convolution_along_axis_one():
    assert link_model(mlp())[1].linkage_dim == -1
    assert link_model(cnn())[0][2].linkage_dim == 1
    assert link_model(token_net())[3].linkage_dim == -1


def test_the_slopes_of_a_prelu_go_to_both_members():
    model = nn.Sequential(nn.Conv2d(1, 3, 1), nn.PReLU(3), nn.Conv2d(3, 1, 1)).double()
    model[1].weight.data = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)
    model[1].weight.requires_grad_(False)
    slopes = list(link_model(model)[1].parameters())
    assert [weight.tolist() for weight in slopes] == [[0.1, 0.2, 0.3]] * 2
    assert not any(weight.requires_grad for weight in slopes)
    assert all(weight.dtype == torch.float64 for weight in slopes)


def test_prelu_slopes_behind_another_linkage_are_repeated_member_by_member():
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.PReLU(3), nn.Linear(3, 1))
    model[2].weight.data = torch.tensor([0.1, 0.2, 0.3])
    linked = link_model(model)
    torch.testing.assert_close(next(linked[2].parameters()), torch.tensor([0.1, 0.2, 0.3] * 2))
    assert linked(torch.randn(4, 2)).shape == (4, 1)


def test_dtype_training_flags_and_requires_grad_are_kept():
    model = cnn(nn.RReLU).to(torch.float64).eval()
    model[1][1].weight.requires_grad_(False)
    model[1][3].weight.requires_grad_(False)
    linked = link_model(model)
    assert not any(module.training for module in linked.modules())
    assert all(parameter.dtype == torch.float64 for parameter in linked.parameters())
    assert not linked[1][1].weight.requires_grad
    assert not linked[1][3].weight.requires_grad
    assert linked[1][3].bias.requires_grad


def test_the_device_is_kept():
    assert {tensor.device.type for tensor in link_model(cnn(nn.PReLU).to("meta")).state_dict().values()} == {"meta"}


def test_an_activation_object_used_twice_is_linked_in_each_place():
    shared = nn.ReLU()
    model = nn.Sequential(nn.Conv1d(2, 3, 1), shared, nn.Flatten(), nn.Linear(12, 5), shared, nn.Linear(5, 2), shared)
    linked = link_model(model)
    assert [type(linked[index]) for index in (1, 4, 6)] == [LinkedReLU, LinkedReLU, nn.ReLU]
    assert linked(torch.randn(3, 2, 4)).shape == model(torch.randn(3, 2, 4)).shape


@pytest.mark.parametrize("tail", [[nn.Sigmoid()], [nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Softmax(1)]])
def test_an_activation_that_nobody_reads_is_the_output_and_stays_single(tail):
    model = nn.Sequential(nn.Conv2d(1, 3, 1), nn.ReLU(), nn.Conv2d(3, 2, 1), *tail)
    linked = link_model(model)
    assert type(linked[1]) is LinkedReLU
    assert [type(layer) for layer in linked[3:]] == [type(layer) for layer in tail]
    assert linked(torch.randn(2, 1, 4, 4)).shape == model(torch.randn(2, 1, 4, 4)).shape


def test_a_sequential_subclass_keeps_its_class():
    class Block(nn.Sequential):
        pass

    assert type(link_model(Block(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)))) is Block


def test_a_layer_that_is_linked_already_is_left_as_it_is():
    model = nn.Sequential(nn.Linear(2, 3), LinkedSELU(dim=-1), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 1))
    linked = link_model(model)
    assert [type(linked[index]) for index in (1, 3)] == [LinkedSELU, LinkedReLU]
    assert torch.equal(linked[2].weight, model[2].weight)
    assert linked(torch.randn(5, 2)).shape == (5, 1)


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(3, 3), nn.ReLU())

    def forward(self, x):
        return x + self.inner(x)


class OwnLeaf(nn.Module):
    def forward(self, x):
        return x.relu()


def around(*layers):
    return nn.Sequential(nn.Conv2d(2, 4, 1), nn.Sequential(nn.ReLU(), *layers))


def behind_linear(*layers):
    return nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.ReLU(), *layers))


def pruned(layer):
    return prune.identity(layer, "weight")


def shared_weight():
    layer = nn.Linear(3, 3)
    return nn.Sequential(layer, nn.ReLU(), layer)


def tied_weight():
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))
    model[2].weight = model[0].weight
    return model


def shared_container():
    block = nn.Sequential(nn.ReLU(), nn.Dropout())
    return nn.Sequential(nn.Linear(3, 3), block, nn.Linear(3, 3), block)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: nn.Sequential(nn.Linear(3, 3), Residual()), "layer '1' (Residual) has a forward of its own"),
        (
            lambda: nn.Sequential(nn.Linear(3, 3), nn.Sequential(OwnLeaf())),
            "layer '1.0' (OwnLeaf) has a forward of its",
        ),
        (Residual, "the model itself (Residual) has a forward of its own"),
        (lambda: nn.Sequential(nn.ModuleList([nn.ReLU()])), "layer '0' (ModuleList) has a forward of its own, or none"),
        (lambda: around(nn.LazyConv2d(3, 1)), "layer '1.1' (LazyConv2d) has a forward of its own, or none yet"),
        (
            lambda: around(parametrizations.weight_norm(nn.Conv2d(4, 1, 1))),
            "layer '1.1' (ParametrizedConv2d) has a forward of its own",
        ),
        (lambda: around(nn.Conv2d(4, 4, 1, groups=2)), "layer '1.1' (Conv2d) reads a linked activation with groups=2"),
        (lambda: around(nn.GroupNorm(2, 4), nn.Conv2d(4, 1, 1)), "layer '1.1' (GroupNorm) reads a linked activation"),
        (lambda: behind_linear(nn.LayerNorm(4)), "layer '1.1' (LayerNorm) reads a linked activation, but how to widen"),
        (lambda: around(nn.ConvTranspose2d(4, 1, 1)), "layer '1.1' (ConvTranspose2d) reads a linked activation"),
        (lambda: behind_linear(LinkedReLU(), nn.Linear(8, 1)), "layer '1.1' (LinkedReLU) reads a linked activation"),
        (
            lambda: around(nn.Linear(4, 1)),
            "layer '1.1' (Linear) reads the last axis, but the linked units lie in axis 1",
        ),
        (
            lambda: behind_linear(nn.Conv1d(4, 1, 1)),
            "layer '1.1' (Conv1d) reads axis 1, but the linked units lie in the",
        ),
        (lambda: behind_linear(nn.MaxPool1d(2), nn.Linear(2, 1)), "layer '1.1' (MaxPool1d) works along the last axis"),
        (
            lambda: around(nn.Flatten(0), nn.Linear(4, 1)),
            "layer '1.1' (Flatten) with start_dim=0, end_dim=-1 mixes linked units",
        ),
        (
            lambda: behind_linear(nn.BatchNorm1d(7), nn.Linear(4, 1)),
            "layer '1.1' (BatchNorm1d) has num_features=7, but 4 units reach it",
        ),
        (lambda: around(nn.Conv2d(5, 1, 1)), "layer '1.1' (Conv2d) has in_channels=5, but 4 units reach it"),
        (lambda: behind_linear(nn.Linear(5, 1)), "layer '1.1' (Linear) has in_features=5, but 4 units reach it"),
        (
            lambda: around(pruned(nn.Conv2d(4, 1, 1))),
            "layer '1.1' (Conv2d) has a weight computed by a hook (weight norm, pruning)",
        ),
        (shared_weight, "layer '2' (Linear) shares weights or its container with layer '0'"),
        (tied_weight, "layer '2' (Linear) shares weights or its container with layer '0'"),
        (shared_container, "layer '3.0' (ReLU) shares weights or its container with layer '1.0'"),
        (
            lambda: nn.Sequential(nn.Linear(3, 3), nn.ReLU()),
            "the model (Sequential) has no activation that a later layer",
        ),
        (nn.ReLU, "the model (ReLU) has no activation that a later layer reads"),
        (nn.Sequential, "the model (Sequential) has no activation that a later layer reads"),
    ],
)
def test_what_cannot_be_followed_is_refused_by_its_path_with_the_way_out(build, message):
    with pytest.raises(UnsupportedModelError, match=re.escape(message)) as caught:
        link_model(build())
    assert "by hand with the modules of covshift.linked" in str(caught.value)


def test_unknown_layers_of_torch_are_kept_where_nothing_linked_reaches_them():
    model = nn.Sequential(
        nn.Unflatten(1, (2, 3)),
        nn.ConvTranspose1d(2, 4, 1),
        nn.GroupNorm(2, 4),
        nn.ReLU(),
        nn.Conv1d(4, 2, 1),
        nn.Softmax(1),
    )
    linked = link_model(model)
    assert torch.equal(linked[1].weight, model[1].weight)
    assert linked(torch.randn(5, 6)).shape == (5, 2, 3)


def test_what_is_no_module_is_refused():
    with pytest.raises(InvalidArgumentError, match=re.escape("model must be a torch.nn.Module, got list")):
        link_model([nn.ReLU()])
