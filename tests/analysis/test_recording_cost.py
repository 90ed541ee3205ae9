"""What recording cost, from the run's own clock."""

import numpy as np
import pytest

from covshift.analysis.recording_cost import recording_cost
from covshift.exceptions import SignalNotRecorded

TENSOR = {"a": {"activation": np.ones((2, 2), np.float32)}}


def run(make_recording, *, steps=100, every=10, plain=0.1, recorded=0.15):
    recorded_steps = range(0, steps, every)
    took = np.where(np.arange(steps) % every == 0, recorded, plain)
    times = 1.7e9 + np.cumsum(took)
    scalars = {step: {"wall_time": times[step]} for step in range(steps)}
    return make_recording(dict.fromkeys(recorded_steps, TENSOR), scalars=scalars)


def test_medians_of_both_kinds_of_steps_and_the_share_added(make_recording):
    cost = recording_cost(run(make_recording))
    assert float(cost["recorded_seconds"]) == pytest.approx(0.15, rel=1e-4)
    assert float(cost["plain_seconds"]) == pytest.approx(0.1, rel=1e-4)
    assert int(cost["steps"]) == 100
    assert int(cost["recorded"]) == 9
    assert float(cost["share"]) == pytest.approx(9 / 99 * 0.5, rel=1e-3)


def test_too_few_steps_of_a_kind_are_not_measured(make_recording):
    cost = recording_cost(run(make_recording, every=1))
    assert np.isnan(cost["plain_seconds"])
    assert np.isnan(cost["share"])


def test_no_clock_is_named(make_recording):
    with pytest.raises(SignalNotRecorded, match="scalars"):
        recording_cost(make_recording({0: TENSOR}))
