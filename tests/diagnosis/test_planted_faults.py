"""Every planted fault is found in its layer and nowhere else, in words that carry the evidence."""

from dataclasses import replace

import numpy as np
import pytest

from covshift.diagnosis import diagnose
from covshift.diagnosis.finding import WHOLE_RUN
from covshift.schema import Layer, Mode, Status

SINCE = 60


def test_a_healthy_run_raises_nothing(healthy, flagged):
    diagnosis = diagnose(healthy)
    assert flagged(diagnosis) == {}
    assert diagnosis.worst == "ok"
    left = [finding for finding in diagnosis.findings if finding.verdict != "ok"]
    assert [(one.check, one.layer, one.verdict) for one in left] == [
        (check, WHOLE_RUN, "not measured") for check in ("gradient turn", "shift", "operating point")
    ]
    unknown = left[-1]
    assert unknown.reason == "whole run: at most 7 records in the last half of the run"
    assert unknown.advice.startswith("at least 40 records there")
    assert diagnosis.sentence == (
        "Healthy: gradient reaches all 10 layers; no unit is dead; not measured: gradient turn, shift of the whole "
        "run, operating point."
    )


def vanish(decades):
    def change(step, tensors):
        for name, signals in tensors.items():
            depth = 4 - int(name[-1])
            signals["activation_grad"] = signals["activation_grad"] * 10.0 ** (-decades * depth)

    return change


@pytest.mark.parametrize(
    ("decades", "verdict", "direction"), [(1.5, "bad", "shrinks"), (0.7, "watch", "shrinks"), (-1.5, "bad", "grows")]
)
def test_a_gradient_that_changes_over_depth_is_a_finding_of_the_run(planted, decades, verdict, direction, flagged):
    found = flagged(diagnose(planted(vanish(decades))))
    assert set(found) == {("scale over depth", WHOLE_RUN)}
    scale = found["scale over depth", WHOLE_RUN]
    assert scale.verdict == verdict
    assert scale.since_step == 0
    assert f"gradient rms {direction} towards the input by {abs(decades):g} decades a layer" in scale.reason
    assert "decades over 5 layers; median of the last 5 records; mostly above " in scale.reason
    assert scale.reason.endswith(" since step 0")


def test_a_steep_slope_over_few_decades_is_allowed(planted, of):
    scale = of(diagnose(planted(vanish(0.3))), "scale over depth", WHOLE_RUN)
    assert scale.verdict == "ok"
    assert abs(scale.value) < 2


def test_an_exactly_zero_gradient_is_found_where_it_stops(planted, flagged):
    def cut(step, tensors):
        if step >= SINCE:
            for name in ("conv0", "act0", "conv1", "act1"):
                tensors[name]["activation_grad"] = tensors[name]["activation_grad"] * 0

    diagnosis = diagnose(planted(cut))
    found = flagged(diagnosis)
    arrives = {layer for check, layer in found if check == "gradient arrives"}
    assert arrives == {"conv0", "act0", "conv1", "act1"}
    assert found["gradient arrives", "act1"].verdict == "bad"
    assert found["gradient arrives", "act1"].reason == (
        "'act1': the gradient of its output was exactly zero in all 18,000 elements of the last 5 records; "
        "since step 60"
    )
    scale = found["scale over depth", WHOLE_RUN]
    assert (scale.verdict, scale.since_step) == ("bad", SINCE)
    assert "in 2 of 5 layers (first 'act0')" in scale.reason
    assert diagnosis.sentence.startswith("Unhealthy: gradient does not reach 4 of 10 layers ('act1' since step 60); ")
    # The layer nearest the loss explains all the others, and what they explain in turn.
    assert [finding.layer for finding in diagnosis.causes] == ["act1"]
    explained = {(f.check, f.layer): f.explained_by for f in diagnosis.findings if f.explained_by}
    assert explained["gradient arrives", "conv0"] == "gradient arrives in act1"
    assert explained["scale over depth", WHOLE_RUN] == "gradient arrives in act1"
    # The zeros of conv1 are not structural, so nothing is said against its activation.
    assert found["gradient zeros", "conv1"].advice.startswith("look after this layer for a mask")


def without_gradient(layers):
    def change(step, tensors):
        for name in layers:
            del tensors[name]["activation_grad"]

    return change


def marked(layers, status):
    return {(step, name, "activation_grad"): status for step in range(0, 140, 10) for name in layers}


