"""Linked activations as modules, which announce their members to whoever measures them.

Every module here carries three plain attributes, and any module of your own with the same three is treated alike:

``linkage_members``
    Tuple of callables ``z -> g_i(z)``, one per member, usable by autograd on a detached ``z``. A mirrored member
    ``z -> g(-z)`` carries ``mirror_of``, the base ``g``.
``linkage_dim``
    Axis along which the members' outputs lie side by side.
``linkage_layout``
    ``"concatenated"``: all units of the first member, then all units of the second, and so on.

The attributes are derived from the module's own submodules each time they are read, so they stay true after copying,
pickling, ``to()`` or replacing a submodule, and they leave no keys in ``state_dict``.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from covshift.exceptions import InvalidArgumentError
from covshift.linked.functional import Member, Mirrored, above_zero, below_zero, check_slopes, linked

__all__ = ["Linked", "LinkedPReLU", "LinkedReLU", "LinkedSELU", "LinkedSiLU", "LinkedSwish", "MinMax"]


class Linked(nn.Module):
    """A linkage: several elementwise members on one pre-activation, concatenated along the axis of the units.

    Parameters
    ----------
    base : nn.Module subclass, nn.Module or callable, or a list of them, optional
        ``g`` of the mirror linkage ``(g(z), g(-z))``. A class is called without arguments. Both members use the same
        ``g``, so parameters are shared; :class:`LinkedPReLU` has separate ones. A list is taken for ``members``.
    members : list, tuple or nn.ModuleList, optional
        The members ``g_1 ... g_d`` instead of ``base``: classes, modules or callables, also
        :class:`~covshift.linked.functional.Mirrored`. One member is allowed: the unlinked control.
    dim : int, default 1
        Axis of the units: 1 for ``(N, units)`` and ``(N, units, H, W)``, -1 for tokens ``(N, tokens, units)``.

    Notes
    -----
    A module with ``inplace=True`` is replaced by a copy with ``inplace=False``: an in-place member would change ``z``
    under the other members, and in-place ELU or SELU takes its derivative from the output, which is exactly zero
    much earlier. A function that works in place cannot be seen in advance; calling it raises.

    Raises
    ------
    InvalidArgumentError
        If not exactly one of ``base`` and ``members`` is given, a member is not callable, or ``dim`` is not an integer;
        and, on calling, as :func:`covshift.linked.functional.linked`.

    See Also
    --------
    covshift.linked.audit : where all members' derivatives vanish.

    Examples
    --------
    >>> Linked(nn.ELU)(torch.tensor([[-1.0, 2.0]]))
    tensor([[-0.6321,  2.0000,  1.0000, -0.8647]])
    >>> Linked(members=[torch.sin, torch.cos], dim=-1)(torch.zeros(3, 5, 8)).shape
    torch.Size([3, 5, 16])
    """

    linkage_layout = "concatenated"

    def __init__(
        self,
        base: Member | type[nn.Module] | Sequence[Member | type[nn.Module]] | None = None,
        *,
        members: Sequence[Member | type[nn.Module]] | nn.ModuleList | None = None,
        dim: int = 1,
    ) -> None:
        super().__init__()
        if isinstance(dim, bool) or not isinstance(dim, int):
            raise InvalidArgumentError(f"dim must be an integer, got {dim!r}")
        self.linkage_dim = dim
        self._plan: list[tuple[str, bool]] = []
        if members is None and isinstance(base, (list, tuple, nn.ModuleList)):
            base, members = None, base
        if (base is None) == (members is None):
            raise InvalidArgumentError("give exactly one of base (mirror linkage) and members (a list of callables)")
        if members is None:
            upright = _instance(base, "base")
            self._register([upright, Mirrored(upright)])
        else:
            self._register(_checked_members(members))

    def _register(self, members: Sequence[Member]) -> None:
        """Keep each distinct base once, modules as submodules, and remember which members mirror which base."""
        names: dict[int, str] = {}
        for index, member in enumerate(members):
            mirrored = isinstance(member, Mirrored)
            base = member.mirror_of if isinstance(member, Mirrored) else member
            if id(base) not in names:
                names[id(base)] = f"member_{index}"
                setattr(self, names[id(base)], _without_inplace(base))
            self._plan.append((names[id(base)], mirrored))

    @property
    def linkage_members(self) -> tuple[Member, ...]:
        """The members, callables ``z -> g_i(z)``, in the order in which their outputs are concatenated."""
        return tuple(
            Mirrored(getattr(self, name)) if mirrored else getattr(self, name) for name, mirrored in self._plan
        )

    def forward(self, z: Tensor) -> Tensor:
        """Concatenate the members' outputs; see :func:`covshift.linked.functional.linked`."""
        return linked(z, self.linkage_members, dim=self.linkage_dim)

    def extra_repr(self) -> str:
        """Name the members, and the axis of the units."""
        return f"members=({', '.join(map(_name, self.linkage_members))}), dim={self.linkage_dim}"


class LinkedReLU(Linked):
    """Mirror linkage of ReLU, ``(relu(z), relu(-z))``: the paper's LK-ReLU, also known as CReLU.

    Its derivatives are both zero at exactly ``z = 0`` and nowhere else; :class:`MinMax` has no such point.

    Parameters
    ----------
    dim : int, default 1
        Axis of the units.

    Examples
    --------
    >>> LinkedReLU()(torch.tensor([[-1.0, 2.0]]))
    tensor([[0., 2., 1., 0.]])
    """

    def __init__(self, *, dim: int = 1) -> None:
        super().__init__(functional.relu, dim=dim)


