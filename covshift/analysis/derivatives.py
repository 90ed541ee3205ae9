"""Derivatives of nonlinearities by name, on numpy arrays: what an operating point is drawn over.

A recording names the kind of a nonlinearity (``layers/activation``), not its parameters, so the curves are those of
torch's defaults. A kind that is not in the table, such as a linkage of someone's own, has no curve: NaN, never a guess.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Derivative = Callable[[Floats], Floats]

SELU_SCALE, SELU_ALPHA = 1.0507009873554805, 1.6732632423543772
"""Klambauer et al. (2017), arXiv 1706.02515."""


def derivative(kind: str, z: ArrayLike) -> Floats:
    """``|g'(z)|`` of a nonlinearity; of a linkage, that of its most live member.

    Parameters
    ----------
    kind : str
        Class name of the nonlinearity, as recorded under ``layers/activation``.
    z : array_like of float
        Pre-activations.

    Returns
    -------
    ndarray of float64
        Shape of ``z``, >= 0; NaN everywhere for a kind that is not known. At a kink torch's choice: 0 for ReLU at 0.

    Examples
    --------
    >>> derivative("ReLU", [-1.0, 2.0]), derivative("LinkedReLU", [-1.0, 0.0])
    (array([0., 1.]), array([1., 0.]))
    """
    at = np.asarray(z, dtype=np.float64)
    members = _MEMBERS.get(kind)
    if members is None:
        return np.full(at.shape, np.nan)
    with np.errstate(over="ignore", under="ignore"):
        return np.asarray(np.max([np.abs(member(at)) for member in members], axis=0))


def known_kinds() -> tuple[str, ...]:
    """Kinds that have a curve."""
    return tuple(_MEMBERS)


def _mirrored(base: Derivative) -> Derivative:
    return lambda z: base(-z)


def _sigmoid(z: Floats) -> Floats:
    return np.asarray(np.exp(-np.logaddexp(0.0, -z)))


def _leaky(slope: float) -> Derivative:
    return lambda z: np.where(z > 0, 1.0, slope)


def _elu(z: Floats) -> Floats:
    return np.where(z > 0, 1.0, np.exp(np.minimum(z, 0.0)))


def _selu(z: Floats) -> Floats:
    return np.where(z > 0, SELU_SCALE, SELU_SCALE * SELU_ALPHA * np.exp(np.minimum(z, 0.0)))


def _silu(z: Floats) -> Floats:
    open_share = _sigmoid(z)
    return np.asarray(open_share * (1 + z * (1 - open_share)))


def _gelu(z: Floats) -> Floats:
    from scipy.special import ndtr

    return np.asarray(ndtr(z) + z * np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi))


def _mish(z: Floats) -> Floats:
    inner = np.tanh(np.logaddexp(0.0, z))
    return np.asarray(inner + z * (1 - inner**2) * _sigmoid(z))


def _hardswish(z: Floats) -> Floats:
    return np.select([z <= -3, z < 3], [0.0, z / 3 + 0.5], 1.0)


def _relu(z: Floats) -> Floats:
    return (z > 0).astype(np.float64)


_MEMBERS: Mapping[str, tuple[Derivative, ...]] = {
    "ReLU": (_relu,),
    "ReLU6": (lambda z: ((z > 0) & (z < 6)).astype(np.float64),),
    "Hardtanh": (lambda z: (np.abs(z) < 1).astype(np.float64),),
    "LeakyReLU": (_leaky(0.01),),
    "PReLU": (_leaky(0.25),),
    "ELU": (_elu,),
    "CELU": (_elu,),
    "SELU": (_selu,),
    "SiLU": (_silu,),
    "GELU": (_gelu,),
    "Mish": (_mish,),
    "Hardswish": (_hardswish,),
    "Softplus": (_sigmoid,),
    "Softsign": (lambda z: 1 / (1 + np.abs(z)) ** 2,),
    "Tanh": (lambda z: 1 - np.tanh(z) ** 2,),
    "Sigmoid": (lambda z: _sigmoid(z) * _sigmoid(-z),),
    "LogSigmoid": (lambda z: _sigmoid(-z),),
    "LinkedReLU": (_relu, _mirrored(_relu)),
    "LinkedPReLU": (_leaky(0.25), _mirrored(_leaky(0.25))),
    "LinkedSELU": (_selu, _mirrored(_selu)),
    "LinkedSiLU": (_silu, _mirrored(_silu)),
}
