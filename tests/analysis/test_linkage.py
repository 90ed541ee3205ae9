"""Structural zeros against all zeros of the gradient, and silent members, recounted from raw arrays."""

import numpy as np
import pytest

from covshift.analysis import linkage
from covshift.exceptions import SignalNotRecorded
from covshift.schema import Layer

CONV = Layer("conv", "Conv2d", 0, 1, 0, 3)
ACT = Layer("act", "ReLU", 1, 1, 0, 3, activation="ReLU", preactivation_of="conv", structural_measured=True)
LINKED = Layer("linked", "LinkedReLU", 2, 1, 0, 6, activation="LinkedReLU", linkage_members=2, structural_measured=True)
FLAT = {"act": lambda z: z <= 0, "linked": lambda z: z == 0}


@pytest.fixture
def tensors():
    rng = np.random.default_rng(0)
    z = rng.normal(size=(8, 3, 4))
    z[rng.random(z.shape) < 0.1] = 0.0
    upstream = rng.normal(size=z.shape)
    masked = rng.random(z.shape) < 0.25
    upstream[masked] = 0.0
    return {
        "conv": {"activation": z, "activation_grad": upstream * (z > 0)},
        "act": {"activation": np.maximum(z, 0), "activation_grad": upstream},
        "linked": {"preactivation": z, "preactivation_grad": upstream * (z != 0)},
    }


def test_zeros_are_split_into_structural_and_other(make_recording, tensors):
    rates = linkage.violation_rate(make_recording({0: tensors}, layers=[CONV, ACT, LINKED], flat=FLAT)).sel(step=0)
    z, gradient = tensors["conv"]["activation"], tensors["conv"]["activation_grad"]
    act = rates.sel(layer="act")
    assert float(act["structural_rate"]) == (z <= 0).mean()
    assert float(act["zero_atom_rate"]) == (z == 0).mean()
    assert float(act["gradient_zero_rate"]) == (gradient == 0).mean()
    assert float(act["other_rate"]) == pytest.approx(((gradient == 0) & (z > 0)).mean())
    assert not bool(act["not_split"])


def test_a_linked_relu_fails_only_where_z_is_exactly_zero(make_recording, tensors):
    rates = linkage.violation_rate(make_recording({0: tensors}, layers=[CONV, ACT, LINKED], flat=FLAT)).sel(step=0)
    linked, z = rates.sel(layer="linked"), tensors["linked"]["preactivation"]
    assert float(linked["structural_rate"]) == float(linked["zero_atom_rate"]) == (z == 0).mean()
    assert float(linked["other_rate"]) > 0.1


def test_only_nonlinearities_are_rows(make_recording, tensors):
    rates = linkage.violation_rate(make_recording({0: tensors}, layers=[CONV, ACT, LINKED], flat=FLAT))
    assert rates["layer"].values.tolist() == ["act", "linked"]


def test_another_consumer_of_z_makes_the_zeros_not_split(make_recording, tensors):
    tensors["conv"]["activation_grad"] = np.ones((8, 3, 4))
    act = linkage.violation_rate(make_recording({0: tensors}, layers=[CONV, ACT, LINKED], flat=FLAT)).sel(layer="act")
    assert float(act["gradient_zero_rate"].squeeze()) == 0
    assert np.isnan(act["other_rate"]).all()
    assert act["not_split"].values.tolist() == [True]


def test_a_gradient_of_other_elements_than_z_is_not_split(make_recording, tensors):
    tensors["conv"]["activation_grad"] = tensors["conv"]["activation_grad"][:4]
    act = linkage.violation_rate(make_recording({0: tensors}, layers=[CONV, ACT, LINKED], flat=FLAT)).sel(layer="act")
    assert act["not_split"].values.tolist() == [True]
    assert np.isnan(act["other_rate"]).all()


