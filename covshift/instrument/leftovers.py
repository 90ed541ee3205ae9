"""Gradients that an optimizer has used and nobody has cleared before the next backward pass adds to them.

torch adds gradients up until ``zero_grad`` clears them; a loop without it updates by the sum of all gradients so far.
A few gradients are watched from one optimizer step to the next, by where they lie and how often they were written:
autograd adds in place, one version up, while clearing writes once more or puts others in their place.
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
        self._states, self._is_added_to = {place: state for place, state in states.items() if state is not None}, False
        self._optimizer = weakref.ref(optimizer)

    def backward_ended(self) -> None:
        """Take in what a backward pass has done to the gradients watched; it may have reached none of them."""
        optimizer = None if self._optimizer is None else self._optimizer()
        if optimizer is None or not self._states:
            return
        held = dict(enumerate(_held_by(optimizer)))
        now = {place: _state(held[place].grad) for place in self._states if place in held}
        if now != self._states:
            added = {place: (where, version + 1) for place, (where, version) in self._states.items()}
            self._is_added_to = now == added
            self._states = added if self._is_added_to else {}

    def before_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Judge the gradients that an optimizer is about to step by."""
        is_same = self._optimizer is not None and self._optimizer() is optimizer
        self.in_a_row = self.in_a_row + 1 if self._is_added_to and is_same else 0
        self._states, self._is_added_to = {}, False


def _held_by(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _state(gradient: torch.Tensor | None) -> _State | None:
    """None of a gradient that is not there, or does not count how often it was written."""
    if type(gradient) is not torch.Tensor or gradient.layout is not torch.strided or gradient.is_inference():
        return None
    return gradient.data_ptr(), gradient._version
