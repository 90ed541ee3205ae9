"""Norms of weights, gradients and true updates at the optimizer step, in float64.

The update is measured, not derived from the learning rate: the weights before the step are kept and subtracted after
it, so momentum, weight decay and adaptive scaling are all in it. Gradients are measured twice: at the end of the
backward pass, before the user may clip them, and at the optimizer step.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.parameter import is_lazy

from covshift import schema
from covshift.exceptions import InvalidArgumentError
from covshift.instrument.directions import GradientSamples
from covshift.instrument.leftovers import Leftovers
from covshift.instrument.steps import identities
from covshift.summary.norms import Before, Tensors, stride

UPDATES = ("exact", "sampled", "off")
EXACT_UP_TO = 1_000_000
SAMPLE_SIZE = 65_536
ROUNDING = 0.01
"""By how much a gradient times a factor may miss it: a bfloat16 gradient by 2^-9 of each element."""

Array = np.ndarray[Any, Any]


@dataclass
class _Updates:
    """What the optimizers of one step have changed so far, shape ``(parameter,)`` each.

    Attributes
    ----------
    norms, shares : ndarray
        NaN where not measured.
    is_measured : ndarray of bool
        Whether an update was looked for.
    is_over : ndarray of bool
        Whether the parameter's own optimizer has stepped, or nothing is to be learned.
    """

    norms: Array
    shares: Array
    is_measured: Array
    is_over: Array

    @staticmethod
    def none_of(count: int) -> _Updates:
        """Before the first optimizer of the step."""
        unknown, no = np.full(count, np.nan), np.zeros(count, dtype=bool)
        return _Updates(unknown, unknown.copy(), no, no.copy())


class ParameterMeter:
    """Measures all parameters of one model around one step, in which several optimizers may step one after another.

    Parameters
    ----------
    model : Module
        Its parameters as ``named_parameters`` lists them, tied ones once.
    updates : {"sampled", "exact", "off"}
        "sampled" measures the updates of parameters above a million elements on a fixed strided sample of up to 65,536
        and scales the norm by the square root of the share; "exact" copies every parameter; "off" measures no update,
        and neither turn nor noise of the gradient, for which samples of it are kept.

    Attributes
    ----------
    has_lost_preclip : bool
        Whether gradients have been changed, between a backward pass and an optimizer step, by what is no clipping.
    newly_absent : list of str
        Parameters measured before of which the model has none of that name and shape now; each is listed once, and the
        list is the reader's to clear.
    """

    def __init__(self, model: nn.Module, *, updates: str = "sampled") -> None:
        if updates not in UPDATES:
            raise InvalidArgumentError(f"updates={updates!r}: expected one of {', '.join(UPDATES)}")
        self._model = weakref.ref(model)
        self._names = [name for name, _ in model.named_parameters()]
        self._shapes: list[torch.Size | None] = [None] * len(self._names)
        self._updates = updates
        self._found: list[torch.Tensor] | None = None
        self._before: Before | None = None
        self._preclip: Array | None = None
        self._row: dict[str, Array] = {}
        self._changed: _Updates | None = None
        self._has_gradients = True
        self._samples = None if updates == "off" else GradientSamples()
        self._leftovers = Leftovers()
        self.has_lost_preclip = False
        self.newly_absent: list[str] = []
        self._absent: set[str] = set()

    @property
    def parameters(self) -> list[schema.Parameter]:
        """Static descriptions, in the order of the arrays."""
        found = zip(self._names, self._present(), strict=True)
        return [schema.Parameter(name, p.numel(), p.ndim) for name, p in found]

    @property
    def sharded(self) -> Array:
        """Parameters of which this rank holds a part only, shape ``(parameter,)``."""
        return np.array([hasattr(p, "to_local") for p in self._present()], dtype=bool)

    def _present(self) -> list[torch.Tensor]:
        """The parameters that bear the names in this step; an empty tensor where none does, or none with values yet.

        One of another shape than its name has had is another parameter, and none.
        """
        if self._found is None:
            model = self._model()
            now = {} if model is None else dict(model.named_parameters())
            self._found = [now[name] if name in now and _has_values(now[name]) else _NOTHING for name in self._names]
            if model is not None:
                self._keep_shapes(self._found)
        return self._found

    def _keep_shapes(self, found: list[torch.Tensor]) -> None:
        for place, (parameter, shape) in enumerate(zip(found, self._shapes, strict=True)):
            if shape is None:
                self._shapes[place] = None if parameter is _NOTHING else parameter.shape
            elif parameter.shape != shape:
                found[place], name = _NOTHING, self._names[place]
                if name not in self._absent:
                    self._absent.add(name)
                    self.newly_absent.append(name)

    @torch.no_grad()
    def after_backward(self, *, scale: float = 1.0) -> None:
        """Measure gradients as the backward pass has left them; the last one before the optimizer step counts."""
        self._preclip = self._gradients(self._present(), scale)["gradient_norm"]
        self._leftovers.backward_ended()
        if self._samples is not None:
            self._samples.after_backward(self._found_gradients(), scale=scale)

    @torch.no_grad()
    def before_step(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        scale: float = 1.0,
        has_gradients: bool = True,
        micro_batches: int | None = None,
        knows_others: bool = True,
    ) -> None:
        """Measure weights and gradients, and keep what updates will be measured against.

        ``scale`` is what gradients are still multiplied by: 1 once the scaler has unscaled them. An optimizer that runs
        the model itself, in a closure, has no gradients yet; :meth:`after_step` measures those it has found. Backward
        passes are taken for micro-batches where ``micro_batches``, those that each had a forward pass to themselves,
        are as many, or not known. Without ``knows_others`` gradients of parameters that the optimizer does not hold may
        be multiplied by something else, and are left to :meth:`before_next`.
        """
        present = self._present()
        weights = Tensors([_local(p) for p in present])
        self._has_gradients, self._changed = has_gradients, None
        self._row = {"weight_norm": _known(np.sqrt(weights.norms().squares), present)}
        if has_gradients:
            held = identities(optimizer)
            self._leftovers.before_step(optimizer)
            known = present if knows_others else [p if id(p) in held else _NOTHING for p in present]
            self._row |= self._gradients(known, scale)
            is_changed = self._has_changed(self._those(lambda p: id(p) in held), scale)
            # Before the weights are kept: the sample that this one replaces is gone by then.
            self._row |= self._directions(micro_batches, is_changed=is_changed)
        if self._updates != "off":
            self._before = weights.kept(self._steps(weights.sizes))

    @torch.no_grad()
    def before_next(self, optimizer: torch.optim.Optimizer, *, scale: float = 1.0) -> None:
        """Measure the gradients of a further optimizer of the same step as it finds them, or of the same one again.

        Not where the step runs the model, in a closure, and so has none yet.
        """
        if not self._row or not self._has_gradients:
            return
        present, held = self._present(), identities(optimizer)
        gradients = self._gradients([p if id(p) in held else _NOTHING for p in present], scale)
        own, earlier = self._those(lambda p: id(p) in held), self._row["gradient_norm"]
        self._row |= {name: np.where(own, values, self._row[name]) for name, values in gradients.items()}
        if self._preclip is not None and np.isfinite(self._preclip[own]).any():
            is_changed = self._has_changed(own, scale)
        else:
            is_changed = not _is_one_factor(earlier[own], self._row["gradient_norm"][own])
        if is_changed and self._samples is not None:
            turned = self._samples.have_turned(self._found_gradients(), among=own)
            self._row["gradient_cosine"] = np.where(turned, np.nan, self._row["gradient_cosine"])

    @torch.no_grad()
    def after_step(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        left_to_others: Set[int] | None = frozenset(),
        scale: float = 1.0,
        micro_batches: int | None = None,
    ) -> None:
        """Measure what the optimizer has changed since :meth:`before_step`; nothing without the latter.

        Parameters that other optimizers hold (by identity in ``left_to_others``; None where those are not yet known)
        are left to their turn; those that none holds are measured with the first. ``micro_batches`` tells of gradients
        that were found in the step, in a closure.
        """
        if not self._row:
            return
        present, held = self._present(), identities(optimizer)
        if not self._has_gradients:
            self._has_gradients = True
            self._row |= self._gradients(present, scale)
            is_changed = self._has_changed(self._those(lambda p: id(p) in held), scale)
            self._row |= self._directions(micro_batches, is_changed=is_changed)
        changed = self._changed = self._changed or _Updates.none_of(len(present))
        own = self._those(lambda p: id(p) in held)
        changed.is_over |= own | self._those(lambda p: not p.requires_grad)
        if left_to_others is not None:
            own |= ~changed.is_measured & self._those(lambda p: id(p) not in left_to_others)
        changed.is_measured |= own
        if self._before is not None:
            weights = Tensors([_local(p) if mine else _NOTHING for p, mine in zip(present, own, strict=True)])
            share = -(-weights.sizes // self._before.steps) / np.maximum(weights.sizes, 1)
            norms = np.sqrt(weights.squared_changes(self._before) / np.where(share > 0, share, 1))
            own &= self._those(lambda p: p is not _NOTHING)
            changed.norms[own], changed.shares[own] = norms[own], share[own]

    @property
    def steps_uncleared(self) -> int:
        """How many steps in a row, up to the last one measured, were by gradients added to those of the step before."""
        return self._leftovers.in_a_row

    def watch_gradients(self, optimizer: torch.optim.Optimizer) -> None:
        """Watch the gradients an optimizer has used: the next step will be measured, and they may be in it."""
        self._leftovers.used(optimizer)

    @torch.no_grad()
    def before_backward(self) -> None:
        """A backward pass has reached the first layer, and no parameter of those before it."""
        self._leftovers.backward_began()

    @property
    def has_begun(self) -> bool:
        """Whether a step is being measured."""
        return bool(self._row)

    @property
    def is_complete(self) -> bool:
        """Whether nothing is awaited: every parameter that is learned has had its optimizer's step, or none has."""
        return self._changed is None or bool(self._changed.is_over.all())

    def row(self) -> Mapping[str, Array]:
        """The arrays of one ``parameters`` row; none where no update was measured."""
        if self._changed is None:
            return {}
        preclip = np.full(len(self._names), np.nan) if self._preclip is None else self._preclip
        changed = {"update_norm": self._changed.norms, "sampled_share": self._changed.shares}
        return {**self._row, "gradient_norm_preclip": preclip, **changed}

    def forget(self) -> None:
        """Drop what was measured: the step is over."""
        self._row, self._changed, self._before, self._preclip, self._found = {}, None, None, None, None
        if self._samples is not None:
            self._samples.forget()

    def _has_changed(self, own: Array, scale: float) -> bool:
        """Whether clipping does not explain how an optimizer's ``own`` gradients have changed since the backward pass.

        Their norms before clipping are then dropped. Another backward pass, of a penalty on the weights say, reaches no
        layer and so tells nobody of its end.
        """
        if self._preclip is None or _is_one_factor(self._preclip[own], self._row["gradient_norm"][own]):
            return False
        explained = np.zeros(own.shape, dtype=bool)
        if self._samples is not None:
            explained = self._samples.have_only_shrunk(self._found_gradients(), scale=scale, tolerance=ROUNDING)
        if explained[own & (self._row["gradient_measured"] > 0)].all():
            return False
        self._preclip[own], self.has_lost_preclip = np.nan, True
        return True

    def _those(self, condition: Callable[[torch.Tensor], bool]) -> Array:
        return np.array([condition(p) for p in self._present()], dtype=bool)

    def _found_gradients(self) -> list[torch.Tensor]:
        """Gradients in the order of the parameters; an empty tensor where there is none, or a sparse one."""
        gradients = [None if p.grad is None else _local(p.grad) for p in self._present()]
        return [_NOTHING if g is None or g.layout is not torch.strided else g for g in gradients]

    def _directions(self, micro_batches: int | None, *, is_changed: bool) -> dict[str, Array]:
        """Turn and noise of the gradients; of a sharded parameter this rank's part tells neither.

        Where clipping does not explain how gradients have changed since the backward pass, ``is_changed``, the turn is
        that of the gradients the optimizer steps by.
        """
        unknown = np.full(len(self._names), np.nan)
        if self._samples is None:
            return {"gradient_cosine": unknown, "gradient_noise_norm": unknown}
        self._samples.at_step(self._found_gradients(), is_changed=is_changed)
        cosine = self._samples.cosine()
        sizes = np.array([p.numel() for p in self._present()])
        noise = self._samples.noise_norm(sizes, micro_batches=micro_batches)
        measured = self._those(lambda p: p.grad is not None) & ~self.sharded
        return {
            "gradient_cosine": unknown if cosine is None else np.where(measured, cosine, np.nan),
            "gradient_noise_norm": unknown if noise is None else np.where(measured, noise, np.nan),
        }

    def _gradients(self, present: list[torch.Tensor], scale: float) -> dict[str, Array]:
        gradients = [p.grad for p in present]
        measured = np.array([gradient is not None for gradient in gradients], dtype=bool)
        found = Tensors([_local(gradient) for gradient in gradients if gradient is not None]).norms()
        return {
            "gradient_norm": _scatter(np.sqrt(found.squares) / scale, measured, np.nan),
            "gradient_zero_count": _scatter(found.zeros, measured, 0),
            "gradient_nonfinite_count": _scatter(found.nonfinite, measured, 0),
            "gradient_measured": measured.astype(np.uint8),
        }

    def _steps(self, sizes: Array) -> Array:
        """Every how many elements each parameter's update is measured."""
        is_sampled = (sizes > EXACT_UP_TO) & (self._updates == "sampled")
        steps = [
            stride(size, SAMPLE_SIZE) if mine else 1 for size, mine in zip(sizes.tolist(), is_sampled, strict=True)
        ]
        return np.array(steps, dtype=np.int64)


