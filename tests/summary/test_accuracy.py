"""Sums against rational arithmetic where float64, carelessly added, would lose them."""

import functools

import numpy as np
import pytest
import torch

from covshift.summary.cpu import summarize_by_kernel
from covshift.summary.device import summarize_by_torch

SIZE = 5000
NOISE = np.random.default_rng(0).standard_normal(SIZE)

STREAMS = {
    "noise": NOISE,
    "far from zero": 1e6 + NOISE,
    "very far from zero": 1e9 + NOISE,
    "two far modes": np.where(NOISE > 0, 1e6, -1e6) + NOISE,
    "sorted": np.sort(NOISE) * 1e3,
    "zeros, then far from zero": np.where(np.arange(SIZE) < SIZE // 3, 0.0, 1000.0 + NOISE),
    "an outlier first": np.where(np.arange(SIZE) == 0, 1e12, NOISE),
    "an outlier in the middle": np.where(np.arange(SIZE) == SIZE // 2 + 1, -1e9, NOISE),
    "constant": np.full(SIZE, 0.1),
    "gradients of 1e-30": NOISE * 1e-30,
    "alternating": np.where(np.arange(SIZE) % 2, 1e8, -1e8) + NOISE,
    "heavy tails": NOISE / np.random.default_rng(1).uniform(1e-4, 1, SIZE) ** 2,
}


UNITS = 5


@functools.cache
def tensor_and_truth(stream, dtype, moments_of):
    """A stream, the exact moments of all of it, and those of every fifth element."""
    tensor = torch.from_numpy(STREAMS[stream]).to(dtype)
    parts = [tensor.tolist(), *(tensor[unit::UNITS].tolist() for unit in range(UNITS))]
    return tensor, [moments_of(part) for part in parts]


def check_moments(moments, truth):
    mean, sums, absolute, scales = truth
    assert abs(moments.mean - mean) * moments.count <= 1e-12 * absolute
    for power, exact, scale in zip((moments.m2, moments.m3, moments.m4), sums, scales, strict=True):
        assert abs(power - exact) <= 1e-12 * scale


@pytest.mark.parametrize("way", [summarize_by_kernel, summarize_by_torch], ids=["kernel", "torch"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("stream", STREAMS)
def test_sums_are_within_1e_12_of_the_sum_of_absolute_values(way, dtype, stream, moments_of):
    tensor, (whole, *units) = tensor_and_truth(stream, dtype, moments_of)
    chosen = {"example_axis": 0, "grid": None, "groups": 1, "units": True}
    check_moments(way(tensor, unit_axis=None, **chosen).moments, whole)
    table = way(tensor.reshape(-1, UNITS), unit_axis=1, **chosen)
    check_moments(table.moments, whole)
    for unit, (mean, (m2, _, _), absolute, _) in enumerate(units):
        assert abs(table.units.mean[unit] - mean) * table.units.count[unit] <= 1e-12 * absolute
        assert abs(table.units.m2[unit] - m2) <= 1e-12 * m2
