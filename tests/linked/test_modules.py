"""Laws of the linked modules: what they compute, what they announce, and what survives copying."""

import copy
import pickle
import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from covshift.exceptions import InvalidArgumentError
from covshift.linked import Linked, LinkedPReLU, LinkedReLU, LinkedSELU, LinkedSiLU, LinkedSwish, MinMax
from covshift.linked.functional import Mirrored

MODULES = {
    "LinkedReLU": LinkedReLU,
    "LinkedPReLU": LinkedPReLU,
    "LinkedPReLU per channel": lambda dim=1: LinkedPReLU(3, dim=dim),
    "LinkedSELU": LinkedSELU,
    "LinkedSiLU": LinkedSiLU,
    "MinMax": MinMax,
    "Linked(class)": lambda dim=1: Linked(nn.ELU, dim=dim),
    "Linked(module)": lambda dim=1: Linked(nn.PReLU(init=0.1), dim=dim),
    "Linked(function)": lambda dim=1: Linked(torch.tanh, dim=dim),
    "Linked(members)": lambda dim=1: Linked(members=[nn.Softplus(), F.gelu, Mirrored(nn.PReLU())], dim=dim),
}
every_module = pytest.mark.parametrize("make", MODULES.values(), ids=MODULES)


@pytest.fixture
def z():
    torch.manual_seed(1)
    return torch.randn(4, 3, 2, 2)


@every_module
def test_the_output_is_the_announced_members_side_by_side(make, z):
    module = make()
    assert (module.linkage_dim, module.linkage_layout) == (1, "concatenated")
    members = torch.cat([member(z) for member in module.linkage_members], module.linkage_dim)
    assert torch.equal(module(z), members)


@every_module
def test_every_mirrored_member_is_its_base_at_minus_z(make, z):
    mirrored = [member for member in make().linkage_members if hasattr(member, "mirror_of")]
    assert all(torch.equal(member(z), member.mirror_of(-z)) for member in mirrored)
    assert len(mirrored) == (0 if make is MinMax else 1)


@every_module
def test_the_announcement_survives_deepcopy_and_pickle(make, z):
    module = make()
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(twin(z), module(z))
        assert (twin.linkage_dim, twin.linkage_layout) == (module.linkage_dim, module.linkage_layout)
        pairs = zip(twin.linkage_members, module.linkage_members, strict=True)
        assert all(torch.equal(one(z), other(z)) for one, other in pairs)


@every_module
def test_the_state_dict_holds_the_slopes_once_and_nothing_else(make):
    module = make()
    slopes = [parameter.data_ptr() for parameter in module.parameters()]
    assert sorted(slopes) == sorted(tensor.data_ptr() for tensor in module.state_dict().values())
    assert all(key.endswith(".weight") for key in module.state_dict())


@every_module
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_in_one_graph_it_gives_the_same_values_and_gradients(make, z, backend):
    torch.compiler.reset()
    module = make()
    compiled = torch.compile(module, backend=backend, fullgraph=True)
    gradients = []
    for call in (module, compiled):
        leaf = z.clone().requires_grad_()
        out = call(leaf)
        gradients.append((out.detach(), *torch.autograd.grad(out.square().sum(), [leaf, *module.parameters()])))
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))
    assert len(compiled.linkage_members) == len(module.linkage_members)


@every_module
def test_the_gradient_is_the_sum_of_the_members_own(make, z):
    module = make().double()
    leaf = z.double().requires_grad_()
    upstream = torch.randn_like(module(leaf))
    (whole,) = torch.autograd.grad(module(leaf), leaf, upstream)
    parts = upstream.chunk(len(module.linkage_members), dim=1)
    single = zip(module.linkage_members, parts, strict=True)
    summed = sum(torch.autograd.grad(member(leaf), leaf, part)[0] for member, part in single)
    torch.testing.assert_close(whole, summed)


