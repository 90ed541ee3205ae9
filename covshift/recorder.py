"""``record()``: the only door that joins the instrument and the store.

A recorder counts the model's optimizer steps, decides which are due, lets the observer fill a block for those, and
hands closed blocks to the writer. It holds the order of events together and leaves every measurement to its rooms.
"""

from __future__ import annotations

import os
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
from covshift.store.writer import Writer

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
        probe: FixedBatch | None,
    ) -> None:
        self._probe = probe
        self._every, self._histograms_every, self._units_every = every, histograms_every, units_every
        self._incidents = Incidents()
        self._observer = Observer(model, settings, self._incidents, self._open_block)
        self._surroundings = Surroundings(model, settings)
        self._meter = ParameterMeter(model, updates=updates)
        self._hooks = ModuleHooks(model, self._observer)
        self._clock = StepClock(
            model, self._incidents, before=self._before_update, after=self._after_update, end=self._close_step
        )
        self._scale = LossScale(scaler)
        self._log = Log()
        self._records = 0
        self._block: Block | None = None
        self._evaluation: Block | None = None
        self._last_evaluation = -1
        self._parameters: Mapping[str, Any] = {}
        self._paused = self._active = self._entered = False
        self.step_count = 0
        self._measures_preclip = not is_distributed()
        self._ranks = Ranks() if ranks == "merge" and is_distributed() else None
        # Last, so that a refused argument leaves whatever stands at the path as it was.
        self._handover = Handover(
            make_writer, observer=self._observer, meter=self._meter, incidents=self._incidents, ranks=self._ranks
        )
        self.path = self._handover.writer.path if self._handover.writer is not None else None

    def __enter__(self) -> Recorder:
        if self._entered:
            raise CovshiftError("this recorder was already entered; call covshift.record again for another recording")
        self._surroundings.warn(self._incidents)
        self._surroundings.prepare()
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
        self._clock.settle()
        self._active = False
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

    def log(self, **values: float | torch.Tensor) -> None:
        """Keep scalars of a step: loss, accuracy, learning rate.

        Before the optimizer step they belong to the step now open, after it and before the next forward pass to the
        step just closed. Of several values for one name in one step the last stays.

        Raises
        ------
        InvalidArgumentError
            If a value is no real number and no tensor of one, or a name cannot name an array.
        """
        self._log.add(values)

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
        try:
            yield
        finally:
            self._paused = paused

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
        if self._evaluation is not None or self._last_evaluation == self.step_count:
            raise InvalidArgumentError(
                f"evaluation(): a pass was already recorded after {self.step_count} steps; record one pass a step"
            )
        self._evaluation = block = Block(self.step_count, stream="evaluation")
        try:
            yield
        finally:
            self._evaluation = None
            block.close()
        if block.passes:
            self._last_evaluation = self.step_count
        if block.passes or self._ranks is not None:
            self._handover.give(block if block.passes else None, {}, scale=1.0)

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
        if self._block is None and self._every(self.step_count):
            if not self._scale.is_known:
                self._surroundings.warn_of_hidden_scale(self._incidents)
            self._block = Block(
                self.step_count,
                histograms=self._histograms_every(self._records),
                units=self._units_every(self._records),
                after_backward=self._after_backward if self._measures_preclip else None,
            )
        return self._block

    def _after_backward(self) -> None:
        with self._incidents.guard("parameters"):
            self._meter.after_backward(scale=self._scale.in_force)

    def _run_probe(self) -> None:
        if self._probe is None or not self._probe.is_due(self.step_count):
            return
        block = None
        with self._incidents.guard("probe"):
            block = None if self._paused else self._probe.run(self.step_count, self._observer)
        self._handover.give(block, {}, scale=1.0)

    def _before_update(self, optimizer: torch.optim.Optimizer) -> None:
        if self._block is not None:
            with self._incidents.guard("parameters"):
                # Optimizers that divide by the scale themselves are handed it by the scaler.
                scale = getattr(optimizer, "grad_scale", None)
                self._meter.before_step(scale=1.0 if scale is None else float(scale))

    def _after_update(self, optimizer: torch.optim.Optimizer, is_boundary: bool) -> None:
        if self._block is not None:
            with self._incidents.guard("parameters"):
                self._parameters = self._meter.after_step()
                self._log.note(learning_rate=float(optimizer.param_groups[0]["lr"]))
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
        return Writer(_path_of_rank(path, ranks), attrs=provenance, overwrite=overwrite)

    return Recorder(
        model, make_writer, settings=settings, updates=updates, scaler=scaler, ranks=ranks, probe=fixed, **cadences
    )


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
