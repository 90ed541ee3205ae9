"""Modules called again, shared between blocks, tied, or never called: a row belongs to a call site."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from covshift.schema import Status


class Blocks(nn.Module):
    """Three blocks that share one ReLU."""

    takes = (6,)

    def __init__(self, *, shared):
        super().__init__()
        torch.manual_seed(3)
        linears, act = [nn.Linear(6, 6) for _ in range(3)], nn.ReLU()
        self.b = nn.ModuleList()
        for linear in linears:
            block = nn.Sequential()
            block.add_module("linear", linear)
            block.add_module("act", act if shared else nn.ReLU())
            self.b.append(block)
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        for block in self.b:
            x = block(x)
        return self.head(x)


def test_case_18_a_relu_shared_by_three_blocks_has_three_sites(beside, assert_row):
    kept, recording = beside(Blocks(shared=True), Blocks(shared=False))
    assert [name for name in recording["layers"].layer.values if "act" in name] == ["b.0.act", "b.1.act", "b.2.act"]
    for site in ("b.0.act", "b.1.act", "b.2.act"):
        assert_row(recording, kept[site][0].value, layer=site, signal="activation")
        assert_row(recording, kept[site][0].grad, layer=site, signal="activation_grad")


def repeating():
    torch.manual_seed(3)
    linear, act = nn.Linear(6, 6), nn.Tanh()
    return nn.Sequential(linear, act, linear, act, nn.Linear(6, 3))


def test_case_19_a_module_twice_in_a_sequential_is_two_calls(beside, assert_row):
    kept, recording = beside(repeating(), repeating(), steps=2)
    assert recording["layers"].layer.values.tolist() == ["(input)", "0", "1", "0#1", "1#1", "4"]
    for step in range(2):
        for module in ("0", "1"):
            for call, site in enumerate((module, f"{module}#1")):
                twin = kept[module][2 * step + call]
                assert_row(recording, twin.value, layer=site, signal="activation", step=step)
                assert_row(recording, twin.grad, layer=site, signal="activation_grad", step=step)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.decode = nn.Embedding(7, 6), nn.Linear(6, 7, bias=False)
        self.decode.weight = self.embed.weight

    def forward(self, tokens):
        return self.decode(self.embed(tokens))


def test_case_20_tied_weights_are_one_parameter_with_the_total_gradient(record):
    model, tokens = Tied(), torch.randint(7, (16,))
    weight = model.embed.weight.detach().double()
    table, decoder = weight.clone().requires_grad_(), weight.clone().requires_grad_()
    F.cross_entropy(table[tokens] @ decoder.T, tokens).backward()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with record(model) as recorder:
        F.cross_entropy(model(tokens), tokens).backward()
        optimizer.step()
    parameters = recorder.recording["parameters"].to_dataset()
    assert parameters.parameter.values.tolist() == ["embed.weight"]
    total = (table.grad + decoder.grad).norm().item()
    assert parameters["gradient_norm"].item() == pytest.approx(total, rel=1e-5)


class Siamese(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.embed = nn.Linear(6, 4)

    def forward(self, left, right):
        return (self.embed(left) * torch.tensor(2.0) - 3 * self.embed(right)).sum()


def test_case_22_each_forward_of_a_siamese_net_is_paired_with_its_own_gradient(record, assert_row):
    model, left, right = Siamese(), torch.randn(16, 6), torch.randn(16, 6)
    with record(model) as recorder:
        model(left, right).backward()
        recorder.step()
    for site, inputs, slope in (("embed", left, 2.0), ("embed#1", right, -3.0)):
        assert_row(recorder.recording, model.embed(inputs), layer=site, signal="activation")
        assert_row(recorder.recording, torch.full((16, 4), slope), layer=site, signal="activation_grad")


def test_two_forwards_of_one_step_make_one_row_of_both(record, assert_row):
    model, left, right = nn.Linear(6, 4), torch.randn(16, 6), torch.randn(8, 6)
    with record(model) as recorder:
        (model(left).sum() * 2 - model(right).sum() * 3).backward()
        recorder.step()
    rows = recorder.recording
    assert_row(rows, model(left), model(right), layer="(root)", signal="activation")
    slopes = torch.full((16, 4), 2.0), torch.full((8, 4), -3.0)
    assert_row(rows, *slopes, layer="(root)", signal="activation_grad")


@pytest.mark.parametrize("again", ["retain_graph", "create_graph"])
def test_case_24_a_second_backward_through_one_forward_is_not_counted_again(record, assert_row, again):
    model, x = nn.Sequential(nn.Linear(6, 4), nn.Tanh()), torch.randn(16, 6)
    with record(model) as recorder:
        y = model(x)
        if again == "retain_graph":
            y.sum().backward(retain_graph=True)
        else:
            torch.autograd.grad(y.sum(), list(model.parameters()), create_graph=True)
        (5 * y).sum().backward()
        recorder.step()
    assert_row(recorder.recording, torch.ones(16, 4), layer="1", signal="activation_grad")
    z = model[0](x).detach().requires_grad_()
    torch.tanh(z).sum().backward()
    assert_row(recorder.recording, z.grad, layer="0", signal="activation_grad")


def test_case_37_modules_that_no_forward_called_are_named_once(record, train):
    class Spare(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.spare, self.functional = nn.Linear(6, 3), nn.Linear(6, 3), nn.Linear(6, 3)

        def forward(self, x):
            return self.used(x) + F.linear(x, self.functional.weight)

    with record(model := Spare(), warned=("no recorded forward pass called spare, functional",)) as recorder:
        train(model, 2)
    assert len(recorder.warnings) == 1


def test_a_module_called_in_one_step_only_is_absent_from_the_others(record, train, status):
    class Sometimes(nn.Module):
        def __init__(self):
            super().__init__()
            self.always, self.sometimes, self.calls = nn.Linear(6, 3), nn.Linear(6, 3), 0

        def forward(self, x):
            self.calls += 1
            return self.always(x) + (self.sometimes(x) if self.calls == 2 else 0)

    with record(model := Sometimes()) as recorder:
        train(model, 3)
    found = [status(recorder.recording, "sometimes", step=step) for step in range(3)]
    assert found == [Status.ABSENT, Status.OK, Status.ABSENT]
