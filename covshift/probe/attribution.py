"""Who moved a layer's output between two states: the layers before it, or the layer itself. Exact, for linear layers.

For z = W x + b on the same examples at states t and t',

    z' - z = W (x' - x)  +  (W' - W) x + (b' - b)  +  (W' - W)(x' - x)
             upstream       own                       interaction

The upstream part is internal covariate shift by its definition, the change of a layer's input law by the layers before
it, as seen by the layer. See docs/concepts/attribution.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
import xarray as xr
from torch import nn

from covshift.exceptions import InvalidArgumentError
from covshift.instrument.hooks import inside_backward
from covshift.probe.batch import as_batch
from covshift.probe.state import visiting
from covshift.probe.states import State, TwoStates

LINEAR = (nn.Linear, nn.modules.conv._ConvNd)
SAME_OUTPUT = 0.05
"""Relative L2 distance up to which a layer's output counts as that of the linear map recomputed in float64: bfloat16
rounding stays below 0.01, another operation does not."""

_PARTS = ("upstream", "own", "interaction", "movement")


def shift_attribution(
    model: nn.Module, batch: Any, *, before: State, after: State | None = None, mode: str = "eval"
) -> xr.Dataset:
    """Upstream, own and interaction parts of the movement of every linear and convolutional layer.

    Parameters
    ----------
    model : Module
        Left exactly as it was.
    batch : tuple, mapping or Tensor
        ``(inputs, *targets)`` of which only the inputs are used, or inputs alone.
    before : mapping
        ``copy.deepcopy(model.state_dict())`` of an earlier state.
    after : mapping, optional
        The same of a later state; the state the model is in by default.
    mode : {"eval", "train"}
        Training flags of the two passes. In training mode Batch Normalization uses the statistics of this batch.

    Returns
    -------
    Dataset
        Dim ``layer``, one entry for each call (``name#1`` for the second), in the order of the calls.
        ``upstream_rms``, ``own_rms``, ``interaction_rms``, ``movement_rms``: root mean square over examples and
        positions of that part of z' - z in each unit, in units of the sd of that unit's z before, then root mean square
        over units; >= 0. ``upstream_share`` in [0, 1]: upstream over upstream plus own. Units that were constant on the
        batch have no sd and are left out; ``constant_unit_count`` counts them. NaN where none is left, where nothing
        moved (share), or where ``status`` is not "ok".

    Raises
    ------
    InvalidArgumentError
        If the batch or a state cannot be used, or the model calls no linear or convolutional layer.
    ProbeUnsupported
        If the model cannot be probed.
    """
    given = as_batch(model, batch)
    with visiting(model, mode=mode, graph=False, tensors=given.tensors) as visit:
        states = TwoStates(model, before, after)
        passes = []
        for state in (states.before, states.after):
            visit.rewind()
            states.load(state)
            with _calls_of(visit.model) as calls:
                given.output(visit.model)
            passes.append(calls)
    if not passes[0]:
        raise InvalidArgumentError("model: calls no nn.Linear and no convolution; expected at least one to attribute")
    rows = {name: _row(call, passes[1].get(name)) for name, call in passes[0].items()}
    return _dataset(rows)


@dataclass(frozen=True)
class _Call:
    """One call of a linear layer, in float64."""

    module: nn.Module
    x: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None
    output: torch.Tensor

    def apply(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """The layer's linear map with other numbers."""
        module: Any = self.module
        if isinstance(module, nn.Linear):
            return F.linear(x, weight, bias)
        if not module.transposed:
            result: torch.Tensor = module._conv_forward(x, weight, bias)
            return result
        convolve = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[len(module.kernel_size) - 1]
        return convolve(
            x, weight, bias, module.stride, module.padding, module.output_padding, module.groups, module.dilation
        )

    @property
    def unit_axis(self) -> int:
        """Axis of the output that counts units."""
        if isinstance(self.module, nn.Linear):
            return self.output.ndim - 1
        return self.output.ndim - len(self.module.kernel_size) - 1  # type: ignore[arg-type]


@contextmanager
def _calls_of(model: nn.Module) -> Iterator[dict[str, _Call]]:
    calls: dict[str, _Call] = {}
    names = {module: name or "(root)" for name, module in model.named_modules() if isinstance(module, LINEAR)}
    repeats: dict[str, int] = {}

    def after(module: Any, args: tuple[Any, ...], output: torch.Tensor) -> None:
        if inside_backward() or not args:
            return
        name = names[module]
        k = repeats[name] = repeats.get(name, -1) + 1
        held = [_exact(value) for value in (args[0], module.weight, module.bias, output)]
        calls[f"{name}#{k}" if k else name] = _Call(module, *held)  # type: ignore[arg-type]

    handles = [module.register_forward_hook(after) for module in names]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _exact(value: torch.Tensor | None) -> torch.Tensor | None:
    """A float64 copy, on the CPU where the device has no float64."""
    if value is None:
        return None
    value = value.detach().cpu() if value.device.type == "mps" else value.detach()
    return value.to(torch.float64, copy=True)


def _row(call: _Call, later: _Call | None) -> dict[str, Any]:
    missing = {f"{part}_rms": math.nan for part in _PARTS} | {"upstream_share": math.nan, "constant_unit_count": 0}
    if later is None:
        return missing | {"status": "not called after"}
    if later.x.shape != call.x.shape:
        return missing | {"status": "input of another shape"}
    z = _recomputed(call)
    if z is None or _recomputed(later) is None:
        return missing | {"status": "not linear"}
    moved, turned = later.x - call.x, later.weight - call.weight
    shifted = None if call.bias is None or later.bias is None else later.bias - call.bias
    parts = {
        "upstream": call.apply(moved, call.weight),
        "own": call.apply(call.x, turned, shifted),
        "interaction": call.apply(moved, turned),
    }
    parts["movement"] = parts["upstream"] + parts["own"] + parts["interaction"]
    by_unit = z.movedim(call.unit_axis, 0).flatten(1)
    sd = by_unit.std(dim=1, correction=0)
    # The sd of a constant may be a rounding error above 0.
    varies = by_unit.amin(dim=1) != by_unit.amax(dim=1)
    numbers = {f"{part}_rms": _rms(value, call.unit_axis, sd, varies) for part, value in parts.items()}
    total = numbers["upstream_rms"] + numbers["own_rms"]
    numbers["upstream_share"] = numbers["upstream_rms"] / total if total else math.nan
    return numbers | {"constant_unit_count": int((~varies).sum()), "status": "ok"}


def _recomputed(call: _Call) -> torch.Tensor | None:
    """The layer's output by its linear map; None where the layer has done something else."""
    z = call.apply(call.x, call.weight, call.bias)
    if z.shape != call.output.shape:
        return None
    off, size = torch.linalg.vector_norm(z - call.output), torch.linalg.vector_norm(z)
    # Written so that NaN, which compares with nothing, is let through to be seen.
    return None if bool(off > SAME_OUTPUT * size) else z


def _rms(part: torch.Tensor, unit_axis: int, sd: torch.Tensor, varies: torch.Tensor) -> float:
    by_unit = part.movedim(unit_axis, 0).flatten(1)[varies] / sd[varies, None]
    return float(by_unit.square().mean().sqrt()) if by_unit.numel() else math.nan


def _dataset(rows: dict[str, dict[str, Any]]) -> xr.Dataset:
    meanings = {f"{part}_rms": f"{part} part of the movement of z, rms, in sds of z before" for part in _PARTS}
    meanings["movement_rms"] = "movement of z, rms, in sds of z before"
    meanings |= {"upstream_share": "upstream over upstream plus own"}
    data: dict[str, Any] = {
        name: ("layer", [row[name] for row in rows.values()], {"long_name": meaning, "units": "1"})
        for name, meaning in meanings.items()
    }
    constant = [row["constant_unit_count"] for row in rows.values()]
    data["constant_unit_count"] = ("layer", constant, {"long_name": "units left out: no sd", "units": "count"})
    status = [row["status"] for row in rows.values()]
    return xr.Dataset(data, {"layer": list(rows), "status": ("layer", status)})
