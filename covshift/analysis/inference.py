"""The statistics behind verdicts: trends under autocorrelation, relabelling tests, multiplicity, intervals.

Everything here takes and gives plain arrays and names its assumptions. Records of a training run are dependent, so
nothing treats them as independent draws: trends are tested on batch means, and distributions by relabelling whole
groups of examples inside one pair of records. A result that the data cannot support is NaN, never a guess.

References
----------
Batch means: Law & Kelton, Simulation Modeling and Analysis. Two one-sided tests: Schuirmann (1987). Bias of the lag-1
correlation under a fitted trend: Marriott & Pope (1954), Kendall (1954). Holm (1979); Benjamini & Hochberg (1995).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from covshift.exceptions import InvalidArgumentError

Floats = NDArray[np.float64]

BATCHES, BATCHES_IF_DEPENDENT = 8, 5
"""Batch means of a window, and of one whose lag-1 correlation exceeds :data:`STRONG_CORRELATION`: simulated at 200
records the trend test errs in 5 % (independent) to 8 % (correlation 0.8) of cases at nominal 5 %, 10 % at 0.95."""

STRONG_CORRELATION = 0.8
CORRELATED_BATCHES = 0.5
AUTOCORRELATION_TIMES = 20
RECORDS_PER_BATCH = 2

RELABELLINGS = 9999
MIN_PAIRS = 10
"""Disjoint pairs below which a relabelling test has too little power to be worth a p-value (measured: a shift of 0.2 sd
is found in 7-38 % of cases by one pair, in 79-99 % by ten)."""


@dataclass(frozen=True)
class Trend:
    """Straight-line drift of series over a window, one entry a series.

    Attributes
    ----------
    drift : ndarray
        Fitted change from the first to the last record of the window, in the series' unit.
    standard_error : ndarray
        Of the drift, from the scatter of batch means about the line.
    degrees : ndarray of int
        Degrees of freedom of Student's t: batches less 2.
    correlation : ndarray
        Lag-1 correlation of the records about their line, corrected for the bias that fitting the line makes.
    reliable : ndarray of bool
        Whether the batches are long enough against the correlation for the error to be believed.
    """

    drift: Floats
    standard_error: Floats
    degrees: NDArray[np.int64]
    correlation: Floats
    reliable: NDArray[np.bool_]

    def interval(self, confidence: float = 0.9) -> tuple[Floats, Floats]:
        """Student's interval of the drift; NaN where the drift is."""
        from scipy.special import stdtrit

        margin = stdtrit(np.maximum(self.degrees, 1), (1 + confidence) / 2) * self.standard_error
        return self.drift - margin, self.drift + margin

    @property
    def p_value(self) -> Floats:
        """Two-sided p-value of "no drift"; NaN where the trend is not reliable, 0 where a series is a rising line."""
        from scipy.special import stdtr

        flat = (self.standard_error == 0) & (self.drift == 0)
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.abs(self.drift) / self.standard_error
        p = np.where(flat, 1.0, 2 * stdtr(np.maximum(self.degrees, 1), -ratio))
        return np.where(self.reliable, p, np.nan)


def trend(series: Floats) -> Trend:
    """Drift of each series over its records, tested on batch means.

    The window is cut into 8 batches of consecutive records (5 where the records' correlation exceeds 0.8); the line is
    fitted to the batch means by least squares. It is called reliable where the window is at least 20 autocorrelation
    times ``-1 / ln(correlation)`` long and the batch means' residuals do not themselves follow one another.

    Parameters
    ----------
    series : ndarray of float64, shape (records, columns)
        Evenly spaced records; NaN records are left out of their batch.

    Returns
    -------
    Trend
        Arrays of shape ``(columns,)``. NaN, and not reliable, where any batch holds fewer than 2 records.
    """
    known = np.isfinite(series)
    correlation = _lag_one(series, known)
    dependent = correlation > STRONG_CORRELATION
    fits = {count: _fit(series, known, count) for count in (BATCHES, BATCHES_IF_DEPENDENT)}
    drift, error, following = (
        np.where(dependent, fits[BATCHES_IF_DEPENDENT][part], fits[BATCHES][part]) for part in range(3)
    )
    bounded = np.clip(correlation, 1e-12, 1 - 1e-12)
    long_enough = known.sum(axis=0) >= AUTOCORRELATION_TIMES * -1 / np.log(bounded)
    degrees = np.where(dependent, BATCHES_IF_DEPENDENT, BATCHES) - 2
    reliable = np.isfinite(error) & long_enough & ~(following > CORRELATED_BATCHES)
    return Trend(drift, error, degrees, correlation, reliable)


