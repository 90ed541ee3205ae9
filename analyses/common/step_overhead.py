"""What recording adds to a training step of the demo's 50-layer linked net, against what people do by hand."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import covshift
from common.paired import Blocks, Ratio, interleave, ratio
from covshift.datasets import digits
from covshift.linked import LinkedReLU
from covshift.models import depth_net

TARGETS = {"record(every=1)": 1.25, "record(every=10)": 1.04}
"""Upper ends of the 90 % interval that design targets ask for on this net."""


class Trainer:
    """One copy of the net with its optimizer; every copy sees the same batch."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.model = depth_net(50, in_channels=1, image_size=8, stem="3x3", activation=LinkedReLU, generator=generator)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-3)
        data = digits()
        self.images, self.labels = data.train_images[:64], data.train_labels[:64]

    def steps(self, count: int) -> None:
        """Train for ``count`` steps."""
        for _ in range(count):
            loss = F.cross_entropy(self.model(self.images), self.labels)
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()


def measure(*, quick: bool) -> dict[str, Any]:
    """Ratios to the bare net, from interleaved blocks of 20 steps (8 rounds for a look, 30 for a claim)."""
    steps, rounds = 20, 8 if quick else 30
    with ExitStack() as stack, tempfile.TemporaryDirectory() as folder:
        arms: dict[str, Callable[[], None]] = {"bare": _bare(steps), "naive hooks": _naive(steps)}
        for every in (1, 10):
            name = f"record(every={every})"
            arms[name] = _recorded(steps, every, Path(folder) / f"every{every}", stack)
        blocks = interleave(arms, rounds=rounds, warm_up=2)
    rows = {name: _row(measured, blocks["bare"], steps) for name, measured in blocks.items()}
    return {"steps": steps, "rounds": rounds, "rows": {name: rows[name] for name in arms}, "targets": TARGETS}


def show(result: dict[str, Any]) -> None:
    """Print the section."""
    print(
        "\nA training step of the 50-layer linked net (width 4, 8x8 digits, batch 64), all layers and signals, "
        f"parameters and store on;\n{result['rounds']} interleaved rounds of {result['steps']} steps, one core; ratio "
        "to bare: median [90 % bootstrap interval]\n"
    )
    print(f"{'':18} {'CPU ms a step':>14} {'CPU time':>24} {'wall time':>24} {'target':>7}")
    for name, row in result["rows"].items():
        cpu, wall = Ratio(**row["cpu"]), Ratio(**row["wall"])
        target = result["targets"].get(name)
        said = f"{target:.2f}x" if target else ""
        print(f"{name:18} {row['cpu_ms_per_step']:14.1f} {cpu!s:>24} {wall!s:>24} {said:>7}")


def _row(measured: Blocks, bare: Blocks, steps: int) -> dict[str, Any]:
    return {
        "cpu_ms_per_step": float(np.median(measured.cpu)) / steps * 1e3,
        "cpu": asdict(ratio(measured.cpu, bare.cpu)),
        "wall": asdict(ratio(measured.wall, bare.wall)),
    }


def _bare(steps: int) -> Callable[[], None]:
    trainer = Trainer()
    return lambda: trainer.steps(steps)


def _naive(steps: int) -> Callable[[], None]:
    """The hook snippet found everywhere: mean, sd and zero share of each leaf's output and gradient, by .item()."""
    trainer = Trainer()
    log: list[float] = []

    def note(tensor: torch.Tensor) -> None:
        tensor = tensor.detach()
        log.extend([tensor.mean().item(), tensor.std().item(), (tensor == 0).float().mean().item()])

    def forward(module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> None:
        note(output)
        if output.requires_grad:
            output.register_hook(note)

    def block() -> None:
        handles = [m.register_forward_hook(forward) for m in trainer.model.modules() if not list(m.children())]
        trainer.steps(steps)
        for handle in handles:
            handle.remove()
        log.clear()

    return block


def _recorded(steps: int, every: int, path: Path, stack: ExitStack) -> Callable[[], None]:
    trainer = Trainer()
    recorder = stack.enter_context(covshift.record(trainer.model, path, every=every))
    # Global hooks would also slow the other arms' blocks, so they are installed around this arm's blocks only.
    recorder._hooks.remove()
    recorder._clock.remove()

    def block() -> None:
        recorder._hooks.install()
        recorder._clock.install()
        trainer.steps(steps)
        recorder._hooks.remove()
        recorder._clock.remove()

    return block
