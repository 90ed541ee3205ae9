"""Which images a step sees, and how they are moved: functions of the seed and the step alone.

Nothing is remembered from one step to the next, so that a run that begins in the middle sees what it would have seen.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

_EPOCHS_OF_A_SEED = 1_000_000
"""Above any number of epochs here, so that no two seeds share an order."""


def batch_indices(step: int, *, examples: int, batch_size: int, seed: int, shuffled: bool) -> Tensor:
    """Positions of the images of a step; the last batch of an epoch holds what is left."""
    per_epoch = math.ceil(examples / batch_size)
    epoch, place = divmod(step, per_epoch)
    order = _order(epoch, examples, seed) if shuffled else torch.arange(examples)
    return order[place * batch_size : (place + 1) * batch_size]


@lru_cache(maxsize=2)
def _order(epoch: int, examples: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed * _EPOCHS_OF_A_SEED + epoch)
    return torch.randperm(examples, generator=generator)


def augmented(images: Tensor, *, seed: int, step: int) -> Tensor:
    """Images flipped left to right with probability 1/2 and moved by up to a tenth, edges repeated.

    Whole pixels, where the paper's Keras generator moves by fractions.
    """
    generator = torch.Generator().manual_seed((seed * _EPOCHS_OF_A_SEED + step) ^ 0x5EED)
    count, _, height, width = images.shape
    reach = max(height // 10, 1)
    flips = torch.rand(count, generator=generator) < 0.5
    down, right = (torch.randint(2 * reach + 1, (count,), generator=generator) for _ in range(2))
    rows = down[:, None] + torch.arange(height)
    columns = right[:, None] + torch.arange(width)
    columns = torch.where(flips[:, None], columns.flip(1), columns)
    padded = F.pad(images, (reach,) * 4, mode="replicate")
    chosen = padded[torch.arange(count)[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    return chosen.permute(0, 3, 1, 2).contiguous()
