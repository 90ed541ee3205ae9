"""Laws of the line of floats and of traces along it."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from covshift.linked.sweep import FLOATS, LIVE, ZERO, FloatLine, Trace, derivative

every_dtype = pytest.mark.parametrize("dtype", FLOATS)
finite = st.floats(-60_000, 60_000, width=16)


@settings(deadline=None, max_examples=40)
@given(values=st.lists(finite, min_size=2, max_size=20))
@every_dtype
def test_ranks_are_ordered_as_the_values_and_lead_back_to_them(dtype, values):
    line, tensor = FloatLine(dtype), torch.tensor(values, dtype=dtype)
    ranks = line.ranks(tensor)
    assert torch.equal(line.values(ranks), tensor)
    assert torch.equal(line.values(ranks).signbit(), tensor.signbit())
    assert torch.equal(tensor[ranks.argsort()], tensor.sort().values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [-3.0, -1e-40, 1e-40, 1.0, 1e30])
def test_the_next_float_has_the_next_rank(dtype, value):
    z = torch.tensor([value], dtype=dtype)
    up = torch.nextafter(z, torch.tensor(math.inf, dtype=dtype))
    assert FloatLine(dtype).ranks(up) == FloatLine(dtype).ranks(z) + 1


@every_dtype
def test_the_line_ends_at_the_largest_finite_values_and_has_two_zeros_in_the_middle(dtype):
    line = FloatLine(dtype)
    ends = line.values(torch.tensor([-line.last - 1, -1, 0, line.last])).tolist()
    assert ends == [-torch.finfo(dtype).max, 0, 0, torch.finfo(dtype).max]
    assert math.copysign(1, ends[1]) == -1
    assert line.size == 2 * line.last + 2


@every_dtype
def test_sweeps_are_ascending_symmetric_and_reach_both_ends(dtype):
    line = FloatLine(dtype)
    sweeps = list(line.sweeps())
    assert all((sweep.diff() >= 0).all() and torch.equal(sweep, ~sweep.flip(0)) for sweep in sweeps)
    assert sweeps[0][-1] == line.last
    assert line.is_short == (len(sweeps[0]) == line.size)


def test_round_numbers_are_part_of_a_sampled_sweep():
    line = FloatLine(torch.float32)
    visited = list(line.sweeps())[-1]
    wanted = torch.tensor([-1.5, 6.0, 0.0, -0.0, 1e-7, 65504.0, -1.2784645]).half().float()
    assert torch.isin(line.ranks(wanted), visited).all()


def test_a_derivative_is_zero_where_the_output_does_not_depend_on_z():
    z = torch.tensor([1.0, 2.0])
    assert derivative(torch.zeros_like, z).tolist() == [0, 0]
    weight = torch.ones(2, requires_grad=True)
    assert derivative(lambda _: weight * 1, z).tolist() == [0, 0]


def test_an_in_place_member_shows_the_derivative_it_has_in_training():
    z = torch.full((64,), -17.4)
    assert (derivative(torch.nn.functional.selu, z) > 0).all()
    assert (derivative(lambda t: torch.nn.functional.selu(t, inplace=True), z) == 0).all()
    assert (z == -17.4).all()


def trace_of(states):
    state = torch.tensor(states, dtype=torch.int8)
    signs = torch.where(state == LIVE, 1, 0).to(torch.int8)[:, None, None]
    return Trace(torch.arange(len(states)), state, signs, 1.0, len(states))


@settings(deadline=None, max_examples=40)
@given(states=st.lists(st.sampled_from([LIVE, ZERO]), min_size=1, max_size=40), cut=st.integers(0, 40))
def test_cutting_thinning_and_joining_lose_neither_spans_nor_share(states, cut):
    parts = [part for part in (states[:cut], states[cut:]) if part]
    traces = [trace_of(part) for part in parts]
    if len(traces) == 2:
        traces[1] = Trace(traces[1].ranks + cut, traces[1].state, traces[1].signs, 1.0, len(parts[1]))
    joined = Trace.joined([trace.thinned() for trace in traces])
    inside = [rank for first, last, _ in joined.spans(ZERO, gap=2) for rank in range(first, last + 1)]
    assert inside == [rank for rank, state in enumerate(states) if state == ZERO]
    assert joined.share(ZERO) == pytest.approx(states.count(ZERO) / len(states))


def test_spans_closer_than_the_gap_are_one_and_no_longer_solid():
    states = [ZERO, ZERO, LIVE, ZERO, LIVE, LIVE, LIVE, ZERO]
    assert trace_of(states).spans(ZERO, gap=3) == [(0, 3, False), (7, 7, True)]
    assert trace_of(states).spans(ZERO, gap=2) == [(0, 1, True), (3, 3, True), (7, 7, True)]
