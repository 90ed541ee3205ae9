"""Probes and evaluation passes answer what training rows under batch norm cannot."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import covshift
from covshift.diagnosis import diagnose
from covshift.diagnosis.finding import WHOLE_RUN
from covshift.diagnosis.shift_rules import distribution_shift
from covshift.diagnosis.streams import has_same_examples, is_recent
from covshift.schema import Layer

STEPS = range(0, 140, 10)


@pytest.fixture
def normalised(network_layers):
    """Batch norm in place of conv1: training rows tell nothing of it and of what follows."""
    layers = [replace(layer, module_type="BatchNorm2d") if layer.depth == 2 else layer for layer in network_layers]
    return [Layer("input", "", -1, 1, 0, 4), *layers]


def passes(moved, steps=STEPS, *, seed=None):
    """Passes in which conv1 moves by ``moved`` sd each; on the same examples, or on others where there is a seed."""
    rng = np.random.default_rng(5)
    fixed, inputs = rng.normal(size=(5, 200, 4)), rng.normal(size=(200, 4))
    rows = {}
    for index, step in enumerate(steps):
        if seed is not None:
            other = np.random.default_rng([seed, index])
            fixed, inputs = other.normal(size=(5, 200, 4)), other.normal(size=(200, 4))
        rows[step] = {"input": {"input": inputs}}
        for place, z in enumerate(fixed):
            rows[step][f"conv{place}"] = {"activation": z + (moved * index if place == 1 else 0.0)}
    return rows


def of(recording, layer):
    (finding,) = [f for f in distribution_shift(recording) if f.layer == layer]
    return finding


@pytest.mark.parametrize("stream", ["probe", "evaluation"])
@pytest.mark.parametrize(("moved", "verdict"), [(0.05, "ok"), (0.5, "watch")])
def test_under_batch_norm_the_same_examples_tell_the_shift(planted, normalised, stream, moved, verdict):
    recording = planted(layers=normalised, **{stream: passes(moved)})
    found = of(recording, "conv1")
    assert found.verdict == verdict
    # Oracle: two normals a shift of mean apart have this squared Cramer distance in sd, by a fine grid of the samples.
    z = np.sort(passes(moved)[0]["conv1"]["activation"].ravel())
    grid = np.linspace(z[0] - 1, z[-1] + 1, 200_001)
    apart = np.searchsorted(z, grid) - np.searchsorted(z + moved, grid)
    square = np.trapezoid((apart / z.size) ** 2, grid) / z.std() * 2 * np.sqrt(np.pi)
    assert found.value == pytest.approx(np.sqrt(square), rel=0.05)
    name = {"probe": "probe", "evaluation": "evaluation pass"}[stream]
    assert f"from one {name} to the next, 10 steps apart; mean of 5 pairs on the same 200 examples" in found.reason
    assert "in evaluation mode" in found.reason
    # Where training rows tell, they are asked first.
    assert "from one histogram to the next" in of(recording, "conv0").reason


def test_one_jump_is_said_to_be_one_and_not_to_last(planted, normalised):
    jump = passes(0.0)
    for step, rows in jump.items():
        if step >= 100:
            rows["conv1"]["activation"] = rows["conv1"]["activation"] + 1.0
    found = of(planted(layers=normalised, probe=jump), "conv1")
    # Of the pairs that end at 100, 110, 120 and 130 the first moved.
    assert (found.verdict, found.since_step) == ("watch", 100)
    assert found.reason.endswith("; above 0.2 sd in 1 of 4 pairs of records since step 100")


def test_evaluation_passes_over_other_examples_are_judged_with_their_noise(planted, normalised):
    still, moving = (of(planted(layers=normalised, evaluation=passes(m, seed=7)), "conv1") for m in (0.0, 0.5))
    assert "mean of 5 pairs with 200 examples a side" in still.reason
    assert (still.verdict, moving.verdict) == ("ok", "watch")
    assert moving.value == pytest.approx(0.5, abs=0.1)


def test_the_probe_is_asked_before_the_evaluation_passes(planted, normalised):
    found = of(planted(layers=normalised, probe=passes(0.0), evaluation=passes(0.5)), "conv1")
    assert found.verdict == "ok"
    assert "from one probe to the next" in found.reason


def test_what_is_there_is_not_asked_for(planted, normalised):
    none = of(planted(layers=normalised), "conv1")
    assert "record(probe=batch), or evaluation passes" in none.advice
    few = of(planted(layers=normalised, probe=passes(0.0, steps=[110, 120, 130])), "conv1")
    assert few.verdict == "not measured"
    assert "record(probe" not in few.advice
    assert "a smaller probe_every=" in few.advice
    old = of(planted(layers=normalised, evaluation=passes(0.0, steps=range(0, 60, 10))), "conv1")
    assert old.verdict == "not measured"
    assert "up to the end of training" in old.advice


def test_no_advice_of_a_diagnosis_asks_for_a_probe_that_is_there(planted, normalised):
    diagnosis = diagnose(planted(layers=normalised, probe=passes(0.0)))
    assert not [f for f in diagnosis.findings if "record(probe" in f.advice or "recorder.evaluation" in f.advice]
    shift = [f for f in diagnosis.findings if f.check == "shift" and f.layer.startswith("conv")]
    assert {f.verdict for f in shift} == {"ok"}


def test_probes_answer_where_training_has_no_histograms(planted, network_layers):
    layers = [Layer("input", "", -1, 1, 0, 4), *network_layers]
    recording = planted(layers=layers, probe=passes(0.5), without=["histograms"])
    assert of(recording, "conv1").verdict == "watch"
    assert of(recording, WHOLE_RUN).verdict == "not measured"


def test_the_same_examples_are_known_by_the_moments_of_the_input(make_recording, normalised):
    assert has_same_examples(make_recording({}, layers=normalised, evaluation=passes(0.5)), "evaluation")
    assert not has_same_examples(make_recording({}, layers=normalised, evaluation=passes(0.5, seed=1)), "evaluation")
    shuffled = passes(0.5)
    shuffled[10]["input"]["input"] = np.random.default_rng(0).permutation(shuffled[10]["input"]["input"])
    assert has_same_examples(make_recording({}, layers=normalised, evaluation=shuffled), "evaluation")
    unseen = {step: {k: v for k, v in rows.items() if k != "input"} for step, rows in passes(0.5).items()}
    assert not has_same_examples(make_recording({}, layers=normalised, evaluation=unseen), "evaluation")


def test_a_constant_input_is_the_same_in_every_pass(make_recording, normalised):
    constant = passes(0.5)
    for rows in constant.values():
        rows["input"]["input"] = np.ones((200, 4))
    assert has_same_examples(make_recording({}, layers=normalised, evaluation=constant), "evaluation")
    constant[20]["input"]["input"] = np.full((200, 4), 2.0)
    assert not has_same_examples(make_recording({}, layers=normalised, evaluation=constant), "evaluation")


def test_a_stream_is_recent_where_it_reaches_the_last_window(planted, normalised):
    def recent(steps):
        return is_recent(planted(layers=normalised, probe=passes(0.0, steps=steps)), "probe", "histograms")

    assert recent([50, 90])
    assert not recent([50, 80])
    assert not is_recent(planted(layers=normalised), "probe", "histograms")


def test_units_that_trade_places_are_found_on_the_same_examples_too(planted, normalised):
    rows = passes(0.0)
    for index, step in enumerate(rows):
        rows[step]["conv2"]["activation"] = (
            rows[step]["conv2"]["activation"] + np.array([-1.5, 1.5, -2, 2]) * (-1) ** index
        )
    found = of(planted(layers=normalised, probe=rows), "conv2")
    assert found.verdict == "watch"
    assert "its units by" in found.reason


def test_the_interval_on_the_same_examples_is_over_pairs(planted, normalised):
    rng = np.random.default_rng(0)
    rows = passes(0.0)
    place = 0.0
    for step in rows:
        place += rng.uniform(0.2, 0.6)
        rows[step]["conv1"]["activation"] = rows[step]["conv1"]["activation"] + place
    found = of(planted(layers=normalised, probe=rows), "conv1")
    assert found.interval[0] < found.value < found.interval[1]


def test_a_probed_training_with_batch_norm_has_a_verdict_on_every_layer():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)

    def trained(**options):
        with covshift.record(model, every=1, **options) as recorder:
            for _ in range(24):
                model(torch.randn(32, 6)).square().mean().backward()
                optimizer.step()
                optimizer.zero_grad()
        return {f.layer: f for f in distribution_shift(recorder.recording) if f.layer != WHOLE_RUN}

    assert {layer for layer, f in trained().items() if f.verdict == "not measured"} == {"1", "2", "3"}
    probed = trained(probe=torch.randn(64, 6), probe_every=1)
    assert {layer for layer, f in probed.items() if f.verdict == "not measured"} == set()
    assert all("on the same 64 examples, in evaluation mode" in probed[layer].reason for layer in "123")
    assert probed["1"].reason.startswith("'1': moved by ")
