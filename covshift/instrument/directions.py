"""How far a gradient has turned since the record before, and how much of it is the noise of its micro-batches.

Both are measured on a fixed strided sample of at most 65,536 elements of each parameter, never on a copy of a whole
large gradient. Between recorded steps one such sample is kept (at most 256 kB a parameter in float32); while a recorded
step is open there are at most three. Nothing is taken of steps that are not recorded.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from covshift.summary.norms import Before, Tensors, only_shrunk, products, stride

SAMPLE_SIZE = 65_536
SAME = 1 - 1e-4
"""Cosine from which on two gradients are one but for a factor: scaling and clipping in bfloat16 turn it by less."""

Array = np.ndarray[Any, Any]


class GradientSamples:
    """Samples of all gradients of one model, at the end of every backward pass and at the optimizer step.

    The gradients are given in the same order each time; an empty tensor stands for one that is not there.
    """

    def __init__(self) -> None:
        self._earlier: Before | None = None
        self._now: Before | None = None
        self._accumulated: Before | None = None
        self._is_turned: Array | None = None
        self._squares = np.zeros(0)
        self._states: Array | None = None
        self._is_sum = np.ones(0, dtype=bool)
        self._passes = 0
        self._scale = 1.0
        # Backward passes of one step may end in several threads.
        self._taking = threading.Lock()

    def after_backward(self, gradients: Sequence[torch.Tensor], *, scale: float) -> None:
        """Take in what one more backward pass has accumulated; ``scale`` is what it is multiplied by."""
        with self._taking:
            now, states = _sample(gradients), _states(gradients)
            before, self._accumulated = self._accumulated, now
            if self._states is None:
                self._is_sum = np.ones(len(states), dtype=bool)
            else:
                self._is_sum &= (states == self._states + np.array([0, 1])).all(axis=1)
            self._states = states
            if before is not None:
                both, squares_before, squares_now = products(before, now).T
                first = squares_before if self._passes == 1 else self._squares
                # Infinite gradients, by which a loss scale is found, leave NaN.
                with np.errstate(over="ignore", invalid="ignore"):
                    self._squares = first + squares_before + squares_now - 2 * both
            self._passes += 1
            self._scale = scale

    def at_step(self, gradients: Sequence[torch.Tensor], *, is_changed: bool = False) -> None:
        """Take in the gradients that the optimizer steps by, where no backward pass told of its end.

        Or where they are others since, ``is_changed``, by more than clipping.
        """
        if self._accumulated is None or is_changed:
            self._now = _sample(gradients)

    def have_only_shrunk(self, gradients: Sequence[torch.Tensor], *, scale: float, tolerance: float) -> Array:
        """Of each gradient, whether no element has grown or changed its sign since the last end of a backward pass."""
        if self._accumulated is None:
            return np.zeros(len(gradients), dtype=bool)
        return only_shrunk(self._accumulated, _sample(gradients), factor=scale / self._scale, tolerance=tolerance)

    def cosine(self) -> Array | None:
        """Cosine of each gradient of this step to that of the record before, which this one now replaces.

        Of the gradient as the last backward pass left it, where its end was told and :meth:`at_step` of no change
        since; scaling and clipping by a norm turn nothing. None for the first; NaN where either is not there, zero, not
        finite, or of the record before not what the optimizer has used.
        """
        now = self._accumulated if self._now is None else self._now
        if now is None:
            return None
        earlier, self._earlier = self._earlier, now
        is_turned, self._is_turned = self._is_turned, None
        if earlier is None:
            return None
        cosines = _cosines(earlier, now)
        return cosines if is_turned is None else np.where(is_turned, np.nan, cosines)

    def have_turned(self, gradients: Sequence[torch.Tensor], *, among: Array) -> Array:
        """Of each gradient ``among`` these, whether :meth:`cosine` took one of another direction for that of the step.

        The next cosine to it is then not known.
        """
        if self._earlier is None:
            return np.zeros(len(gradients), dtype=bool)
        turned = among & ~(_cosines(self._earlier, _sample(gradients)) >= SAME)
        self._is_turned = turned if self._is_turned is None else self._is_turned | turned
        return np.asarray(turned)

    def noise_norm(self, sizes: Array, *, micro_batches: int | None = None) -> Array | None:
        """Length of the sampling noise of each accumulated gradient, by the scatter of its micro-batches.

        With K micro-batches of gradients g_k and sum G it is the root of ``K / (K - 1) * (sum |g_k|^2 - |G|^2 / K)``,
        which estimates the trace of the covariance of G without bias where micro-batches are independent and of equal
        size. The gradient is taken to have been zero before the first.

        Parameters
        ----------
        sizes : array of int
            Elements of each gradient.
        micro_batches : int, optional
            Backward passes that each had a forward pass to themselves. Where these are not all (two losses of one
            output), they are not micro-batches.

        Returns
        -------
        array or None
            NaN where not every micro-batch has added to the gradient, or something else has changed it between them,
            such as ``zero_grad``; None with fewer than two micro-batches.
        """
        passes, final = self._passes, self._accumulated
        if final is None or passes < 2 or micro_batches not in (None, passes):
            return None
        share = -(-sizes // final.steps) / np.maximum(sizes, 1)
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            scatter = self._squares - products(final, final)[:, 1] / passes
            noise = passes / (passes - 1) * np.maximum(scatter, 0.0) / np.where(share > 0, share, np.nan)
            return np.asarray(np.where(self._is_sum, np.sqrt(noise) / self._scale, np.nan))

    def forget(self) -> None:
        """Drop what belongs to the step now open, not the sample of the record before."""
        self._now = self._accumulated = self._states = None
        self._passes = 0


def _states(gradients: Sequence[torch.Tensor]) -> Array:
    """Address and version of each gradient, shape ``(gradients, 2)``: autograd adds in place, one version up."""
    return np.array([(gradient.data_ptr(), gradient._version) for gradient in gradients], dtype=np.int64).reshape(-1, 2)


def _cosines(first: Before, second: Before) -> Array:
    """Cosine of each gradient at one time to that at another; NaN where either is not there, zero or not finite."""
    both, one, two = products(first, second).T
    with np.errstate(under="ignore", invalid="ignore"):
        lengths = np.sqrt(one) * np.sqrt(two)
    known = (lengths > 0) & np.isfinite(lengths) & np.isfinite(both)
    cosines = np.divide(both, lengths, out=np.full(both.shape, np.nan), where=known)
    return np.asarray(np.clip(cosines, -1.0, 1.0))


def _sample(gradients: Sequence[torch.Tensor]) -> Before:
    tensors = Tensors(gradients)
    return tensors.kept(np.array([stride(size, SAMPLE_SIZE) for size in tensors.sizes.tolist()], dtype=np.int64))
