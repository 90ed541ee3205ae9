"""The line of finite floats, and how the derivatives of a linkage behave along it.

Finite floats of one dtype are ranked by size with consecutive integers, ``-0.0`` at -1 and ``+0.0`` at 0, so that a
stride or a bisection over ranks is one over float bits. Derivatives are autograd's own. A trace of them keeps only the
samples beside which something changes; what was sampled between two kept samples of one state was in that state too.

PyTorch computes an elementwise function of a contiguous tensor by a vectorised kernel, except for the last few elements
of each thread's share, which go through a scalar one, and the two can disagree (float32 GELU on CPU has derivative zero
below -6.15 in one, below -14.3 in the other). Blocks here are small enough for one thread and padded, so that the
vectorised kernel, which computes nearly every element of a real tensor, gives every answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from covshift.linked.functional import Member

__all__ = ["FLOATS", "LIVE", "NAN", "ZERO", "Curve", "FloatLine", "Trace", "derivative"]

LIVE, ZERO, NAN = 0, 1, 2

FLOATS = {
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
    torch.float32: torch.int32,
    torch.float64: torch.int64,
}
_BLOCK = 16_384  # elements; below the 32,768 from which PyTorch splits a tensor between threads
_LANES = 64  # a multiple of every vectorised kernel's step
_STRIDES = 4_000_000  # values in a sweep of a dtype too large to visit whole
_LANDMARKS = (0.0, 1.0, 1.2784645, 1.5, 3.0, 6.0)  # where known activations turn or break, on either side of zero
_NEAR = 2_048  # ranks looked at on either side of a landmark
_WINDOW = 64  # ranks looked at on either side of a change
_FOLLOWED = 1_024  # changes followed in one round, nearest to zero first; a ragged derivative has many thousands
_ROUNDS = 3


@dataclass(frozen=True)
class FloatLine:
    """The finite values of a dtype as the integers ``-last - 1 ... last``, in ascending order.

    Examples
    --------
    >>> line = FloatLine(torch.float16)
    >>> line.values(torch.tensor([-line.last - 1, -1, 0, line.last])).tolist()
    [-65504.0, -0.0, 0.0, 65504.0]
    """

    dtype: torch.dtype

    @property
    def last(self) -> int:
        """Rank of the largest finite value."""
        return int(self.ranks(torch.tensor([torch.finfo(self.dtype).max], dtype=self.dtype)).item())

    @property
    def size(self) -> int:
        """Number of finite values, counting both zeros."""
        return 2 * (self.last + 1)

    @property
    def binade(self) -> int:
        """Number of values from one power of two to the next."""
        return round(1 / torch.finfo(self.dtype).eps)

    @property
    def is_short(self) -> bool:
        """Whether every value can be visited."""
        return FLOATS[self.dtype] is torch.int16

    def ranks(self, values: Tensor) -> Tensor:
        """Ranks, int64, of finite values of this dtype."""
        return self._flip(values.view(FLOATS[self.dtype]).long())

    def values(self, ranks: Tensor) -> Tensor:
        """Values at the given ranks."""
        return self._flip(ranks).to(FLOATS[self.dtype]).view(self.dtype)

    def sweeps(self, channels: int = 1) -> Iterator[Tensor]:
        """Ascending ranks to visit: all of a 16-bit dtype; else a stride, and then round numbers and landmarks."""
        if self.is_short:
            yield self._both_signs(torch.arange(self.last + 1))
            return
        stride = max(1, self.size * channels // _STRIDES) | 1  # odd, so that every low bit pattern turns up
        yield self._both_signs(torch.cat([torch.arange(0, self.last, stride), torch.tensor([self.last])]))
        half = FloatLine(torch.float16)
        round_numbers = self.ranks(half.values(torch.arange(half.last + 1)).to(self.dtype))
        near = around(self.ranks(torch.tensor(_LANDMARKS, dtype=self.dtype)), _NEAR)
        yield self._both_signs(torch.cat([round_numbers, near[near >= 0]]).sort().values)

    def _flip(self, bits: Tensor) -> Tensor:
        # From sign and magnitude to two's complement and back; the step is its own inverse.
        return torch.where(bits < 0, bits ^ torch.iinfo(FLOATS[self.dtype]).max, bits)

    @staticmethod
    def _both_signs(ranks: Tensor) -> Tensor:
        return torch.cat([~ranks.flip(0), ranks])


@dataclass(frozen=True)
class Trace:
    """Samples of a linkage's derivatives along the line, kept where something changes from one to the next.

    Attributes
    ----------
    ranks : Tensor
        Shape ``(samples,)``, int64.
    state : Tensor
        Shape ``(samples,)``, int8: ``NAN`` if any member's derivative is NaN in any channel, else ``ZERO`` if in some
        channel every member's is zero, else ``LIVE``.
    signs : Tensor
        Shape ``(samples, channels, members)``, int8: sign of each derivative, 0 for NaN.
    smallest_nonzero : float
        Smallest non-zero ``max_i |J_i|`` over everything evaluated without NaN; infinite where there was none.
    evaluated : int
        How many values were evaluated.
    """

    ranks: Tensor
    state: Tensor
    signs: Tensor
    smallest_nonzero: float
    evaluated: int

    @classmethod
    def joined(cls, traces: Sequence[Trace]) -> Trace:
        """All traces' samples in one, ascending, each rank once."""
        ranks, order = torch.cat([trace.ranks for trace in traces]).sort(stable=True)
        first = torch.ones_like(ranks, dtype=torch.bool)
        first[1:] = ranks.diff() != 0
        kept = order[first]
        return cls(
            ranks[first],
            torch.cat([trace.state for trace in traces])[kept],
            torch.cat([trace.signs for trace in traces])[kept],
            min(trace.smallest_nonzero for trace in traces),
            sum(trace.evaluated for trace in traces),
        )

    def changes(self) -> Tensor:
        """Whether something changes between each sample and the next, shape ``(samples - 1,)``."""
        return _change(self.state[:-1], self.signs[:-1], self.state[1:], self.signs[1:])

    def thinned(self) -> Trace:
        """Only the samples beside a change, and both ends."""
        keep = torch.zeros_like(self.ranks, dtype=torch.bool)
        changes = self.changes()
        keep[:-1] |= changes
        keep[1:] |= changes
        keep[[0, -1]] = True
        return Trace(self.ranks[keep], self.state[keep], self.signs[keep], self.smallest_nonzero, self.evaluated)

    def spans(self, state: int, *, gap: int) -> list[tuple[int, int, bool]]:
        """Runs of samples in one state as (first rank, last rank, whether all between are in that state).

        Runs less than ``gap`` ranks apart are one ragged run: there rounding decides from value to value.
        """
        inside = torch.nn.functional.pad((self.state == state).to(torch.int8), (1, 1)).diff()
        starts, ends = self.ranks[inside[:-1] == 1], self.ranks[inside[1:] == -1]
        if not len(starts):
            return []
        apart = starts[1:] - ends[:-1] >= gap
        edge = torch.ones(1, dtype=torch.bool)
        opens, closes = torch.cat([edge, apart]), torch.cat([apart, edge])
        solid = (opens.cumsum(0).bincount()[1:] == 1).tolist()
        return list(zip(starts[opens].tolist(), ends[closes].tolist(), solid, strict=True))

    def share(self, state: int) -> float:
        """Share of the line in one state, each sample standing for half the way to its neighbours."""
        gaps = self.ranks.diff().double()
        end = torch.ones(1, dtype=torch.float64)
        weights = (torch.cat([end, gaps]) + torch.cat([gaps, end])) / 2
        return float(weights[self.state == state].sum() / weights.sum())


