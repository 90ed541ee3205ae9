"""Layers that change the scale of a gradient by construction are no alarm; a gradient that vanishes is found still."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import covshift
from covshift.diagnosis.scale_rules import scale_over_depth


def network(kind, *, gain, blocks=4, activation=True):
    """Convolutions of equal width over 16 x 16 positions, then what changes their number, then two linear layers."""
    layers, width = [], 8
    for _ in range(blocks):
        conv = nn.Conv2d(width if layers else 3, width, 3, padding=1)
        nn.init.normal_(conv.weight, std=gain * (2 / (9 * conv.in_channels)) ** 0.5)
        layers += [conv, nn.ReLU()] if activation else [conv]
    after = {
        "global average pooling": [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, width)],
        "flattening": [nn.Flatten(), nn.Linear(width * 256, width)],
        "pooling twice": [nn.AvgPool2d(4), nn.Conv2d(width, width, 3, padding=1), nn.AvgPool2d(4), nn.Flatten()],
        "a strided convolution": [nn.Conv2d(width, width, 16, stride=16), nn.Flatten()],
        "dropout and a norm": [nn.Dropout2d(0.5), nn.GroupNorm(2, width), nn.AdaptiveAvgPool2d(1), nn.Flatten()],
    }
    return nn.Sequential(*layers, *after[kind], nn.ReLU(), nn.Linear(width, 4))


def judged(model, steps=6):
    generator = torch.Generator().manual_seed(3)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with covshift.record(model, every=1) as recorder:
        for _ in range(steps):
            x, y = torch.randn(8, 3, 16, 16, generator=generator), torch.randint(4, (8,), generator=generator)
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
    (found,) = scale_over_depth(recorder.recording)
    return found


KINDS = ["global average pooling", "flattening", "pooling twice", "a strided convolution", "dropout and a norm"]


@pytest.mark.parametrize("activation", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_what_changes_the_scale_by_construction_raises_no_alarm(kind, activation):
    torch.manual_seed(1)
    found = judged(network(kind, gain=1.0, activation=activation))
    assert found.verdict in ("ok", "not measured"), found.reason


@pytest.mark.parametrize("kind", ["global average pooling", "a strided convolution"])
def test_a_gradient_that_vanishes_over_the_convolutions_before_is_still_found(kind):
    torch.manual_seed(1)
    found = judged(network(kind, gain=0.1, blocks=7))
    assert found.verdict == "bad"
    assert found.value == pytest.approx(1.0, abs=0.25)
