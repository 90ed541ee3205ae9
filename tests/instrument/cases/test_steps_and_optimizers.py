"""What a step is: micro-batches, several optimizers, other models' optimizers, adversaries."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from covshift.schema import Status


def test_case_21_four_micro_batches_of_one_step_are_one_row_of_all(build, batch, record, watch, assert_row):
    model, twin = build("perceptron"), build("perceptron")
    model[4].p = twin[4].p = 0.0
    kept, optimizer = watch(twin), torch.optim.SGD(model.parameters(), lr=0.1)
    with record(model) as recorder:
        for _ in range(4):
            x, y = batch(model)
            F.cross_entropy(twin(x), y).backward()
            F.cross_entropy(model(x), y).backward()
        optimizer.step()
    assert recorder.step_count == 1
    for layer in ("0", "3", "5"):
        calls = kept[layer]
        assert len(calls) == 4
        assert_row(recorder.recording, *(call.value for call in calls), layer=layer, signal="activation")
        assert_row(recorder.recording, *(call.grad for call in calls), layer=layer, signal="activation_grad")


def test_the_gradient_of_accumulated_micro_batches_is_their_sum(build, batch, record):
    model = build("perceptron")
    model[4].p = 0.0
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with record(model) as recorder:
        for _ in range(4):
            x, y = batch(model)
            F.cross_entropy(model(x), y).backward()
        norms = {name: parameter.grad.double().norm().item() for name, parameter in model.named_parameters()}
        optimizer.step()
    found = recorder.recording["parameters"]["gradient_norm"].isel(step=0).to_series().to_dict()
    assert found == pytest.approx(norms, rel=1e-12)


class Adversaries(nn.Module):
    def __init__(self):
        super().__init__()
        self.generator, self.critic = nn.Linear(4, 6), nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1))


def test_case_23_generator_and_critic_steps_are_apart_and_forwards_without_backward_say_so(record, status, cell):
    model = Adversaries()
    generator, critic = model.generator, model.critic
    of_critic = torch.optim.SGD(critic.parameters(), lr=0.1)
    of_generator = torch.optim.SGD(generator.parameters(), lr=0.1)
    with record(model) as recorder:
        for _ in range(2):
            fake = generator(torch.randn(5, 4))
            (critic(fake.detach()).mean() - critic(torch.randn(7, 6)).mean()).backward()
            of_critic.step()
            critic(generator(torch.randn(3, 4))).mean().neg().backward()
            of_generator.step()
    assert recorder.step_count == 4
    rows = recorder.recording
    for critics, generators in ((0, 1), (2, 3)):
        assert cell(rows, "example_count", layer="critic.0", signal="activation_grad", step=critics) == 5 + 7
        assert cell(rows, "example_count", layer="critic.0", signal="activation_grad", step=generators) == 3
        assert status(rows, "generator", step=critics) == Status.NO_GRADIENT_ARRIVED
        assert cell(rows, "count", layer="generator", signal="activation_grad", step=critics) == 0
        assert status(rows, "generator", step=generators) == Status.OK


def test_case_48_the_steps_of_another_models_optimizer_are_not_counted(build, train, record):
    model, other = build("perceptron"), build("perceptron")
    with record(model) as recorder:
        train(other, 3)
        train(model, 2)
        train(other, 3)
    assert recorder.step_count == 2
    assert recorder.recording["layers"].step.values.tolist() == [0, 1]
    assert recorder.recording["scalars"].step.values.tolist() == [0, 1]


def test_an_optimizer_that_owns_one_parameter_of_the_model_counts(build, train, record):
    model, other = build("perceptron"), build("perceptron")
    optimizer = torch.optim.SGD([*other.parameters(), model[0].weight], lr=0.1)
    with record(model) as recorder:
        train(model, 2, optimizer=optimizer)
    assert recorder.step_count == 2


def test_a_line_search_that_evaluates_several_times_is_one_step(record, cell):
    model, x = nn.Linear(6, 3), torch.randn(16, 6)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=3)
    evaluations = []

    def closure():
        evaluations.append(1)
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        return loss

    with record(model) as recorder:
        optimizer.step(closure)
    assert recorder.step_count == 1
    assert len(evaluations) > 1
    assert cell(recorder.recording, "example_count", layer="(root)", signal="activation_grad") == 16 * len(evaluations)


def test_the_rows_of_a_saliency_pass_without_a_step_are_part_of_the_step_that_follows(record, cell):
    model, x = nn.Linear(6, 3), torch.randn(4, 6, requires_grad=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with record(model) as recorder:
        torch.autograd.grad(model(x).sum(), x)
        assert recorder.step_count == 0
        model(torch.randn(16, 6)).sum().backward()
        optimizer.step()
    assert recorder.step_count == 1
    assert cell(recorder.recording, "example_count", layer="(root)", signal="activation") == 20
