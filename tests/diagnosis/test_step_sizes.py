"""What becomes of gradients in the optimizer: who makes steps of them in proportion, and what follows for updates."""

import numpy as np
import pytest
import torch
from torch import nn

import covshift
from covshift.diagnosis import diagnose
from covshift.diagnosis.causes import Order, explained
from covshift.diagnosis.finding import WHOLE_RUN, Finding
from covshift.diagnosis.parameter_rules import update_ratio
from covshift.diagnosis.step_sizes import StepSizes, dtype
from covshift.diagnosis.thresholds import THRESHOLDS

RATE, RECORDS = 0.1, 10


def recording(make_recording, rows, *, rate=RATE, form="float32"):
    """The same row of every parameter in every record: (weight, gradient, update) and, where clipped, the factor."""
    row = {}
    for name, (weight, gradient, update, *factor) in rows.items():
        before = gradient / factor[0] if factor else gradient
        norms = {"weight_norm": weight, "gradient_norm": gradient, "update_norm": update}
        row[name] = norms | {"gradient_norm_preclip": before, "gradient_measured": 1, "sampled_share": 1.0}
    steps = range(0, 10 * RECORDS, 10)
    logged = {} if rate is None else {"scalars": {step: {"learning_rate": rate} for step in steps}}
    made = make_recording(parameters=dict.fromkeys(steps, row), **logged)
    made.attrs["covshift_model"] = {name.rpartition(".")[0]: f"Linear weight={form}[1x1]" for name in rows}
    return made


def sgd(gradient, *, weight=1.0, factor=1.0):
    return weight, gradient * factor, RATE * gradient * factor, factor


def still(gradient, weight=4.6):
    return weight, gradient, 0.0


@pytest.mark.parametrize(
    ("optimizer", "grows"),
    [
        (lambda parameters: torch.optim.SGD(parameters, lr=0.05), True),
        (lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9), None),
        (lambda parameters: torch.optim.Adam(parameters, lr=1e-3), False),
        (lambda parameters: torch.optim.AdamW(parameters, lr=0.1), False),
        (lambda parameters: torch.optim.RMSprop(parameters, lr=1e-3), False),
        (lambda parameters: torch.optim.SGD(parameters, lr=0.05, weight_decay=1.0), False),
    ],
    ids=["sgd", "momentum", "adam", "adamw", "rmsprop", "weight decay"],
)
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e3])
def test_only_optimizers_whose_steps_grow_with_the_gradient_are_taken_for_such(tmp_path, optimizer, grows, scale):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.Sigmoid(), nn.Linear(8, 8), nn.Sigmoid(), nn.Linear(8, 2))
    steps = optimizer(model.parameters())
    with covshift.record(model, tmp_path / "run.zarr", every=1) as recorder:
        for _ in range(12):
            steps.zero_grad()
            (scale * model(torch.randn(16, 8)).square().mean()).backward()
            steps.step()
    found = StepSizes.of(recorder.recording).grow
    # Of momentum it may be unknown; plain steps must be known, and no other be taken for one.
    assert grows is None or found == grows


@pytest.mark.parametrize("seed", range(5))
def test_updates_said_to_be_lost_are_lost_in_the_arithmetic_of_the_dtype(make_recording, seed):
    generator = torch.Generator().manual_seed(seed)
    weight, gradient = (torch.randn(64, 64, generator=generator) for _ in range(2))
    weight_norm, gradient_norm = float(weight.norm()), float(gradient.norm())
    verdicts = {}
    for decade in range(-16, -4):
        shrunk = gradient * 10.0**decade
        moved = float((weight - RATE * shrunk - weight).norm())
        rows = {"fc.weight": (weight_norm, gradient_norm * 10.0**decade, moved), "top.weight": sgd(1.0)}
        made = recording(make_recording, rows)
        made["parameters"] = made["parameters"].to_dataset().assign_coords(parameter_size=("parameter", [4096, 1]))
        verdicts[decade] = moved == 0, "fc.weight" in StepSizes.of(made).lost
    assert all(told <= lost for lost, told in verdicts.values())
    # And at most the last decade before something moves is left open.
    assert sum(lost for lost, _ in verdicts.values()) - sum(told for _, told in verdicts.values()) <= 1


def test_a_weight_whose_gradient_is_too_small_for_its_dtype_is_told_so(make_recording):
    made = recording(make_recording, {"fc.weight": still(4.6e-17), "top.weight": sgd(1e-2)})
    finding = update_ratio(made)[0]
    assert (finding.verdict, finding.since_step) == ("bad", 0)
    assert finding.reason == (
        "'fc': 'fc.weight' did not move in the last 5 records: its gradient (4.6e-17) makes steps of at most 1.0e-18 "
        "of its length, too small for a float32 weight to notice; since step 0"
    )
    assert finding.advice.startswith("find what makes its gradient so small: see scale over depth")
    assert "optimizer" not in finding.advice


