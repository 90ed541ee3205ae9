"""What to observe in a model, and how to read it: selection, names, unit and example axes, kinds.

Reads attributes and standard torch classes, never covshift's own remedies: a linked module announces itself by
``linkage_members``, ``linkage_dim`` and ``linkage_layout``, so anybody's CReLU-like module can join.
"""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from numbers import Number
from typing import Any

import torch
from torch import nn

from covshift import schema
from covshift.exceptions import InvalidArgumentError

ROOT = "(root)"
INPUT = schema.MODEL_INPUT
"""Names of the model itself, and of what it is given, among the layers; modules so named are refused."""

Selection = str | re.Pattern[str] | type[nn.Module] | Callable[[str, nn.Module], bool]

_UNITS_IN_AXIS_1 = (
    nn.modules.conv._ConvNd,
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
)
_NORMS_OF_LAST = (nn.LayerNorm, nn.RMSNorm)
_UNITS_LAST = (
    nn.Linear,
    nn.Bilinear,
    *_NORMS_OF_LAST,
    nn.Embedding,
    nn.EmbeddingBag,
    nn.RNNBase,
    nn.MultiheadAttention,
)

NONLINEARITIES: tuple[type[nn.Module], ...] = (
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.PReLU,
    nn.RReLU,
    nn.ELU,
    nn.CELU,
    nn.SELU,
    nn.SiLU,
    nn.GELU,
    nn.Mish,
    nn.Softplus,
    nn.Softsign,
    nn.Softshrink,
    nn.Tanhshrink,
    nn.Hardshrink,
    nn.Hardtanh,
    nn.Hardswish,
    nn.Hardsigmoid,
    nn.Tanh,
    nn.Sigmoid,
    nn.LogSigmoid,
    nn.Threshold,
    nn.GLU,
)


def is_linkage(module: nn.Module) -> bool:
    """Whether the module announces itself as a linkage whose members are concatenated."""
    return getattr(module, "linkage_layout", None) == "concatenated" and hasattr(module, "linkage_members")


def linkage_parts(model: nn.Module) -> set[int]:
    """Modules inside the linkages of a model, by identity: members of a linkage are no layers of their own.

    A member is silent by design where another is not, and its units are among the linkage's.
    """
    linkages = [module for module in model.modules() if is_linkage(module)]
    return {id(part) for linkage in linkages for part in linkage.modules() if part is not linkage}


def is_parametrization(name: str) -> bool:
    """Whether the module of this name computes a parameter, or a part of one."""
    return "parametrizations" in name.split(".")


def activation_kind(module: nn.Module) -> str:
    """Class name of a nonlinearity or linkage, "" for any other module."""
    return type(module).__name__ if is_linkage(module) or isinstance(module, NONLINEARITIES) else ""


def is_leaf(module: nn.Module) -> bool:
    """Whether the module is observed as one: it has no children, or is a linkage around some."""
    return is_linkage(module) or next(module.children(), None) is None


def says_axis(module: nn.Module) -> bool:
    """Whether a module's type tells the unit axis of its output, whatever it reads."""
    return is_linkage(module) or isinstance(module, (*_UNITS_IN_AXIS_1, *_UNITS_LAST))


def axes(module: nn.Module, output: torch.Tensor, unit_axis_of_input: int | None) -> tuple[int, int]:
    """Unit axis and example axis of a module's output, by module type.

    Parameters
    ----------
    module : Module
        The module that made ``output``.
    output : Tensor
        Its output; only its shape is read.
    unit_axis_of_input : int or None
        Unit axis that the tensor the module read lets expect, as of elementwise modules, pooling and dropout; None
        where nothing is known, :data:`covshift.schema.UNKNOWN_AXIS` where what is known disagrees.

    Returns
    -------
    tuple of int
        Non-negative axes ``(unit, example)``; for tensors of fewer than 2 axes both are 0. The first is
        :data:`covshift.schema.UNKNOWN_AXIS` where several axes may count units.
    """
    last = max(output.ndim - 1, 0)
    batch_first = getattr(module, "batch_first", True)
    example = 0 if batch_first or output.ndim < 2 else 1
    if is_linkage(module):
        return int(module.linkage_dim) % max(output.ndim, 1), example  # type: ignore[arg-type]
    if isinstance(module, _UNITS_IN_AXIS_1) and output.ndim > 1:
        # Convolutions and instance norms also take single examples without a batch axis.
        by_type, example = (1, 0) if output.ndim != _unbatched_ndim(module) else (0, example)
        return _checked(module, output, by_type, example, unit_axis_of_input), example
    if isinstance(module, _UNITS_LAST):
        return _checked(module, output, last, example, unit_axis_of_input), example
    if unit_axis_of_input is not None:
        return unit_axis_of_input, example
    return (1 if output.ndim >= 4 else last), example


def _checked(module: nn.Module, output: torch.Tensor, by_type: int, example: int, of_input: int | None) -> int:
    """The axis that the module's type says, unless the class has a ``forward`` of its own and the length denies it.

    A norm of the last axis whose own ``forward`` moves axes, as ``LayerNorm2d`` of (N, C, H, W) does, has its units
    where the tensor it read has them, or on the one axis of their number.
    """
    units = _unit_count(module)
    if units is None or _has_stock_forward(module):
        return by_type
    fitting = [k for k, length in enumerate(output.shape) if length == units and (k == by_type or k != example)]
    if by_type in fitting and not isinstance(module, _NORMS_OF_LAST):
        return by_type
    if of_input in fitting:
        return of_input
    if len(fitting) > 1:
        return schema.UNKNOWN_AXIS
    return fitting[0] if fitting else by_type