def test_a_cut_path_is_bad_in_every_layer_before_the_cut(planted, flagged):
    cut = ["conv0", "act0", "conv1"]
    recording = planted(without_gradient(cut), statuses=marked(cut, Status.NO_GRADIENT_ARRIVED))
    found = flagged(diagnose(recording))
    assert {layer for check, layer in found if check == "gradient arrives"} == set(cut)
    worst = found["gradient arrives", "conv0"]
    assert (worst.verdict, worst.since_step) == ("bad", 0)
    assert worst.reason == "'conv0': no gradient arrived in the last 5 records; since step 0"
    assert "detach()" in worst.advice


def test_a_branch_without_gradient_is_only_watched(planted, flagged):
    recording = planted(without_gradient(["act4"]), statuses=marked(["act4"], Status.NO_GRADIENT_ARRIVED))
    found = flagged(diagnose(recording))
    assert found["gradient arrives", "act4"].verdict == "watch"
    assert found["gradient arrives", "act4"].reason == (
        "'act4': no gradient arrived in the last 5 records, though layers before it receive one; since step 0"
    )
    assert set(found) == {("gradient arrives", "act4")}


def test_a_single_first_layer_without_gradient_is_only_watched(planted, flagged):
    recording = planted(without_gradient(["conv0"]), statuses=marked(["conv0"], Status.NO_GRADIENT_ARRIVED))
    found = flagged(diagnose(recording))
    assert set(found) == {("gradient arrives", "conv0")}
    assert found["gradient arrives", "conv0"].verdict == "watch"
    assert "though all other layers receive one" in found["gradient arrives", "conv0"].reason


def test_an_unused_second_output_of_a_module_is_not_missed(make_recording, of):
    rng = np.random.default_rng(0)
    outputs = {name: {"activation": rng.normal(size=(8, 2))} for name in ("lstm:0", "lstm:1.0", "lstm:1.1")}
    outputs["lstm:0"]["activation_grad"] = rng.normal(size=(8, 2))
    statuses = {(0, name, "activation_grad"): Status.NO_GRADIENT_ARRIVED for name in ("lstm:1.0", "lstm:1.1")}
    diagnosis = diagnose(make_recording({0: outputs}, statuses=statuses))
    assert of(diagnosis, "gradient arrives", "lstm:0").verdict == "ok"
    for name in ("lstm:1.0", "lstm:1.1"):
        finding = of(diagnosis, "gradient arrives", name)
        assert finding.verdict == "not measured"
        assert "another output of its module receives one" in finding.reason


def test_an_output_is_unused_also_where_the_gradient_of_another_of_its_module_is_broken(make_recording, of):
    outputs = {name: {"activation": np.ones((8, 2))} for name in ("rnn:0", "rnn:1")}
    outputs["rnn:0"]["activation_grad"] = np.where(np.arange(16).reshape(8, 2) % 2, np.nan, 0.0)
    statuses = {(0, "rnn:1", "activation_grad"): Status.NO_GRADIENT_ARRIVED}
    diagnosis = diagnose(make_recording({0: outputs}, statuses=statuses))
    unused, broken = (of(diagnosis, "gradient arrives", name) for name in ("rnn:1", "rnn:0"))
    assert unused.verdict == broken.verdict == "not measured"
    assert "another output of its module receives one" in unused.reason
    assert broken.reason == (
        "'rnn:0': its gradient held NaN or infinities, and nothing finite but zeros, in the last 1 record"
    )
    assert "does not reach" not in diagnosis.sentence


def spoiled(layers, spoil, since=SINCE):
    """The gradient of ``layers`` is zero from ``since`` on, but for the first of its elements."""

    def change(step, tensors):
        for name in layers if step >= since else ():
            gradient = np.zeros_like(tensors[name]["activation_grad"])
            gradient[0, 0] = spoil
            tensors[name]["activation_grad"] = gradient

    return change


@pytest.mark.parametrize("spoil", [np.nan, np.inf, -np.inf])
def test_zeros_beside_nan_or_infinity_are_a_broken_gradient_and_no_missing_one(planted, spoil, of):
    everywhere = [f"{kind}{index}" for kind in ("conv", "act") for index in range(5)]
    diagnosis = diagnose(planted(spoiled(everywhere, spoil)))
    assert {one.check for one in diagnosis.causes} == {"non-finite"}
    assert of(diagnosis, "gradient arrives", "act1").verdict == "not measured"
    assert of(diagnosis, "scale over depth", WHOLE_RUN).verdict == "not measured"
    assert "does not reach" not in diagnosis.sentence
    assert "exactly zero" not in str(diagnosis)