@pytest.mark.parametrize(
    ("rows", "options"),
    [
        ({"fc.weight": still(1e-3), "top.weight": sgd(1e-2)}, {}),
        ({"fc.weight": still(1e-17), "top.weight": sgd(1e-2)}, {"rate": None}),
        ({"fc.weight": still(1e-17), "top.weight": sgd(1e-2)}, {"form": "unheard"}),
        ({"fc.weight": still(1e-17), "top.weight": still(1e-17)}, {}),
        ({"fc.weight": still(1e-17), "top.weight": (1.0, 1e-2, RATE), "mid.weight": (1.0, 1e-4, RATE)}, {}),
    ],
    ids=["large enough", "no learning rate", "no dtype", "nothing moves", "adaptive"],
)
def test_where_that_is_not_certain_the_optimizer_is_to_be_looked_at(make_recording, rows, options):
    finding = update_ratio(recording(make_recording, rows, **options))[0]
    assert finding.reason.endswith("did not move in the last 5 records though it had a gradient; since step 0")
    assert "optimizer holds this very parameter" in finding.advice


def test_the_dtype_of_a_parameter_is_that_of_the_recorded_model(make_recording):
    made = recording(make_recording, {"fc.weight": sgd(1.0)}, form="bfloat16")
    assert (dtype(made, "fc.weight"), dtype(made, "fc.bias"), dtype(made, "other.weight")) == ("bfloat16", "", "")


ORDER = {"first": 0, "middle": 1, "last": 2}
LOW = THRESHOLDS["update_ratio"]


def low(layer, value=1e-7):
    return Finding("update ratio", layer, "bad", 0, value, None, LOW, "", "")


def depth(value, verdict="bad"):
    return Finding("scale over depth", WHOLE_RUN, verdict, 0, value, None, THRESHOLDS["depth_slope"], "", "")


def causes(made, *findings):
    order = Order(ORDER, {}, StepSizes.of(made))
    return [finding.explained_by for finding in explained(findings, order)]


STEEP = {"first.weight": sgd(1e-6), "middle.weight": still(4.6e-16), "last.weight": sgd(1e-2)}
"""Gradients that shrink towards the input."""


def test_a_gradient_that_shrinks_over_depth_explains_the_small_updates_at_its_faint_end(make_recording):
    made = recording(make_recording, STEEP)
    by = f"scale over depth in {WHOLE_RUN}"
    findings = low("first"), low("middle", 0.0), low("last", 1e-5)
    assert causes(made, depth(0.5), *findings) == ["", by, by, ""]


@pytest.mark.parametrize("cause", [depth(-0.5), depth(0.12, "watch"), depth(np.inf)])
def test_a_slope_the_other_way_a_gentle_one_and_zeros_explain_none_of_them(make_recording, cause):
    assert causes(recording(make_recording, STEEP), cause, low("first")) == ["", ""]


def test_a_weight_that_its_gradient_should_move_is_not_explained_by_depth(make_recording):
    made = recording(make_recording, STEEP | {"middle.weight": still(1e-3)})
    assert causes(made, depth(0.5), low("middle", 0.0)) == ["", ""]


def test_of_adaptive_optimizers_depth_explains_no_small_update(make_recording):
    rows = {"first.weight": (1.0, 1e-6, 1e-5), "last.weight": (1.0, 1e-2, 1e-5)}
    assert causes(recording(make_recording, rows), depth(0.5), low("first", 1e-5)) == ["", ""]


def test_a_diagnosis_puts_updates_that_clipping_alone_makes_small_under_clipping(make_recording, flagged):
    clipped = {"fc.weight": sgd(0.05, factor=0.005), "top.weight": sgd(1e-4, factor=0.005)}
    found = flagged(diagnose(recording(make_recording, clipped)))
    assert found["update ratio", "fc"].explained_by == f"clipping in {WHOLE_RUN}"
    # 1e-5 without clipping: too small in any case.
    assert found["update ratio", "top"].explained_by == ""
    assert found["clipping", WHOLE_RUN].explained_by == ""


def test_of_adaptive_optimizers_clipping_explains_no_small_update(make_recording, flagged):
    rows = {"fc.weight": (1.0, 1e-5, 5e-5, 0.05), "top.weight": (1.0, 1e-3, 5e-5, 0.05)}
    found = flagged(diagnose(recording(make_recording, rows)))
    assert found["update ratio", "fc"].explained_by == ""
    assert ("clipping", WHOLE_RUN) in found


def test_subnormal_gradients_explain_small_updates_of_their_layer_alone(make_recording):
    made = recording(make_recording, {"first.weight": (1.0, 1e-7, 1e-8), "last.weight": sgd(1e-2)})
    under = Finding("precision", "first", "bad", 0, 1.0, None, THRESHOLDS["underflow"], "", "")
    assert causes(made, under, low("first"), low("last")) == ["", "precision in first", ""]
    over = Finding("precision", "first", "bad", 0, 1.0, None, THRESHOLDS["overflow"], "", "")
    assert causes(made, over, low("first")) == ["", ""]


def test_where_the_optimizer_is_unknown_subnormal_gradients_explain_only_that_nothing_moves(make_recording):
    made = recording(make_recording, {"first.weight": (1.0, 1e-7, 1e-8)}, rate=None)
    under = Finding("precision", "first", "bad", 0, 1.0, None, THRESHOLDS["underflow"], "", "")
    assert causes(made, under, low("first")) == ["", ""]
    assert causes(made, under, low("first", 0.0)) == ["", "precision in first"]
