"""Small networks on an endless synthetic task, healthy unless something is planted in them.

Every batch is new, so evidence about units counts every example once. The task is a random teacher's classification of
normal inputs: easy enough to learn in a hundred steps and never quite finished.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import nn

from covshift.exceptions import InvalidArgumentError

FEATURES, CLASSES = 16, 4

STEPS = 120
"""Of a run."""

Batch = tuple[torch.Tensor, torch.Tensor]
Hook = Callable[[int], None]
Activation = Callable[[], nn.Module]


@dataclass
class Case:
    """A network with its task and training, on its way to be recorded; faults change it.

    Attributes
    ----------
    model : Module
        What is trained.
    linears, activations : list of str
        Names of its linear (or convolutional) layers and nonlinearities, in order; the head is the last linear.
    generator : torch.Generator
        Source of weights and data.
    image : bool
        Whether inputs are images of shape (1, 8, 8) rather than vectors.
    learning_rate, optimizer, batch_size, clip : training
        ``optimizer`` is ``"adam"`` or ``"sgd"``; ``clip`` the largest gradient norm, None for none.
    pace : dict of str to float
        Factor on the learning rate of single parameters; 0 keeps one out of the optimizer.
    clear_every : int
        Steps after which gradients are set to zero; 1 is right.
    before, after : list of callables
        Called with the step before its forward pass and after its update.
    alter, relabel : callable
        Change the inputs and the classes of a batch before the model sees it.
    criterion : callable
        Loss of the logits and the classes.
    loss_scale : float
        Factor on the loss.
    precision : torch.dtype or None
        Of autocast in the forward pass; None for none.
    """

    model: nn.Module
    linears: list[str]
    activations: list[str]
    generator: torch.Generator
    image: bool = False
    learning_rate: float = 1e-3
    optimizer: str = "adam"
    batch_size: int = 128
    clip: float | None = None
    pace: dict[str, float] = field(default_factory=dict)
    clear_every: int = 1
    before: list[Hook] = field(default_factory=list)
    after: list[Hook] = field(default_factory=list)
    alter: Callable[[torch.Tensor, int], torch.Tensor] = lambda x, step: x
    relabel: Callable[[torch.Tensor, int], torch.Tensor] = lambda y, step: y
    criterion: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = F.cross_entropy
    loss_scale: float = 1.0
    precision: torch.dtype | None = None

    @property
    def middle(self) -> int:
        """Position, among the nonlinearities, of the layer in which faults are planted."""
        return len(self.activations) // 2

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        return (1, 8, 8) if self.image else (FEATURES,)

    def module(self, name: str) -> nn.Module:
        """A module by its name."""
        return self.model.get_submodule(name)

    def linear(self, position: int) -> nn.Linear | nn.Conv2d:
        """A linear or convolutional layer by its position."""
        module = self.module(self.linears[position])
        if not isinstance(module, nn.Linear | nn.Conv2d):
            raise InvalidArgumentError(f"position={position}: '{self.linears[position]}' is no linear layer")
        return module

    def batch(self, step: int) -> Batch:
        """A new batch of inputs and their classes."""
        x = torch.randn(self.batch_size, *self.shape, generator=self.generator)
        y = (x.flatten(1) @ teacher(x[0].numel())).argmax(dim=1)
        return self.alter(x, step), self.relabel(y, step)

    def loss(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """The criterion of the model's logits."""
        with torch.autocast("cpu", dtype=self.precision, enabled=self.precision is not None):
            logits = self.model(x)
        return self.criterion(logits.float(), y) * self.loss_scale


Build = Callable[[int, float], Case]
"""``(seed, dose)`` to a case with something planted in it."""


def teacher(features: int) -> torch.Tensor:
    """The weights that decide the classes, the same in every run."""
    return torch.randn(features, CLASSES, generator=torch.Generator().manual_seed(17))


