"""Why gradients are exactly zero at a nonlinearity: its own derivative, what comes from above, or arithmetic.

With f(z) = (g_1(z), ..., g_d(z)), J_i = g_i'(z) and u_i = dL/dg_i, the gradient through the nonlinearity is
delta = sum_i u_i J_i. An element with delta = 0 is *structural* where every J_i is 0, *masked* where some J_i is not
but u_i is 0 for each such i, and *underflow or cancelled* otherwise: no factor is zero, but the product or the sum is.
Only structural zeros test the linkage condition of arXiv 1712.02609. See docs/concepts/zeros.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import nn
from torch.utils.hooks import RemovableHandle

from covshift.exceptions import InvalidArgumentError
from covshift.instrument import sites
from covshift.instrument.hooks import inside_backward
from covshift.probe.batch import LossFunction, as_batch, gradients_of
from covshift.probe.state import visiting

CAUSES = ("structural", "masked", "underflow_or_cancelled")
COUNTS = ("count", "zero_count", *(f"{cause}_count" for cause in CAUSES), "local_zero_count", "nonfinite_count")

_MEANINGS = {
    "count": "elements of z",
    "zero_count": "elements of z whose gradient through the nonlinearity is exactly zero",
    "structural_count": "of those, where every member's derivative is zero",
    "masked_count": "of those, where no gradient reaches a member with a derivative",
    "underflow_or_cancelled_count": "of those, where the product underflows or the sum cancels",
    "local_zero_count": "elements of z at which every member's derivative is zero, whatever their gradient",
    "nonfinite_count": "elements of z whose gradient is NaN or infinite",
}


def zeros(model: nn.Module, loss_fn: LossFunction, batch: Any, *, mode: str = "train") -> xr.Dataset:
    """Zeros of dL/dz at every nonlinearity on one batch, split by cause.

    Parameters
    ----------
    model : Module
        Left exactly as it was. Nonlinearities called as functions (``F.relu``) are not seen.
    loss_fn : callable
        ``loss_fn(output, *targets)``, a scalar.
    batch : tuple, mapping or Tensor
        ``(inputs, *targets)``, or inputs alone.
    mode : {"train", "eval"}
        Training flags of the pass. In training mode dropout masks, and its zeros count as masked.

    Returns
    -------
    Dataset
        Dim ``layer``, one entry for each call of a nonlinearity or linkage module, in the order of the calls
        (``name#1`` for the second). Counts as in :data:`COUNTS`, int64; ``structural_rate``, ``masked_rate``,
        ``underflow_or_cancelled_rate`` and ``zero_rate`` in [0, 1], shares of ``count``. Counts of the three causes
        add up to ``zero_count``. Where ``status`` is not "split" the counts are 0 and the rates NaN. The gradient is
        the one through this nonlinearity: where z has other consumers, dL/dz is the sum over all.

    Raises
    ------
    InvalidArgumentError
        If the batch is empty, holds NaN or is on another device; if the loss is not finite, no scalar or not
        differentiable; if no nonlinearity was called as a module.
    ProbeUnsupported
        If the model cannot be probed; see :func:`covshift.probe.state.demand_supported`.
    """
    given = as_batch(model, batch)
    with visiting(model, mode=mode, tensors=given.tensors) as visit:
        with _calls_of(visit.model) as calls:
            loss = given.loss(visit.model, loss_fn)
        if not calls:
            raise InvalidArgumentError(
                "model: no nonlinearity was called as a module (nn.ReLU and its kind, or a linkage); activations "
                "called as functions cannot be split: put modules in their place"
            )
        leaves = [call.leaf for call in calls if call.leaf is not None]
        gradients_of(loss, [t for t in (*visit.model.parameters(), *given.tensors, *leaves) if t.requires_grad])
        for call in calls:
            call.settle()
    return _dataset(calls)


class _Call:
    """One call of a nonlinearity: z, the derivative of each member at z, and the gradients that come back."""

    def __init__(self, name: str, module: nn.Module, z: torch.Tensor) -> None:
        self.name, self._module = name, module
        self.status = "no gradient arrived"
        self.counts = dict.fromkeys(COUNTS, 0)
        self.leaf: torch.Tensor | None = None
        self._above: torch.Tensor | None = None
        self._through: torch.Tensor | None = None
        self._value = z.detach().clone()

    def private(self, z: torch.Tensor) -> torch.Tensor:
        """What to give the module for ``z``: an alias, whose gradient comes through this module alone."""
        if not z.requires_grad:
            z = self.leaf = self._value.clone().requires_grad_()
            # In-place modules must not meet a leaf.
            z = z.clone() if self._is_in_place else z
        elif not self._is_in_place:
            z = z.view_as(z)
        z.register_hook(self._receive)  # type: ignore[no-untyped-call]
        return z

    @property
    def _is_in_place(self) -> bool:
        return bool(getattr(self._module, "inplace", False))

    def came_out(self, output: Any) -> None:
        """Ask for the gradient of the module's output."""
        if isinstance(output, torch.Tensor) and output.requires_grad:
            output.register_hook(self._receive_above)  # type: ignore[no-untyped-call]

    def _receive_above(self, gradient: torch.Tensor) -> None:
        self._above = gradient.detach()

    def _receive(self, gradient: torch.Tensor) -> None:
        self._through = gradient.detach()

    def settle(self) -> None:
        """Count, now that backward has run, and let the tensors go."""
        if self._above is not None and self._through is not None:
            derivatives = _derivatives(self._module, self._value, self._above)
            if derivatives is None:
                self.status = "not elementwise"
            else:
                self.status, self.counts = "split", _split(self._through, *derivatives)
        self._above = self._through = None
        self._value = self._value.new_empty(0)


def _derivatives(
    module: nn.Module, value: torch.Tensor, above: torch.Tensor
) -> tuple[list[torch.Tensor], list[torch.Tensor]] | None:
    """J_i and u_i of every member, as autograd computes them; None where the module is not elementwise in z."""
    if isinstance(module, nn.RReLU) and module.training:
        # Another call would draw other slopes.
        return None
    z = value.clone().requires_grad_()
    output = module(z.clone())
    count = len(module.linkage_members) if sites.is_linkage(module) else 1  # type: ignore[arg-type]
    axis = int(module.linkage_dim) if sites.is_linkage(module) else 0  # type: ignore[arg-type]
    if output.shape != above.shape or output.numel() != count * z.numel() or output.ndim != z.ndim:
        return None
    members = output.chunk(count, dim=axis) if count > 1 else (output,)
    if any(member.shape != z.shape for member in members):
        return None
    own = [torch.autograd.grad(member.sum(), z, retain_graph=True)[0] for member in members]
    return own, list(above.chunk(count, dim=axis)) if count > 1 else [above]


def _split(delta: torch.Tensor, own: list[torch.Tensor], above: list[torch.Tensor]) -> dict[str, int]:
    flat = torch.stack([j == 0 for j in own]).all(dim=0)
    unfed = torch.stack([(j == 0) | (u == 0) for j, u in zip(own, above, strict=True)]).all(dim=0)
    zero = delta == 0
    parts = {
        "count": torch.ones_like(zero),
        "zero_count": zero,
        "structural_count": zero & flat,
        "masked_count": zero & unfed & ~flat,
        "underflow_or_cancelled_count": zero & ~unfed,
        "local_zero_count": flat,
        "nonfinite_count": ~torch.isfinite(delta),
    }
    return {name: int(part.sum()) for name, part in parts.items()}


@contextmanager
def _calls_of(model: nn.Module) -> Iterator[list[_Call]]:
    """Calls of nonlinearities while the model runs, in order; every hook is gone afterwards."""
    calls: list[_Call] = []
    running: list[_Call] = []
    repeats: dict[str, int] = {}
    handles: list[RemovableHandle] = []
    names = _nonlinearities(model)

    def before(module: nn.Module, args: tuple[Any, ...]) -> Any:
        if inside_backward() or not args or not isinstance(args[0], torch.Tensor) or not args[0].is_floating_point():
            return None
        name = names[module]
        k = repeats[name] = repeats.get(name, -1) + 1
        call = _Call(f"{name}#{k}" if k else name, module, args[0])
        calls.append(call)
        running.append(call)
        return (call.private(args[0]), *args[1:])

    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if running and running[-1]._module is module and not inside_backward():
            running.pop().came_out(output)

    for module in names:
        handles += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _nonlinearities(model: nn.Module) -> dict[nn.Module, str]:
    """Nonlinearities and linkages of the model with their names; members of a linkage are no layers of their own."""
    members = sites.linkage_parts(model)
    return {
        module: name or sites.ROOT
        for name, module in model.named_modules()
        if sites.activation_kind(module) and id(module) not in members
    }


def _dataset(calls: list[_Call]) -> xr.Dataset:
    counts = {name: np.array([call.counts[name] for call in calls], dtype=np.int64) for name in COUNTS}
    data = {name: ("layer", counts[name], {"long_name": _MEANINGS[name], "units": "count"}) for name in COUNTS}
    total = np.where(counts["count"] > 0, counts["count"], 1)
    for name in ("zero", *CAUSES):
        rate = np.where(counts["count"] > 0, counts[f"{name}_count"] / total, np.nan)
        data[f"{name}_rate"] = ("layer", rate, {"long_name": f"share of elements: {name}", "units": "1"})
    status = [call.status for call in calls]
    return xr.Dataset(data, {"layer": [call.name for call in calls], "status": ("layer", status)})