def test_a_gradient_of_zeros_and_one_finite_number_has_arrived_as_before(planted, of):
    assert of(diagnose(planted(spoiled(["act1"], 1e-3))), "gradient arrives", "act1").verdict == "ok"


def test_layers_of_which_nothing_is_known_are_not_left_to_be_taken_for_well(planted, flagged):
    def change(step, tensors):
        spoiled([f"{kind}{index}" for kind in ("conv", "act") for index in (1, 2, 3, 4)], np.nan, since=0)(
            step, tensors
        )
        spoiled(["conv0", "act0"], 0.0, since=0)(step, tensors)

    diagnosis = diagnose(planted(change))
    assert "; gradient does not reach 2 of 10 layers ('act0' since step 0; 8 not measured); " in diagnosis.sentence


@pytest.mark.parametrize(
    ("status", "why"),
    [
        (Status.NO_GRAD_REQUIRED, "requires no gradient"),
        (Status.UNUSED_OUTPUT, "was not used"),
        (Status.ABSENT, "no gradient was recorded"),
    ],
)
def test_a_gradient_that_is_not_due_is_not_missed(planted, status, why, of):
    recording = planted(without_gradient(["conv0"]), statuses=marked(["conv0"], status))
    finding = of(diagnose(recording), "gradient arrives", "conv0")
    assert finding.verdict == "not measured"
    assert why in finding.reason
    assert finding.advice


def mask(share):
    def change(step, tensors):
        for name in ("conv2", "act2"):
            gradient = tensors[name]["activation_grad"].copy()
            gradient[: round(share * len(gradient))] = 0.0
            tensors[name]["activation_grad"] = gradient

    return change


def test_masked_gradients_are_never_blamed_on_the_activation(planted, flagged, of):
    diagnosis = diagnose(planted(mask(0.97)))
    assert {key for key in flagged(diagnosis) if key[0] == "gradient zeros"} == set()
    reason = of(diagnosis, "gradient zeros", "conv2").reason
    assert "50 % structural (no derivative in 'act2'), 49 % masked, underflowed or cancelled" in reason


def test_structural_zeros_are_judged_by_their_share_of_z(planted, flagged):
    def sink(step, tensors):
        z = tensors["conv4"]["activation"] - 2.0
        tensors["conv4"] = {"activation": z, "activation_grad": tensors["conv4"]["activation_grad"] * (z > 0)}
        tensors["act4"]["activation"] = np.maximum(z, 0)

    found = flagged(diagnose(planted(sink)))
    zeros = found["gradient zeros", "conv4"]
    assert zeros.verdict == "watch"
    assert zeros.threshold.quantity == "share of the pre-activations at which the derivative is zero"
    assert zeros.value == pytest.approx(0.977, abs=0.005)


def linked(atom, masked):
    """One linkage of 3 linked units whose z is exactly zero with share ``atom`` and whose gradient is masked."""
    rng = np.random.default_rng(0)

    def step():
        z = rng.normal(size=(400, 3))
        z[rng.random(z.shape) < atom] = 0.0
        gradient = rng.normal(size=z.shape) * (z != 0)
        gradient[rng.random(z.shape) < masked] = 0.0
        output = np.concatenate([np.maximum(z, 0), np.maximum(-z, 0)], axis=1)
        own = {"preactivation": z, "preactivation_grad": gradient}
        return {"linked": own | {"activation": output, "activation_grad": rng.normal(size=output.shape)}}

    return {10 * record: step() for record in range(20)}


def linkage_layer(kind="LinkedReLU", *, measured=True):
    return [
        Layer("linked", kind, 0, 1, 0, 6, activation=kind, linkage_members=2, structural_measured=measured),
    ]


@pytest.mark.parametrize(("atom", "verdict"), [(0.0, "ok"), (0.1, "watch"), (0.7, "bad")])
def test_a_linkage_is_judged_by_the_elements_without_any_derivative(make_recording, atom, verdict, of):
    flat = {"linked": lambda z: z == 0}
    recording = make_recording(linked(atom, 0.5), layers=linkage_layer(), flat=flat)
    found = of(diagnose(recording), "linkage", "linked")
    assert found.verdict == verdict
    assert "no member has a derivative at" in found.reason
    assert found.value == pytest.approx(atom, abs=0.02)
    zeros = of(diagnose(recording), "gradient zeros", "linked")
    assert zeros.verdict == "ok"
    assert "of the gradient of its input is exactly zero" in zeros.reason
    assert "structural (no derivative in 'linked')" in zeros.reason


