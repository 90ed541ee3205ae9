"""The diagnosis as a whole: order, grid, sentence, serial forms, and recordings that lack nearly everything."""

import io
import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
import xarray as xr

from covshift.analysis import gradient_health
from covshift.analysis.active_mass import active_mass
from covshift.diagnosis import Diagnosis, Finding, diagnose
from covshift.diagnosis.finding import WHOLE_RUN
from covshift.diagnosis.rules import RULES
from covshift.diagnosis.thresholds import THRESHOLDS
from covshift.exceptions import InvalidArgumentError, RecordingDamaged


def finding(check, layer, verdict, *, since_step=None, value=0.0, threshold=None, interval=None):
    history = "" if since_step is None else f"crossed at step {since_step}"
    reason = f"{layer}: {check} & so on"
    return Finding(check, layer, verdict, since_step, value, interval, threshold, reason, "try", history=history)


FINDINGS = (
    finding("gradient arrives", "b", "bad", since_step=40, value=1.0, threshold=THRESHOLDS["gradient_missing"]),
    finding("units", "b", "watch", since_step=10, value=0.25, threshold=THRESHOLDS["silent_units"]),
    finding("scale over depth", WHOLE_RUN, "watch", since_step=20, value=math.nan, interval=(0.1, math.inf)),
    finding("update ratio", "extra", "watch", since_step=20, threshold=THRESHOLDS["update_ratio"]),
    finding("update ratio", "extra", "ok"),
    finding("shift", "b", "not measured", value=math.nan),
    finding("gradient arrives", "a", "ok"),
    finding("shift", "a", "ok"),
)
DIAGNOSIS = Diagnosis(FINDINGS, ("a", "b", "never judged"))


def test_findings_come_worst_first_then_earliest_then_in_the_order_of_checks_and_depth(planted):
    def faults(step, tensors):
        if step >= 60:
            tensors["act2"]["activation"] = tensors["act2"]["activation"] * 0
        if step >= 20:
            tensors["act4"]["activation"] = tensors["act4"]["activation"] * 0
        tensors["conv0"]["activation"] = tensors["conv0"]["activation"] + 0.1 * step

    findings = diagnose(planted(faults)).findings
    assert [(f.verdict, f.check, f.layer) for f in findings[:3]] == [
        ("bad", "units", "act4"),
        ("bad", "units", "act2"),
        ("watch", "shift", "conv0"),
    ]
    ranks = [("bad", "watch", "not measured", "ok").index(f.verdict) for f in findings]
    assert ranks == sorted(ranks)
    quiet = [f.layer for f in findings if f.verdict == "ok" and f.check == "gradient zeros"]
    assert quiet == [f"{kind}{index}" for index in range(5) for kind in ("conv", "act")]


def test_the_grid_shows_the_worst_verdict_of_every_layer_and_check():
    grid = DIAGNOSIS.grid()
    assert grid.dims == ("layer", "check")
    assert grid["layer"].values.tolist() == [WHOLE_RUN, "a", "b", "extra"]
    assert grid["check"].values.tolist() == list(RULES)
    assert str(grid.sel(layer="b", check="gradient arrives").values) == "bad"
    assert str(grid.sel(layer="extra", check="update ratio").values) == "watch"
    assert str(grid.sel(layer=WHOLE_RUN, check="scale over depth").values) == "watch"
    assert str(grid.sel(layer="b", check="shift").values) == "not measured"
    assert str(grid.sel(layer="a", check="units").values) == ""


def test_the_sentence_goes_from_gradient_to_units_to_the_rest_to_the_unknown():
    assert DIAGNOSIS.sentence == (
        "Unhealthy: gradient does not reach 1 of 2 layers ('b' crossed at step 40); "
        "units are dead or silent in 1 of 1 layer (most in 'b': 25 %); scale over depth watch; "
        "update ratio watch in 1 layer ('extra' crossed at step 20); not measured: shift in 1 of 2."
    )
    assert DIAGNOSIS.worst == "bad"


def test_the_sentence_names_what_cut_the_gradient_and_counts_each_verdict():
    cut = replace(FINDINGS[0], explained_by="units in c")
    zeros = [finding("gradient zeros", name, verdict, since_step=5) for name, verdict in (("a", "bad"), ("b", "watch"))]
    assert Diagnosis((cut, *zeros), ("a", "b")).sentence == (
        "Unhealthy: gradient does not reach 1 of 1 layer ('b' crossed at step 40; follows from units in c); "
        "gradient zeros bad in 1 layer ('a' crossed at step 5), watch in 1."
    )


