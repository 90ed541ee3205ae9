"""The thirteen ways in which the paper builds each network: four activations, single, linked and sqrt(2) wide, and BN.

As in the paper's Keras 2: PReLU slopes start at 0 (torch: 0.25) and Batch Normalization keeps running moments with
momentum 0.99 and epsilon 1e-3 (torch: 0.9 and 1e-5). Unlike there, PReLU has one slope a layer instead of one an
element.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

from torch import nn

from covshift import linked

Kind = Literal["single", "linked", "wide", "batch-norm"]
BASES = {"relu": "ReLU", "prelu": "PReLU", "selu": "SELU", "silu": "Swish"}
"""Base activations by the name torch has for them, with the paper's."""


def batch_norm(units: int) -> nn.BatchNorm2d:
    """Batch Normalization with the defaults of Keras 2."""
    return nn.BatchNorm2d(units, eps=1e-3, momentum=0.01)


@dataclass(frozen=True)
class Variant:
    """One way to build a network.

    Attributes
    ----------
    title : str
        As in the paper's tables.
    base : str
        Key of :data:`BASES`.
    kind : {"single", "linked", "wide", "batch-norm"}
        ``wide`` asks for sqrt(2) times the units, the control with as many parameters as the linked net.
    activation, base_activation : callable
        Factories; they differ for linked variants.
    norm : callable or None
    """

    title: str
    base: str
    kind: Kind
    activation: Callable[[], nn.Module]
    base_activation: Callable[[], nn.Module]
    norm: Callable[[int], nn.Module] | None = None

    @property
    def is_wide(self) -> bool:
        """Whether the network is to be sqrt(2) times as wide."""
        return self.kind == "wide"


_SINGLE: Mapping[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "prelu": partial(nn.PReLU, init=0.0),
    "selu": nn.SELU,
    "silu": nn.SiLU,
}
_LINKED: Mapping[str, Callable[[], nn.Module]] = {
    "relu": linked.LinkedReLU,
    "prelu": partial(linked.LinkedPReLU, init=0.0),
    "selu": linked.LinkedSELU,
    "silu": linked.LinkedSiLU,
}


def _all() -> dict[str, Variant]:
    variants = {}
    for base, title in BASES.items():
        single = _SINGLE[base]
        variants[base] = Variant(title, base, "single", single, single)
        variants[f"linked-{base}"] = Variant(f"LK-{title}", base, "linked", _LINKED[base], single)
        variants[f"{base}-wide"] = Variant(f"{title} sqrt2", base, "wide", single, single)
    variants["batch-norm"] = Variant("BN", "relu", "batch-norm", nn.ReLU, nn.ReLU, batch_norm)
    return variants


VARIANTS: Mapping[str, Variant] = _all()
THIRTEEN = tuple(VARIANTS)
EIGHT = tuple(name for name, variant in VARIANTS.items() if variant.kind in ("single", "linked"))
TWELVE = tuple(name for name in VARIANTS if name != "batch-norm")