_NOTHING = torch.empty(0, device="cpu")


def _is_one_factor(before: Array, after: Array) -> bool:
    """Whether the norms ``after`` are those of ``before`` times one factor of at most 1, but for rounding."""
    both = np.isfinite(before) & np.isfinite(after)
    before, after = before[both], after[both]
    if (after[before == 0] > 0).any():
        return False
    factors = after[before > 0] / before[before > 0]
    return not len(factors) or bool(factors.max() <= 1 + ROUNDING and factors.min() >= factors.max() * (1 - ROUNDING))


def _has_values(parameter: torch.Tensor) -> bool:
    return not (is_lazy(parameter) or isinstance(parameter, FakeTensor) or parameter.is_meta or _is_freed(parameter))


def _is_freed(parameter: torch.Tensor) -> bool:
    """Whether the memory is gone, as offloading leaves it; to read it would end the process."""
    is_ordinary = type(parameter) in (torch.Tensor, nn.Parameter) and parameter.layout is torch.strided
    return is_ordinary and parameter.untyped_storage().nbytes() == 0


def _known(values: Array, present: list[torch.Tensor]) -> Array:
    return np.where([p is _NOTHING for p in present], np.nan, values)


def _local(tensor: torch.Tensor) -> torch.Tensor:
    """The part of a sharded tensor that lies on this rank; any other tensor as it is."""
    if type(tensor) in (torch.Tensor, nn.Parameter):
        return tensor
    part: torch.Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return part


def _scatter(values: Array, where: Array, fill: float) -> Array:
    array = np.full(where.shape, fill, dtype=np.float64 if isinstance(fill, float) else np.uint64)
    array[where] = values
    return array
