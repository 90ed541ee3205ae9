"""The shipped tests on simulated data: how often they reject where nothing moves, and how often where something does.

Seeds were fixed before any result was seen; 2,000 nulls each, so a share of 5 % has a standard error of 0.5 %. One
table is no simulation: recordings of networks whose weights stand still, all the way from tensors to p-values.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import stats

from covshift.analysis import inference, shift
from covshift.analysis.dead_units import rate_upper_bound
from covshift.selfcheck import nulls
from covshift.selfcheck.nets import mlp
from covshift.selfcheck.trials import recorded

NULLS = 2000
MARGIN, NOISE = 0.2, 0.05
FROZEN_RUNS = 20


def measure() -> dict[str, Any]:
    """Every table, as JSON types."""
    return {
        "trend": [_trend(records, phi) for records in (40, 200) for phi in (0.0, 0.5, 0.8, 0.9, 0.95)],
        "relabelling": [_relabelling(groups, rho) for groups in (2, 4) for rho in (0.0, 0.3)],
        "power": [_power(groups, shift) for groups in (2, 4) for shift in (0.1, 0.2, 0.3)],
        "frozen": _frozen(),
        "families": [_family(dependence) for dependence in (0.0, 0.5, 0.9)],
        "bound": [_bound(rate, units) for rate in (1e-2, 1e-3) for units in (1, 64, 1024)],
    }


def show(result: dict[str, Any]) -> None:
    """Print the tables."""
    print(
        "Trend by batch means, AR(1) records, nominal 5 %; declined counts as not rejected. STABLE by total drift, sd"
    )
    print(f"{'records':>8}{'phi':>6}{'rejects':>9}{'declines':>10}   STABLE at 0, 0.1, 0.2 (the margin), 0.4")
    for row in result["trend"]:
        stable = "  ".join(f"{share:.3f}" for share in row["stable"])
        print(f"{row['records']:8}{row['phi']:6}{row['rejects']:9.3f}{row['declines']:10.3f}   {stable}")
    print("\nRelabelling over 10 pairs of 32 examples of 8 elements, nominal 5 %; KS distance of p from uniform")
    for row in result["relabelling"]:
        print(f"groups {row['groups']}, correlation {row['rho']}: rejects {row['rejects']:.3f}, KS {row['ks']:.3f}")
    print("\nPower of the same, elements correlated by 0.3")
    for row in result["power"]:
        print(f"groups {row['groups']}, shift {row['shift']} sd: found {row['found']:.2f}")
    frozen = result["frozen"]
    print(
        f"\nRecorded networks with frozen weights, {frozen['tests']} disjoint windows of 10 pairs: rejects "
        f"{frozen['rejects']:.3f}; p-values against uniform: KS p = {frozen['ks_p']:.2f}"
    )
    print("\nAny of 10 layers flagged where none moves, nominal 5 %: unadjusted, Holm, Benjamini-Hochberg")
    for row in result["families"]:
        print(f"dependence {row['dependence']}: {row['raw']:.3f}, {row['holm']:.3f}, {row['bh']:.3f}")
    print("\nExamples without firing that bound the rate at 95 %, all units together")
    for row in result["bound"]:
        print(f"rate {row['rate']:g}, {row['units']} units: {row['examples']:,}")


def _rejects(p_values: np.ndarray) -> float:
    return float((np.nan_to_num(p_values, nan=1.0) <= 0.05).mean())


def _trend(records: int, phi: float) -> dict[str, Any]:
    p = nulls.trend_p_values(NULLS, seed=201, correlation=phi, records=records)
    series = NOISE * nulls.autoregressive(np.random.default_rng(202), phi, records, NULLS)
    line = np.linspace(0, 1, records)[:, None]
    verdicts = [inference.equivalence(inference.trend(series + drift * line), MARGIN) for drift in (0, 0.1, 0.2, 0.4)]
    stable = [float((verdict == "STABLE").mean()) for verdict in verdicts]
    declines = float(np.isnan(p).mean())
    return {"records": records, "phi": phi, "rejects": _rejects(p), "declines": declines, "stable": stable}


def _relabelling(groups: int, rho: float) -> dict[str, Any]:
    p = nulls.relabelling_p_values(NULLS, seed=203, correlation=rho, groups=groups)
    return {"groups": groups, "rho": rho, "rejects": _rejects(p), "ks": float(stats.kstest(p, "uniform").statistic)}


def _power(groups: int, shift: float) -> dict[str, Any]:
    p = nulls.relabelling_p_values(500, seed=204, groups=groups, shift=shift)
    return {"groups": groups, "shift": shift, "found": _rejects(p)}


def _frozen() -> dict[str, Any]:
    """p-values of the first layer of recorded networks that do not learn; windows of one run share no record."""
    runs = [recorded(mlp(seed, depth=1), update=False) for seed in range(300, 300 + FROZEN_RUNS)]
    p = np.concatenate([shift.between_steps(run)["p"].sel(layer="fc0").values for run in runs])
    return {"tests": len(p), "rejects": _rejects(p), "ks_p": float(stats.kstest(p, "uniform").pvalue)}


def _family(dependence: float) -> dict[str, Any]:
    families = nulls.family_p_values(NULLS, seed=205, dependence=dependence)
    least = {
        "raw": families.min(axis=1),
        "holm": np.array([inference.holm(family).min() for family in families]),
        "bh": np.array([inference.benjamini_hochberg(family).min() for family in families]),
    }
    return {"dependence": dependence} | {name: _rejects(p) for name, p in least.items()}


def _bound(rate: float, units: int) -> dict[str, Any]:
    examples = np.arange(1, 200_000)
    first = int(examples[np.searchsorted(-rate_upper_bound(examples, tests=units), -rate)])
    return {"rate": rate, "units": units, "examples": first}