@pytest.mark.parametrize(
    ("thresholds", "words"),
    [
        (["dead_units"], "dead"),
        (["stuck_units", "dead_units"], "dead or stuck"),
        (["silent_units", "stuck_units"], "dead or silent or stuck"),
    ],
)
def test_the_sentence_calls_units_what_they_are(thresholds, words):
    found = [
        finding("units", f"l{i}", "bad", value=0.5, threshold=THRESHOLDS[name]) for i, name in enumerate(thresholds)
    ]
    assert f"units are {words} in {len(found)} of " in Diagnosis(tuple(found), ()).sentence


def test_the_sentence_does_not_praise_a_network_of_broken_numbers():
    broken = finding("non-finite", "a", "bad", since_step=7, value=1.0)
    well = finding("gradient arrives", "a", "ok"), finding("units", "a", "ok", threshold=THRESHOLDS["dead_units"])
    after = replace(
        finding("units", "b", "bad", value=1.0, threshold=THRESHOLDS["stuck_units"]), explained_by="non-finite in a"
    )
    assert (
        Diagnosis((broken, after, *well), ("a", "b")).sentence
        == "Unhealthy: non-finite bad in 1 layer ('a' crossed at step 7)."
    )


@pytest.mark.parametrize(
    ("findings", "sentence"),
    [
        ((), "Nothing could be judged: 0 checks not measured."),
        ((finding("shift", "a", "not measured"),), "Nothing could be judged: 1 check not measured."),
        (
            (finding("gradient arrives", "a", "ok"), finding("update ratio", "a", "ok")),
            "Healthy: gradient reaches the one layer.",
        ),
        (
            (finding("gradient arrives", "a", "ok"), finding("update ratio", "a", "not measured")),
            "No fault in what was measured: gradient reaches the one layer; not measured: update ratio.",
        ),
        (
            (
                finding("gradient arrives", "a", "ok"),
                finding("scale over time", WHOLE_RUN, "ok"),
                finding("units", "a", "ok", value=0.0),
                finding("units", "b", "not measured"),
            ),
            "No fault in what was measured: gradient reaches the one layer; no unit is dead in 1 of 2 layers; not "
            "measured: units in 1 of 2.",
        ),
        (
            (finding("gradient arrives", "(root)", "ok"),),
            "No fault in what was measured: gradient reaches the one layer.",
        ),
        (
            (finding("non-finite", "a", "ok"), finding("units", WHOLE_RUN, "not measured")),
            "No fault in what was measured: not measured: units.",
        ),
        (
            (finding("units", "a", "ok", value=0.04), finding("gradient arrives", "a", "not measured")),
            "No fault in what was measured: no layer has more than 4 % dead units; not measured: gradient arrives.",
        ),
    ],
)
def test_the_sentence_of_special_cases(findings, sentence):
    assert Diagnosis(findings, ("a",)).sentence == sentence


def test_the_diagnosis_is_strict_json(planted, healthy):
    for diagnosis in (DIAGNOSIS, diagnose(healthy)):
        twin = json.loads(json.dumps(diagnosis.to_dict(), allow_nan=False))
        assert twin["covshift_diagnosis_version"] == 1
        assert twin["sentence"] == diagnosis.sentence
        assert twin["worst"] == diagnosis.worst
        assert [entry["reason"] for entry in twin["findings"]] == [f.reason for f in diagnosis.findings]
    scale = DIAGNOSIS.to_dict()["findings"][2]
    assert (scale["value"], scale["interval"], scale["threshold"]) == (None, [0.1, None], None)
    assert DIAGNOSIS.to_dict()["findings"][3]["threshold"]["watch"] == [1e-4, 1e-2]


def test_the_frame_has_a_row_per_finding():
    frame = DIAGNOSIS.to_frame()
    assert frame["verdict"].tolist() == [f.verdict for f in FINDINGS]
    assert frame["threshold"].tolist()[0] == str(THRESHOLDS["gradient_missing"])
    assert list(frame.columns)[:3] == ["check", "layer", "verdict"]
    assert len(Diagnosis((), ()).to_frame()) == 0


def test_the_html_shows_what_is_not_ok_and_escapes_it():
    shown = DIAGNOSIS._repr_html_()
    assert "gradient arrives &amp; so on" in shown
    assert "a: shift" not in shown
    assert shown.count("<tr>") == 5
    assert "3 findings ok" in shown


def printed(diagnosis):
    from rich.console import Console

    console = Console(width=200, record=True, file=io.StringIO())
    console.print(diagnosis)
    return console.export_text()


