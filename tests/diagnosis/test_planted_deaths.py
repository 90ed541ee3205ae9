"""Units that die are found with their number, evidence and onset; few examples, or the same again, prove no death."""

import numpy as np
import pytest

from covshift.diagnosis import diagnose
from covshift.diagnosis.causes import by_severity
from covshift.diagnosis.finding import WHOLE_RUN
from covshift.schema import Layer

SINCE = 60


def kill(step, tensors):
    """Three of four units of act3 die at step 60."""
    if step >= SINCE:
        for layer, signal in (("conv3", "activation_grad"), ("act3", "activation")):
            tensors[layer][signal] = tensors[layer][signal] * np.array([1, 0, 0, 0])
        tensors["conv3"]["activation"] = tensors["conv3"]["activation"] - np.array([0, 9, 9, 9])


def test_dead_units_are_found_with_their_number_evidence_and_onset(planted, flagged):
    found = flagged(diagnose(planted(kill)))
    assert set(found) == {("units", "act3"), ("gradient zeros", "conv3")}
    dead = found["units", "act3"]
    assert (dead.verdict, dead.since_step, dead.value) == ("bad", SINCE, 0.75)
    assert dead.reason == (
        "'act3': 3 of 4 units dead: silent in 7,200 examples (firing rate < 8.3e-4 at 95 %); since step 60"
    )
    assert "at the price of" in dead.advice
    starved = found["gradient zeros", "conv3"]
    assert (starved.verdict, starved.since_step) == ("bad", SINCE)
    assert "87 % structural (no derivative in 'act3'), 0 % masked" in starved.reason
    assert "3 of 4 units got none in 7,200 examples" in starved.reason


def test_units_that_fall_silent_one_after_the_other_say_when_the_last_did(planted, of):
    def one_by_one(step, tensors):
        alive = np.array([1, step < SINCE, step < SINCE + 20, step < SINCE + 40])
        tensors["act3"]["activation"] = tensors["act3"]["activation"] * alive

    found = of(diagnose(planted(one_by_one)), "units", "act3")
    assert found.since_step == SINCE
    assert found.reason.endswith("at 95 %); the last fell silent at step 100; since step 60")


def test_a_layer_silenced_at_once_leads_what_follows_and_sends_to_what_feeds_it(planted, of):
    def silence(step, tensors):
        if step >= SINCE:
            tensors["act3"]["activation"] = tensors["act3"]["activation"] * 0
            for index in range(4):
                tensors[f"conv{index}"]["activation_grad"] = tensors[f"conv{index}"]["activation_grad"] * 0
                tensors[f"act{index}"]["activation_grad"] = tensors[f"act{index}"]["activation_grad"] * (index == 3)
        if step >= SINCE - 20:
            tensors["act4"]["activation"] = tensors["act4"]["activation"] * np.array([0, 0, 0, 1])

    diagnosis = diagnose(planted(silence))
    found = of(diagnosis, "units", "act3")
    assert (found.verdict, found.value, found.since_step) == ("bad", 1.0, SINCE)
    assert found.advice.startswith("a layer that falls silent as a whole, and at once, was pushed")
    # act4 was half dead before and explains nothing: neither table leads with it.
    earlier = of(diagnosis, "units", "act4")
    assert (earlier.verdict, earlier.since_step, earlier.explained_by) == ("bad", SINCE - 20, "")
    assert by_severity(diagnosis.findings)[0] == ("bad", found)
    assert "('conv0' since step 60; follows from units in act3)" in diagnosis.sentence


def test_evidence_that_repeats_the_same_examples_makes_no_death(planted, of):
    recording = planted(kill)
    found = of(diagnose(recording, distinct_examples=1000), "units", "act3")
    assert (found.verdict, found.value) == ("watch", 0.75)
    assert "3 of 4 units silent in 1,000 examples" in found.reason
    unknown = of(diagnose(recording, distinct_examples=100), "units", "act3")
    assert unknown.verdict == "not measured"
    assert unknown.advice.startswith(
        "597 examples without firing, which would bound the rate by 0.01 (5,989 by 0.001): "
    )
    assert "units_every=1" in unknown.advice


def test_an_evaluation_pass_settles_which_units_are_dead(planted, healthy_steps, of):
    def silenced(step, tensors):
        tensors["act0"]["activation"] = tensors["act0"]["activation"] * np.array([0, 1, 1, 1])

    tensors = {layer: dict(signals) for layer, signals in healthy_steps[0].items()}
    silenced(0, tensors)
    found = of(diagnose(planted(evaluation={130: tensors})), "units", "act0")
    assert found.verdict == "watch"
    assert (
        found.reason == "'act0': 1 of 4 units dead: silent on all 900 examples of the evaluation pass; since step 130"
    )


