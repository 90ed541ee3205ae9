"""Where an activation's derivative vanishes, by construction, in each floating dtype.

The paper's condition for a linkage is that at every pre-activation ``z`` at least one member has a non-zero derivative.
Whether that holds is a property of the members and of floating-point arithmetic, not of data, so it can be settled by
sweeping all ``z``. The room is named ``auditing`` so that ``covshift.linked.audit`` is the function, always.

It refuses activations that are not elementwise: their derivative is not a function of one ``z``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from covshift.exceptions import InvalidArgumentError
from covshift.linked.functional import Member
from covshift.linked.sweep import FLOATS, NAN, ZERO, Curve, FloatLine, Trace

__all__ = ["Audit", "DtypeAudit", "Interval", "audit"]

_SHOWN = 4  # intervals written out in one line


@dataclass(frozen=True)
class Interval:
    """A closed interval of pre-activations; a single point has ``low == high``.

    Attributes
    ----------
    low, high : float
        First and last value.
    solid : bool
        True if all values between are alike; False where rounding decides from value to value (softsign).
    """

    low: float
    high: float
    solid: bool = True

    def __str__(self) -> str:
        if self.low == self.high:
            return f"{self.low:.4g}"
        return f"[{self.low:.4g}, {self.high:.4g}]{'' if self.solid else ' in part'}"


@dataclass(frozen=True)
class DtypeAudit:
    """What one dtype's sweep found; ``J_i`` is the derivative of member ``i`` as autograd computes it.

    Attributes
    ----------
    dtype : torch.dtype
        Of ``z``, the members and their parameters.
    zeros : tuple of Interval
        Where every member's derivative is exactly zero, ascending.
    nans : tuple of Interval
        Where some member's derivative is NaN, ascending.
    smallest : float
        ``min_z max_i |J_i(z)|`` over all ``z`` without NaN; zero if there is any zero, NaN if all are NaN.
    smallest_nonzero : float
        The same over the ``z`` where it is not zero; NaN if there are none.
    zero_share : float
        Share of the dtype's finite values at which every derivative is zero, in [0, 1]. Values, not probabilities:
        half of all floats lie in [-1, 1].
    evaluated : int
        How many values were evaluated.
    exhaustive : bool
        True if that was every finite value (16-bit dtypes). Otherwise a zero that touches without changing sign, at
        a value that is no round number, could have been missed.
    """

    dtype: torch.dtype
    zeros: tuple[Interval, ...]
    nans: tuple[Interval, ...]
    smallest: float
    smallest_nonzero: float
    zero_share: float
    evaluated: int
    exhaustive: bool

    @property
    def holds(self) -> bool:
        """Whether some derivative is non-zero at every finite ``z``; a NaN derivative is not."""
        return not self.zeros and not self.nans

    @property
    def fails_only_at_zero(self) -> bool:
        """Whether the condition fails at ``z = 0`` and nowhere else."""
        return self.zeros == (Interval(0.0, 0.0),) and not self.nans

    def __str__(self) -> str:
        name = str(self.dtype).removeprefix("torch.")
        seen = f"{self.evaluated:,} values, {'all' if self.exhaustive else 'sampled'}"
        return f"{name}: {'; '.join(self._findings())} ({seen})"

    def _findings(self) -> list[str]:
        if self.holds:
            return [f"holds, max|J| >= {self.smallest:.4g}"]
        if self.fails_only_at_zero:
            return [f"fails only at z = 0, elsewhere max|J| >= {self.smallest_nonzero:.4g}"]
        findings = []
        if self.zeros:
            findings.append(f"all derivatives zero for z in {_listed(self.zeros)}, {self.zero_share:.1%} of values")
        if self.nans:
            findings.append(f"derivative NaN for z in {_listed(self.nans)}")
        return findings


@dataclass(frozen=True)
class Audit:
    """The audit of one activation in several dtypes; indexed by dtype, printed as one line each.

    Attributes
    ----------
    activation : str
        What was audited.
    members : int
        Number of linked members; 1 for a single activation.
    by_dtype : tuple of DtypeAudit
        In the order asked for.
    """

    activation: str
    members: int
    by_dtype: tuple[DtypeAudit, ...]

    def __getitem__(self, dtype: torch.dtype) -> DtypeAudit:
        for result in self.by_dtype:
            if result.dtype == dtype:
                return result
        audited = ", ".join(str(result.dtype) for result in self.by_dtype)
        raise InvalidArgumentError(f"{dtype} was not audited, only {audited}; pass dtypes=({dtype},) to audit()")

    @property
    def holds(self) -> bool:
        """Whether some derivative is non-zero at every finite ``z`` in every dtype audited."""
        return all(result.holds for result in self.by_dtype)

    @property
    def fails_only_at_zero(self) -> bool:
        """Whether the condition fails at ``z = 0`` and nowhere else in every dtype audited."""
        return all(result.fails_only_at_zero for result in self.by_dtype)

    def __str__(self) -> str:
        kind = f"{self.members} linked members" if self.members > 1 else "single"
        return "\n".join([f"{self.activation} ({kind})", *(f"  {result}" for result in self.by_dtype)])


def audit(
    activation: Callable[[Tensor], Tensor],
    *,
    dtypes: Sequence[torch.dtype] = (torch.float32, torch.float16, torch.bfloat16),
) -> Audit:
    """Find every pre-activation at which all members' derivatives vanish, in every dtype.

    All finite values of the 16-bit dtypes are tried. Of float32 and float64 about four million at equal steps of
    float bits are tried, all values that float16 has too, the neighbourhoods of 0, +-1, +-1.2784645, +-1.5, +-3 and
    +-6, and, wherever two neighbours differ in state or all derivatives change sign between them, the bits between by
    bisection, so that clean boundaries are exact.

    Parameters
    ----------
    activation : module or callable
        A single elementwise activation, or a linked one (anything with ``linkage_members``). A module is copied and
        converted to each dtype, with its current parameters and training mode. Slopes per channel (``num_parameters``,
        as in PReLU) are all audited, which takes so much longer, and the worst channel counts.
    dtypes : sequence of torch.dtype, default (float32, float16, bfloat16)
        Also possible: float64.

    Returns
    -------
    Audit
        One :class:`DtypeAudit` per dtype.

    Raises
    ------
    InvalidArgumentError
        If the activation is not callable, not elementwise, random, or cannot compute in a dtype, or if a dtype is not
        one of the four.

    Notes
    -----
    Derivatives are those of PyTorch's vectorised kernels on the module's device (CPU for functions); see
    :mod:`covshift.linked.sweep`. Zeros less than an eighth of a binade apart are reported as one interval, ``solid``
    only if nothing between differs.

    References
    ----------
    .. [1] C. R. Riera Molina and O. Pujol Vila, "Solving internal covariate shift in deep learning with linked
       neurons", arXiv:1712.02609, section 3 (the condition).

    Examples
    --------
    >>> from covshift.linked import LinkedReLU
    >>> print(audit(LinkedReLU(), dtypes=[torch.bfloat16]))
    LinkedReLU(members=(relu, mirrored relu), dim=1) (2 linked members)
      bfloat16: fails only at z = 0, elsewhere max|J| >= 1 (65,280 values, all)
    >>> audit(torch.tanh, dtypes=[torch.float16])[torch.float16].zeros
    (Interval(low=-65504.0, high=-4.5078125, solid=True), Interval(low=4.5078125, high=65504.0, solid=True))
    """
    if isinstance(activation, type) or not callable(activation):
        raise InvalidArgumentError(f"activation is {activation!r}; expected a module instance or a function")
    unknown = [dtype for dtype in dtypes if dtype not in FLOATS]
    if unknown or not dtypes:
        raise InvalidArgumentError(f"dtypes is {list(dtypes)!r}; expected one or more of {list(FLOATS)!r}")
    with torch.inference_mode(mode=False):
        curves = [_curve(activation, dtype) for dtype in dtypes]
        results = tuple(_result(curve.line, curve.trace()) for curve in curves)
    return Audit(_description(activation), len(curves[0].members), results)


def _curve(activation: Callable[[Tensor], Tensor], dtype: torch.dtype) -> Curve:
    device, channels = torch.device("cpu"), 1
    if isinstance(activation, nn.Module):
        activation = copy.deepcopy(activation).to(dtype=dtype)
        device = next((parameter.device for parameter in activation.parameters()), device)
        channels = max(int(getattr(part, "num_parameters", 1)) for part in activation.modules())
    members = tuple(getattr(activation, "linkage_members", (activation,)))
    for index, member in enumerate(members):
        _check_elementwise(member, index, torch.zeros(8, channels if channels > 1 else 8, dtype=dtype, device=device))
    return Curve(FloatLine(dtype), members, channels, device)


def _check_elementwise(member: Member, index: int, z: Tensor) -> None:
    """Refuse a member whose output at one place depends on more than ``z`` there."""
    ramp = torch.linspace(-3, 3, z.numel()).reshape(z.shape).to(z)
    other = ramp.clone()
    other[0, 0] = 7.0
    try:
        with torch.no_grad():
            before, after = member(ramp.clone()), member(other)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise InvalidArgumentError(
            f"member {index} ({member!r}) cannot compute in {z.dtype} on shape {tuple(z.shape)}: {error}; "
            "pass an elementwise activation, or choose other dtypes="
        ) from error
    same = isinstance(before, Tensor) and before.shape == z.shape
    if not same or not torch.equal(before.flatten()[1:].nan_to_num(), after.flatten()[1:].nan_to_num()):
        raise InvalidArgumentError(
            f"member {index} ({member!r}) is not an elementwise, repeatable function of z (its output changes with "
            "other elements, from call to call, or in shape), so no derivative belongs to one z; audit an elementwise "
            "activation, a random one in eval() mode"
        )


def _result(line: FloatLine, trace: Trace) -> DtypeAudit:
    zeros, nans = _intervals(line, trace, ZERO), _intervals(line, trace, NAN)
    nonzero = trace.smallest_nonzero if trace.smallest_nonzero < float("inf") else float("nan")
    return DtypeAudit(
        dtype=line.dtype,
        zeros=zeros,
        nans=nans,
        smallest=0.0 if zeros else nonzero,
        smallest_nonzero=nonzero,
        zero_share=trace.share(ZERO),
        evaluated=trace.evaluated,
        exhaustive=line.is_short,
    )


def _intervals(line: FloatLine, trace: Trace, state: int) -> tuple[Interval, ...]:
    spans = trace.spans(state, gap=line.binade // 8)
    ends = line.values(torch.tensor([span[:2] for span in spans], dtype=torch.int64).reshape(-1, 2)).tolist()
    # Adding zero turns -0.0 into 0.0, its equal.
    return tuple(Interval(low + 0.0, high + 0.0, solid) for (low, high), (*_, solid) in zip(ends, spans, strict=True))


def _listed(intervals: tuple[Interval, ...]) -> str:
    more = f" and {len(intervals) - _SHOWN} more" if len(intervals) > _SHOWN else ""
    return ", ".join(map(str, intervals[:_SHOWN])) + more


def _description(activation: Callable[[Tensor], Tensor]) -> str:
    if isinstance(activation, nn.Module):
        return f"{type(activation).__name__}({activation.extra_repr()})"
    return str(getattr(activation, "__name__", repr(activation)))
