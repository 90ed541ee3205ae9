"""The steps of a recorded training: which is open, which awaits updates, and when each is handed over.

A step opens with its first forward pass, closes at its optimizer step, and is handed over once every optimizer of the
model has made its updates; what is logged meanwhile goes with it.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

from covshift.handover import Handover
from covshift.instrument import step_warnings
from covshift.instrument.block import Block
from covshift.instrument.distributed import is_distributed
from covshift.instrument.incidents import Incidents
from covshift.instrument.logged import Log
from covshift.instrument.parameters import ParameterMeter
from covshift.instrument.scaling import LossScale, Scaler, handed_scale, told_to_skip
from covshift.instrument.schedule import Cadences
from covshift.instrument.silence import name_unseen
from covshift.instrument.steps import StepClock
from covshift.instrument.surroundings import Surroundings
from covshift.instrument.turns import Turns


class _Unfinished(NamedTuple):
    """A step that has ended, whose record may await the updates of other optimizers."""

    block: Block
    scale: float


class Done(NamedTuple):
    """Optimizer steps, and records that were due for them."""

    steps: int
    records: int


class TrainingSteps:
    """Opens, closes and hands over the steps of one training.

    Parameters
    ----------
    model : Module
        Whose optimizer steps count.
    cadences : Cadences
        Which steps, and which parts of their records, are due.
    scaler : GradScaler or None
        Which scales the loss.
    meter, surroundings, incidents, handover
        The recorder's own.
    meets_ranks : bool
        Whether records are pooled with other ranks.
    close : callable
        Closes the block of a step that has ended, or will not.
    attend : callable
        Called where another step is open than before.

    Attributes
    ----------
    count : int
        Optimizer steps done so far, which is also the number of the step now open.
    records : int
        Records due so far.
    is_paused : bool
        True while steps are counted and not recorded.
    clock : StepClock
        Tells where steps end.
    log : Log
        Scalars of the step now open and of the one just closed.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        cadences: Cadences,
        scaler: Scaler | None,
        meter: ParameterMeter,
        surroundings: Surroundings,
        incidents: Incidents,
        handover: Handover,
        meets_ranks: bool,
        close: Callable[[Block], None],
        attend: Callable[[], None],
    ) -> None:
        self._cadences, self._scale, self._turns = cadences, LossScale(scaler), Turns(cadences.steps)
        self._meter, self._surroundings, self._incidents, self._handover = meter, surroundings, incidents, handover
        self._meets_ranks, self._close, self._attend = meets_ranks, close, attend
        self._measures_preclip = Block.can_tell_end_of_backward() and not is_distributed()
        self._block: Block | None = None
        self._opening = threading.Lock()
        self._unfinished: _Unfinished | None = None
        self.count = self.records = self._without_gradient = 0
        self.is_paused = False
        self.log = Log()
        self.clock = StepClock(
            model,
            incidents,
            before=self._before_update,
            again=self._again_before_update,
            after=self._after_update,
            end=self._end_step,
        )

    def begin_at(self, step: int, *, records: int | None) -> None:
        """Steps were made before: ``step`` of them, of which ``records`` were recorded, None where nobody counted."""
        self.count = step
        # Slower cadences count records: as many as the schedule asks for up to here, where nobody kept their number.
        self.records = self._cadences.steps.below(step) if records is None else records
        self.log.begin_at(step)

    @property
    def done(self) -> Done:
        """What is done by now: a step that the scaler has skipped is, though only the next forward pass closes it.

        It is not closed here: merged ranks meet where a step closes, and only one of them may be asking.
        """
        with self._incidents.guard("step"):
            if self._scale.skipped():
                return Done(self.count + 1, self.records + self._counts_as_record(self._block))
        return Done(self.count, self.records)

    @property
    def is_due(self) -> bool:
        """Whether the step now open is to be recorded."""
        return self._block is not None or self._is_scheduled or self._turns.extends(self.count)

    @property
    def _is_scheduled(self) -> bool:
        """Whether the step now open is due by the schedule, not only because somebody's turn is awaited."""
        return self._cadences.steps(self.count)

    def forward(self) -> None:
        """A forward pass with gradients begins, and with it the time to update or log the step before is over."""
        self._settle_skipped()
        self._scale.begin()
        step_warnings.name_vanished_scale(self._scale.in_force, self._incidents)
        self.clock.forward()
        self.finish()
        self._give_scalars()

    def forward_without_gradient(self) -> None:
        """A forward pass that no training step can follow from, and that no evaluation asks for."""
        self._without_gradient += 1

    def block(self) -> Block | None:
        """The block that a forward pass is to fill; None where the step now open is not recorded."""
        if self.is_paused:
            return None
        # Several threads may begin the forward passes of one step.
        with self._opening:
            if self._block is None and self.is_due:
                self._block = self._new_block()
        return self._block

    def _new_block(self) -> Block:
        if not self._scale.is_known:
            self._surroundings.warn_of_hidden_scale(self._incidents)
        # A step that only follows a due one, for whose turn it was not, is a part of that one's record.
        record = self.records if self._is_scheduled else max(self.records - 1, 0)
        return Block(
            self.count,
            histograms=self._cadences.histograms(record),
            units=self._cadences.units(record),
            before_backward=self._before_backward if self._measures_preclip else None,
            after_backward=self._after_backward if self._measures_preclip else None,
        )

    def _before_backward(self) -> None:
        with self._incidents.guard("parameters"):
            self._meter.before_backward()

    def _after_backward(self) -> None:
        with self._incidents.guard("parameters"):
            self._meter.after_backward(scale=self._scale.divisor)

    @property
    def _micro_batches(self) -> int:
        """Forward passes of the step now open; 0 where two backward passes have reached the same one."""
        shares = self._block is not None and self._block.shares_forwards
        return 0 if shares else self.clock.forwards_of_step

    def _before_update(self, optimizer: torch.optim.Optimizer, runs_model: bool) -> bool:
        if self._unfinished is not None and (runs_model or not self.clock.continues(optimizer)):
            self.finish()
        with self._incidents.guard("parameters"):
            if self._unfinished is not None:
                self._meter.before_next(optimizer, scale=handed_scale(optimizer))
            elif self._block is not None or (self.is_due and not self.is_paused):
                # An optimizer that runs the model itself, in a closure, steps by gradients that are still to come.
                self._meter.before_step(
                    optimizer,
                    scale=handed_scale(optimizer),
                    has_gradients=self._block is not None and not runs_model,
                    micro_batches=self._micro_batches,
                    # A scaler unscales the gradients of each optimizer at that one's own step.
                    knows_others=self._scale.in_force == 1.0,
                )
        step_warnings.name_lost_preclip(self._meter, self._incidents)
        step_warnings.name_absent_parameters(self._meter, self._incidents, step=self.count)
        step_warnings.name_uncleared_gradients(self._meter, self._incidents, step=self.count)
        return self._meter.has_begun

    def _again_before_update(self, optimizer: torch.optim.Optimizer) -> None:
        with self._incidents.guard("parameters"):
            self._meter.before_next(optimizer, scale=handed_scale(optimizer))
        step_warnings.name_lost_preclip(self._meter, self._incidents)

    def _after_update(self, optimizer: torch.optim.Optimizer, is_boundary: bool) -> None:
        with self._incidents.guard("parameters"):
            if self._block is not None or self._unfinished is not None:
                others = self.clock.left_to_others(optimizer)
                self._meter.after_step(
                    optimizer,
                    left_to_others=others,
                    scale=handed_scale(optimizer),
                    micro_batches=self._micro_batches,
                )
            rate = self.clock.own_group(optimizer).get("lr") if self._block is not None else None
            if rate is not None:
                self._note_rate(rate)
        if is_boundary:
            self._watch_gradients(optimizer)
            self._end_step(skipped=told_to_skip(optimizer), by=optimizer)
        else:
            self._took_turn(optimizer, self.count - 1, is_recorded=self._unfinished is not None)
            self._attend()
            if self._meter.is_complete:
                self.finish()

    def _watch_gradients(self, optimizer: torch.optim.Optimizer) -> None:
        with self._incidents.guard("schedule"):
            if self._measures_preclip and self._cadences.steps(self.count + 1):
                self._meter.watch_gradients(optimizer)

    def _note_rate(self, rate: Any) -> None:
        try:
            self.log.note(learning_rate=float(rate))
        except (TypeError, ValueError, RuntimeError):
            self.log.note(learning_rate=math.nan)
            step_warnings.name_learning_rate(rate, self._incidents)

    def _took_turn(self, optimizer: torch.optim.Optimizer, step: int, *, is_recorded: bool) -> None:
        with self._incidents.guard("schedule"):
            self._turns.took(optimizer, step, is_recorded=is_recorded)

    def state_end(self) -> None:
        """The user says that a step has just been made; nothing where no forward pass ran since the last one."""
        self.clock.settle()
        if self.clock.has_begun:
            self._end_step(skipped=self._scale.skipped())
        self.finish()

    def _end_step(self, *, skipped: bool = False, by: torch.optim.Optimizer | None = None) -> None:
        self.finish()
        self._give_scalars()
        block, self._block = self._block, None
        if self._scale.is_known:
            self.log.note(loss_scale=self._scale.in_force, step_skipped=float(skipped))
        self.log.close_step(is_recorded=block is not None)
        self.records += self._counts_as_record(block)
        meets = self._meets
        if block is not None:
            step_warnings.name_broken_backward(block, self._incidents)
            self._close(block)
            self._unfinished = _Unfinished(block, self._scale.divisor)
        else:
            self._meter.forget()
        self._scale.end(skipped=skipped)
        if by is not None:
            self._took_turn(by, self.count, is_recorded=block is not None)
        with self._incidents.guard("schedule"):
            self._turns.ended(self.count, is_recorded=block is not None)
        self.count += 1
        self.clock.closed()
        self._attend()
        if self._meter.is_complete:
            self.finish()
        if meets:
            waiting = self._unfinished
            self._handover.meet_ranks(complete=self.count if waiting is None else waiting.block.step)

    @property
    def _meets(self) -> bool:
        """Whether ranks meet where the step now open ends."""
        return self._meets_ranks and self._is_scheduled

    def _counts_as_record(self, block: Block | None) -> bool:
        """Whether the step now open, which fills ``block``, is one of the records by which slower cadences go.

        Of ranks that merge, one that does not record it counts it, too: their cadences must agree. Steps that follow a
        due one for an optimizer's turn count as one with it.
        """
        return (block is not None and self._is_scheduled) or self._meets

    def _settle_skipped(self) -> None:
        """Say of the step before what its scaler has told by now: that it was skipped, or one of its optimizers was."""
        if self._scale.skipped():
            self._end_step(skipped=True)
        elif self._scale.skipped_after_end():
            self.log.note_of_closed(step_skipped=1.0)

    def finish(self) -> None:
        """Hand over the step that has ended; what other optimizers have not updated by now, they leave as it is."""
        unfinished, self._unfinished = self._unfinished, None
        if unfinished is not None:
            self._handover.give(unfinished.block, self._meter.row(), scale=unfinished.scale)
            self._meter.forget()

    def _give_scalars(self) -> None:
        """Hand over what was logged for the step just closed; its time to log is over."""
        with self._incidents.guard("scalars"):
            self._handover.give_scalars(self.log.take())

    def end(self, *, is_complete: bool) -> None:
        """The training ends, ``is_complete`` where no exception ended it; a step still open is not recorded."""
        with self._incidents.guard("step"):
            self.clock.settle()
            if is_complete:
                self._settle_skipped()
            else:
                self.count, self.records = self.done
            self._scale.end(skipped=True)
            self.finish()
        if self._block is not None:
            self._close(self._block)
            self._block = None
        self._give_scalars()
        self.log.end()
        self._give_scalars()
        if is_complete and not (self.clock.any_seen or self.records):
            name_unseen(
                self.clock,
                self._incidents,
                without_gradient=self._without_gradient,
                has_taken=self._handover.has_taken,
            )

    def name_passed_over(self, never_called: list[str]) -> list[str]:
        """Name optimizers of which no step was recorded; the modules, of those never called, that this leaves."""
        return self._turns.name_passed_over(never_called, self.clock.modules_of, self._incidents)
