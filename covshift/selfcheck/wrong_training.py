"""Faults of training and data: each function plants one in a case, at a dose. The network itself is sound."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from covshift.selfcheck.nets import Case


def learning_rate(case: Case, factor: float) -> None:
    """The learning rate is wrong by a factor."""
    case.learning_rate *= factor


def strangled(case: Case, limit: float) -> None:
    """Gradients are clipped to next to nothing."""
    case.optimizer, case.learning_rate, case.clip = "sgd", 0.1, limit


def left_out(case: Case, pace: float) -> None:
    """The middle layer learns slower by the factor ``pace``; at 0 the optimizer was never given it."""
    case.pace = {f"{case.linears[case.middle]}.{name}": pace for name in ("weight", "bias")}


def frozen(case: Case, layers: float) -> None:
    """The first ``layers`` linear layers require no gradient."""
    for position in range(int(layers)):
        case.linear(position).requires_grad_(False)


def stale(case: Case, step: float) -> None:
    """Before ``step`` the middle layer's parameters are made anew; the optimizer goes on with the old ones."""
    at = int(step)

    def remake(now: int) -> None:
        if now != at:
            return
        layer = case.linear(case.middle)
        layer.weight = nn.Parameter(layer.weight.detach().clone())
        layer.bias = nn.Parameter(layer.bias.detach().clone())  # type: ignore[union-attr]

    case.before.append(remake)


def accumulating(case: Case, steps: float) -> None:
    """Gradients are set to zero every so many steps only, and the optimizer steps on their sum each time."""
    case.optimizer, case.learning_rate, case.clear_every = "sgd", 0.05, int(steps)


def raw_inputs(case: Case, scale: float) -> None:
    """Inputs are not normalised: sd ``scale``, mean twice that, as pixels from 0 to 255 are at 64.

    Plain gradient descent, because Adam's steps do not grow with the gradient.
    """
    case.optimizer, case.learning_rate = "sgd", 0.05
    case.alter = lambda x, step: scale * (x + 2.0)


def constant_inputs(case: Case, share: float) -> None:
    """A share of the examples of every batch is one and the same."""
    fixed = torch.randn(case.shape, generator=torch.Generator().manual_seed(23))

    def alter(x: torch.Tensor, step: int) -> torch.Tensor:
        same = torch.arange(len(x)) < round(share * len(x))
        return torch.where(same.reshape(-1, *(1,) * (x.ndim - 1)), fixed, x)

    case.alter = alter


def shuffled_labels(case: Case, share: float) -> None:
    """A share of the classes is drawn at random."""

    def relabel(y: torch.Tensor, step: int) -> torch.Tensor:
        drawn = torch.randint(int(y.max()) + 1, y.shape, generator=case.generator)
        return torch.where(torch.rand(len(y), generator=case.generator) < share, drawn, y)

    case.relabel = relabel


def satisfied_hinge(case: Case, share: float) -> None:
    """A hinge loss whose margin is met by a share of every batch: those examples have no gradient."""

    def hinge(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        true = F.one_hot(y, logits.shape[1]).bool()
        lead = logits[true] - logits.masked_fill(true, -torch.inf).amax(dim=1)
        leads = lead.detach().sort().values
        margin = torch.cat([leads, leads[-1:] + 1])[len(lead) - round(share * len(lead))]
        return F.relu(margin - lead).mean()

    case.criterion = hinge


def half_precision(case: Case, decades: float) -> None:
    """float16 autocast without a loss scale, for a loss ``decades`` below what it should be."""
    case.precision, case.loss_scale = torch.float16, 10.0**-decades
