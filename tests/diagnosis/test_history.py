"""What a finding says of steps is what the record of those steps says: no final value is told of an earlier step."""

import re

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from covshift.diagnosis import diagnose
from covshift.diagnosis.gradient_rules import gradient_arrives
from covshift.diagnosis.parameter_rules import update_ratio
from covshift.diagnosis.thresholds import THRESHOLDS
from covshift.diagnosis.wording import number

SIZES = (1e-3, 5e-5, 5e-7, 0.5, 0.0)


def steps_in(history):
    """Steps by the words before them."""
    return {words.strip(" ,"): int(step) for words, step in re.findall(r"(.*?) ?(?:since|at) step (\d+)", history)}


def recorded(make_recording, ratios):
    measured = {"weight_norm": 2.0, "gradient_norm": 1.0, "gradient_measured": 1}
    rows = {10 * at: {"fc.weight": measured | {"update_norm": 2.0 * ratio}} for at, ratio in enumerate(ratios)}
    return make_recording(parameters=rows)


def is_jump(ratios, at):
    """Whether a ratio exceeds a tenth, and ten times the median of up to twenty before."""
    return ratios[at] > 0.1 and ratios[at] >= 10 * np.median(ratios[max(at - 20, 0) : at])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from(SIZES), st.integers(1, 8)), min_size=1, max_size=5))
def test_steps_of_an_update_ratio_are_those_at_which_the_recorded_ratio_is_so(make_recording, stretches):
    ratios = np.array([size for size, times in stretches for _ in range(times)])
    (found,) = update_ratio(recorded(make_recording, ratios))
    if found.verdict in ("ok", "not measured"):
        assert (found.history, found.reached_step) == ("", None)
        return
    assert found.reason.endswith(f"; {found.history}")
    said = steps_in(found.history)
    begun = next(iter(said.values())) // 10
    if found.threshold == THRESHOLDS["update_jump"]:
        jumps = [at for at in range(3, len(ratios)) if at >= len(ratios) / 10 and is_jump(ratios, at)]
        assert begun == jumps[0]
        assert found.value == max(ratios[at] for at in jumps)
        return
    outside = (ratios < 1e-4) | (ratios > 1e-2)
    assert outside[begun]
    assert outside[begun:].mean() > 0.5
    if found.reached_step is not None:
        held = found.reached_step // 10
        assert (ratios[held:] == found.value).all()
        assert not held or ratios[held - 1] != found.value
    for words, step in said.items():
        if words.startswith("exactly 0"):
            assert (ratios[step // 10 :] == 0).all()
        elif not words:
            assert (ratios[step // 10 :] == found.value).all()
        else:
            assert words in ("mostly outside 0.0001 to 0.01", number(found.value))


def test_a_fading_update_is_not_said_to_be_nothing_from_the_start(make_recording):
    (found,) = update_ratio(recorded(make_recording, [1e-3] * 3 + [9e-5] * 5 + [5e-6] * 4 + [0.0] * 8))
    assert found.value == 0
    assert found.reason == (
        "'fc': 'fc.weight' did not move in the last 5 records though it had a gradient; mostly outside 0.0001 to 0.01 "
        "since step 30, exactly 0 since step 120"
    )


def test_a_weight_that_moved_in_the_window_is_not_said_to_have_stood_still_in_all_of_it(make_recording):
    (found,) = update_ratio(recorded(make_recording, [0.0] * 17 + [1e-3, 0.0, 0.0]))
    assert "did not move in 4 of the last 5 records" in found.reason
    assert found.reached_step is None


def test_units_that_stop_one_by_one_are_not_said_to_have_stopped_at_once(planted):
    def one_by_one(step, tensors):
        alive = np.array([step < 10, step < 20, step < 30, step < 50])
        tensors["conv3"]["activation_grad"] = tensors["conv3"]["activation_grad"] * alive

    recording = planted(one_by_one)
    diagnosis = diagnose(recording)
    found = next(f for f in diagnosis.findings if (f.check, f.layer) == ("gradient zeros", "conv3"))
    assert found.value == 1.0
    assert found.history == "above 10 % since step 10, 100 % since step 50"
    assert f"('conv3' {found.history})" in diagnosis.sentence
    rows = recording["layers"].to_dataset().sel(layer="conv3", signal="activation_grad")
    whole = (rows["zero_count"] == rows["count"]).values
    assert rows["step"].values[whole].tolist() == list(range(50, 140, 10))


def test_a_gradient_that_arrives_now_and_then_is_said_to_be_missing_since_its_last_arrival(planted):
    def flicker(step, tensors):
        if step >= 20 and step != 60:
            for name in ("conv0", "act0"):
                tensors[name]["activation_grad"] = tensors[name]["activation_grad"] * 0

    found = next(one for one in gradient_arrives(planted(flicker)) if one.layer == "conv0")
    assert (found.since_step, found.reached_step) == (20, 70)
    assert found.reason.endswith("; mostly none since step 20, none since step 70")


def test_every_step_of_a_sick_network_is_told_of_what_held_then(planted):
    def fade(step, tensors):
        for index in range(3):
            kept = np.arange(4) >= (step - 20 * index) / 20
            for name in (f"conv{index}", f"act{index}"):
                tensors[name]["activation_grad"] = tensors[name]["activation_grad"] * kept
        tensors["act3"]["activation"] = tensors["act3"]["activation"] * (np.arange(4) >= step / 20)

    recording = planted(fade)
    rows = recording["layers"].to_dataset().sel(signal="activation_grad")
    arrived = (rows["zero_count"] < rows["count"]).transpose("step", "layer")
    seen = 0
    for found in diagnose(recording).findings:
        if found.check == "gradient arrives" and found.verdict in ("watch", "bad"):
            after = arrived.sel(layer=found.layer, step=slice(found.reached_step, None))
            assert not after.values.any()
            seen += 1
    assert seen >= 2
