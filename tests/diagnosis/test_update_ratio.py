"""Updates judged by their size relative to the parameter, in the last window and since the warm-up."""

import numpy as np
import pytest

from covshift.diagnosis import diagnose
from covshift.diagnosis.parameter_rules import update_ratio
from covshift.schema import Layer, Status


def parameters(*updates, name="fc.weight", gradient=1.0):
    rows = {}
    for record, update in enumerate(updates):
        measured = {"gradient_norm": float(gradient), "gradient_measured": 1} if gradient is not None else {}
        rows[10 * record] = {name: {"weight_norm": 2.0, "update_norm": 2.0 * update} | measured}
    return rows


def judged(make_recording, *updates, **options):
    (finding,) = update_ratio(make_recording(parameters=parameters(*updates, **options)))
    return finding


@pytest.mark.parametrize(
    ("ratio", "verdict"),
    [
        (1e-3, "ok"),
        (2e-4, "ok"),
        (5e-5, "watch"),
        (1e-7, "bad"),
        (0.05, "watch"),
        (0.5, "bad"),
        (np.inf, "not measured"),
    ],
)
def test_a_steady_ratio_is_judged_by_its_band(make_recording, ratio, verdict):
    assert judged(make_recording, *[ratio] * 20).verdict == verdict


def test_the_finding_names_parameter_size_evidence_and_onset(make_recording):
    finding = judged(make_recording, *[1e-3] * 10, *[0.03] * 10)
    assert (finding.layer, finding.check, finding.since_step) == ("fc", "update ratio", 100)
    assert finding.value == pytest.approx(0.03)
    assert finding.reason == (
        "'fc': an update moves 'fc.weight' by 0.03 of its length; median of the last 5 records; since step 100"
    )
    assert "learning rate" in finding.advice


def test_updates_lowered_on_purpose_are_not_too_small(make_recording):
    finding = judged(make_recording, *[1e-3] * 15, *[1e-8] * 5)
    assert finding.verdict == "ok"
    assert finding.value == pytest.approx(1e-8)
    assert "1e-8" in finding.reason.replace("1.0e-8", "1e-8")
    assert "0.001 since the warm-up" in finding.reason


def test_the_warm_up_does_not_count(make_recording):
    finding = judged(make_recording, 1e-3, 1e-3, *[1e-8] * 18)
    assert finding.verdict == "bad"


def test_a_parameter_that_never_moves_despite_a_gradient_is_bad_whatever_came_before(make_recording):
    finding = judged(make_recording, *[1e-3] * 15, *[0.0] * 5)
    assert (finding.verdict, finding.since_step) == ("bad", 150)
    assert finding.reason == (
        "'fc': 'fc.weight' did not move in the last 5 records though it had a gradient; since step 150"
    )
    assert "optimizer holds this very parameter" in finding.advice


def test_a_parameter_without_any_gradient_to_move_it_is_bad_and_sent_to_where_the_gradient_ends(make_recording):
    finding = judged(make_recording, *[0.0] * 10, gradient=0.0)
    assert (finding.verdict, finding.since_step) == ("bad", 0)
    assert finding.reason == (
        "'fc': 'fc.weight' did not move in the last 5 records: its gradient was exactly zero in all of them; since "
        "step 0"
    )
    assert finding.advice.startswith("find where the gradient ends")


def test_weights_whose_gradient_is_zero_though_one_arrives_at_their_output_are_sent_to_their_input(make_recording):
    layers = [Layer("fc", "Linear", 0, 1, 0, 3)]
    tensors = {"activation": np.ones((4, 3)), "activation_grad": np.ones((4, 3))}
    steps = {10 * record: {"fc": tensors} for record in range(9)}
    recording = make_recording(steps, layers=layers, parameters=parameters(*[0.0] * 9, gradient=0.0))
    (finding,) = update_ratio(recording)
    assert (finding.verdict, finding.since_step) == ("bad", 0)
    assert finding.advice.startswith("a gradient arrives at its output, so what its weights multiply was 0")


