"""What a run does, as frozen data: the paper's protocol, and how far from it a preset is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

import torch
from torch import nn

_NO_PROTOCOL = ("variants", "axes", "seeds", "record_every", "detail_every", "watched_examples")

Condition = Mapping[str, Any]
"""Settings of one run that an experiment varies besides the variant, by name: depth, initialisation, input."""


@dataclass(frozen=True)
class Optimizer:
    """An optimizer of Keras 2 with its defaults, at ``rate / (1 + decay * step)`` times the factor of its milestone.

    ``milestones`` are pairs of a step and the factor from there on.
    """

    kind: Literal["sgd", "nesterov", "rmsprop", "adam"]
    rate: float
    decay: float = 0.0
    milestones: tuple[tuple[int, float], ...] = ()

    def make(self, model: nn.Module) -> torch.optim.Optimizer:
        """The optimizer of a model's parameters; epsilon, rho and momentum are those of the paper's scripts."""
        parameters = list(model.parameters())
        if self.kind == "adam":
            return torch.optim.Adam(parameters, self.rate, eps=1e-7)
        if self.kind == "rmsprop":
            return torch.optim.RMSprop(parameters, self.rate, alpha=0.9, eps=1e-7)
        momentum = 0.9 if self.kind == "nesterov" else 0.0
        return torch.optim.SGD(parameters, self.rate, momentum=momentum, nesterov=self.kind == "nesterov")

    def rate_at(self, step: int) -> float:
        """Learning rate of step number ``step``, counted from 0."""
        factor = next((factor for start, factor in reversed(self.milestones) if step >= start), 1.0)
        return self.rate * factor / (1 + self.decay * step)


@dataclass(frozen=True)
class Plan:
    """A protocol and its scale.

    Attributes
    ----------
    dataset : str
        Key of :data:`common.data.DATASETS`.
    variants : tuple of str
        Of :data:`common.variants.VARIANTS`.
    axes : tuple of (str, tuple)
        Values of every setting that is varied; runs are made of all combinations.
    seeds : int
        Runs of each combination, with seeds 0, 1, ...
    steps, batch_size : int
    linked_batch_size : int or None
        Where the paper trained linked variants with another batch size.
    rates : tuple of (str, float)
        Learning rates of variants that are not trained at the optimizer's.
    batch_norm_momentum : float
        Weight of a batch in the running moments of Batch Normalization, as torch counts it: 0.01 is the 0.99 of Keras.
        A short run needs more, or it is evaluated by the moments it began with.
    shuffled, augmented : bool
        Whether every epoch has an order of its own; whether images are flipped and moved by up to a tenth.
    train_examples : int or None
        Use the first so many training images; None for all.
    evaluate_every : int
        Steps between two evaluations of the curve.
    test_examples, watched_examples : int
        First test images that the curve is measured on (the end of a run: all); first training images of the recorded
        evaluation pass, on which dead units are counted.
    final_examples : int or None
        First test images that the end of a run is measured on; None for all.
    record_every, detail_every : int
        Steps between two records, and records between two with histograms and units.
    """

    dataset: str
    variants: tuple[str, ...]
    axes: tuple[tuple[str, tuple[Any, ...]], ...]
    seeds: int
    steps: int
    batch_size: int
    optimizer: Optimizer
    evaluate_every: int
    shuffled: bool = False
    augmented: bool = False
    linked_batch_size: int | None = None
    rates: tuple[tuple[str, float], ...] = ()
    batch_norm_momentum: float = 0.01
    train_examples: int | None = None
    test_examples: int = 10_000
    watched_examples: int = 10_000
    final_examples: int | None = None
    record_every: int = 100
    detail_every: int = 5

    @property
    def conditions(self) -> list[dict[str, Any]]:
        """All combinations of the axes, the last axis fastest."""
        found: list[dict[str, Any]] = [{}]
        for name, values in self.axes:
            found = [condition | {name: value} for condition in found for value in values]
        return found

    def batch_of(self, variant: str) -> int:
        """Batch size of a variant."""
        return self.linked_batch_size if self.linked_batch_size and variant.startswith("linked") else self.batch_size

    def optimizer_of(self, variant: str) -> Optimizer:
        """Optimizer of a variant."""
        return replace(self.optimizer, rate=dict(self.rates).get(variant, self.optimizer.rate))

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON types."""
        return asdict(self) | {"axes": {name: list(values) for name, values in self.axes}}


def distance(plan: Plan, paper: Plan) -> dict[str, dict[str, Any]]:
    """What differs from the paper's protocol: field by field, here and there.

    Which runs are made, and how they are recorded, is not part of the protocol.
    """
    here, there = plan.to_dict(), paper.to_dict()
    names = [field.name for field in fields(Plan) if field.name not in _NO_PROTOCOL]
    return {name: {"here": here[name], "paper": there[name]} for name in names if here[name] != there[name]}


def decisive(plan: Mapping[str, Any]) -> dict[str, Any]:
    """What of a plan, as JSON types, decides the numbers of a run: what other runs it asks for does not."""
    return {name: value for name, value in plan.items() if name not in ("axes", "variants", "seeds")}


def smoke(plan: Plan, variants: tuple[str, ...], **changed: Any) -> Plan:
    """A plan cut to seconds, on the bundled digits: enough to see that the script still runs."""
    examples = {"test_examples": 50, "watched_examples": 50, "final_examples": 50}
    tiny = {"dataset": "digits-32", "seeds": 1, "steps": 10, "evaluate_every": 5, "record_every": 5}
    return replace(plan, variants=variants, **examples | tiny | changed)


def epochs(count: int, *, examples: int = 50_000, batch_size: int = 32) -> int:
    """Steps of so many passes over the training images, the last batch of a pass being smaller."""
    return count * math.ceil(examples / batch_size)
