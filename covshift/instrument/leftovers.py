"""Gradients that an optimizer has used and nobody has cleared before the next backward pass adds to them.

torch adds gradients up until ``zero_grad`` clears them; a loop without it updates by the sum of all gradients so far.
A few gradients are watched from one optimizer step to the next, by where they lie and how often they were written:
autograd adds in place, one version up, while clearing writes once more or puts others in their place. What is written
by ``.data`` raises no version, so one step is only suspicious: of the next the gradients themselves are looked at.
"""

from __future__ import annotations

import weakref

import torch

WATCHED = 3
"""One gradient may be out of reach of a loss, an expert's that got no example; the first, middle and last are not."""

_State = tuple[int, int]
"""Where a gradient lies, and its version."""


class Leftovers:
    """Tells steps whose gradients were added to those that the same optimizer had used in the step before.

    Attributes
    ----------
    in_a_row : int
        How many such steps have come one after another, as far as they were watched.
    """

    def __init__(self) -> None:
        self._optimizer: weakref.ref[torch.optim.Optimizer] | None = None
        self._states: dict[int, _State] = {}
        self._is_added_to = False
        self.in_a_row = 0

    def used(self, optimizer: torch.optim.Optimizer) -> None:
        """Watch gradients that an optimizer has just stepped by."""
        held = _held_by(optimizer)
        places = [place for place, parameter in enumerate(held) if parameter.grad is not None]
        chosen = {places[index * (len(places) - 1) // (WATCHED - 1)] for index in range(WATCHED) if places}
        states = {place: _state(held[place].grad) for place in chosen}
        self._states = {place: state for place, state in states.items() if state is not None}
        self._is_added_to = False
        self._optimizer = weakref.ref(optimizer)

    def backward_began(self) -> None:
        """Forget gradients written since the last pass by something else than one: cleared, perhaps, or assigned.

        After a suspicious step also those that are zero, cleared through ``.data``.
        """
        if not self._states:
            return
        left = {place: found for place, found in self._found().items() if _state(found) == self._states[place]}
        if self.in_a_row:
            left = {place: found for place, found in left.items() if found is not None and bool(found.any())}
        self._states = {place: self._states[place] for place in left}
        self._is_added_to &= bool(left)

    def backward_ended(self) -> None:
        """Take in what a backward pass has done to the gradients watched; it may have reached some or none of them."""
        if not self._states:
            return
        now = {place: _state(gradient) for place, gradient in self._found().items()}
        if now != self._states:
            before, known = self._states, {place: state for place, state in now.items() if state is not None}
            once = {place: (where, version + 1) for place, (where, version) in before.items()}
            self._is_added_to = all(known.get(place) in (before[place], once[place]) for place in before)
            self._states = known if self._is_added_to else {}

    def before_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Judge the gradients that an optimizer is about to step by."""
        is_same = self._optimizer is not None and self._optimizer() is optimizer
        self.in_a_row = self.in_a_row + 1 if self._is_added_to and is_same else 0
        self._states, self._is_added_to = {}, False

    def _found(self) -> dict[int, torch.Tensor | None]:
        """Gradients now at the places watched; places that are gone are left out."""
        optimizer = None if self._optimizer is None else self._optimizer()
        held = [] if optimizer is None else _held_by(optimizer)
        return {place: held[place].grad for place in self._states if place < len(held)}


def _held_by(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _state(gradient: torch.Tensor | None) -> _State | None:
    """None of a gradient that is not there, or does not count how often it was written."""
    if type(gradient) is not torch.Tensor or gradient.layout is not torch.strided or gradient.is_inference():
        return None
    return gradient.data_ptr(), gradient._version
