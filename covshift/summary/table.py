"""Summaries of many tensors, side by side: a row of numbers for each, histograms and units by key.

A recorded step summarises hundreds of tensors, so a row is filled where it will stay and nothing is built for it:
:class:`covshift.summary.Summary` says what the numbers mean, a table is how a step holds them. Rows of one key (several
forward passes of a step) are pooled when the table is read.

Tensors in CPU memory are read at once by the fused kernels. Of tensors elsewhere, what :mod:`covshift.summary.device`
computes stays on the device until the table is read: then all of it is copied in one transfer.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch._subclasses.fake_tensor import FakeTensor

from covshift.grid import Grid
from covshift.summary import numbers
from covshift.summary.cpu import FORMS, Walk, can_walk, walk_of
from covshift.summary.device import packed, unpacked
from covshift.summary.numbers import Numbers
from covshift.summary.summary import Histogram, Summary, UnitSummary

Taker = Callable[[NDArray[np.float64]], None]
Enter = Callable[[int, int, Histogram | None, UnitSummary | None], None]
Part = TypeVar("Part", Histogram, UnitSummary)

NOBODY = -1  # key of a tensor of which only the row is asked for
CHUNK = 256  # rows; chunks are never moved, so that one thread may fill a row while another asks for the next
MANY = 4096  # rows from which on it is worth pooling those of one key before more come
FEW_SHAPES = 64  # ways to walk that one reading keeps


class Reading:
    """How the tensors of one signal of one layer are read.

    Parameters
    ----------
    unit_axis, example_axis : int or None
        None where unknown. An axis that a tensor does not have is left out for that tensor.
    unit_count : int
        Units of the layer; of a tensor with another number of them no units are summarised. 0 for none ever.
    grid : Grid
        Bins of histograms.
    groups : int
        Example groups of histograms.
    """

    def __init__(
        self, *, unit_axis: int | None, example_axis: int | None, unit_count: int, grid: Grid, groups: int
    ) -> None:
        self.grid, self.groups = grid, groups
        self._unit_axis, self._example_axis, self._unit_count = unit_axis, example_axis, unit_count
        self._walks: dict[tuple[object, ...], Walk | None] = {}

    def axes_of(self, tensor: torch.Tensor) -> tuple[int | None, int | None]:
        """Unit and example axis of this tensor, None where it has none."""
        unit, example = self._unit_axis, self._example_axis
        if unit is None or not self._unit_count or unit >= tensor.ndim or tensor.shape[unit] != self._unit_count:
            unit = None
        return unit, None if example is None or example >= tensor.ndim else example

    def walk(self, tensor: torch.Tensor, *, histograms: bool, units: bool) -> Walk | None:
        """How to walk the tensor's memory, None where no kernel can."""
        key = (tensor.shape, tensor.stride(), tensor.dtype, histograms, units)
        try:
            return self._walks[key]
        except KeyError:
            pass
        unit, example = self.axes_of(tensor)
        grid = self.grid if histograms else None
        walk = walk_of(tensor, unit_axis=unit, example_axis=example, grid=grid, groups=self.groups, units=units)
        if len(self._walks) >= FEW_SHAPES:
            self._walks.clear()
        self._walks[key] = walk
        return walk


@dataclass
class Pooled:
    """A table as read: one row for each key.

    Attributes
    ----------
    keys : ndarray of int64
        Ascending.
    rows : ndarray
        Shape ``(keys, 14)``; see :data:`covshift.summary.numbers.COLUMNS`.
    histograms, units : dict
        By key, where the table was asked for them.
    """

    keys: NDArray[np.int64]
    rows: Numbers
    histograms: dict[int, Histogram]
    units: dict[int, UnitSummary]

    def summary(self, key: int) -> Summary:
        """The row of ``key`` as a summary, empty where there is none."""
        place = int(np.searchsorted(self.keys, key))
        if place == len(self.keys) or self.keys[place] != key:
            return Summary()
        return Summary.of(self.rows[place], histogram=self.histograms.get(key), units=self.units.get(key))


