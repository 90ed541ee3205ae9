"""p-values under simulated nulls: what the tests say where there is nothing to find.

Each function draws recordings' worth of data in which nothing moves, in the dependence that recordings have (elements
of one example, records of one run, layers of one net), runs a shipped test on them and returns its p-values. A valid
test rejects at 0.05 in at most 5 % of them; the tests and ``analyses/calibration.py`` hold it to that.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter

from covshift.analysis import divergence, inference
from covshift.grid import VALUES

Floats = NDArray[np.float64]

_BURN_IN = 500


def autoregressive(generator: np.random.Generator, correlation: float, records: int, series: int) -> Floats:
    """Stationary AR(1) series of variance 1, shape ``(records, series)``."""
    noise = generator.normal(size=(records + _BURN_IN, series)) * np.sqrt(1 - correlation**2)
    return np.asarray(lfilter([1.0], [1.0, -correlation], noise, axis=0)[_BURN_IN:])


def trend_p_values(count: int, *, seed: int, correlation: float = 0.0, records: int = 200) -> Floats:
    """p-values of "no drift" for ``count`` series without one; NaN where the test declines."""
    return inference.trend(autoregressive(np.random.default_rng(seed), correlation, records, count)).p_value


def clustered_counts(
    generator: np.random.Generator, layers: int, *, examples: int, positions: int, correlation: float, mean: float = 0.0
) -> NDArray[np.int64]:
    """Histograms by example group of normal values that correlate within an example, ``(layers, 4 groups, bin)``."""
    size = (layers * 4, examples // 4)
    common = mean + np.sqrt(correlation) * generator.normal(size=(*size, 1))
    values = common + np.sqrt(1 - correlation) * generator.normal(size=(*size, positions))
    ids = VALUES.ids(values.astype(np.float32)).reshape(len(values), -1)
    flat = np.bincount((ids + np.arange(len(ids))[:, None] * VALUES.size).ravel(), minlength=len(ids) * VALUES.size)
    return flat.reshape(layers, 4, VALUES.size)


def relabelling_p_values(
    count: int,
    *,
    seed: int,
    examples: int = 32,
    positions: int = 8,
    correlation: float = 0.3,
    groups: int = 4,
    pairs: int = inference.MIN_PAIRS,
    shift: float = 0.0,
    draws: int = 199,
) -> Floats:
    """p-values of "nothing moved" over ``pairs`` pairs of records, for ``count`` layers.

    A ``shift`` other than 0, in sd, moves the second record of every pair: the rejection rate is then the test's power.
    ``groups`` of 2 join the four recorded groups two by two.
    """
    generator = np.random.default_rng(seed)
    ways = inference.relabellings(groups)
    tables = []
    sampled = {"examples": examples, "positions": positions}
    for _ in range(pairs):
        first, second = (
            clustered_counts(generator, count, **sampled, correlation=correlation, mean=mean).reshape(
                count, groups, -1, VALUES.size
            )
            for mean in (0.0, shift)
        )
        tables.append(divergence.relabelled_cramer(first.sum(axis=2), second.sum(axis=2), ways, VALUES).T)
    return inference.relabelling_p_value(np.stack(tables), draws=draws, seed=seed)


def family_p_values(count: int, *, seed: int, layers: int = 10, dependence: float = 0.5) -> Floats:
    """p-values of ``count`` runs of ``layers`` positively dependent layers without effect, ``(count, layers)``."""
    from scipy.special import ndtr

    generator = np.random.default_rng(seed)
    common = generator.normal(size=(count, 1))
    scores = np.sqrt(dependence) * common + np.sqrt(1 - dependence) * generator.normal(size=(count, layers))
    return np.asarray(2 * ndtr(-np.abs(scores)))
