"""Distances between binned distributions: plain arrays in, plain arrays out.

Counts on a :class:`~covshift.grid.Grid` have shape ``(..., grid.size)`` and are compared along the last axis; leading
axes broadcast. A count says how many elements lie in a bin, not where, so within a bin they are spread evenly: the
distribution function is exact at every edge and a straight line between.

Rules for the bins that are no intervals: zero is an atom (width 0), so it is a true jump; overflow counts sit at the
finite edge of their bin, so a distance that involves them is a lower bound; underflow is an ordinary narrow bin beside
zero; infinities and NaN are left out, as they are of the recorded moments (:func:`covshift.diagnosis.diagnose` reports
them by themselves). A side with nothing to compare gives NaN.

This room knows no layers, steps or standard deviations: distances have the unit of the values.

References
----------
Formulas: W1, KS and Jensen-Shannon are standard; the Cramer distance, ``C = int (F - G)^2 dx``, is half the squared
energy distance in one dimension (Szekely & Rizzo 2013). The noise correction is the usual unbiased estimate of the
variance of a mean, taken over example groups and integrated over x.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from covshift.analysis.distribution_functions import Counts, Floats, Gap, beside, cumulated, occupied, shares, widths
from covshift.analysis.rows import ratio
from covshift.grid import Grid

JENSEN_SHANNON_CLASSES = 16
"""Finer classes make the divergence mostly bias at small n (measured: 0.21 nats under the null at n=128, 86 bins)."""


def wasserstein1(a: Counts, b: Counts, grid: Grid) -> Floats:
    """First Wasserstein (earth mover's) distance, ``int |F - G| dx``.

    Parameters
    ----------
    a, b : array of counts, shape (..., grid.size)
        Both sides; leading axes broadcast.
    grid : Grid
        The bins of both.

    Returns
    -------
    ndarray of float64, shape (...)
        In the unit of the values, >= 0; NaN where a side is empty. It differs from the distance of the unbinned values
        by at most ``sum((p + q) * width)``, p and q being the shares in each bin.

    Raises
    ------
    InvalidArgumentError
        If the last axis is not ``grid.size`` long.

    Examples
    --------
    >>> from covshift.grid import VALUES
    >>> a, b = (np.bincount(VALUES.ids(np.full(9, x)), minlength=VALUES.size) for x in (1.0, 3.0))
    >>> float(wasserstein1(a, b, VALUES))
    2.0625
    """
    return Gap.of(a, b, grid).area


def kolmogorov_smirnov(a: Counts, b: Counts, grid: Grid) -> Floats:
    """Largest difference of the two distribution functions at a bin edge, ``max |F - G|``, in [0, 1].

    Shapes, NaN rule and errors as :func:`wasserstein1`. It is the statistic of the binned values, so at most that of
    the values themselves, and less by no more than the largest share of either side in one bin.
    """
    return Gap.of(a, b, grid).largest


def cramer(a: Counts, b: Counts, grid: Grid) -> Floats:
    """Squared Cramer distance, ``int (F - G)^2 dx``: half the squared energy distance; in the unit of the values.

    Shapes, NaN rule and errors as :func:`wasserstein1`.
    """
    return Gap.of(a, b, grid).squared_area


def jensen_shannon(a: Counts, b: Counts, grid: Grid, *, classes: int = JENSEN_SHANNON_CLASSES) -> Floats:
    """Jensen-Shannon divergence over coarse classes of equal pooled share, in nats, in [0, ln 2].

    Bins are joined, in order, into at most ``classes`` classes at the quantiles of the average of both sides. For
    display: about ``(classes - 1) / (4 n)`` of it is bias at ``n`` independent examples a side.

    Shapes, NaN rule and errors as :func:`wasserstein1`.
    """
    bins = occupied(grid, a, b)
    p, q = np.broadcast_arrays(_in_each(a[..., bins]), _in_each(b[..., bins]))
    pooled = (p + q) / 2
    below = np.cumsum(pooled, axis=-1) - pooled
    # Rounding may lift a sum of shares a hair above 1, hence the clip.
    member = np.clip(np.nan_to_num(np.floor(below * classes)), 0, classes - 1).astype(np.int64)
    first, second = _joined(p, member, classes), _joined(q, member, classes)
    middle = (first + second) / 2
    return np.asarray(np.maximum((_relative_entropy(first, middle) + _relative_entropy(second, middle)) / 2, 0.0))


def noise_corrected_cramer(groups_a: Counts, groups_b: Counts, grid: Grid) -> Floats:
    """Cramer distance minus what sampling alone adds to it: ``U = C(F_a, F_b) - v_a - v_b``.

    Its expectation is ``int (F - G)^2 dx`` of the two populations whatever the dependence of elements within an
    example, provided the groups hold different, independent examples. It may be negative.

    Parameters
    ----------
    groups_a, groups_b : array of counts, shape (..., groups, grid.size)
        Counts by example group.
    grid : Grid
        The bins of both.

    Returns
    -------
    ndarray of float64, shape (...)
        In the unit of the values; NaN where a side has fewer than two groups with elements.
    """
    noise = cramer_noise(groups_a, grid) + cramer_noise(groups_b, grid)
    return cramer(np.sum(groups_a, axis=-2), np.sum(groups_b, axis=-2), grid) - noise


def cramer_noise(groups: Counts, grid: Grid) -> Floats:
    """Sampling variance of a recorded distribution function, integrated over x: the ``v`` of the noise correction.

    ``v = sum_j n_j C(F_j, F) / (N (g - 1))`` over the ``g`` groups that hold elements, ``n_j`` of the ``N`` in all;
    with groups of one size this is ``sum_j C(F_j, F) / (g (g - 1))``.

    Parameters
    ----------
    groups : array of counts, shape (..., groups, grid.size)
        Counts by example group.
    grid : Grid
        Their bins.

    Returns
    -------
    ndarray of float64, shape (...)
        In the unit of the values, >= 0; NaN with fewer than two groups that hold elements.
    """
    return sampling_noise(groups, grid)[0]


def relabelled_cramer(groups_a: Counts, groups_b: Counts, ways: NDArray[np.int64], grid: Grid) -> Floats:
    """:func:`noise_corrected_cramer` under each way of dealing the groups of both sides anew.

    With ``D_ij = int (F_i - F_j)^2 dx`` between groups and weights ``w`` that sum to 1 on a side, the distance of two
    sides is ``sum_ab w_i w_j D_ij - V_a - V_b`` and a side's noise ``V / (g - 1)``, where ``V = sum_aa w_i w_j D_ij /
    2``; so all relabellings follow from one matrix of distances.

    Parameters
    ----------
    groups_a, groups_b : array of counts, shape (..., groups, grid.size)
        Counts by example group, as many groups on both sides.
    ways : array of int, shape (ways, 2 * groups)
        1 where a group is dealt to the first side; see :func:`covshift.analysis.inference.relabellings`.
    grid : Grid
        The bins of both.

    Returns
    -------
    ndarray of float64, shape (..., ways)
        In the unit of the values; NaN unless every group of both sides holds elements.
    """
    counts = np.concatenate([groups_a, groups_b], axis=-2)
    bins = occupied(grid, counts)
    below = cumulated(counts, bins)
    sizes = below[..., -1]
    between = _group_distances(np.nan_to_num(shares(below)), widths(grid)[bins])
    first = ways * sizes[..., None, :]
    second = (1 - ways) * sizes[..., None, :]
    first, second = (ratio(side, side.sum(axis=-1, keepdims=True)) for side in (first, second))
    across = _quadratic(first, between, second)
    within = (_quadratic(first, between, first) + _quadratic(second, between, second)) / 2
    excess = across - within * (1 + 1 / (groups_a.shape[-2] - 1)) if groups_a.shape[-2] > 1 else across * np.nan
    return np.where(np.all(sizes > 0, axis=-1, keepdims=True), excess, np.nan)


def normal_wasserstein1(mean_a: Floats, sd_a: Floats, mean_b: Floats, sd_b: Floats) -> Floats:
    """First Wasserstein distance of two normals: the mean of ``|d|`` for ``d`` normal with the differences of both.

    Stands in where bins are too wide to resolve a shift. Shapes broadcast; NaN where any argument is.

    Examples
    --------
    >>> one, two = np.array(1.0), np.array(2.0)
    >>> float(normal_wasserstein1(one, one, two, one)), round(float(normal_wasserstein1(one, one, one, two)), 4)
    (1.0, 0.7979)
    """
    from scipy.special import ndtr

    apart, spread = np.abs(mean_b - mean_a), np.abs(sd_b - sd_a)
    relative = np.divide(apart, spread, out=np.full(np.broadcast(apart, spread).shape, np.inf), where=spread != 0)
    folded = spread * np.sqrt(2 / np.pi) * np.exp(-(relative**2) / 2) + apart * (1 - 2 * ndtr(-relative))
    return np.asarray(folded)


def wasserstein1_noise(groups: Counts, grid: Grid) -> Floats:
    """Scale of the W1 distance between a recorded distribution and its population, from splits of its examples.

    The groups are split into two halves in every way; a split with ``n1`` and ``n2`` elements contributes
    ``W1^2 n1 n2 / (n1 + n2)^2``, which is ``W1^2 / 4`` for equal halves, and the root of their mean is returned. The
    noise floor of a comparison is ``sqrt(noise_a^2 + noise_b^2)``: the typical W1 of two samples of one population.

    Parameters
    ----------
    groups : array of counts, shape (..., groups, grid.size)
        Counts by example group.
    grid : Grid
        Their bins.

    Returns
    -------
    ndarray of float64, shape (...)
        In the unit of the values; NaN with fewer than two groups that hold elements.
    """
    return sampling_noise(groups, grid)[1]


def sampling_noise(groups: Counts, grid: Grid) -> tuple[Floats, Floats]:
    """:func:`cramer_noise` and :func:`wasserstein1_noise` of the same ``groups``, for the price of one."""
    bins = occupied(grid, groups)
    below, width = cumulated(groups, bins), widths(grid)[bins]
    return _cramer_noise(below, width), _wasserstein1_noise(below, width)


def _cramer_noise(below: Floats, width: Floats) -> Floats:
    """From cumulated counts, shape ``(..., groups, bins)``."""
    sizes = below[..., -1]
    gap = Gap(shares(below) - shares(below.sum(axis=-2, keepdims=True)), width)
    within = np.nansum(sizes * gap.squared_area, axis=-1)
    g, total = (sizes > 0).sum(axis=-1), sizes.sum(axis=-1)
    return ratio(within, total * (g - 1))


def _wasserstein1_noise(below: Floats, width: Floats) -> Floats:
    """From cumulated counts, shape ``(..., groups, bins)``."""
    squares = [_split_square(below, half, width) for half in _halves(below.shape[-2])]
    if not squares:
        return np.full(below.shape[:-2], np.nan)
    stacked = np.stack(squares)
    usable = np.isfinite(stacked)
    return np.sqrt(ratio(np.where(usable, stacked, 0.0).sum(axis=0), usable.sum(axis=0)))


def _group_distances(functions: Floats, width: Floats) -> Floats:
    """Squared Cramer distances between distribution functions ``(..., groups, bins)``: ``(..., groups, groups)``."""
    upper = functions - functions.mean(axis=-2, keepdims=True)
    # The integral of two lines over a bin is (l l' + r r') / 3 + (l r' + r l') / 6; what is r of one is l of the next.
    scaled = upper * np.sqrt(beside(width) / 3)
    mixed = (upper[..., :-1] * (width[1:] / 6)) @ np.swapaxes(upper[..., 1:], -1, -2)
    gram = scaled @ np.swapaxes(scaled, -1, -2) + mixed + np.swapaxes(mixed, -1, -2)
    own = np.diagonal(gram, axis1=-2, axis2=-1)
    return np.asarray(np.maximum(own[..., :, None] + own[..., None, :] - 2 * gram, 0.0))


def _quadratic(first: Floats, between: Floats, second: Floats) -> Floats:
    return np.asarray(((first @ between) * second).sum(axis=-1))


def _halves(groups: int) -> list[tuple[int, ...]]:
    """Every split of the groups into halves, named by the half that holds group 0."""
    return [(0, *rest) for rest in combinations(range(1, groups), groups // 2 - 1)] if groups > 1 else []


def _split_square(below: Floats, half: tuple[int, ...], width: Floats) -> Floats:
    """Squared W1 between a half of the groups and the others, weighted; ``below`` has shape ``(..., groups, bins)``."""
    first = below[..., half, :].sum(axis=-2)
    second = below.sum(axis=-2) - first
    n1, n2 = first[..., -1], second[..., -1]
    return Gap(shares(first) - shares(second), width).area ** 2 * ratio(n1 * n2, (n1 + n2) ** 2)


def _in_each(counts: Counts) -> Floats:
    """Share of the elements in each bin."""
    return ratio(counts, counts.sum(axis=-1, keepdims=True))


def _joined(shares: Floats, member: NDArray[np.int64], classes: int) -> Floats:
    """Sum of shares in every class, shape ``(..., classes)``."""
    rows = int(np.prod(shares.shape[:-1]))
    slots = np.arange(rows)[:, None] * classes + member.reshape(rows, -1)
    sums: Floats = np.bincount(slots.ravel(), shares.ravel(), rows * classes).astype(np.float64)
    return sums.reshape(*shares.shape[:-1], classes)


def _relative_entropy(p: Floats, m: Floats) -> Floats:
    relative = np.divide(p, m, out=np.ones_like(p), where=p > 0)
    return np.asarray((p * np.log(relative)).sum(axis=-1))
