"""The audit against the measured table of the design document, closed forms, and a recount of all 16-bit values."""

import copy
import functools
import importlib
import math
import re
from typing import NamedTuple

import pytest
import torch
from scipy.optimize import brentq
from torch import nn
from torch.nn import functional as F

import covshift.linked
from covshift.exceptions import InvalidArgumentError
from covshift.linked import Linked, LinkedPReLU, LinkedReLU, LinkedSELU, LinkedSiLU, MinMax, audit
from covshift.linked.auditing import Interval
from covshift.linked.sweep import derivative

F32, F16, BF16, F64 = torch.float32, torch.float16, torch.bfloat16, torch.float64
END = math.inf  # stands for the largest finite value
EVERYWHERE_NEGATIVE = [(-END, 0)]

OFF_THE_GRID = torch.tensor(5.0).sqrt().item()  # no round number, no landmark, and not in the stride


def composite_silu(z):
    return z * torch.sigmoid(z)


class Row(NamedTuple):
    """A row of the table: zeros of single float32 and float16, of mirrored float32, and the mirrored minimum."""

    base: object
    single: list
    half: list
    mirrored: list
    minimum: float


TABLE = {
    "ReLU": Row(nn.ReLU(), EVERYWHERE_NEGATIVE, EVERYWHERE_NEGATIVE, [(0, 0)], 0),
    "PReLU a=0": Row(nn.PReLU(init=0), EVERYWHERE_NEGATIVE, EVERYWHERE_NEGATIVE, [(0, 0)], 0),
    "leaky .01": Row(nn.LeakyReLU(0.01), [], [], [], 0.01),
    "PReLU .25": Row(nn.PReLU(init=0.25), [], [], [], 0.25),
    "SELU": Row(nn.SELU(), [(-END, -104)], [(-END, -17.9)], [], 1.0507),
    "ELU": Row(nn.ELU(), [(-END, -104)], [(-END, -17.3)], [], 1),
    "SiLU": Row(nn.SiLU(), [(-END, -88.7)], [(-END, -20.3)], [], 0.5),
    "z * sigmoid(z)": Row(composite_silu, [(-END, -88.7), (-1.278, -1.278)], [(-END, -17.3), (-1.278,) * 2], [], 0.5),
    "GELU": Row(nn.GELU(), [(-END, -6.15)], [(-END, -6.04)], [], 0.5),
    "GELU tanh": Row(nn.GELU("tanh"), [(-1.8447e19, -5.06)], [(-END, -5.06)], [], 0.5),
    "Softplus": Row(nn.Softplus(), [(-END, -104)], [(-END, -17.3)], [], 0.5),
    "Mish": Row(nn.Mish(), [(-END, -103)], [(-END, -20.3)], [], 0.6),
    "Hardswish": Row(nn.Hardswish(), [(-END, -3), (-1.5, -1.5)], [(-END, -3), (-1.5, -1.5)], [], 0.5),
    "Tanh": Row(nn.Tanh(), [(-END, -9.01), (9.01, END)], [(-END, -4.51), (4.51, END)], [(-END, -9.01), (9.01, END)], 0),
    "Sigmoid": Row(
        nn.Sigmoid(), [(-END, -88.7), (16.6, END)], [(-END, -17.3), (8.3, END)], [(-END, -88.7), (88.7, END)], 0
    ),
    "ReLU6": Row(nn.ReLU6(), [(-END, 0), (6, END)], [(-END, 0), (6, END)], [(-END, -6), (0, 0), (6, END)], 0),
    "Hardtanh": Row(nn.Hardtanh(), [(-END, -1), (1, END)], [(-END, -1), (1, END)], [(-END, -1), (1, END)], 0),
    "Softsign": Row(
        nn.Softsign(),
        [(-END, -1.118e7), (1.118e7, END)],
        [(-END, -1365), (1365, END)],
        [(-END, -1.118e7), (1.118e7, END)],
        0,
    ),
}
AT_THE_GATE = {"ReLU", "PReLU .25", "SELU", "SiLU", "Tanh"}
"""The paper's own and one that saturates on both sides: each row takes more than a second."""

every_row = pytest.mark.parametrize(
    "name", [name if name in AT_THE_GATE else pytest.param(name, marks=pytest.mark.slow) for name in TABLE]
)

# Roots of g', where a kernel may or may not happen to round to exactly zero (it depends on the CPU's instruction set).
ROOTS = {"SiLU": -1.2784645, "GELU": -0.7517916, "GELU tanh": -0.7524614, "Mish": -1.1924312}


@functools.cache
def audited(name, mirrored):
    base = TABLE[name].base
    return audit(Linked(base) if mirrored else base)


