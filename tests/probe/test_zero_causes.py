"""Zeros of dL/dz are split as a hand-written chain rule splits them, and the parts add up."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import covshift
from covshift import linked
from covshift.exceptions import InvalidArgumentError
from covshift.probe import zeros

PARTS = ("structural_count", "masked_count", "underflow_or_cancelled_count")


def weighted(weights):
    """A loss whose gradient with respect to the output is ``weights``."""
    return lambda output: (output * weights).sum()


def counts(result, place=0):
    return [int(result[name][place]) for name in ("zero_count", *PARTS)]


def test_relu_by_hand():
    # z:            dead  dead  live  live  live, at 0
    z = torch.tensor([[-1.0, -2.0, 3.0, 4.0, 0.0]])
    above = torch.tensor([[5.0, 0.0, 0.0, 7.0, 1.0]])
    result = zeros(nn.ReLU(), weighted(above), z)
    assert counts(result) == [4, 3, 1, 0]
    assert result.status.values.tolist() == ["split"]
    assert float(result.structural_rate[0]) == 0.6
    assert float(result.zero_rate[0]) == 0.8


def test_a_product_that_underflows_is_neither_structural_nor_masked():
    z = torch.tensor([[-1.0, -1.0, 1.0]])
    above = torch.tensor([[1e-44, 1.0, 1e-44]])
    result = zeros(nn.LeakyReLU(1e-6), weighted(above), z)
    assert counts(result) == [1, 0, 0, 1]


def test_members_that_cancel_are_neither_structural_nor_masked():
    z = torch.tensor([[1.0, 2.0]])
    identity = linked.Linked(nn.Identity)
    result = zeros(identity, weighted(torch.tensor([[3.0, 1.0, 3.0, 2.0]])), z)
    # f(z) = (z, -z): delta = u_1 - u_2.
    assert counts(result) == [1, 0, 0, 1]


def test_a_linkage_has_a_structural_zero_only_where_every_member_has_none():
    z = torch.tensor([[-1.0, 2.0, 0.0]])
    result = zeros(linked.LinkedReLU(), weighted(torch.ones(1, 6)), z)
    assert counts(result) == [1, 1, 0, 0]
    above = torch.tensor([[1.0, 0.0, 1.0, 0.0, 1.0, 1.0]])
    # z = -1 lives in the second member, which gets no gradient; z = 2 in the first, which gets none either.
    assert counts(zeros(linked.LinkedReLU(), weighted(above), z)) == [3, 1, 2, 0]


def network(activation, above, *, width=1):
    torch.manual_seed(3)
    first, second = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4 * width, 3, 1)
    return nn.Sequential(first, activation, *above, second, nn.Flatten())


MASKS = {"nothing": (), "max pooling": (nn.MaxPool2d(2),), "dropout": (nn.Dropout(0.5),)}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize(
    ("activation", "derivatives", "width"),
    [
        (nn.ReLU(), lambda z: [(z > 0).float()], 1),
        (nn.ReLU(inplace=True), lambda z: [(z > 0).float()], 1),
        (linked.LinkedReLU(), lambda z: [(z > 0).float(), -(z < 0).float()], 2),
        (nn.Hardtanh(), lambda z: [((z > -1) & (z < 1)).float()], 1),
    ],
    ids=["relu", "relu in place", "linked relu", "hardtanh"],
)
def test_the_split_is_that_of_the_chain_rule_on_tensors_kept_by_hand(activation, derivatives, width, mask):
    model = network(activation, MASKS[mask], width=width)
    x = torch.randn(8, 2, 6, 6)
    # Zeros of z itself, which only relu'(0) = 0 makes structural.
    x[:, :, :2] = 0
    model[0].bias.data.zero_()
    result = zeros(model, lambda output: output.square().sum(), x)
    # A twin by hand, with the very masks that a visit draws.
    torch.manual_seed(0)
    z = model[0](x).detach().requires_grad_()
    out = model[1](z.clone())
    out.retain_grad()
    torch.manual_seed(0)
    model[2:](out).square().sum().backward()
    own, above = derivatives(z.detach()), out.grad.chunk(width, dim=1)
    delta = sum(j * u for j, u in zip(own, above, strict=True))
    assert torch.equal(delta == 0, z.grad == 0)
    structural = sum(j.abs() for j in own) == 0
    masked = ~structural & (sum((j * u).abs() for j, u in zip(own, above, strict=True)) == 0)
    expected = [int(part.sum()) for part in (delta == 0, structural, masked)]
    assert counts(result)[:3] == expected
    assert counts(result)[3] == expected[0] - expected[1] - expected[2]
    assert int(result["count"][0]) == z.numel()


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([nn.ReLU, nn.SELU, nn.SiLU, nn.Tanh, nn.ReLU6, nn.Hardswish]),
    st.booleans(),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
    st.integers(0, 2**16),
)
def test_the_three_causes_add_up_to_all_zeros_and_only_where_the_gradient_is_zero(kind, mirrored, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    z = (torch.randn(4, 8, generator=generator) * 30).to(dtype)
    z[0] = 0
    module = linked.Linked(kind) if mirrored else kind()
    above = torch.randn(4, 16 if mirrored else 8, generator=generator)
    above = (above * (torch.rand(above.shape, generator=generator) > 0.3) * 1e-30).to(dtype)
    result = zeros(module, weighted(above), z)
    probe = z.clone().requires_grad_()
    (module(probe) * above).sum().backward()
    zero, *parts = counts(result)
    assert zero == sum(parts) == int((probe.grad == 0).sum())
    assert int(result.structural_count[0]) <= int(result.local_zero_count[0])


def test_structural_zeros_are_those_the_recorder_counts_in_closed_form(build, batch):
    model = build()
    x, y = batch(model)
    with covshift.record(model, every=1) as recorder:
        F.cross_entropy(model(x), y).backward()
        torch.optim.SGD(model.parameters(), lr=0.0).step()
    result = zeros(model, F.cross_entropy, (x, y))
    rows = recorder.recording["layers"].isel(step=0).sel(layer=["2", "6"], signal="preactivation")
    assert result.local_zero_count.values.tolist() == rows.structural_zero_count.values.astype(int).tolist()


def test_a_second_call_of_one_module_is_a_layer_of_its_own():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.act = nn.ReLU()

        def forward(self, x):
            return self.act(self.act(x) - 1)

    z = torch.tensor([[-1.0, 0.5, 2.0, 3.0]])
    result = zeros(Twice(), lambda output: output.sum(), z)
    assert result.layer.values.tolist() == ["act", "act#1"]
    # 0.5 passes the first and not the second, which masks it there.
    assert [counts(result, 0), counts(result, 1)] == [[2, 1, 1, 0], [2, 2, 0, 0]]


def test_the_gradient_is_the_one_through_the_nonlinearity_where_z_has_other_consumers():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin, self.act = nn.Linear(3, 3), nn.ReLU()

        def forward(self, x):
            z = self.lin(x)
            return self.act(z) + z

    model, x = Residual(), torch.randn(16, 3)
    result = zeros(model, lambda output: output.sum(), x)
    assert counts(result)[1] == int((model.lin(x) <= 0).sum())


def test_padding_labels_mask_whole_examples():
    model = nn.Sequential(nn.Linear(4, 6), nn.SELU(), nn.Linear(6, 3))
    labels = torch.tensor([0, 1, -100, 2, -100])
    result = zeros(model, F.cross_entropy, (torch.randn(5, 4), labels))
    assert counts(result) == [12, 0, 12, 0]


def test_dropout_masks_only_in_training_mode():
    model = nn.Sequential(nn.Linear(4, 64), nn.SELU(), nn.Dropout(0.5), nn.Linear(64, 3))
    given_batch = torch.randn(32, 4), torch.randint(3, (32,))
    assert float(zeros(model, F.cross_entropy, given_batch).masked_rate[0]) == pytest.approx(0.5, abs=0.05)
    assert int(zeros(model, F.cross_entropy, given_batch, mode="eval").zero_count[0]) == 0


def test_what_cannot_be_split_says_why_and_gives_no_number():
    class Aside(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin, self.used, self.unused = nn.Linear(4, 4), nn.GLU(), nn.ReLU()

        def forward(self, x):
            z = self.lin(x)
            self.unused(z)
            return self.used(z)

    result = zeros(Aside(), lambda output: output.sum(), torch.randn(3, 4))
    assert result.status.sel(layer=["used", "unused"]).values.tolist() == ["not elementwise", "no gradient arrived"]
    assert result.zero_rate.isnull().all()
    assert not result["count"].any()
    noisy = nn.Sequential(nn.Linear(4, 4), nn.RReLU())
    assert zeros(noisy, lambda output: output.sum(), torch.randn(3, 4)).status.item() == "not elementwise"
    assert zeros(noisy, lambda output: output.sum(), torch.randn(3, 4), mode="eval").status.item() == "split"


def test_gradients_that_are_not_finite_are_counted_and_are_no_zeros():
    z = torch.tensor([[1.0, 2.0, -1.0]])
    above = torch.tensor([[float("inf"), 1.0, 1.0]])
    result = zeros(nn.ReLU(), lambda output: (output * above.clamp(max=1)).sum() + _with_gradient(output, above), z)
    assert int(result.nonfinite_count[0]) == 1
    assert counts(result) == [1, 1, 0, 0]


def _with_gradient(output, gradient):
    """A finite value whose gradient is not."""

    class Planted(torch.autograd.Function):
        @staticmethod
        def forward(context, value):
            return value.sum() * 0

        @staticmethod
        def backward(context, above):
            return gradient

    return Planted.apply(output)


def test_the_model_is_left_as_it_was(build, batch, train, photograph, assert_same):
    model = build()
    train(model, steps=2)
    given_batch = batch(model)
    before = photograph(model)
    zeros(model, F.cross_entropy, given_batch)
    assert_same(before, photograph(model))
    with pytest.raises(InvalidArgumentError):
        zeros(model, lambda output, y: output, given_batch)
    assert_same(before, photograph(model))


def test_a_model_whose_activations_are_functions_is_named():
    with pytest.raises(InvalidArgumentError, match=r"no nonlinearity was called as a module .* put modules"):
        zeros(nn.Linear(2, 2), lambda output: output.sum(), torch.randn(3, 2))
