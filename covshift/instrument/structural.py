"""Where a nonlinearity's derivative is zero, in closed form: the structural zeros of a gradient.

For each activation kind the set of pre-activations z at which autograd's derivative is exactly zero is a union of
closed intervals; for a linkage it is the intersection of its members' sets, since one live member suffices. Counting
z in that set tells which zeros of dL/dz come from the nonlinearity itself. Kinds without a closed form here are
``not measured``.

The sets are autograd's own, as swept by ``covshift.linked.audit`` in float32 (tests compare the two). Thresholds where
an exponential underflows differ between dtypes, so they are stated for float32 only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from covshift.summary import numbers
from covshift.summary.numbers import Numbers

Interval = tuple[float, float]


@dataclass(frozen=True)
class ZeroSet:
    """Union of closed intervals of z; exact for every dtype, or for float32 only."""

    intervals: tuple[Interval, ...]
    any_dtype: bool = True

    def mirrored(self) -> ZeroSet:
        """The set of ``-z``."""
        return ZeroSet(tuple((-high, -low) for low, high in self.intervals), self.any_dtype)

    def intersect(self, other: ZeroSet) -> ZeroSet:
        """Pre-activations at which both derivatives are zero."""
        pairs = [(max(a[0], b[0]), min(a[1], b[1])) for a in self.intervals for b in other.intervals]
        return ZeroSet(tuple(pair for pair in pairs if pair[0] <= pair[1]), self.any_dtype and other.any_dtype)

    def covers(self, dtype: torch.dtype) -> bool:
        """Whether the set is exact for tensors of ``dtype``."""
        return self.any_dtype or dtype == torch.float32

    def count(self, z: torch.Tensor, row: Numbers) -> int:
        """Elements of ``z`` in the set, read off its numbers where they suffice.

        ``row`` holds the numbers of ``z`` itself (:data:`covshift.summary.numbers.COLUMNS`); only where an interval
        cuts through the range of ``z`` is ``z`` read again.
        """
        if self.intervals == AT_MOST_ZERO.intervals:
            return int(row[numbers.NEGATIVE] + row[numbers.ZERO])
        return int(sum([_count_interval(z, row, low, high) for low, high in self.intervals]))

    def counted_on_device(self, z: torch.Tensor) -> torch.Tensor:
        """The same count by torch operations, as a float64 vector of one element where ``z`` lies."""
        inside = torch.zeros((), dtype=torch.float64, device=z.device)
        for low, high in self.intervals:
            inside = inside + ((z >= low) & (z <= high)).sum()
        return inside.reshape(1)


NEVER = ZeroSet(())
AT_MOST_ZERO = ZeroSet(((-math.inf, 0.0),))

# Where exp(z) or its products underflow in float32, by bisection over torch 2.13's own autograd. GELU and Mish have no
# entry: their thresholds differ between torch's scalar and vectorised code, so they depend on a tensor's length.
_EXP_UNDERFLOW = -103.97208404541016
_SIGMOID_LOW, _SIGMOID_HIGH = -88.72283935546875, 16.63553237915039
_TANH_FLAT = 9.01084041595459


def _count_interval(z: torch.Tensor, row: Numbers, low: float, high: float) -> float:
    if (low, high) == (0.0, math.inf):
        return float(row[numbers.COUNT] - row[numbers.NEGATIVE] - row[numbers.NAN])
    if (low, high) == (0.0, 0.0):
        return float(row[numbers.ZERO])
    infinite = (row[numbers.NEGINF] if low == -math.inf else 0.0) + (row[numbers.POSINF] if high == math.inf else 0.0)
    if row[numbers.MIN] > high or row[numbers.MAX] < low:
        return float(infinite)
    with torch.no_grad():
        return float(((z >= low) & (z <= high)).sum())


def zero_set(module: nn.Module | Callable[..., torch.Tensor]) -> ZeroSet | None:
    """Structural zeros of an activation module, function or linkage; None where there is no closed form.

    A linkage is any module with the attributes ``linkage_members`` (callables from z to one member's output) and
    ``linkage_layout == "concatenated"``; a member that is another activation of ``-z`` names it in ``mirror_of``.
    """
    members = getattr(module, "linkage_members", None)
    if members is None:
        return _of_callable(module)
    return _common(members) if getattr(module, "linkage_layout", None) == "concatenated" else None


def _common(members: Sequence[Any]) -> ZeroSet | None:
    common = ZeroSet(((-math.inf, math.inf),))
    for member in members:
        own = _of_callable(member)
        if own is None:
            return None
        common = common.intersect(own)
    return common


def _of_callable(member: Any) -> ZeroSet | None:
    base = getattr(member, "mirror_of", None)
    if base is not None:
        own = _of_callable(base)
        return None if own is None else own.mirrored()
    if isinstance(member, nn.Module):
        rule = _BY_MODULE.get(type(member))
        if rule is None or (getattr(member, "inplace", False) and rule in _INPLACE_DIFFERS):
            return None
        return rule(member)
    return _BY_FUNCTION.get(member)


def _prelu(module: Any) -> ZeroSet | None:
    # A slope of zero kills only its own channel, which one set for the whole layer cannot say.
    return NEVER if bool((module.weight != 0).all()) else None


def _leaky(module: Any) -> ZeroSet:
    return NEVER if module.negative_slope != 0 else AT_MOST_ZERO


def _hardtanh(module: Any) -> ZeroSet:
    return ZeroSet(((-math.inf, float(module.min_val)), (float(module.max_val), math.inf)))


def _elu(module: Any) -> ZeroSet | None:
    return _EXPONENTIAL if module.alpha == 1.0 else None


def _softplus(module: Any) -> ZeroSet | None:
    return _EXPONENTIAL if module.beta == 1.0 else None


_EXPONENTIAL = ZeroSet(((-math.inf, _EXP_UNDERFLOW),), any_dtype=False)
_SILU = ZeroSet(((-math.inf, _SIGMOID_LOW),), any_dtype=False)
_TANH = ZeroSet(((-math.inf, -_TANH_FLAT), (_TANH_FLAT, math.inf)), any_dtype=False)
_SIGMOID = ZeroSet(((-math.inf, _SIGMOID_LOW), (_SIGMOID_HIGH, math.inf)), any_dtype=False)
_HARDSWISH = ZeroSet(((-math.inf, -3.0), (-1.5, -1.5)))


def _selu(module: Any) -> ZeroSet:
    return _EXPONENTIAL


def _silu(module: Any) -> ZeroSet:
    return _SILU


# In-place, these save their output and derive from it, which reaches zero earlier.
_INPLACE_DIFFERS = (_elu, _selu, _silu)

_BY_MODULE: dict[type[nn.Module], Callable[[Any], ZeroSet | None]] = {
    nn.ReLU: lambda module: AT_MOST_ZERO,
    nn.ReLU6: _hardtanh,
    nn.Hardtanh: _hardtanh,
    nn.Hardswish: lambda module: _HARDSWISH,
    nn.LeakyReLU: _leaky,
    nn.PReLU: _prelu,
    nn.SELU: _selu,
    nn.ELU: _elu,
    nn.SiLU: _silu,
    nn.Softplus: _softplus,
    nn.Tanh: lambda module: _TANH,
    nn.Sigmoid: lambda module: _SIGMOID,
}

_BY_FUNCTION: dict[Any, ZeroSet] = {
    torch.relu: AT_MOST_ZERO,
    F.relu: AT_MOST_ZERO,
    F.selu: _EXPONENTIAL,
    F.elu: _EXPONENTIAL,
    F.silu: _SILU,
    F.softplus: _EXPONENTIAL,
    torch.tanh: _TANH,
    torch.sigmoid: _SIGMOID,
}