def test_an_evaluation_pass_of_few_examples_does_not_overrule_training(
    planted, make_recording, network_layers, healthy_steps, of
):
    few = {
        layer: {name: values[:8] * np.array([0, 1, 1, 1]) for name, values in signals.items()}
        for layer, signals in healthy_steps[0].items()
    }
    recording = planted(evaluation=dict.fromkeys((110, 120, 130), few))
    assert of(diagnose(recording), "units", "act0").reason == "'act0': none of 4 units silent"
    alone = of(diagnose(make_recording({}, layers=network_layers, evaluation={130: few})), "units", "act0")
    assert alone.verdict == "not measured"
    assert "1 of 4 units silent in 8 examples" in alone.reason
    assert alone.advice.endswith(": a larger evaluation pass")


def test_a_unit_just_fallen_silent_does_not_hide_those_long_silent(planted, of):
    def one_more_at_the_end(step, tensors):
        kill(step, tensors)
        tensors["act0"]["activation"] = tensors["act0"]["activation"][:120]
        if step >= SINCE:
            tensors["act0"]["activation"] = tensors["act0"]["activation"] * np.array([0, 1, 1, 1])
        if step == 130:
            tensors["act0"]["activation"] = tensors["act0"]["activation"] * np.array([0, 0, 1, 1])

    found = of(diagnose(planted(one_more_at_the_end)), "units", "act0")
    assert (found.verdict, found.value, found.since_step) == ("watch", 0.25, SINCE)
    assert found.reason == (
        "'act0': 1 of 4 units silent in 960 examples (firing rate < 0.0062 at 95 %); 1 more silent, in too few "
        "examples to tell; since step 60"
    )


def test_a_death_that_an_evaluation_pass_proves_is_dated_by_training(planted, healthy_steps, of):
    tensors = {layer: dict(signals) for layer, signals in healthy_steps[0].items()}
    kill(SINCE, tensors)
    found = of(diagnose(planted(kill, evaluation={130: tensors})), "units", "act3")
    assert (found.verdict, found.since_step) == ("bad", SINCE)
    assert "3 of 4 units dead: silent on all 900 examples" in found.reason


def test_an_evaluation_pass_before_the_last_window_settles_nothing(planted, healthy_steps, of):
    silent = {layer: {"activation": signals["activation"] * 0} for layer, signals in healthy_steps[0].items()}
    assert of(diagnose(planted(evaluation={10: silent})), "units", "act0").verdict == "ok"


def test_a_few_dead_units_are_stated_and_not_flagged(make_recording, of):
    rng = np.random.default_rng(0)
    output = np.maximum(rng.normal(size=(9000, 40)), 0)
    output[:, 7] = 0
    layers = [Layer("act", "ReLU", 0, 1, 0, 40, activation="ReLU")]
    steps = {step: {"act": {"activation": output}} for step in range(3)}
    diagnosis = diagnose(make_recording(steps, layers=layers))
    found = of(diagnosis, "units", "act")
    assert (found.verdict, found.since_step, found.advice) == ("ok", None, "")
    assert found.reason.startswith("'act': 1 of 40 units dead: silent in 27,000 examples")
    assert "no layer has more than 2.5 % dead units" in diagnosis.sentence


def test_silent_units_that_may_yet_be_dead_are_not_said_to_be_none(make_recording, of):
    output = np.maximum(np.random.default_rng(0).normal(size=(60, 40)), 0)
    output[:, 7] = 0
    layers = [Layer("act", "ReLU", 0, 1, 0, 40, activation="ReLU")]
    diagnosis = diagnose(make_recording({0: {"act": {"activation": output}}}, layers=layers))
    found = of(diagnosis, "units", "act")
    assert (found.verdict, found.value, found.threshold.quantity) == (
        "ok",
        0.025,
        "share of silent units, dead ones included",
    )
    assert diagnosis.sentence.startswith("No fault in what was measured: no layer has more than 2.5 % silent units")


def test_units_stuck_at_a_value_are_counted_among_units(make_recording, of):
    rng = np.random.default_rng(4)
    z = rng.normal(size=(6, 200, 4)) + np.array([0, 100, 100, 100])
    layers = [Layer("act", "ReLU6", 0, 1, 0, 4, activation="ReLU6")]
    steps = {10 * i: {"act": {"activation": np.clip(v, 0, 6)}} for i, v in enumerate(z)}
    found = of(diagnose(make_recording(steps, layers=layers)), "units", "act")
    assert (found.verdict, found.value) == ("bad", 0.75)
    assert "3 stuck at an output that is not 0" in found.reason
    assert found.threshold.quantity == "share of units whose output is constant and not 0"
    assert found.advice.startswith("a smaller initialisation or learning rate keeps z away from the plateaus")


