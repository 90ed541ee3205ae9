"""Where a nonlinearity is flat, against autograd."""

import numpy as np
import pytest
import torch

from covshift.analysis.active_mass import FLAT
from covshift.analysis.flat_regions import flat_regions
from covshift.linked import LinkedReLU, LinkedSELU, LinkedSiLU

MODULES = ["ReLU", "ReLU6", "Hardtanh", "LeakyReLU", "SELU", "ELU", "SiLU", "GELU", "Tanh", "Sigmoid", "Softplus"]
LINKED = {"LinkedReLU": LinkedReLU, "LinkedSELU": LinkedSELU, "LinkedSiLU": LinkedSiLU}


def slopes(kind: str, z: torch.Tensor) -> np.ndarray:
    """Largest size of any member's derivative, by autograd, one row of z at a time."""
    module = LINKED[kind]() if kind in LINKED else getattr(torch.nn, kind)()
    found = []
    for member in range(2 if kind in LINKED else 1):
        x = z.clone().requires_grad_()
        out = module(x[:, None])
        out[:, member].sum().backward()
        found.append(x.grad.abs().numpy())
    return np.max(found, axis=0)


@pytest.mark.parametrize("kind", [*MODULES, *LINKED])
def test_a_derivative_by_autograd_is_below_a_tenth_of_its_largest_there_and_nowhere_else(kind):
    z = torch.linspace(-9.973, 9.979, 4001, dtype=torch.float64)
    slope = slopes(kind, z)
    inside = np.zeros(len(z), dtype=bool)
    for low, high in flat_regions(kind):
        inside |= (z.numpy() > low) & (z.numpy() < high)
    flat = slope < FLAT * slope.max()
    kinks = np.abs(np.diff(flat.astype(int), prepend=flat[0])) > 0
    near = kinks | np.roll(kinks, -1) | np.roll(kinks, 1)
    np.testing.assert_array_equal(inside[~near], flat[~near])


def test_a_class_without_a_known_derivative_has_no_flat_region():
    assert flat_regions("Mystery") == ()
