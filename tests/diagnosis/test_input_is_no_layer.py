"""The model's input stands among the rows of a recording, and among no number of layers."""

import numpy as np
import pytest

from covshift.analysis import operating_point
from covshift.diagnosis import diagnose
from covshift.plots.registry import FIGURES
from covshift.reporting.content import run_content
from covshift.reporting.results import gather
from covshift.schema import Layer

LAYERS = [Layer("(input)", "", 0, 1, 0, 4), *(Layer(f"fc{at}", "Linear", at + 1, 1, 0, 4) for at in range(3))]


@pytest.fixture(scope="module")
def build(make_recording):
    def made(broken=()):
        rng, steps = np.random.default_rng(0), {}
        for step in range(0, 200, 2):
            drawn = {layer.name: rng.normal(size=(32, 4)) for layer in LAYERS}
            for name in broken:
                drawn[name][0, 0] = np.nan if step >= 50 else 1.0
            steps[step] = {name: {"activation": x, "activation_grad": 0.1 * x} for name, x in drawn.items()}
            steps[step]["(input)"] = {"input": drawn["(input)"], "activation": drawn["(input)"]}
        return make_recording(steps, layers=LAYERS)

    return made


@pytest.fixture(scope="module")
def recording(build):
    return build()


def test_gradient_reaches_the_layers(recording):
    assert "gradient reaches all 3 layers" in diagnose(recording).sentence


def test_broken_numbers_are_counted_by_layer_and_named_in_the_input(build):
    every = build(broken=[layer.name for layer in LAYERS])
    assert "non-finite bad in 3 layers and (input) ('(input)' first at step 50)" in diagnose(every).sentence
    assert "non-finite bad in 1 layer ('fc2' first at step 50)" in diagnose(build(broken=["fc2"])).sentence
    assert "non-finite bad in (input) ('(input)' first at step 50)" in diagnose(build(broken=["(input)"])).sentence


def test_an_input_that_never_varies_is_named(make_recording, recording):
    assert "constant" not in diagnose(recording).sentence
    steps, rng = {}, np.random.default_rng(0)
    for step in range(0, 100, 5):
        given = np.full((32, 4), 0.1)
        steps[step] = {layer.name: {"activation": rng.normal(size=(32, 4))} for layer in LAYERS[1:]}
        steps[step]["(input)"] = {"input": given, "activation": given}
    diagnosis = diagnose(make_recording(steps, layers=LAYERS))
    assert "'(input)' is constant; " in diagnosis.sentence
    assert diagnosis.worst != "bad"
    for step, tensors in steps.items():
        tensors["(input)"] = {"input": given + step, "activation": given + step}
    assert "constant" not in diagnose(make_recording(steps, layers=LAYERS)).sentence


def test_the_header_and_the_tally_of_a_report_count_the_same_layers(recording):
    told = run_content(gather("run", recording))
    assert told["facts"]["layers"] == 3
    assert sum(told["layers_by_verdict"].values()) == 3
    assert [row["layer"] for row in told["layers"]] == [layer.name for layer in LAYERS]


def test_figures_count_layers_and_name_the_input(recording):
    states = operating_point.stability(recording)
    given = str(states["state"].sel(layer="(input)").values).lower()
    title = " ".join(FIGURES["stability"].figure(recording).get_suptitle().split())
    stable = int((states["state"].values[1:] == "STABLE").sum())
    assert title.startswith(f"{stable} of 3 layers stable")
    assert f"; (input) {given} (window" in title
    grid = FIGURES["verdicts"].figure(recording).axes[0]
    assert grid.get_title(loc="left").startswith("3 layers by their worst check")
