"""Laws of the functional forms: what is concatenated, what autograd makes of it, and what is refused."""

import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from covshift.exceptions import InvalidArgumentError
from covshift.linked.functional import (
    Mirrored,
    linked,
    linked_prelu,
    linked_relu,
    linked_selu,
    linked_silu,
    min_max,
)

SLOPES = (torch.tensor([0.25], dtype=torch.float64), torch.tensor([0.5], dtype=torch.float64))
SCALE, ALPHA = 1.0507009873554805, 1.6732632423543772  # Klambauer et al. 2017, equation 14


def closed_selu(z):
    return SCALE * (z if z > 0 else ALPHA * math.expm1(z))


FORMS = {
    "relu": (linked_relu, lambda z: max(z, 0.0), lambda z: max(-z, 0.0)),
    "prelu": (
        lambda z, dim=1: linked_prelu(z, SLOPES, dim=dim),
        lambda z: z if z > 0 else 0.25 * z,
        lambda z: -z if z < 0 else -0.5 * z,
    ),
    "selu": (linked_selu, closed_selu, lambda z: closed_selu(-z)),
    "silu": (linked_silu, lambda z: z / (1 + math.exp(-z)), lambda z: -z / (1 + math.exp(z))),
    "min_max": (min_max, lambda z: max(z, 0.0), lambda z: min(z, 0.0)),
}
by_form = pytest.mark.parametrize("form", FORMS)


@by_form
@settings(deadline=None, max_examples=40)
@given(values=st.lists(st.floats(-30, 30), min_size=1, max_size=6))
def test_the_halves_are_the_closed_forms_of_the_members(form, values):
    function, first, second = FORMS[form]
    out = function(torch.tensor([values], dtype=torch.float64))
    expected = torch.tensor([[first(z) for z in values] + [second(z) for z in values]], dtype=torch.float64)
    torch.testing.assert_close(out, expected)


@by_form
@pytest.mark.parametrize(("shape", "dim"), [((3, 4), 1), ((2, 3, 2, 2), 1), ((2, 3, 4), -1)])
def test_autograd_agrees_with_finite_differences(form, shape, dim):
    torch.manual_seed(0)
    z = torch.randn(shape, dtype=torch.float64)
    z = (z.sign() * (z.abs() + 0.1)).requires_grad_()  # away from the kinks at zero
    assert torch.autograd.gradcheck(lambda t: FORMS[form][0](t, dim=dim), z)


@by_form
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_dtype_of_the_input_is_kept(form, dtype):
    z = torch.randn(2, 3, dtype=dtype)
    if form == "prelu":
        assert linked_prelu(z, [slope.to(dtype) for slope in SLOPES]).dtype == dtype
    else:
        assert FORMS[form][0](z).dtype == dtype


def test_a_mirrored_member_has_minus_the_derivative_of_its_base_at_minus_z():
    z = torch.linspace(-5, 5, 101, dtype=torch.float64)
    mirrored = torch.func.vmap(torch.func.grad(Mirrored(F.silu)))(z)
    assert torch.equal(mirrored, -torch.func.vmap(torch.func.grad(F.silu))(-z))


def test_a_mirrored_member_names_its_base():
    assert Mirrored(F.silu).mirror_of is F.silu
    assert repr(Mirrored(F.silu)).startswith("Mirrored(<function silu")


def test_at_zero_the_linked_relu_has_no_derivative_but_the_min_max_pair_has():
    def both(function):
        return torch.func.jacrev(function)(torch.zeros(1, 1)).flatten().tolist()

    assert both(linked_relu) == [0, 0]
    assert both(min_max) == [1, 1]


@settings(deadline=None, max_examples=40)
@given(st.lists(st.floats(width=32), min_size=1, max_size=8))
def test_the_min_max_members_add_up_to_z_nan_and_infinities_included(values):
    z = torch.tensor([values])
    above, below = min_max(z).chunk(2, dim=1)
    torch.testing.assert_close(above + below, z, rtol=0, atol=0, equal_nan=True)


@by_form
def test_nan_stays_nan_in_both_halves_and_an_empty_batch_stays_empty(form):
    function = FORMS[form][0]
    assert function(torch.full((1, 2), math.nan, dtype=torch.float64)).isnan().all()
    assert function(torch.zeros(0, 3, dtype=torch.float64)).shape == (0, 6)


def test_infinity_passes_through_as_the_members_have_it():
    assert linked_relu(torch.tensor([[math.inf]])).tolist() == [[math.inf, 0]]
    assert min_max(torch.tensor([[-math.inf]])).tolist() == [[0, -math.inf]]


