"""Every fault is really in place at its weakest dose, by the raw tensors of the training loop, on both networks.

What is checked is the condition itself (a dead unit's activations are zero), with hooks of the test's own: nothing here
reads a recording or a diagnosis.
"""

import copy
import math

import pytest
import torch

from covshift.exceptions import CovshiftWarning
from covshift.selfcheck.blind_spots import BLIND_SPOTS
from covshift.selfcheck.faults import FAULTS, TRAPS
from covshift.selfcheck.movements import JUMP_AT, SPAN
from covshift.selfcheck.planting import BROKEN_FROM, hit
from covshift.selfcheck.trials import recorded

LISTED = {one.name: one for one in (*FAULTS, *TRAPS)}


class Watched:
    """Raw tensors of every step of a training loop: outputs and their gradients by layer, parameters around it."""

    def __init__(self, case, steps):
        self.outputs, self.gradients, self.before, self.after, self.held = [], [], [], [], []
        self.case = case
        case.before.append(self.begin)
        case.after.append(lambda step: self.after.append(self.parameters()))
        for name in {*case.linears, *case.activations}:
            case.module(name).register_forward_hook(self.keeper(name))
        recorded(case, steps=steps)

    def begin(self, step):
        self.before.append(self.parameters())
        self.held.append({name: p.grad is not None and bool(p.grad.any()) for name, p in self.named()})
        self.outputs.append({})
        self.gradients.append({})

    def keeper(self, name):
        def keep(module, args, output):
            self.outputs[-1][name] = output.detach().clone()
            if output.requires_grad:
                gradients = self.gradients[-1]
                output.register_hook(lambda gradient: gradients.__setitem__(name, gradient.clone()))

        return keep

    def named(self):
        return self.case.model.named_parameters()

    def parameters(self):
        return {name: p.detach().clone() for name, p in self.named()}

    @property
    def z(self):
        return [step[self.case.linears[self.case.middle]] for step in self.outputs]

    @property
    def h(self):
        return [step[self.case.activations[self.case.middle]] for step in self.outputs]

    @property
    def dz(self):
        return [step[self.case.linears[self.case.middle]] for step in self.gradients]

    def moved(self, name, step):
        return float((self.after[step][name] - self.before[step][name]).norm())

    @property
    def weight(self):
        return f"{self.case.linears[self.case.middle]}.weight"


def weakest(name, held_back):
    fault = LISTED[name]
    return (fault.held_back if held_back else fault.build)(5, fault.doses[0]), fault.doses[0]


def twin_of(name, held_back, dose):
    fault = LISTED[name]
    return (fault.held_back if held_back else fault.build)(5, dose)


def decades(seen):
    """Decades by which the gradient's rms falls from the last activation to the first."""
    rms = [float(seen.gradients[0][name].double().square().mean().sqrt()) for name in seen.case.activations]
    return math.log10(rms[-1] / rms[0])


def middle_output(case, step, x):
    """Output of the middle linear layer at a step, given the model's input."""
    seen = []
    handle = case.module(case.linears[case.middle]).register_forward_hook(lambda m, a, output: seen.append(output))
    for hook in case.before:
        hook(step)
    with torch.no_grad():
        case.model(x)
    handle.remove()
    return seen[0]


def inputs(case, count=64):
    return torch.randn(count, *case.shape, generator=torch.Generator().manual_seed(1))


def by_unit(z):
    return z.transpose(0, 1).flatten(1).mean(dim=1)


def dead(name, held_back):
    case, share = weakest(name, held_back)
    seen, chosen = Watched(case, 3), hit(case, share)
    assert 0 < chosen.sum() < len(chosen)
    for h in seen.h:
        assert not h[:, chosen].any()
        assert h[:, ~chosen].any()


def dying(name, held_back):
    case, _ = weakest(name, held_back)
    seen = Watched(case, 120)
    assert (seen.z[-1] > 0).float().mean() < 0.6 * (seen.z[0] > 0).float().mean()
    assert seen.after[-1][seen.weight.replace("weight", "bias")].mean() < -1


