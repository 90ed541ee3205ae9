"""``record()``: the only door that joins the instrument and the store.

A recorder counts the model's optimizer steps, decides which are due, lets the observer fill a block for those, and
hands closed blocks to the writer. It holds the order of events together and leaves every measurement to its rooms.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import torch
import xarray as xr
from torch import nn

from covshift import schema
from covshift.exceptions import CovshiftError, InvalidArgumentError
from covshift.handover import Handover
from covshift.instrument import schedule as schedules
from covshift.instrument import sites
from covshift.instrument.block import Block
from covshift.instrument.describing import Settings
from covshift.instrument.distributed import Ranks, is_distributed, rank
from covshift.instrument.hooks import ModuleHooks
from covshift.instrument.incidents import Incidents
from covshift.instrument.logged import Log
from covshift.instrument.observer import Observer
from covshift.instrument.parameters import ParameterMeter
from covshift.instrument.provenance import describe
from covshift.instrument.scaling import LossScale, Scaler, told_to_skip
from covshift.instrument.schedule import Schedule
from covshift.instrument.sites import Selection
from covshift.instrument.steps import StepClock
from covshift.instrument.surroundings import Surroundings, demand_observable, listed
from covshift.probe.fixed_batch import FixedBatch
from covshift.store.writer import MAX_MEMORY, Writer

RANKS = ("separate", "merge")
LOSS_REDUCTIONS = ("mean", "sum")


class Recorder:
    """Records one model between ``with`` and its end; made by :func:`record`.

    Attributes
    ----------
    step_count : int
        Optimizer steps done so far, which is also the number of the step now open.
    path : Path or None
        Where the recording lies; None in memory.
    """

    def __init__(
        self,
        model: nn.Module,
        make_writer: Callable[[], Writer],
        *,
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
            model, self._incidents, before=self._before_update, after=self._after_update, end=self._close_step
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
        self._parameters: Mapping[str, Any] = {}
        self._paused = self._active = self._entered = False
        self.step_count = 0
        self._measures_preclip = Block.can_tell_end_of_backward() and not is_distributed()
        self._ranks = Ranks() if ranks == "merge" and is_distributed() else None
        # Last, so that a refused argument leaves whatever stands at the path as it was.
        self._handover = Handover(
            make_writer,
            observer=self._observer,
            meter=self._meter,
            incidents=self._incidents,
            ranks=self._ranks,
            histograms_every=histograms_every,
            units_every=units_every,
        )
        self.path = self._handover.writer.path if self._handover.writer is not None else None
        self._must_be_told_step = resume and self._handover.is_resumed
        if start_step is not None:
            self.load_state_dict({"step": start_step})

    def __enter__(self) -> Recorder:
        if self._entered:
            raise CovshiftError("this recorder was already entered; call covshift.record again for another recording")
        if self._must_be_told_step:
            self._handover.close()
            raise InvalidArgumentError(
                f"resume=True: '{self.path}' is continued, but from which step? Give start_step=, the optimizer steps "
                "already done, or call recorder.load_state_dict(state) with the recorder.state_dict() of your "
                "checkpoint before entering"
            )
        self._handover.resume_at(self.step_count)
        self._surroundings.warn(self._incidents)
        self._surroundings.prepare()
        self._attend()
        self._hooks.install()
        self._clock.install()
        self._entered = self._active = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._run_probe()
        self._hooks.remove()
        self._clock.remove()
        self._observer.abandon()
        self._active = False
        with self._incidents.guard("step"):
            self._clock.settle()
            if kind is None and self._scale.skipped():
                self._close_step(skipped=True)
        for block in (self._block, self._evaluation):
            if block is not None:
                block.close()
        self._block = self._evaluation = None
        self._give_scalars()
        self._log.end()
        self._give_scalars()
        if kind is None:
            self._handover.wait_for_ranks()
        self._handover.close()
        if kind is None and self._records and not self._surroundings.opaque and not self._incidents.any_failed:
            self._name_never_called()

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

        Inside the ``with`` the scalars of the step just closed are not in it yet: more may be logged for it.
        """
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
        step = state.get("step")
        if isinstance(step, bool) or not isinstance(step, int) or step < 0:
            raise InvalidArgumentError(f"step={step!r}: expected the number of optimizer steps done, 0 or more")
        self.step_count = step
        # Slower cadences count records: as many as the schedule asks for up to here, where nobody kept their number.
        self._records = state.get("records", sum(map(self._every, range(step))))
        self._log.begin_at(step)
        self._must_be_told_step = False

    def log(self, **values: float | torch.Tensor) -> None:
        """Keep scalars of a step: loss, accuracy, learning rate.

        Before the optimizer step they belong to the step now open, after it and before the next forward pass to the
        step just closed. Of several values for one name in one step the last stays.

        Raises
        ------
        InvalidArgumentError
            If a value is no real number and no tensor of one, or a name cannot name an array.
        CovshiftError
            If the recorder is not open.
        """
        self._demand_active("log()")
        self._log.add(values)

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

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Record nothing inside the ``with``; steps are still counted."""
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

        Raises
        ------
        InvalidArgumentError
            If a pass was already recorded at this step: one record a step.
        """
        self._demand_active("evaluation()")
        if self._evaluation is not None or self._last_evaluation == self.step_count:
            raise InvalidArgumentError(
                f"evaluation(): a pass was already recorded after {self.step_count} steps; record one pass a step"
            )
        self._evaluation = block = Block(self.step_count, stream="evaluation")
        self._attend()
        try:
            yield
        finally:
            self._evaluation = None
            block.close()
            self._attend()
        if block.passes:
            self._last_evaluation = self.step_count
        if block.passes or self._ranks is not None:
            self._handover.give(block if block.passes else None, {}, scale=1.0)

    def _attend(self) -> None:
        """Follow the model's calls if what runs next is to be recorded."""
        with self._incidents.guard("schedule"):
            due = self._evaluation is not None or self._block is not None or self._every(self.step_count)
            self._hooks.follow(due and not self._paused)

    def _open_block(self) -> Block | None:
        """Called by the observer at the start of every outermost forward pass."""
        if self._probe is not None and self._probe.block is not None:
            return self._probe.block
        if self._evaluation is not None:
            return None if self._paused else self._evaluation
        if not torch.is_grad_enabled():
            return None
        if self._scale.skipped():
            self._close_step(skipped=True)
        self._scale.begin()
        self._clock.forward()
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
            self._hooks.follow(not self._paused)
            block = None if self._paused else self._probe.run(self.step_count, self._observer)
        self._attend()
        self._handover.give(block, {}, scale=1.0)

    def _before_update(self, optimizer: torch.optim.Optimizer) -> None:
        with self._incidents.guard("parameters"):
            if self._block is not None or (not self._paused and self._every(self.step_count)):
                # Without a block the optimizer runs the model itself, in a closure: gradients are still to come.
                self._meter.before_step(scale=_own_scale(optimizer), has_gradients=self._block is not None)

    def _after_update(self, optimizer: torch.optim.Optimizer, is_boundary: bool) -> None:
        if self._block is not None:
            with self._incidents.guard("parameters"):
                self._parameters = self._meter.after_step(optimizer, scale=_own_scale(optimizer))
                rate = self._clock.own_group(optimizer).get("lr")
                if rate is not None:
                    self._log.note(learning_rate=float(rate))
        if is_boundary:
            self._close_step(skipped=told_to_skip(optimizer))

    def _close_step(self, *, skipped: bool = False) -> None:
        self._give_scalars()
        block, self._block = self._block, None
        if self._scale.is_known:
            self._log.note(loss_scale=self._scale.in_force, step_skipped=float(skipped))
        self._log.close_step(is_recorded=block is not None)
        if block is not None:
            block.close()
            self._records += 1
        if block is not None or (self._ranks is not None and self._every(self.step_count)):
            self._handover.give(block, self._parameters, scale=self._scale.in_force)
        self._meter.forget()
        self._scale.end()
        self._parameters = {}
        self.step_count += 1
        self._clock.closed()
        self._attend()

    def _give_scalars(self) -> None:
        """Hand over what was logged for the step just closed; its time to log is over."""
        with self._incidents.guard("scalars"):
            self._handover.give_scalars(self._log.take())


