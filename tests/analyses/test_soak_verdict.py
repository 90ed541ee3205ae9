"""The verdict of a soak on series made here: what is planted is found, what is flat passes."""

import numpy as np
import pytest

from common.soak_verdict import Series, verdict

MINUTES = np.arange(0, 30, 1 / 6)
SLOPE, GROWTH, HANDLES, STEP_TIME = range(4)


def series(*, minutes=MINUTES, resident=None, handles=None, slower=None):
    """A healthy soak of noisy but flat memory, with faults added."""
    generator = np.random.default_rng(0)
    count = len(minutes)
    memory = 800 + generator.normal(scale=3, size=count) + (0 if resident is None else resident)
    typical = (20 + generator.normal(scale=0.5, size=count)) * (1 if slower is None else slower)
    return Series(
        minutes,
        memory,
        np.full(count, 9) + (0 if handles is None else handles),
        np.stack([typical - 2, typical, typical + 2], axis=1),
    )


def failed(soak):
    return [index for index, check in enumerate(verdict(soak)) if not check.passed]


def after(share):
    """Where the series is past a share of its time."""
    return MINUTES / MINUTES[-1] >= share


def test_a_flat_series_passes():
    assert failed(series()) == []


def test_warm_up_before_a_sixth_of_the_time_is_no_fault():
    early = ~after(1 / 7)
    warm_up = np.where(early, -300.0, 0.0)
    assert failed(series(resident=warm_up, handles=np.where(early, -4, 0), slower=np.where(early, 3.0, 1.0))) == []


def test_a_leak_of_two_mb_a_minute_is_found_in_the_slope_with_its_size():
    leaking = series(resident=2.0 * MINUTES)
    assert failed(leaking)[0] == SLOPE
    assert verdict(leaking)[SLOPE].found == pytest.approx(2.0, abs=0.1)


def test_a_leak_of_half_a_mb_a_minute_is_within_the_limits():
    slow = series(resident=0.5 * MINUTES)
    assert failed(slow) == []
    assert verdict(slow)[SLOPE].found == pytest.approx(0.5, abs=0.1)


def test_a_jump_that_stays_is_found_by_its_size_where_the_slope_is_flat():
    assert failed(series(resident=np.where(after(0.25), 80.0, 0.0))) == [GROWTH]


def test_one_spike_of_memory_moves_neither_slope_nor_growth():
    spike = np.zeros(len(MINUTES))
    spike[[90, -2]] = 500
    assert failed(series(resident=spike)) == []


@pytest.mark.parametrize("at", [0.4, 0.7, 0.9])
def test_one_handle_left_open_is_found(at):
    assert failed(series(handles=after(at).astype(int))) == [HANDLES]


@pytest.mark.parametrize("more", [-1, 1])
def test_a_handle_closed_or_opened_for_a_moment_is_no_fault(more):
    assert failed(series(handles=more * (np.arange(len(MINUTES)) % 40 == 20).astype(int))) == []


def test_steps_that_slow_down_beyond_the_spread_are_found():
    assert failed(series(slower=np.where(after(0.6), 1.2, 1.0))) == [STEP_TIME]


def test_steps_that_slow_down_within_the_spread_or_get_faster_pass():
    assert failed(series(slower=np.where(after(0.6), 1.03, 1.0))) == []
    assert failed(series(slower=np.where(after(0.6), 0.5, 1.0))) == []


def test_too_few_samples_are_refused():
    with pytest.raises(ValueError, match="at least 12 samples"):
        verdict(series(minutes=np.arange(11.0)))
