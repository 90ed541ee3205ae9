"""Tables of the design that concern shipped estimators, computed with them; seeds fixed before any result was seen.

Where a number was predicted by a formula, the formula's value stands beside the measured one.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import nn

from common.resumed import Job
from covshift.analysis import divergence, gradient_health
from covshift.analysis.dead_units import rate_upper_bound
from covshift.analysis.distributions import quantiles
from covshift.grid import VALUES, Grid
from covshift.linked import Linked, audit
from covshift.selfcheck import nulls
from covshift.selfcheck.nets import mlp
from covshift.selfcheck.trials import recorded

Row = dict[str, Any]
Floats = NDArray[np.float64]

PAIRS, CHUNK = 300, 50
SAMPLES = 400_000
DEPTH, DEPTH_SEEDS = 40, range(10)

CLUSTERS = ((128, 1, 0.0), (64, 64, 0.05), (64, 64, 0.3), (128, 256, 0.1))
DISTRIBUTIONS = (
    "N(0,1)",
    "ReLU of N(0,1)",
    "N(1,1)",
    "lognormal",
    "t, 3 df",
    "two modes",
    "narrow and wide",
    "N(10,1)",
    "N(100,1)",
)
SLOPES: dict[str, dict[str, Any]] = {
    "ReLU, He": {},
    "ReLU, variance 1/n": {"gain": 1.0},
    "ReLU, variance 4/n": {"gain": 4.0},
    "tanh, variance 1/n": {"gain": 1.0, "activation": nn.Tanh},
    "SELU, variance 1/n": {"gain": 1.0, "activation": nn.SELU},
    "GELU, He": {"activation": nn.GELU},
    "batch-norm ReLU, He": {"norm": nn.BatchNorm1d},
    "layer-norm ReLU, He": {"norm": nn.LayerNorm},
}
ACTIVATIONS = {
    "ReLU": nn.ReLU,
    "leaky ReLU": nn.LeakyReLU,
    "SELU": nn.SELU,
    "ELU": nn.ELU,
    "SiLU": nn.SiLU,
    "GELU": nn.GELU,
    "tanh GELU": partial(nn.GELU, approximate="tanh"),
    "softplus": nn.Softplus,
    "Mish": nn.Mish,
    "hard-swish": nn.Hardswish,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "ReLU6": nn.ReLU6,
    "hardtanh": nn.Hardtanh,
    "softsign": nn.Softsign,
}


def table_jobs() -> dict[str, Job]:
    """Every row of every table, by key."""
    jobs: dict[str, Job] = {f"tables|bound|{rate:g}": partial(_bound, rate) for rate in (0.1, 0.01, 1e-3, 1e-4)}
    jobs |= {f"tables|null sizes|{n}": partial(_null_sizes, n) for n in (64, 128, 256, 512, 2048)}
    jobs |= {f"tables|noise floor|{b}x{hw}|{rho}": partial(_noise_floor, b, hw, rho) for b, hw, rho in CLUSTERS}
    jobs |= {f"tables|grid|{name}": partial(_grid, name) for name in DISTRIBUTIONS}
    jobs |= {f"tables|depth slope|{name}": partial(_depth_slope, name) for name in SLOPES}
    return jobs | {f"tables|derivatives|{name}": partial(_derivatives, name) for name in ACTIVATIONS}


def _bound(rate: float) -> Row:
    """Examples without firing that bound the rate at 95 %, for a number of units tested together."""
    examples = np.arange(1, 200_000)
    needed = {
        str(units): int(examples[np.searchsorted(-rate_upper_bound(examples, tests=units), -rate)])
        for units in (1, 64, 1024, 100_000)
    }
    return {"rate": rate, "examples": needed}


def _histograms(values: Floats, grid: Grid = VALUES) -> NDArray[np.int64]:
    ids = grid.ids(values.astype(np.float32))
    flat = np.bincount((ids + np.arange(len(ids))[:, None] * grid.size).ravel(), minlength=len(ids) * grid.size)
    return flat.reshape(len(ids), grid.size)


def _null_sizes(n: int) -> Row:
    """What distances and moments read between two samples of ``n`` normal values, where nothing differs."""
    generator = np.random.default_rng(211)
    a, b = generator.normal(size=(2, 1000, n))
    first, second = _histograms(a), _histograms(b)
    smd = (b.mean(axis=1) - a.mean(axis=1)) / np.sqrt((a.var(axis=1, ddof=1) + b.var(axis=1, ddof=1)) / 2)
    ratio = np.log(b.var(axis=1, ddof=1) / a.var(axis=1, ddof=1))
    return {
        "n": n,
        "w1": float(divergence.wasserstein1(first, second, VALUES).mean()),
        "w1_formula": 1.288 * math.sqrt(2 / n),
        "smd": float(smd.std()),
        "smd_formula": math.sqrt(2 / n),
        "log_var_ratio": float(ratio.std()),
        "log_var_ratio_formula": 2 / math.sqrt(n),
        "js": float(divergence.jensen_shannon(first, second, VALUES).mean()),
    }


def _noise_floor(examples: int, positions: int, rho: float) -> Row:
    """W1 and its floor, and the raw and the corrected squared distance, at true shifts of 0, 0.1 and 0.2 sd."""
    generator = np.random.default_rng(212)
    columns: dict[str, list[Floats]] = {}
    for _ in range(PAIRS // CHUNK):
        draw = partial(
            nulls.clustered_counts, generator, CHUNK, examples=examples, positions=positions, correlation=rho
        )
        before = draw(mean=0.0)
        for moved in (0.0, 0.1, 0.2):
            after = draw(mean=moved)
            corrected = divergence.noise_corrected_cramer(before, after, VALUES)
            columns.setdefault(f"u_{moved}", []).append(corrected)
            if not moved:
                whole = before.sum(axis=1), after.sum(axis=1)
                floor = np.hypot(*(divergence.wasserstein1_noise(side, VALUES) for side in (before, after)))
                columns.setdefault("w1", []).append(divergence.wasserstein1(*whole, VALUES))
                columns.setdefault("floor", []).append(floor)
                columns.setdefault("c", []).append(divergence.cramer(*whole, VALUES))
    means = {name: float(np.concatenate(parts).mean()) for name, parts in columns.items()}
    error = float(np.concatenate(columns["u_0.0"]).std() / math.sqrt(PAIRS))
    exact = {f"true_{moved}": _cramer_of_shift(moved) for moved in (0.1, 0.2)}
    return {"examples": examples, "positions": positions, "rho": rho} | means | {"u_error": error} | exact


def _cramer_of_shift(moved: float) -> float:
    """``int (F - G)^2`` of two standard normals ``moved`` apart, by quadrature."""
    x = np.linspace(-12, 12, 200_001)
    return float(np.trapezoid((stats.norm.cdf(x) - stats.norm.cdf(x - moved)) ** 2, x))


def _sample(name: str, generator: np.random.Generator) -> Floats:
    z = generator.normal(size=SAMPLES)
    pick = generator.uniform(size=SAMPLES)
    return {
        "N(0,1)": z,
        "ReLU of N(0,1)": np.maximum(z, 0.0),
        "N(1,1)": z + 1,
        "lognormal": np.exp(z),
        "t, 3 df": z / np.sqrt(generator.chisquare(3, size=SAMPLES) / 3),
        "two modes": np.where(pick < 0.5, -2.0, 2.0) + 0.5 * z,
        "narrow and wide": np.where(pick < 0.9, 1e-3, 1.0) * z,
        "N(10,1)": z + 10,
        "N(100,1)": z + 100,
    }[name]


def _grid(name: str) -> Row:
    """Relative errors of the binned sd, quantiles (in sd), and W1 of a shift of 0.1 sd, by bits of the mantissa."""
    x = _sample(name, np.random.default_rng(213))
    probabilities = tuple(np.arange(1, 100) / 100)
    truth, sd = np.quantile(x, probabilities), float(x.std())
    row: Row = {"name": name, "bits": {}}
    for bits in (1, 2, 3, 4):
        grid = Grid(bits, VALUES.min_exponent, VALUES.max_exponent)
        counts, moved = _histograms(x[None], grid), _histograms(x[None] + 0.1 * sd, grid)
        centres = np.nan_to_num(grid.centers, posinf=0.0, neginf=0.0)
        mean = float((counts[0] * centres).sum() / SAMPLES)
        binned = math.sqrt(float((counts[0] * (centres - mean) ** 2).sum()) / SAMPLES)
        found = quantiles(counts.astype(np.float64), probabilities, grid=grid)[0]
        w1 = float(divergence.wasserstein1(counts[0], moved[0], grid))
        row["bits"][str(bits)] = {
            "sd": binned / sd - 1,
            "quantile": float(np.abs(found - truth).max() / sd),
            "w1": w1 / (0.1 * sd) - 1,
        }
    return row


def _depth_slope(name: str) -> Row:
    """Decades of gradient per layer at initialisation, over seeds; positive where it shrinks towards the input."""
    slopes = []
    for seed in DEPTH_SEEDS:
        run = recorded(mlp(seed, depth=DEPTH, width=64, **SLOPES[name]), steps=1, update=False)
        slopes.append(float(gradient_health.norm_profile(run)["slope"].values[0]))
    return {"name": name, "slope": float(np.mean(slopes)), "sd": float(np.std(slopes, ddof=1))}


def _derivatives(name: str) -> Row:
    """Where every derivative is exactly zero in float32, for the activation by itself and mirrored."""
    make = ACTIVATIONS[name]
    row: Row = {"name": name}
    for kind, activation in (("single", make()), ("mirrored", Linked(make()))):
        found = audit(activation, dtypes=(torch.float32,))[torch.float32]
        row[kind] = {"zeros": [str(one) for one in found.zeros], "nans": len(found.nans), "smallest": found.smallest}
    return row
