"""Two states of one model: checking state dicts, and loading them into a model that is visited."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from covshift.exceptions import InvalidArgumentError
from covshift.probe.state import unwrapped

State = Mapping[str, Any]


class TwoStates:
    """The states before and after, of which loading one into the model leaves the other alone.

    Parameters
    ----------
    model : Module
        To which both belong; keys may be those of the wrapped model or of the one inside.
    before : mapping
        A copy of an earlier ``model.state_dict()``.
    after : mapping or None
        The same of a later state; None for the state the model is in.

    Raises
    ------
    InvalidArgumentError
        If a state does not fit the model, or ``before`` holds the model's own tensors, which have moved on since.
    """

    def __init__(self, model: nn.Module, before: State, after: State | None) -> None:
        own = {held.data_ptr() for held in (*model.parameters(), *model.buffers()) if held.numel()}
        self._holder = _holder(model, before, "before")
        if any(isinstance(value, torch.Tensor) and value.data_ptr() in own for value in before.values()):
            raise InvalidArgumentError(
                "before: holds the model's own tensors, which have changed with it; keep a copy at the time: "
                "copy.deepcopy(model.state_dict())"
            )
        if after is not None and _holder(model, after, "after") is not self._holder:
            raise InvalidArgumentError("before and after: one is of the wrapped model, the other of the one inside")
        # Only the later one may be the model's own tensors, into which the earlier one is about to be written.
        self.before, self.after = before, _copied(self._holder.state_dict() if after is None else after)

    def load(self, state: State) -> None:
        """Write a state into the model's parameters and (set aside) buffers."""
        with torch.no_grad():
            self._holder.load_state_dict(dict(state))


def _holder(model: nn.Module, state: State, name: str) -> nn.Module:
    """The wrapped model or the one inside, whichever the state is of."""
    if not isinstance(state, Mapping):
        raise InvalidArgumentError(f"{name}={type(state).__name__}: expected a state dict")
    candidates = [model, unwrapped(model)]
    for candidate in candidates:
        own = candidate.state_dict()
        if own.keys() == state.keys():
            _demand_shapes(own, state, name)
            return candidate
    different = sorted(candidates[-1].state_dict().keys() ^ state.keys())
    raise InvalidArgumentError(
        f"{name}: does not fit the model; in one and not in the other: {', '.join(different[:5])}"
        + (f" and {len(different) - 5} more" if len(different) > 5 else "")
    )


def _demand_shapes(own: State, state: State, name: str) -> None:
    for key, value in own.items():
        given = state[key]
        if isinstance(value, torch.Tensor) and (not isinstance(given, torch.Tensor) or given.shape != value.shape):
            what = tuple(given.shape) if isinstance(given, torch.Tensor) else type(given).__name__
            raise InvalidArgumentError(f"{name}: '{key}' is {what}: the model has {tuple(value.shape)}")


def _copied(state: State) -> dict[str, Any]:
    return {key: value.detach().clone() if isinstance(value, torch.Tensor) else value for key, value in state.items()}