class Table:
    """Summaries of tensors, added one by one under integer keys.

    Parameters
    ----------
    histograms, units : bool
        Whether to make them at all; a reading may still have no units.
    """

    def __init__(self, *, histograms: bool, units: bool) -> None:
        self._wants_histograms, self._wants_units = histograms, units
        # None where one tensor had none: a part that misses some of the stream is not that of the stream.
        self._histograms: dict[int, Histogram | None] = {}
        self._units: dict[int, UnitSummary | None] = {}
        self._waiting: list[tuple[torch.Tensor, Taker]] = []
        self._lock = threading.Lock()
        self._forget_rows()

    def _forget_rows(self) -> None:
        self._chunks: list[Numbers] = []
        self._keys: list[NDArray[np.int64]] = []
        self._next = itertools.count()
        self._grow(0)

    def _grow(self, chunk: int) -> None:
        with self._lock:
            while chunk >= len(self._chunks):
                self._keys.append(np.full(CHUNK, NOBODY, dtype=np.int64))
                self._chunks.append(np.empty((CHUNK, len(numbers.COLUMNS))))

    def add(
        self, key: int, tensor: torch.Tensor, reading: Reading, *, units: bool = True, enter: Enter | None = None
    ) -> int:
        """Summarise a tensor for which :func:`is_summarizable` holds; returns its row, for :meth:`row`.

        ``units`` is False for signals whose units are never recorded. Nothing is recorded of an empty tensor. ``enter``
        is called in the place of :meth:`enter`, and may call that later, or never.
        """
        row = next(self._next)
        chunk, place = divmod(row, CHUNK)
        if chunk >= len(self._chunks):
            self._grow(chunk)
        units = units and self._wants_units
        if not tensor.numel():
            self._chunks[chunk][place] = numbers.empty_rows(1)[0]
            return row
        walk = reading.walk(tensor, histograms=self._wants_histograms, units=units) if can_walk(tensor) else None
        if walk is None:
            self._add_by_torch(row, key, tensor, reading, units=units, enter=enter or self.enter)
            return row
        histogram, by_unit = walk(tensor, self._chunks[chunk], place)
        # Last: a row whose tensor could not be read is nobody's.
        (enter or self.enter)(row, key, histogram, by_unit)
        return row

    def _add_by_torch(
        self, row: int, key: int, tensor: torch.Tensor, reading: Reading, *, units: bool, enter: Enter
    ) -> None:
        unit, example = reading.axes_of(tensor)
        grid, groups = reading.grid if self._wants_histograms else None, reading.groups
        chunk, place = divmod(row, CHUNK)

        def take(vector: NDArray[np.float64]) -> None:
            self._chunks[chunk][place], histogram, by_unit = unpacked(vector, grid=grid, groups=groups)
            enter(row, key, histogram, by_unit)

        self.later(packed(tensor, unit_axis=unit, example_axis=example, grid=grid, groups=groups, units=units), take)

    def enter(self, row: int, key: int, histogram: Histogram | None, units: UnitSummary | None) -> None:
        """Count a row, with its histogram and units, as one of ``key``."""
        if self._wants_histograms or self._wants_units:
            self._keep(key, histogram, units)
        chunk, place = divmod(row, CHUNK)
        self._keys[chunk][place] = key

    def _keep(self, key: int, histogram: Histogram | None, units: UnitSummary | None) -> None:
        if key == NOBODY:
            return
        with self._lock:
            _merge_into(self._histograms, key, histogram)
            _merge_into(self._units, key, units)

    def later(self, vector: torch.Tensor, take: Taker) -> None:
        """Give the float64 ``vector`` to ``take`` as an array: now from CPU memory, otherwise with the next fetch."""
        if vector.is_cpu:
            take(vector.numpy())
        else:
            self._waiting.append((vector, take))

    def fetch(self) -> None:
        """Copy all that waits on devices to the host, in one transfer for each device."""
        waiting, self._waiting = self._waiting, []
        by_device: dict[torch.device, list[tuple[torch.Tensor, Taker]]] = {}
        for vector, take in waiting:
            by_device.setdefault(vector.device, []).append((vector, take))
        for together in by_device.values():
            joined = torch.cat([vector for vector, _ in together]).cpu().numpy()
            ends = np.cumsum([vector.numel() for vector, _ in together])
            for (_, take), part in zip(together, np.split(joined, ends[:-1]), strict=True):
                take(part)

    def row(self, row: int) -> Numbers:
        """Numbers of one tensor as it was added, shape ``(14,)``; copies from its device what waits there."""
        if self._waiting:
            self.fetch()
        chunk, place = divmod(row, CHUNK)
        found: Numbers = self._chunks[chunk][place]
        return found

    def pool(self) -> None:
        """Pool the rows of each key where there are many; rows returned before must not be asked for any more."""
        if len(self._chunks) * CHUNK < MANY:
            return
        pooled = self.read()
        self._forget_rows()
        self._grow(len(pooled.keys) // CHUNK)
        for start in range(0, len(pooled.keys), CHUNK):
            part = pooled.keys[start : start + CHUNK]
            self._keys[start // CHUNK][: len(part)] = part
            self._chunks[start // CHUNK][: len(part)] = pooled.rows[start : start + CHUNK]
        self._next = itertools.count(len(pooled.keys))

    def read(self) -> Pooled:
        """One row for each key, with histograms and units."""
        self.fetch()
        keys, rows = np.concatenate(self._keys), np.concatenate(self._chunks)
        taken = keys != NOBODY
        distinct, pooled = numbers.pooled_by_key(keys[taken], rows[taken])
        histograms = {key: part for key, part in self._histograms.items() if part is not None}
        units = {key: part for key, part in self._units.items() if part is not None}
        return Pooled(distinct, pooled, histograms, units)


def is_summarizable(tensor: torch.Tensor) -> bool:
    """Whether a tensor is one a table takes: strided, with values, of a floating-point type."""
    is_strided = tensor.dtype in FORMS and tensor.layout == torch.strided and not tensor.is_nested
    return is_strided and not tensor.is_meta and (type(tensor) is torch.Tensor or not isinstance(tensor, FakeTensor))


def _merge_into(parts: dict[int, Part | None], key: int, part: Part | None) -> None:
    """Add one tensor's part to that of its key."""
    if key not in parts:
        parts[key] = part
    else:
        kept = parts[key]
        parts[key] = None if kept is None or part is None else kept.merge(part)
