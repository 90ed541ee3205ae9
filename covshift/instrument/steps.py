"""The step clock: optimizer steps of this model, and nobody else's, as seen by torch's own optimizer hooks."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from covshift.instrument.hooks import hidden_from, inside_backward
from covshift.instrument.incidents import Incidents
from covshift.instrument.optimizerhooks import Behind, Listener, OpenCalls, after_own_pre_hooks
from covshift.instrument.sites import ROOT


class StepClock:
    """Tells where a step of the record ends: after an optimizer step that updates a parameter of ``model``.

    A hand-written update is not seen; ``recorder.step()`` states such boundaries. A step that ``GradScaler`` skips
    calls no hook; :mod:`covshift.instrument.scaling` notices it. An optimizer that steps inside the backward pass ends
    its step when the next forward pass begins, for gradients are still on their way; its updates are not measured.
    An optimizer whose step is compiled is not seen either, and is named once the parameters are seen to move without.
    Steps that an optimizer's step calls, its own (``super().step()``) or that of an optimizer it wraps, are part of it.

    Parameters
    ----------
    model : Module
        Whose parameters tell its optimizers from others.
    incidents : Incidents
        Takes warnings.
    before : callable
        Called before each update of the model, with the optimizer and whether it was given a closure to run the model;
        tells whether the update is measured.
    again : callable
        Called with an optimizer whose gradients may have changed since ``before``, as its own step sees them next.
    after : callable
        Called after each update, with the optimizer and whether it ends the step.
    end : callable
        Called where a step ends later than its update.

    Attributes
    ----------
    has_seen_others : bool
        Whether any optimizer of other parameters only has stepped.
    """

    def __init__(
        self,
        model: nn.Module,
        incidents: Incidents,
        *,
        before: Callable[[torch.optim.Optimizer, bool], bool],
        again: Callable[[torch.optim.Optimizer], None],
        after: Callable[[torch.optim.Optimizer, bool], None],
        end: Callable[[], None],
    ) -> None:
        self._model = weakref.ref(model)
        # By identity; the module and the name tell whether it is still that one, or another where that one lay. Not a
        # weak reference to each parameter: torch.utils.swap_tensors refuses tensors that have any.
        self._parameters: dict[int, tuple[weakref.ref[nn.Module], str]] = {}
        self._incidents = incidents
        self._before, self._again, self._after, self._end = before, again, after, end
        self._forwards = 0
        self._stepped: set[int] = set()
        self._owed = self._is_stepping = self.has_seen_others = False
        self._held: weakref.WeakKeyDictionary[torch.optim.Optimizer, set[int]] = weakref.WeakKeyDictionary()
        self._foreign: weakref.WeakKeyDictionary[torch.optim.Optimizer, set[int]] = weakref.WeakKeyDictionary()
        self._first: weakref.ref[torch.Tensor] | None = None
        self._version = self._moves = 0
        self._listener: Listener | None = None
        self._calls = OpenCalls()
        self._late: Behind | None = None

    def install(self) -> None:
        """Start listening to optimizers."""
        # Now, not before: loading weights may have put others in place.
        self._know_parameters()
        first = None if self._first is None else self._first()
        self._version = 0 if first is None else first._version
        self._listener = Listener(before=self._on_before, after=self._on_after)

    def _know_parameters(self) -> None:
        model = self._model()
        present = [] if model is None else list(model.parameters())
        self._parameters = {
            id(parameter): (weakref.ref(module), name)
            for module in (() if model is None else model.modules())
            for name, parameter in module._parameters.items()
            if parameter is not None
        }
        first = next((one for one in present if one.requires_grad and _counts_versions(one)), None)
        self._first = None if first is None else weakref.ref(first)

    def remove(self) -> None:
        """Stop listening."""
        if self._listener is not None:
            self._listener.remove()
        self._forget_late()

    def forward(self) -> None:
        """A forward pass with gradients begins."""
        self.settle()
        self._notice_moves()
        self._forwards += 1

    def _notice_moves(self) -> None:
        """Name updates that no optimizer hook has told of, once parameters have moved twice within a step.

        Once is no sign: optimizers that look ahead move them between the two forward passes of each of their steps.
        """
        first = self._first() if self._first is not None else None
        if first is None or self._is_stepping:
            return
        version, self._version = self._version, first._version
        self._moves += self._forwards > 0 and version != self._version
        if self._moves == 2:
            self._incidents.warn_once(
                "unseen",
                "step",
                "parameters change between forward passes, but no optimizer step of the model is seen (a compiled "
                "optimizer.step, or a hand-written update?), so all of it counts as one step: call recorder.step() "
                "after each update",
            )

    def settle(self) -> None:
        """End the step whose updates were made inside its backward pass, if there is one."""
        if self._owed:
            self._owed = False
            self._end()

    def closed(self) -> None:
        """The step has ended."""
        self._forwards = self._moves = 0
        self._owed = False

    @property
    def forwards_of_step(self) -> int:
        """Forward passes of the step now open."""
        return self._forwards

    @property
    def any_seen(self) -> bool:
        """Whether any optimizer of the model has stepped."""
        return bool(self._held or self._stepped)

    @property
    def has_moved(self) -> bool:
        """Whether parameters have changed since the last forward pass, or since listening began."""
        first = None if self._first is None else self._first()
        return first is not None and first._version != self._version

    @property
    def has_begun(self) -> bool:
        """Whether a forward pass was seen since the last step ended."""
        return self._forwards > 0

    def continues(self, optimizer: torch.optim.Optimizer) -> bool:
        """Whether a step of the optimizer now is part of the step that another one has just ended."""
        return not self._forwards and bool(self._stepped) and id(optimizer) not in self._stepped

    def left_to_others(self, optimizer: torch.optim.Optimizer) -> set[int] | None:
        """Identities of parameters that other optimizers of the model update; None before any step was over."""
        others = [held for one, held in self._held.items() if one is not optimizer]
        return set().union(*others) if self._held else None

    def own_group(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """The optimizer's first group that has a parameter of the model."""
        groups: list[dict[str, Any]] = optimizer.param_groups
        known = self._parameters
        return next((group for group in groups if any(id(p) in known and self._is_own(p) for p in group["params"])), {})

    def _is_own(self, parameter: torch.Tensor) -> bool:
        """Whether a parameter with an identity that is known is the model's, and not one that lies where it lay."""
        place, name = self._parameters[id(parameter)]
        module = place()
        return module is not None and name in module._parameters and module._parameters[name] is parameter

    def modules_of(self, optimizer: torch.optim.Optimizer) -> list[str]:
        """Names of the modules whose own parameters an optimizer updates."""
        model, held = self._model(), identities(optimizer)
        found = () if model is None else model.named_parameters()
        names = (name.rpartition(".")[0] or ROOT for name, parameter in found if id(parameter) in held)
        return list(dict.fromkeys(names))

    def _is_ours(self, optimizer: torch.optim.Optimizer) -> bool:
        if hidden_from(self):
            return False
        if self.own_group(optimizer):
            return True
        held = identities(optimizer)
        if self._foreign.get(optimizer) == held:
            return False
        # Seen for the first time with these: they may be parameters that were put in the place of others.
        self._know_parameters()
        if self._parameters.keys().isdisjoint(held):
            self._foreign[optimizer] = held
            self.has_seen_others = True
            return False
        return True

    def _on_before(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any, call: FrameType) -> None:
        if self._calls.encloses(call):
            if not inside_backward() and self.own_group(optimizer):
                self._again(optimizer)
        elif self._is_ours(optimizer):
            self._calls.open(call)
            if not inside_backward():
                self._is_stepping = True
                self._forget_late()
                # Other things than closures are given to steps, too: the loss, say.
                runs_model = callable(kwargs.get("closure")) or callable(args[1] if len(args) > 1 else None)
                if self._before(optimizer, runs_model):
                    self._late = after_own_pre_hooks(optimizer, self._again)

    def _on_after(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any, call: FrameType) -> None:
        if not self._calls.close(call):
            return
        self._is_stepping = False
        self._forget_late()
        if inside_backward():
            self._owed = self._owed or self.has_begun
        else:
            self._after(optimizer, self._is_boundary(optimizer))
        self._held[optimizer] = identities(optimizer)

    def _forget_late(self) -> None:
        if self._late is not None:
            self._late.remove()
            self._late = None

    def _is_boundary(self, optimizer: torch.optim.Optimizer) -> bool:
        """Whether an optimizer's step ends a step of the record.

        A second optimizer of the same model, stepping without another forward pass in between, ends none of its own;
        the same optimizer stepping again does, although no forward pass was seen.
        """
        if self._forwards:
            self._stepped = {id(optimizer)}
            return True
        if self.continues(optimizer):
            self._stepped.add(id(optimizer))
            return False
        self._incidents.warn_once(
            "unseen",
            "forward",
            "an optimizer updated the model, but no forward pass of it was seen: compiled in place, wrapped, called as "
            "model.forward(...), or under no_grad? Record the module that is called",
        )
        self._stepped = {id(optimizer)}
        return True


def _counts_versions(parameter: torch.Tensor) -> bool:
    return not is_lazy(parameter) and not parameter.is_inference()


def identities(optimizer: torch.optim.Optimizer) -> set[int]:
    """Identities of the parameters that an optimizer updates."""
    return {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
