"""The bin grid against rational arithmetic and searching in edges."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from covshift.exceptions import InvalidArgumentError
from covshift.grid import GRADIENTS, VALUES, Grid

EVERY_FLOAT16 = np.arange(2**16, dtype=np.uint16).view(np.float16)
GRIDS = [VALUES, GRADIENTS, Grid(0, -3, 2), Grid(5, -126, 128), Grid(2, 0, 1)]

grids = st.builds(
    lambda bits, low, length: Grid(bits, low, min(low + length, 128)),
    st.integers(0, 6),
    st.integers(-126, 127),
    st.integers(1, 40),
)
floats32 = st.floats(width=32)
floats64 = st.floats()


def bin_by_edges(grid, value):
    """The bin found by comparing with every edge, in the order of the real line."""
    if math.isnan(value):
        return grid.nan
    if math.isinf(value) or value == 0:
        return {math.inf: 2 * grid.side + 6, -math.inf: 0}.get(value, grid.zero)
    lower, upper = grid.lower[1 : grid.nan - 1], grid.upper[1 : grid.nan - 1]
    inside = (lower <= value) & (value < upper) if value > 0 else (lower < value) & (value <= upper)
    (found,) = np.flatnonzero(inside)
    return found + 1


@pytest.mark.parametrize("grid", GRIDS)
def test_edges_are_the_powers_of_two_cut_into_equal_steps(grid):
    steps = 2**grid.mantissa_bits
    expected = [
        Fraction(2) ** exponent * (1 + Fraction(step, steps))
        for exponent in range(grid.min_exponent, grid.max_exponent)
        for step in range(steps)
    ]
    first = grid.zero + 2
    assert [Fraction(edge) for edge in grid.lower[first : first + grid.side]] == expected
    assert Fraction(grid.upper[first + grid.side - 1]) == Fraction(2) ** grid.max_exponent


@pytest.mark.parametrize("grid", GRIDS)
def test_bins_follow_one_another_from_minus_to_plus_infinity_and_mirror(grid):
    finite = slice(0, grid.nan)
    np.testing.assert_array_equal(grid.upper[finite][:-1], grid.lower[finite][1:])
    assert (grid.lower[0], grid.upper[grid.nan - 1]) == (-math.inf, math.inf)
    np.testing.assert_array_equal(grid.lower[finite], -grid.upper[finite][::-1])
    assert np.isnan([grid.lower[grid.nan], grid.upper[grid.nan]]).all()
    assert grid.size == grid.nan + 1 == len(grid.lower) == len(grid.upper)


def test_the_two_grids_of_recordings_have_the_sizes_the_schema_was_planned_with():
    assert (VALUES.size, GRADIENTS.size) == (648, 1024)


@settings(deadline=None)
@given(grids, floats64)
def test_a_float64_lies_between_the_edges_of_its_bin(grid, value):
    assert grid.ids(np.float64(value)) == bin_by_edges(grid, value)


@settings(deadline=None)
@given(grids, floats32)
def test_a_float32_lies_between_the_edges_of_its_bin(grid, value):
    assert grid.ids(np.float32(value)) == bin_by_edges(grid, value)


@pytest.mark.parametrize("grid", GRIDS)
def test_every_float16_has_the_same_bin_in_every_wider_format(grid):
    ids = grid.ids(EVERY_FLOAT16)
    np.testing.assert_array_equal(ids, grid.ids(EVERY_FLOAT16.astype(np.float32)))
    np.testing.assert_array_equal(ids, grid.ids(EVERY_FLOAT16.astype(np.float64)))


@pytest.mark.parametrize("grid", GRIDS)
def test_ids_rise_with_values(grid):
    values = np.sort(EVERY_FLOAT16[~np.isnan(EVERY_FLOAT16)])
    assert (np.diff(grid.ids(values)) >= 0).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("grid", [VALUES, GRADIENTS])
def test_zeros_infinities_nan_and_subnormals_have_their_own_bins(grid, dtype):
    subnormal, nan = np.finfo(dtype).smallest_subnormal, np.array([0.0]).astype(dtype) * dtype(math.nan)
    values = np.array([0.0, -0.0, math.inf, -math.inf, subnormal, -subnormal], dtype)
    zero = grid.zero
    assert grid.ids(values).tolist() == [zero, zero, grid.nan - 1, 0, zero + 1, zero - 1]
    assert grid.ids(np.concatenate([nan, -nan])).tolist() == [grid.nan, grid.nan]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_an_edge_belongs_to_the_bin_farther_from_zero(dtype):
    first = VALUES.zero + 2
    edges = VALUES.lower[first : first + VALUES.side].astype(dtype)
    below = np.nextafter(edges, dtype(0))
    np.testing.assert_array_equal(VALUES.ids(edges), np.arange(first, first + VALUES.side))
    np.testing.assert_array_equal(VALUES.ids(below), VALUES.ids(edges) - 1)
    np.testing.assert_array_equal(VALUES.ids(-edges), 2 * VALUES.zero - VALUES.ids(edges))


def test_float64_is_binned_from_its_own_bits():
    values = np.array([1e300, -1e300, 1e-300, 1.0 - 2.0**-53])
    zero = VALUES.zero
    one = int(VALUES.ids(np.float64(1.0)))
    assert VALUES.ids(values).tolist() == [VALUES.nan - 2, 1, zero + 1, one - 1]


@pytest.mark.parametrize("shape", [(), (0,), (3, 2), (2, 0, 4)])
def test_ids_have_the_shape_of_the_values(shape):
    assert VALUES.ids(np.ones(shape, np.float32)).shape == shape


def test_ids_of_a_view_are_those_of_its_copy():
    values = np.linspace(-3, 3, 60, dtype=np.float32).reshape(6, 10)
    np.testing.assert_array_equal(VALUES.ids(values.T[::2, ::-1]), VALUES.ids(values.T[::2, ::-1].copy()))


@settings(deadline=None)
@given(grids, st.data())
def test_coarsening_the_id_is_the_id_on_the_coarser_grid(grid, data):
    bits = data.draw(st.integers(0, grid.mantissa_bits))
    coarse = Grid(bits, grid.min_exponent, grid.max_exponent)
    np.testing.assert_array_equal(grid.coarsening(bits)[grid.ids(EVERY_FLOAT16)], coarse.ids(EVERY_FLOAT16))


@pytest.mark.parametrize("octaves", [-3, -1, 0, 2])
@pytest.mark.parametrize("grid", [VALUES, GRADIENTS], ids=["values", "gradients"])
def test_scaled_counts_are_those_of_the_values_times_a_power_of_two(grid, octaves):
    rng = np.random.default_rng(0)
    finite = rng.choice([-1.0, 1.0], 4000) * np.exp2(rng.uniform(-20, 12, 4000))
    values = np.concatenate([finite, [0.0, -0.0, np.inf, -np.inf, np.nan, np.exp2(-23.5), -np.exp2(15.5)]])
    counts = np.bincount(grid.ids(values), minlength=grid.size).reshape(1, -1)
    expected = np.bincount(grid.ids(values * 2.0**octaves), minlength=grid.size)
    np.testing.assert_array_equal(grid.scaled(counts, octaves), expected[None])


@settings(deadline=None)
@given(grids, st.data())
def test_coarsening_counts_is_counting_on_the_coarser_grid(grid, data):
    bits = data.draw(st.integers(0, grid.mantissa_bits))
    values = np.array(data.draw(st.lists(floats32, max_size=30)), np.float32)
    coarse = Grid(bits, grid.min_exponent, grid.max_exponent)
    counts = np.stack([np.bincount(grid.ids(part), minlength=grid.size) for part in (values, -values)])
    direct = np.stack([np.bincount(coarse.ids(part), minlength=coarse.size) for part in (values, -values)])
    np.testing.assert_array_equal(grid.coarsen(counts, bits), direct)


def test_centers_lie_midway_and_are_nan_or_infinite_where_there_is_no_midway():
    one = int(VALUES.ids(np.float32(1.0)))
    assert VALUES.centers[[one, 2 * VALUES.zero - one, VALUES.zero]].tolist() == [1.0625, -1.0625, 0.0]
    assert VALUES.centers[[0, 1, VALUES.nan - 2, VALUES.nan - 1]].tolist() == [-math.inf, -math.inf, math.inf, math.inf]
    assert math.isnan(VALUES.centers[VALUES.nan])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Grid(11, -24, 16), "mantissa_bits=11: expected 0 to 10"),
        (lambda: Grid(3, 4, 4), r"exponents \[4, 4\): expected -126 <= min < max <= 128"),
        (lambda: Grid(3, -127, 0), r"exponents \[-127, 0\)"),
        (lambda: VALUES.ids(np.arange(3)), "values have dtype int64: expected float16, float32 or float64"),
        (lambda: VALUES.ids(np.ones(3, np.complex64)), "values have dtype complex64"),
        (lambda: VALUES.coarsening(4), "mantissa_bits=4: expected 0 to 3; bins can be joined, never split"),
        (lambda: VALUES.scaled(np.zeros(7), 1), r"counts have shape \(7,\): expected the last axis to be 648"),
        (lambda: VALUES.coarsen(np.zeros(7), 2), r"counts have shape \(7,\): expected the last axis to be 648"),
    ],
)
def test_bad_arguments_are_refused_with_what_was_expected(make, message):
    with pytest.raises(InvalidArgumentError, match=message):
        make()
