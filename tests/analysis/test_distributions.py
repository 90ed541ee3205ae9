"""A river tells the distribution it was binned from: mass is kept, quantiles lie within their bin."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from covshift.analysis import distributions
from covshift.exceptions import InvalidArgumentError, SignalNotRecorded
from covshift.grid import VALUES
from covshift.schema import Layer

values = hnp.arrays(np.float32, st.integers(1, 60), elements=st.floats(-1e4, 1e4, width=32))


def histogram(drawn: np.ndarray) -> np.ndarray:
    return np.bincount(VALUES.ids(drawn.astype(np.float32)), minlength=VALUES.size).astype(float)[None]


@given(values, st.floats(0.0, 1.0))
def test_a_quantile_lies_in_the_bin_of_the_exact_one(drawn, probability):
    found = distributions.quantiles(histogram(drawn), (probability,))[0, 0]
    exact = np.quantile(drawn, probability, method="inverted_cdf")
    bins = VALUES.ids(np.array([exact], dtype=np.float32))[0]
    slack = 1e-9 * (1 + abs(found))
    assert VALUES.lower[bins] - slack <= found <= VALUES.upper[bins] + slack


@given(values)
def test_quantiles_rise_with_their_probability(drawn):
    found = distributions.quantiles(histogram(drawn), (0.0, 0.1, 0.5, 0.9, 1.0))[0]
    assert (np.diff(found) >= 0).all()


@given(values, st.integers(2, 50))
def test_cells_that_cover_everything_hold_every_element(drawn, cells):
    edges = np.linspace(-2e4, 2e4, cells + 1)
    moved = distributions.rebinned(histogram(drawn), edges)
    assert moved.sum() == pytest.approx(drawn.size)
    assert (moved >= 0).all()


def test_a_bin_cut_by_an_edge_is_shared_in_proportion():
    between = histogram(np.array([1.01]))
    lower, upper = (side[between[0].argmax()] for side in (VALUES.lower, VALUES.upper))
    cut = lower + 0.25 * (upper - lower)
    np.testing.assert_allclose(distributions.rebinned(between, np.array([lower, cut, upper])), [[0.25, 0.75]])


@pytest.mark.parametrize(("edges", "expected"), [([-1.0, 0.0, 1.0], [0, 3]), ([-1.0, 0.0], [3]), ([0.0, 1.0], [3])])
def test_zeros_belong_to_the_cell_that_starts_at_zero_or_else_ends_there(edges, expected):
    np.testing.assert_array_equal(distributions.rebinned(histogram(np.zeros(3)), np.array(edges)), [expected])


def one_by_one(counts, probabilities):
    """Quantiles of each row by walking its bins: the value at which so many elements lie below."""
    found = np.full((len(counts), len(probabilities)), np.nan)
    for row, histogram in enumerate(counts[:, 1 : VALUES.nan - 1]):
        held = np.flatnonzero(histogram)
        for at, probability in enumerate(probabilities):
            rank, below = probability * histogram.sum(), 0.0
            for bin_ in held:
                if below + histogram[bin_] >= rank or bin_ == held[-1]:
                    lower, upper = VALUES.lower[bin_ + 1], VALUES.upper[bin_ + 1]
                    found[row, at] = lower + (rank - below) / histogram[bin_] * (upper - lower)
                    break
                below += histogram[bin_]
    return found


def test_quantiles_of_many_rows_are_those_of_each():
    rng = np.random.default_rng(5)
    bins = np.arange(2, VALUES.nan - 2)  # without overflow, which has no upper edge to go to
    counts = np.zeros((30, VALUES.size))
    for row in counts[1:]:  # the first row is empty
        first, last = np.sort(rng.choice(bins, size=2, replace=False))
        row[first : last + 1] = rng.integers(0, 30, size=last + 1 - first) * (rng.random(last + 1 - first) < 0.3)
    counts[2] = 0
    counts[2, VALUES.zero] = 7
    probabilities = (0.0, 0.01, 0.25, 0.5, 0.99, 1.0)
    found = distributions.quantiles(counts, probabilities)
    np.testing.assert_allclose(found, one_by_one(counts, probabilities), rtol=1e-12, atol=1e-12)


def test_infinite_and_nan_elements_are_in_no_cell_and_no_quantile():
    counts = histogram(np.array([np.nan, np.inf, -np.inf, 2.0]))
    assert distributions.rebinned(counts, np.array([-1e5, 1e5])).sum() == 1.0
    assert 2.0 <= distributions.quantiles(counts, (0.5,))[0, 0] <= 2.25


def test_a_row_without_finite_elements_has_no_quantile():
    assert np.isnan(distributions.quantiles(histogram(np.array([np.nan])), (0.5,))).all()


@given(st.floats(1e-6, 1e3), st.floats(-1e6, 1e6))
def test_the_display_axis_can_be_walked_both_ways(within, value):
    axis = distributions.DisplayAxis(-1e6, 1e6, within)
    assert axis.backward(axis.forward(np.array([value])))[0] == pytest.approx(value, rel=1e-9, abs=1e-9 * within)


@given(st.lists(st.tuples(st.floats(-1e5, 1e5), st.floats(0.0, 1e5)), min_size=1, max_size=8))
def test_the_display_axis_holds_every_steps_range(ranges):
    quantile = np.array([[low, low, low + span / 2, low + span, low + span] for low, span in ranges])
    axis = distributions.display_axis(quantile)
    slack = 1e-9 * max(abs(axis.low), abs(axis.high))
    assert axis.low <= quantile.min() + slack
    assert axis.high >= quantile.max() - slack
    assert (np.diff(axis.edges(40)) > 0).all()


def test_an_axis_over_two_decades_of_scale_is_logarithmic():
    assert distributions.display_axis(np.array([[-1.0, 0, 0, 0, 1.0], [-99.0, 0, 0, 0, 99.0]])).scale == "linear"
    assert distributions.display_axis(np.array([[-1.0, 0, 0, 0, 1.0], [-101.0, 0, 0, 0, 101.0]])).scale == "symlog"


@pytest.fixture(scope="module")
def chain(make_recording):
    """conv -> act, whose input stands under conv; the last of three steps has no histogram."""
    layers = [
        Layer("conv", "Conv2d", 0, 1, 0, 2),
        Layer("act", "ReLU", 1, 1, 0, 2, activation="relu", preactivation_of="conv"),
    ]
    rng = np.random.default_rng(0)
    z = [rng.normal(0, 1, (8, 2, 5)).astype(np.float32) for _ in range(3)]
    z[1][0, 0, :3] = [np.nan, np.inf, 0.0]
    steps = {10 * n: {"conv": {"activation": x}, "act": {"activation": np.maximum(x, 0)}} for n, x in enumerate(z)}
    return make_recording(steps, layers=layers, histogram_steps=[0, 10]), z


def test_a_river_recounts_the_raw_tensor(chain):
    recording, z = chain
    river = distributions.river(recording, layer="conv")
    assert river["step"].values.tolist() == [0, 10]
    finite = z[1][np.isfinite(z[1])]
    assert river["finite"].values.tolist() == [80, 78]
    assert (river["nan"].values[1], river["infinite"].values[1], river["zero"].values[1]) == (1, 1, 1)
    inside = ((finite > river["lower"].values[0]) & (finite < river["upper"].values[-1])).sum()
    assert river["count"].sum("cell").values[1] == pytest.approx(inside, abs=2)
    total = river["count"].sum("cell") + river["below"] + river["above"]
    np.testing.assert_allclose(total.values, [80, 78])
    assert river["quantile"].sel(probability=0.5).values[0] == pytest.approx(np.median(z[0]), abs=0.13)


def test_the_input_of_a_nonlinearity_is_read_under_its_producer(chain):
    recording, _ = chain
    of_act, of_conv = (
        distributions.river(recording, layer=layer, signal=signal)
        for layer, signal in (("act", "preactivation"), ("conv", "activation"))
    )
    np.testing.assert_array_equal(of_act["count"].values, of_conv["count"].values)
    assert of_act.attrs["layer"] == "act"


def test_a_layer_that_was_never_recorded_has_no_step(chain):
    recording, _ = chain
    assert distributions.river(recording, layer="conv", signal="preactivation").sizes["step"] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer": "nope"}, "layer 'nope': not in the histograms; recorded there: conv, act"),
        (
            {"layer": "conv", "signal": "weights"},
            "value_signal 'weights': .* recorded there: input",
        ),
        ({"layer": "conv", "stream": "evaluation"}, "no group 'evaluation/histograms'"),
    ],
)
def test_what_is_not_there_is_named_with_what_is(chain, options, message):
    with pytest.raises(SignalNotRecorded, match=message):
        distributions.river(chain[0], **options)


def test_fewer_than_two_cells_are_refused(chain):
    with pytest.raises(InvalidArgumentError, match="cells=1: expected at least 2"):
        distributions.river(chain[0], layer="conv", cells=1)