class LinkedPReLU(Linked):
    """Mirror linkage of PReLU with slopes of its own for each member, ``(prelu_a(z), prelu_b(-z))``.

    Parameters
    ----------
    num_parameters : int, default 1
        Slopes per member: 1, or the number of units, which must then lie in axis 1 (as for :class:`torch.nn.PReLU`).
    init : float, default 0.25
        Initial value of all slopes. With 0 in both members the layer is a linked ReLU, dead at ``z = 0``.
    dim : int, default 1
        Axis of the units.
    device, dtype : optional
        Where and how the slopes are kept.

    Raises
    ------
    InvalidArgumentError
        If ``num_parameters`` is not a positive integer, ``init`` is not finite, or, on calling, the slopes do not fit
        the units of ``z``.

    Examples
    --------
    >>> LinkedPReLU()(torch.tensor([[-1.0, 2.0]])).tolist()
    [[-0.25, 2.0, 1.0, -0.5]]
    """

    def __init__(
        self,
        num_parameters: int = 1,
        init: float = 0.25,
        *,
        dim: int = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if isinstance(num_parameters, bool) or not isinstance(num_parameters, int) or num_parameters < 1:
            raise InvalidArgumentError(f"num_parameters must be a positive integer, got {num_parameters!r}")
        if not math.isfinite(init):
            raise InvalidArgumentError(f"init must be a finite slope, got {init!r}")
        upright, mirrored = (nn.PReLU(num_parameters, init, device=device, dtype=dtype) for _ in range(2))
        super().__init__(members=[upright, Mirrored(mirrored)], dim=dim)
        self.num_parameters = num_parameters

    def forward(self, z: Tensor) -> Tensor:
        """Concatenate the members' outputs; see :func:`covshift.linked.functional.linked_prelu`."""
        check_slopes(z, self.num_parameters, self.linkage_dim)
        return super().forward(z)


class LinkedSELU(Linked):
    """Mirror linkage of SELU, ``(selu(z), selu(-z))``: the paper's LK-SELU.

    Parameters
    ----------
    dim : int, default 1
        Axis of the units.

    Examples
    --------
    >>> LinkedSELU()(torch.tensor([[-1.0, 2.0]]))
    tensor([[-1.1113,  2.1014,  1.0507, -1.5202]])
    """

    def __init__(self, *, dim: int = 1) -> None:
        super().__init__(functional.selu, dim=dim)


class LinkedSiLU(Linked):
    """Mirror linkage of SiLU (Swish), ``(silu(z), silu(-z))``: the paper's LK-Swish.

    Parameters
    ----------
    dim : int, default 1
        Axis of the units.

    Examples
    --------
    >>> LinkedSiLU()(torch.tensor([[-1.0, 2.0]]))
    tensor([[-0.2689,  1.7616,  0.7311, -0.2384]])
    """

    def __init__(self, *, dim: int = 1) -> None:
        super().__init__(functional.silu, dim=dim)


LinkedSwish = LinkedSiLU


class MinMax(Linked):
    """The pair ``(max(z, 0), min(z, 0))`` of the paper's figure 1a; some derivative is non-zero at every ``z``.

    Parameters
    ----------
    dim : int, default 1
        Axis of the units.

    Examples
    --------
    >>> MinMax()(torch.tensor([[-1.0, 2.0]]))
    tensor([[ 0.,  2., -1.,  0.]])
    """

    def __init__(self, *, dim: int = 1) -> None:
        super().__init__(members=[above_zero, below_zero], dim=dim)


def _checked_members(members: Sequence[Member | type[nn.Module]] | nn.ModuleList) -> list[Member]:
    if not isinstance(members, (list, tuple, nn.ModuleList)):
        raise InvalidArgumentError(f"members must be a list, tuple or nn.ModuleList, got {type(members).__name__}")
    if not members:
        raise InvalidArgumentError("members is empty; a linkage needs at least one callable z -> g(z)")
    return [_instance(member, f"members[{index}]") for index, member in enumerate(members)]


def _instance(activation: object, argument: str) -> Member:
    """Return the activation itself, or an instance if it is a module class."""
    if isinstance(activation, type) and issubclass(activation, nn.Module):
        try:
            return activation()
        except TypeError as error:
            raise InvalidArgumentError(
                f"{argument} is the class {activation.__name__}, which needs arguments ({error}); pass an instance"
            ) from error
    if isinstance(activation, type) or not callable(activation):
        raise InvalidArgumentError(
            f"{argument} is {activation!r}; expected an activation: a module, a module class or a callable"
        )
    return activation


def _without_inplace(base: Member) -> Member:
    if not isinstance(base, nn.Module) or not any(getattr(part, "inplace", False) for part in base.modules()):
        return base
    fresh = copy.deepcopy(base)
    for part in fresh.modules():
        if getattr(part, "inplace", False):
            part.inplace = False  # type: ignore[assignment]
    return fresh


def _name(member: Callable[[Tensor], Tensor]) -> str:
    if isinstance(member, Mirrored):
        return f"mirrored {_name(member.mirror_of)}"
    return str(getattr(member, "__name__", type(member).__name__))
