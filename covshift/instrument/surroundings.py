"""What a model and its process are like before recording begins: parts that stay hidden, and kernels to load.

Whether the model is still made of the same modules is asked once, when recording has ended.
"""

from __future__ import annotations

import weakref

import torch
from torch import nn

from covshift.exceptions import UnsupportedModelError
from covshift.instrument import opaque, sites
from covshift.instrument.describing import Settings
from covshift.instrument.functional import hidden_functions
from covshift.instrument.hooks import faked, unseen
from covshift.instrument.incidents import Incidents, listed
from covshift.summary import prepare
from covshift.summary.cpu import FORMS
from covshift.summary.norms import Tensors


class Surroundings:
    """Looks a model over once."""

    def __init__(self, model: nn.Module, settings: Settings) -> None:
        self._compiled, self._in_place = opaque.compiled(model), opaque.compiled_in_place(model)
        self._hidden = [] if settings.functional else hidden_functions(model)
        self._model = weakref.ref(model)
        self._modules = {id(module): weakref.ref(module) for module in model.modules()}
        self._names = {id(module): name for name, module in model.named_modules()}
        self._parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
        chosen = sites.select(model, settings.layers)
        self._chosen = None if settings.layers is None else set(chosen.values())
        self._device = next((p.device.type for p in model.parameters() if not p.is_meta), "cpu")
        self._dtypes = {parameter.dtype for parameter in model.parameters() if parameter.device.type == "cpu"}

    def warn(self, incidents: Incidents) -> None:
        """Name what will not be seen."""
        if self._compiled:
            opaque.warn_of_compiled(incidents, self._compiled)
        if self._in_place:
            opaque.warn_of_compiled_in_place(incidents, self._in_place)
        if self._hidden:
            incidents.warn_once(
                "functional",
                "model",
                f"activations called as functions are not seen in {listed(self._hidden)}: functional=True records them",
            )

    @property
    def is_opaque(self) -> bool:
        """Whether calls of some modules are not seen because they are compiled."""
        return bool(self._compiled or self._in_place)

    def warn_of_new_parts(self, incidents: Incidents) -> None:
        """Name what has come into the model since, in place of others or beside them, and what was compiled since."""
        model = self._model()
        self._in_place = [] if model is None else opaque.compiled_in_place(model)
        if self._in_place:
            opaque.warn_of_compiled_in_place(incidents, self._in_place)
        named = {} if model is None else dict(model.named_modules())
        new = {name for name, module in named.items() if not self._is_known(module)}
        # What lies in a new module is new with it.
        outermost = sorted(name for name in new if name.rpartition(".")[0] not in new)
        wanted = [name for name in outermost if self._chosen is None or name in self._chosen]
        if wanted:
            incidents.warn_once(
                "new modules",
                "model",
                f"modules have come into the model after record(), in place of others or beside: {listed(wanted)}; "
                "what they give is not recorded. Record the model once it is complete",
            )
        self._warn_of_new_parameters(incidents, named, new)

    def _warn_of_new_parameters(self, incidents: Incidents, modules: dict[str, nn.Module], new: set[str]) -> None:
        """Name parameters that have come into modules that still stand where they stood; others go without saying."""
        there = {
            f"{name}.{own}" if name else own
            for name, module in modules.items()
            if name not in new and self._names.get(id(module)) == name
            for own, parameter in module._parameters.items()
            if parameter is not None
        }
        if come := sorted(there - self._parameters):
            incidents.warn_once(
                "new parameters",
                "model",
                f"parameters have come into the model after record(): {listed(come)}; their norms are not recorded. "
                "Record the model once it is complete",
            )

    def _is_known(self, module: nn.Module) -> bool:
        """Whether a module was there, or is what torch.compile has since made of one that was."""
        original = opaque.original(module)
        was = module if original is None else original
        # The place of one that is gone may have been given to another.
        known = self._modules.get(id(was))
        return known is not None and known() is was

    def warn_of_hidden_scale(self, incidents: Incidents) -> None:
        """Say what a GradScaler that was not named does to gradients, where half precision makes one likely."""
        device = self._device
        if torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) is torch.float16:
            incidents.warn_once(
                "scaler",
                "model",
                "autocast to float16 without scaler=: if a GradScaler multiplies the loss, gradients of layers are "
                "recorded multiplied and skipped steps are not counted; record(..., scaler=scaler) unscales and counts",
            )

    def prepare(self) -> None:
        """Load or compile the kernels now: the first recorded step is not slower for them."""
        if not faked():
            with unseen():
                self._prepare()

    def _prepare(self) -> None:
        for dtype in self._dtypes & set(FORMS):
            prepare(dtype)
        if torch.float32 in self._dtypes:
            Tensors([torch.ones(1, device="cpu")]).norms()


def demand_observable(model: object) -> None:
    """Demand a model whose calls hooks can see.

    Raises
    ------
    UnsupportedModelError
        If it is no eager ``torch.nn.Module``, replicates itself over devices within one process, or has a module that
        is named like the model itself or its input among the layers.
    """
    if not isinstance(model, nn.Module) or isinstance(model, torch.jit.ScriptModule):
        raise UnsupportedModelError(
            f"model: {type(model).__name__} cannot be observed; expected an eager torch.nn.Module (record the model "
            "before scripting it)"
        )
    if any(isinstance(module, nn.DataParallel) and module.device_ids for module in model.modules()):
        raise UnsupportedModelError(
            "model: DataParallel runs copies of its modules, which hooks do not see; use DistributedDataParallel and "
            "record in every rank"
        )
    for name, _ in model.named_children():
        if name == sites.ROOT or name.startswith(sites.INPUT):
            raise UnsupportedModelError(
                f"model: a module is named '{name}', as layers of covshift's own are: expected another name; rename it"
            )
