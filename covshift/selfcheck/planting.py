"""Faults inside a network: each function plants one in the middle layer of a case, at a dose.

Training is left as it is; faults of training and data are planted by :mod:`covshift.selfcheck.wrong_training`, layers
that move by :mod:`covshift.selfcheck.movements`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import torch
from torch import nn

from covshift.linked import Linked, LinkedReLU, LinkedSiLU
from covshift.selfcheck.nets import Build, Case, cnn, mlp

BROKEN_FROM = 60
"""Step from which :func:`broken_numbers` breaks them."""


def hit(case: Case, share: float) -> torch.Tensor:
    """Which units of the middle layer are hit: the first ones, at least one."""
    units = case.linear(case.middle).weight.shape[0]
    return torch.arange(units) < max(round(share * units), 1)


def _set_biases(case: Case, share: float, value: float) -> None:
    with torch.no_grad():
        case.linear(case.middle).bias[hit(case, share)] = value  # type: ignore[index]


def dead_units(case: Case, share: float) -> None:
    """A share of the middle layer's units never fires."""
    _set_biases(case, share, -1e3)


def dying(case: Case, rate: float) -> None:
    """The middle layer's biases sink by ``rate`` at every step."""

    def sink(step: int) -> None:
        with torch.no_grad():
            case.linear(case.middle).bias.sub_(rate)  # type: ignore[union-attr]

    case.after.append(sink)


def born_dead(case: Case, depth: float) -> None:
    """The middle layer starts with biases ``depth`` below zero."""
    _set_biases(case, 1.0, -depth)


def rare(case: Case, rate: float) -> None:
    """A quarter of the middle layer's units fires on ``rate`` of the examples."""
    hold_firing(case, {case.middle: hit(case, 0.25)}, rate)


def hold_firing(case: Case, units: Mapping[int, torch.Tensor], rate: float) -> None:
    """Every tenth step biases are set so that the masked ``units``, by layer, fire on ``rate`` of the examples."""
    # A twin sees the examples by which the quantiles are told, so that the recording does not.
    twin, generator = copy.deepcopy(case.model), torch.Generator().manual_seed(7)
    lowered: dict[int, torch.Tensor] = {}

    def lowering(position: int) -> Callable[..., torch.Tensor]:
        def lower(module: nn.Module, args: object, output: torch.Tensor) -> torch.Tensor:
            quantile = torch.quantile(output, 1 - rate, dim=0)
            lowered[position] = torch.where(units[position], quantile, 0.0)
            return output - lowered[position]

        return lower

    for position in units:
        twin.get_submodule(case.linears[position]).register_forward_hook(lowering(position))

    def keep(step: int) -> None:
        if step % 10:
            return
        twin.load_state_dict(case.model.state_dict())
        with torch.no_grad():
            twin(torch.randn(8192, *case.shape, generator=generator))
            for position, by in lowered.items():
                case.linear(position).bias.sub_(by)  # type: ignore[union-attr]

    case.before.append(keep)


def detached(case: Case, share: float) -> None:
    """The graph is cut behind a share of the middle activation's units."""

    def cut(module: nn.Module, args: object, output: torch.Tensor) -> torch.Tensor:
        kept = torch.arange(output.shape[1]) >= round(share * output.shape[1])
        if not kept.any():
            return output.detach()
        return torch.where(kept.reshape(1, -1, *(1,) * (output.ndim - 2)), output, output.detach())

    case.module(case.activations[case.middle]).register_forward_hook(cut)


def broken_numbers(case: Case, share: float) -> None:
    """A share of the middle layer's outputs is NaN from step :data:`BROKEN_FROM` on."""
    now = [0]
    case.before.append(lambda step: now.__setitem__(0, step))

    def breaks(module: nn.Module, args: object, output: torch.Tensor) -> torch.Tensor:
        if now[0] < BROKEN_FROM:
            return output
        flat = torch.arange(output.numel()).reshape(output.shape)
        return torch.where(flat < max(share * output.numel(), 1), torch.nan, output)

    case.module(case.linears[case.middle]).register_forward_hook(breaks)


def plateau(*, image: bool) -> Build:
    """ReLU6 nets in which a share of the middle layer's units stands above the upper plateau."""

    def build(seed: int, share: float) -> Case:
        case = (cnn if image else mlp)(seed, activation=nn.ReLU6)
        _set_biases(case, share, 100.0)
        return case

    return build


def far_negative(depth: int) -> Build:
    """In-place SELU nets in which a share of the middle layer's units lies near -20.

    There the derivative, which in-place SELU takes from its rounded output, is exactly 0; that of SELU is 4e-9.
    """

    def build(seed: int, share: float) -> Case:
        case = mlp(seed, depth=depth, activation=lambda: nn.SELU(inplace=True), gain=1.0)
        _set_biases(case, share, -20.0)
        return case

    return build


def saturated(depth: int) -> Build:
    """Tanh nets whose middle weights are too large by a factor."""

    def build(seed: int, scale: float) -> Case:
        case = mlp(seed, depth=depth, activation=nn.Tanh, gain=1.0)
        with torch.no_grad():
            case.linear(case.middle).weight *= scale
        return case

    return build


def sigmoid(width: int) -> Build:
    """Sigmoid nets of a depth."""
    return lambda seed, depth: mlp(seed, depth=int(depth), width=width, activation=nn.Sigmoid, gain=1.0)


def initialised(depth: int) -> Build:
    """Deep ReLU nets with weights of variance ``gain / fan_in``; 2 is right."""

    def build(seed: int, gain: float) -> Case:
        case = mlp(seed, depth=depth, gain=gain)
        case.learning_rate = 1e-4
        return case

    return build


def linked_swish(width: int) -> Build:
    """Linked-Swish nets of a depth, at the paper's initialisation: live everywhere, and vanishing."""
    return lambda seed, depth: mlp(seed, depth=int(depth), width=width, activation=LinkedSiLU, members=2, gain=0.67)


def linked_plateau(depth: int) -> Build:
    """Linked-ReLU6 nets in which a share of the middle layer's units lies where no member has a derivative."""

    def build(seed: int, share: float) -> Case:
        case = mlp(seed, depth=depth, activation=lambda: Linked(nn.ReLU6), members=2, gain=1.0)
        _set_biases(case, share, 100.0)
        return case

    return build


def duplicated(depth: int) -> Build:
    """Nets whose middle linkage is ReLU twice, with biases ``below`` zero: both members die together."""

    def build(seed: int, below: float) -> Case:
        case = mlp(seed, depth=depth, activation=LinkedReLU, members=2, gain=1.0)
        case.model.set_submodule(case.activations[case.middle], Linked(members=[nn.ReLU, nn.ReLU]))
        _set_biases(case, 1.0, -below)
        return case

    return build


def zero_atom(depth: int) -> Build:
    """Linked-ReLU nets without a first bias, of whose examples a share is all zeros."""

    def build(seed: int, share: float) -> Case:
        case = mlp(seed, depth=depth, activation=LinkedReLU, members=2, gain=1.0)
        case.linear(0).bias = None
        case.alter = lambda x, step: x * (torch.rand(len(x), 1, generator=case.generator) >= share)
        return case

    return build
