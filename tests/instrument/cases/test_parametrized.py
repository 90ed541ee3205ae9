"""Weights that modules compute, and weights that come later."""

import pytest
import torch
from torch import nn
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import weight_norm

from covshift.schema import Status


def with_norms(read_outside):
    """A training loop that looks at a computed weight after each step; losses are logged behind that."""

    def run(model, recorder=None):
        torch.manual_seed(4)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        norms = []
        for step in range(4):
            optimizer.zero_grad()
            model(torch.randn(16, 6)).square().mean().backward()
            optimizer.step()
            if read_outside:
                norms.append(model[0].weight.norm().item())
            if recorder is not None:
                recorder.log(loss=step)
        return norms

    return run


def model_of():
    torch.manual_seed(3)
    return nn.Sequential(weight_norm(nn.Linear(6, 8)), nn.ReLU(), nn.Linear(8, 3))


def test_reading_a_computed_weight_outside_of_a_forward_pass_is_no_pass(record, layers_equal):
    recordings = []
    for read_outside in (False, True):
        with record(model := model_of()) as recorder:
            with_norms(read_outside)(model, recorder)
        recordings.append(recorder.recording)
    plain, reading = recordings
    layers_equal(plain, reading)
    # Modules that compute a weight have rows of what they gave within the pass.
    assert any("parametrizations" in name for name in reading["layers"].layer.values.tolist())
    for recording in recordings:
        assert recording["scalars"].step.values.tolist() == [0, 1, 2, 3]
        assert recording["scalars"]["loss"].values.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("batch", [8, 16])
def test_a_computed_weight_has_no_examples_even_where_it_is_as_long_as_the_batch(record, status, batch):
    model = model_of()
    with record(model) as recorder:
        model(torch.randn(batch, 6)).square().mean().backward()
        recorder.step()
    name = "0.parametrizations.weight.0"
    layers = recorder.recording["layers"].sel(layer=name)
    assert status(recorder.recording, name, signal="activation") == Status.AXIS_UNKNOWN
    assert layers["count"].sel(signal="activation").item() == 6 * 8
    assert layers["unit_count_of_layer"].item() == 0
    assert (layers["example_count"] == 0).all()


def test_training_that_looks_at_computed_weights_keeps_its_bits(unchanged, status):
    recorder = unchanged(model_of, with_norms(read_outside=True))
    assert status(recorder.recording, "0", step=3) == Status.OK


@pytest.mark.filterwarnings("ignore::covshift.exceptions.CovshiftWarning")
def test_parameters_that_come_later_or_are_replaced_are_named(record, train):
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    said = "parameters have come into the model after record(): 0.weight_orig, 2.scale; their norms are not recorded"
    with record(model, may_warn=(said, "parameters are absent")) as recorder:
        train(model)
        prune.l1_unstructured(model[0], "weight", amount=0.5)
        model[2].register_parameter("scale", nn.Parameter(torch.ones(3)))
        train(model)
    gone, come = recorder.warnings
    assert gone.startswith(
        "parameters are absent at step 1: the model has none of the name and shape of 0.weight any more"
    )
    assert said in come
    norms = recorder.recording["parameters"]["weight_norm"].sel(parameter="0.weight").values
    assert (norms[:1] > 0).all()
    assert norms[1:] != norms[1:]


@pytest.mark.filterwarnings("ignore::covshift.exceptions.CovshiftWarning")
def test_parameters_that_are_away_for_a_while_are_named_once(record, train):
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    with record(model, may_warn=("parameters are absent",)) as recorder:
        train(model)
        train(model)
        prune.random_unstructured(model[0], "weight", 0.5)
        train(model)
        train(model)
        prune.remove(model[0], "weight")
        train(model)
    (message,) = recorder.warnings
    assert message.startswith("parameters are absent at step 2: the model has none of the name and shape of 0.weight")
    norms = recorder.recording["parameters"]["weight_norm"].sel(parameter="0.weight").values
    assert (norms != norms).tolist() == [False, False, True, True, False]


def test_a_model_that_keeps_its_parameters_is_not_warned_of(record, train):
    with record(model := model_of()) as recorder:
        train(model)
    assert not any("come into the model" in message for message in recorder.warnings)