def equivalence(found: Trend, margin: ArrayLike) -> NDArray[np.str_]:
    """Three-way verdict on each drift: two one-sided tests at 5 % against ``margin``.

    ``"STABLE"`` where the 90 % interval lies inside ``(-margin, margin)``; ``"DRIFTING"`` where the drift exceeds the
    margin and the 95 % interval excludes 0; ``"UNDETERMINED"`` otherwise, and wherever the trend is not reliable. "Not
    significant" is thus never taken for stable.
    """
    limit = np.asarray(margin, dtype=np.float64)
    low, high = found.interval(0.9)
    below, above = found.interval(0.95)
    with np.errstate(invalid="ignore"):
        inside = (low > -limit) & (high < limit)
        beyond = (np.abs(found.drift) > limit) & ((below > 0) | (above < 0))
    return np.select([found.reliable & inside, found.reliable & beyond], ["STABLE", "DRIFTING"], "UNDETERMINED")


def _lag_one(series: Floats, known: NDArray[np.bool_]) -> Floats:
    """Lag-1 correlation about the fitted line; 0 where it cannot be computed."""
    residual = _residuals(series, known)
    n = known.sum(axis=0)
    square = (residual**2).sum(axis=0)
    follows = (residual[1:] * residual[:-1]).sum(axis=0)
    raw = np.divide(follows, square, out=np.zeros_like(square), where=square > 0)
    enough = n > 6
    corrected = np.divide(raw + 2 / np.maximum(n, 1), 1 - 4 / np.maximum(n, 5), out=raw.copy(), where=enough)
    return np.asarray(np.clip(corrected, -1.0, 1.0))


def _residuals(values: Floats, known: NDArray[np.bool_]) -> Floats:
    """Deviations of each column from its least-squares line over the known entries; 0 elsewhere."""
    position = np.broadcast_to(np.arange(len(values), dtype=np.float64)[:, None], values.shape)
    x, y = _centred(position, known), _centred(values, known)
    xx = (x * x).sum(axis=0)
    slope = np.divide((x * y).sum(axis=0), xx, out=np.zeros_like(xx), where=xx > 0)
    return np.where(known, y - slope * x, 0.0)


def _centred(values: Floats, known: NDArray[np.bool_]) -> Floats:
    filled = np.where(known, values, 0.0)
    mean = filled.sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    return np.where(known, filled - mean, 0.0)


def _fit(series: Floats, known: NDArray[np.bool_], batches: int) -> tuple[Floats, Floats, Floats]:
    """Total drift, its standard error, and the lag-1 correlation of the residuals of ``batches`` batch means."""
    records, columns = series.shape
    if records < RECORDS_PER_BATCH * batches:
        blank = np.full(columns, np.nan)
        return blank, blank, blank
    parts = np.array_split(np.arange(records), batches)
    held = np.array([known[part].sum(axis=0) for part in parts])
    sums = np.array([np.where(known[part], series[part], 0.0).sum(axis=0) for part in parts])
    means = np.divide(sums, held, out=np.full(sums.shape, np.nan), where=held >= RECORDS_PER_BATCH)
    x = np.array([part.mean() for part in parts])
    x -= x.mean()
    xx = (x * x).sum()
    slope = (x[:, None] * means).sum(axis=0) / xx
    residual = means - means.mean(axis=0) - slope * x[:, None]
    square = (residual**2).sum(axis=0)
    error = np.sqrt(square / (batches - 2) / xx)
    follows = (residual[1:] * residual[:-1]).sum(axis=0)
    following = np.divide(follows, square, out=np.zeros_like(square), where=square > 0)
    return slope * (records - 1), error * (records - 1), following