def born_dead(name, held_back):
    case, _ = weakest(name, held_back)
    seen, healthy = Watched(case, 1), Watched(twin_of(name, held_back, 0.0), 1)
    assert (seen.h[0] > 0).float().mean() < 0.1 < 0.3 < (healthy.h[0] > 0).float().mean()


def at_plateau(name, held_back):
    case, share = weakest(name, held_back)
    seen, chosen = Watched(case, 3), hit(case, share)
    for h in seen.h:
        assert (h[:, chosen] == 6).all()
        assert (h[:, ~chosen] < 6).any()


def saturated(name, held_back):
    case, _ = weakest(name, held_back)
    seen, healthy = Watched(case, 1), Watched(twin_of(name, held_back, 1.0), 1)
    assert (seen.h[0].abs() > 0.949).float().mean() > 3 * (healthy.h[0].abs() > 0.949).float().mean()


def shrinking(name, held_back):
    case, _ = weakest(name, held_back)
    assert decades(Watched(case, 1)) > 1


def growing(name, held_back):
    case, _ = weakest(name, held_back)
    assert decades(Watched(case, 1)) < -1


def beyond_six(name, held_back):
    case, share = weakest(name, held_back)
    seen, chosen = Watched(case, 3), hit(case, share)
    for z, dz in zip(seen.z, seen.dz, strict=True):
        assert (z[:, chosen].abs() > 6).all()
        assert not dz[:, chosen].any()
        assert dz[:, ~chosen].any()


def twice_the_same(name, held_back):
    case, _ = weakest(name, held_back)
    seen = Watched(case, 2)
    first, second = seen.h[0].chunk(2, dim=1)
    assert torch.equal(first, second)
    below = seen.z[0] <= 0
    assert below.any()
    assert not seen.dz[0][below].any()


def exactly_zero(name, held_back):
    case, share = weakest(name, held_back)
    seen = Watched(case, 20)
    z = torch.cat([step[case.linears[0]] for step in seen.outputs])
    assert float((z == 0).all(dim=1).float().mean()) == pytest.approx(share, abs=0.02)
    assert not ((z == 0).any(dim=1) & (z != 0).any(dim=1)).any()


def derivative_rounds_to_zero(name, held_back):
    case, share = weakest(name, held_back)
    seen, chosen = Watched(case, 2), hit(case, share)
    z = seen.z[0][:, chosen].requires_grad_()
    assert (z < -16).float().mean() > 0.9
    torch.selu(z).sum().backward()
    assert (z.grad != 0).all()
    assert not seen.dz[0][:, chosen][z < -17].any()
    assert seen.dz[0][:, ~chosen].any()


def cut(name, held_back):
    case, share = weakest(name, held_back)
    seen = Watched(case, 3)
    units = seen.h[0].shape[1]
    chosen = torch.arange(units) < round(share * units)
    for dz in seen.dz:
        assert not dz[:, chosen].any()
        assert dz[:, ~chosen].any()


def slower(name, held_back):
    case, pace = weakest(name, held_back)
    seen = Watched(case, 2)
    plain = Watched(twin_of(name, held_back, 1.0), 2)
    assert seen.moved(seen.weight, 0) == pytest.approx(pace * plain.moved(plain.weight, 0), rel=1e-2)
    out = Watched(twin_of(name, held_back, 0.0), 2)
    assert out.moved(out.weight, 1) == 0
    assert out.dz[1].any()


def stands_still(name, held_back):
    case, _ = weakest(name, held_back)
    seen = Watched(case, 3)
    first, second = (f"{case.linears[position]}.weight" for position in (0, 1))
    assert seen.moved(first, 2) == 0 < seen.moved(second, 2)


