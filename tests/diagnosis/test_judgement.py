"""Thresholds, the typical value of a window, since when, and the worst of several judgements."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from covshift.diagnosis.finding import Finding, worst
from covshift.diagnosis.judgement import Judgement, conclude, judge, onset
from covshift.diagnosis.rules import RULES
from covshift.diagnosis.threshold import Threshold
from covshift.diagnosis.thresholds import THRESHOLDS

SHARE = Threshold("check", "share of things", 0.5, 0.9, "share", "ours")
BAND = Threshold("check", "size", (0.1, 10.0), (0.01, 100.0), "1", "ours")


@pytest.mark.parametrize(
    ("threshold", "value", "verdict"),
    [
        (SHARE, 0.5, "ok"),
        (SHARE, 0.51, "watch"),
        (SHARE, 0.91, "bad"),
        (SHARE, float("nan"), "not measured"),
        (BAND, 1.0, "ok"),
        (BAND, 0.1, "ok"),
        (BAND, 0.05, "watch"),
        (BAND, 50.0, "watch"),
        (BAND, 0.001, "bad"),
        (BAND, 1000.0, "bad"),
        (THRESHOLDS["shift"], 99.0, "watch"),
        (THRESHOLDS["non_finite_values"], 1e-9, "bad"),
    ],
)
def test_a_value_gets_the_verdict_of_the_limits_it_passes(threshold, value, verdict):
    assert threshold.verdict(value) == verdict


@given(value=st.floats(0, 200), threshold=st.sampled_from([*THRESHOLDS.values(), SHARE, BAND]))
def test_a_series_exceeds_a_threshold_exactly_where_the_verdict_is_not_ok(value, threshold):
    assert threshold.exceeded(np.array([value, np.nan])).tolist() == [threshold.verdict(value) != "ok", False]


def test_limits_are_said_in_words():
    assert str(SHARE) == "share of things: watch above 50 %, bad above 90 %"
    assert str(BAND) == "size: watch outside 0.1 to 10, bad outside 0.01 to 100"
    assert str(THRESHOLDS["shift"]).endswith("equivalent shift of the mean: watch above 0.2 sd")


@pytest.mark.parametrize("name", THRESHOLDS)
def test_every_threshold_belongs_to_a_check_and_names_unit_and_source(name):
    threshold = THRESHOLDS[name]
    assert threshold.check in RULES
    assert threshold.unit
    assert threshold.source
    assert threshold.watch is not None or threshold.bad is not None


@given(exceeded=st.lists(st.booleans(), max_size=30))
def test_the_onset_is_an_exceeding_record_from_which_on_most_exceed(exceeded):
    steps = np.arange(len(exceeded)) * 10
    found = onset(steps, np.array(exceeded, dtype=bool))
    if not any(exceeded):
        assert found is None
        return
    start = found // 10
    assert exceeded[start]
    excess = [2 * sum(exceeded[i:]) - len(exceeded[i:]) for i in range(len(exceeded)) if exceeded[i]]
    assert 2 * sum(exceeded[start:]) - len(exceeded[start:]) == max(excess)


def test_records_that_were_not_measured_do_not_move_the_onset():
    exceeded = np.array([True, False, False, False, True, True])
    measured = np.array([True, False, False, False, True, True])
    assert onset(np.arange(6), exceeded) == 4
    assert onset(np.arange(6), exceeded, measured) == 0


def test_a_series_is_judged_by_the_window_and_dated_by_all_of_it():
    series = np.array([0.0, 0.0, 0.96, 0.96, 0.96])
    judged = judge("structural_zeros", series, np.arange(5) * 10, slice(3, 5), "try something")
    assert (judged.verdict, judged.value, judged.since_step) == ("watch", 0.96, 20)


def judgement(value):
    return Judgement(SHARE, value, 7, f"advice {value}")


def test_the_worst_judgement_makes_the_finding():
    finding = conclude("fc", "what was seen", [judgement(0.1), judgement(0.95), judgement(0.6), judgement(np.nan)])
    history = "mostly above 50 % since step 7"
    reason = f"'fc': what was seen; {history}"
    expected = Finding("check", "fc", "bad", 7, 0.95, None, SHARE, reason, "advice 0.95", history=history)
    assert finding == expected


def test_an_ok_finding_has_neither_onset_nor_advice():
    finding = conclude("fc", "what was seen", [judgement(np.nan), judgement(0.2)])
    assert (finding.verdict, finding.since_step, finding.reason, finding.advice) == (
        "ok",
        None,
        "'fc': what was seen",
        "",
    )


@given(verdicts=st.lists(st.sampled_from(["ok", "watch", "bad", "not measured"])))
def test_the_worst_verdict_does_not_depend_on_order_and_ignores_what_was_not_measured(verdicts):
    found = worst(verdicts)
    assert found == worst(verdicts[::-1])
    measured = [verdict for verdict in verdicts if verdict != "not measured"]
    assert found == (worst(measured) if measured else "not measured")
