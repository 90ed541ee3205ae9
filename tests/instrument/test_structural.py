"""Oracle: autograd's own derivative, element by element."""

import math

import pytest
import torch
from torch import nn

from covshift.grid import VALUES
from covshift.instrument.structural import zero_set
from covshift.linked import Linked, LinkedReLU, LinkedSELU, LinkedSiLU
from covshift.summary.table import Reading, Table

SINGLE = [
    nn.ReLU(),
    nn.ReLU6(),
    nn.Hardtanh(-2.0, 3.0),
    nn.Hardswish(),
    nn.LeakyReLU(0.1),
    nn.LeakyReLU(0.0),
    nn.PReLU(),
    nn.SELU(),
    nn.ELU(),
    nn.SiLU(),
    nn.Softplus(),
    nn.Tanh(),
    nn.Sigmoid(),
]
LINKED = [LinkedReLU(), LinkedSELU(), LinkedSiLU(), Linked(nn.Tanh), Linked(nn.ReLU6), Linked(nn.ELU)]


def numbers_of(z):
    reading = Reading(unit_axis=None, example_axis=None, unit_count=0, grid=VALUES, groups=1)
    table = Table(histograms=False, units=False)
    return table.row(table.add(0, z, reading))


def sweep():
    """Values around every threshold of the table, on both sides, and at it; a multiple of 8 so that torch's
    vectorised code sees all of them."""
    marks = torch.tensor([0.0, 1.5, 2.0, 3.0, 6.0, 9.01084, 16.63553, 88.72284, 103.97208])
    near = torch.cat([marks - 1e-3, marks, marks + 1e-3, torch.linspace(0, 120, 397)])
    z = torch.cat([near, -near])
    return z[: z.numel() // 8 * 8]


def derivative_is_zero_in_every_member(module, z):
    members = getattr(module, "linkage_members", (module,))
    dead = torch.ones_like(z, dtype=torch.bool)
    for member in members:
        leaf = z.clone().requires_grad_()
        (slope,) = torch.autograd.grad(member(leaf).sum(), leaf)
        dead &= slope == 0
    return dead


@pytest.mark.parametrize("module", SINGLE + LINKED, ids=str)
def test_the_closed_form_counts_what_autograd_computes(module):
    z = sweep()
    expected = int(derivative_is_zero_in_every_member(module, z).sum())
    zeros = zero_set(module)
    assert zeros is not None
    assert zeros.covers(torch.float32)
    assert zeros.count(z, numbers_of(z)) == expected


def test_linked_relu_fails_at_zero_only():
    zeros = zero_set(LinkedReLU())
    z = torch.tensor([-1.0, -0.0, 0.0, 2.0])
    assert zeros.intervals == ((0.0, 0.0),)
    assert zeros.count(z, numbers_of(z)) == 2


def test_infinities_count_where_the_set_reaches_them():
    z = torch.tensor([-math.inf, math.inf, 1.0])
    assert zero_set(nn.ReLU()).count(z, numbers_of(z)) == 1
    assert zero_set(nn.Tanh()).count(z, numbers_of(z)) == 2


def test_where_underflow_decides_only_float32_is_covered():
    zeros = zero_set(nn.SELU())
    assert not zeros.covers(torch.float16)
    assert zero_set(nn.ReLU()).covers(torch.float16)


@pytest.mark.parametrize(
    "module", [nn.GELU(), nn.Mish(), nn.SELU(inplace=True), nn.SiLU(inplace=True), nn.ELU(alpha=2.0), nn.Linear(2, 2)]
)
def test_kinds_without_a_closed_form_are_not_measured(module):
    assert zero_set(module) is None


def test_a_prelu_with_a_dead_slope_is_not_measured():
    module = nn.PReLU(2)
    with torch.no_grad():
        module.weight[0] = 0
    assert zero_set(module) is None


def test_one_unknown_member_makes_the_linkage_not_measured():
    assert zero_set(Linked(members=[torch.relu, torch.sin])) is None


def test_a_module_of_somebody_elses_joins_by_its_attributes():
    class CReLU(nn.Module):
        linkage_dim, linkage_layout = 1, "concatenated"

        def __init__(self):
            super().__init__()

            def negative(z):
                return torch.relu(-z)

            negative.mirror_of = torch.relu
            self.linkage_members = (torch.relu, negative)

    assert zero_set(CReLU()).intervals == ((0.0, 0.0),)
