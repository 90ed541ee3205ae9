"""Faults with known answers: what is planted, how strongly, which check must speak, and about which layer.

Numbers are those of docs/concepts/calibration.md. A fault changes a healthy :class:`~covshift.selfcheck.nets.Case`; it
never touches the recording.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from covshift.linked import Linked, LinkedReLU, LinkedSiLU
from covshift.selfcheck.nets import Case, cnn, cosine, mlp, residual

Plant = Callable[[Case, float], None]
Build = Callable[[int, float], Case]


@dataclass(frozen=True)
class Fault:
    """A planted fault.

    Attributes
    ----------
    name : str
        What is wrong.
    checks : frozenset of str
        A finding of one of these checks counts as found.
    doses : (float, float, float)
        Weak, medium, strong.
    build : callable
        ``(seed, dose) -> Case`` on the networks the rules were developed with, and
    held_back : callable
        on networks they were not.
    local : bool
        Whether the finding must name the planted layer, the middle one, or a neighbour.
    at : int or None
        Position of the planted layer among the nonlinearities where it is not the middle one.
    """

    name: str
    checks: frozenset[str]
    doses: tuple[float, float, float]
    build: Build
    held_back: Build
    local: bool = True
    at: int | None = None


def _planted(make: Callable[[int], Case], plant: Plant) -> Build:
    def build(seed: int, dose: float) -> Case:
        case = make(seed)
        plant(case, dose)
        return case

    return build


def _on(plant: Plant, *, held_back: Callable[[int], Case] = residual) -> tuple[Build, Build]:
    return _planted(mlp, plant), _planted(held_back, plant)


def _settling(plant: Plant, held_back: Callable[[int], Case]) -> tuple[Build, Build]:
    """Under a learning rate that falls to zero, so that nothing else moves at the end."""

    def settle(case: Case, dose: float) -> None:
        cosine(case)
        plant(case, dose)

    return _on(settle, held_back=held_back)


def _deep(seed: int) -> Case:
    return mlp(seed, depth=6, width=24)


def _share(case: Case, dose: float) -> torch.Tensor:
    """Which units of the middle layer are hit."""
    units = case.linear(case.middle).weight.shape[0]
    return torch.arange(units) < max(round(dose * units), 1)


def dead_units(case: Case, share: float) -> None:
    """A share of the middle layer's units never fires."""
    with torch.no_grad():
        case.linear(case.middle).bias[_share(case, share)] = -1e3  # type: ignore[index]


def dying(case: Case, rate: float) -> None:
    """The middle layer's biases sink at every step."""

    def sink(step: int) -> None:
        with torch.no_grad():
            case.linear(case.middle).bias.sub_(rate)  # type: ignore[union-attr]

    case.after.append(sink)


def born_dead(case: Case, depth: float) -> None:
    """The middle layer starts with biases far below zero."""
    with torch.no_grad():
        case.linear(case.middle).bias.fill_(-depth)  # type: ignore[union-attr]


def _plateau(make: Callable[..., Case]) -> Build:
    def build(seed: int, share: float) -> Case:
        case = make(seed, activation=nn.ReLU6)
        with torch.no_grad():
            case.linear(case.middle).bias[_share(case, share)] = 100.0  # type: ignore[index]
        return case

    return build


def _saturated(depth: int) -> Build:
    def build(seed: int, scale: float) -> Case:
        case = mlp(seed, depth=depth, activation=nn.Tanh, gain=1.0)
        with torch.no_grad():
            case.linear(case.middle).weight *= scale
        return case

    return build


def _sigmoid(width: int) -> Build:
    return lambda seed, depth: mlp(seed, depth=int(depth), width=width, activation=nn.Sigmoid, gain=1.0)


def _initialised(depth: int, optimizer: str = "adam") -> Build:
    def build(seed: int, gain: float) -> Case:
        case = mlp(seed, depth=depth, gain=gain)
        case.optimizer, case.learning_rate = optimizer, 1e-4
        return case

    return build


def _linked_swish(width: int) -> Build:
    return lambda seed, depth: mlp(seed, depth=int(depth), width=width, activation=LinkedSiLU, members=2, gain=0.67)


def _linked_plateau(depth: int) -> Build:
    def build(seed: int, share: float) -> Case:
        case = mlp(seed, depth=depth, activation=lambda: Linked(nn.ReLU6), members=2, gain=1.0)
        with torch.no_grad():
            case.linear(case.middle).bias[_share(case, share)] = 100.0  # type: ignore[index]
        return case

    return build


def _zero_atom(depth: int) -> Build:
    def build(seed: int, share: float) -> Case:
        case = mlp(seed, depth=depth, activation=LinkedReLU, members=2, gain=1.0)
        case.linear(0).bias = None
        case.alter = lambda x, step: x * (torch.rand(len(x), 1, generator=case.generator) >= share)
        return case

    return build


def detached(case: Case, _: float) -> None:
    """The graph is cut behind the middle layer's activation."""
    case.module(case.activations[case.middle]).register_forward_hook(lambda module, args, output: output.detach())


def left_out(case: Case, _: float) -> None:
    """The optimizer was never given the middle layer's weights."""
    case.skipped = {f"{case.linears[case.middle]}.{name}" for name in ("weight", "bias")}


def learning_rate(case: Case, factor: float) -> None:
    """The learning rate is wrong by a factor."""
    case.learning_rate *= factor


def strangled(case: Case, limit: float) -> None:
    """Gradients are clipped to next to nothing."""
    case.optimizer, case.learning_rate, case.clip = "sgd", 0.1, limit


