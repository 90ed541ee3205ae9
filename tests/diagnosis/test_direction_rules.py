"""Turn and noise of gradients: formulas by numpy, verdicts on planted and on trained oscillation and noise."""

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import covshift
from covshift.analysis import gradient_health
from covshift.diagnosis import diagnose
from covshift.diagnosis.direction_rules import gradient_noise, gradient_turn
from covshift.diagnosis.finding import WHOLE_RUN
from covshift.exceptions import SignalNotRecorded


def with_parameters(make_recording, rows):
    return make_recording(parameters=rows, scalars={0: {"loss": 1.0}}, steps={0: {"a": {}}})


def turning(make_recording, cosine, steps=range(20), lengths=(3.0, 4.0)):
    row = {"weight_norm": 1.0, "gradient_measured": 1, "gradient_cosine": cosine}
    parts = {
        name: row | {"gradient_norm": length} for name, length in zip(("a.weight", "b.weight"), lengths, strict=True)
    }
    return with_parameters(make_recording, dict.fromkeys(steps, parts))


def test_the_cosine_of_the_run_is_that_of_all_gradients_in_a_row(make_recording):
    rng = np.random.default_rng(0)
    gradients = rng.normal(size=(4, 2, 30)) * np.array([1.0, 5.0])[:, None]
    rows = {}
    for step, parts in enumerate(gradients):
        before = gradients[step - 1] if step else np.full_like(parts, np.nan)
        rows[step] = {
            name: {
                "gradient_norm": np.linalg.norm(now),
                "gradient_cosine": now @ then / np.linalg.norm(now) / np.linalg.norm(then),
            }
            for name, now, then in zip("ab", parts, before, strict=True)
        }
    turn = gradient_health.gradient_turn(with_parameters(make_recording, rows))
    flat = gradients.reshape(4, -1)
    for step in range(1, 4):
        now, then = flat[step], flat[step - 1]
        expected = now @ then / np.linalg.norm(now) / np.linalg.norm(then)
        assert float(turn["run_cosine"][step]) == pytest.approx(expected)
    assert math.isnan(turn["run_cosine"][0])
    assert turn["gap"].values.tolist() == [0, 1, 1, 1]


@pytest.mark.parametrize(
    ("cosine", "verdict"), [(0.9, "ok"), (0.0, "ok"), (-0.29, "ok"), (-0.31, "watch"), (-1.0, "watch")]
)
def test_gradients_that_keep_reversing_are_to_watch(make_recording, cosine, verdict):
    (found,) = gradient_turn(turning(make_recording, cosine))
    assert (found.layer, found.verdict) == (WHOLE_RUN, verdict)
    assert found.value == pytest.approx(cosine)
    assert ("lower learning rate" in found.advice) == (verdict == "watch")


def test_only_neighbouring_steps_tell_of_reversals(make_recording):
    (apart,) = gradient_turn(turning(make_recording, -0.9, steps=range(0, 200, 10)))
    assert apart.verdict == "not measured"
    assert "covshift.every(10) | covshift.at_steps(*range(1, 10_000, 10))" in apart.advice
    (pairs,) = gradient_turn(turning(make_recording, -0.9, steps=[s for s in range(100) if s % 10 < 2]))
    assert pairs.verdict == "watch"
    assert "of the last 5 pairs of neighbouring steps" in pairs.reason


