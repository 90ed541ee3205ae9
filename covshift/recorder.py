"""``record()``: the only door that joins the instrument and the store.

A recorder counts the model's optimizer steps, decides which are due, lets the observer fill a block for those, and
hands closed blocks to the writer. It holds the order of events together and leaves every measurement to its rooms.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import nn

from covshift import schema
from covshift.exceptions import CovshiftError, InvalidArgumentError, RecordingError, UnsupportedModelError
from covshift.instrument import schedule as schedules
from covshift.instrument import sites
from covshift.instrument.block import Block
from covshift.instrument.hooks import ModuleHooks
from covshift.instrument.incidents import Incidents
from covshift.instrument.observer import Observer, Settings
from covshift.instrument.parameters import ParameterMeter
from covshift.instrument.provenance import describe
from covshift.instrument.schedule import Schedule
from covshift.instrument.sites import Selection
from covshift.instrument.steps import StepClock
from covshift.store import reader
from covshift.store.writer import Writer
from covshift.summary import prepare
from covshift.summary.cpu import FORMS


@dataclass
class _Scalars:
    """What was logged for one step."""

    step: int
    values: dict[str, float | torch.Tensor] = field(default_factory=dict)
    recorded: bool = False
    wall_time: float = 0.0


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
    ) -> None:
        self._every, self._histograms_every, self._units_every = every, histograms_every, units_every
        self._incidents = Incidents()
        self._observer = Observer(model, settings, self._incidents, self._open_block)
        self._opaque = sites.compiled(model)
        self._dtypes = {parameter.dtype for parameter in model.parameters() if parameter.device.type == "cpu"}
        self._meter = ParameterMeter(model, updates=updates)
        self._hooks = ModuleHooks(model, self._observer)
        self._clock = StepClock(model, before=self._before_update, after=self._after_update)
        self._records = 0
        self._declared = 0
        self._parameters_declared = False
        self._block: Block | None = None
        self._evaluation: Block | None = None
        self._last_evaluation = -1
        self._forwards = 0
        self._stepped: set[int] = set()
        self._paused = self._active = self._entered = False
        self._open_scalars = _Scalars(0)
        self._closed_scalars: _Scalars | None = None
        self.step_count = 0
        # Last, so that a refused argument leaves whatever stands at the path as it was.
        self._writer = make_writer()
        self.path = self._writer.path

    def __enter__(self) -> Recorder:
        if self._entered:
            raise CovshiftError("this recorder was already entered; call covshift.record again for another recording")
        if self._opaque:
            self._incidents.warn_once(
                "compiled",
                "model",
                f"compiled, so only their own outputs can be seen: {_listed(self._opaque)}. To see inside, record the "
                "model before torch.compile, or compile only the parts you need not see",
            )
        for dtype in self._dtypes & set(FORMS):
            # Loaded or compiled now, the kernels do not make the first recorded step slow.
            prepare(dtype)
        self._hooks.install()
        self._clock.install()
        self._entered = self._active = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hooks.remove()
        self._clock.remove()
        self._active = False
        for block in (self._block, self._evaluation):
            if block is not None:
                block.close()
        self._block = self._evaluation = None
        self._write_scalars()
        if self._open_scalars.values:
            self._closed_scalars = self._open_scalars
            self._write_scalars()
        self._close_writer()
        if kind is None and self._records and not self._opaque and not self._incidents.any_failed:
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
                f"no recorded forward pass called {_listed(self._observer.never_called)}: unused, or used functionally "
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
        values = {name: _loggable(name, value) for name, value in values.items()}
        (self._closed_scalars or self._open_scalars).values.update(values)

    def step(self) -> None:
        """State by hand that an optimizer step has just been made: for hand-written updates.

        Nothing happens where no forward pass ran since the last boundary, so it may follow ``optimizer.step()``.
        """
        if self._forwards:
            self._close_step({})

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
            self._write(block, {})

    def _open_block(self) -> Block | None:
        """Called by the observer at the start of every outermost forward pass."""
        if self._evaluation is not None:
            return None if self._paused else self._evaluation
        if not torch.is_grad_enabled():
            return None
        self._write_scalars()
        self._forwards += 1
        if self._paused:
            return None
        if self._block is None and self._every(self.step_count):
            self._block = Block(
                self.step_count,
                histograms=self._histograms_every(self._records),
                units=self._units_every(self._records),
            )
        return self._block

    def _before_update(self, optimizer: torch.optim.Optimizer) -> None:
        if self._block is not None:
            with self._incidents.guard("parameters"):
                self._meter.before_step()

    def _after_update(self, optimizer: torch.optim.Optimizer) -> None:
        parameters: Mapping[str, Any] = {}
        if self._block is not None:
            with self._incidents.guard("parameters"):
                parameters = self._meter.after_step()
                self._open_scalars.values.setdefault("learning_rate", float(optimizer.param_groups[0]["lr"]))
        if self._is_boundary(optimizer):
            self._close_step(parameters)

    def _is_boundary(self, optimizer: torch.optim.Optimizer) -> bool:
        """Whether an optimizer's step ends a step of the record.

        A second optimizer of the same model, stepping without another forward pass in between, ends none of its own;
        the same optimizer stepping again does, although no forward pass was seen.
        """
        if self._forwards:
            self._stepped = {id(optimizer)}
            return True
        if id(optimizer) not in self._stepped and self._stepped:
            self._stepped.add(id(optimizer))
            return False
        self._incidents.warn_once(
            "unseen",
            "forward",
            "an optimizer updated the model, but no forward pass of it was seen: compiled, wrapped, called as "
            "model.forward(...), or under no_grad? Record the module that is called, before torch.compile",
        )
        self._stepped = {id(optimizer)}
        return True

    def _close_step(self, parameters: Mapping[str, Any]) -> None:
        self._write_scalars()
        block, self._block = self._block, None
        self._closed_scalars, self._open_scalars = self._open_scalars, _Scalars(self.step_count + 1)
        self._closed_scalars.wall_time = time.time()
        self._closed_scalars.recorded = block is not None
        if block is not None:
            block.close()
            self._records += 1
            self._write(block, parameters)
        self.step_count += 1
        self._forwards = 0

    def _write(self, block: Block, parameters: Mapping[str, Any]) -> None:
        with self._incidents.guard("record"):
            layers = list(self._observer.layers.values())
            self._writer.declare_layers(layers[self._declared :])
            self._declared = len(layers)
            rows = block.rows(layers)
            if parameters:
                if not self._parameters_declared:
                    # Not before: the parameters of lazy modules have no size until the first forward pass.
                    self._writer.declare_parameters(self._meter.parameters)
                    self._parameters_declared = True
                rows.append(schema.Row("parameters", block.step, parameters))
            self._writer.append(rows)

    def _write_scalars(self) -> None:
        """Write what was logged for the step just closed; its time to log is over."""
        scalars, self._closed_scalars = self._closed_scalars, None
        if scalars is None or not (scalars.values or scalars.recorded):
            return
        with self._incidents.guard("scalars"):
            values = {"wall_time": np.array(scalars.wall_time or time.time())}
            values |= {name: np.array(float(value)) for name, value in scalars.values.items()}
            self._writer.append([schema.Row("scalars", scalars.step, values)])


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
    settings = Settings(layers, _known_signals(signals), dict(unit_axis or {}), example_axis)
    cadences = {
        key: schedules.as_schedule(value, name=key)
        for key, value in (("every", every), ("histograms_every", histograms_every), ("units_every", units_every))
    }
    provenance = describe(model) | {key: str(cadence) for key, cadence in cadences.items()}
    provenance |= {"run_name": name or _stem(path), **(attrs or {})}

    def make_writer() -> Writer:
        return Writer(path, attrs=provenance, overwrite=overwrite)

    return Recorder(model, make_writer, settings=settings, updates=updates, **cadences)


_NAME = re.compile(r"[A-Za-z][\w.+ -]*", re.ASCII)


def _loggable(name: str, value: Any) -> float | torch.Tensor:
    """``value`` as it is kept until its row is written."""
    if not _NAME.fullmatch(name) or name in ("step", "wall_time", "zarr.json"):
        raise InvalidArgumentError(
            f"log({name!r}): expected a name of letters, digits, '_', '.', '+', '-' and blanks that begins with a "
            "letter, other than step and wall_time"
        )
    if isinstance(value, torch.Tensor) and value.numel() == 1 and not value.is_complex() and not value.is_meta:
        # A copy, read when the row is written: no synchronisation now, no graph kept.
        return value.detach().clone()
    try:
        if isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool):
            return float(value)
    except OverflowError as error:
        raise InvalidArgumentError(f"log({name}=...): {error}; expected a number that float64 can hold") from error
    raise InvalidArgumentError(
        f"log({name}={value!r}): expected a real number or a tensor of one element; reduce it first"
    )


def _listed(names: list[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def _known_signals(signals: tuple[str, ...] | list[str] | None) -> tuple[str, ...]:
    chosen = schema.SIGNALS if signals is None else tuple(signals)
    unknown = [signal for signal in chosen if signal not in schema.SIGNALS]
    if unknown or not chosen:
        raise InvalidArgumentError(f"signals={list(chosen)}: expected some of {', '.join(schema.SIGNALS)}")
    return chosen


def _stem(path: str | os.PathLike[str] | None) -> str:
    return "in memory" if path is None else os.path.basename(os.fspath(path)).removesuffix(".zarr")
