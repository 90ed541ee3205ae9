"""What a summary is, by definition: counted, binned and summed element by element in exact rational arithmetic."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from covshift.summary import prepare

KINDS = ("zero", "negative", "nan", "posinf", "neginf", "subnormal")


def kinds_of(values, tiny):
    flat = values.ravel().tolist()
    return {
        "zero": sum(value == 0 for value in flat),
        "negative": sum(value < 0 for value in flat),
        "nan": sum(math.isnan(value) for value in flat),
        "posinf": sum(value == math.inf for value in flat),
        "neginf": sum(value == -math.inf for value in flat),
        "subnormal": sum(0 < abs(value) < tiny for value in flat),
    }


def moments_of(values):
    """Mean, and sums of second to fourth powers of deviations from it, with the same sums of absolute values."""
    numbers = [Fraction(value) for value in values]
    mean = sum(numbers, Fraction(0)) / max(len(numbers), 1)
    deviations = [number - mean for number in numbers]
    sums = [sum((deviation**power for deviation in deviations), Fraction(0)) for power in (2, 3, 4)]
    scales = [sum((abs(deviation) ** power for deviation in deviations), Fraction(0)) for power in (2, 3, 4)]
    return mean, sums, sum((abs(number) for number in numbers), Fraction(0)), scales


def bin_of(value, grid):
    """Id of the bin between whose edges a value lies."""
    if math.isnan(value):
        return grid.nan
    if math.isinf(value):
        return grid.nan - 1 if value > 0 else 0
    if value == 0:
        return grid.zero
    found = int(np.searchsorted(grid.upper[grid.zero + 1 : grid.nan - 1], abs(value), side="right")) + 1
    return grid.zero + found if value > 0 else grid.zero - found


def histogram_of(values, grid, groups, example_axis):
    counts = np.zeros((groups, grid.size), np.int64)
    for index, value in np.ndenumerate(values):
        counts[index[example_axis] % groups if example_axis is not None else 0, bin_of(value, grid)] += 1
    return counts


def active_of(part, example_axis):
    if example_axis is None:
        return 0
    return sum(bool((example != 0).any()) for example in np.moveaxis(part, example_axis, 0))


def close(actual, exact, scale):
    """Within 1e-12 of the sum of absolute values, and within what underflow leaves of it."""
    return abs(Fraction(actual) - exact) <= Fraction(1, 10**12) * scale + Fraction(1, 10**300)


def check_units(units, values, unit_axis, example_axis):
    axis = None if example_axis is None else example_axis % values.ndim
    if axis is not None and axis > unit_axis % values.ndim:
        axis -= 1
    for unit in range(values.shape[unit_axis]):
        part = np.take(values, unit, unit_axis)
        finite = part[np.isfinite(part)].tolist()
        mean, (m2, _, _), absolute, _ = moments_of(finite)
        assert units.count[unit] == part.size
        assert units.finite_count[unit] == len(finite)
        assert units.zero_count[unit] == (part == 0).sum()
        assert units.positive_count[unit] == (part > 0).sum()
        assert units.active_examples[unit] == active_of(part, axis)
        assert units.min[unit] == min(finite, default=math.inf)
        assert units.max[unit] == max(finite, default=-math.inf)
        assert close(units.mean[unit] * len(finite), mean * len(finite), absolute)
        assert close(units.m2[unit], m2, m2)


def check_summary(summary, tensor, *, unit_axis=None, example_axis=0, grid=None, groups=4):
    """Every number of a summary against its definition."""
    values = tensor.detach().to(torch.float64).numpy()
    finite, moments = values[np.isfinite(values)].tolist(), summary.moments
    mean, sums, absolute, scales = moments_of(finite)
    kinds = {kind: getattr(summary, f"{kind}_count") for kind in KINDS}
    assert kinds == kinds_of(values, torch.finfo(tensor.dtype).tiny)
    assert (summary.count, moments.count) == (values.size, len(finite))
    assert summary.positive_count == (values > 0).sum()
    assert (summary.min, summary.max) == (min(finite, default=math.inf), max(finite, default=-math.inf))
    assert close(summary.sum, mean * len(finite), absolute)
    for actual, exact, scale in zip((moments.m2, moments.m3, moments.m4), sums, scales, strict=True):
        assert close(actual, exact, scale)
    examples = values.shape[example_axis] if example_axis is not None and values.ndim else int(not values.ndim)
    assert summary.example_count == examples
    assert (summary.histogram is None, summary.units is None) == (grid is None, unit_axis is None)
    if grid is not None:
        assert summary.histogram.grid == grid
        np.testing.assert_array_equal(summary.histogram.counts, histogram_of(values, grid, groups, example_axis))
    if unit_axis is not None:
        check_units(summary.units, values, unit_axis, example_axis)


def check_same(left, right, tensor, *, unit_axis=None, relative=2e-12):
    """Two summaries of one tensor: equal counts and extremes, sums within 1e-12 (each) of those of absolute values."""
    wide = tensor.detach().to(torch.float64).numpy()
    for name in ("count", "example_count", "min", "max", *(f"{kind}_count" for kind in KINDS)):
        assert getattr(left, name) == getattr(right, name), name
    finite = wide[np.isfinite(wide)]
    deviation = np.abs(finite - finite.mean()) if finite.size else finite
    scales = {f"m{power}": (deviation**power).sum() for power in (2, 3, 4)}
    for name, scale in {"mean": np.abs(finite).sum() / max(finite.size, 1), **scales}.items():
        assert abs(getattr(left.moments, name) - getattr(right.moments, name)) <= relative * scale + 1e-300, name
    assert left.moments.count == right.moments.count
    assert (left.histogram is None, left.units is None) == (right.histogram is None, right.units is None)
    if left.histogram is not None:
        np.testing.assert_array_equal(left.histogram.counts, right.histogram.counts)
    if left.units is not None:
        check_same_units(left.units, right.units, np.moveaxis(wide, unit_axis, 0), relative)


def check_same_units(left, right, wide, relative):
    for name in ("count", "finite_count", "zero_count", "positive_count", "active_examples", "min", "max"):
        np.testing.assert_array_equal(getattr(left, name), getattr(right, name), err_msg=name)
    absolute = np.where(np.isfinite(wide), np.abs(wide), 0).reshape(len(wide), -1).mean(1)
    assert (np.abs(left.mean - right.mean) <= relative * absolute + 1e-300).all()
    assert (np.abs(left.m2 - right.m2) <= relative * np.maximum(left.m2, right.m2) + 1e-300).all()


@pytest.fixture(scope="session", autouse=True)
def _loaded_kernels():
    """Load or compile before any test, so that no example of a property is the one that waits."""
    prepare(torch.float32)
    prepare(torch.float64)


@pytest.fixture(scope="session", name="check_summary")
def _check_summary():
    return check_summary


@pytest.fixture(scope="session", name="check_same")
def _check_same():
    return check_same


@pytest.fixture(scope="session", name="moments_of")
def _moments_of():
    return moments_of
