"""``record()``: the door. Arguments are checked by name, and the parts of a recorder are put together."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from torch import nn

from covshift import schema
from covshift.exceptions import InvalidArgumentError
from covshift.instrument import identity, sites
from covshift.instrument import schedule as schedules
from covshift.instrument.describing import Settings
from covshift.instrument.distributed import is_distributed, rank
from covshift.instrument.provenance import describe
from covshift.instrument.scaling import Scaler
from covshift.instrument.schedule import Schedule
from covshift.instrument.sites import Selection
from covshift.instrument.surroundings import demand_observable
from covshift.probe.fixed_batch import FixedBatch
from covshift.recorder import Recorder
from covshift.store import layout
from covshift.store.opening import demand_writable
from covshift.store.writer import MAX_MEMORY, Writer

RANKS = ("separate", "merge")
LOSS_REDUCTIONS = ("mean", "sum")


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
        Any PyTorch model, unwrapped. Calls of what ``torch.compile`` has made of it, or of a part, stand for its own;
        inside compiled code nothing is seen but on a batch given as ``probe``, see docs/concepts/compiled.md.
    path : path-like, optional
        Where the recording goes; ".zarr" is added where missing. None keeps it in memory.
    every : int or Schedule, default every(10)
        Which optimizer steps to record, counted from 0. Where optimizers take turns (GAN, actor and critic), a step
        that is due is followed by one of each other's, so that all are in the record; see
        docs/decisions/steps-of-several-optimizers.md.
    layers : None, str, re.Pattern, type, callable, or list of these
        Modules to observe, by name glob, regular expression, class or predicate. None for all but the members of
        linkages, whose units are the linkage's; "*" for those, too.
    signals : sequence of str, optional
        Of :data:`covshift.schema.SIGNALS`; all by default.
    histograms_every, units_every : int or Schedule, default first(10) | every(10)
        Which *records* (not steps) carry histograms, and numbers of every unit. Steps that follow a due one for another
        optimizer's turn count as one record with it.
    unit_axis : mapping of str to int, optional
        Axis that counts units, by glob on layer names, where the default by module type is wrong. Outputs that mix
        examples, such as the tokens that one expert is given, have no units all the same: whose a value is, is unknown.
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
        recording of its own, ``name.rank00003.zarr``, without any communication; "merge" pools them exactly into one
        recording, which rank 0 writes. Ranks then meet at the end of every step that is due, and of the ``with``.
    loss_reduction : {"mean", "sum"}
        How the loss reduces over the examples of a rank. With "mean", a rank's gradients are world-size times those of
        the mean over all examples, and the analysis reads them as the latter; see docs/concepts/ranks.md.
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
        ``/superseded``; steps that were due and are missing between the last one recorded and the start are warned
        about. It needs ``start_step`` or :meth:`Recorder.load_state_dict`, and the model the recording was begun with.
        Layers that are no longer chosen read as absent from there on, which is warned about too; new ones join.
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
    ResumeMismatch
        If ``resume`` is True and the recording is of a model with other modules or parameter shapes.
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
    if isinstance(max_memory, bool) or not isinstance(max_memory, int) or max_memory < 1:
        raise InvalidArgumentError(f"max_memory={max_memory!r}: expected a number of bytes, such as 2**30")
    if scaler is not None and not hasattr(scaler, "get_scale"):
        raise InvalidArgumentError(f"scaler={scaler!r}: expected a torch.amp.GradScaler")
    settings = Settings(layers, _known_signals(signals), dict(unit_axis or {}), example_axis, functional)
    sites.demand_few(model, layers, most=max_layers)
    asked = {"every": every, "histograms_every": histograms_every, "units_every": units_every}
    cadences = schedules.Cadences(*(schedules.as_schedule(value, name=key) for key, value in asked.items()))
    provenance = describe(model) | {key: str(cadence) for key, cadence in zip(asked, cadences, strict=True)}
    for key, value, known in (("ranks", ranks, RANKS), ("loss_reduction", loss_reduction, LOSS_REDUCTIONS)):
        if value not in known:
            raise InvalidArgumentError(f"{key}={value!r}: expected one of {', '.join(known)}")
    provenance |= {"ranks": ranks, "rank": rank(), "loss_reduction": loss_reduction}
    fixed = None
    if probe is not None:
        due = schedules.as_schedule(probe_every, name="probe_every")
        fixed = FixedBatch(model, probe, every=due, mode=probe_mode, functional=functional)
        provenance |= fixed.description
    provenance |= {"run_name": name or _stem(path), **(attrs or {}), layout.MODEL_ATTRIBUTE: identity.structure(model)}

    where = _path_of_rank(path, ranks)
    # Of merged ranks only the first writes; what the others may find at the path is its beginning.
    is_writer = ranks == "separate" or not is_distributed() or rank() == 0
    place = demand_writable(where, attrs=provenance, overwrite=overwrite, resume=resume) if is_writer else None

    def make_writer() -> Writer:
        return Writer(
            where if place is None else place,
            attrs=provenance,
            overwrite=overwrite,
            resume=resume,
            max_memory=max_memory,
        )

    return Recorder(
        model,
        make_writer,
        path=place,
        cadences=cadences,
        settings=settings,
        updates=updates,
        scaler=scaler,
        ranks=ranks,
        resume=resume,
        start_step=start_step,
        probe=fixed,
    )


_PROVENANCE = (
    layout.MODEL_ATTRIBUTE,
    "ranks",
    "rank",
    "loss_reduction",
    "every",
    "histograms_every",
    "units_every",
    "world_size",
)


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