def ranking():
    """A cause that began first, one of which most follows, and one to watch that makes a bad one."""
    causes = [
        finding("units", "early", "bad", since_step=1),
        finding("gradient arrives", "most", "bad", since_step=9),
        finding("shift", "mild", "watch", since_step=3),
        finding("scale over time", "milder", "watch", since_step=2),
    ]
    follow = {"early": ["watch"], "most": ["watch", "watch", "bad"], "mild": ["bad", "watch"], "milder": []}
    after = [
        replace(finding("gradient zeros", f"{cause.layer}{n}", verdict), explained_by=f"{cause.check} in {cause.layer}")
        for cause in causes
        for n, verdict in enumerate(follow[cause.layer])
    ]
    unknown = finding("clipping", "unknown", "not measured")
    return Diagnosis((*causes[:2], *causes[:1:-1], *after, unknown), ())


def test_causes_stand_in_one_order_in_every_form():
    diagnosis, order = ranking(), ["most", "mild", "early", "milder"]
    told = diagnosis._repr_html_(), str(diagnosis), printed(diagnosis)
    assert [cause.layer for cause in diagnosis.causes] == order
    assert [layer for layer in re.findall(r">(\w+)</td><td[^>]*>\1: ", told[0]) if layer in order] == order
    assert re.findall(r"^[^:\n]+: [^:\n]+: (\w+): ", told[1].partition("\n")[2], re.MULTILINE) == order
    assert re.findall(r"^(?:bad|watch) .*, '(\w+)'", told[2], re.MULTILINE) == order


def test_a_cause_that_is_milder_than_what_follows_says_both_in_every_form():
    diagnosis = ranking()
    for told in (diagnosis._repr_html_(), str(diagnosis), printed(diagnosis)):
        assert told.count("watch, its consequences bad") == 1


def test_html_of_a_finding_tells_evidence_and_advice_and_obeys_no_name():
    named = "<script>alert(1)</script>"
    one = Finding("units", named, "bad", 3, 1.0, None, None, f"{named} & co", "<b>try</b>", f"units in {named}")
    for shown in (one._repr_html_(), Diagnosis((one, replace(one, explained_by="")), (named,))._repr_html_()):
        assert "<script" not in shown
        assert "<b>try" not in shown
        assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; co" in shown
        assert "To try: &lt;b&gt;try" in shown
    assert "Explained by units in &lt;script&gt;" in one._repr_html_()
    assert "Consequences: 1 other finding" in shown


def test_html_shortens_long_names_of_layers_and_tells_them_apart_with_the_full_one_in_the_title():
    names = ["L" * 200, "L" * 199 + "M", "conv1"]
    findings = tuple(Finding("units", name, "bad", 3, 1.0, None, None, "dead", "") for name in names)
    for shown in (Diagnosis(findings, tuple(names))._repr_html_(), "".join(one._repr_html_() for one in findings)):
        cells = re.findall(r'<td[^>]*?( title="[^"]*")?>([^<]*)</td>', shown)
        named = [(title, text) for title, text in cells if text not in ("units", "dead")]
        assert [title for title, _ in named] == [f' title="{name}"' for name in names[:2]] + [""]
        assert len({text for _, text in named}) == 3
        assert all(len(text) <= 32 for _, text in named)
        assert named[2][1] == "conv1"


def test_the_terminal_table_shows_what_is_not_ok():
    from rich.console import Console

    console = Console(width=200, record=True, file=io.StringIO())
    console.print(DIAGNOSIS)
    text = console.export_text()
    assert "Unhealthy" in text
    assert "b: gradient arrives & so on" in text
    assert "a: shift" not in text


def test_the_terminal_table_tells_a_causes_own_verdict_from_that_of_what_follows():
    from rich.console import Console

    cause = finding("units", "a", "watch", threshold=THRESHOLDS["silent_units"])
    cut = replace(FINDINGS[0], explained_by="units in a")
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(Diagnosis((cut, cause, FINDINGS[3]), ("a", "b")))
    lines = [line.strip() for line in console.export_text().splitlines()]
    assert "bad    units, 'a': watch, its consequences bad" in lines
    assert "watch  update ratio, 'extra'" in lines


def test_a_recording_is_not_changed_by_being_judged(healthy):
    before = healthy.copy(deep=True)
    diagnose(healthy)
    xr.testing.assert_identical(before, healthy)


def test_an_empty_recording_is_said_to_be_empty_once(make_recording):
    from rich.console import Console

    diagnosis = diagnose(make_recording({}))
    assert diagnosis.worst == "not measured"
    assert diagnosis.sentence.startswith("Nothing was recorded, no step, no probe, no evaluation pass: train the very")
    console = Console(width=1000, record=True, file=io.StringIO())
    console.print(diagnosis)
    assert console.export_text().strip() == diagnosis.sentence
    assert all(f.verdict == "not measured" and f.advice for f in diagnosis.findings)