def test_a_linkage_without_a_closed_form_is_not_measured(make_recording, of):
    found = of(
        diagnose(make_recording(linked(0.0, 0.0), layers=linkage_layer("LinkedMish", measured=False))),
        "linkage",
        "linked",
    )
    assert found.verdict == "not measured"
    assert "no closed form" in found.reason
    assert "covshift.linked.audit" in found.advice


def drift(step, tensors):
    tensors["conv1"]["activation"] = tensors["conv1"]["activation"] + 0.05 * step


def test_a_shift_is_found_in_its_layer_with_size_and_interval(planted, flagged):
    found = flagged(diagnose(planted(drift)))
    assert set(found) == {("shift", "conv1")}
    shift = found["shift", "conv1"]
    assert shift.verdict == "watch"
    assert shift.value == pytest.approx(0.5, abs=0.1)
    assert shift.interval[0] < 0.5 < shift.interval[1]
    assert shift.interval[0] > 0.3
    assert "from one histogram to the next, 10 steps apart; mean of 5 pairs with 900 examples a side" in shift.reason


def test_a_shift_beyond_the_resolution_of_the_bins_is_judged_by_moments(planted, of):
    def far(step, tensors):
        tensors["conv1"]["activation"] = tensors["conv1"]["activation"] + 300 + 0.05 * step

    shift = of(diagnose(planted(far)), "shift", "conv1")
    assert shift.verdict == "watch"
    assert shift.value == pytest.approx(0.5, abs=0.1)
    assert "by moments" in shift.reason


@pytest.mark.parametrize("scale", [1e-12, 1e-9, 1e6])
def test_a_shift_of_values_outside_the_bins_is_judged_by_moments(planted, of, scale):
    def outside(step, tensors):
        tensors["conv1"]["activation"] = (tensors["conv1"]["activation"] + 0.05 * step) * scale

    shift = of(diagnose(planted(outside)), "shift", "conv1")
    assert shift.verdict == "watch"
    assert shift.value == pytest.approx(0.5, abs=0.1)
    assert (
        "by moments: its mean lies beyond 8 sd from 0, or its values outside the bins (6e-8 to 65,536)" in shift.reason
    )


def test_a_large_distance_that_sampling_may_explain_is_not_measured(make_recording, of):
    rng = np.random.default_rng(3)
    steps = {}
    for step in range(8):
        # Four examples that each are nearly constant: big differences between records, nothing known.
        steps[step] = {"fc": {"activation": rng.normal(size=(4, 1)) + 0.01 * rng.normal(size=(4, 200))}}
    shift = of(diagnose(make_recording(steps)), "shift", "fc")
    assert shift.verdict in ("ok", "not measured")
    assert shift.interval is None or shift.interval[0] == 0


@pytest.mark.parametrize("mode", [Mode.TRAIN, Mode.EVAL])
def test_under_batch_norm_in_training_mode_a_shift_is_not_measured(planted, network_layers, mode, of):
    layers = [replace(layer, module_type="BatchNorm2d") if layer.depth == 2 else layer for layer in network_layers]
    diagnosis = diagnose(planted(drift, layers=layers, mode=mode))
    verdicts = {f.layer: f.verdict for f in diagnosis.findings if f.check == "shift"}
    if mode == Mode.EVAL:
        assert verdicts["conv1"] == "watch"
        return
    assert verdicts.pop("conv0") == verdicts.pop("act0") == "ok"
    assert set(verdicts.values()) == {"not measured"}
    assert "record(probe=batch)" in of(diagnosis, "shift", "conv1").advice
    assert "batch norm in training mode" in of(diagnosis, "shift", "conv1").reason
    assert "shift in 8 of 10" in diagnosis.sentence


def test_units_that_trade_places_are_found_though_the_pooled_distribution_stays(planted, flagged):
    def swap(step, tensors):
        means = np.array([-2.0, -1.0, 1.0, 2.0]) * (-1) ** (step // 10)
        tensors["conv2"]["activation"] = tensors["conv2"]["activation"] + means

    found = flagged(diagnose(planted(swap)))
    shift = found["shift", "conv2"]
    assert shift.verdict == "watch"
    assert "units" in shift.threshold.quantity
    assert shift.value == pytest.approx(np.sqrt((4**2 + 2**2) / 2), rel=0.1)
    assert "its units by 3.2 sd each" in shift.reason
