"""Models as people train them, recorded at every step. Oracle: an unrecorded twin from the same random state."""

import copy
import os
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import covshift
from covshift.exceptions import CovshiftWarning
from covshift.schema import Status

DOCUMENTED = Path(__file__).parents[2] / "docs" / "warnings.md"
STEPS = 5


class Block(nn.Module):
    """The basic block of He et al. (2016), written as torchvision writes it: one in-place ReLU, called twice."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            projection = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(projection, nn.BatchNorm2d(outputs))

    def forward(self, x):
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += identity
        return self.relu(out)


class ResNet(nn.Module):
    """ResNet-18's shape, a quarter as wide."""

    def __init__(self, width=16, classes=10):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        widths = [width, width, 2 * width, 4 * width, 8 * width]
        for stage in range(1, 5):
            blocks = [
                Block(widths[stage - 1], widths[stage], 1 if stage == 1 else 2),
                Block(widths[stage], widths[stage], 1),
            ]
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(widths[-1], classes)

    def forward(self, x):
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(torch.flatten(self.avgpool(x), 1))


def image_loss(model):
    return F.cross_entropy(model(torch.randn(8, 3, 32, 32)), torch.randint(10, (8,)))


def gpt2(**sizes):
    if not os.environ.get("CI"):
        # In CI the import below fails instead: this test must not go missing there.
        pytest.importorskip("transformers", reason="needs the extra covshift[huggingface]")
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(**sizes))


def token_loss(model):
    tokens = torch.randint(model.config.vocab_size, (2, 65))
    logits = model(input_ids=tokens[:, :-1]).logits
    return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def documented_beginnings():
    """Regular expressions of the messages that docs/warnings.md lists, but for failures of covshift itself."""
    rows = re.findall(r"^\| `(.+?)` \|", DOCUMENTED.read_text(), flags=re.MULTILINE)
    return [".*".join(map(re.escape, row.split("..."))) for row in rows if "covshift failed" not in row]


def train(model, loss_of, recorder=None):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(STEPS):
        loss = loss_of(model)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if recorder is not None:
            recorder.log(loss=loss)
    return losses


def check_recorded_equals_bare(plain, loss_of):
    recorded = copy.deepcopy(plain)
    state = torch.get_rng_state()
    bare = train(plain, loss_of)
    bare_state = torch.get_rng_state()
    torch.set_rng_state(state)
    with warnings.catch_warnings():
        for beginning in documented_beginnings():
            warnings.filterwarnings("ignore", message=beginning, category=CovshiftWarning)
        with covshift.record(recorded, every=1) as recorder:
            observed = train(recorded, loss_of, recorder)
    assert observed == bare
    assert torch.equal(torch.get_rng_state(), bare_state)
    assert recorded.state_dict().keys() == plain.state_dict().keys()
    for name, expected in plain.state_dict().items():
        assert torch.equal(expected, recorded.state_dict()[name]), name
    return recorder.recording


def called_leaves(model, loss_of):
    """Names of leaf modules that a forward pass calls: stock attention passes over its own dropout module."""
    probe, called = copy.deepcopy(model), []
    for name, module in probe.named_modules():
        if not list(module.children()):
            module.register_forward_hook(lambda module, args, output, name=name: called.append(name))
    loss_of(probe)
    return dict.fromkeys(called)


def check_leaves_are_recorded(recording, leaves):
    """Every leaf module that is called has its activation and its gradient at every step, at each of its call sites."""
    layers = recording["layers"].to_dataset()
    assert layers.step.values.tolist() == list(range(STEPS))
    for name in leaves:
        calls = [layer for layer in layers.layer.values if re.fullmatch(rf"{re.escape(name)}([^.\w].*)?", layer)]
        assert calls, name
        for signal in ("activation", "activation_grad"):
            status = layers["status"].sel(layer=calls, signal=signal)
            # Positions are embedded once for all examples of a batch, so their rows have no axis of examples.
            of_positions = name.endswith("wpe") and signal == "activation"
            expected = Status.AXIS_UNKNOWN if of_positions else Status.OK
            np.testing.assert_array_equal(status, int(expected), err_msg=f"{name} {signal}")


@pytest.fixture(autouse=True)
def _seeded_and_on_one_thread():
    """Threads that wait for each other on a busy machine make small operations fifty times slower."""
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def check(model, loss_of):
    leaves = called_leaves(model, loss_of)
    check_leaves_are_recorded(check_recorded_equals_bare(model, loss_of), leaves)


def test_a_residual_network_trains_bit_identically_and_every_leaf_is_recorded():
    check(ResNet(), image_loss)


def test_a_small_hugging_face_gpt2_trains_bit_identically_and_every_leaf_is_recorded():
    check(gpt2(n_layer=4, n_embd=128, n_head=4, vocab_size=2000), token_loss)


@pytest.mark.slow
def test_a_hugging_face_gpt2_of_full_size_trains_bit_identically_and_every_leaf_is_recorded():
    model = gpt2()
    assert sum(parameter.numel() for parameter in model.parameters()) == 124_439_808
    check(model, token_loss)


def test_every_documented_beginning_is_a_pattern_of_its_own_text():
    beginnings = documented_beginnings()
    assert len(beginnings) >= 5
    assert any(re.match(beginning, "compiled, so only their own outputs can be seen: net") for beginning in beginnings)
    assert not any(
        re.match(beginning, "layer 'fc': covshift failed to record it (ValueError: x)") for beginning in beginnings
    )