def ends(intervals, dtype, name=""):
    """Low and high ends, the largest finite value written as END, without accidental zeros at a root."""
    limit = torch.finfo(dtype).max
    kept = [i for i in intervals if abs(i.low - ROOTS.get(name, math.inf)) > 1e-3]
    return [tuple(math.copysign(END, end) if abs(end) == limit else end for end in (i.low, i.high)) for i in kept]


def recount(members, dtype):
    """All finite 16-bit values, ascending, and whether all members' derivatives are zero, straight from autograd."""
    z = torch.arange(2**16).to(torch.int16).view(dtype)
    jacobian = []
    for member in members:
        leaf = z.clone().requires_grad_()
        jacobian.append(torch.autograd.grad(member(leaf * 1).sum(dtype=torch.float64), leaf)[0])
    zero = (torch.stack(jacobian) == 0).all(0)
    finite = z.isfinite()
    return z[finite].double(), zero[finite], torch.stack(jacobian)[:, finite].double()


@every_row
def test_a_single_activation_has_the_zeros_of_the_table(name):
    result, row = audited(name, False), TABLE[name]
    for dtype, expected in ((F32, row.single), (F16, row.half)):
        found = ends(result[dtype].zeros, dtype, name)
        assert [end for pair in found for end in pair] == pytest.approx(
            [e for pair in expected for e in pair], rel=0.025
        )


@every_row
def test_its_mirror_linkage_has_the_zeros_and_the_minimum_of_the_table(name):
    result, row = audited(name, True)[F32], TABLE[name]
    found = ends(result.zeros, F32)
    assert [end for pair in found for end in pair] == pytest.approx(
        [e for pair in row.mirrored for e in pair], rel=0.01
    )
    assert result.smallest == pytest.approx(row.minimum, rel=1e-3)
    assert result.fails_only_at_zero == (row.mirrored == [(0, 0)])
    assert result.holds == (not row.mirrored and name != "GELU tanh")


@every_row
@pytest.mark.parametrize("mirrored", [False, True], ids=["single", "mirrored"])
@pytest.mark.parametrize("dtype", [F16, BF16], ids=["float16", "bfloat16"])
def test_a_recount_of_all_16_bit_values_agrees(name, mirrored, dtype):
    base = TABLE[name].base
    module = base if base is composite_silu else copy.deepcopy(base).to(dtype)
    members = (module, lambda z: module(-z)) if mirrored else (module,)
    z, zero, jacobian = recount(members, dtype)
    result = audited(name, mirrored)[dtype]
    inside = torch.zeros_like(zero)
    for interval in result.zeros:
        within = (z >= interval.low) & (z <= interval.high)
        inside |= within
        edges = within & ((z == interval.low) | (z == interval.high))
        assert zero[edges].all()
        assert interval.solid == bool(zero[within].all())
    assert not (zero & ~inside).any()
    assert result.zero_share == pytest.approx(zero.double().mean().item())
    assert (result.evaluated, result.exhaustive) == (len(z), True)
    strength = jacobian.abs().amax(0)
    assert result.smallest == strength[~strength.isnan()].min()
    if (strength > 0).any():
        assert result.smallest_nonzero == strength[strength > 0].min()


@every_row
def test_float32_boundaries_are_exact_to_the_float(name):
    base = TABLE[name].base

    def is_zero(z):
        leaf = z.repeat(64).requires_grad_()
        return bool((torch.autograd.grad(base(leaf * 1).sum(), leaf)[0] == 0).all())

    for interval in audited(name, False)[F32].zeros:
        for end, outside in ((interval.low, -math.inf), (interval.high, math.inf)):
            z = torch.tensor(end, dtype=F32)
            neighbour = torch.nextafter(z, torch.tensor(outside))
            assert is_zero(z)
            assert not neighbour.isfinite() or not is_zero(neighbour) or not interval.solid


@every_row
def test_the_float32_share_of_zeros_counts_the_floats_in_the_intervals(name):
    result = audited(name, False)[F32]
    bits = torch.tensor([[i.low, i.high] for i in result.zeros], dtype=F32).reshape(-1, 2).view(torch.int32).long()
    places = torch.where(bits < 0, -(bits & 0x7FFFFFFF), bits)
    counted = (places[:, 1] - places[:, 0] + 1).sum().item() / (2 * 0x7F800000)
    assert result.zero_share == pytest.approx(counted, rel=1e-6) or not all(i.solid for i in result.zeros)
    assert result.evaluated > 4_000_000
    assert not result.exhaustive


@pytest.mark.parametrize(("dtype", "bits"), [(F32, 150), (F16, 25), (BF16, 134)], ids=["f32", "f16", "bf16"])
def test_elu_dies_where_exp_rounds_to_zero(dtype, bits):
    # exp(z) becomes 0 below half the smallest subnormal.
    high = audited("ELU", False)[dtype].zeros[0].high
    assert high == pytest.approx(-bits * math.log(2), rel=torch.finfo(dtype).eps)