def relabellings(groups: int) -> NDArray[np.int64]:
    """Every way to deal ``2 * groups`` groups of examples to two sides; the first is the way they were recorded.

    Returns
    -------
    ndarray of int, shape (ways, 2 * groups)
        1 for the first side, 0 for the second. Swapping the sides changes no distance, so half of all ways suffice.

    Examples
    --------
    >>> relabellings(4).shape, relabellings(2)[:2].tolist()
    ((35, 8), [[1, 1, 0, 0], [1, 0, 1, 0]])
    """
    ways = [(0, *rest) for rest in combinations(range(1, 2 * groups), groups - 1)]
    return np.array([[int(group in way) for group in range(2 * groups)] for way in ways])


def relabelling_p_value(statistics: Floats, *, draws: int = RELABELLINGS, seed: int = 0) -> Floats:
    """p-value of a statistic summed over pairs, by relabelling within each pair.

    Under the null the examples of both sides of a pair are exchangeable, whatever their elements' dependence; the sum
    over pairs is compared with ``draws`` random choices of one relabelling a pair. The recorded labels are counted
    among the draws, so the test is exact: ``P(p <= a) <= a``.

    Parameters
    ----------
    statistics : ndarray, shape (pairs, relabellings, columns)
        The statistic of each relabelling, the recorded one first. A pair with NaN in a column is left out there.
    draws : int
        Random relabellings.
    seed : int
        Of the draws; p-values are reproducible.

    Returns
    -------
    ndarray of float64, shape (columns,)
        In (0, 1]; NaN where fewer than :data:`MIN_PAIRS` pairs are known.
    """
    pairs, ways, _ = statistics.shape
    known = np.asarray(np.isfinite(statistics).all(axis=1))
    held = np.where(known[:, None, :], statistics, 0.0)
    observed = held[:, 0].sum(axis=0)
    chosen = np.random.default_rng(seed).integers(ways, size=(draws, pairs))
    drawn = np.zeros((draws, statistics.shape[2]))
    for pair in range(pairs):
        drawn += held[pair][chosen[:, pair]]
    # Sums of the same numbers in one order are equal, so a tie is a tie; the slack covers nothing but rounding.
    slack = 1e-12 * np.abs(held).max(initial=0.0)
    p = (1 + (drawn >= observed - slack).sum(axis=0)) / (draws + 1)
    return np.where(known.sum(axis=0) >= MIN_PAIRS, p, np.nan)


def holm(p_values: ArrayLike) -> Floats:
    """p-values adjusted by Holm's step-down: a run-level error rate, under any dependence. NaN stays and counts not.

    Examples
    --------
    >>> holm([0.01, 0.04, 0.03, float("nan")])
    array([0.03, 0.06, 0.06,  nan])
    """
    return _adjusted(p_values, lambda p: np.maximum.accumulate(p * np.arange(len(p), 0, -1)))


def benjamini_hochberg(p_values: ArrayLike) -> Floats:
    """p-values adjusted for the share of false ones among those flagged, valid under positive dependence.

    NaN stays and does not count.

    Examples
    --------
    >>> benjamini_hochberg([0.01, 0.04, 0.03, float("nan")])
    array([0.03, 0.04, 0.04,  nan])
    """
    return _adjusted(p_values, lambda p: np.minimum.accumulate((p * len(p) / np.arange(1, len(p) + 1))[::-1])[::-1])


def _adjusted(p_values: ArrayLike, step: Callable[[Floats], Floats]) -> Floats:
    p = np.asarray(p_values, dtype=np.float64)
    flat, out = p.ravel(), np.full(p.size, np.nan)
    order = np.argsort(flat)[: int(np.isfinite(flat).sum())]
    out[order] = np.minimum(step(flat[order]), 1.0)
    return out.reshape(p.shape)


def wilson(successes: int, trials: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's interval of a share; (0, 1) for no trials.

    Examples
    --------
    >>> [round(end, 3) for end in wilson(0, 60)]
    [0.0, 0.06]
    """
    if trials == 0:
        return 0.0, 1.0
    if not 0 <= successes <= trials:
        raise InvalidArgumentError(f"successes={successes}, trials={trials}: expected 0 <= successes <= trials")
    from scipy.stats import binomtest

    low, high = binomtest(successes, trials).proportion_ci(confidence, method="wilson")
    return float(low), float(high)
