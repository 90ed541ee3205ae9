"""Distances of binned counts against scipy on the raw values, and the laws they obey."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.spatial.distance import jensenshannon

from covshift.analysis import divergence
from covshift.analysis.distribution_functions import widths
from covshift.exceptions import InvalidArgumentError
from covshift.grid import GRADIENTS, VALUES, Grid

VALUE = st.one_of(
    st.just(0.0),
    st.floats(-1000.0, 1000.0, width=32),
    st.floats(-(2.0**-20), 2.0**-20, width=32),
    st.integers(-3, 3).map(float),
)
SAMPLE = st.lists(VALUE, min_size=1, max_size=40).map(np.array)
DISTANCES = [
    divergence.wasserstein1,
    divergence.kolmogorov_smirnov,
    divergence.cramer,
    divergence.jensen_shannon,
]


def bound(a, b, grid):
    """What binning can change a W1 distance by: every element moves within its bin."""
    return float(((a / a.sum() + b / b.sum()) * widths(grid)).sum())


@given(x=SAMPLE, y=SAMPLE)
def test_wasserstein_is_that_of_the_values_up_to_the_width_of_their_bins(x, y, count_bins):
    a, b = count_bins(x, VALUES), count_bins(y, VALUES)
    distance = divergence.wasserstein1(a, b, VALUES)
    assert abs(distance - stats.wasserstein_distance(x, y)) <= bound(a, b, VALUES) + 1e-9


def plain(a, b, grid):
    """W1, KS and Cramer by their definitions: both ends of F - G in every bin of the whole grid, one pair of rows."""
    p, q = (np.where(np.isfinite(grid.lower) | np.isfinite(grid.upper), side, 0.0) for side in (a, b))
    right = np.cumsum(p) / p.sum() - np.cumsum(q) / q.sum()
    left = np.append(0.0, right[:-1])
    both = np.abs(left) + np.abs(right)
    crossing = np.divide(left**2 + right**2, both, out=np.zeros_like(both), where=both > 0)
    mean = np.where(left * right < 0, crossing, both) / 2
    square = (left**2 + left * right + right**2) / 3
    return (mean * widths(grid)).sum(), np.abs(right).max(), (square * widths(grid)).sum()


@pytest.mark.parametrize("grid", [VALUES, GRADIENTS])
def test_distances_on_the_occupied_bins_are_those_on_the_whole_grid(grid):
    rng = np.random.default_rng(3)
    a, b = rng.integers(0, 50, size=(2, 40, grid.size))
    for row in range(40):  # every row holds bins of its own; the first two are wide and narrow
        first, last = np.sort(rng.integers(0, grid.size, size=2))
        a[row, :first], b[row, last + 1 :] = 0, 0
    a[1], b[1] = (np.bincount([grid.zero, grid.zero + at], minlength=grid.size) for at in (1, 2))
    expected = np.array([plain(*pair, grid) for pair in zip(a, b, strict=True)]).T
    for distance, known in zip(DISTANCES[:3], expected, strict=True):
        np.testing.assert_allclose(distance(a, b, grid), known, rtol=1e-12, atol=0)


def test_groups_compared_at_once_give_what_each_pair_gives():
    rng = np.random.default_rng(4)
    groups = rng.integers(0, 9, size=(6, 4, VALUES.size)) * (rng.random((6, 1, VALUES.size)) < 0.1)
    sizes = groups[..., 1 : VALUES.nan - 1].sum(axis=-1)
    of_groups = [[divergence.cramer(one, row.sum(axis=0), VALUES) for one in row] for row in groups]
    np.testing.assert_allclose(
        divergence.cramer_noise(groups, VALUES), (sizes * of_groups).sum(axis=1) / sizes.sum(axis=1) / 3, rtol=1e-12
    )
    halves = [([0, 1], [2, 3]), ([0, 2], [1, 3]), ([0, 3], [1, 2])]
    squares = [
        divergence.wasserstein1(groups[:, one].sum(axis=1), groups[:, other].sum(axis=1), VALUES) ** 2
        * (sizes[:, one].sum(axis=1) * sizes[:, other].sum(axis=1) / sizes.sum(axis=1) ** 2)
        for one, other in halves
    ]
    expected = np.sqrt(np.mean(squares, axis=0))
    np.testing.assert_allclose(divergence.wasserstein1_noise(groups, VALUES), expected, rtol=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_elements_are_spread_evenly_within_their_bins(seed):
    bins = VALUES.zero + 200 + np.arange(3)
    rng = np.random.default_rng(seed)
    a, b = np.zeros((2, VALUES.size))
    a[bins], b[bins] = ([1, 0, 1], [0, 2, 0]) if seed == 0 else rng.integers(1, 9, size=(2, 3))
    even = (np.arange(2000) + 0.5) / 2000
    points = (VALUES.lower[bins, None] + even * (VALUES.upper[bins, None] - VALUES.lower[bins, None])).ravel()
    weights = (np.repeat(counts[bins], len(even)) for counts in (a, b))
    expected = stats.wasserstein_distance(points, points, *weights)
    assert divergence.wasserstein1(a, b, VALUES) == pytest.approx(expected, rel=1e-3)


@given(x=SAMPLE, y=SAMPLE)
def test_cramer_is_half_the_squared_energy_distance_up_to_the_width_of_the_bins(x, y, count_bins):
    a, b = count_bins(x, VALUES), count_bins(y, VALUES)
    distance = divergence.cramer(a, b, VALUES)
    assert abs(distance - stats.energy_distance(x, y) ** 2 / 2) <= 2 * bound(a, b, VALUES) + 1e-9


@given(x=SAMPLE, y=SAMPLE)
def test_kolmogorov_smirnov_is_that_of_the_binned_values(x, y, count_bins):
    ids, other = VALUES.ids(x), VALUES.ids(y)
    expected = max(abs((ids <= edge).mean() - (other <= edge).mean()) for edge in np.concatenate([ids, other]))
    found = divergence.kolmogorov_smirnov(count_bins(x, VALUES), count_bins(y, VALUES), VALUES)
    assert found == pytest.approx(expected)


def test_kolmogorov_smirnov_is_scipys_less_at_most_the_share_of_a_bin(count_bins):
    rng = np.random.default_rng(4)
    x, y = rng.normal(size=500), rng.normal(0.3, 1.2, size=400)
    a, b = count_bins(x, VALUES), count_bins(y, VALUES)
    gap = stats.ks_2samp(x, y).statistic - divergence.kolmogorov_smirnov(a, b, VALUES)
    assert -1e-12 <= gap <= max((a / 500).max(), (b / 400).max())


@pytest.mark.parametrize("distance", DISTANCES)
@given(x=SAMPLE, y=SAMPLE)
def test_distances_are_symmetric_and_zero_for_equal_shares(distance, x, y, count_bins):
    a, b = count_bins(x, VALUES), count_bins(y, VALUES)
    assert distance(a, b, VALUES) == pytest.approx(distance(b, a, VALUES), abs=1e-12)
    assert distance(a, 3 * a, VALUES) == pytest.approx(0, abs=1e-12)


@given(x=SAMPLE, y=SAMPLE, z=SAMPLE)
def test_wasserstein_obeys_the_triangle_inequality(x, y, z, count_bins):
    a, b, c = (count_bins(sample, VALUES) for sample in (x, y, z))
    direct, first, second = (divergence.wasserstein1(*pair, VALUES) for pair in ((a, c), (a, b), (b, c)))
    assert direct <= first + second + 1e-9


@given(x=SAMPLE, y=SAMPLE, power=st.integers(-4, 4))
def test_wasserstein_scales_with_the_values(x, y, power, count_bins):
    x, y = (np.where(np.abs(sample) < 1e-3, 0.0, sample) for sample in (x, y))
    once, scaled = (
        divergence.wasserstein1(count_bins(x * factor, VALUES), count_bins(y * factor, VALUES), VALUES)
        for factor in (1.0, 2.0**power)
    )
    assert scaled == pytest.approx(once * 2.0**power, rel=1e-9, abs=1e-12)


@given(x=SAMPLE, y=SAMPLE, bits=st.integers(0, 2))
def test_wasserstein_is_invariant_to_coarsening_up_to_the_width_of_the_bins(x, y, bits, count_bins):
    a, b = count_bins(x, VALUES), count_bins(y, VALUES)
    coarse = Grid(bits, VALUES.min_exponent, VALUES.max_exponent)
    fine_distance = divergence.wasserstein1(a, b, VALUES)
    rough_a, rough_b = VALUES.coarsen(a, bits), VALUES.coarsen(b, bits)
    rough_distance = divergence.wasserstein1(rough_a, rough_b, coarse)
    assert abs(fine_distance - rough_distance) <= bound(rough_a, rough_b, coarse) + 1e-9


@given(x=SAMPLE, y=SAMPLE)
def test_jensen_shannon_lies_between_zero_and_ln_2(x, y, count_bins):
    found = divergence.jensen_shannon(count_bins(x, VALUES), count_bins(y, VALUES), VALUES)
    assert 0 <= found <= math.log(2) + 1e-12


def test_jensen_shannon_of_few_atoms_is_scipys(count_bins):
    p, q = np.array([6, 1, 1, 8]), np.array([2, 5, 9, 0])
    atoms = np.array([-4.0, 0.0, 1.0, 8.0])
    found = divergence.jensen_shannon(
        count_bins(np.repeat(atoms, p), VALUES), count_bins(np.repeat(atoms, q), VALUES), VALUES, classes=64
    )
    assert found == pytest.approx(jensenshannon(p, q) ** 2)


def test_jensen_shannon_of_one_population_stays_near_its_bias_at_few_classes(count_bins):
    rng = np.random.default_rng(0)
    samples = rng.normal(size=(2, 128))
    found = divergence.jensen_shannon(*(count_bins(x, VALUES) for x in samples), VALUES)
    classes = divergence.JENSEN_SHANNON_CLASSES
    assert found < 3 * (classes - 1) / (4 * 128)


def test_a_shift_far_below_the_bin_width_is_resolved(count_bins):
    x = np.random.default_rng(1).normal(size=100_000)
    moved = divergence.wasserstein1(count_bins(x, VALUES), count_bins(x + 0.01, VALUES), VALUES)
    assert moved == pytest.approx(0.01, rel=0.02)


def test_the_zero_atom_is_a_jump(count_bins):
    x = np.array([0.0, 0.0, 0.0, 1.0])
    y = np.array([0.0, 1.0, 1.0, 1.0])
    a, b = count_bins(x, VALUES), count_bins(y, VALUES)
    assert divergence.kolmogorov_smirnov(a, b, VALUES) == 0.5
    # Half of the mass travels from exactly 0 to the bin [1, 1.125).
    assert divergence.wasserstein1(a, b, VALUES) == pytest.approx(0.5 * 1.0625)


@pytest.mark.parametrize("distance", DISTANCES)
def test_infinities_and_nan_are_left_out(distance, count_bins):
    x, y = np.array([1.0, 2.0, 5.0]), np.array([2.0, 2.0, 3.0])
    spoilt = np.concatenate([x, [np.nan, np.inf, -np.inf]])
    expected = distance(count_bins(x, VALUES), count_bins(y, VALUES), VALUES)
    assert distance(count_bins(spoilt, VALUES), count_bins(y, VALUES), VALUES) == expected


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("empty", [np.zeros(0), np.array([np.nan]), np.array([np.inf])])
def test_a_side_without_finite_elements_gives_nan(distance, empty, count_bins):
    assert np.isnan(distance(count_bins(empty, VALUES), count_bins(np.ones(3), VALUES), VALUES))


def test_overflow_counts_at_the_finite_edge_of_its_bin(count_bins):
    top = 2.0**VALUES.max_exponent
    found = divergence.wasserstein1(count_bins(np.array([1e30]), VALUES), count_bins(np.zeros(1), VALUES), VALUES)
    assert found == top


def test_leading_axes_broadcast(count_bins):
    rng = np.random.default_rng(2)
    a = np.stack([count_bins(rng.normal(size=30), VALUES) for _ in range(6)]).reshape(2, 3, -1)
    b = count_bins(rng.normal(size=30), VALUES)
    for distance in DISTANCES:
        expected = [[distance(a[i, j], b, VALUES) for j in range(3)] for i in range(2)]
        np.testing.assert_allclose(distance(a, b, VALUES), expected)


@pytest.mark.parametrize("distance", DISTANCES)
def test_counts_of_another_grid_are_refused(distance):
    with pytest.raises(InvalidArgumentError, match=rf"\(5,\): expected the last axis to be {GRADIENTS.size}"):
        distance(np.ones(5), np.ones(GRADIENTS.size), GRADIENTS)


def batch(rng, examples, positions, correlation, shift=0.0):
    """Values of shape (examples, positions), standard normal, correlated within an example."""
    common, own = rng.normal(size=(examples, 1)), rng.normal(size=(examples, positions))
    return shift + math.sqrt(correlation) * common + math.sqrt(1 - correlation) * own


def grouped(values, count_bins, groups=4):
    return np.stack([count_bins(values[group::groups], VALUES) for group in range(groups)])


def simulate(count_bins, *, shift, examples, repeats=150):
    rng = np.random.default_rng(7)
    return [
        np.stack([grouped(batch(rng, examples, 8, 0.5, moved), count_bins) for _ in range(repeats)])
        for moved in (0.0, shift)
    ]


@pytest.mark.parametrize("examples", [16, 10])
def test_the_noise_corrected_distance_is_unbiased_for_clustered_data_of_one_population(examples, count_bins):
    a, b = simulate(count_bins, shift=0.0, examples=examples)
    u = divergence.noise_corrected_cramer(a, b, VALUES)
    error = u.std(ddof=1) / math.sqrt(len(u))
    assert abs(u.mean()) < 3 * error
    # The uncorrected distance of the same data is far from its true value 0.
    raw = divergence.cramer(a.sum(axis=1), b.sum(axis=1), VALUES)
    assert raw.mean() > 10 * error


def test_the_noise_corrected_distance_of_a_shift_is_that_of_the_populations(count_bins):
    a, b = simulate(count_bins, shift=0.5, examples=16)
    u = divergence.noise_corrected_cramer(a, b, VALUES)
    x = np.linspace(-8, 8, 20_001)
    true = np.trapezoid((stats.norm.cdf(x) - stats.norm.cdf(x - 0.5)) ** 2, x)
    assert abs(u.mean() - true) < 3 * u.std(ddof=1) / math.sqrt(len(u))


def test_the_noise_floor_is_the_typical_distance_of_two_samples_of_one_population(count_bins):
    a, b = simulate(count_bins, shift=0.0, examples=16)
    naive = divergence.wasserstein1(a.sum(axis=1), b.sum(axis=1), VALUES)
    floor = np.hypot(divergence.wasserstein1_noise(a, VALUES), divergence.wasserstein1_noise(b, VALUES))
    assert math.sqrt((floor**2).mean()) == pytest.approx(math.sqrt((naive**2).mean()), rel=0.15)


@pytest.mark.parametrize("noise", [divergence.cramer_noise, divergence.wasserstein1_noise])
def test_noise_needs_two_groups_that_hold_elements(noise, count_bins):
    one = np.stack([count_bins(np.array([1.0, 2.0]), VALUES), *np.zeros((3, VALUES.size))])
    two = one.copy()
    two[2] = count_bins(np.array([2.0, 3.0]), VALUES)
    assert np.isnan(noise(one, VALUES))
    assert np.isnan(noise(one[:1], VALUES))
    assert noise(two, VALUES) > 0
    np.testing.assert_allclose(noise(two, VALUES), noise(two[[0, 2]], VALUES))


def test_noise_of_two_groups_is_a_quarter_of_their_distance(count_bins):
    rng = np.random.default_rng(3)
    halves = np.stack([count_bins(rng.normal(size=50), VALUES) for _ in range(2)])
    assert divergence.cramer_noise(halves, VALUES) == pytest.approx(divergence.cramer(*halves, VALUES) / 4)
    assert divergence.wasserstein1_noise(halves, VALUES) == pytest.approx(divergence.wasserstein1(*halves, VALUES) / 2)