def stale(name, held_back):
    case, step = weakest(name, held_back)
    at = int(step)
    seen = Watched(case, at + 3)
    for later in range(at, at + 3):
        assert seen.moved(seen.weight, later) == 0
        assert seen.dz[later].any()
    assert seen.moved(seen.weight, at - 1) > 0


def step_size(name, held_back):
    case, factor = weakest(name, held_back)
    seen = Watched(case, 1)
    change = (seen.after[0][seen.weight] - seen.before[0][seen.weight]).abs()
    # Adam's first step is the learning rate in every element that has a gradient.
    assert float(change.max()) == pytest.approx(1e-3 * factor, rel=0.02)


def kept_gradients(name, held_back):
    case, steps = weakest(name, held_back)
    with pytest.warns(CovshiftWarning, match="gradients are not cleared"):
        seen = Watched(case, 6)
    assert [step[seen.weight] for step in seen.held] == [bool(step % int(steps)) for step in range(6)]


def strangled(name, held_back):
    case, limit = weakest(name, held_back)
    seen = Watched(case, 2)
    lengths = [seen.moved(name, 1) for name in seen.before[1]]
    assert math.hypot(*lengths) == pytest.approx(0.1 * limit, rel=0.01)


def units_jump_about(name, held_back):
    case, size = weakest(name, held_back)
    x = inputs(case)
    first, second = (by_unit(middle_output(case, step, x)) for step in (3, 4))
    still = twin_of(name, held_back, 0.0)
    spread = float(middle_output(still, 3, x).std())
    assert float((second - first).std()) == pytest.approx(math.sqrt(2) * size * spread, rel=0.5)
    assert torch.equal(middle_output(still, 3, x), middle_output(still, 4, x))


def jumped(name, held_back):
    case, _ = weakest(name, held_back)
    still = copy.deepcopy(case.linear(case.middle).weight.detach())
    for step in range(JUMP_AT + 2):
        for hook in case.before:
            hook(step)
        change = float((case.linear(case.middle).weight.detach() - still).norm() / still.norm())
        assert (change > 0.2) is (step >= JUMP_AT)


def rising(name, held_back):
    case, size = weakest(name, held_back)
    x = inputs(case)
    start, later = middle_output(case, 0, x), middle_output(case, SPAN, x)
    assert torch.allclose(later - start, size * start.std(), atol=1e-5)


def trading(name, held_back):
    case, spread = weakest(name, held_back)
    x = inputs(case)
    even, odd = middle_output(case, 2, x), middle_output(case, 3, x)
    assert float((even - odd).mean()) == pytest.approx(0, abs=1e-6)
    assert float((by_unit(even) - by_unit(odd)).abs().max() / even.std()) > spread


def stretching(name, held_back):
    case, size = weakest(name, held_back)
    x = inputs(case)
    assert torch.allclose(middle_output(case, SPAN, x), math.exp(size) * middle_output(case, 0, x), atol=1e-5)


def off_centre(name, held_back):
    case, scale = weakest(name, held_back)
    x = torch.cat([case.batch(step)[0] for step in range(8)])
    assert float(x.std()) == pytest.approx(scale, rel=0.05)
    assert float(x.mean()) == pytest.approx(2 * scale, rel=0.05)


def in_half_precision(name, held_back):
    case, _ = weakest(name, held_back)
    with pytest.warns(CovshiftWarning, match="autocast to float16 without scaler"):
        seen = Watched(case, 1)
    assert seen.z[0].dtype == torch.float16
    gradient = seen.dz[0].double().abs()
    subnormal = (gradient > 0) & (gradient < torch.finfo(torch.float16).smallest_normal)
    assert subnormal.sum() > 0.2 * (gradient > 0).sum()


def not_numbers(name, held_back):
    case, share = weakest(name, held_back)
    x = inputs(case)
    assert not middle_output(case, BROKEN_FROM - 1, x).isnan().any()
    broken = middle_output(case, BROKEN_FROM, x).isnan()
    assert 1 <= int(broken.sum()) <= max(1, math.ceil(share * broken.numel()))


