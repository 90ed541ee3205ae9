"""Whether a reader can name the faulty layer, the step and the remedy from the report of a sick run alone.

Run ``python analyses/reader_trial.py make trial`` to train five sick networks whose layers are called by shuffled
words: it writes ``trial/report-1.html`` to ``report-5.html``, an empty ``answers.json`` to fill in from these pages
alone, and the key, packed so that no glance reveals it. ``python analyses/reader_trial.py compare trial`` unpacks the
key and counts. Faults, layers and steps are drawn anew each time unless ``--seed`` is given.
"""

from __future__ import annotations

import argparse
import base64
import json
import random
import zlib
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import covshift

STEPS, WIDTH, DEPTH, FEATURES, CLASSES = 300, 32, 6, 16, 4
WORDS = (
    "amber",
    "birch",
    "cedar",
    "delta",
    "ember",
    "fjord",
    "grove",
    "heron",
    "iris",
    "jade",
    "kelp",
    "larch",
    "maple",
    "north",
    "otter",
    "pearl",
)

Plant = Callable[["Net", int, torch.optim.Optimizer], None]


class Linear(nn.Linear):
    """A linear layer whose input and output a fault may change; what it returns is what is recorded."""

    before: Callable[[torch.Tensor], torch.Tensor] | None = None
    after: Callable[[torch.Tensor], torch.Tensor] | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The layer, faults included."""
        out = super().forward(x if self.before is None else self.before(x))
        return out if self.after is None else self.after(out)


class Net:
    """A network of linear layers and nonlinearities under shuffled names."""

    def __init__(self, draw: random.Random, activation: Callable[[], nn.Module]) -> None:
        names = draw.sample(WORDS, 2 * DEPTH + 1)
        parts: OrderedDict[str, nn.Module] = OrderedDict()
        for index in range(DEPTH):
            parts[names[2 * index]] = Linear(FEATURES if index == 0 else WIDTH, WIDTH)
            parts[names[2 * index + 1]] = activation()
        parts[names[-1]] = Linear(WIDTH, CLASSES)
        for module in parts.values():
            if isinstance(module, nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu" if activation is nn.ReLU else "tanh")
        self.names, self.model = names, nn.Sequential(parts)

    def linear(self, index: int) -> Linear:
        """The linear layer at a depth."""
        found = self.model.get_submodule(self.names[2 * index])
        assert isinstance(found, Linear)
        return found


def dead(net: Net, index: int, optimizer: torch.optim.Optimizer) -> None:
    """Biases jump so far below zero that no unit ever fires again."""
    with torch.no_grad():
        net.linear(index).bias.fill_(-1e3)


def cut(net: Net, index: int, optimizer: torch.optim.Optimizer) -> None:
    """The graph is cut behind a nonlinearity."""
    net.linear(index + 1).before = torch.Tensor.detach


def left_out(net: Net, index: int, optimizer: torch.optim.Optimizer) -> None:
    """The optimizer no longer holds a layer's parameters."""
    taken = {id(parameter) for parameter in net.linear(index).parameters()}
    for group in optimizer.param_groups:
        group["params"] = [parameter for parameter in group["params"] if id(parameter) not in taken]


def saturated(net: Net, index: int, optimizer: torch.optim.Optimizer) -> None:
    """Weights grow forty-fold, so that a tanh behind them saturates."""
    with torch.no_grad():
        net.linear(index).weight.mul_(40)


def moving(net: Net, index: int, optimizer: torch.optim.Optimizer) -> None:
    """Every unit of a layer is shifted anew at every step."""
    generator = torch.Generator().manual_seed(5)

    net.linear(index).after = lambda out: out + 2 * out.detach().std() * torch.randn(WIDTH, generator=generator)


def broken(net: Net, index: int, optimizer: torch.optim.Optimizer) -> None:
    """One unit of a layer overflows to infinity."""
    net.linear(index).after = lambda out: torch.cat([out[:, :-1], out[:, -1:] * torch.inf], dim=1)


