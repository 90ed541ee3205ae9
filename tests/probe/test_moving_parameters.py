"""Models whose forward pass updates parameters (momentum encoders, renormed embeddings) train as without a probe."""

import copy
import math
import warnings

import pytest
import torch
from torch import nn

import covshift
from covshift.exceptions import CovshiftWarning
from covshift.probe import gradient_ics, loss_landscape, paired_movement, shift_attribution, zeros
from covshift.probe.state import visiting


def in_place(key, query):
    key.mul_(0.9).add_(query, alpha=0.1)


def by_copy(key, query):
    key.copy_(0.9 * key + 0.1 * query)


def through_data(key, query):
    key.data.mul_(0.9).add_(query.data, alpha=0.1)


def with_other_data(key, query):
    key.data = key.data * 0.9 + query.data * 0.1


WAYS = [in_place, by_copy, through_data, with_other_data]


class MomentumEncoder(nn.Module):
    """Two encoders, of which the second follows the first at every forward pass, as in MoCo, BYOL and DINO."""

    def __init__(self, update=in_place, fails=False):
        super().__init__()
        torch.manual_seed(1)
        self.query = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        self.key = copy.deepcopy(self.query).requires_grad_(False)
        self.update, self.fails = update, fails

    def forward(self, x):
        with torch.no_grad():
            for query, key in zip(self.query.parameters(), self.key.parameters(), strict=True):
                self.update(key, query)
        if self.fails:
            raise ZeroDivisionError
        with torch.no_grad():
            target = self.key(x)
        return self.query(x) - target


class Replacing(MomentumEncoder):
    """Puts a parameter in the place of another."""

    def forward(self, x):
        self.key[0].bias = nn.Parameter(self.key[0].bias + self.query[0].bias, requires_grad=False)
        return super().forward(x)


