"""Figures by name: from a recording to the drawing, and clear words where that cannot be."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.text import Text

from covshift import plots
from covshift.diagnosis import Diagnosis, Finding, diagnose
from covshift.diagnosis.thresholds import THRESHOLDS
from covshift.exceptions import InvalidArgumentError, SignalNotRecorded
from covshift.plots import asking
from covshift.plots.registry import FIGURES
from covshift.plots.selection import chosen
from covshift.schema import Layer

LAYERS = [
    Layer("fc0", "Linear", 0, 1, 0, 6),
    Layer("act0", "ReLU", 1, 1, 0, 6, activation="ReLU", preactivation_of="fc0", structural_measured=True),
    Layer("fc1", "Linear", 2, 1, 0, 6),
    Layer("act1", "Tanh", 3, 1, 0, 6, activation="Tanh", preactivation_of="fc1", structural_measured=True),
]


@pytest.fixture(scope="module")
def recording(make_recording) -> xr.DataTree:
    rng = np.random.default_rng(0)
    steps = {}
    for step in range(0, 60, 5):
        z = [rng.normal(0.01 * step, 1.0, (16, 6)) for _ in range(2)]
        out = {"fc0": z[0], "act0": np.maximum(z[0], 0), "fc1": z[1], "act1": np.tanh(z[1])}
        steps[step] = {
            name: {"activation": x, "activation_grad": rng.normal(0, 0.1, x.shape)} for name, x in out.items()
        }
    measured = {"weight_norm": 1.0, "update_norm": 1e-3, "gradient_norm": 0.5, "gradient_norm_preclip": 1.0}
    parameters = {step: {f"{name}.weight": measured for name in ("fc0", "fc1")} for step in steps}
    scalars = {step: {"loss": 1.0 / (step + 1)} for step in steps}
    flat = {"act0": lambda z: z <= 0, "act1": lambda z: np.abs(z) > 9}
    return make_recording(steps, layers=LAYERS, flat=flat, parameters=parameters, scalars=scalars)


def test_the_layer_drawn_unasked_is_the_cause_from_which_the_worst_follows(recording):
    def found(check, layer, verdict, cause=""):
        return Finding(check, layer, verdict, 0, 1.0, None, THRESHOLDS["silent_units"], "", "", explained_by=cause)

    mild, silent = found("update ratio", "fc1", "watch"), found("units", "act0", "watch")
    cut = found("gradient arrives", "fc0", "bad", "units in act0")
    judged = Diagnosis((cut, mild, silent), ("fc0", "act0", "fc1", "act1"))
    subject = SimpleNamespace(recording=recording, judged=judged)
    (river,), _ = asking.river(subject, None)
    assert river.attrs["layer"] == "act0"


def with_probes(recording: xr.DataTree, made) -> xr.DataTree:
    tree = recording.copy()
    tree["gradient_ics"] = xr.DataTree(made().ics(4))
    tree["shift_attribution"] = xr.DataTree(made().attribution(4))
    return tree


def test_there_are_the_figures_of_the_design_each_with_question_and_needs():
    assert list(FIGURES) == [
        "verdicts",
        "river",
        "ridgeline",
        "shift",
        "operating-point",
        "stability",
        "zeros",
        "dead-units",
        "update-ratio",
        "norm",
        "ics",
        "comparison",
        "differences",
    ]
    assert all(kind.question.endswith("?") and kind.needs and kind.title for kind in FIGURES.values())
    assert {kind.plot for kind in FIGURES.values()} == {
        getattr(plots, n) for n in plots.__all__ if n.startswith("plot_")
    }


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_is_drawn_from_a_recording(name, recording, made):
    subject = {"a": recording, "b": recording} if FIGURES[name].several_runs else with_probes(recording, made)
    drawn = FIGURES[name].figure(subject)
    assert isinstance(drawn, Figure)
    drawn.draw_without_rendering()


@pytest.mark.parametrize("name", [name for name, kind in FIGURES.items() if kind.takes_layer])
def test_every_figure_that_takes_a_layer_names_it(name, recording):
    layer = "fc1" if name == "update-ratio" else "act1"
    subject = {"a": recording, "b": recording} if FIGURES[name].several_runs else recording
    drawn = FIGURES[name].figure(subject, layer=layer)
    drawn.draw_without_rendering()
    assert any(layer in text.get_text() for text in drawn.findobj(Text))


@pytest.mark.parametrize("name", [name for name, kind in FIGURES.items() if kind.takes_layer and not kind.several_runs])
def test_a_layer_that_is_not_there_is_answered_with_near_matches(name, recording):
    with pytest.raises(
        InvalidArgumentError, match=r"layer='act11': not in the recording \(4 layers\), did you mean 'act1'"
    ):
        FIGURES[name](recording, layer="act11")


@pytest.mark.parametrize("name", ["norm", "ics"])
def test_a_figure_of_all_layers_takes_none(name, recording):
    with pytest.raises(
        InvalidArgumentError, match=f"the figure '{name}' shows all layers; one layer is shown by verdicts"
    ):
        FIGURES[name](recording, layer="act1")


def test_a_figure_that_is_not_there_is_answered_with_near_matches():
    with pytest.raises(InvalidArgumentError, match="figure='rivers': no such figure, did you mean 'river'"):
        plots.figure_kind("rivers")


def test_a_figure_of_one_recording_refuses_two(recording):
    with pytest.raises(
        InvalidArgumentError, match="2 given to a figure of one; only 'comparison' and 'differences' take"
    ):
        FIGURES["river"]({"a": recording, "b": recording})


@pytest.mark.parametrize("subject", [None, {}, 3, {"a": 3}])
def test_what_is_no_recording_is_refused(subject):
    with pytest.raises(
        InvalidArgumentError, match=r"recording: expected the xarray\.DataTree that covshift\.open returns"
    ):
        FIGURES["river"](subject)


@pytest.mark.parametrize(
    ("name", "group"),
    [("river", "histograms"), ("shift", "histograms"), ("dead-units", "units"), ("update-ratio", "parameters")],
)
def test_a_group_that_was_not_recorded_is_named(name, group, recording):
    lacking = xr.DataTree.from_dict({path: recording[path].to_dataset() for path in ("layers", "scalars")})
    lacking.attrs |= recording.attrs
    with pytest.raises(SignalNotRecorded, match=f"no group '{group}'"):
        FIGURES[name](lacking)


def test_a_recording_without_a_probe_says_how_to_measure_one(recording):
    with pytest.raises(
        SignalNotRecorded, match=r"no group 'gradient_ics'; measure it with covshift\.probe\.gradient_ics"
    ):
        FIGURES["ics"](recording)


def test_findings_of_a_diagnosis_at_hand_are_those_of_the_rules(recording):
    given = FIGURES["shift"].figure(recording, diagnosis=diagnose(recording))
    asked = FIGURES["shift"].figure(recording)
    assert given.axes[0].get_title(loc="left") == asked.axes[0].get_title(loc="left")


def test_one_nonlinearity_brings_the_findings_of_its_producer(recording):
    threshold = THRESHOLDS["structural_zeros"]
    found = Finding("gradient zeros", "fc1", "bad", 20, 1.0, None, threshold, "", "")
    diagnosis = Diagnosis((found,), ("fc1", "act1"))
    drawn = FIGURES["zeros"].figure(recording, layer="act1", diagnosis=diagnosis)
    assert drawn.get_suptitle().startswith("Layer 'fc1'")
    assert not FIGURES["zeros"].figure(recording, layer="act0", diagnosis=diagnosis).get_suptitle().startswith("Layer")


def test_seeds_of_one_variant_are_taken_together(recording):
    runs = {f"relu seed {seed}": recording for seed in range(2)} | {"other seed 0": recording}
    said = [text.get_text() for text in FIGURES["comparison"].figure(runs).subfigs[0].legends[0].texts]
    assert said == ["relu (2 seeds)", "other", "90 % interval of the mean over seeds"]


@pytest.mark.parametrize(
    "name", [name for name in FIGURES if name not in ("verdicts", "comparison", "differences", "ics")]
)
def test_an_empty_recording_gives_a_clear_error(name, make_recording):
    with pytest.raises(SignalNotRecorded, match="was recorded|holds no layer|no layer is a nonlinearity|no group"):
        FIGURES[name].figure(make_recording({}, layers=[]))


@pytest.mark.parametrize("name", ["verdicts", "comparison", "differences"])
def test_an_empty_recording_has_verdicts_and_a_comparison_that_say_so(name, make_recording):
    empty = make_recording({}, layers=[])
    drawn = FIGURES[name].figure({"a": empty, "b": empty} if FIGURES[name].several_runs else empty)
    assert any(word in text.get_text() for text in drawn.findobj(Text) for word in ("not measured", "nothing was"))


def test_a_name_among_those_known_is_itself_and_none_known_is_said():
    assert chosen("a", ["a", "b"]) == "a"
    with pytest.raises(InvalidArgumentError, match=r"layer='q': not in the recording \(2 layers\); there are 'a', 'b'"):
        chosen("q", ["a", "b"])
    with pytest.raises(InvalidArgumentError, match="there are none"):
        chosen("q", [])