FAULTS: dict[str, tuple[Plant, Callable[[], nn.Module], str]] = {
    "dead": (dead, nn.ReLU, "the units: a lower learning rate, new initial weights, or a leaky or linked activation"),
    "cut": (cut, nn.ReLU, "the graph: find what detaches or masks behind the layer"),
    "left out": (left_out, nn.ReLU, "the optimizer: give it the layer's parameters"),
    "saturated": (saturated, nn.Tanh, "the scale of z: smaller weights, normalisation, or an unbounded activation"),
    "moving": (moving, nn.ReLU, "what moves the layer: noise or input at that layer, learning rate, normalisation"),
    "broken": (broken, nn.ReLU, "the numbers: find the division, logarithm or overflow in that layer"),
}
"""What is planted, the activation it needs, and what a remedy must speak of."""


def make(folder: Path, draw: random.Random) -> None:
    """Train, record and report five sick runs, and hide the key."""
    folder.mkdir(parents=True)
    key: dict[str, Any] = {}
    for number, fault in enumerate(draw.sample(list(FAULTS), 5), start=1):
        index, step = draw.randrange(1, DEPTH - 1), draw.randrange(STEPS // 5, STEPS // 2)
        layers = train(folder / f"run-{number}.zarr", fault, index, step, draw, name=f"run {number}")
        key[str(number)] = {"fault": fault, "layers": layers, "step": step, "remedy": FAULTS[fault][2]}
        recording = covshift.open(folder / f"run-{number}.zarr")
        covshift.report(recording, folder / f"report-{number}.html")
    (folder / "key").write_bytes(base64.b64encode(zlib.compress(json.dumps(key).encode())))
    blank = {number: {"layer": "", "step": 0, "remedy": ""} for number in key}
    (folder / "answers.json").write_text(json.dumps(blank, indent=1) + "\n")


def train(path: Path, fault: str, index: int, at: int, draw: random.Random, *, name: str) -> list[str]:
    """Train with ``fault`` from step ``at`` on; returns the names of the faulty linear layer and its nonlinearity."""
    torch.manual_seed(draw.randrange(2**31))
    plant, activation, _ = FAULTS[fault]
    net = Net(draw, activation)
    optimizer = torch.optim.Adam(net.model.parameters(), lr=1e-3)
    teacher = torch.randn(FEATURES, CLASSES)
    with covshift.record(net.model, path, every=1, histograms_every=3, units_every=3, name=name) as recorder:
        for step in range(STEPS):
            if step == at:
                plant(net, index, optimizer)
            x = torch.randn(128, FEATURES)
            loss = F.cross_entropy(net.model(x), (x @ teacher).argmax(1))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            net.model.zero_grad()
            recorder.log(loss=loss)
    return net.names[2 * index : 2 * index + 2]


def compare(folder: Path) -> None:
    """Print answers beside the key; a layer is right if it is the planted one, a step within ten of it."""
    key = json.loads(zlib.decompress(base64.b64decode((folder / "key").read_bytes())))
    answers = json.loads((folder / "answers.json").read_text())
    right = 0
    for number, truth in key.items():
        said = answers[number]
        found = said["layer"] in truth["layers"] and abs(said["step"] - truth["step"]) <= 10
        right += found
        print(f"{number} {truth['fault']}: {truth['layers']} at {truth['step']}; remedy: {truth['remedy']}")
        print(f"  said {said['layer']} at {said['step']}; remedy: {said['remedy']}; layer and step {found}")
    print(f"layer and step right: {right} of {len(key)}; whether each remedy is right is for the reader to say")


def main() -> None:
    """Make a trial, or compare its answers with its key."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("what", choices=["make", "compare"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, help="draw the same faults again")
    options = parser.parse_args()
    if options.what == "make":
        make(options.folder, random.Random(options.seed))
    else:
        compare(options.folder)


if __name__ == "__main__":
    main()
