"""Where a nonlinearity is so flat that a unit there is as good as stuck, as intervals of its pre-activation."""

from __future__ import annotations

from functools import cache

import numpy as np

from covshift.analysis.active_mass import FLAT
from covshift.analysis.derivatives import derivative

_REACH, _CUTS = 16.0, 2**14 + 1
"""The derivative is looked at on this many even points of ±16, beyond which those known are constant to 1e-6."""


@cache
def flat_regions(activation: str) -> tuple[tuple[float, float], ...]:
    """Intervals of z whose derivative, of a linkage its most live member's, is below a tenth of the largest.

    Parameters
    ----------
    activation : str
        Class name of the nonlinearity, as recorded under ``layers/activation``.

    Returns
    -------
    tuple of (float, float)
        Rising; ends are exact to 0.002, and infinite where a region reaches ±16. Empty for a class without a known
        derivative.

    Examples
    --------
    >>> flat_regions("ReLU6"), flat_regions("LinkedReLU")
    (((-inf, 0.0), (6.0, inf)), ())
    """
    z = np.linspace(-_REACH, _REACH, _CUTS)
    slope = derivative(activation, z)
    if np.isnan(slope).any():
        return ()
    flat = np.concatenate([[False], slope < FLAT * slope.max(), [False]])
    edges = np.flatnonzero(np.diff(flat)).reshape(-1, 2) - [0, 1]
    # a region of one point is a kink, where the derivative is a convention
    return tuple((_end(z[low]), _end(z[high])) for low, high in edges if high > low)


def _end(z: float) -> float:
    return float(z) if abs(z) < _REACH else float(np.sign(z)) * np.inf
