"""Linked activations as plain functions: several members read one pre-activation, their outputs lie side by side.

A *linkage* of members ``g_1 ... g_d`` is ``f(z) = (g_1(z), ..., g_d(z))``, concatenated along the axis of the units,
so the next layer sees ``d`` times the units (Riera Molina & Pujol Vila, 2017, arXiv:1712.02609). Derivatives are
whatever autograd computes for the members; nothing here defines a derivative of its own.

This room refuses to guess: integer tensors, an axis that the tensor does not have, members that change the shape and
members that overwrite ``z`` under the next member are errors, never numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from covshift.exceptions import InvalidArgumentError

__all__ = [
    "Mirrored",
    "above_zero",
    "below_zero",
    "linked",
    "linked_prelu",
    "linked_relu",
    "linked_selu",
    "linked_silu",
    "min_max",
]

Member = Callable[[Tensor], Tensor]


class Mirrored:
    """The mirror image ``z -> g(-z)`` of an activation ``g``, which stays readable as ``mirror_of``.

    Parameters
    ----------
    base : callable
        ``g``, a function or module that maps a tensor to one of the same shape.

    Attributes
    ----------
    mirror_of : callable
        ``base`` itself. A reader that knows the derivative of ``g`` in closed form gets that of the mirror image from
        it: ``-g'(-z)``.

    Examples
    --------
    >>> mirrored = Mirrored(torch.relu)
    >>> mirrored(torch.tensor([-2.0, 3.0]))
    tensor([2., 0.])
    """

    def __init__(self, base: Member) -> None:
        self.mirror_of = base

    def __call__(self, z: Tensor) -> Tensor:
        """Return ``g(-z)``."""
        return self.mirror_of(-z)

    def __repr__(self) -> str:
        return f"Mirrored({self.mirror_of!r})"


def linked(z: Tensor, members: Sequence[Member], *, dim: int = 1) -> Tensor:
    """Apply every member to the same pre-activation and concatenate the outputs along the axis of the units.

    Parameters
    ----------
    z : Tensor
        Pre-activation of any shape ``(..., units, ...)`` and any floating dtype.
    members : sequence of callables
        ``g_1 ... g_d``, each elementwise: a tensor in, a new tensor of the same shape out. One member is allowed and
        gives ``g_1(z)``, the unlinked control of the same code path.
    dim : int, default 1
        Axis of the units: 1 for ``(N, units)`` and ``(N, units, H, W)``, -1 for tokens ``(N, tokens, units)``.

    Returns
    -------
    Tensor
        Shape of ``z`` with axis ``dim`` ``d`` times as long, member after member. NaN and infinities pass through the
        members as they would alone. The memory format is that of :func:`torch.cat`: channels-last stays channels-last.

    Raises
    ------
    InvalidArgumentError
        If ``z`` is not a floating tensor or has no axis ``dim``, if there is no member, or if a member is not
        callable, returns another shape, or changes ``z`` in place.

    References
    ----------
    .. [1] C. R. Riera Molina and O. Pujol Vila, "Solving internal covariate shift in deep learning with linked
       neurons", arXiv:1712.02609, section 3.

    Examples
    --------
    >>> linked(torch.tensor([[-1.0, 2.0]]), (torch.relu, torch.tanh))
    tensor([[ 0.0000,  2.0000, -0.7616,  0.9640]])
    """
    _check_tensor(z, dim)
    if not members:
        raise InvalidArgumentError("members is empty; a linkage needs at least one callable z -> g(z)")
    return torch.cat([_output(member, z, index) for index, member in enumerate(members)], dim)


def linked_relu(z: Tensor, *, dim: int = 1) -> Tensor:
    """Mirror linkage of ReLU, ``(max(z, 0), max(-z, 0))``; also known as CReLU (Shang et al., 2016).

    At exactly ``z = 0`` autograd gives both members derivative zero; :func:`min_max` does not have that gap.

    Parameters
    ----------
    z : Tensor
        Pre-activation, any floating dtype.
    dim : int, default 1
        Axis of the units.

    Returns
    -------
    Tensor
        Twice as long along ``dim``; NaN stays NaN in both halves.

    Raises
    ------
    InvalidArgumentError
        As :func:`linked`.

    Examples
    --------
    >>> linked_relu(torch.tensor([[-1.0, 2.0]]))
    tensor([[0., 2., 1., 0.]])
    """
    return linked(z, (functional.relu, Mirrored(functional.relu)), dim=dim)


def linked_prelu(z: Tensor, slopes: Sequence[Tensor], *, dim: int = 1) -> Tensor:
    """Mirror linkage of PReLU with slopes of its own for each member, ``(prelu_a(z), prelu_b(-z))``.

    Parameters
    ----------
    z : Tensor
        Pre-activation, any floating dtype.
    slopes : two tensors
        ``a`` and ``b``, each of one element or of one per unit; in the latter case the units must lie in axis 1, where
        :func:`torch.nn.functional.prelu` looks for them.
    dim : int, default 1
        Axis of the units.

    Returns
    -------
    Tensor
        Twice as long along ``dim``; NaN stays NaN in both halves.

    Raises
    ------
    InvalidArgumentError
        As :func:`linked`; also if there are not two slope vectors, or one does not fit the units of ``z``.

    Examples
    --------
    >>> linked_prelu(torch.tensor([[-1.0, 2.0]]), (torch.tensor([0.25]), torch.tensor([0.5])))
    tensor([[-0.2500,  2.0000,  1.0000, -1.0000]])
    """
    _check_tensor(z, dim)
    if len(slopes) != 2:
        raise InvalidArgumentError(f"slopes holds {len(slopes)} tensors; expected two, one per member")
    for slope in slopes:
        check_slopes(z, slope.numel(), dim)
    upright, mirrored = (partial(functional.prelu, weight=slope) for slope in slopes)
    return linked(z, (upright, Mirrored(mirrored)), dim=dim)


def linked_selu(z: Tensor, *, dim: int = 1) -> Tensor:
    """Mirror linkage of SELU, ``(selu(z), selu(-z))``.

    Parameters
    ----------
    z : Tensor
        Pre-activation, any floating dtype.
    dim : int, default 1
        Axis of the units.

    Returns
    -------
    Tensor
        Twice as long along ``dim``; NaN stays NaN in both halves.

    Raises
    ------
    InvalidArgumentError
        As :func:`linked`.
    """
    return linked(z, (functional.selu, Mirrored(functional.selu)), dim=dim)


def linked_silu(z: Tensor, *, dim: int = 1) -> Tensor:
    """Mirror linkage of SiLU, also called Swish, ``(silu(z), silu(-z))``.

    Parameters
    ----------
    z : Tensor
        Pre-activation, any floating dtype.
    dim : int, default 1
        Axis of the units.

    Returns
    -------
    Tensor
        Twice as long along ``dim``; NaN stays NaN in both halves.

    Raises
    ------
    InvalidArgumentError
        As :func:`linked`.
    """
    return linked(z, (functional.silu, Mirrored(functional.silu)), dim=dim)


def above_zero(z: Tensor) -> Tensor:
    """``max(z, 0)`` with derivative 1 at ``z = 0``, the convention of :func:`torch.clamp`; NaN stays NaN."""
    return z.clamp(min=0)


def below_zero(z: Tensor) -> Tensor:
    """``min(z, 0)`` with derivative 1 at ``z = 0``, the convention of :func:`torch.clamp`; NaN stays NaN."""
    return z.clamp(max=0)


def min_max(z: Tensor, *, dim: int = 1) -> Tensor:
    """The pair ``(max(z, 0), min(z, 0))`` of the paper's figure 1a, whose members add up to ``z``.

    Both members are clamps, whose derivative at ``z = 0`` is 1 in autograd, so unlike :func:`linked_relu` the pair has
    a non-zero derivative at every ``z``.

    Parameters
    ----------
    z : Tensor
        Pre-activation, any floating dtype.
    dim : int, default 1
        Axis of the units.

    Returns
    -------
    Tensor
        Twice as long along ``dim``; NaN stays NaN in both halves.

    Raises
    ------
    InvalidArgumentError
        As :func:`linked`.

    Examples
    --------
    >>> min_max(torch.tensor([[-1.0, 2.0]]))
    tensor([[ 0.,  2., -1.,  0.]])
    """
    return linked(z, (above_zero, below_zero), dim=dim)


def check_slopes(z: Tensor, slopes: int, dim: int) -> None:
    """Refuse a PReLU whose slopes would not belong to the units of ``z`` along ``dim``.

    ``torch.nn.functional.prelu`` always reads axis 1. With the units elsewhere it would fail, or worse, silently give
    every token the slope of a unit.
    """
    if slopes == 1:
        return
    if z.ndim < 2 or dim % z.ndim != 1:
        raise InvalidArgumentError(
            f"{slopes} PReLU slopes belong to axis 1, but dim={dim} of a {z.ndim}-dimensional tensor is another axis; "
            "use one slope per member (num_parameters=1) or move the units to axis 1"
        )
    if z.shape[1] != slopes:
        raise InvalidArgumentError(
            f"{slopes} PReLU slopes do not fit z with {z.shape[1]} units in axis 1; "
            f"use num_parameters={z.shape[1]} or num_parameters=1"
        )


def _check_tensor(z: Tensor, dim: int) -> None:
    if not isinstance(z, Tensor) or not z.is_floating_point():
        found = f"dtype {z.dtype}" if isinstance(z, Tensor) else f"a {type(z).__name__}"
        raise InvalidArgumentError(f"z must be a floating-point tensor, got {found}; convert it, e.g. z.float()")
    if not -z.ndim <= dim < z.ndim:
        allowed = f"{-z.ndim} to {z.ndim - 1}" if z.ndim else "no dim at all: unsqueeze z first"
        raise InvalidArgumentError(
            f"dim={dim} does not exist in z with ndim={z.ndim} and shape {tuple(z.shape)}; valid: {allowed}"
        )


def _output(member: Member, z: Tensor, index: int) -> Tensor:
    if not callable(member):
        raise InvalidArgumentError(f"members[{index}] is a {type(member).__name__}; expected a callable z -> g(z)")
    # Neither a traced graph nor an inference tensor counts its in-place changes.
    watched = not torch.compiler.is_compiling() and not z.is_inference()
    version = z._version if watched else 0
    output = member(z)
    if watched and z._version != version:
        raise InvalidArgumentError(
            f"members[{index}] ({member!r}) changed z in place, which falsifies the other members; use inplace=False"
        )
    if not isinstance(output, Tensor) or output.shape != z.shape:
        found = tuple(output.shape) if isinstance(output, Tensor) else f"a {type(output).__name__}"
        raise InvalidArgumentError(
            f"members[{index}] ({member!r}) turned shape {tuple(z.shape)} into {found}; members must keep the shape"
        )
    return output
