"""The main job on real data: the paper's depth net on handwritten digits, several activations, recorded and compared.

Trains each variant from the same seed on the same batches under :func:`covshift.record`, ends with one recorded
evaluation pass over the training digits, and writes one recording a run and one comparison report. Nothing is printed;
:mod:`covshift.cli.demo` does that.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from covshift import linked
from covshift.attach import record
from covshift.datasets import ImageSplit, digits
from covshift.exceptions import CovshiftError, InvalidArgumentError
from covshift.instrument.schedule import every, first
from covshift.models import depth_net


@dataclass(frozen=True)
class Variant:
    """One way to build the net: an activation, and a norm between convolution and activation or none."""

    title: str
    activation: Callable[[], nn.Module]
    norm: Callable[[int], nn.Module] | None = None


VARIANTS: Mapping[str, Variant] = {
    "relu": Variant("ReLU", nn.ReLU),
    "linked-relu": Variant("linked ReLU", linked.LinkedReLU),
    "selu": Variant("SELU", nn.SELU),
    "batch-norm": Variant("ReLU with Batch Normalization", nn.ReLU, nn.BatchNorm2d),
    "prelu": Variant("PReLU", nn.PReLU),
    "linked-prelu": Variant("linked PReLU", linked.LinkedPReLU),
    "linked-selu": Variant("linked SELU", linked.LinkedSELU),
    "silu": Variant("SiLU (Swish)", nn.SiLU),
    "linked-silu": Variant("linked SiLU (Swish)", linked.LinkedSiLU),
}
BATCH_SIZE = 64
LEARNING_RATE = 1e-3
EVERY = first(20) | every(2)
HISTOGRAMS_EVERY = first(10) | every(5)


@dataclass(frozen=True)
class Plan:
    """What to train.

    Raises
    ------
    InvalidArgumentError
        If a number is below 1, or a variant is unknown or named twice; the message lists the variants.
    """

    variants: Sequence[str] = ("relu", "linked-relu", "selu", "batch-norm")
    depth: int = 50
    steps: int = 400
    seeds: int = 1
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name in ("depth", "steps", "seeds"):
            if getattr(self, name) < 1:
                raise InvalidArgumentError(f"{name}={getattr(self, name)}: expected a whole number from 1")
        unknown = [name for name in self.variants if name not in VARIANTS]
        if unknown or not self.variants or len(set(self.variants)) < len(self.variants):
            named = ", ".join(self.variants) or "none"
            raise InvalidArgumentError(f"variants={named}: expected different ones of {', '.join(VARIANTS)}")
        try:
            torch.empty(0, device=self.device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise InvalidArgumentError(f"device={self.device}: {reason}; 'cpu' always works") from error

    @property
    def runs(self) -> list[tuple[str, int]]:
        """Variant and seed of every run, in order."""
        return [(variant, seed) for seed in range(self.seeds) for variant in self.variants]


@dataclass(frozen=True)
class Run:
    """One trained and recorded net."""

    name: str
    path: Path
    test_accuracy: float
    seconds: float


Progress = Callable[[str, int], None]
"""Told the run's name and the number of steps done."""


def train(variant: str, seed: int, folder: Path, *, plan: Plan, data: ImageSplit, progress: Progress) -> Run:
    """Train one net and record it under ``folder``.

    The seed decides the weights and the batches; every variant of one seed sees the same batches.
    """
    name = f"{variant} seed {seed}"
    model = _build(variant, seed, plan.depth).to(plan.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    batches = torch.Generator().manual_seed(seed)
    images, labels = data.train_images.to(plan.device), data.train_labels.to(plan.device)
    attrs = {"variant": variant, "seed": seed, "dataset": data.name, "batch_size": BATCH_SIZE}
    started = time.perf_counter()
    with record(
        model,
        folder / f"{variant}-seed{seed}.zarr",
        every=EVERY,
        histograms_every=HISTOGRAMS_EVERY,
        units_every=HISTOGRAMS_EVERY,
        name=name,
        attrs=attrs,
    ) as recorder:
        for step in range(plan.steps):
            chosen = torch.randint(len(images), (BATCH_SIZE,), generator=batches).to(plan.device)
            logits = model(images[chosen])
            loss = F.cross_entropy(logits, labels[chosen])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()
            recorder.log(loss=loss, train_accuracy=_accuracy(logits, labels[chosen]))
            progress(name, step + 1)
        model.eval()
        with torch.no_grad():
            test_accuracy = _accuracy(model(data.test_images.to(plan.device)), data.test_labels.to(plan.device))
            recorder.log(test_accuracy=test_accuracy)
            with recorder.evaluation():
                model(images)
    assert recorder.path is not None
    return Run(name, recorder.path, float(test_accuracy), time.perf_counter() - started)


def _build(variant: str, seed: int, depth: int) -> nn.Sequential:
    chosen = VARIANTS[variant]
    return depth_net(
        depth,
        in_channels=1,
        image_size=8,
        stem="3x3",
        activation=chosen.activation,
        norm=chosen.norm,
        generator=torch.Generator().manual_seed(seed),
    )


def _accuracy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return (logits.argmax(1) == labels).double().mean()


def new_folder(parent: Path = Path("runs")) -> Path:
    """The first of ``runs/demo-1``, ``runs/demo-2``, ... that does not exist yet."""
    number = 1
    while (parent / f"demo-{number}").exists():
        number += 1
    return parent / f"demo-{number}"


def prepare(folder: Path, *, overwrite: bool = False) -> None:
    """Make ``folder``, or say why it cannot be used.

    Raises
    ------
    CovshiftError
        If it cannot be made or written to, or holds files and ``overwrite`` is False.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()) and not overwrite:
            raise CovshiftError(f"out={folder}: the folder is not empty; name another, or pass --overwrite")
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise CovshiftError(f"out={folder}: cannot be written ({error.strerror}); name another folder") from error


def run_demo(folder: Path, plan: Plan, *, progress: Progress = lambda name, step: None) -> list[Run]:
    """Train and record everything in ``plan``.

    Parameters
    ----------
    folder : Path
        An existing folder; see :func:`prepare`. Recordings of the same name in it are replaced.
    plan : Plan
        Variants, depth, steps, seeds, device.
    progress : callable, optional
        Told the run's name and the steps done.

    Returns
    -------
    list of Run
        In the order trained.
    """
    data = digits()
    threads = torch.get_num_threads()
    # Nets this narrow gain nothing from a second thread, and the numbers should not depend on how many cores there are.
    torch.set_num_threads(1)
    try:
        return [train(variant, seed, folder, plan=plan, data=data, progress=progress) for variant, seed in plan.runs]
    finally:
        torch.set_num_threads(threads)
