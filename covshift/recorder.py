"""``record()``: the only door that joins the instrument and the store.

A recorder is what the user holds: it begins and ends, pauses, evaluates and probes, and says which block a forward
pass fills. The steps themselves, and when they are handed over, are in :mod:`covshift.training_steps`.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import TypeGuard

import torch
import xarray as xr
from torch import nn

from covshift.evaluating import Evaluating
from covshift.exceptions import CovshiftError, CovshiftWarning, InvalidArgumentError
from covshift.handover import Handover
from covshift.instrument.block import Block
from covshift.instrument.describing import Settings
from covshift.instrument.distributed import Ranks, is_distributed
from covshift.instrument.hooks import ModuleHooks
from covshift.instrument.identity import unobserved
from covshift.instrument.incidents import Incidents, listed, users_line
from covshift.instrument.observer import Observer
from covshift.instrument.parameters import ParameterMeter
from covshift.instrument.scaling import Scaler
from covshift.instrument.schedule import Cadences
from covshift.instrument.surroundings import Surroundings
from covshift.probe.fixed_batch import FixedBatch
from covshift.store.writer import Writer
from covshift.training_steps import TrainingSteps

_MOST_STEPS = 10**15
"""More than any training makes; steps are stored in 64 bits."""


class Recorder:
    """Records one model between ``with`` and its end; made by :func:`covshift.record`.

    Attributes
    ----------
    path : Path or None
        Where the recording lies, once the recorder is entered; None in memory.
    """

    def __init__(
        self,
        model: nn.Module,
        make_writer: Callable[[], Writer],
        *,
        path: Path | None,
        cadences: Cadences,
        settings: Settings,
        updates: str,
        scaler: Scaler | None,
        ranks: str,
        resume: bool,
        start_step: int | None,
        probe: FixedBatch | None,
    ) -> None:
        self._probe = probe
        self._incidents = Incidents()
        self._surroundings = Surroundings(model, settings)
        self._ranks = Ranks() if ranks == "merge" and is_distributed() else None
        meter = ParameterMeter(model, updates=updates)
        self._handover = Handover(
            make_writer,
            layers=lambda: self._observer.layers,
            meter=meter,
            incidents=self._incidents,
            ranks=self._ranks,
            cadences=cadences,
            unobserved=unobserved(model, settings),
        )
        self._steps = TrainingSteps(
            model,
            cadences=cadences,
            scaler=scaler,
            meter=meter,
            surroundings=self._surroundings,
            incidents=self._incidents,
            handover=self._handover,
            meets_ranks=self._ranks is not None,
            close=self._close,
            attend=self._attend,
        )
        self._observer = Observer(
            model, settings, self._incidents, open_block=self._open_block, clock=self._steps.clock
        )
        self._hooks = ModuleHooks(model, self._observer)
        self._evaluating = Evaluating()
        self._last_evaluation = -1
        self._pauses: list[None] = []
        self._active = self._entered = False
        self.path = path
        self._resume = self._must_be_told_step = resume
        if start_step is not None:
            self.load_state_dict({"step": start_step})
        line = users_line()
        self._unentered = weakref.finalize(self, _warn_of_no_recording, path, line.f_code.co_filename, line.f_lineno)

    def __enter__(self) -> Recorder:
        if self._entered:
            raise CovshiftError("this recorder was already entered; call covshift.record again for another recording")
        self._unentered.detach()
        self._handover.open()
        try:
            self._begin()
        except BaseException:
            self._handover.close()
            raise
        self._evaluating.come_home()
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
        self._steps.clock.install()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._leave(is_complete=kind is None)
        finally:
            # Whatever ends the recording, warnings that the user has made errors included, it ends closed.
            self._handover.close()
        is_opaque = self._surroundings.is_opaque or bool(self._observer.compiled)
        if kind is None and self._steps.records and not is_opaque and not self._incidents.any_failed:
            self._name_never_called()

    def _leave(self, *, is_complete: bool) -> None:
        """Take the hooks away, and hand over what is left; ``is_complete`` where no exception ended the loop."""
        try:
            self._steps.finish()
            if is_complete:
                self._run_probe()
        finally:
            self._hooks.remove()
            self._steps.clock.remove()
            self._observer.abandon()
            self._active = False
        if self._evaluating.block is not None:
            self._close(self._evaluating.block)
            self._evaluating.block = None
        self._steps.end(is_complete=is_complete)
        if is_complete:
            self._surroundings.warn_of_new_parts(self._incidents)
            self._handover.wait_for_ranks()
        else:
            self._handover.part_from_ranks()

    def _name_never_called(self) -> None:
        never_called = self._steps.name_passed_over(self._observer.never_called)
        if never_called:
            self._incidents.warn_once(
                "never called",
                "model",
                f"no recorded forward pass called {listed(never_called)}: unused, in a method that is compiled, or "
                "used functionally through their weights, which no hook can see",
            )

    @property
    def step_count(self) -> int:
        """Optimizer steps done so far, which is also the number of the step now open.

        One that the scaler skips counts from its ``update()`` on.
        """
        return self._steps.done.steps

    @property
    def recording(self) -> xr.DataTree:
        """Everything recorded so far: flushes, then a snapshot equal to what ``covshift.open`` reads.

        Inside the ``with`` the scalars of the step just closed are not in it yet: more may be logged for it. Read
        between the steps of several optimizers, it holds the step without the updates that are still to come.
        """
        if self._ranks is None:
            self._steps.finish()
        return self._handover.snapshot(flush=self._active)

    @property
    def warnings(self) -> list[str]:
        """What could not be recorded, each named once."""
        return self._incidents.messages

    def state_dict(self) -> dict[str, int]:
        """What a checkpoint must keep so that the recording can be resumed with it."""
        done = self._steps.done
        return {"step": done.steps, "records": done.records}

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
        self._steps.begin_at(step, records=records)
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
        self._steps.log.add({**(values or {}), **more})

    def _demand_active(self, call: str) -> None:
        if not self._active:
            raise CovshiftError(f"{call}: this recorder is not open; call it inside its with")

    def step(self) -> None:
        """State by hand that an optimizer step has just been made: for hand-written updates.

        Nothing happens where no forward pass ran since the last boundary, so it may follow ``optimizer.step()``.
        """
        self._steps.state_end()

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Record nothing inside the ``with``, whichever thread computes it; steps are still counted."""
        self._steps.finish()
        # Pauses of several threads may overlap: the last to end ends them.
        self._pauses.append(None)
        self._steps.is_paused = True
        self._attend()
        try:
            yield
        finally:
            self._pauses.pop()
            self._steps.is_paused = bool(self._pauses)
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

        A thread may evaluate beside the training: where it has itself begun no training pass, threads that have, and
        the one that entered the recorder, go on training. Other threads help it, and theirs are part of the evaluation.
        """
        self._demand_active("evaluation()")
        inner = nullcontext() if self._evaluating.block is not None else self._evaluation_pass()
        with self._evaluating.by_this_thread(), inner:
            yield

    @contextmanager
    def _evaluation_pass(self) -> Iterator[None]:
        if not self._evaluating.is_apart():
            # Else the step that has ended may await updates that another thread is about to make.
            self._steps.finish()
        step = self.step_count
        is_first = self._last_evaluation != step
        if not is_first:
            self._incidents.warn_once(
                "evaluation",
                "model",
                f"evaluation(): a pass was already recorded after {step} steps; this one is not recorded, "
                "nor are other second passes at one step",
            )
        self._observer.abandon()
        self._evaluating.block = block = Block(step, stream="evaluation")
        self._attend()
        try:
            yield
        finally:
            self._evaluating.block = None
            self._close(block)
            self._attend()
        if is_first and not block.is_empty:
            self._last_evaluation = step
            self._handover.give(block, {}, scale=1.0)

    def _attend(self) -> None:
        """Follow the model's calls if what runs next is to be recorded."""
        with self._incidents.guard("schedule"):
            due = self._evaluating.block is not None or self._steps.is_due
            self._hooks.follows = due and not self._steps.is_paused

    def _close(self, block: Block) -> None:
        """End a block; forward passes that an exception has interrupted add nothing to it."""
        self._observer.forget_interrupted()
        with self._incidents.guard("record"):
            block.close()

    def _open_block(self) -> Block | None:
        """Called by the observer at the start of every outermost forward pass."""
        probed = self._probe.block if self._probe is not None else None
        if self._evaluating.includes_this_thread(is_probed=probed is not None):
            return None if self._steps.is_paused else self._evaluating.block
        if probed is not None:
            return probed
        if not torch.is_grad_enabled():
            if self._hooks.follows:
                self._steps.forward_without_gradient()
            return None
        self._evaluating.trains()
        self._steps.forward()
        if self._probe is not None:
            self._probe.remember_autocast()
            self._run_probe()
        return self._steps.block()

    def _run_probe(self) -> None:
        if self._probe is None or not self._probe.is_due(self.step_count):
            return
        block = None
        with self._incidents.guard("probe"):
            self._hooks.follows = not self._steps.is_paused
            block = None if self._steps.is_paused else self._probe.run(self.step_count, self._observer)
        self._attend()
        if block is not None:
            self._handover.give(block, {}, scale=1.0)


def _warn_of_no_recording(path: Path | None, file: str, line: int) -> None:
    """Say of a recorder that is gone, or stands at the end of the program, that it was never entered."""
    where = "in memory" if path is None else f"at '{path}'"
    message = (
        f"record() was called, but its recorder was never entered, so there is no recording {where}: write "
        "'with covshift.record(...) as recorder:' around the training loop"
    )
    warnings.warn_explicit(message, CovshiftWarning, file, line)


def _is_count(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
