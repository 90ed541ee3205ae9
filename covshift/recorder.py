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
from covshift.exceptions import CovshiftError, InvalidArgumentError, RecordingError, UnsupportedModelError
from covshift.instrument import schedule as schedules
from covshift.instrument import sites
from covshift.instrument.block import Block
from covshift.instrument.describing import Settings
from covshift.instrument.hooks import ModuleHooks
from covshift.instrument.incidents import Incidents
from covshift.instrument.logged import Log
from covshift.instrument.observer import Observer
from covshift.instrument.parameters import ParameterMeter
from covshift.instrument.provenance import describe
from covshift.instrument.rows import collected, stored_rows
from covshift.instrument.scaling import LossScale, Scaler, unscaled
from covshift.instrument.schedule import Schedule
from covshift.instrument.sites import Selection
from covshift.instrument.steps import StepClock
from covshift.instrument.surroundings import Surroundings, listed
from covshift.store import reader
from covshift.store.writer import Writer


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
    ) -> None:
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
        self._declared = 0
        self._parameters_declared = False
        self._block: Block | None = None
        self._evaluation: Block | None = None
        self._last_evaluation = -1
        self._parameters: Mapping[str, Any] = {}
        self._paused = self._active = self._entered = False
        self.step_count = 0
        # Last, so that a refused argument leaves whatever stands at the path as it was.
        self._writer = make_writer()
        self.path = self._writer.path

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
        self._write_scalars()
        self._log.end()
        self._write_scalars()
        self._close_writer()
        if kind is None and self._records and not self._surroundings.opaque and not self._incidents.any_failed:
            self._name_never_called()

    def _close_writer(self) -> None:
        """Write what waits. A full disk must not cost the user the trained model, nor hide their own exception."""
        try:
            self._writer.close()
        except RecordingError as error:
            self._incidents.warn_once("unwritten", "recording", f"the end of the recording is not written: {error}")

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
        if self._active:
            self._writer.flush()
        return reader.open(self._writer.target)

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
            self._write(block)

    def _open_block(self) -> Block | None:
        """Called by the observer at the start of every outermost forward pass."""
        if self._evaluation is not None:
            return None if self._paused else self._evaluation
        if not torch.is_grad_enabled():
            return None
        if self._scale.skipped():
            self._close_step(skipped=True)
        self._scale.begin()
        self._clock.forward()
        self._write_scalars()
        if self._paused:
            return None
        if self._block is None and self._every(self.step_count):
            self._block = Block(
                self.step_count,
                histograms=self._histograms_every(self._records),
                units=self._units_every(self._records),
                after_backward=self._after_backward,
            )
        return self._block

    def _after_backward(self) -> None:
        with self._incidents.guard("parameters"):
            self._meter.after_backward(scale=self._scale.in_force)

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
            self._close_step()

    def _close_step(self, *, skipped: bool = False) -> None:
        self._write_scalars()
        block, self._block = self._block, None
        if self._scale.is_known:
            self._log.note(loss_scale=self._scale.in_force, step_skipped=float(skipped))
        self._log.close_step(is_recorded=block is not None)
        if block is not None:
            block.close()
            self._records += 1
            self._write(block)
        self._meter.forget()
        self._parameters = {}
        self.step_count += 1
        self._clock.closed()

    def _write(self, block: Block) -> None:
        with self._incidents.guard("record"):
            layers = self._observer.layers
            step = collected(block.kept, len(layers))
            step.pooled = unscaled(step.pooled, self._scale.in_force)
            rows = stored_rows(step, layers, block)
            self._writer.declare_layers(layers[self._declared :])
            self._declared = len(layers)
            if self._parameters and not block.stream:
                if not self._parameters_declared:
                    # Not before: the parameters of lazy modules have no size until the first forward pass.
                    self._writer.declare_parameters(self._meter.parameters)
                    self._parameters_declared = True
                rows.append(schema.Row("parameters", block.step, self._parameters))
            self._writer.append(rows)

    def _write_scalars(self) -> None:
        """Write what was logged for the step just closed; its time to log is over."""
        with self._incidents.guard("scalars"):
            rows = self._log.take()
            if rows:
                self._writer.append(rows)


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
        If ``model`` is no ``torch.nn.Module`` or is a ScriptModule, which cannot be hooked.
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
    if not isinstance(model, nn.Module) or isinstance(model, torch.jit.ScriptModule):
        raise UnsupportedModelError(
            f"model: {type(model).__name__} cannot be observed; expected an eager torch.nn.Module (record the model "
            "before scripting it)"
        )
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
    provenance |= {"run_name": name or _stem(path), **(attrs or {})}

    def make_writer() -> Writer:
        return Writer(path, attrs=provenance, overwrite=overwrite)

    return Recorder(model, make_writer, settings=settings, updates=updates, scaler=scaler, **cadences)


def _known_signals(signals: tuple[str, ...] | list[str] | None) -> tuple[str, ...]:
    chosen = schema.SIGNALS if signals is None else tuple(signals)
    unknown = [signal for signal in chosen if signal not in schema.SIGNALS]
    if unknown or not chosen:
        raise InvalidArgumentError(f"signals={list(chosen)}: expected some of {', '.join(schema.SIGNALS)}")
    return chosen


def _stem(path: str | os.PathLike[str] | None) -> str:
    return "in memory" if path is None else os.path.basename(os.fspath(path)).removesuffix(".zarr")
