"""Parameters of a visited model: writing them, putting them back, and their values as one vector."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import nn
from torch.autograd.grad_mode import _unsafe_preserve_version_counter

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""By bytes of an element."""


class Originals:
    """Parameters as a visit finds them: the objects, the memory they stand in, and copies of what they hold.

    Copies, and of all: a pass that writes through ``.data`` moves no version counter, and once it has written the
    values are gone. See docs/decisions/probe-groups.md for what they cost.
    """

    def __init__(self, model: nn.Module) -> None:
        self._places = [(module._parameters, dict(module._parameters)) for module in model.modules()]
        self._originals = [_Original(parameter) for parameter in model.parameters()]

    def put_back(self, *, but: Iterable[torch.Tensor] = ()) -> None:
        """The same objects with the same bits, ``but`` these."""
        for held, found in self._places:
            if [(name, id(value)) for name, value in held.items()] != [(n, id(value)) for n, value in found.items()]:
                held.clear()
                held.update(found)
        kept = {id(parameter) for parameter in but}
        for original in self._originals:
            if id(original.parameter) not in kept:
                original.put_back()


class _Original:
    def __init__(self, parameter: nn.Parameter) -> None:
        self.parameter = parameter
        self._memory, self._value = parameter.data, parameter.detach().clone()
        self._version = None if parameter.is_inference() else _unsafe_preserve_version_counter(parameter)

    def put_back(self) -> None:
        """Undo writes of every kind, and what autograd knows of them: to a graph that is pending none was made."""
        parameter, memory = self.parameter, self._memory
        has_moved = _stands_elsewhere(parameter.data, memory)
        if has_moved:
            parameter.data = memory
        is_counted = self._version is not None and parameter._version != self._version.prev_versions[0]
        if not (has_moved or is_counted) and _is_shared(memory):
            # Another process may have made a step meanwhile, which its own counter tells of and not this one.
            return
        if not _same_bits(memory, self._value):
            with torch.no_grad():
                # Sparse and distributed ones do not share their memory with ``.data``.
                (memory if _is_plain(memory) else parameter).copy_(self._value)
        if self._version is not None and parameter._version != self._version.prev_versions[0]:
            self._version.__exit__(None, None, None)


def _is_shared(memory: torch.Tensor) -> bool:
    """Whether other processes may write there, too; torch says so of all memory of a GPU."""
    return memory.device.type == "cpu" and _is_plain(memory) and bool(memory.is_shared())  # type: ignore[no-untyped-call]


def _stands_elsewhere(now: torch.Tensor, before: torch.Tensor) -> bool:
    if not (_is_plain(now) and _is_plain(before)):
        return False
    places = [(one.data_ptr(), one.dtype, one.device, one.shape, one.stride()) for one in (now, before)]
    return places[0] != places[1]


def _same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether nothing need be written; as integers, for NaN differs from itself and 0 equals -0."""
    if one.is_meta:
        return True
    integer = _INTEGERS.get(one.dtype.itemsize)
    if integer is None or not _is_plain(one) or one.is_conj() or one.is_neg():
        return False
    return torch.equal(one.view(integer), other.view(integer))


def _is_plain(tensor: torch.Tensor) -> bool:
    return type(tensor) is torch.Tensor and tensor.layout is torch.strided and not tensor.is_quantized


def write(parameters: Sequence[torch.Tensor], values: Sequence[torch.Tensor]) -> None:
    """Overwrite parameters in place."""
    with torch.no_grad():
        for parameter, value in zip(parameters, values, strict=True):
            parameter.copy_(value)


def flat(values: Sequence[torch.Tensor | None], like: Sequence[torch.Tensor]) -> torch.Tensor:
    """All values of a layer in one float64 vector, zeros where a parameter has no gradient."""
    parts = [torch.zeros_like(p) if v is None else v.detach() for v, p in zip(values, like, strict=True)]
    return torch.cat([part.to(torch.float64).flatten() for part in parts])


def norm(vector: torch.Tensor) -> float:
    """L2 norm."""
    return float(torch.linalg.vector_norm(vector))