@pytest.mark.parametrize(("dtype", "bits"), [(F32, 25), (F16, 12), (BF16, 9)], ids=["f32", "f16", "bf16"])
def test_tanh_dies_where_it_rounds_to_one(dtype, bits):
    low = audited("Tanh", False)[dtype].zeros[1].low
    assert low == pytest.approx(math.atanh(1 - 2.0**-bits), rel=max(torch.finfo(dtype).eps, 1e-5))


def test_the_isolated_zero_of_the_composite_swish_lies_at_the_root_of_its_derivative():
    def slope(z):
        s = 1 / (1 + math.exp(-z))
        return s + z * s * (1 - s)

    zeros = audited("z * sigmoid(z)", False)[F32].zeros
    assert zeros[-1].low == pytest.approx(brentq(slope, -2, -1), rel=1e-7)


@pytest.mark.parametrize(
    "members",
    [
        [lambda z: (z - OFF_THE_GRID) ** 2],
        [lambda z: (z - OFF_THE_GRID) ** 2, lambda z: (z - OFF_THE_GRID) ** 4],
        [lambda z: (z - OFF_THE_GRID) ** 2, lambda z: torch.relu(z - OFF_THE_GRID)],
    ],
    ids=["single", "both turn", "one turns, one sets in"],
)
def test_one_float_where_all_derivatives_vanish_is_found_among_four_thousand_million(members):
    result = audit(Linked(members=members), dtypes=[F32])[F32]
    assert result.zeros == (Interval(OFF_THE_GRID, OFF_THE_GRID),)


def test_mirrored_silu_derivatives_add_up_to_one_so_the_larger_is_at_least_a_half():
    z = torch.linspace(-50, 50, 20_001, dtype=F64)
    there, mirrored = (derivative(member, z) for member in LinkedSiLU().linkage_members)
    torch.testing.assert_close(there - mirrored, torch.ones_like(z), rtol=0, atol=1e-14)
    assert audit(LinkedSiLU(), dtypes=[F64])[F64].smallest == pytest.approx(0.5, abs=1e-15)


def test_tanh_gelu_has_nan_derivatives_beyond_the_root_of_the_largest_float32():
    low, high = audited("GELU tanh", False)[F32].nans
    assert (low.low, high.high) == (-torch.finfo(F32).max, torch.finfo(F32).max)
    assert -low.high == high.low == pytest.approx(math.sqrt(torch.finfo(F32).max), rel=1e-6)
    assert not audited("GELU tanh", True)[F32].holds
    assert audited("GELU tanh", True)[F16].holds


def test_in_place_selu_loses_its_derivative_much_earlier():
    # Where its output rounds to -1.758..., from which it takes the derivative; -16.6 or -17.3 by instruction set.
    (interval,) = audit(nn.SELU(inplace=True), dtypes=[F32])[F32].zeros
    assert -17.4 < interval.high < -16.6


def test_the_min_max_pair_holds_in_every_dtype_with_derivative_one():
    result = audit(MinMax())
    assert result.holds
    assert not result.fails_only_at_zero
    assert [r.smallest for r in result.by_dtype] == [1, 1, 1]


@pytest.mark.parametrize(
    ("module", "name"), [(LinkedSELU(), "SELU"), (LinkedSiLU(), "SiLU"), (LinkedPReLU(), "PReLU .25")]
)
def test_a_named_linked_module_audits_like_the_mirror_linkage_of_its_base(module, name):
    assert audit(module, dtypes=[F16, BF16]).by_dtype == audited(name, True).by_dtype[1:]


def test_linked_relu_fails_only_at_zero_in_every_dtype():
    result = audit(LinkedReLU())
    assert result.fails_only_at_zero
    assert not result.holds
    assert [(r.smallest, r.smallest_nonzero) for r in result.by_dtype] == [(0, 1)] * 3


@pytest.mark.parametrize(
    ("first", "second", "holds", "fails_only_at_zero"),
    [
        ([0.25, 0.25], [0.25, 0.25], True, False),
        ([0.0, 0.25], [0.25, 0.0], True, False),
        ([0.0, 0.25], [0.0, 0.25], False, True),
    ],
)
def test_the_worst_channel_counts_and_only_two_zero_slopes_in_one_channel_fail(
    first, second, holds, fails_only_at_zero
):
    module = LinkedPReLU(2)
    for slopes, values in zip(module.parameters(), (first, second), strict=True):
        slopes.data = torch.tensor(values)
    result = audit(module, dtypes=[F16, BF16])
    assert (result.holds, result.fails_only_at_zero) == (holds, fails_only_at_zero)