def mlp(
    seed: int,
    *,
    depth: int = 4,
    width: int = 32,
    activation: Activation = nn.ReLU,
    gain: float = 2.0,
    members: int = 1,
    norm: Callable[[int], nn.Module] | None = None,
    dropout: float = 0.0,
) -> Case:
    """A plain network of ``depth`` nonlinear layers; weights have variance ``gain / fan_in`` and biases are 0.

    ``members`` is how many outputs the activation makes of one input; ``norm`` stands between linear and activation.
    """
    generator = torch.Generator().manual_seed(seed)
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    inputs = FEATURES
    for index in range(depth):
        parts[f"fc{index}"] = started(nn.Linear(inputs, width), gain, generator)
        if norm is not None:
            parts[f"norm{index}"] = norm(width)
        parts[f"act{index}"] = activation()
        if dropout:
            parts[f"drop{index}"] = nn.Dropout(dropout)
        inputs = width * members
    parts["head"] = started(nn.Linear(inputs, CLASSES), 1.0, generator)
    names = [f"fc{index}" for index in range(depth)] + ["head"]
    return Case(nn.Sequential(parts), names, [f"act{index}" for index in range(depth)], generator)


def cnn(
    seed: int,
    *,
    depth: int = 3,
    width: int = 8,
    activation: Activation = nn.ReLU,
    norm: Callable[[int], nn.Module] | None = None,
    pool: bool = False,
    members: int = 1,
) -> Case:
    """A convolutional network on 8 x 8 images; ``pool`` halves them once, by their largest values."""
    generator = torch.Generator().manual_seed(seed)
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    inputs = 1
    for index in range(depth):
        parts[f"conv{index}"] = started(nn.Conv2d(inputs, width, 3, padding=1), 2.0, generator)
        if norm is not None:
            parts[f"norm{index}"] = norm(width)
        parts[f"act{index}"] = activation()
        if pool and index == 0:
            parts["pool"] = nn.MaxPool2d(2)
        inputs = width * members
    parts["average"] = nn.AdaptiveAvgPool2d(2)
    parts["flat"] = nn.Flatten()
    parts["head"] = started(nn.Linear(inputs * 4, CLASSES), 1.0, generator)
    names = [f"conv{index}" for index in range(depth)] + ["head"]
    return Case(nn.Sequential(parts), names, [f"act{index}" for index in range(depth)], generator, image=True)


class _Residual(nn.Module):
    def __init__(self, width: int, generator: torch.Generator) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc = started(nn.Linear(width, width), 2.0, generator)
        self.act = nn.ReLU()
        self.out = started(nn.Linear(width, width), 0.5, generator)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(x + self.out(self.act(self.fc(self.norm(x)))))


def residual(seed: int, *, depth: int = 4, width: int = 32) -> Case:
    """A residual network with layer norm before each branch."""
    generator = torch.Generator().manual_seed(seed)
    parts: OrderedDict[str, nn.Module] = OrderedDict(stem=started(nn.Linear(FEATURES, width), 1.0, generator))
    for index in range(depth):
        parts[f"block{index}"] = _Residual(width, generator)
    parts["head"] = started(nn.Linear(width, CLASSES), 1.0, generator)
    names = [f"block{index}.fc" for index in range(depth)] + ["head"]
    return Case(nn.Sequential(parts), names, [f"block{index}.act" for index in range(depth)], generator)


class _Tokens(nn.Module):
    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(len(x), self.count, -1)


class _Mean(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(dim=1)


def transformer(seed: int, *, depth: int = 2, width: int = 16) -> Case:
    """A pre-norm transformer encoder on four tokens of four features."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = [
            nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True, norm_first=True)
            for _ in range(depth)
        ]
        parts = OrderedDict(tokens=_Tokens(4), embed=nn.Linear(FEATURES // 4, width))
        parts |= {f"layer{index}": layer for index, layer in enumerate(layers)}
        parts |= {"norm": nn.LayerNorm(width), "mean": _Mean(), "head": nn.Linear(width, CLASSES)}
        model = nn.Sequential(parts)
    return Case(model, ["embed", "head"], [], generator)


def cosine(case: Case) -> None:
    """The learning rate falls to zero along a cosine over 120 steps."""
    base = case.learning_rate

    def set_rate(step: int) -> None:
        case.learning_rate = base * (1 + math.cos(math.pi * min(step / 119, 1.0))) / 2

    case.before.append(set_rate)


def started(layer: nn.Linear | nn.Conv2d, gain: float, generator: torch.Generator) -> nn.Linear | nn.Conv2d:
    """The layer with normal weights of variance ``gain / fan_in`` and biases 0."""
    fan_in = layer.weight[0].numel()
    with torch.no_grad():
        layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator) * (gain / fan_in) ** 0.5)
        if layer.bias is not None:
            layer.bias.zero_()
    return layer