def record(
    model: nn.Module,
    path: str | os.PathLike[str] | None = None,
    *,
    every: int | Schedule = schedules.DEFAULT,
    layers: Selection | list[Selection] | None = None,
    signals: tuple[str, ...] | list[str] | None = None,
    histograms_every: int | Schedule = schedules.SLOW,
    units_every: int | Schedule = schedules.SLOW,
    unit_axis: Mapping[str, int] | None = None,
    example_axis: int = 0,
    updates: str = "sampled",
    functional: bool = False,
    scaler: Scaler | None = None,
    probe: Any = None,
    probe_every: int | Schedule = schedules.PROBES,
    probe_mode: str = "eval",
    ranks: str = "separate",
    loss_reduction: str = "mean",
    max_layers: int = 2000,
    name: str | None = None,
    attrs: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    resume: bool = False,
    start_step: int | None = None,
    max_memory: int = MAX_MEMORY,
) -> Recorder:
    """Record how every layer's activations and gradients are distributed while ``model`` trains.

    Use it as a context manager around the training loop; training stays bit-identical.

    Parameters
    ----------
    model : Module
        Any PyTorch model. Record the unwrapped model, before ``torch.compile``.
    path : path-like, optional
        Where the recording goes; ".zarr" is added where missing. None keeps it in memory.
    every : int or Schedule, default every(10)
        Which optimizer steps to record, counted from 0.
    layers : None, str, re.Pattern, type, callable, or list of these
        Modules to observe, by name glob, regular expression, class or predicate; None for all.
    signals : sequence of str, optional
        Of :data:`covshift.schema.SIGNALS`; all by default.
    histograms_every, units_every : int or Schedule, default first(10) | every(10)
        Which *records* (not steps) carry histograms, and numbers of every unit.
    unit_axis : mapping of str to int, optional
        Axis that counts units, by glob on layer names, where the default by module type is wrong.
    example_axis : int, default 0
        Axis of the model's input that counts examples.
    updates : {"sampled", "exact", "off"}
        How to measure parameter updates; see :class:`covshift.instrument.parameters.ParameterMeter`.
    functional : bool, default False
        Also record activations called as functions (``F.relu(x)``, ``x.relu()``) in forward passes with gradients, as
        layers ``site:relu`` of their own. It costs about a microsecond for every torch operation of a recorded step.
    scaler : GradScaler, optional
        The scaler that multiplies the loss: gradients are recorded unscaled, and steps that it skips are counted and
        recorded as skipped.
    probe : tensor, mapping, tuple, or (inputs, loss), optional
        A fixed batch on which the model is run beside its training, in the precision of training, and recorded under
        ``probe/``: the same examples at every record. A tuple is passed as positional arguments, a mapping as
        keywords; a callable at the end of a tuple is the loss of the output, with which gradients are recorded, too.
        Everything is put back, and the training stays bit-identical; see :mod:`covshift.probe.state`.
    probe_every : int or Schedule, default every(100)
        Numbers of steps done at which to run the probe: when the next training pass begins, or the ``with`` ends.
    probe_mode : {"eval", "train"}
        Training flags while the probe runs; buffers are put back in both.
    ranks : {"separate", "merge"}
        What to do with the ranks of ``torch.distributed``, all of which must call this: "separate" gives each a
        recording of its own, ``name.rank00003.zarr``, without any communication; "merge" pools them exactly at the end
        of every recorded step into one recording, which rank 0 writes.
    loss_reduction : {"mean", "sum"}
        How the loss reduces over the examples of a rank; stored, so that gradients of different numbers of ranks can
        be compared: with "mean", a rank's gradients are world-size times those of the mean over all examples.
    max_layers : int, default 2000
        Refuse to observe more modules than this; choose some with ``layers=``, or raise it.
    name : str, optional
        Name of the run; the path's stem by default.
    attrs : mapping, optional
        Attributes to store with the recording: seed, variant, data set. Values JSON can hold.
    overwrite : bool, default False
        Replace an existing recording.
    resume : bool, default False
        Continue the recording at ``path``, or begin it where there is none. Rows of steps that are made again go to
        ``/superseded``. It needs ``start_step`` or :meth:`Recorder.load_state_dict`.
    start_step : int, optional
        Optimizer steps already done.
    max_memory : int, default 1 GiB
        Bytes that a recording without ``path`` may take; from then on nothing more is recorded, with one warning.

    Returns
    -------
    Recorder
        To be entered with ``with``.

    Raises
    ------
    RecordingExists
        If there is a recording at ``path`` and ``overwrite`` is False.
    UnsupportedModelError
        If ``model`` is no ``torch.nn.Module`` or is a ScriptModule, which cannot be hooked; ProbeUnsupported if it
        cannot be probed although ``probe`` was given.
    InvalidArgumentError
        If another argument cannot be used; the message names it.

    Examples
    --------
    >>> import torch, covshift
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> with covshift.record(model, every=1) as recorder:
    ...     for _ in range(3):
    ...         model(torch.randn(16, 4)).square().mean().backward()
    ...         optimizer.step(); optimizer.zero_grad()
    ...     recording = recorder.recording
    >>> dict(recording["layers"].sizes)
    {'step': 3, 'layer': 4, 'signal': 5}
    """
    demand_observable(model)
    _demand_kinds(path, unit_axis, signals, attrs)
    if isinstance(example_axis, bool) or not isinstance(example_axis, int):
        raise InvalidArgumentError(f"example_axis={example_axis!r}: expected the number of an axis")
    if scaler is not None and not hasattr(scaler, "get_scale"):
        raise InvalidArgumentError(f"scaler={scaler!r}: expected a torch.amp.GradScaler")
    settings = Settings(layers, _known_signals(signals), dict(unit_axis or {}), example_axis, functional)
    sites.demand_few(model, layers, most=max_layers)
    cadences = {
        key: schedules.as_schedule(value, name=key)
        for key, value in (("every", every), ("histograms_every", histograms_every), ("units_every", units_every))
    }
    provenance = describe(model) | {key: str(cadence) for key, cadence in cadences.items()}
    for key, value, known in (("ranks", ranks, RANKS), ("loss_reduction", loss_reduction, LOSS_REDUCTIONS)):
        if value not in known:
            raise InvalidArgumentError(f"{key}={value!r}: expected one of {', '.join(known)}")
    provenance |= {"ranks": ranks, "rank": rank(), "loss_reduction": loss_reduction}
    fixed = None
    if probe is not None:
        due = schedules.as_schedule(probe_every, name="probe_every")
        fixed = FixedBatch(model, probe, every=due, mode=probe_mode, functional=functional)
        provenance |= fixed.description
    provenance |= {"run_name": name or _stem(path), **(attrs or {})}

    def make_writer() -> Writer:
        return Writer(
            _path_of_rank(path, ranks), attrs=provenance, overwrite=overwrite, resume=resume, max_memory=max_memory
        )

    return Recorder(
        model,
        make_writer,
        settings=settings,
        updates=updates,
        scaler=scaler,
        ranks=ranks,
        resume=resume,
        start_step=start_step,
        probe=fixed,
        **cadences,
    )


