"""The loss along the gradient: loss variation, gradient predictiveness and effective smoothness.

The companions of gradient ICS in Santurkar et al. 2018 (arXiv 1805.11604), section 3.1 and figure 4: how far the loss
and its gradient change on the way theta - s * grad L(theta). See docs/concepts/gradient-ics.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import xarray as xr
from torch import nn

from covshift.exceptions import InvalidArgumentError
from covshift.probe.batch import LossFunction, as_batch, gradients_of
from covshift.probe.parameters import flat, norm, write
from covshift.probe.state import visiting


def loss_landscape(
    model: nn.Module, loss_fn: LossFunction, batch: Any, *, step_sizes: float | Sequence[float], mode: str = "train"
) -> xr.Dataset:
    """Loss and gradient at points along the gradient; the model is left as it was.

    Parameters
    ----------
    model, loss_fn, batch
        As for :func:`covshift.probe.gradient_ics`.
    step_sizes : float or sequence of float
        Distances s in units of the gradient, above 0, ascending or not. The paper spans half to four times the
        learning rate.
    mode : {"train", "eval"}
        Training flags of the passes.

    Returns
    -------
    Dataset
        Dim ``step_size``. ``loss``: at the point; ``loss_change``: loss minus that at theta; ``gradient_change``: L2
        norm of grad L(theta) - grad L(point), gradient predictiveness; ``smoothness``: that over the L2 distance of
        the point, whose maximum is the paper's effective beta. NaN where the loss at the point is not finite, and
        ``smoothness`` also where the gradient at theta is 0. Scalars ``loss_at_start`` and ``gradient_norm``.

    Raises
    ------
    InvalidArgumentError
        If the batch or the loss cannot be used, the model has no trainable parameter on which the loss depends, or
        a step size is not finite and above 0.
    ProbeUnsupported
        If the model cannot be probed.
    """
    given = as_batch(model, batch)
    sizes = [float(size) for size in ([step_sizes] if isinstance(step_sizes, int | float) else step_sizes)]
    if not sizes or not all(math.isfinite(size) and size > 0 for size in sizes):
        raise InvalidArgumentError(f"step_sizes={sizes}: expected at least one, each finite and above 0")
    with visiting(model, mode=mode, tensors=given.tensors) as visit:
        trainable = [parameter for parameter in visit.model.parameters() if parameter.requires_grad]
        if not trainable:
            raise InvalidArgumentError("model: has no trainable parameter; expected at least one")

        def point() -> tuple[float, torch.Tensor]:
            visit.rewind(but=trainable)
            loss = given.loss(visit.model, loss_fn, finite=False)
            return float(loss.detach()), flat(gradients_of(loss, trainable), trainable)

        start, gradient = point()
        if not math.isfinite(start):
            raise InvalidArgumentError(f"loss_fn: the loss of this batch is {start}; expected a finite one to start at")
        origin = [parameter.detach().clone() for parameter in trainable]
        rows = []
        for size in sizes:
            write(trainable, _moved(origin, gradient, -size))
            rows.append(_row(*point(), start, gradient, size))
    return _dataset(sizes, rows, start, gradient)


def _moved(origin: list[torch.Tensor], direction: torch.Tensor, size: float) -> list[torch.Tensor]:
    parts = torch.split(direction, [value.numel() for value in origin])
    return [v.to(torch.float64).add(d.view_as(v), alpha=size) for v, d in zip(origin, parts, strict=True)]


def _row(loss: float, there: torch.Tensor, start: float, gradient: torch.Tensor, size: float) -> dict[str, float]:
    if not math.isfinite(loss):
        return dict.fromkeys(("loss", "loss_change", "gradient_change", "smoothness"), math.nan)
    change = norm(there - gradient)
    distance = size * norm(gradient)
    return {
        "loss": loss,
        "loss_change": loss - start,
        "gradient_change": change,
        "smoothness": change / distance if distance else math.nan,
    }


def _dataset(sizes: list[float], rows: list[dict[str, float]], start: float, gradient: torch.Tensor) -> xr.Dataset:
    meanings = {
        "loss": ("loss at the point", "loss"),
        "loss_change": ("loss at the point minus loss at the start", "loss"),
        "gradient_change": ("L2 norm of the change of the gradient", "loss/parameter"),
        "smoothness": ("change of the gradient over distance", "loss/parameter^2"),
    }
    data: dict[str, Any] = {
        name: ("step_size", [row[name] for row in rows], {"long_name": meaning, "units": units})
        for name, (meaning, units) in meanings.items()
    }
    data["loss_at_start"] = ((), start, {"long_name": "loss at theta", "units": "loss"})
    data["gradient_norm"] = (
        (),
        norm(gradient),
        {"long_name": "L2 norm of the gradient at theta", "units": "loss/parameter"},
    )
    return xr.Dataset(data, {"step_size": sizes}, {"definition": "arXiv 1805.11604, 3.1"})