class Renormed(nn.Module):
    """torch's own update of a parameter in forward."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.table, self.query = nn.Embedding(10, 4, max_norm=0.5), nn.Linear(4, 3)

    def forward(self, x):
        return self.query(self.table((x.abs() * 3).long().clamp(max=9)).mean(1))


BUILDS = [*[lambda way=way: MomentumEncoder(way) for way in WAYS], lambda: Replacing(), Renormed]
NAMES = [*[way.__name__ for way in WAYS], "replaced", "renormed"]


def trained(model, **options):
    generator = torch.Generator().manual_seed(5)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    losses = []
    torch.manual_seed(3)
    with warnings.catch_warnings():
        # That parameters move in forward passes, and where they are put in the place of others, is named.
        warnings.simplefilter("ignore", CovshiftWarning)
        with covshift.record(model, every=1, **options) as recorder:
            for _ in range(12):
                optimizer.zero_grad()
                loss = (model(torch.randn(6, 4, generator=generator)) - 1).square().mean()
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
    return {"losses": losses, "state": model.state_dict(), "rng": torch.get_rng_state()}, recorder


@pytest.mark.parametrize("with_loss", [False, True], ids=["forward", "with gradients"])
@pytest.mark.parametrize("build", BUILDS, ids=NAMES)
def test_a_training_that_is_probed_keeps_its_bits(build, with_loss):
    x = torch.randn(6, 4)
    probe = (x, lambda output: output.square().mean()) if with_loss else x
    bare, _ = trained(build())
    probed, recorder = trained(build(), probe=probe, probe_every=3)
    torch.testing.assert_close(probed, bare, rtol=0, atol=0)
    assert recorder.recording["probe/layers"].step.values.tolist() == [0, 3, 6, 9, 12]


class Late(MomentumEncoder):
    """Begins to update once it is told to."""

    begins = False

    def forward(self, x):
        self.update = in_place if self.begins else lambda key, query: None
        return super().forward(x)


def test_updates_that_begin_after_record_are_put_back_too():
    def outcome(**options):
        model = Late()
        with covshift.record(model, every=1, **options) as recorder:
            model.begins = True
            for _ in range(2):
                model(torch.ones(6, 4)).sum().backward()
                recorder.step()
        return model.state_dict()

    torch.testing.assert_close(outcome(probe=torch.ones(6, 4), probe_every=1), outcome(), rtol=0, atol=0)


class Held:
    """Parameters: which objects, where in memory, how often written, and their values."""

    def __init__(self, model):
        self.values = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        self.places = {name: (id(p), p.data_ptr(), p._version) for name, p in model.named_parameters()}

    def demand(self, model, *, but=()):
        now = Held(model)
        assert now.places == self.places
        for name in self.values.keys() - set(but):
            assert torch.equal(now.values[name], self.values[name]), name


@pytest.mark.parametrize("build", BUILDS, ids=NAMES)
def test_a_visit_leaves_objects_memory_bits_and_version_counters(build):
    model = build()
    with torch.no_grad():
        model.query.requires_grad_()
        next(model.query.parameters()).add_(1)
    before = Held(model)
    with visiting(model, mode="train") as visit:
        visit.model(torch.ones(6, 4))
    before.demand(model)


def test_a_visit_that_fails_after_the_update_puts_it_back():
    model = MomentumEncoder(fails=True)
    model.query[0].weight.data.add_(1)
    before = Held(model)
    with pytest.raises(ZeroDivisionError), visiting(model, mode="eval") as visit:
        visit.model(torch.ones(6, 4))
    before.demand(model)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.complex64, torch.complex128])
def test_nan_and_the_sign_of_zero_come_back(dtype):
    values = torch.tensor([-0.0, math.nan, 1.0], dtype=dtype)
    model = nn.Linear(1, 3, dtype=dtype)
    model.bias.data.copy_(values)
    bits = model.bias.detach().clone().view(torch.uint8)
    with visiting(model, mode="eval"):
        model.bias.data.zero_()
    assert torch.equal(model.bias.detach().view(torch.uint8), bits)


def test_a_backward_pass_that_is_pending_goes_on_after_a_probe():
    def gradients(*, is_probed):
        model, x = MomentumEncoder(), torch.ones(6, 4)
        model.key.requires_grad_()
        loss = (model.key(x) - model.query(x)).square().sum()
        if is_probed:
            loss_landscape(model, square, x, step_sizes=[0.1])
        loss.backward()
        return [parameter.grad for parameter in model.parameters()]

    torch.testing.assert_close(gradients(is_probed=True), gradients(is_probed=False), rtol=0, atol=0)


def test_what_another_process_writes_to_shared_parameters_meanwhile_stays():
    model = MomentumEncoder().share_memory()
    before = Held(model)
    with visiting(model, mode="eval") as visit:
        visit.model(torch.ones(6, 4))
        # Another process moves none of this one's version counters; neither does numpy.
        model.query[0].bias.detach().numpy()[:] = 7
    assert (model.query[0].bias == 7).all()
    before.demand(model, but=["query.0.bias"])


def test_parameters_without_numbers_are_let_be():
    with visiting(nn.Linear(2, 2, device="meta"), mode="eval") as visit:
        visit.model(torch.ones(1, 2, device="meta"))


def square(output, *targets):
    return (output - 1).square().mean()


PROBES = {
    "zeros": lambda model, x: zeros(model, square, x),
    "gradient_ics": lambda model, x: gradient_ics(
        model, square, x, torch.optim.SGD(model.query.parameters(), lr=0.1), noise_batch=2 * x
    ),
    "loss_landscape": lambda model, x: loss_landscape(model, square, x, step_sizes=[0.1, 0.2]),
    "shift_attribution": lambda model, x: shift_attribution(model, x, before=MomentumEncoder().state_dict()),
    "paired_movement": lambda model, x: paired_movement(model, x, before=MomentumEncoder().state_dict()),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("probe", PROBES)
def test_every_probe_leaves_parameters_and_repeats_itself(probe, way):
    model, x = MomentumEncoder(way), torch.randn(6, 4)
    model.query[0].weight.data.add_(1)
    before = Held(model)
    first = PROBES[probe](model, x)
    before.demand(model)
    assert first.identical(PROBES[probe](model, x))


def test_every_point_of_a_landscape_starts_from_the_momentum_encoder_as_it_was_found():
    model, x, sizes = MomentumEncoder(), torch.randn(6, 4), [0.5, 1.0, 2.0]
    model.query[0].weight.data.add_(1)
    found = loss_landscape(model, square, x, step_sizes=sizes)
    state = copy.deepcopy(model.state_dict())
    gradients = torch.autograd.grad(square(model(x)), list(model.query.parameters()))
    for size in sizes:
        model.load_state_dict(state)
        with torch.no_grad():
            for parameter, gradient in zip(model.query.parameters(), gradients, strict=True):
                parameter.sub_(size * gradient)
        assert float(found.loss.sel(step_size=size)) == pytest.approx(square(model(x)).item(), rel=1e-5)


def test_sparse_parameters_come_back():
    model = nn.Linear(3, 3)
    model.register_parameter("sparse", nn.Parameter(torch.eye(3).to_sparse()))
    with visiting(model, mode="eval"), torch.no_grad():
        model.sparse.mul_(2)
    assert torch.equal(model.sparse.to_dense(), torch.eye(3))
    assert model.sparse._version == 0
