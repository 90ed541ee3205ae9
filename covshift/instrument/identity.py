"""Which model a recording is of: names and types of its modules, shapes and dtypes of its parameters, no values.

A resumed recording compares it, so that the numbers of two models never stand in one history. What may rightly change
between two processes is left out: weights, devices, hyperparameters of a module, which layers are observed.
"""

from __future__ import annotations

from torch import nn

from covshift.instrument import sites
from covshift.instrument.describing import Settings


def structure(model: nn.Module) -> dict[str, str]:
    """Every module by name, in words such as ``"Linear weight=float32[8x4] bias=float32[8]"``.

    A lazy module that has not run yet is called by the type it will have, and the unknown shape of its parameters
    is ``[?]``.

    Examples
    --------
    >>> structure(nn.Sequential(nn.Linear(4, 8), nn.ReLU()))["0"]
    'Linear weight=float32[8x4] bias=float32[8]'
    """
    return {name or sites.ROOT: _in_words(module) for name, module in model.named_modules()}


def _in_words(module: nn.Module) -> str:
    kind: type = getattr(module, "cls_to_become", None) or type(module)
    return " ".join([kind.__name__, *(f"{name}={_form(one)}" for name, one in module.named_parameters(recurse=False))])


def _form(parameter: nn.Parameter) -> str:
    lazy = nn.parameter.is_lazy(parameter)
    return f"{str(parameter.dtype).removeprefix('torch.')}[{'?' if lazy else 'x'.join(map(str, parameter.shape))}]"


def unobserved(model: nn.Module, settings: Settings) -> frozenset[str]:
    """Names of the modules, under every name they have, whose own calls are not recorded."""
    chosen = sites.select(model, settings.layers)
    named = model.named_modules(remove_duplicate=False)
    return frozenset(name or sites.ROOT for name, module in named if id(module) not in chosen)