def test_layers_that_were_declared_and_never_ran_are_no_reason_to_fail(planted, network_layers, make_recording):
    diagnosis = diagnose(make_recording({}, layers=network_layers))
    assert diagnosis.worst == "not measured"
    assert diagnosis.layers[0] == "conv0"


def test_one_record_can_be_judged_as_far_as_it_goes(planted, healthy_steps, network_layers, make_recording):
    diagnosis = diagnose(make_recording({0: healthy_steps[0]}, layers=network_layers))
    verdicts = {check: {f.verdict for f in diagnosis.findings if f.check == check} for check in RULES}
    assert verdicts["gradient arrives"] == {"ok"}
    assert verdicts["gradient zeros"] == {"ok"}
    assert verdicts["non-finite"] == {"ok"}
    assert verdicts["shift"] == {"not measured"}
    assert verdicts["update ratio"] == {"not measured"}
    assert verdicts["linkage"] == set()


@pytest.mark.parametrize(
    ("without", "check", "message"),
    [
        ("histograms", "shift", "no group 'histograms'; it holds layers, units, parameters"),
        ("units", "units", "no group 'units'"),
        ("parameters", "update ratio", "no group 'parameters'"),
    ],
)
def test_a_missing_group_leaves_its_check_not_measured_and_the_others_standing(planted, without, check, message):
    diagnosis = diagnose(planted(without=[without]))
    missing = [f for f in diagnosis.findings if f.check == check]
    assert [(f.layer, f.verdict) for f in missing] == [(WHOLE_RUN, "not measured")]
    assert message in missing[0].reason
    assert diagnosis.worst == "ok"
    assert check in diagnosis.sentence.partition("not measured: ")[2]


def test_without_gradients_everything_about_them_is_not_measured(planted):
    def forward_only(step, tensors):
        for signals in tensors.values():
            del signals["activation_grad"]

    diagnosis = diagnose(planted(forward_only))
    unknown = {f.check for f in diagnosis.findings if f.verdict == "not measured"}
    assert {"gradient arrives", "gradient zeros", "scale over depth"} <= unknown
    assert not {"units", "non-finite"} & unknown
    assert {f.layer for f in diagnosis.findings if f.check == "shift" and f.verdict == "not measured"} == {WHOLE_RUN}


@pytest.mark.parametrize("everything", [np.nan, np.inf])
def test_a_run_that_blew_up_is_judged_without_a_warning(planted, everything):
    def blow_up(step, tensors):
        for signals in tensors.values():
            for signal, array in signals.items():
                signals[signal] = np.full_like(array, everything)

    diagnosis = diagnose(planted(blow_up))
    assert diagnosis.worst == "bad"
    assert {f.layer for f in diagnosis.findings if f.check == "non-finite" and f.verdict == "bad"} == set(
        diagnosis.layers
    )


@pytest.mark.parametrize("everything", [np.nan, np.inf])
@pytest.mark.parametrize("first", [0, 60])
def test_of_layers_without_a_finite_number_nothing_is_called_ok(planted, everything, first):
    def blow_up(step, tensors):
        for signals in tensors.values():
            for signal, array in signals.items():
                signals[signal] = np.full_like(array, everything) if step >= first else array

    recording = planted(blow_up)
    findings = diagnose(recording).findings
    assert {f.verdict for f in findings if f.check in ("gradient arrives", "gradient zeros", "units")} == {
        "not measured"
    }
    (said,) = {f.reason.partition(": ")[2] for f in findings if f.check == "units"}
    assert said == "every element of its output was NaN or infinite in the last 5 records"
    for rates in (gradient_health.zero_rate(recording), active_mass(recording)):
        gone = rates["step"].values >= first
        assert np.isnan(rates.values[gone]).all()
        assert first == 0 or np.isfinite(rates.values[~gone]).any()


def test_what_is_no_recording_is_refused():
    with pytest.raises(InvalidArgumentError, match=r"expected the xarray.DataTree that covshift.open returns"):
        diagnose("runs/plain.zarr")
    with pytest.raises(RecordingDamaged, match="covshift_schema_version"):
        diagnose(xr.DataTree.from_dict({"layers": xr.Dataset()}))


def test_an_impossible_number_of_examples_is_refused(healthy):
    with pytest.raises(InvalidArgumentError, match="distinct_examples=0"):
        diagnose(healthy, distinct_examples=0)
