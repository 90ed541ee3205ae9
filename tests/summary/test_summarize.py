"""Both ways to a summary, by fused kernels and by torch operations, against its definition."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from covshift.exceptions import InvalidArgumentError
from covshift.grid import GRADIENTS, VALUES, Grid
from covshift.summary import Summary, summarize
from covshift.summary.cpu import summarize_by_kernel
from covshift.summary.device import bin_ids, summarize_by_torch

BITS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float64: torch.int64}
WHOLE = {"unit_axis": None, "example_axis": None, "grid": VALUES, "groups": 1, "units": True}

both_ways = pytest.mark.parametrize("way", [summarize_by_kernel, summarize_by_torch], ids=["kernel", "torch"])
every_dtype = pytest.mark.parametrize("dtype", list(BITS), ids=str)


@st.composite
def tensors(draw, dtype):
    """Small tensors with zeros, infinities, NaN and subnormals far more often than chance has them."""
    shape = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    info, size = torch.finfo(dtype), math.prod(shape)
    special = [0.0, -0.0, math.inf, -math.inf, math.nan, info.tiny, info.tiny / 2, -info.tiny / 4, 1.0, -1.0, 3.0]
    # Fourth powers beyond 2**250 overflow: test_powers_that_overflow_are_not_finite is about those.
    number = st.floats(-(2.0**250), 2.0**250) if dtype == torch.float64 else st.floats(width=16, allow_nan=False)
    flat = draw(st.lists(st.sampled_from(special) | number, min_size=size, max_size=size))
    return torch.tensor(flat, dtype=torch.float64).to(dtype).reshape(shape)


@st.composite
def choices(draw, ndim):
    """Arguments that fit a tensor of ``ndim`` axes."""
    axes = range(-ndim, ndim)
    unit = draw(st.sampled_from([None, *axes]))
    example = draw(st.sampled_from([None, *(axis for axis in axes if unit is None or (axis - unit) % ndim)]))
    grid = draw(st.sampled_from([None, VALUES, GRADIENTS, Grid(6, -3, 2)]))
    return {"unit_axis": unit, "example_axis": example, "grid": grid, "groups": draw(st.integers(1, 5))}


@both_ways
@every_dtype
@examples(deadline=None)
@given(data=st.data())
def test_every_number_of_a_summary_is_what_its_definition_says(way, dtype, check_summary, data):
    tensor = data.draw(tensors(dtype))
    chosen = data.draw(choices(tensor.ndim))
    check_summary(way(tensor, **chosen, units=True), tensor, **chosen)


@both_ways
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_every_16_bit_pattern_is_counted_and_binned_as_it_should_be(way, dtype, check_summary):
    tensor = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)[:: 1 if dtype == torch.float16 else 3]
    summary = way(tensor, **WHOLE)
    values = tensor.double().numpy()
    finite = values[np.isfinite(values)]
    assert summary.zero_count == (values == 0).sum()
    assert summary.nan_count == np.isnan(values).sum()
    assert (summary.posinf_count, summary.neginf_count) == (1, 1) or dtype == torch.bfloat16
    assert summary.subnormal_count == ((values != 0) & (np.abs(values) < torch.finfo(dtype).tiny)).sum()
    assert (summary.min, summary.max) == (finite.min(), finite.max())
    expected = np.bincount(VALUES.ids(tensor.float().numpy()), minlength=VALUES.size)
    np.testing.assert_array_equal(summary.histogram.counts[0], expected)
    assert summary.moments.m2 == pytest.approx(math.fsum((finite - math.fsum(finite) / len(finite)) ** 2), rel=1e-12)


@both_ways
@every_dtype
@pytest.mark.parametrize("grid", [VALUES, GRADIENTS], ids=["values", "gradients"])
def test_random_bits_fall_into_the_bins_of_the_grid(way, dtype, grid):
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(-(2**63), 2**63 - 1, (3000,), generator=generator)
    shift = 64 - torch.iinfo(BITS[dtype]).bits
    tensor = (bits >> shift).to(BITS[dtype]).view(dtype)
    exact = tensor.numpy() if dtype == torch.float64 else tensor.float().numpy()
    counts = way(tensor, **WHOLE | {"grid": grid}).histogram.counts[0]
    np.testing.assert_array_equal(counts, np.bincount(grid.ids(exact), minlength=grid.size))
    np.testing.assert_array_equal(bin_ids(tensor, grid).numpy(), grid.ids(exact))


@both_ways
@every_dtype
def test_minus_zero_is_zero_and_neither_negative_nor_the_minimum(way, dtype):
    summary = way(torch.tensor([-0.0, 0.0, 2.0], dtype=dtype), **WHOLE)
    assert (summary.zero_count, summary.negative_count, summary.positive_count) == (2, 0, 1)
    assert math.copysign(1.0, summary.min) == 1.0
    assert summary.histogram.counts[0, VALUES.zero] == 2


@both_ways
@every_dtype
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_tensor_without_finite_elements_has_no_moments_and_no_extremes(way, dtype, value):
    tensor = torch.full((3, 5), value, dtype=dtype)
    summary = way(tensor, **WHOLE | {"unit_axis": 1, "example_axis": 0})
    assert (summary.moments.count, summary.moments.mean, summary.moments.m2, summary.sum) == (0, 0.0, 0.0, 0.0)
    assert (summary.min, summary.max) == (math.inf, -math.inf)
    assert summary.units.finite_count.tolist() == [0] * 5
    assert summary.units.min.tolist() == [math.inf] * 5
    assert summary.units.active_examples.tolist() == [3] * 5
    assert summary.units.positive_count.tolist() == [3 * (value == math.inf)] * 5


@both_ways
def test_powers_that_overflow_are_not_finite_while_counts_and_extremes_stay_right(way):
    summary = way(torch.tensor([1e200, -1e200, 3.0], dtype=torch.float64), **WHOLE)
    assert (summary.count, summary.negative_count, summary.min, summary.max) == (3, 1, -1e200, 1e200)
    assert not math.isfinite(summary.moments.m2)
    assert not math.isfinite(summary.moments.m4)


@both_ways
@every_dtype
@pytest.mark.parametrize("flush", [False, True])
def test_subnormals_are_told_by_their_bits_even_where_arithmetic_flushes_them(way, dtype, flush):
    tensor = torch.tensor([torch.finfo(dtype).tiny / 4] * 3 + [0.0, 1.0], dtype=dtype)
    if torch.set_flush_denormal(flush) != flush and flush:
        pytest.skip("this machine cannot flush subnormals")
    try:
        summary = way(tensor, **WHOLE | {"unit_axis": 0})
    finally:
        torch.set_flush_denormal(False)
    assert (summary.zero_count, summary.subnormal_count, summary.positive_count) == (1, 3, 4)
    assert summary.histogram.counts[0, VALUES.zero] == 1
    assert summary.units.zero_count.tolist() == [0, 0, 0, 1, 0]


@both_ways
def test_a_gradient_that_underflowed_to_float16_subnormals_keeps_its_size(way):
    summary = way(torch.full((7,), 2.0**-24, dtype=torch.float16), **WHOLE | {"grid": GRADIENTS})
    assert (summary.moments.mean, summary.max, summary.subnormal_count) == (2.0**-24, 2.0**-24, 7)
    assert summary.histogram.counts[0, int(GRADIENTS.ids(np.float32(2.0**-24)))] == 7


def test_an_empty_tensor_is_the_empty_summary():
    assert summarize(torch.empty(0, 5), unit_axis=1) == Summary()
    assert summarize_by_torch(torch.empty(3, 0), **WHOLE) == Summary()


def test_a_tensor_without_axes_is_one_example():
    summary = summarize(torch.tensor(-2.5), unit_axis=None)
    assert (summary.count, summary.example_count, summary.sum) == (1, 1, -2.5)
    assert summary.histogram.counts[0].sum() == 1


@both_ways
def test_without_an_example_axis_all_is_in_group_zero_and_no_example_is_counted(way, check_summary):
    tensor = torch.arange(24.0).reshape(2, 3, 4)
    chosen = {"unit_axis": 1, "example_axis": None, "grid": VALUES, "groups": 4}
    summary = way(tensor, **chosen, units=True)
    check_summary(summary, tensor, **chosen)
    assert summary.histogram.counts.sum(1).tolist() == [24, 0, 0, 0]


@both_ways
def test_what_is_not_asked_for_is_left_out(way):
    tensor = torch.ones(2, 3)
    assert way(tensor, **WHOLE | {"grid": None}).histogram is None
    assert way(tensor, **WHOLE | {"unit_axis": 1, "units": False}).units is None


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (lambda: torch.ones(3, dtype=torch.int64), "torch.strided, torch.int64"),
        (lambda: torch.ones(3, dtype=torch.complex64), "torch.complex64"),
        (lambda: torch.ones(3, 3).to_sparse(), "torch.sparse_coo, torch.float32"),
        (lambda: torch.ones(3, device="meta"), "meta, torch.float32"),
        (lambda: torch.nested.as_nested_tensor([torch.ones(2), torch.ones(3)]), "nested, torch.float32"),
    ],
    ids=["integer", "complex", "sparse", "meta", "nested"],
)
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_a_tensor_without_strided_floating_point_values_is_refused(make, found):
    tensor = make()
    with pytest.raises(InvalidArgumentError, match=f"{found}: expected a strided tensor of float32, float64"):
        summarize(tensor)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"unit_axis": 2}, "unit_axis=2: the tensor has 2 axes; expected an axis or None"),
        ({"example_axis": -3}, "example_axis=-3: the tensor has 2 axes"),
        ({"unit_axis": -2, "example_axis": 0}, "unit_axis=-2 and example_axis=0 are the same axis"),
        ({"groups": 0}, "groups=0: expected at least 1"),
    ],
)
def test_bad_arguments_are_refused_by_name(arguments, message):
    with pytest.raises(InvalidArgumentError, match=message):
        summarize(torch.ones(2, 3), **arguments)