@by_form
def test_channels_last_stays_channels_last(form):
    z = torch.randn(2, 3, 4, 5, dtype=torch.float64).to(memory_format=torch.channels_last)
    assert FORMS[form][0](z).is_contiguous(memory_format=torch.channels_last)


@by_form
def test_a_non_contiguous_input_gives_what_its_copy_gives(form):
    z = torch.randn(5, 4, 3, dtype=torch.float64).transpose(0, 2)
    assert not z.is_contiguous()
    assert torch.equal(FORMS[form][0](z), FORMS[form][0](z.contiguous()))


def test_any_number_of_members_is_concatenated_in_order_and_one_is_the_base_itself():
    z = torch.randn(2, 5, 3)
    out = linked(z, [torch.sin, torch.cos, torch.tanh], dim=-1)
    assert torch.equal(out, torch.cat([z.sin(), z.cos(), z.tanh()], -1))
    assert torch.equal(linked(z, [torch.sin]), z.sin())


def test_the_tensor_itself_is_left_alone():
    z = torch.randn(2, 3)
    before = z.clone()
    linked_selu(z)
    assert torch.equal(z, before)


@pytest.mark.parametrize(
    ("z", "dim", "message"),
    [
        (torch.zeros(4), 1, "dim=1 does not exist in z with ndim=1 and shape (4,); valid: -1 to 0"),
        (torch.zeros(2, 3), -3, "dim=-3 does not exist in z with ndim=2 and shape (2, 3); valid: -2 to 1"),
        (torch.tensor(1.0), 0, "valid: no dim at all: unsqueeze z first"),
        (torch.zeros(2, 3, dtype=torch.int64), 1, "must be a floating-point tensor, got dtype torch.int64"),
        (torch.zeros(2, 3, dtype=torch.bool), 1, "must be a floating-point tensor, got dtype torch.bool"),
        ([[1.0, 2.0]], 1, "must be a floating-point tensor, got a list"),
    ],
)
@by_form
def test_a_tensor_without_that_axis_or_not_floating_is_refused(form, z, dim, message):
    with pytest.raises(InvalidArgumentError, match=re.escape(message)):
        FORMS[form][0](z, dim=dim)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([], "members is empty"),
        ([torch.sin, 3], "members[1] is a int; expected a callable"),
        ([torch.sum], "turned shape (2, 4) into (); members must keep the shape"),
        ([F.glu], "turned shape (2, 4) into (2, 2); members must keep the shape"),
        ([lambda z: "silly"], "turned shape (2, 4) into a str"),
        ([F.relu_, torch.sin], "changed z in place, which falsifies the other members; use inplace=False"),
    ],
)
def test_members_that_cannot_be_linked_are_refused(members, message):
    with pytest.raises(InvalidArgumentError, match=re.escape(message)):
        linked(torch.randn(2, 4), members)


def test_inference_tensors_which_count_no_changes_are_accepted():
    with torch.inference_mode():
        assert linked_relu(torch.tensor([[-1.0]])).tolist() == [[0, 1]]


@pytest.mark.parametrize(
    ("shape", "dim", "slopes", "message"),
    [
        ((2, 3), 1, 4, "4 PReLU slopes do not fit z with 3 units in axis 1; use num_parameters=3"),
        ((2, 5, 3), -1, 3, "3 PReLU slopes belong to axis 1, but dim=-1 of a 3-dimensional tensor is another axis"),
        ((3,), 0, 3, "3 PReLU slopes belong to axis 1, but dim=0 of a 1-dimensional tensor is another axis"),
    ],
)
def test_slopes_that_do_not_belong_to_the_units_are_refused(shape, dim, slopes, message):
    with pytest.raises(InvalidArgumentError, match=re.escape(message)):
        linked_prelu(torch.zeros(shape), [torch.zeros(slopes)] * 2, dim=dim)


def test_a_slope_vector_too_few_is_refused():
    with pytest.raises(InvalidArgumentError, match="slopes holds 1 tensors; expected two, one per member"):
        linked_prelu(torch.zeros(2, 3), [torch.zeros(1)])


def test_slopes_per_unit_apply_to_their_own_unit_and_member():
    slopes = (torch.tensor([0.0, 0.5]), torch.tensor([2.0, 3.0]))
    assert linked_prelu(torch.tensor([[-1.0, -1.0]]), slopes).tolist() == [[0, -0.5, 1, 1]]
    assert linked_prelu(torch.tensor([[1.0, 1.0]]), slopes).tolist() == [[1, 1, -2, -3]]
