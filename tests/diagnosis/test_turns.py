"""Diagnosis of adversaries that take turns. Oracle: the records of one optimizer alone, diagnosed by themselves."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import covshift
from covshift.analysis import gradient_health, shift, turns
from covshift.schema import Status


class Adversaries(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.G = nn.Sequential(nn.Linear(4, 16), nn.LeakyReLU(), nn.Linear(16, 4))
        self.D = nn.Sequential(nn.Linear(4, 16), nn.LeakyReLU(), nn.Linear(16, 1))


def train(critics, *, steps=400, is_cut=False, **settings):
    """Recording of a GAN with so many critic steps to one of the generator, and whose turn each step was."""
    model, order = Adversaries(), ""
    generator, critic = (torch.optim.Adam(part.parameters(), lr=1e-4) for part in (model.G, model.D))
    with covshift.record(model, **settings) as recorder:
        while len(order) < steps:
            for _ in range(critics):
                critic.zero_grad()
                made, real = model.D(model.G(torch.randn(32, 4)).detach()), model.D(torch.randn(32, 4))
                (F.softplus(made) + F.softplus(-real)).mean().backward()
                critic.step()
                order += "D"
            generator.zero_grad()
            made = model.G(torch.randn(32, 4))
            F.softplus(-model.D(made.detach() if is_cut else made)).mean().backward()
            generator.step()
            order += "G"
    assert recorder.warnings == []
    return recorder.recording, np.array(list(order))


@pytest.mark.slow
@pytest.mark.parametrize("critics", [1, 4])
def test_a_sound_gan_is_healthy_and_its_generators_gradients_are_in_the_record(critics):
    recording, order = train(critics)
    layers = recording["layers"].to_dataset()
    status = layers["status"].sel(signal="activation_grad", layer="G.0").values
    is_generators = order[layers.step.values] == "G"
    assert is_generators.sum() >= 20
    assert (status[is_generators] == Status.OK).all()
    assert (status[~is_generators] == Status.NO_GRADIENT_ARRIVED).all()
    found = covshift.diagnose(recording)
    assert found.sentence.startswith("Healthy: gradient reaches all 6 layers")
    measured = {finding.layer for finding in found.findings if finding.check == "update ratio" and finding.value > 0}
    assert measured == {"G.0", "G.2", "D.0", "D.2"}


@pytest.mark.parametrize("critics", [1, 4])
def test_a_generator_that_no_gradient_reaches_in_its_own_steps_is_found(critics):
    recording, _ = train(critics, is_cut=True)
    found = covshift.diagnose(recording)
    assert found.sentence.startswith("Unhealthy: gradient does not reach 3 of 6 layers")


def test_records_are_told_apart_by_whose_turn_they_were():
    recording, order = train(4, steps=100)
    steps = recording["layers"].step.values
    kind = turns.kinds(recording, steps)
    assert len(set(kind[order[steps] == "G"])) == len(set(kind[order[steps] == "D"])) == 1
    assert len(set(kind)) == 2


def test_shifts_are_measured_from_one_turn_of_an_optimizer_to_its_next():
    recording, order = train(1, steps=400, every=5, histograms_every=1, units_every=1)
    both = shift.between_steps(recording), shift.between_units(recording)
    for player in "GD":
        groups = {path: recording[path].to_dataset() for path in ("layers", "histograms", "units", "parameters")}
        steps = [step for step in groups["layers"].step.values if order[step] == player]
        alone = recording.copy()
        for path, group in groups.items():
            alone[path] = type(recording)(group.sel(step=steps))
        own = shift.between_steps(alone), shift.between_units(alone)
        for name in ("u", "w1", "smd"):
            np.testing.assert_array_equal(both[0][name].sel(step=steps), own[0][name], err_msg=name)
        np.testing.assert_array_equal(both[1]["excess"].sel(step=steps), own[1]["excess"])


def test_gradients_of_different_turns_are_not_said_to_reverse():
    recording, order = train(1, steps=40, every=1)
    assert gradient_health.gradient_turn(recording)["run_cosine"].isnull().all()
    recording, order = train(4, steps=40, every=1)
    turned = gradient_health.gradient_turn(recording)["run_cosine"].values
    assert (np.isfinite(turned[1:]) == (order[1:] == order[:-1])).all()
