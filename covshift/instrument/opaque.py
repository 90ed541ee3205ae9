"""What hides in compiled code, where no hook runs: which modules, what is still seen of them, what to tell of it.

See docs/concepts/compiled.md.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from covshift.instrument.incidents import Incidents, listed
from covshift.instrument.sites import ROOT

_ORIGINAL = "_orig_mod"  # torch's own name
_INSIDE = "To see inside, compile only the parts you need not see, or let record(probe=) run a batch uncompiled"


def original(module: nn.Module) -> nn.Module | None:
    """The module that torch.compile made this one of, without what shares it among ranks; None of others."""
    inside = module._modules[_ORIGINAL] if _ORIGINAL in module._modules else None  # noqa: SIM401 - no dict if scripted
    return inside.module if isinstance(inside, DistributedDataParallel) else inside


def compiled(model: nn.Module) -> list[str]:
    """Names of modules that torch.compile made or that are scripted: of them the outputs are seen."""
    found = [
        name
        for name, module in model.named_modules()
        if original(module) is not None or isinstance(module, torch.jit.ScriptModule)
    ]
    return [name or ROOT for name in found if not name or name.rpartition(".")[0] not in found]


def compiled_in_place(model: nn.Module) -> list[str]:
    """Names of modules that compile their own call (``module.compile()``), hooks included: nothing of them is seen."""
    return [
        name or ROOT
        for name, module in model.named_modules()
        if getattr(module, "_compiled_call_impl", None) is not None
    ]


def warn_of_compiled(incidents: Incidents, names: list[str]) -> None:
    """Name modules of which only the outputs are seen."""
    incidents.warn_once(
        "compiled", listed(names), f"compiled, so only their own outputs can be seen: {listed(names)}. {_INSIDE}"
    )


def warn_of_compiled_in_place(incidents: Incidents, names: list[str]) -> None:
    """Name modules of which nothing is seen."""
    incidents.warn_once(
        "compiled in place",
        "model",
        f"compiled in place, so not even their outputs can be seen: {listed(names)}. Use what torch.compile(module) "
        f"returns instead of calling module.compile(). {_INSIDE}",
    )