def test_constant_outputs_behind_a_layer_that_died_are_its_consequence_and_send_a_relu_to_its_input(planted, of):
    def silence(step, tensors):
        if step >= SINCE:
            tensors["act2"]["activation"] = tensors["act2"]["activation"] * 0
            for name in ("conv3", "conv4"):
                tensors[name]["activation"] = tensors[name]["activation"] * 0 + np.array([-1.0, 0.5, 1.0, 2.0])
            for name in ("act3", "act4"):
                tensors[name]["activation"] = tensors[name]["activation"] * 0 + np.array([0.0, 0.5, 1.0, 2.0])

    diagnosis = diagnose(planted(silence))
    for layer in ("act3", "act4"):
        found = of(diagnosis, "units", layer)
        assert (found.verdict, found.value, found.since_step) == ("bad", 0.75, None)
        assert found.explained_by == "units in act2"
        assert found.advice.startswith("its activation levels off at no output but 0, so its input z does not vary")
    assert [one.layer for one in diagnosis.causes if one.check == "units"] == ["act2"]


def test_units_dead_from_the_first_record_on_send_to_the_bias_and_not_to_the_learning_rate(planted, of):
    def born(step, tensors):
        tensors["act3"]["activation"] = tensors["act3"]["activation"] * np.array([0, 0, 1, 1])

    found = of(diagnose(planted(born)), "units", "act3")
    assert (found.value, found.since_step) == (0.5, 0)
    assert found.advice.startswith(
        "units that are silent from the first record on did not die of training: look at the"
    )
    assert "learning rate" not in found.advice
    assert "a lower learning rate prevents further deaths" in of(diagnose(planted(kill)), "units", "act3").advice


def test_one_unit_has_its_verb_in_the_singular(planted, of):
    def one(step, tensors):
        tensors["act3"]["activation"] = tensors["act3"]["activation"] + np.array([0, 0, 0, 9])

    assert of(diagnose(planted(one)), "units", "act3").reason == "'act3': none of 4 units silent; 1 is always on"


@pytest.mark.parametrize(
    ("lacking", "reason"),
    [
        ({"unit_count": 0}, "which axis of 'act1' counts its units is not known (nor of 1 more)"),
        ({"unit_axis": 1, "unit_count": 0}, "which axis of 'act1' counts the examples is not known (nor of 1 more)"),
        ({"unit_axis": 1, "example_axis": 0, "unit_count": 0}, "of 2 nonlinearity layers"),
    ],
)
def test_nonlinearities_without_units_are_not_said_to_be_none(make_recording, of, lacking, reason):
    names = ("act1", "act2")
    layers = [Layer(name, "ReLU", depth, activation="ReLU", **lacking) for depth, name in enumerate(names)]
    steps = {step: {name: {"activation": np.ones((8, 4))} for name in names} for step in range(0, 100, 10)}
    finding = of(diagnose(make_recording(steps, layers=layers)), "units", WHOLE_RUN)
    assert finding.verdict == "not measured"
    assert finding.reason.startswith("whole run: no units were recorded of 2 nonlinearity layers")
    assert finding.reason.endswith(reason)
    assert ("unit_axis={'act1': axis}" in finding.advice) == ("which axis" in reason)


def test_a_network_without_a_nonlinearity_is_told_what_would_be_needed_for_units(make_recording, of):
    layers = [Layer("fc", "Linear", 0, 1, 0, 4)]
    recording = make_recording({step: {"fc": {"activation": np.ones((8, 4))}} for step in (0, 10)}, layers=layers)
    finding = of(diagnose(recording), "units", WHOLE_RUN)
    assert finding.reason == "whole run: no layer is a nonlinearity"
    assert finding.advice.startswith("activation modules, or functions with functional=True")


def test_units_are_judged_beside_a_nonlinearity_whose_examples_are_not_known(make_recording, of):
    known = Layer("act2", "ReLU", 1, 1, 0, 4, activation="ReLU")
    unknown = Layer("act1", "ReLU", 0, unit_count=4, activation="ReLU")
    alive = np.abs(np.random.default_rng(0).normal(size=(400, 4))) + 0.1
    alive[:, 1] = 0.0
    steps = {step: {name: {"activation": alive} for name in ("act1", "act2")} for step in range(0, 100, 10)}
    finding = of(diagnose(make_recording(steps, layers=[unknown, known])), "units", "act2")
    assert finding.reason.startswith("'act2': 1 of 4 units silent in 4,000 examples")
    assert "3 are always on" in finding.reason
