"""Layers that move for no reason of learning: each function moves the middle layer's pre-activations, at a dose.

At dose 0 nothing moves but what learning moves, which is the twin that a finding of movement must be held against.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from covshift.selfcheck.nets import Case, started

SPAN = 40
"""Steps over which a drift goes as far as its dose says."""

JUMP_AT = 100
"""Step before which :func:`jump` happens."""


def _on_output(case: Case, change: Callable[[torch.Tensor, int], torch.Tensor]) -> None:
    """Let ``change`` have the middle linear layer's output, with the number of the step."""
    now = [0]
    case.before.append(lambda step: now.__setitem__(0, step))
    case.module(case.linears[case.middle]).register_forward_hook(lambda module, args, output: change(output, now[0]))


def _by_unit(offsets: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
    return offsets.reshape(1, -1, *(1,) * (output.ndim - 2))


def injected_shift(case: Case, size: float) -> None:
    """Every unit of the middle layer is shifted anew at every step, as in noisy batch norm (Santurkar et al. 2018)."""
    units = case.linear(case.middle).weight.shape[0]
    noise = torch.randn(1000, units, generator=torch.Generator().manual_seed(5)) * size
    _on_output(case, lambda output, step: output + output.detach().std() * _by_unit(noise[step], output))


def jump(case: Case, size: float) -> None:
    """The middle layer is mixed with a newly drawn one, once: ``size`` is the share of the new one."""
    generator = torch.Generator().manual_seed(11)

    def mix(step: int) -> None:
        if step != JUMP_AT or not size:
            return
        layer = case.linear(case.middle)
        old = layer.weight.detach().clone()
        started(layer, float(old.var()) * old[0].numel(), generator)
        with torch.no_grad():
            layer.weight.lerp_(old, 1 - size)

    case.before.append(mix)


def drift(case: Case, size: float) -> None:
    """The middle layer's pre-activations rise by ``size`` of their sd over every :data:`SPAN` steps."""
    start: list[float] = []

    def change(output: torch.Tensor, step: int) -> torch.Tensor:
        if not start:
            start.append(float(output.detach().std()))
        return output + size * start[0] * step / SPAN

    _on_output(case, change)


def scale_drift(case: Case, size: float) -> None:
    """The middle layer's pre-activations grow by a factor of ``exp(size)`` over every :data:`SPAN` steps."""
    _on_output(case, lambda output, step: output * float(torch.tensor(size * step / SPAN).exp()))


def swapped(case: Case, spread: float) -> None:
    """The middle layer's units trade means at every step, up to ``spread`` of their sd to either side."""

    def change(output: torch.Tensor, step: int) -> torch.Tensor:
        means = torch.linspace(-1, 1, output.shape[1]) * spread * output.detach().std()
        return output + (-1 if step % 2 else 1) * _by_unit(means, output)

    _on_output(case, change)


def noisy(case: Case, size: float) -> None:
    """The middle layer's pre-activations wander by ``size`` of their sd around where they are (AR(1), 0.95)."""
    generator = torch.Generator().manual_seed(3)
    level = [0.0]

    def wander(step: int) -> None:
        level[0] = 0.95 * level[0] + (1 - 0.95**2) ** 0.5 * float(torch.randn((), generator=generator))

    case.before.append(wander)
    _on_output(case, lambda output, step: output + size * level[0] * output.detach().std())
