"""The networks that costs are measured on, each with its optimizer, its batch and its targets.

Inputs are random: what a step costs does not depend on what the pixels show. Where it does (zeros after a ReLU), the
network makes its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import nn

from covshift.datasets import digits
from covshift.linked import LinkedReLU
from covshift.models import all_cnn, depth_net

RECORDED_EVERY_STEP, RECORDED_EVERY_TENTH, PAUSED = "record(every=1)", "record(every=10)", "attached, paused"
"""The arms that have targets."""


class TokenTransformer(nn.Module):
    """Token and position embedding, stock encoder layers, and a head that shares the embedding's weight."""

    def __init__(self, *, vocabulary: int, tokens: int, width: int, heads: int, layers: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.position = nn.Embedding(tokens, width)
        layer = nn.TransformerEncoderLayer(width, heads, 4 * width, activation="gelu", batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits ``(batch * tokens, vocabulary)`` of ``tokens`` ``(batch, tokens)``."""
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        hidden = self.encoder(self.embedding(tokens) + self.position(positions))
        logits: torch.Tensor = self.head(hidden)
        return logits.flatten(0, 1)


class Trainer:
    """One copy of a network with its optimizer; it sees the same batch at every step."""

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, inputs: torch.Tensor, labels: torch.Tensor
    ) -> None:
        self.model, self.optimizer = model.train(), optimizer
        self.inputs, self.labels = inputs, labels

    def steps(self, count: int, *, examples: int | None = None, after: Callable[[], None] | None = None) -> None:
        """Train for ``count`` steps, on the first ``examples`` of the batch, calling ``after`` at the end of each."""
        inputs = self.inputs[:examples]
        labels = self.labels[:examples].flatten()
        for _ in range(count):
            loss = F.cross_entropy(self.model(inputs), labels)
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            self.optimizer.zero_grad()
            if after is not None:
                after()


@dataclass(frozen=True)
class Workload:
    """A network to measure on: how it is made, what it is, and the ratios it must stay below."""

    title: str
    make: Callable[[], Trainer]
    targets: dict[str, float] = field(default_factory=dict)


def _all_cnn() -> Trainer:
    torch.manual_seed(0)
    model = all_cnn()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-3)
    return Trainer(model, optimizer, torch.randn(32, 3, 32, 32), torch.randint(10, (32,)))


def _transformer() -> Trainer:
    return _token_trainer(TokenTransformer, batch=16, vocabulary=256, tokens=128, width=128, heads=4, layers=4)


def _gpt2_small() -> Trainer:
    return _token_trainer(TokenTransformer, batch=2, vocabulary=50257, tokens=128, width=768, heads=12, layers=12)


def _token_trainer(
    build: Callable[..., nn.Module], *, batch: int, vocabulary: int, tokens: int, **sizes: int
) -> Trainer:
    torch.manual_seed(0)
    model = build(vocabulary=vocabulary, tokens=tokens, **sizes)
    stream = torch.randint(vocabulary, (batch, tokens + 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    return Trainer(model, optimizer, stream[:, :-1].contiguous(), stream[:, 1:].contiguous())


def _depth_net() -> Trainer:
    generator = torch.Generator().manual_seed(0)
    model = depth_net(50, in_channels=1, image_size=8, stem="3x3", activation=LinkedReLU, generator=generator)
    data = digits()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    return Trainer(model, optimizer, data.train_images[:64], data.train_labels[:64])


STEP_WORKLOADS = {
    "all-cnn": Workload(
        "All-CNN, 32x32 images, batch 32",
        _all_cnn,
        {RECORDED_EVERY_STEP: 1.05, RECORDED_EVERY_TENTH: 1.02, PAUSED: 1.01},
    ),
    "transformer": Workload(
        "4-layer transformer, width 128, 128 tokens, batch 16",
        _transformer,
        {RECORDED_EVERY_STEP: 1.12, RECORDED_EVERY_TENTH: 1.02, PAUSED: 1.01},
    ),
    "depth-net": Workload(
        "50-layer linked net, width 4, 8x8 digits, batch 64",
        _depth_net,
        {RECORDED_EVERY_STEP: 1.25, RECORDED_EVERY_TENTH: 1.04, PAUSED: 1.01},
    ),
}
"""What steps are timed on; targets are upper ends of the 90 % interval of the ratio to bare training."""

MEMORY_WORKLOADS = {
    "all-cnn": STEP_WORKLOADS["all-cnn"],
    "gpt2-small": Workload("transformer of GPT-2 small's size, 128 tokens, batch 2", _gpt2_small),
}
"""What peak memory is measured on."""