@dataclass(frozen=True)
class Curve:
    """The derivatives of a linkage's members as functions of the rank of ``z``.

    Parameters
    ----------
    line : FloatLine
        The values of ``z``.
    members : sequence of callables
        ``g_1 ... g_d``.
    channels : int
        Length of axis 1 in which the members expect parameters of their own; every channel sees every value.
    device : torch.device
        Where the members compute.
    """

    line: FloatLine
    members: Sequence[Member]
    channels: int
    device: torch.device

    def trace(self) -> Trace:
        """Trace of the whole line, with every change followed to neighbouring floats."""
        trace = Trace.joined([self._sample(ranks) for ranks in self.line.sweeps(self.channels)])
        if self.line.is_short:
            return trace
        for _ in range(_ROUNDS):
            coarse = (trace.changes() & (trace.ranks.diff() > 1)).nonzero().flatten()
            if not len(coarse):
                break
            nearest = coarse[trace.ranks[coarse].abs().argsort()[:_FOLLOWED]]
            trace = Trace.joined([trace, self._sample(self._bisected(trace, nearest))])
        return trace

    def _sample(self, ranks: Tensor) -> Trace:
        blocks = torch.split(ranks, max(_LANES, _BLOCK // self.channels))
        return Trace.joined([self._evaluate(block).thinned() for block in blocks])

    def _evaluate(self, ranks: Tensor) -> Trace:
        padding = ranks[-1:].expand(-len(ranks) % _LANES)
        z = self.line.values(torch.cat([ranks, padding])).to(self.device).unsqueeze(1).repeat(1, self.channels)
        jacobian = torch.stack([derivative(member, z) for member in self.members], -1)[: len(ranks)].cpu()
        strength = jacobian.abs().amax(-1).amin(-1)  # both let NaN through
        state = torch.full(strength.shape, LIVE, dtype=torch.int8)
        state[strength == 0] = ZERO
        state[strength.isnan()] = NAN
        live = strength[state == LIVE]
        smallest = float(live.min()) if len(live) else float("inf")
        return Trace(ranks, state, jacobian.sign().nan_to_num().to(torch.int8), smallest, len(ranks))

    def _bisected(self, trace: Trace, places: Tensor) -> Tensor:
        """Ranks that lead from the samples on both sides of each place to where the change is, and around it."""
        low, high = trace.ranks[places], trace.ranks[places + 1]
        state, signs = trace.state[places], trace.signs[places]
        visited = []
        while bool((high - low > 1).any()):
            middle = low + (high - low) // 2
            found = self._evaluate(middle)
            left = _change(state, signs, found.state, found.signs)
            high = torch.where(left, middle, high)
            low = torch.where(left, low, middle)
            state = torch.where(left, state, found.state)
            signs = torch.where(left[:, None, None], signs, found.signs)
            visited.append(middle)
        ranks = torch.cat([*visited, around(low, _WINDOW)]).sort().values
        return ranks[(ranks >= ~self.line.last) & (ranks <= self.line.last)]


def around(ranks: Tensor, reach: int) -> Tensor:
    """All ranks at most ``reach`` away from one of ``ranks``, flat; duplicates may occur."""
    return (ranks[:, None] + torch.arange(-reach, reach + 1)).flatten()


def derivative(member: Member, z: Tensor) -> Tensor:
    """``g'(z)`` elementwise as autograd computes it, shape of ``z``; zero where the output does not depend on ``z``.

    The member gets a clone, so that an in-place activation shows the derivative it has in training.
    """
    leaf = z.detach().requires_grad_()
    with torch.enable_grad():
        output = member(leaf.clone())
    if not output.requires_grad:
        return torch.zeros_like(z)
    (gradient,) = torch.autograd.grad(output, leaf, torch.ones_like(output), allow_unused=True)
    return torch.zeros_like(z) if gradient is None else gradient


def _change(state: Tensor, signs: Tensor, next_state: Tensor, next_signs: Tensor) -> Tensor:
    """Whether the state changes, or every member's derivative in some channel passes zero, between two samples."""
    passes = (signs * next_signs <= 0).all(-1).any(-1)
    both_live = (state == LIVE) & (next_state == LIVE)
    return (state != next_state) | (both_live & passes)