def the_same_example(name, held_back):
    case, share = weakest(name, held_back)
    x = torch.cat([case.batch(step)[0].flatten(1) for step in range(3)])
    assert float((x == x[0]).all(dim=1).float().mean()) == pytest.approx(share, abs=0.01)


def met_margin(name, held_back):
    case, share = weakest(name, held_back)
    seen = Watched(case, 1)
    idle = (seen.gradients[0]["head"] == 0).all(dim=1)
    assert float(idle.float().mean()) == pytest.approx(share, abs=0.02)


def firing_rate(name, held_back):
    case, _ = weakest(name, held_back)
    rate = LISTED[name].doses[-1]
    case = twin_of(name, held_back, rate)
    z = middle_output(case, 0, inputs(case, 30_000))[:, hit(case, 0.25)]
    assert 0.2 * rate < float((z > 0).float().mean()) < 3 * rate


def masked(name, held_back):
    case, share = weakest(name, held_back)
    seen = Watched(case, 1)
    zero = seen.gradients[0][case.activations[case.middle]] == 0
    assert float(zero.float().mean()) == pytest.approx(share, abs=0.05)
    # Behind a linked ReLU the derivative of one member is 1 wherever z is not 0.
    assert not (seen.z[0] == 0).any()


def wrong_labels(name, held_back):
    case, share = weakest(name, held_back)
    clean = twin_of(name, held_back, 0.0)
    right = torch.cat([case.batch(0)[1] == clean.batch(0)[1]])
    assert float(right.float().mean()) == pytest.approx(1 - share * 0.75, abs=0.12)


def wandering(name, held_back):
    case, size = weakest(name, held_back)
    x = inputs(case)
    still = middle_output(twin_of(name, held_back, 0.0), 0, x)
    levels = torch.stack([(middle_output(case, step, x) - still).mean() for step in range(400)]) / still.std()
    assert float(levels.square().mean().sqrt()) == pytest.approx(size, rel=0.5)
    assert abs(float(levels.mean())) < size
    assert float((levels[1:] * levels[:-1]).mean() / levels.square().mean()) > 0.8


PLANTED = {
    "dead units": dead,
    "dying units": dying,
    "born dead": born_dead,
    "stuck at a plateau": at_plateau,
    "saturated tanh": saturated,
    "sigmoid vanishing": shrinking,
    "vanishing initialisation": shrinking,
    "exploding initialisation": growing,
    "linked swish vanishing": shrinking,
    "linkage violated": beyond_six,
    "linkage of one member": twice_the_same,
    "linkage zero atom": exactly_zero,
    "in-place SELU far negative": derivative_rounds_to_zero,
    "detached": cut,
    "left out of the optimizer": slower,
    "frozen layers": stands_still,
    "stale parameters": stale,
    "learning rate too high": step_size,
    "learning rate too low": step_size,
    "gradients accumulate": kept_gradients,
    "strangled by clipping": strangled,
    "injected shift": units_jump_about,
    "jump": jumped,
    "drift of the mean": rising,
    "swapped units": trading,
    "drift of the scale": stretching,
    "raw inputs": off_centre,
    "float16 without a loss scale": in_half_precision,
    "broken numbers": not_numbers,
    "constant inputs": the_same_example,
    "loss satisfied": met_margin,
    "rarely firing units": firing_rate,
    "masked, not structural": masked,
    "shuffled labels": wrong_labels,
    "noise without drift": wandering,
}


@pytest.mark.slow
@pytest.mark.parametrize("held_back", [False, True], ids=["development", "held-back"])
@pytest.mark.parametrize("name", LISTED)
def test_a_fault_is_in_place_at_its_weakest_dose(name, held_back):
    PLANTED[name](name, held_back)


def test_every_row_of_the_list_is_planted_or_said_not_to_show():
    rows = {one.number for one in (*FAULTS, *TRAPS)} | {spot.number for spot in BLIND_SPOTS}
    assert rows == set(range(1, 35))
