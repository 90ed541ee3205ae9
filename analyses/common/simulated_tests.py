"""The shipped tests on simulated data: how often they reject where nothing moves, and how often where something does.

Seeds were fixed before any result was seen; 2,000 nulls each, so a share of 5 % has a standard error of 0.5 %. One
null is no simulation: recordings of networks whose weights stand still, all the way from tensors to p-values.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from scipy import stats

from common.resumed import Job
from covshift.analysis import inference, shift
from covshift.selfcheck import nulls
from covshift.selfcheck.nets import mlp
from covshift.selfcheck.trials import recorded

NULLS, POWER_RUNS = 2000, 500
MARGIN, NOISE = 0.2, 0.05
FROZEN_RUNS = 20

Row = dict[str, Any]


def null_jobs() -> dict[str, Job]:
    """Type-I errors, by key."""
    jobs: dict[str, Job] = {}
    for records in (40, 200):
        for phi in (0.0, 0.5, 0.8, 0.9, 0.95):
            jobs[f"nulls|trend|{records}|{phi}"] = partial(_trend, records, phi)
    for groups in (2, 4):
        for rho in (0.0, 0.3):
            jobs[f"nulls|relabelling|{groups}|{rho}"] = partial(_relabelling, groups, rho)
    for dependence in (0.0, 0.5, 0.9):
        jobs[f"nulls|families|{dependence}"] = partial(_family, dependence)
    return jobs | {"nulls|frozen": _frozen}


def power_jobs() -> dict[str, Job]:
    """Power curves, by key."""
    jobs: dict[str, Job] = {}
    for groups in (2, 4):
        for rho in (0.0, 0.3):
            for moved in (0.05, 0.1, 0.15, 0.2, 0.3, 0.4):
                jobs[f"power|relabelling|{groups}|{rho}|{moved}"] = partial(_power, groups, rho, moved)
    for records in (40, 200):
        for phi in (0.0, 0.8, 0.95):
            jobs[f"power|drift|{records}|{phi}"] = partial(_drift, records, phi)
    return jobs


def _rejects(p_values: np.ndarray) -> float:
    return float((np.nan_to_num(p_values, nan=1.0) <= 0.05).mean())


def _uniform(p_values: np.ndarray) -> Row:
    """Distance of the known p-values from uniform, with its own p-value."""
    known = p_values[np.isfinite(p_values)]
    found = stats.kstest(known, "uniform")
    return {"ks": float(found.statistic), "ks_p": float(found.pvalue)}


def _trend(records: int, phi: float) -> Row:
    p = nulls.trend_p_values(NULLS, seed=201, correlation=phi, records=records)
    declines = float(np.isnan(p).mean())
    return {"records": records, "phi": phi, "rejects": _rejects(p), "declines": declines} | _uniform(p)


def _relabelling(groups: int, rho: float) -> Row:
    p = nulls.relabelling_p_values(NULLS, seed=203, correlation=rho, groups=groups)
    return {"groups": groups, "rho": rho, "rejects": _rejects(p)} | _uniform(p)


def _frozen() -> Row:
    """p-values of the first layer of recorded networks that do not learn; windows of one run share no record."""
    runs = [recorded(mlp(seed, depth=1), update=False) for seed in range(300, 300 + FROZEN_RUNS)]
    p = np.concatenate([shift.between_steps(run)["p"].sel(layer="fc0").values for run in runs])
    return {"runs": FROZEN_RUNS, "tests": len(p), "rejects": _rejects(p)} | _uniform(p)


def _family(dependence: float) -> Row:
    families = nulls.family_p_values(NULLS, seed=205, dependence=dependence)
    least = {
        "raw": families.min(axis=1),
        "holm": np.array([inference.holm(family).min() for family in families]),
        "bh": np.array([inference.benjamini_hochberg(family).min() for family in families]),
    }
    return {"dependence": dependence} | {name: _rejects(p) for name, p in least.items()}


def _power(groups: int, rho: float, moved: float) -> Row:
    p = nulls.relabelling_p_values(POWER_RUNS, seed=204, groups=groups, correlation=rho, shift=moved)
    return {"groups": groups, "rho": rho, "shift": moved, "found": _rejects(p)}


def _drift(records: int, phi: float) -> Row:
    """Shares of drifting series called STABLE and DRIFTING, by drift over the window in sd of the layer."""
    series = NOISE * nulls.autoregressive(np.random.default_rng(202), phi, records, NULLS)
    line = np.linspace(0, 1, records)[:, None]
    row: Row = {"records": records, "phi": phi, "stable": {}, "drifting": {}}
    for drift in (0.0, 0.1, 0.2, 0.4):
        verdict = inference.equivalence(inference.trend(series + drift * line), MARGIN)
        row["stable"][str(drift)] = float((verdict == "STABLE").mean())
        row["drifting"][str(drift)] = float((verdict == "DRIFTING").mean())
    return row