def _own_scale(optimizer: torch.optim.Optimizer) -> float:
    """What the optimizer will divide gradients by: some fused ones are handed the loss scale by the scaler."""
    scale = getattr(optimizer, "grad_scale", None)
    return 1.0 if scale is None else float(scale)


_PROVENANCE = ("ranks", "rank", "loss_reduction", "every", "histograms_every", "units_every", "world_size")


def _demand_kinds(path: Any, unit_axis: Any, signals: Any, attrs: Any) -> None:
    """Demand arguments of the kinds that :func:`record` takes, by name."""
    if path is not None and not isinstance(path, str | os.PathLike):
        raise InvalidArgumentError(f"path={path!r}: expected a path, or None to record in memory")
    if isinstance(signals, str) or not (signals is None or isinstance(signals, list | tuple)):
        raise InvalidArgumentError(f"signals={signals!r}: expected a list of some of {', '.join(schema.SIGNALS)}")
    axes = unit_axis if unit_axis is not None else {}
    kinds = isinstance(axes, Mapping) and all(
        isinstance(name, str) and isinstance(axis, int) and not isinstance(axis, bool) for name, axis in axes.items()
    )
    if not kinds:
        raise InvalidArgumentError(f"unit_axis={unit_axis!r}: expected a mapping from globs on layer names to axes")
    if attrs is not None and not isinstance(attrs, Mapping):
        raise InvalidArgumentError(f"attrs={attrs!r}: expected a mapping")
    taken = [name for name in _PROVENANCE if name in (attrs or {})]
    if taken:
        raise InvalidArgumentError(f"attrs: {', '.join(taken)} are noted by the recorder; choose other names")


def _known_signals(signals: tuple[str, ...] | list[str] | None) -> tuple[str, ...]:
    chosen = schema.SIGNALS if signals is None else tuple(signals)
    unknown = [signal for signal in chosen if signal not in schema.SIGNALS]
    if unknown or not chosen:
        raise InvalidArgumentError(f"signals={list(chosen)}: expected some of {', '.join(schema.SIGNALS)}")
    return chosen


def _path_of_rank(path: str | os.PathLike[str] | None, ranks: str) -> str | os.PathLike[str] | None:
    """Where this rank writes: a path of its own where every rank writes one."""
    if path is None or ranks == "merge" or not is_distributed():
        return path
    return f"{os.fspath(path).removesuffix('.zarr')}.rank{rank():05d}.zarr"


def _stem(path: str | os.PathLike[str] | None) -> str:
    return "in memory" if path is None else os.path.basename(os.fspath(path)).removesuffix(".zarr")