def test_a_frozen_parameter_is_not_measured(make_recording):
    finding = judged(make_recording, *[0.0] * 10, gradient=None)
    assert finding.verdict == "not measured"
    assert "had no gradient in the last 5 records (frozen, or not used)" in finding.reason


def test_weights_without_a_gradient_are_named_over_the_diagnosis_and_are_no_fault(planted, healthy_steps):
    still = {"weight_norm": 1.0, "update_norm": 0.0, "sampled_share": 1.0}
    moving = still | {"update_norm": 1e-3, "gradient_norm": 1.0, "gradient_norm_preclip": 1.0, "gradient_measured": 1}

    def rows(*frozen):
        names = [f"conv{index}" for index in range(5)]
        return {
            step: {f"{name}.weight": still if name in frozen else moving for name in names} for step in healthy_steps
        }

    diagnosis = diagnose(planted(parameters=rows("conv2")))
    assert diagnosis.sentence == (
        "Healthy: gradient reaches all 10 layers; 1 of 5 layers with weights is frozen: 'conv2' (meant?); "
        "no unit is dead; not measured: gradient turn, shift of the whole run, operating point."
    )
    assert diagnosis.causes == ()
    several = diagnose(planted(parameters=rows(*(f"conv{index}" for index in range(4))))).sentence
    assert "; 4 of 5 layers with weights are frozen: 'conv0', 'conv1', 'conv2' and 1 more (meant?); no unit" in several
    cut = {
        (step, layer, "activation_grad"): Status.NO_GRADIENT_ARRIVED
        for step in healthy_steps
        for layer in ("conv0", "act0", "conv1", "act1")
    }
    behind = diagnose(planted(_without(cut), parameters=rows("conv0", "conv1"), statuses=cut)).sentence
    assert "; 2 of 5 layers with weights are not trained ('conv0': no gradient of its weights); " in behind
    assert "frozen" not in behind


def _without(statuses):
    def change(step, tensors):
        for at, layer, signal in statuses:
            if at == step:
                del tensors[layer][signal]

    return change


def test_weights_before_the_first_that_requires_a_gradient_are_frozen(planted, healthy_steps):
    row = {"weight_norm": 1.0, "update_norm": 0.0, "sampled_share": 1.0}
    parameters = {step: {f"conv{index}.weight": row for index in range(5)} for step in healthy_steps}
    needless = {(step, "conv0", "activation_grad"): Status.NO_GRAD_REQUIRED for step in healthy_steps}
    diagnosis = diagnose(planted(_without(needless), parameters=parameters, statuses=needless))
    assert "; 1 of 5 layers with weights is frozen: 'conv0' (meant?); 4 of 5 layers" in diagnosis.sentence
    reasons = {one.layer: one.reason for one in diagnosis.findings if one.check == "update ratio"}
    assert reasons["conv0"] == "'conv0': 'conv0.weight' had no gradient in the last 5 records (frozen)"
    assert reasons["conv1"].endswith("(frozen, or not used)")


def test_a_gradient_norm_of_nan_is_of_a_gradient_that_is_there(planted, healthy_steps):
    row = {"weight_norm": 1.0, "update_norm": 0.0, "sampled_share": 1.0, "gradient_measured": 1}
    row["gradient_norm"] = np.nan
    sentence = diagnose(planted(parameters={step: {"conv0.weight": row} for step in healthy_steps})).sentence
    assert "; 1 weight never moves ('conv0' since step 0)" in sentence
    assert "frozen" not in sentence
    assert "not trained" not in sentence


def test_weights_that_never_move_are_told_apart_from_those_that_move_too_little(planted, healthy_steps):
    def row(update):
        measured = {"gradient_norm": 1.0, "gradient_norm_preclip": 1.0, "gradient_measured": 1}
        return {"weight_norm": 1.0, "update_norm": update, "sampled_share": 1.0} | measured

    updates = {"conv0.weight": 0.0, "conv1.weight": 0.0, "conv2.weight": 1e-9, "conv3.weight": 1e-3}
    parameters = {step: {name: row(update) for name, update in updates.items()} for step in healthy_steps}
    sentence = diagnose(planted(parameters=parameters)).sentence
    assert "; 2 weights never move ('conv0' since step 0); update ratio " in sentence
    assert " in 1 layer ('conv2' since step 0); " in sentence


