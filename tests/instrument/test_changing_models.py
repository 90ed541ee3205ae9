"""A model that is changed, traced or taken over while it is recorded is measured as it now is."""

import numpy as np
import pytest
import torch
from torch import nn

import covshift
from covshift.exceptions import CovshiftWarning


def test_a_parameter_that_no_optimizer_holds_does_not_move_once_it_is_known_that_none_does(shallow):
    model = shallow()
    optimizer = torch.optim.SGD(model[0].parameters(), lr=0.1)
    with covshift.record(model, every=1) as recorder:
        for _ in range(3):
            model(torch.randn(4, 6)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    updates = recorder.recording["parameters"].to_dataset()["update_norm"]
    assert np.isnan(updates.sel(parameter="2.weight").values[0])
    assert updates.sel(parameter="2.weight").values[1:].tolist() == [0.0, 0.0]


def test_a_module_put_in_anothers_place_is_the_one_that_is_measured(shallow):
    model = shallow()
    told = pytest.warns(CovshiftWarning, match="called 2"), pytest.warns(CovshiftWarning, match="beside: 2")
    with told[0], told[1], covshift.record(model, every=1) as recorder:
        model[2] = nn.Linear(5, 2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with torch.no_grad():
            model[2].weight.fill_(3.0)
        model(torch.randn(4, 6)).sum().backward()
        optimizer.step()
    norms = recorder.recording["parameters"].to_dataset()["weight_norm"].sel(step=0)
    assert float(norms.sel(parameter="2.weight")) == pytest.approx(np.sqrt(90))


@pytest.mark.filterwarnings("ignore::covshift.exceptions.CovshiftWarning")
@pytest.mark.parametrize("replace", ["module", "parameter", "data"])
def test_a_tensor_of_another_shape_is_not_recorded_as_the_parameter_it_replaced(shallow, replace):
    model = shallow()
    with covshift.record(model, every=1) as recorder:
        for step in range(4):
            if step == 1:
                other = nn.Linear(5, 7)
                if replace == "module":
                    model[2] = other
                elif replace == "parameter":
                    model[2].weight, model[2].bias = other.weight, other.bias
                else:
                    model[2].weight.data, model[2].bias.data = other.weight.data, other.bias.data
            if step == 3:
                # As it was: the same parameter again.
                model[2] = nn.Linear(5, 2)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            optimizer.zero_grad()
            model(torch.randn(4, 6)).square().sum().backward()
            optimizer.step()
    parameters = recorder.recording["parameters"].to_dataset().sel(parameter=["2.weight", "2.bias"])
    assert parameters.parameter_size.values.tolist() == [10, 2]
    for name in ("weight_norm", "gradient_norm", "gradient_norm_preclip", "update_norm"):
        assert parameters[name].isnull().values[:, 0].tolist() == [False, True, True, False], name
    assert parameters["gradient_measured"].values[:, 0].tolist() == [1, 0, 0, 1]
    assert sum("parameters are absent at step 1" in message for message in recorder.warnings) == 1


def test_a_traced_model_is_traced_as_without_a_recorder(shallow):
    model = shallow().eval()
    with pytest.warns(DeprecationWarning, match="trace"), covshift.record(model, every=1) as recorder:
        traced = torch.jit.trace(model, torch.randn(2, 6))
        with recorder.evaluation():
            model(torch.randn(2, 6))
    x = torch.randn(3, 6)
    torch.testing.assert_close(traced(x), model(x))


def test_a_parameter_that_was_replaced_is_measured_where_it_now_is(shallow):
    model = shallow()
    with covshift.record(model, every=1) as recorder:
        for _ in range(2):
            optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
            model(torch.randn(4, 6)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            model[2].bias.data = torch.full((2,), 3.0)
    norms = recorder.recording["parameters"].to_dataset()["weight_norm"].sel(parameter="2.bias")
    np.testing.assert_allclose(norms.sel(step=1), np.sqrt(18), rtol=1e-6)


def test_parameters_replaced_again_and_again_stay_those_of_their_optimizer(shallow):
    model = shallow()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with covshift.record(model, every=1) as recorder:
        for step in range(9):
            if step in (3, 6):
                for layer in (model[0], model[2]):
                    layer.weight = nn.Parameter(layer.weight.detach().clone())
                    layer.bias = nn.Parameter(layer.bias.detach().clone())
                optimizer.param_groups[0]["params"] = list(model.parameters())
            optimizer.zero_grad()
            model(torch.randn(4, 6)).sum().backward()
            optimizer.step()
    assert recorder.step_count == 9
    updates = recorder.recording["parameters"].to_dataset()["update_norm"]
    assert updates.step.values.tolist() == list(range(9))
    assert (updates > 0).all()


def test_an_optimizer_that_takes_the_model_over_from_another_counts_from_then_on(shallow):
    model, other = shallow(), shallow()
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
    # Else the parameters that take their places might take their addresses, too.
    _kept = [*model.parameters(), *other.parameters()]
    with covshift.record(model, every=1) as recorder:
        for step in range(4):
            if step == 2:
                for index in (0, 2):
                    model[index].weight = nn.Parameter(model[index].weight.detach().clone())
                    model[index].bias = nn.Parameter(model[index].bias.detach().clone())
                optimizer.param_groups[0]["params"] = list(model.parameters())
            (model if step >= 2 else other)(torch.randn(4, 6)).sum().backward()
            optimizer.step()
    assert recorder.step_count == 2


def test_an_optimizer_of_another_model_whose_parameters_lie_where_the_models_once_lay_is_not_the_models(shallow):
    model = shallow()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    told = pytest.warns(CovshiftWarning, match="beside: 2")
    with told, covshift.record(model, every=1) as recorder:
        model(torch.randn(4, 6)).sum().backward()
        optimizer.step()
        model[2] = nn.Linear(5, 2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        head = nn.Linear(5, 4)
        # As if it lay where the weight now replaced did, which no allocator can be told to do.
        known = recorder._steps.clock._parameters
        known[id(head.weight)] = next(place for place in known.values() if place[0]() is None)
        other = torch.optim.SGD(head.parameters(), lr=7.0)
        for _ in range(2):
            model(torch.randn(4, 6)).sum().backward()
            head(torch.randn(4, 5)).sum().backward()
            other.step()
            optimizer.step()
    assert recorder.step_count == 3
    assert recorder.recording["scalars"]["learning_rate"].values.tolist() == [0.1] * 3
    assert (recorder.recording["parameters"]["update_norm"].sel(parameter="0.weight") > 0).all()


def test_parameters_that_are_swapped_while_their_model_is_recorded_stay_the_models(shallow):
    model = shallow()
    optimizer = torch.optim.SGD([model[2].weight], lr=0.1)
    with covshift.record(model, every=1) as recorder:
        for _ in range(2):
            model(torch.randn(4, 6)).sum().backward()
            optimizer.step()
            model.zero_grad()
            torch.utils.swap_tensors(model[2].weight, nn.Parameter(torch.ones(2, 5)))
    assert recorder.step_count == 2
