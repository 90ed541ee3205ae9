"""Modules called again, shared between blocks, tied, or never called: a row belongs to a call site."""

import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import covshift
from covshift.exceptions import UnsupportedModelError
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
    with record(model, warned=("rows hold the gradients of the first",)) as recorder:
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


def test_of_several_losses_the_first_to_go_backward_is_recorded_and_one_sum_is_recorded_whole(record, assert_row):
    x, recordings = torch.randn(16, 6), []
    for summed in (False, True):
        torch.manual_seed(3)
        model = nn.Sequential(nn.Linear(6, 4), nn.Tanh())
        with record(model, warned=() if summed else ("layer '1': a further backward pass",)) as recorder:
            y = model(x)
            first, second = y.sum(), (5 * y).sum()
            if summed:
                (first + second).backward()
            else:
                first.backward(retain_graph=True)
                second.backward()
            recorder.step()
        assert len(recorder.warnings) == (not summed)
        recordings.append(recorder.recording)
    z = model[0](x).detach().requires_grad_()
    torch.tanh(z).sum().backward()
    one, both = recordings
    assert_row(one, z.grad, layer="0", signal="activation_grad")
    assert_row(both, 6 * z.grad, layer="0", signal="activation_grad")


def test_two_forwards_of_one_graph_each_are_not_named_as_several_backward_passes(record):
    model = nn.Linear(6, 4)
    with record(model) as recorder:
        for _ in range(2):
            model(torch.randn(16, 6)).sum().backward()
        recorder.step()
    assert recorder.warnings == []


class CallsItself(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x, depth):
        h = self.a(x).tanh()
        inside = self(h, depth - 1) if depth else h
        return self.b(inside) * (depth + 1)


def test_a_model_that_calls_itself_has_every_call_and_one_pass(record, assert_row, cell):
    model, x = CallsItself(), torch.randn(16, 6)
    with record(model) as recorder:
        for _ in range(2):
            model(x, 2).sum().backward()
            recorder.step()
    hidden, projected, outputs = [x], [], []
    for _ in range(3):
        hidden.append(model.a(hidden[-1]).tanh())
    for depth in range(3):
        projected.append(model.b(outputs[-1] if outputs else hidden[-1]))
        outputs.append(projected[-1] * (depth + 1))
    for output in outputs:
        output.retain_grad()
    outputs[-1].sum().backward()
    rows = recorder.recording
    names = {"(input)", "a", "a#1", "a#2", "b", "b#1", "b#2", "(root)", "(root)#1", "(root)#2"}
    assert set(rows["layers"].layer.values) == names
    assert rows["layers"].step.values.tolist() == [0, 1]
    assert_row(rows, x, layer="(input)", signal="input", step=1)
    for k, name in enumerate(("a", "a#1", "a#2")):
        assert_row(rows, model.a(hidden[k]), layer=name, signal="activation", step=1)
    # The innermost call is the last to begin and the first to return.
    for depth, (name, inner) in enumerate(zip(("(root)#2", "(root)#1", "(root)"), ("b", "b#1", "b#2"), strict=True)):
        assert_row(rows, projected[depth], layer=inner, signal="activation", step=1)
        assert_row(rows, outputs[depth], layer=name, signal="activation", step=1)
        assert_row(rows, outputs[depth].grad, layer=name, signal="activation_grad", step=1)


class Lookalikes(nn.Module):
    """Names of modules that look like call sites, output paths and functions of others."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.twice, self.pair, self.inner = nn.Linear(6, 6), Pair(), nn.Sequential(nn.Linear(6, 6))
        self.add_module("twice#1", nn.Linear(6, 6))
        self.add_module("pair:0", nn.Linear(6, 6))
        self.add_module("inner#1", nn.Sequential(nn.Linear(6, 6)))
        self.add_module("(root):relu", nn.Linear(6, 6))

    def forward(self, x):
        other = self._modules
        x = other["twice#1"](self.twice(self.twice(x)))
        left, right = self.pair(other["pair:0"](x))
        x = other["inner#1"](self.inner(self.inner(left + right)))
        return torch.relu(other["(root):relu"](x))


class Pair(nn.Module):
    def forward(self, x):
        return x * 2, x * 3


def test_layers_whose_names_would_be_alike_are_told_apart(record, assert_row):
    model, x = Lookalikes(), torch.randn(16, 6)
    with record(model, functional=True, may_warn=("is not the batch",)) as recorder:
        model(x).sum().backward()
        recorder.step()
    layers = recorder.recording["layers"]
    assert (layers["count"].sel(signal="activation", step=0) <= 16 * 6).all()
    names = layers.layer.values.tolist()
    assert len(set(names)) == len(names) == 12
    once = model.twice(x)
    assert_row(recorder.recording, model.twice(once), layer="twice#1", signal="activation")
    third = model._modules["twice#1"](model.twice(once))
    assert_row(recorder.recording, third, layer="twice#1~1", signal="activation")
    assert_row(recorder.recording, model._modules["pair:0"](third), layer="pair:0", signal="activation")
    assert_row(recorder.recording, 2 * model._modules["pair:0"](third), layer="pair:0~1", signal="activation")
    assert {"inner#1.0", "inner#1.0~1", "(root):relu", "(root):relu~1"} <= set(names)


def test_keys_of_an_output_that_make_the_same_path_are_told_apart(record, assert_row):
    class Keys(nn.Module):
        def forward(self, x):
            return {"a": {"b": x * 2}, "a.b": x * 3, 1: x * 4, "1": x * 5}

    model, x = Keys(), torch.randn(16, 6)
    with record(model) as recorder:
        sum(value["b"].sum() if isinstance(value, dict) else value.sum() for value in model(x).values())
        recorder.step()
    for path, factor in (("a.b", 2), ("a.b~1", 3), ("1", 4), ("1~1", 5)):
        assert_row(recorder.recording, factor * x, layer=f"(root):{path}", signal="activation")


@pytest.mark.parametrize("name", ["(root)", "(input)", "(input):x"])
def test_modules_named_like_the_model_itself_or_its_input_are_refused(name):
    model = nn.Sequential(nn.Linear(6, 3))
    model.add_module(name, nn.ReLU())
    with pytest.raises(UnsupportedModelError, match=re.escape(f"model: a module is named '{name}'")):
        covshift.record(model)


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