def test_a_single_prelu_is_audited_with_its_current_slopes_and_left_as_it_was():
    module = nn.PReLU(3)
    module.weight.data = torch.tensor([0.5, 0.0, -1.0])
    assert audit(module, dtypes=[F16])[F16].zeros == (Interval(-65504.0, 0.0),)
    assert module.weight.dtype == F32


class UsersOwnCReLU(nn.Module):
    linkage_dim, linkage_layout = 1, "concatenated"

    def __init__(self):
        super().__init__()
        self.linkage_members = [torch.relu, lambda z: torch.relu(-z)]

    def forward(self, z):
        return torch.cat([member(z) for member in self.linkage_members], 1)


def test_any_module_with_linkage_members_is_audited_as_linked():
    result = audit(UsersOwnCReLU(), dtypes=[BF16])
    assert result.members == 2
    assert result.fails_only_at_zero


def test_members_of_no_use_are_called_dead_everywhere_and_nan_members_nan_everywhere():
    dead = audit(torch.zeros_like, dtypes=[F32, F16])
    for result in dead.by_dtype:
        limit = torch.finfo(result.dtype).max
        assert result.zeros == (Interval(-limit, limit),)
        assert (result.zero_share, result.smallest) == (1, 0)
        assert math.isnan(result.smallest_nonzero)
    nowhere = audit(lambda z: z * math.nan, dtypes=[F16])[F16]
    assert (nowhere.nans, nowhere.zeros) == ((Interval(-65504.0, 65504.0),), ())
    assert math.isnan(nowhere.smallest)
    assert not nowhere.holds


def test_grad_mode_and_inference_mode_of_the_caller_do_not_matter():
    expected = audit(LinkedPReLU(), dtypes=[F16])
    with torch.no_grad():
        assert audit(LinkedPReLU(), dtypes=[F16]) == expected
    with torch.inference_mode():
        assert audit(LinkedPReLU(), dtypes=[F16]) == expected


def test_the_printed_audit_has_one_line_per_dtype():
    lines = str(audited("ReLU6", True)).splitlines()
    assert lines[0].startswith("Linked(members=(ReLU6, mirrored ReLU6), dim=1) (2 linked members)")
    assert lines[2] == (
        "  float16: all derivatives zero for z in [-6.55e+04, -6], 0, [6, 6.55e+04], "
        "43.6% of values (63,488 values, all)"
    )
    assert "derivative NaN for z in [-3.39e+38, -1.845e+19]" in str(audited("GELU tanh", False)[BF16])
    assert re.fullmatch(
        r"float32: holds, max\|J\| >= 0.01 \(4,\d+,\d+ values, sampled\)", str(audited("leaky .01", False)[F32])
    )
    assert str(audited("Softsign", False)[F16]).count(" in part") == 2
    assert str(audit(torch.tanh, dtypes=[F16])).startswith("tanh (single)\n")


def test_a_dtype_that_was_not_audited_is_named_with_the_way_out():
    with pytest.raises(InvalidArgumentError, match=re.escape("pass dtypes=(torch.float64,) to audit()")):
        audited("ReLU", False)[F64]


@pytest.mark.parametrize(
    ("activation", "message"),
    [
        (nn.ReLU, "expected a module instance or a function"),
        ("relu", "activation is 'relu'; expected a module instance or a function"),
        (nn.Softmax(dim=-1), "not an elementwise, repeatable function of z"),
        (nn.Dropout(), "not an elementwise, repeatable function of z"),
        (nn.GLU(), "not an elementwise, repeatable function of z"),
        (nn.LayerNorm(5), "cannot compute in torch.float32 on shape (8, 8)"),
        (lambda z: "silly", "not an elementwise, repeatable function of z"),
    ],
)
def test_what_has_no_derivative_at_one_z_is_refused(activation, message):
    with pytest.raises(InvalidArgumentError, match=re.escape(message)):
        audit(activation, dtypes=[F32])


def test_a_function_with_parameters_of_another_dtype_is_refused_with_the_dtype():
    weight = torch.zeros(1)
    with pytest.raises(InvalidArgumentError, match=r"cannot compute in torch.float16 .*choose other dtypes="):
        audit(lambda z: F.prelu(z, weight))


@pytest.mark.parametrize("dtypes", [[], [torch.int8], [F32, torch.complex64]])
def test_dtypes_that_are_not_real_floats_are_refused(dtypes):
    with pytest.raises(InvalidArgumentError, match="expected one or more of"):
        audit(torch.relu, dtypes=dtypes)


def test_covshift_linked_audit_stays_the_function():
    importlib.import_module("covshift.linked.auditing")
    assert covshift.linked.audit is audit
    assert all(callable(getattr(covshift.linked, name)) for name in covshift.linked.__all__)
