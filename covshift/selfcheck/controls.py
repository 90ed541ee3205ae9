"""Healthy twins: runs in which nothing is wrong, however odd they look, so that nothing may be called bad.

Many of them are what a naive check alarms on: masked gradients behind pooling and dropout, sparse activity, learning
rates that fall to zero, infinities while a loss scale is found, tokens that hardly ever occur.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from covshift.linked import LinkedReLU, LinkedSELU
from covshift.selfcheck import nets
from covshift.selfcheck.nets import STEPS, Case, cnn, cosine, mlp, residual, transformer
from covshift.selfcheck.planting import hold_firing


@dataclass(frozen=True)
class Control:
    """A healthy run; ``forbidden`` are checks that must not even ask to watch, ``update`` whether weights move.

    ``steps`` are fewer where depth makes them dear.
    """

    name: str
    build: Callable[[int], Case]
    held_back: Callable[[int], Case]
    forbidden: frozenset[str] = frozenset()
    update: bool = True
    steps: int = STEPS


def _changed(make: Callable[[int], Case], change: Callable[[Case], None]) -> Callable[[int], Case]:
    def build(seed: int) -> Case:
        case = make(seed)
        change(case)
        return case

    return build


def _both(change: Callable[[Case], None]) -> tuple[Callable[[int], Case], Callable[[int], Case]]:
    return _changed(mlp, change), _changed(residual, change)


def _pair(
    make: Callable[..., Case], first: dict[str, object], second: dict[str, object]
) -> tuple[Callable[[int], Case], Callable[[int], Case]]:
    return lambda seed: make(seed, **first), lambda seed: make(seed, **second)


def warm_up(case: Case) -> None:
    """The learning rate rises over the first 30 steps."""
    base = case.learning_rate

    def set_rate(step: int) -> None:
        case.learning_rate = base * min((step + 1) / 30, 1.0)

    case.before.append(set_rate)


def clipped(case: Case) -> None:
    """Gradients are clipped to norm 1."""
    case.clip = 1.0


def scale_search(case: Case) -> None:
    """Three of the first steps overflow and are skipped, as when a loss scale is found."""

    def overflow(step: int) -> None:
        case.loss_scale = math.inf if step in (0, 1, 3) else 1.0

    case.before.append(overflow)


def sparse(case: Case) -> None:
    """Every unit of every layer fires on a tenth of the examples: nine of ten activations are zero, no unit is dead."""
    every = {position: torch.tensor(True) for position in range(len(case.activations))}
    hold_firing(case, every, 0.1)


def small_batches(case: Case) -> None:
    """Batches of 8."""
    case.batch_size = 8


class _WithSpare(nn.Module):
    def __init__(self, body: nn.Module, features: int) -> None:
        super().__init__()
        self.body, self.spare = body, nn.Linear(features, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.spare(x)
        return torch.as_tensor(self.body(x))


def with_spare_head(make: Callable[[int], Case]) -> Callable[[int], Case]:
    """A second head whose output the loss does not use."""

    def build(seed: int) -> Case:
        case = make(seed)
        case.model = _WithSpare(case.model, nets.FEATURES)
        case.linears = [f"body.{name}" for name in case.linears]
        case.activations = [f"body.{name}" for name in case.activations]
        return case

    return build


class _Embedded(nn.Module):
    """Numbers to tokens, of which most are rare, to vectors."""

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.tokens, self.embedding = tokens, nn.Embedding(tokens, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        ids = (x[:, :4].abs() ** 3).long().clamp(max=self.tokens - 1)
        return torch.as_tensor(self.embedding(ids).flatten(1))


def embedding(depth: int) -> Callable[[int], Case]:
    """An embedding with rare tokens under a plain network."""

    def build(seed: int) -> Case:
        case = mlp(seed, depth=depth)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            front = OrderedDict(embed=_Embedded(200, nets.FEATURES // 4))
        case.model = nn.Sequential(front | OrderedDict(case.model.named_children()))
        return case

    return build


def converged(case: Case) -> None:
    """The task is easy and the loss nearly zero from the start."""
    case.learning_rate = 3e-3
    case.batch_size = 256
    target = nets.teacher(nets.FEATURES)
    case.alter = lambda x, step: x + 4.0 * target[:, (x @ target).argmax(dim=1)].T


CONTROLS: tuple[Control, ...] = (
    Control("He ReLU MLP", *_pair(mlp, {}, {"depth": 6, "width": 24})),
    Control("CNN", *_pair(cnn, {}, {"depth": 4, "width": 6})),
    Control("batch-norm CNN", *_pair(cnn, {"norm": nn.BatchNorm2d}, {"norm": nn.BatchNorm2d, "depth": 4})),
    Control(
        "deep plain batch-norm",
        *_pair(mlp, {"depth": 40, "width": 16, "norm": nn.BatchNorm1d}, {"depth": 50, "norm": nn.BatchNorm1d}),
        steps=80,
    ),
    Control("residual", *_pair(residual, {}, {"depth": 6, "width": 24})),
    Control("pre-norm transformer", *_pair(transformer, {}, {"depth": 3})),
    Control(
        "SELU", *_pair(mlp, {"activation": nn.SELU, "gain": 1.0}, {"activation": nn.SELU, "gain": 1.0, "depth": 8})
    ),
    Control(
        "linked ReLU",
        *_pair(mlp, {"activation": LinkedReLU, "members": 2}, {"activation": LinkedReLU, "members": 2, "depth": 6}),
    ),
    Control(
        "linked SELU",
        *_pair(
            mlp,
            {"activation": LinkedSELU, "members": 2, "gain": 1.0},
            {"activation": LinkedSELU, "members": 2, "gain": 1.0, "depth": 6},
        ),
    ),
    Control("GELU", *_pair(mlp, {"activation": nn.GELU, "depth": 6}, {"activation": nn.GELU, "depth": 8})),
    Control("dropout", *_pair(mlp, {"dropout": 0.5}, {"dropout": 0.5, "depth": 3}), frozenset({"linkage"})),
    Control("max pooling", *_pair(cnn, {"pool": True}, {"pool": True, "depth": 4}), frozenset({"gradient zeros"})),
    Control("cosine decay", *_both(cosine)),
    Control("warm-up", *_both(warm_up)),
    Control("Adam with clipping", *_both(clipped)),
    Control("loss-scale search", *_both(scale_search)),
    Control("sparse ReLU", *_both(sparse)),
    Control("batches of 8", *_both(small_batches)),
    Control("frozen weights", *_pair(mlp, {}, {"depth": 6}), update=False),
    Control("rare tokens", embedding(4), embedding(6)),
    Control("unused head", with_spare_head(mlp), with_spare_head(residual)),
    Control("converged", *_both(converged)),
)
