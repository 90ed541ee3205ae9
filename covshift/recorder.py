"""``record()``: the only door that joins the instrument and the store.

A recorder counts the model's optimizer steps, decides which are due, lets the observer fill a block for those, and
hands closed blocks to the writer. It holds the order of events together and leaves every measurement to its rooms.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, TypeGuard

import torch
import xarray as xr
from torch import nn

from covshift.exceptions import CovshiftError, InvalidArgumentError
from covshift.handover import Handover
from covshift.instrument.block import Block
from covshift.instrument.describing import Settings
from covshift.instrument.distributed import Ranks, is_distributed
from covshift.instrument.hooks import ModuleHooks
from covshift.instrument.identity import unobserved
from covshift.instrument.incidents import Incidents, listed
from covshift.instrument.logged import Log
from covshift.instrument.observer import Observer
from covshift.instrument.parameters import ParameterMeter
from covshift.instrument.scaling import LossScale, Scaler, handed_scale, told_to_skip
from covshift.instrument.schedule import Schedule
from covshift.instrument.steps import StepClock
from covshift.instrument.surroundings import Surroundings
from covshift.probe.fixed_batch import FixedBatch
from covshift.store.writer import Writer

_MOST_STEPS = 10**15
"""More than any training makes; steps are stored in 64 bits."""


class Unfinished(NamedTuple):
    """A step that has ended, whose record may await the updates of other optimizers."""

    block: Block
    scale: float


class Recorder:
    """Records one model between ``with`` and its end; made by :func:`covshift.record`.

    Attributes
    ----------
    step_count : int
        Optimizer steps done so far, which is also the number of the step now open.
    path : Path or None
        Where the recording lies, once the recorder is entered; None in memory.
    """

    def __init__(
        self,
        model: nn.Module,
        make_writer: Callable[[], Writer],
        *,
        path: Path | None,
        every: Schedule,
        histograms_every: Schedule,
        units_every: Schedule,
        settings: Settings,
        updates: str,
        scaler: Scaler | None,
        ranks: str,
        resume: bool,
        start_step: int | None,
        probe: FixedBatch | None,
    ) -> None:
        self._probe = probe
        self._every, self._histograms_every, self._units_every = every, histograms_every, units_every
        self._incidents = Incidents()
        self._clock = StepClock(
            model,
            self._incidents,
            before=self._before_update,
            again=self._again_before_update,
            after=self._after_update,
            end=self._close_step,
        )
        self._observer = Observer(model, settings, self._incidents, open_block=self._open_block, clock=self._clock)
        self._surroundings = Surroundings(model, settings)
        self._meter = ParameterMeter(model, updates=updates)
        self._hooks = ModuleHooks(model, self._observer)
        self._scale = LossScale(scaler)
        self._log = Log()
        self._records = 0
        self._block: Block | None = None
        self._opening = threading.Lock()
        self._evaluation: Block | None = None
        self._last_evaluation = -1
        self._unfinished: Unfinished | None = None
        self._paused = self._active = self._entered = False
        self.step_count = 0
        self._measures_preclip = Block.can_tell_end_of_backward() and not is_distributed()
        self._ranks = Ranks() if ranks == "merge" and is_distributed() else None
        self._handover = Handover(
            make_writer,
            observer=self._observer,
            meter=self._meter,
            incidents=self._incidents,
            ranks=self._ranks,
            every=every,
            histograms_every=histograms_every,
            units_every=units_every,
            unobserved=unobserved(model, settings),
        )
        self.path = path
        self._resume = self._must_be_told_step = resume
        if start_step is not None:
            self.load_state_dict({"step": start_step})

    def __enter__(self) -> Recorder:
        if self._entered:
            raise CovshiftError("this recorder was already entered; call covshift.record again for another recording")
        self._handover.open()
        try:
            self._begin()
        except BaseException:
            self._handover.close()
            raise
        self._entered = self._active = True
        return self

    def _begin(self) -> None:
        if self._must_be_told_step and self._handover.is_resumed:
            raise InvalidArgumentError(
                f"resume=True: '{self.path}' is continued, but from which step? Give start_step=, the optimizer steps "
                "already done, or call recorder.load_state_dict(state) with the recorder.state_dict() of your "
                "checkpoint before entering"
            )
        if self._resume and self.step_count and not self._handover.is_resumed:
            self._incidents.warn_once(
                "nothing to resume",
                "recording",
                f"resume=True: '{self.path}' held no recording to be continued at step {self.step_count}; a new one "
                "begins there",
            )
        self._handover.resume_at(self.step_count)
        self._surroundings.warn(self._incidents)
        self._surroundings.prepare()
        self._attend()
        self._hooks.install()
        self._clock.install()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._leave(is_complete=kind is None)
        finally:
            # Whatever ends the recording, warnings that the user has made errors included, it ends closed.
            self._handover.close()
        if kind is None and self._records and not self._surroundings.opaque and not self._incidents.any_failed:
            self._name_never_called()

    def _leave(self, *, is_complete: bool) -> None:
        """Take the hooks away, and hand over what is left; ``is_complete`` where no exception ended the loop."""
        try:
            self._finish()
            if is_complete:
                self._run_probe()
        finally:
            self._hooks.remove()
            self._clock.remove()
            self._observer.abandon()
            self._active = False
        with self._incidents.guard("step"):
            self._clock.settle()
            if is_complete:
                self._settle_skipped()
            self._finish()
        for block in (self._block, self._evaluation):
            if block is not None:
                block.close()
        self._block = self._evaluation = None
        self._give_scalars()
        self._log.end()
        self._give_scalars()
        if is_complete:
            self._name_unseen_steps()
            self._surroundings.warn_of_new_parts(self._incidents)
            self._handover.wait_for_ranks()
        else:
            self._handover.part_from_ranks()

    def _name_unseen_steps(self) -> None:
        """A loop of which no step was seen has recorded nothing, and should not end in silence."""
        if self._clock.any_seen or self._records:
            return
        if self._clock.forwards_of_step > 1:
            self._incidents.warn_once(
                "no step",
                "model",
                f"{self._clock.forwards_of_step} forward passes, but no optimizer step of the model was seen, so "
                "nothing was recorded: for hand-written updates call recorder.step() after each",
            )
        elif not self._clock.forwards_of_step and self._clock.has_moved:
            self._incidents.warn_once(
                "no step",
                "model",
                "parameters have changed, but no forward pass and no optimizer step of the model was seen, so nothing "
                "was recorded: a training step compiled as a whole? Compile the model, or parts of it, instead",
            )

    def _name_never_called(self) -> None:
        if self._observer.never_called:
            self._incidents.warn_once(
                "never called",
                "model",
                f"no recorded forward pass called {listed(self._observer.never_called)}: unused, or used functionally "
                "through their weights, which no hook can see",
            )

    @property
    def recording(self) -> xr.DataTree:
        """Everything recorded so far: flushes, then a snapshot equal to what ``covshift.open`` reads.

        Inside the ``with`` the scalars of the step just closed are not in it yet: more may be logged for it. Read
        between the steps of several optimizers, it holds the step without the updates that are still to come.
        """
        if self._ranks is None:
            self._finish()
        return self._handover.snapshot(flush=self._active)

    @property
    def warnings(self) -> list[str]:
        """What could not be recorded, each named once."""
        return self._incidents.messages

    def state_dict(self) -> dict[str, int]:
        """What a checkpoint must keep so that the recording can be resumed with it."""
        return {"step": self.step_count, "records": self._records}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continue where :meth:`state_dict` was taken; before entering.

        Raises
        ------
        CovshiftError
            If the recorder was already entered.
        InvalidArgumentError
            If ``state`` is not what :meth:`state_dict` returns.
        """
        if self._entered:
            raise CovshiftError("load_state_dict: this recorder was already entered; call it before the with")
        if not isinstance(state, Mapping):
            raise InvalidArgumentError(f"state={state!r}: expected what recorder.state_dict() returned")
        step, records = state.get("step"), state.get("records")
        if not _is_count(step) or step > _MOST_STEPS:
            raise InvalidArgumentError(
                f"step={step!r}: expected the number of optimizer steps done, from 0 to {_MOST_STEPS:,}"
            )
        if records is not None and not _is_count(records):
            raise InvalidArgumentError(f"records={records!r}: expected the number of records made, 0 or more")
        self.step_count = step
        # Slower cadences count records: as many as the schedule asks for up to here, where nobody kept their number.
        self._records = self._every.below(step) if records is None else records
        self._log.begin_at(step)
        self._must_be_told_step = False

    def log(self, values: Mapping[str, float | torch.Tensor] | None = None, /, **more: float | torch.Tensor) -> None:
        """Keep scalars of a step: loss, accuracy, learning rate; by keyword, or in a mapping: ``{"val/loss": 0.1}``.

        Before the optimizer step they belong to the step now open, after it and before the next forward pass to the
        step just closed. Of several values for one name in one step the last stays. A slash in a name is stored as a
        dot, for in a recording it would begin a group: ``val/loss`` is read as ``val.loss``.

        Raises
        ------
        InvalidArgumentError
            If a value is no real number and no tensor of one, or a name cannot name an array.
        CovshiftError
            If the recorder is not open.
        """
        self._demand_active("log()")
        self._log.add({**(values or {}), **more})

    def _demand_active(self, call: str) -> None:
        if not self._active:
            raise CovshiftError(f"{call}: this recorder is not open; call it inside its with")

    def step(self) -> None:
        """State by hand that an optimizer step has just been made: for hand-written updates.

        Nothing happens where no forward pass ran since the last boundary, so it may follow ``optimizer.step()``.
        """
        self._clock.settle()
        if self._clock.has_begun:
            self._close_step(skipped=self._scale.skipped())
        self._finish()

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Record nothing inside the ``with``; steps are still counted."""
        self._finish()
        paused, self._paused = self._paused, True
        self._attend()
        try:
            yield
        finally:
            self._paused = paused
            self._attend()

    @contextmanager
    def evaluation(self) -> Iterator[None]:
        """Record everything the model computes inside the ``with`` as one evaluation pass.

        All batches of the pass merge into one record of the ``evaluation/`` groups, at the number of steps done so far,
        whatever the schedule. Outside of it, forward passes under ``no_grad`` are not recorded.

        With ``ranks="merge"`` any of the ranks may evaluate, alone or with others, and none waits here for another:
        the record holds the numbers of those that did, and is written when the next step that is due, or the
        ``with``, has ended on all ranks.

        There is one such record a step: a further pass at the same step, over other data perhaps, is not recorded, with
        one warning; a pass inside a pass is part of the outer one.
        """
        self._demand_active("evaluation()")
        self._finish()
        if self._evaluation is not None:
            yield
            return
        is_first = self._last_evaluation != self.step_count
        if not is_first:
            self._incidents.warn_once(
                "evaluation",
                "model",
                f"evaluation(): a pass was already recorded after {self.step_count} steps; this one is not recorded, "
                "nor are other second passes at one step",
            )
        self._observer.abandon()
        self._evaluation = block = Block(self.step_count, stream="evaluation")
        self._attend()
        try:
            yield
        finally:
            self._evaluation = None
            self._observer.forget_interrupted()
            block.close()
            self._attend()
        if is_first and not block.is_empty:
            self._last_evaluation = self.step_count
            self._handover.give(block, {}, scale=1.0)

    def _attend(self) -> None:
        """Follow the model's calls if what runs next is to be recorded."""
        with self._incidents.guard("schedule"):
            due = self._evaluation is not None or self._block is not None or self._every(self.step_count)
            self._hooks.follows = due and not self._paused

    def _open_block(self) -> Block | None:
        """Called by the observer at the start of every outermost forward pass."""
        if self._probe is not None and self._probe.block is not None:
            return self._probe.block
        if self._evaluation is not None:
            return None if self._paused else self._evaluation
        if not torch.is_grad_enabled():
            return None
        self._settle_skipped()
        self._scale.begin()
        self._clock.forward()
        self._finish()
        self._give_scalars()
        if self._probe is not None:
            self._probe.remember_autocast()
            self._run_probe()
        if self._paused:
            return None
        # Several threads may begin the forward passes of one step.
        with self._opening:
            if self._block is None and self._every(self.step_count):
                self._block = self._new_block()
        return self._block

    def _new_block(self) -> Block:
        if not self._scale.is_known:
            self._surroundings.warn_of_hidden_scale(self._incidents)
        return Block(
            self.step_count,
            histograms=self._histograms_every(self._records),
            units=self._units_every(self._records),
            after_backward=self._after_backward if self._measures_preclip else None,
        )

    def _after_backward(self) -> None:
        with self._incidents.guard("parameters"):
            self._meter.after_backward(scale=self._scale.in_force)

    def _run_probe(self) -> None:
        if self._probe is None or not self._probe.is_due(self.step_count):
            return
        block = None
        with self._incidents.guard("probe"):
            self._hooks.follows = not self._paused
            block = None if self._paused else self._probe.run(self.step_count, self._observer)
        self._attend()
        if block is not None:
            self._handover.give(block, {}, scale=1.0)

    def _before_update(self, optimizer: torch.optim.Optimizer, runs_model: bool) -> bool:
        if self._unfinished is not None and (runs_model or not self._clock.continues(optimizer)):
            self._finish()
        with self._incidents.guard("parameters"):
            if self._unfinished is not None:
                self._meter.before_next(optimizer, scale=handed_scale(optimizer))
            elif self._block is not None or (not self._paused and self._every(self.step_count)):
                # An optimizer that runs the model itself, in a closure, steps by gradients that are still to come.
                self._meter.before_step(
                    optimizer,
                    scale=handed_scale(optimizer),
                    has_gradients=self._block is not None and not runs_model,
                    forwards=self._clock.forwards_of_step,
                    # A scaler unscales the gradients of each optimizer at that one's own step.
                    knows_others=self._scale.in_force == 1.0,
                )
        self._name_lost_preclip()
        return self._meter.has_begun

    def _again_before_update(self, optimizer: torch.optim.Optimizer) -> None:
        with self._incidents.guard("parameters"):
            self._meter.before_next(optimizer, scale=handed_scale(optimizer))
        self._name_lost_preclip()

    def _name_lost_preclip(self) -> None:
        if self._meter.has_lost_preclip:
            self._incidents.warn_once(
                "changed",
                "gradients",
                "gradients changed between the backward pass that reached the layers and the optimizer step, and not "
                "by clipping (a further backward pass, of a penalty on weights?), so norms before clipping are not "
                "measured there: call backward once, on the sum",
            )

    def _after_update(self, optimizer: torch.optim.Optimizer, is_boundary: bool) -> None:
        with self._incidents.guard("parameters"):
            if self._block is not None or self._unfinished is not None:
                others = self._clock.left_to_others(optimizer)
                self._meter.after_step(optimizer, left_to_others=others, scale=handed_scale(optimizer))
            rate = self._clock.own_group(optimizer).get("lr") if self._block is not None else None
            if rate is not None:
                self._log.note(learning_rate=float(rate))
        if is_boundary:
            self._close_step(skipped=told_to_skip(optimizer))
        elif self._meter.is_complete:
            self._finish()

    def _close_step(self, *, skipped: bool = False) -> None:
        self._finish()
        self._give_scalars()
        block, self._block = self._block, None
        if self._scale.is_known:
            self._log.note(loss_scale=self._scale.in_force, step_skipped=float(skipped))
        self._log.close_step(is_recorded=block is not None)
        meets = self._ranks is not None and self._every(self.step_count)
        if block is not None or meets:
            # Of ranks that merge, one that did not record this step counts it, too: slower cadences must agree.
            self._records += 1
        if block is not None:
            self._observer.forget_interrupted()
            block.close()
            self._unfinished = Unfinished(block, self._scale.in_force)
        else:
            self._meter.forget()
        self._scale.end(skipped=skipped)
        self.step_count += 1
        self._clock.closed()
        self._attend()
        if self._meter.is_complete:
            self._finish()
        if meets:
            waiting = self._unfinished
            self._handover.meet_ranks(complete=self.step_count if waiting is None else waiting.block.step)

    def _settle_skipped(self) -> None:
        """Say of the step before what its scaler has told by now: that it was skipped, or one of its optimizers was."""
        if self._scale.skipped():
            self._close_step(skipped=True)
        elif self._scale.skipped_after_end():
            self._log.note_of_closed(step_skipped=1.0)

    def _finish(self) -> None:
        """Hand over the step that has ended; what other optimizers have not updated by now, they leave as it is."""
        unfinished, self._unfinished = self._unfinished, None
        if unfinished is not None:
            self._handover.give(unfinished.block, self._meter.row(), scale=unfinished.scale)
            self._meter.forget()

    def _give_scalars(self) -> None:
        """Hand over what was logged for the step just closed; its time to log is over."""
        with self._incidents.guard("scalars"):
            self._handover.give_scalars(self._log.take())


def _is_count(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
