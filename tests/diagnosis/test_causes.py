"""What follows from what: necessary consequences are put under their cause, everything else stands by itself."""

import pytest

from covshift.diagnosis.causes import Order, explained
from covshift.diagnosis.finding import WHOLE_RUN, Finding
from covshift.diagnosis.thresholds import THRESHOLDS

ORDER = Order({"conv0": 0, "act0": 1, "conv1": 2, "act1": 3, "conv2": 4}, {"act0": "conv0", "act1": "conv1"})


def finding(check, layer, verdict="bad", *, since=0, value=1.0, threshold=None):
    limits = None if threshold is None else THRESHOLDS[threshold]
    return Finding(check, layer, verdict, since, value, None, limits, "", "")


def causes_of(*findings):
    return [one.explained_by for one in explained(findings, ORDER)]


def test_a_dead_layer_explains_what_lies_before_it_and_not_what_lies_behind():
    dead = finding("units", "act1", threshold="dead_units")
    before = [
        finding("gradient arrives", "act0"),
        finding("gradient zeros", "conv0"),
        finding("scale over depth", WHOLE_RUN),
    ]
    frozen = finding("operating point", "conv1", "watch", value=0.0)
    behind = [finding("gradient zeros", "conv2"), finding("operating point", "conv2", "watch", value=0.0)]
    found = causes_of(dead, *before, frozen, *behind)
    assert found == ["", *["units in act1"] * 4, "", ""]


def test_a_dead_layer_explains_units_behind_it_that_are_stuck_at_the_end_whenever_it_died():
    dead = finding("units", "act0", since=60, threshold="dead_units")
    stuck = finding("units", "act1", since=None, value=0.5, threshold="stuck_units")
    wholly = finding("units", "act1", since=None, threshold="stuck_units")
    assert causes_of(dead, stuck) == causes_of(dead, wholly) == ["", "units in act0"]
    before = finding("units", "act0", since=None, value=0.5, threshold="stuck_units")
    assert causes_of(before, finding("units", "act1", since=60, threshold="dead_units")) == ["", ""]


def test_a_layer_that_is_partly_dead_explains_the_zeros_of_its_own_input_only():
    dead = finding("units", "act1", value=0.6, threshold="dead_units")
    assert causes_of(dead, finding("gradient zeros", "conv1"), finding("gradient arrives", "act0")) == [
        "",
        "units in act1",
        "",
    ]


def test_a_cut_is_where_the_gradient_stops_first():
    cut = [finding("gradient arrives", name) for name in ("conv0", "act0", "conv1")]
    assert causes_of(*cut) == ["gradient arrives in conv1", "gradient arrives in conv1", ""]


def test_a_branch_that_is_only_watched_explains_nothing():
    branch = finding("gradient arrives", "conv1", "watch")
    assert causes_of(branch, finding("gradient zeros", "conv0")) == ["", ""]


def test_updates_that_are_too_large_are_no_consequence_of_a_missing_gradient():
    cut = finding("gradient arrives", "conv1")
    low = finding("update ratio", "conv0", value=1e-9, threshold="update_ratio")
    high = finding("update ratio", "conv0", value=1.0, threshold="update_ratio")
    assert causes_of(cut, low, high) == ["", "gradient arrives in conv1", ""]


def test_numbers_that_are_none_explain_what_began_with_or_after_them():
    broken = finding("non-finite", "act0", since=50, threshold="non_finite_values")
    spread = finding("non-finite", "conv1", since=50, threshold="non_finite_values")
    upstream = finding("non-finite", "conv0", since=60, threshold="non_finite_values")
    early = finding("gradient zeros", "conv1", since=10)
    late = finding("gradient zeros", "conv1", since=50)
    assert causes_of(broken, spread, upstream, early, late) == [
        "",
        "non-finite in act0",
        "non-finite in act0",
        "",
        "non-finite in act0",
    ]


def test_movement_is_handed_on_down_and_forward_in_time_only():
    first = finding("shift", "conv0", "watch", since=20)
    later = finding("shift", "act1", "watch", since=30)
    earlier = finding("shift", "conv1", "watch", since=10)
    assert causes_of(first, later) == ["", "shift in conv0"]
    assert causes_of(first, earlier) == ["", ""]
    assert causes_of(later, finding("operating point", "act1", "watch", since=99)) == ["", "shift in act1"]


def test_parameters_that_do_not_move_explain_a_frozen_layer():
    stuck = finding("update ratio", "conv0", value=0.0, threshold="update_ratio")
    assert causes_of(stuck, finding("operating point", "act0", "watch", value=0.0)) == ["", "update ratio in conv0"]


def test_a_chain_ends_at_its_root():
    dead = finding("units", "act1", threshold="dead_units")
    starved = finding("gradient arrives", "act0")
    stuck = finding("update ratio", "conv0", value=0.0, threshold="update_ratio")
    frozen = finding("operating point", "act0", "watch", value=0.0)
    assert causes_of(dead, starved, stuck, frozen) == ["", *["units in act1"] * 3]


@pytest.mark.parametrize("verdict", ["ok", "not measured"])
def test_what_is_not_flagged_neither_explains_nor_is_explained(verdict):
    dead = finding("units", "act1", verdict, threshold="dead_units")
    assert causes_of(dead, finding("gradient zeros", "conv1")) == ["", ""]
    assert causes_of(finding("units", "act1", threshold="dead_units"), finding("gradient zeros", "conv1", verdict)) == [
        "",
        "",
    ]


def test_every_layer_of_a_recording_has_its_place(make_recording, network_layers):
    order = Order.of(make_recording({}, layers=network_layers))
    assert order.depth["conv0"] == 0
    assert order.producer["act3"] == "conv3"
    assert order.feeds("conv3", "act3")
    assert not order.feeds("conv2", "act3")


def test_printed_it_is_the_sentence_and_the_causes():
    from covshift.diagnosis import Diagnosis, Finding

    unmeasured = {"since_step": None, "value": 0.75, "interval": None, "threshold": None, "advice": "a smaller step"}
    dead = Finding("dead units", "fc", "bad", reason="3 of 4 silent", **unmeasured)
    after = Finding("gradient zeros", "up", "watch", reason="all zero", explained_by="fc", **unmeasured)
    lines = str(Diagnosis((dead, after), ("fc", "up"))).splitlines()
    assert lines[1:] == ["bad: dead units: 3 of 4 silent"]