@pytest.mark.parametrize("make", [LinkedReLU, LinkedSELU, LinkedSiLU, MinMax, LinkedPReLU])
def test_tokens_are_linked_along_their_last_axis(make):
    tokens = torch.randn(2, 7, 5)
    out = make(dim=-1)(tokens)
    assert out.shape == (2, 7, 10)
    torch.testing.assert_close(out.transpose(1, 2), make()(tokens.transpose(1, 2)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@every_module
def test_a_module_moved_to_a_dtype_announces_members_of_that_dtype(make, z, dtype):
    module = make().to(dtype)
    assert module(z.to(dtype)).dtype == dtype
    assert all(member(z.to(dtype)).dtype == dtype for member in module.linkage_members)


def test_linked_swish_is_linked_silu():
    assert LinkedSwish is LinkedSiLU


def test_linked_prelu_learns_its_two_slope_vectors_separately():
    module = LinkedPReLU(3)
    assert [tuple(slopes.shape) for slopes in module.parameters()] == [(3,), (3,)]
    module(-torch.ones(1, 3)).sum().backward()
    first, second = (slopes.grad.tolist() for slopes in module.parameters())
    assert (first, second) == ([-1, -1, -1], [0, 0, 0])


def test_linked_prelu_starts_like_torch_prelu_and_with_slope_zero_is_a_linked_relu(z):
    assert all(torch.equal(slopes, nn.PReLU().weight) for slopes in LinkedPReLU().parameters())
    assert torch.equal(LinkedPReLU(init=0)(z), LinkedReLU()(z))


def test_the_announcement_follows_a_replaced_submodule(z):
    module = Linked(nn.ELU())
    module.member_0 = nn.ELU(alpha=0.5)
    base, mirrored = module.linkage_members
    assert base is mirrored.mirror_of
    assert torch.equal(base(z), F.elu(z, alpha=0.5))


def test_a_mirror_linkage_of_a_module_shares_its_parameters():
    base = nn.PReLU()
    assert [id(parameter) for parameter in Linked(base).parameters()] == [id(base.weight)]


def test_an_in_place_base_is_linked_as_an_out_of_place_copy(z):
    base = nn.Sequential(nn.ELU(inplace=True))
    module = Linked(base)
    before = z.clone()
    assert torch.equal(module(z), torch.cat([F.elu(before), F.elu(-before)], 1))
    assert torch.equal(z, before)
    assert base[0].inplace


def test_training_mode_reaches_the_members(z):
    module = Linked(nn.RReLU()).eval()
    assert torch.equal(module(z), module(z))


def test_the_repr_names_members_and_axis():
    assert repr(LinkedReLU(dim=-1)) == "LinkedReLU(members=(relu, mirrored relu), dim=-1)"
    assert repr(Linked(nn.ELU)).startswith("Linked(\n  members=(ELU, mirrored ELU), dim=1\n")


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Linked(), "give exactly one of base (mirror linkage) and members"),
        (lambda: Linked(nn.ELU, members=[nn.ELU]), "give exactly one of base (mirror linkage) and members"),
        (lambda: Linked(members=[]), "members is empty"),
        (lambda: Linked(members=[nn.ELU, 3]), "members[1] is 3; expected an activation"),
        (lambda: Linked(members=nn.ELU()), "members must be a list, tuple or nn.ModuleList, got ELU"),
        (lambda: Linked("elu"), "base is 'elu'; expected an activation"),
        (lambda: Linked(dict), "base is <class 'dict'>; expected an activation"),
        (lambda: Linked(nn.Threshold), "base is the class Threshold, which needs arguments"),
        (lambda: LinkedReLU(dim=1.0), "dim must be an integer, got 1.0"),
        (lambda: LinkedReLU(dim=True), "dim must be an integer, got True"),
        (lambda: LinkedPReLU(0), "num_parameters must be a positive integer, got 0"),
        (lambda: LinkedPReLU(2.0), "num_parameters must be a positive integer, got 2.0"),
        (lambda: LinkedPReLU(init=float("nan")), "init must be a finite slope, got nan"),
    ],
)
def test_a_module_that_makes_no_sense_is_refused_when_built(build, message):
    with pytest.raises(InvalidArgumentError, match=re.escape(message)):
        build()


@pytest.mark.parametrize(
    ("module", "shape", "message"),
    [
        (LinkedReLU(), (5,), "dim=1 does not exist in z with ndim=1"),
        (LinkedPReLU(4), (2, 3), "4 PReLU slopes do not fit z with 3 units in axis 1"),
        (LinkedPReLU(3, dim=-1), (2, 3, 3), "3 PReLU slopes belong to axis 1, but dim=-1"),
        (Linked(nn.Flatten), (2, 3, 4), "members must keep the shape"),
        (Linked(F.relu_), (2, 3), "changed z in place"),
    ],
)
def test_an_input_that_does_not_fit_is_refused_when_called(module, shape, message):
    with pytest.raises(InvalidArgumentError, match=re.escape(message)):
        module(torch.zeros(shape))


def test_a_list_in_place_of_the_base_is_taken_for_the_members():
    z = torch.randn(3, 4)
    assert torch.equal(Linked([torch.sin, torch.cos])(z), torch.cat([z.sin(), z.cos()], 1))
