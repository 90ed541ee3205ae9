"""Oracle: summaries merged one by one, and one summary of all values together."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from covshift.summary import Summary, numbers, summarize

streams = st.lists(
    st.tuples(
        st.integers(0, 4),
        st.lists(st.floats(width=32) | st.sampled_from([0.0, -0.0, float("nan"), float("inf")]), max_size=9),
    ),
    min_size=1,
    max_size=12,
)


def row_of(values):
    summary = summarize(torch.tensor(values, dtype=torch.float32), grid=None, example_axis=0) if values else Summary()
    moments = summary.moments
    counts = [getattr(summary, name) for name in numbers.COUNTS]
    return np.array([*counts, moments.mean, moments.m2, moments.m3, moments.m4, summary.min, summary.max])


@settings(deadline=None)
@given(streams)
def test_rows_pooled_by_key_are_the_summaries_merged_in_order(parts):
    keys = np.array([key for key, _ in parts], dtype=np.int64)
    rows = np.stack([row_of(values) for _, values in parts])
    distinct, pooled = numbers.pooled_by_key(keys, rows)
    assert distinct.tolist() == sorted(set(keys.tolist()))
    for key, row in zip(distinct, pooled, strict=True):
        whole = Summary()
        for own, values in parts:
            if own == key:
                whole = whole.merge(Summary.of(row_of(values)))
        merged = Summary.of(row)
        for name in numbers.COUNTS:
            assert getattr(merged, name) == getattr(whole, name)
        # To the last bit: the same formula in the same order.
        assert repr(merged.moments) == repr(whole.moments)
        assert (merged.min, merged.max) == (whole.min, whole.max)


def test_rows_of_nothing_change_nothing():
    row = row_of([1.0, -2.0, 0.0, float("nan")])[None]
    for pooled in (numbers.pooled(row, numbers.empty_rows(1)), numbers.pooled(numbers.empty_rows(1), row)):
        np.testing.assert_array_equal(pooled, row)
    keys, rows = numbers.pooled_by_key(np.zeros(0, np.int64), numbers.empty_rows(0))
    assert (len(keys), rows.shape) == (0, (0, len(numbers.COLUMNS)))


def test_a_rescaled_row_is_the_row_of_the_rescaled_values():
    values = [3.0, -5.0, 0.0, 0.25]
    expected = row_of([value / 8 for value in values])
    np.testing.assert_allclose(numbers.rescaled(row_of(values)[None], 8.0)[0], expected, rtol=1e-14)
