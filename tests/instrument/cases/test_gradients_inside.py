"""Models that switch gradients on inside ``forward`` (energies and forces), validated under ``no_grad``."""

import pytest
import torch
from torch import nn

TWICE = "a further backward pass"
"""Of which there is one for the force."""


class Force(nn.Module):
    """An energy, and the force that is its gradient: it needs a graph whatever the caller says."""

    takes = (4,)

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.scale, self.net = nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, x):
        x = self.scale(x)
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            energy = self.net(x)
            force = -torch.autograd.grad(energy.sum(), x, create_graph=True)[0]
        return energy, force


def step(model, recorder):
    energy, force = model(torch.randn(6, 4))
    (energy.square().mean() + force.square().mean()).backward()
    recorder.step()


def validate(model):
    # Not in evaluation mode: nothing else tells it from training.
    with torch.no_grad():
        model(torch.randn(5, 4))


def interrupted(model):
    """Validation ends in the midst of the model, without any hook being told."""

    def interrupt(module, args, output):
        raise KeyboardInterrupt

    handle = model.net[1].register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt), torch.no_grad():
        model(torch.randn(5, 4))
    handle.remove()


@pytest.mark.parametrize("validation", [validate, interrupted])
@pytest.mark.parametrize("every", [1, 2])
def test_validation_under_no_grad_of_a_model_that_switches_gradients_on_is_no_training(record, cell, every, validation):
    model = Force()
    with record(model, every=every, may_warn=(TWICE, "forward hooks")) as recorder:
        for _ in range(4):
            validation(model)
            step(model, recorder)
            validation(model)
    assert recorder.recording["layers"].step.values.tolist() == list(range(0, 4, every))
    for at in range(0, 4, every):
        for layer, units in (("scale", 4), ("net.0", 8), ("net.1", 8), ("net.2", 1)):
            assert cell(recorder.recording, "count", layer=layer, signal="activation", step=at) == 6 * units


@pytest.mark.parametrize("every", [1, 2])
def test_what_is_logged_after_such_a_validation_belongs_to_the_step_before(record, every):
    model = Force()
    with record(model, every=every, may_warn=(TWICE,)) as recorder:
        for number in range(4):
            step(model, recorder)
            validate(model)
            recorder.log(loss=number)
    scalars = recorder.recording["scalars"].to_dataset()
    assert scalars["loss"].values.tolist() == scalars.step.values.tolist()


@pytest.mark.parametrize("every", [1, 2])
def test_training_by_parts_goes_on_after_such_a_validation(record, cell, every):
    model = Force()
    with record(model, every=every) as recorder:
        for _ in range(3):
            validate(model)
            model.net(model.scale(torch.randn(6, 4))).sum().backward()
            recorder.step()
    assert recorder.step_count == 3
    for at in range(0, 3, every):
        for layer, units in (("scale", 4), ("net.0", 8), ("net.2", 1)):
            assert cell(recorder.recording, "count", layer=layer, signal="activation", step=at) == 6 * units