@pytest.mark.parametrize("updates", [[1e-9] * 4, [1e-9], [np.nan] * 20])
def test_too_few_records_are_not_measured(make_recording, updates):
    finding = judged(make_recording, *updates)
    assert finding.verdict == "not measured"
    assert finding.advice.startswith("at least 5 records")


def test_biases_are_not_judged(make_recording):
    recording = make_recording(parameters=parameters(*[1.0] * 10, name="fc.bias"), parameter_ndim={"fc.bias": 1})
    assert update_ratio(recording) == []


def test_a_parameter_of_the_model_itself_belongs_to_the_root(make_recording):
    assert judged(make_recording, *[1e-3] * 10, name="table").layer == "(root)"


def test_an_update_that_overran_a_parameter_in_the_middle_is_found_though_the_last_window_is_fine(make_recording):
    finding = judged(make_recording, *[2e-3] * 10, 0.6, 0.7, 0.05, *[5e-3] * 17)
    assert (finding.verdict, finding.since_step, finding.value) == ("watch", 100, pytest.approx(0.7))
    assert finding.reason == (
        "'fc': an update moved 'fc.weight' by 0.7 of its length, 0.005 in the median of the last 6 records; first "
        "above 0.1, 10 times what it was, at step 100"
    )
    assert "what happened at that step" in finding.advice


def test_one_update_longer_than_the_parameter_itself_is_bad_at_any_time(make_recording):
    finding = judged(make_recording, *[2e-3] * 10, 1.2, *[5e-3] * 19)
    assert (finding.verdict, finding.since_step, finding.value) == ("bad", 100, pytest.approx(1.2))


@pytest.mark.parametrize(
    "updates",
    [
        [1e-3, 1e-3, 1e-3, 1.4] + [2e-3] * 36,
        [1e-5] * 10 + [9e-2] * 3 + [5e-3] * 17,
        [0.05] * 10 + [0.3] * 3 + [5e-3] * 17,
        [1 / record for record in range(1, 201)],
        [2e-3] * 10 + [np.inf] * 3 + [5e-3] * 17,
    ],
    ids=["in the warm-up", "up to 0.1", "less than ten times", "grown from zero", "weights of zero"],
)
def test_what_is_early_small_or_gradual_is_no_jump(make_recording, updates):
    assert judged(make_recording, *updates).verdict == "ok"


def test_step_sizes_lowered_after_a_jump_are_no_second_fault(make_recording):
    finding = judged(make_recording, *[2e-3] * 10, 0.6, *[1e-8] * 5)
    assert (finding.verdict, finding.value) == ("watch", pytest.approx(0.6))


def test_a_ratio_beside_a_limit_is_written_so_that_it_is_told_from_it(make_recording):
    finding = judged(make_recording, *[0.01004] * 20)
    assert finding.verdict == "watch"
    assert "by 0.01004 of its length" in finding.reason


@pytest.mark.parametrize(("ratio", "verdict"), [(0.1000000038, "watch"), (0.10001, "bad"), (9.9999999e-5, "ok")])
def test_what_rounding_adds_to_a_limit_is_no_excess(make_recording, ratio, verdict):
    assert judged(make_recording, *[ratio] * 20).verdict == verdict


def decaying(last):
    rows = parameters(*[0.05] * 20)
    for weight, row in zip(np.geomspace(2.0, 2.0 * last, 20), rows.values(), strict=True):
        row["fc.weight"] |= {"weight_norm": float(weight), "update_norm": 0.05 * float(weight)}
    return rows


def test_a_weight_that_has_nearly_gone_is_said_to_have_and_gets_no_other_verdict(make_recording):
    (gone,) = update_ratio(make_recording(parameters=decaying(2e-17)))
    (there,) = update_ratio(make_recording(parameters=decaying(2e-3)))
    assert gone.reason == (
        f"{there.reason}; the weight has shrunk to 2.0e-17 of its length at the first record (weight decay?)"
    )
    assert (gone.verdict, gone.value) == (there.verdict, pytest.approx(there.value))