def test_the_advised_schedule_of_pairs_is_one_that_recording_takes():
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with covshift.record(model, every=covshift.every(10) | covshift.at_steps(*range(1, 10_000, 10))) as recorder:
        for _ in range(60):
            model(torch.randn(8, 3)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    (found,) = gradient_turn(recorder.recording)
    assert found.verdict == "ok"


@pytest.mark.parametrize(("rate", "verdict"), [(0.1, "ok"), (1.9, "watch")])
def test_a_learning_rate_near_the_edge_of_stability_is_found_by_training(rate, verdict):
    """Of the loss ``|w|^2 / 2`` the gradient after a step is ``1 - rate`` times the one before: cosine 1 or -1."""
    model = nn.Linear(4, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    with covshift.record(model, every=1) as recorder:
        for _ in range(30):
            model(torch.zeros(2, 4))
            (model(torch.eye(4)).square().sum() / 2).backward()
            optimizer.step()
            optimizer.zero_grad()
    (found,) = gradient_turn(recorder.recording)
    assert found.verdict == verdict
    assert found.value == pytest.approx(math.copysign(1, 1 - rate))


def micro_batches(make_recording, signal, noise, records=30):
    """Gradients of length ``signal`` in 4 directions of which each has that part of ``noise``, drawn independently."""
    rng = np.random.default_rng(2)
    rows = {}
    for step in range(records):
        gradient = np.full(400, signal / 20) + noise / 20 * rng.normal(size=400)
        row = {"gradient_norm_preclip": np.linalg.norm(gradient), "gradient_noise_norm": noise, "gradient_measured": 1}
        rows[step] = {"a.weight": row, "b.weight": {"gradient_measured": 0}}
    return with_parameters(make_recording, rows)


def test_the_ratio_of_signal_to_noise_is_unbiased(make_recording):
    found = gradient_health.signal_to_noise(micro_batches(make_recording, 0.5, 1.0, records=400))
    assert float(found["run_signal_to_noise"].mean()) == pytest.approx(0.25, abs=0.02)
    assert np.isnan(found["signal_to_noise"].sel(parameter="b.weight")).all()


@pytest.mark.parametrize(("signal", "verdict"), [(2.0, "ok"), (0.5, "ok"), (0.3, "ok"), (0.0, "not measured")])
def test_a_noise_scale_is_judged_as_far_as_the_records_tell(make_recording, signal, verdict):
    (found,) = gradient_noise(micro_batches(make_recording, signal, 1.0))
    assert found.verdict == verdict
    if signal >= 0.5:
        assert found.value == pytest.approx(1 / signal**2, rel=0.3)
        assert found.interval[0] < found.value < found.interval[1]
    json.dumps(found.to_dict(), allow_nan=False)


def test_steps_of_pure_noise_are_to_watch_once_enough_records_show_it(make_recording):
    (found,) = gradient_noise(micro_batches(make_recording, 0.0, 1.0, records=6000))
    assert found.verdict == "watch"
    assert found.interval[0] > 100
    json.dumps(found.to_dict(), allow_nan=False)


def test_without_micro_batches_nothing_is_said_of_noise(make_recording):
    assert gradient_noise(turning(make_recording, 0.0)) == []


def test_the_noise_of_a_trained_model_is_that_of_fresh_micro_batches():
    """Oracle: the covariance of the micro-batch gradient from 2,000 draws under the same weights."""
    torch.manual_seed(0)
    model = nn.Linear(6, 3)
    center = torch.randn(3, 6)

    def gradient():
        y = torch.randint(3, (8,))
        model.zero_grad()
        F.cross_entropy(model(center[y] + torch.randn(8, 6)), y).backward()
        return torch.cat([p.grad.flatten() for p in model.parameters()]).double()

    draws = torch.stack([gradient() for _ in range(2000)])
    signal, noise = (4 * draws.mean(0)).square().sum(), 4 * draws.var(0).sum()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    model.zero_grad()
    with covshift.record(model, every=1) as recorder:
        for _ in range(200):
            for _ in range(4):
                y = torch.randint(3, (8,))
                F.cross_entropy(model(center[y] + torch.randn(8, 6)), y).backward()
            optimizer.step()
            optimizer.zero_grad()
    found = gradient_health.signal_to_noise(recorder.recording)["run_signal_to_noise"]
    parameters = recorder.recording["parameters"].to_dataset()
    assert float((parameters["gradient_noise_norm"] ** 2).sum("parameter").mean()) == pytest.approx(
        float(noise), rel=0.1
    )
    # The mean of a ratio of two dependent numbers is near, not at, the ratio of their means.
    assert float(found.median()) == pytest.approx(float(signal / noise), rel=0.25)


def test_a_recording_of_before_is_judged_without_turn_and_noise(planted):
    recording = planted()
    recording["parameters"] = recording["parameters"].to_dataset().drop_vars(["gradient_cosine", "gradient_noise_norm"])
    with pytest.raises(SignalNotRecorded, match="earlier covshift"):
        gradient_health.gradient_turn(recording)
    unknown = {f.check for f in diagnose(recording).findings if f.verdict == "not measured"}
    assert {"gradient turn", "gradient noise"} <= unknown
