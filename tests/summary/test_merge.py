"""Summaries of a stream do not depend on where it was cut, nor on the order in which the pieces are joined."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from covshift.exceptions import InvalidArgumentError
from covshift.grid import GRADIENTS, VALUES, Grid
from covshift.summary import Moments, Summary, summarize

SPECIAL = [0.0, -0.0, math.inf, -math.inf, math.nan, 1e-40, 1e30, -3.0, 100.0, 100.5]
GROUPS = 3


@st.composite
def streams(draw, pieces=2):
    """A tensor of examples and where to cut it, at multiples of the groups so that an example keeps its group."""
    cuts = sorted(draw(st.lists(st.integers(0, 4), min_size=pieces - 1, max_size=pieces - 1)))
    flat = draw(
        st.lists(
            st.sampled_from(SPECIAL) | st.floats(-1000, 1000, width=32),
            min_size=4 * GROUPS * 6,
            max_size=4 * GROUPS * 6,
        )
    )
    return torch.tensor(flat).reshape(4 * GROUPS, 3, 2), [GROUPS * cut for cut in cuts]


def summary_of(tensor, **changes):
    return summarize(tensor, **{"unit_axis": 1, "groups": GROUPS} | changes)


@settings(deadline=None, max_examples=50)
@given(streams(pieces=4))
def test_a_stream_cut_anywhere_and_merged_is_the_stream_in_one_pass(check_same, stream):
    tensor, cuts = stream
    merged = Summary()
    for piece in np.split(np.arange(len(tensor)), cuts):
        merged = merged.merge(summary_of(tensor[torch.from_numpy(piece)]))
    check_same(merged, summary_of(tensor), tensor, unit_axis=1, relative=1e-11)


@settings(deadline=None, max_examples=50)
@given(streams())
def test_merging_commutes(check_same, stream):
    tensor, (cut,) = stream
    left, right = summary_of(tensor[:cut]), summary_of(tensor[cut:])
    check_same(left.merge(right), right.merge(left), tensor, unit_axis=1)


@settings(deadline=None, max_examples=50)
@given(streams(pieces=3))
def test_merging_associates(check_same, stream):
    tensor, (first, second) = stream
    a, b, c = (summary_of(part) for part in (tensor[:first], tensor[first:second], tensor[second:]))
    check_same(a.merge(b).merge(c), a.merge(b.merge(c)), tensor, unit_axis=1, relative=1e-11)


@settings(deadline=None, max_examples=50)
@given(streams())
def test_the_empty_summary_is_the_identity_of_merging(stream):
    summary = summary_of(stream[0])
    assert summary.merge(Summary()) is summary
    assert Summary().merge(summary) is summary
    assert Summary().merge(Summary()) == Summary()


@settings(deadline=None, max_examples=50)
@given(streams())
def test_every_count_of_elements_adds_up_to_the_count(stream):
    tensor, _ = stream
    summary = summary_of(tensor)
    assert summary.histogram.counts.sum() == summary.count == tensor.numel()
    assert summary.positive_count + summary.zero_count + summary.negative_count + summary.nan_count == summary.count
    infinite = summary.posinf_count + summary.neginf_count
    assert summary.moments.count + infinite + summary.nan_count == summary.count
    assert summary.units.count.sum() == summary.count
    assert summary.units.zero_count.sum() == summary.zero_count == summary.histogram.counts[:, VALUES.zero].sum()
    assert summary.units.positive_count.sum() == summary.positive_count
    assert summary.histogram.counts.sum(1).tolist() == [tensor[group::GROUPS].numel() for group in range(GROUPS)]


@settings(deadline=None, max_examples=50)
@given(streams())
def test_the_moments_of_the_units_merge_to_those_of_the_tensor(stream):
    tensor, _ = stream
    summary = summary_of(torch.nan_to_num(tensor, 5.0, 7.0, -7.0))
    merged = Moments()
    for count, mean, m2 in zip(summary.units.finite_count, summary.units.mean, summary.units.m2, strict=True):
        merged = merged.merge(Moments(int(count), float(mean), float(m2)))
    assert (merged.count, merged.mean) == (summary.moments.count, pytest.approx(summary.moments.mean, rel=1e-9))
    assert merged.m2 == pytest.approx(summary.moments.m2, rel=1e-9)


@settings(deadline=None, max_examples=50)
@given(streams(), st.integers(0, 3))
def test_a_coarsened_histogram_is_the_histogram_on_the_coarser_grid(stream, bits):
    tensor, _ = stream
    coarse = dataclasses.replace(VALUES, mantissa_bits=bits)
    coarsened = summary_of(tensor).histogram.coarsen(bits)
    direct = summary_of(tensor, grid=coarse).histogram
    assert coarsened.grid == direct.grid == coarse
    np.testing.assert_array_equal(coarsened.counts, direct.counts)


@pytest.mark.parametrize("finer_first", [True, False])
def test_histograms_of_two_resolutions_merge_at_the_coarser(finer_first):
    tensor = torch.linspace(-3, 3, 40).reshape(10, 4)
    coarse = Grid(1, VALUES.min_exponent, VALUES.max_exponent)
    pair = [summarize(tensor, grid=VALUES), summarize(tensor, grid=coarse)]
    merged = pair[not finer_first].merge(pair[finer_first]).histogram
    assert merged.grid == coarse
    np.testing.assert_array_equal(merged.counts, 2 * pair[1].histogram.counts)


def test_parts_that_only_one_side_has_are_dropped():
    tensor = torch.ones(4, 3)
    merged = summarize(tensor, unit_axis=1).merge(summarize(tensor, unit_axis=1, grid=None, units=False))
    assert (merged.histogram, merged.units, merged.count) == (None, None, 24)


def test_a_summary_can_be_merged_with_itself():
    summary = summarize(torch.tensor([[1.0, 2.0], [3.0, 6.0]]), unit_axis=1)
    twice = summary.merge(summary)
    assert (twice.count, twice.example_count, twice.sum, twice.moments.m2) == (8, 4, 24.0, 28.0)
    assert twice.units.active_examples.tolist() == [4, 4]


def test_units_that_saw_nothing_finite_take_the_other_sides_mean():
    nothing = summarize(torch.full((2, 2), math.nan), unit_axis=1)
    merged = nothing.merge(summarize(torch.tensor([[1.0, 5.0], [3.0, 5.0]]), unit_axis=1)).units
    assert merged.mean.tolist() == [2.0, 5.0]
    assert merged.m2.tolist() == [2.0, 0.0]
    assert merged.finite_count.tolist() == [2, 2]
    assert merged.count.tolist() == [4, 4]


def test_the_mean_of_many_merges_does_not_drift():
    part = summarize(torch.full((1, 7), 0.1, dtype=torch.float64)).moments
    merged = Moments()
    for _ in range(10_000):
        merged = merged.merge(part)
    assert merged.count == 70_000
    assert merged.mean == pytest.approx(0.1, rel=1e-14)
    assert merged.m2 <= 1e-25


def test_moments_beyond_float64_merge_to_infinity_not_to_an_error():
    huge = Moments(1, 1e300).merge(Moments(1, -1e300))
    assert (huge.count, huge.mean, huge.m2) == (2, 0.0, math.inf)


def test_units_beyond_float64_merge_to_infinity_whatever_numpy_is_told_to_do_then():
    values = torch.tensor([[1e160, math.nan, 1e-200], [3e160, 2e160, -1e-200]], dtype=torch.float64)
    first, second = (summarize(row[None], unit_axis=1).units for row in values)
    with np.errstate(all="raise"):
        merged, turned = first.merge(second), second.merge(first)
    for units in (merged, turned):
        np.testing.assert_allclose(units.mean, [2e160, 2e160, 0.0], rtol=1e-15)
        # The second unit has one finite element, and one value does not deviate from its mean.
        assert units.m2.tolist() == [math.inf, 0.0, 0.0]


@pytest.mark.parametrize(
    ("part", "first", "second", "message"),
    [
        (
            "units",
            {},
            {"unit_axis": 0, "example_axis": 1},
            "cannot merge summaries of 3 and 2 units; the unit axis changed",
        ),
        (
            "histogram",
            {},
            {"grid": GRADIENTS},
            r"cannot merge \(min_exponent, max_exponent, groups\) \(-24, 16, 3\) with \(-126, 128, 3\)",
        ),
        (
            "histogram",
            {},
            {"groups": 2},
            r"\(-24, 16, 3\) with \(-24, 16, 2\); record both with the same grid and groups",
        ),
    ],
)
def test_summaries_that_do_not_fit_are_refused(part, first, second, message):
    tensor = torch.ones(2, 3)
    left, right = (getattr(summary_of(tensor, **changes), part) for changes in (first, second))
    with pytest.raises(InvalidArgumentError, match=message):
        left.merge(right)