def test_without_a_closed_form_the_structural_rate_is_unknown(make_recording, tensors):
    unknown = Layer("act", "Mish", 1, 1, 0, 3, activation="Mish", preactivation_of="conv")
    rates = linkage.violation_rate(make_recording({0: tensors}, layers=[CONV, unknown, LINKED])).sel(layer="act")
    assert np.isnan(rates["structural_rate"]).all()
    assert np.isnan(rates["other_rate"]).all()
    assert not rates["not_split"].any()
    assert np.isfinite(rates["gradient_zero_rate"]).all()


def test_without_gradients_the_structural_rate_still_stands(make_recording, tensors):
    forward = {name: {s: a for s, a in signals.items() if "grad" not in s} for name, signals in tensors.items()}
    rates = linkage.violation_rate(make_recording({0: forward}, layers=[CONV, ACT, LINKED], flat=FLAT))
    assert np.isfinite(rates["structural_rate"]).all()
    assert np.isnan(rates["gradient_zero_rate"]).all()
    assert np.isnan(rates["other_rate"]).all()
    assert not rates["not_split"].any()


def test_a_network_without_nonlinearities_has_no_rates(make_recording, tensors):
    for signals in (tensors["conv"], {"preactivation": np.ones((2, 3))}):
        with pytest.raises(SignalNotRecorded, match="no layer is a nonlinearity; record the activation modules"):
            linkage.violation_rate(make_recording({0: {"conv": signals}}, layers=[CONV]))


def test_nonlinearities_without_inputs_have_no_rates_and_the_error_says_what_was_not_recorded(make_recording):
    outputs = {LINKED.name: {"activation": np.ones((2, LINKED.unit_count))}}
    with pytest.raises(SignalNotRecorded, match="no input of a nonlinearity was recorded"):
        linkage.violation_rate(make_recording({0: outputs}, layers=[LINKED]))


def output(*active, examples=6):
    values = np.zeros((examples, len(active), 2))
    for unit, count in enumerate(active):
        values[:count, unit, 0] = 1.0
    return {"activation": values}


def test_silent_members_are_counted_by_linked_unit(make_recording):
    # Members of linked units 0, 1, 2 are columns (0, 3), (1, 4), (2, 5).
    passes = {0: {"linked": output(1, 1, 1, 1, 1, 1)}, 7: {"linked": output(6, 0, 0, 1, 6, 0)}}
    found = linkage.silent_members(make_recording(evaluation=passes, layers=[LINKED])).sel(layer="linked")
    counts = {name: int(found[name]) for name in found.data_vars}
    assert counts == {"linked_units": 3, "one_member_silent": 1, "all_members_silent": 1, "examples": 6}


def test_silent_members_come_from_the_last_record_of_the_layer(make_recording):
    late = Layer("late", "LinkedReLU", 3, 1, 0, 2, activation="LinkedReLU", linkage_members=2)
    steps = {0: {"linked": output(1, 1, 1, 1, 1, 1), "late": output(0, 0)}, 1: {"linked": output(0, 1, 1, 1, 1, 1)}}
    found = linkage.silent_members(make_recording(steps, layers=[LINKED, late]), stream="train")
    assert found["one_member_silent"].values.tolist() == [1, 0]
    assert found["all_members_silent"].values.tolist() == [0, 1]
    assert found["examples"].values.tolist() == [6, 6]


def test_a_linkage_that_never_ran_has_no_members_counted(make_recording):
    late = Layer("late", "LinkedReLU", 3, 1, 0, 2, activation="LinkedReLU", linkage_members=2)
    recording = make_recording({0: {"linked": output(1, 1, 1, 1, 1, 1)}}, layers=[LINKED, late])
    found = linkage.silent_members(recording, stream="train").sel(layer="late")
    assert all(int(found[name]) == 0 for name in found.data_vars)


def test_without_linkages_there_is_nothing_to_count(make_recording, tensors):
    plain = {name: tensors[name] for name in ("conv", "act")}
    with pytest.raises(SignalNotRecorded, match="no layer is a linkage"):
        linkage.silent_members(make_recording({0: plain}, layers=[CONV, ACT]), stream="train")
    with pytest.raises(SignalNotRecorded, match="no group 'evaluation/units'"):
        linkage.silent_members(make_recording({0: plain}, layers=[CONV, ACT]))