def _on_output(case: Case, change: Callable[[torch.Tensor, int], torch.Tensor]) -> None:
    """Let ``change`` have the middle linear layer's output, with the number of the step."""
    now = [0]
    case.before.append(lambda step: now.__setitem__(0, step))
    case.module(case.linears[case.middle]).register_forward_hook(lambda module, args, output: change(output, now[0]))


def injected_shift(case: Case, size: float) -> None:
    """Every unit of the middle layer is shifted anew at every step, as in noisy batch norm (Santurkar et al. 2018)."""
    units = case.linear(case.middle).weight.shape[0]
    noise = torch.randn(1000, units, generator=torch.Generator().manual_seed(5)) * size

    def change(output: torch.Tensor, step: int) -> torch.Tensor:
        return output + output.detach().std() * noise[step].reshape(1, -1, *(1,) * (output.ndim - 2))

    _on_output(case, change)


def drift(case: Case, size: float) -> None:
    """The middle layer's pre-activations rise by ``size`` of their sd over every 40 steps."""
    start: list[float] = []

    def change(output: torch.Tensor, step: int) -> torch.Tensor:
        if not start:
            start.append(float(output.detach().std()))
        return output + size * start[0] * step / 40

    _on_output(case, change)


def scale_drift(case: Case, size: float) -> None:
    """The middle layer's pre-activations grow by a factor of ``exp(size)`` over every 40 steps."""
    _on_output(case, lambda output, step: output * float(torch.tensor(size * step / 40).exp()))


def swapped(case: Case, spread: float) -> None:
    """The middle layer's units trade means at every step, up to ``spread`` of their sd to either side."""

    def change(output: torch.Tensor, step: int) -> torch.Tensor:
        means = torch.linspace(-1, 1, output.shape[1]) * spread * output.detach().std()
        side = -1 if step % 2 else 1
        return output + side * means.reshape(1, -1, *(1,) * (output.ndim - 2))

    _on_output(case, change)


def broken_numbers(case: Case, share: float) -> None:
    """A share of the middle layer's outputs becomes NaN from step 60 on."""

    def change(output: torch.Tensor, step: int) -> torch.Tensor:
        if step < 60:
            return output
        flat = torch.arange(output.numel()).reshape(output.shape)
        return torch.where(flat < max(share * output.numel(), 1), torch.nan, output)

    _on_output(case, change)


_ACTIVITY = frozenset({"units", "gradient zeros"})
MOVEMENT = frozenset({"shift", "operating point"})
"""Checks of faults whose dose 0 plants nothing: a network that learns moves, too."""

_DEPTH = frozenset({"scale over depth"})
_SIZE = frozenset({"update ratio", "non-finite", "scale over time", "scale over depth", "units"})

FAULTS: tuple[Fault, ...] = (
    Fault("dead units", _ACTIVITY, (0.25, 0.5, 1.0), *_on(dead_units)),
    Fault("dying units", _ACTIVITY, (0.02, 0.05, 0.2), *_on(dying, held_back=_deep)),
    Fault("born dead", _ACTIVITY, (3.0, 6.0, 20.0), *_on(born_dead, held_back=cnn)),
    Fault("stuck at a plateau", _ACTIVITY, (0.25, 0.5, 1.0), _plateau(mlp), _plateau(cnn)),
    Fault("saturated tanh", frozenset({"saturation", "units"}), (3.0, 10.0, 40.0), _saturated(4), _saturated(6)),
    Fault("sigmoid vanishing", _DEPTH, (6, 10, 14), _sigmoid(32), _sigmoid(24), local=False),
    Fault("vanishing initialisation", _DEPTH, (1.0, 0.5, 0.25), _initialised(16), _initialised(20), local=False),
    Fault(
        "exploding initialisation",
        _DEPTH | {"non-finite"},
        (4.0, 8.0, 16.0),
        _initialised(16),
        _initialised(20),
        local=False,
    ),
    Fault("linked swish vanishing", _DEPTH, (12, 20, 32), _linked_swish(16), _linked_swish(12), local=False),
    Fault("linkage violated", frozenset({"linkage"}), (0.25, 0.5, 1.0), _linked_plateau(4), _linked_plateau(6)),
    Fault("linkage zero atom", frozenset({"linkage"}), (0.05, 0.3, 0.8), _zero_atom(4), _zero_atom(6), at=0),
    Fault("detached", frozenset({"gradient arrives"}), (1.0, 1.0, 1.0), *_on(detached, held_back=_deep)),
    Fault("left out of the optimizer", frozenset({"update ratio"}), (1.0, 1.0, 1.0), *_on(left_out)),
    Fault("learning rate too high", _SIZE, (30.0, 100.0, 1000.0), *_on(learning_rate, held_back=cnn), local=False),
    Fault("learning rate too low", _SIZE, (1e-2, 1e-3, 1e-4), *_on(learning_rate), local=False),
    Fault("strangled by clipping", _SIZE, (1e-3, 1e-4, 1e-6), *_on(strangled, held_back=cnn), local=False),
    Fault("injected shift", MOVEMENT, (0.3, 0.6, 1.5), *_settling(injected_shift, cnn)),
    Fault("drift of the mean", MOVEMENT, (0.5, 1.0, 3.0), *_settling(drift, _deep)),
    Fault("drift of the scale", MOVEMENT, (0.3, 0.6, 1.5), *_settling(scale_drift, _deep)),
    Fault("swapped units", MOVEMENT, (0.5, 1.0, 3.0), *_settling(swapped, cnn)),
    Fault("broken numbers", frozenset({"non-finite"}), (1e-4, 1e-2, 1.0), *_on(broken_numbers)),
)
"""Those that show in a passive record."""
