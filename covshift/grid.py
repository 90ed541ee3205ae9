"""The universal bin grid: bins cut straight from the bits of a floating-point number.

A bin is a sign, an exponent and the first ``mantissa_bits`` bits of the mantissa, so edges are exact, no range
has to be chosen beforehand, and histograms of any two tensors, steps, ranks or runs add as integers. Zero, both
infinities and NaN have bins of their own; magnitudes outside the exponent range fall into one underflow and one
overflow bin a side. Bins are ordered by value (NaN last), so that cumulative sums are distribution functions.

This room imports numpy only and refuses to know what is being counted.

References
----------
The scheme is the bit-wise log-linear mapping of DDSketch (Masson, Rim & Lee, VLDB 2019) and HDR histograms.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from covshift.exceptions import InvalidArgumentError

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class FloatFormat:
    """Where a binary floating-point format keeps its mantissa and exponent."""

    bits: type[np.signedinteger[Any]]
    mantissa_width: int
    exponent_bias: int

    @property
    def magnitude_mask(self) -> int:
        """Every bit but the sign."""
        return int(np.iinfo(self.bits).max)

    @property
    def infinity(self) -> int:
        """Magnitude bits of infinity; larger magnitudes are NaN."""
        return (2 * self.exponent_bias + 1) << self.mantissa_width


FLOAT32 = FloatFormat(np.int32, 23, 127)
FLOAT64 = FloatFormat(np.int64, 52, 1023)


@dataclass(frozen=True)
class Grid:
    """A grid of float-bit bins over magnitudes ``[2**min_exponent, 2**max_exponent)``.

    Parameters
    ----------
    mantissa_bits : int
        Bins per octave are ``2**mantissa_bits``; the relative bin width is at most ``2**-mantissa_bits``.
    min_exponent, max_exponent : int
        Non-zero magnitudes below ``2**min_exponent`` count as underflow, from ``2**max_exponent`` as overflow.

    Examples
    --------
    >>> grid = Grid(mantissa_bits=3, min_exponent=-24, max_exponent=16)
    >>> grid.size
    648
    >>> int(grid.ids(np.float32(0.0))) == grid.zero
    True
    """

    mantissa_bits: int
    min_exponent: int
    max_exponent: int

    def __post_init__(self) -> None:
        if not 0 <= self.mantissa_bits <= 10:
            raise InvalidArgumentError(f"mantissa_bits={self.mantissa_bits}: expected 0 to 10")
        if not -126 <= self.min_exponent < self.max_exponent <= 128:
            raise InvalidArgumentError(
                f"exponents [{self.min_exponent}, {self.max_exponent}): expected -126 <= min < max <= 128, "
                "the normal range of float32"
            )

    @property
    def side(self) -> int:
        """Number of in-range bins of one sign."""
        return (self.max_exponent - self.min_exponent) << self.mantissa_bits

    @property
    def zero(self) -> int:
        """Id of the bin that holds +0.0 and -0.0 and nothing else."""
        return self.side + 3

    @property
    def nan(self) -> int:
        """Id of the bin that holds NaN: the last one."""
        return 2 * self.side + 7

    @property
    def size(self) -> int:
        """Number of bins: both sides, zero, 2 underflow, 2 overflow, 2 infinities, NaN."""
        return 2 * self.side + 8

    def ids(self, values: ArrayLike) -> IntArray:
        """Bin id of every value.

        Parameters
        ----------
        values : array_like of float
            float16, float32 or float64, any shape. float64 is binned from its own bits; the others are exact in
            float32.

        Returns
        -------
        ndarray of int64
            Same shape, in ``[0, size)``. NaN has the id :attr:`nan`.

        Raises
        ------
        InvalidArgumentError
            If the values have another dtype.
        """
        array = np.asarray(values)
        if array.dtype not in (np.float16, np.float32, np.float64):
            raise InvalidArgumentError(f"values have dtype {array.dtype}: expected float16, float32 or float64")
        layout = FLOAT64 if array.dtype == np.float64 else FLOAT32
        exact = np.ascontiguousarray(array, dtype=np.float64 if layout is FLOAT64 else np.float32)
        bits = exact.view(layout.bits).reshape(array.shape)
        magnitude = (bits & layout.magnitude_mask).astype(np.int64)
        return np.where(bits < 0, self._mirrored(magnitude, layout), self._from_magnitude(magnitude, layout))

    def _from_magnitude(self, magnitude: IntArray, layout: FloatFormat) -> IntArray:
        first = (self.min_exponent + layout.exponent_bias) << self.mantissa_bits
        octave = (magnitude >> (layout.mantissa_width - self.mantissa_bits)) - first
        rank = np.clip(octave, -1, self.side) + 2
        rank = np.where(magnitude == 0, 0, rank)
        rank = np.where(magnitude == layout.infinity, self.side + 3, rank)
        return np.where(magnitude > layout.infinity, self.nan, self.zero + rank)

    def _mirrored(self, magnitude: IntArray, layout: FloatFormat) -> IntArray:
        positive = self._from_magnitude(magnitude, layout)
        return np.where(positive == self.nan, positive, 2 * self.zero - positive)

    @cached_property
    def lower(self) -> FloatArray:
        """Smallest absolute-ordered edge of every bin: ``lower <= x < upper`` for positive bins.

        Shape ``(size,)``; zero's edges are both 0, infinities' both infinite, NaN's both NaN. Negative bins mirror
        positive ones, so they are closed on the right: ``lower < x <= upper``.
        """
        return self._edges()[0]

    @cached_property
    def upper(self) -> FloatArray:
        """Upper edge of every bin; see :attr:`lower`."""
        return self._edges()[1]

    def _edges(self) -> tuple[FloatArray, FloatArray]:
        steps = 1 << self.mantissa_bits
        octaves = np.arange(self.min_exponent, self.max_exponent)
        starts = np.ldexp(1.0 + np.arange(steps) / steps, octaves[:, None]).ravel()
        rising = np.concatenate([[0.0], starts, [np.ldexp(1.0, self.max_exponent), np.inf]])
        lower, upper = np.append(rising[:-1], np.inf), np.append(rising[1:], np.inf)
        return (
            np.concatenate([-upper[::-1], [0.0], lower, [np.nan]]),
            np.concatenate([-lower[::-1], [0.0], upper, [np.nan]]),
        )

    @cached_property
    def centers(self) -> FloatArray:
        """Midpoint of every bin, for drawing; infinite for overflow, NaN for NaN. Shape ``(size,)``."""
        with np.errstate(invalid="ignore"):
            return (self.lower + self.upper) / 2

    def coarsening(self, mantissa_bits: int) -> IntArray:
        """Id in the grid with fewer ``mantissa_bits`` for every bin of this one, shape ``(size,)``.

        Raises
        ------
        InvalidArgumentError
            If ``mantissa_bits`` exceeds this grid's: bins can be joined, never split.
        """
        if not 0 <= mantissa_bits <= self.mantissa_bits:
            raise InvalidArgumentError(
                f"mantissa_bits={mantissa_bits}: expected 0 to {self.mantissa_bits}; bins can be joined, never split"
            )
        coarse = Grid(mantissa_bits, self.min_exponent, self.max_exponent)
        octave = np.arange(self.side) >> (self.mantissa_bits - mantissa_bits)
        rising = np.concatenate([[1], octave + 2, [coarse.side + 2, coarse.side + 3]])
        return np.concatenate([coarse.zero - rising[::-1], [coarse.zero], coarse.zero + rising, [coarse.nan]])

    def coarsen(self, counts: NDArray[Any], mantissa_bits: int) -> NDArray[Any]:
        """Counts of the coarser grid: the last axis of ``counts`` has this grid's :attr:`size`."""
        target = self.coarsening(mantissa_bits)
        if counts.shape[-1:] != (self.size,):
            raise InvalidArgumentError(f"counts have shape {counts.shape}: expected the last axis to be {self.size}")
        starts = np.flatnonzero(np.diff(target, prepend=-1))
        return np.add.reduceat(counts, starts, axis=-1, dtype=counts.dtype)

    def scaled(self, counts: NDArray[Any], octaves: int) -> NDArray[Any]:
        """Counts of the same values times ``2**octaves``, which moves whole bins.

        What leaves the range counts as underflow or overflow; what was there already stays, its size being unknown.
        """
        if counts.shape[-1:] != (self.size,):
            raise InvalidArgumentError(f"counts have shape {counts.shape}: expected the last axis to be {self.size}")
        moved = np.clip(np.arange(self.side) + 2 + octaves * (1 << self.mantissa_bits), 1, self.side + 2)
        rising = np.concatenate([[1], moved, [self.side + 2, self.side + 3]])
        target = np.concatenate([self.zero - rising[::-1], [self.zero], self.zero + rising, [self.nan]])
        starts = np.flatnonzero(np.diff(target, prepend=-1))
        found = np.zeros_like(counts)
        found[..., target[starts]] = np.add.reduceat(counts, starts, axis=-1, dtype=counts.dtype)
        return found


VALUES = Grid(mantissa_bits=3, min_exponent=-24, max_exponent=16)
"""Grid of activations: 8 bins an octave, where a shift of a fraction of a standard deviation matters."""

GRADIENTS = Grid(mantissa_bits=1, min_exponent=-126, max_exponent=128)
"""Grid of gradients: 2 bins an octave over all of float32, where range matters more than shape."""
