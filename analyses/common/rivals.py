"""What people do today to see inside a network, as arms to time beside covshift.

Each rival looks at the same tensors, the output of every leaf module and its gradient, at every step. Their hooks sit
on their own copy of the network, so that they slow no other arm.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from common.workloads import Trainer

Look = Callable[[str, torch.Tensor], object]
"""Takes the name of a tensor and the tensor, detached."""

AfterStep = Callable[[], None]
Rival = Callable[[Trainer, ExitStack], AfterStep]
"""Attaches to a trainer's model; what it opens is closed with the stack. Returns what to do after each step."""


def watch_leaves(model: nn.Module, look: Look) -> None:
    """Call ``look`` with every leaf module's output and with its gradient."""

    def forward(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            tensor = output[0] if isinstance(output, tuple) else output
            look(name, tensor.detach())
            if tensor.requires_grad:
                tensor.register_hook(backward)

        def backward(gradient: torch.Tensor) -> None:
            look(f"{name}.grad", gradient.detach())

        return hook

    for name, module in model.named_modules():
        if not list(module.children()):
            module.register_forward_hook(forward(name))


def naive_hooks(trainer: Trainer, stack: ExitStack) -> AfterStep:
    """The hook snippet found everywhere: mean, standard deviation and share of zeros, each by ``.item()``."""
    log: list[float] = []

    def look(name: str, tensor: torch.Tensor) -> None:
        log.extend([tensor.mean().item(), tensor.std().item(), (tensor == 0).float().mean().item()])

    watch_leaves(trainer.model, look)
    return log.clear


def clones(trainer: Trainer, stack: ExitStack) -> AfterStep:
    """A clone of everything, kept until the end of the step and then dropped: the cost before any statistic."""
    kept: dict[str, torch.Tensor] = {}
    watch_leaves(trainer.model, lambda name, tensor: kept.__setitem__(name, tensor.clone()))
    return kept.clear


def tensorboard_histograms(trainer: Trainer, stack: ExitStack) -> AfterStep:
    """``SummaryWriter.add_histogram`` of everything."""
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(stack.enter_context(tempfile.TemporaryDirectory()))
    stack.callback(writer.close)
    step = 0

    def after() -> None:
        nonlocal step
        step += 1

    watch_leaves(trainer.model, lambda name, tensor: writer.add_histogram(name, tensor, step))
    return after


def wandb_watch(trainer: Trainer, stack: ExitStack) -> AfterStep:
    """``wandb.watch(log="all", log_freq=1)`` offline: gradients and values of parameters only, no activations.

    Its service is another process, whose processor time is not counted.
    """
    os.environ.update(WANDB_MODE="offline", WANDB_SILENT="true")
    import wandb

    folder = stack.enter_context(tempfile.TemporaryDirectory())
    settings = wandb.Settings(console="off", disable_git=True, x_disable_stats=True)
    run = wandb.init(project="overhead", mode="offline", dir=folder, settings=settings)
    stack.callback(run.finish)
    run.watch(trainer.model, log="all", log_freq=1)
    stack.callback(run.unwatch, trainer.model)
    return lambda: run.log({"step": 1})


RIVALS: dict[str, tuple[Rival, str]] = {
    "naive hooks, .item()": (naive_hooks, ""),
    "clone everything": (clones, ""),
    "tensorboard add_histogram": (tensorboard_histograms, "tensorboard"),
    "wandb.watch(log='all')": (wandb_watch, "wandb"),
}
"""Rivals by name, with the package that each needs."""


def available() -> tuple[dict[str, Rival], dict[str, str]]:
    """Rivals that can run here, and for the others the reason why not."""
    missing = {name: f"{package} is not installed" for name, (_, package) in RIVALS.items() if _lacks(package)}
    return {name: rival for name, (rival, _) in RIVALS.items() if name not in missing}, missing


def _lacks(package: str) -> bool:
    return bool(package) and find_spec(package) is None
