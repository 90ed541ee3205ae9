"""NaN and infinity: any activation is bad, isolated gradients are what loss scaling makes."""

import numpy as np
import pytest

from covshift.diagnosis import diagnose
from covshift.diagnosis.value_rules import non_finite
from covshift.schema import Layer

STEPS = range(0, 400, 10)


def judged(make_recording, *, values=(), gradients=(), spoil=np.nan, steps=STEPS, **options):
    rows = {}
    for step in steps:
        activation, gradient = np.ones((2, 4, 3))
        if step in values:
            activation[0, :2] = spoil
        if step in gradients:
            gradient[1, 1] = spoil
        rows[step] = {"fc": {"activation": activation, "activation_grad": gradient}}
    (finding,) = non_finite(make_recording(rows, **options))
    return finding


def test_finite_numbers_are_ok(make_recording):
    finding = judged(make_recording)
    assert (finding.verdict, finding.reason) == ("ok", "'fc': no NaN or infinity in 40 records")


@pytest.mark.parametrize("spoil", [np.nan, np.inf, -np.inf])
def test_one_activation_is_bad_from_the_first_on(make_recording, spoil):
    finding = judged(make_recording, values=[50], spoil=spoil)
    assert (finding.verdict, finding.since_step) == ("bad", 50)
    assert finding.reason == "'fc': 2 NaN or infinite activations in 1 of 40 records; first at step 50"
    assert "at the price of" in finding.advice


@pytest.mark.parametrize(
    ("gradients", "verdict"),
    [
        ([200], "ok"),
        ([0, 10, 20, 30, 40], "ok"),
        ([150, 200], "bad"),
        ([200, 210, 220], "bad"),
    ],
)
def test_gradients_may_overflow_at_start_up_and_now_and_then(make_recording, gradients, verdict):
    finding = judged(make_recording, gradients=gradients, spoil=np.inf)
    assert finding.verdict == verdict
    assert f"{len(gradients)} NaN or infinite gradients in {len(gradients)} of 40 records" in finding.reason


def test_a_run_of_overflows_is_bad_even_in_a_long_recording(make_recording):
    finding = judged(make_recording, gradients=[500, 510, 520], steps=range(0, 1000, 10))
    assert (finding.verdict, finding.value, finding.threshold.unit) == ("bad", 3, "records")


def test_a_short_recording_has_no_start_up_to_leave_out(make_recording):
    finding = judged(make_recording, gradients=[0, 1, 2], steps=range(10))
    assert (finding.verdict, finding.since_step) == ("bad", 0)


def test_one_broken_record_is_isolated_however_short_the_recording(make_recording):
    assert judged(make_recording, gradients=[200], steps=range(90, 280, 10)).verdict == "ok"
    found = judged(make_recording, gradients=[200, 240], steps=range(90, 280, 10))
    assert (found.verdict, found.since_step) == ("bad", 240)
    assert found.reason.endswith("; non-finite in 1 of 4 records since step 240")


def test_in_a_short_recording_steps_that_the_scaler_skipped_do_not_count(make_recording):
    skips = [0, 1, 2]
    scalars = {step: {"step_skipped": float(step in skips)} for step in range(10)}
    assert judged(make_recording, gradients=skips, steps=range(10), scalars=scalars).verdict == "ok"
    found = judged(make_recording, gradients=[*skips, 5, 6, 7], steps=range(10), scalars=scalars)
    assert (found.verdict, found.since_step, found.value) == ("bad", 5, pytest.approx(3 / 7))


def test_a_layer_that_never_ran_has_no_finding(make_recording):
    assert non_finite(make_recording({})) == []


def test_records_without_a_number_are_not_measured_rather_than_passed_over(make_recording):
    layers = [Layer("fc0", "Linear", 0, 1, 0, 3)]
    (finding,) = non_finite(make_recording({0: {}, 1: {}}, layers=layers))
    assert (finding.layer, finding.verdict) == ("whole run", "not measured")
    assert finding.reason == "whole run: 2 records with no number of any layer"


def test_checks_of_which_the_end_holds_no_number_say_so_and_are_not_measured(planted, of):
    def spoil(step, tensors):
        if step >= 60:
            for signals in tensors.values():
                signals.update({name: values * np.nan for name, values in signals.items()})

    def spoiled(step):
        row = {"weight_norm": 1.0, "update_norm": 1e-3, "sampled_share": 1.0, "gradient_norm": 1.0}
        row |= {"gradient_norm_preclip": 1.0, "gradient_measured": 1}
        return row if step < 60 else row | {"update_norm": np.nan, "gradient_norm": np.nan, "weight_norm": np.nan}

    parameters = {
        10 * record: {f"conv{index}.weight": spoiled(10 * record) for index in range(5)} for record in range(14)
    }
    diagnosis = diagnose(planted(spoil, parameters=parameters))
    assert {one.check for one in diagnosis.causes} == {"non-finite"}
    others = [one for one in diagnosis.findings if one.check != "non-finite"]
    assert {one.verdict for one in others} == {"not measured"}
    assert {one.advice for one in others} == {"mend what `non-finite` says first"}
    assert of(diagnosis, "scale over time", "whole run").reason == (
        "whole run: every element of the gradient of 10 of 10 layers was NaN or infinite in the last 5 records"
    )
    assert of(diagnosis, "update ratio", "conv0").reason == (
        "'conv0': every element of its gradient was NaN or infinite in the last 5 records"
    )


def test_layers_before_the_first_that_is_broken_are_judged_as_ever(planted, of):
    def spoil(step, tensors):
        if step >= 60:
            tensors["act4"]["activation"] = tensors["act4"]["activation"] * np.nan

    diagnosis = diagnose(planted(spoil))
    assert of(diagnosis, "units", "act4").verdict == "not measured"
    assert of(diagnosis, "units", "act3").verdict == "ok"
    assert of(diagnosis, "scale over time", "whole run").verdict == "ok"
    assert "a longer run" in of(diagnosis, "operating point", "whole run").advice