def _unit_count(module: nn.Module) -> int | None:
    """How many units a module with weights says it has."""
    if isinstance(module, _NORMS_OF_LAST):
        return int(module.normalized_shape[-1])
    names = ("out_features", "out_channels", "num_features", "num_channels", "embedding_dim")
    found = next((getattr(module, name) for name in names if hasattr(module, name)), None)
    return found if isinstance(found, int) else None


def _has_stock_forward(module: nn.Module) -> bool:
    classes = (one for one in type(module).__mro__ if issubclass(one, nn.Module))
    return type(module).forward is next(one for one in classes if one.__module__.startswith("torch.")).forward


def _unbatched_ndim(module: nn.Module) -> int:
    return len(module.kernel_size) + 1 if isinstance(module, nn.modules.conv._ConvNd) else -1


def leaves(output: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors inside a module's output with the path to each: "" alone, "0", "1.0" in tuples, keys in mappings.

    Of a PackedSequence only the data; objects of other kinds are passed over. Where keys make two paths alike, the
    second ends in ``~1``.
    """
    yield from ((path, part) for path, part in parts(output) if isinstance(part, torch.Tensor))


def parts(output: Any) -> Iterator[tuple[str, Any]]:
    """What :func:`leaves` finds, and with it the objects that it does not look into though tensors may be inside."""
    if isinstance(output, torch.Tensor):
        yield "", output
        return
    taken: dict[str, int] = {}
    for path, part in _inside(output, ""):
        k = 0
        if isinstance(part, torch.Tensor):
            k = taken[path] = taken.get(path, -1) + 1
        yield f"{path}~{k}" if k else path, part


_PLAIN = (type(None), Number, str, bytes, Enum, type, torch.dtype, torch.device, torch.layout, torch.memory_format)


def _inside(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    items = None if isinstance(value, torch.Tensor) else _items(value)
    if items is not None:
        for key, inner in items:
            yield from _inside(inner, f"{path}.{key}" if path else str(key))
    elif not isinstance(value, _PLAIN):
        yield path, value


def _items(output: Any) -> Iterable[tuple[Any, Any]] | None:
    """What a container holds; None of what is none."""
    if isinstance(output, nn.utils.rnn.PackedSequence):
        return [("data", output.data)]
    if isinstance(output, Mapping):
        return output.items()
    if isinstance(output, tuple) and hasattr(output, "_fields"):
        return zip(output._fields, output, strict=True)
    if isinstance(output, list | tuple):
        return enumerate(output)
    if is_dataclass(output) and not isinstance(output, type):
        return ((part.name, getattr(output, part.name)) for part in fields(output))
    return None


def select(model: nn.Module, layers: Selection | list[Selection] | None) -> dict[int, str]:
    """Modules to observe: ``id(module)`` to the name under which the model lists it first.

    Parameters
    ----------
    model : Module
        The root.
    layers : None, str, re.Pattern, type, callable, or list of these
        None for all but the members of linkages, "*" for all; a glob on names ("features.*"); a compiled regular
        expression to search names for; a module class; or a predicate of (name, module). A list joins its entries.

    Raises
    ------
    InvalidArgumentError
        If an entry matches no module; the message lists the nearest names.
    """
    named = {name or ROOT: module for name, module in model.named_modules()}
    if layers is None:
        members = linkage_parts(model)
        return {id(module): name for name, module in named.items() if id(module) not in members}
    chosen: dict[int, str] = {}
    if layers == []:
        raise InvalidArgumentError("layers=[]: expected at least one entry, or None for all layers")
    for entry in layers if isinstance(layers, list) else [layers]:
        matched = {id(module): name for name, module in named.items() if _matches(entry, name, module)}
        if not matched:
            raise InvalidArgumentError(f"layers={entry!r}: matches no module of the model{_near(entry, list(named))}")
        chosen.update(matched)
    return chosen


def demand_few(model: nn.Module, layers: Selection | list[Selection] | None, *, most: int) -> None:
    """Demand that no more than ``most`` modules are chosen.

    Raises
    ------
    InvalidArgumentError
        Naming the number of modules and the ways out.
    """
    if isinstance(most, bool) or not isinstance(most, int) or most < 1:
        raise InvalidArgumentError(f"max_layers={most!r}: expected a whole number from 1")
    chosen = len(select(model, layers))
    if chosen > most:
        raise InvalidArgumentError(
            f"max_layers={most}: {chosen} modules are to be observed; choose some with layers= (a name glob, a module "
            f"class, a predicate), or allow them with max_layers={chosen}"
        )


def _matches(entry: Selection, name: str, module: nn.Module) -> bool:
    if isinstance(entry, str):
        return fnmatch.fnmatchcase(name, entry)
    if isinstance(entry, re.Pattern):
        return entry.search(name) is not None
    if isinstance(entry, type):
        return isinstance(module, entry)
    if callable(entry) and not isinstance(entry, nn.Module):
        return bool(entry(name, module))
    raise InvalidArgumentError(f"layers={entry!r}: expected a glob, a compiled regex, a module class or a predicate")


def _near(entry: Selection, names: list[str]) -> str:
    near = difflib.get_close_matches(str(entry), names, n=5, cutoff=0.3) or names[:5]
    return "; near names: " + ", ".join(near)
