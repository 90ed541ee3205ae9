"""From a closed block to the store: rows in the order of the layers, pooled over ranks where there are several.

Whatever goes wrong here costs rows and is named in a warning; the training goes on.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import xarray as xr

from covshift import schema
from covshift.exceptions import RecordingError, ResumeMismatch
from covshift.instrument.block import Block
from covshift.instrument.distributed import ENDED, Ranks, merged
from covshift.instrument.incidents import Incidents, listed
from covshift.instrument.pairing import Pairing
from covshift.instrument.parameters import ParameterMeter
from covshift.instrument.rows import MOST_COUNTED, Record, arranged, in_known_units, record_of, stored_rows, uncounted
from covshift.instrument.scaling import unscaled
from covshift.instrument.schedule import Cadences
from covshift.store import reader
from covshift.store.description import estimated_bytes
from covshift.store.writer import Writer

MANY, LARGE = 10_000, 1_000_000_000
"""Records, and bytes that so many of them may take before it is worth a word."""

_SITE = re.compile(r"#\d+|:.*")
"""What a layer's name says beyond its module's path: the number of the call, the part of the output, a function."""

_logger = logging.getLogger("covshift")


class Handover:
    """Hands what one recorder has collected to its writer.

    Parameters
    ----------
    make_writer : callable
        Makes the writer, in :meth:`open`; not called on ranks whose records another rank writes.
    layers : callable
        Tells the layers observed so far.
    meter, incidents
        The recorder's own.
    ranks : Ranks or None
        With whom records are pooled; None for nobody.
    cadences : Cadences
        What is due: it tells which steps a resume leaves out, and how large the recording will be.
    unobserved : collection of str
        Names of the modules that are not recorded; it tells which layers a resume leaves out.

    Attributes
    ----------
    has_taken : bool
        Whether any block was given: of a step, an evaluation or a probe.
    """

    def __init__(
        self,
        make_writer: Callable[[], Writer],
        *,
        layers: Callable[[], Sequence[schema.Layer]],
        meter: ParameterMeter,
        incidents: Incidents,
        ranks: Ranks | None,
        cadences: Cadences,
        unobserved: Collection[str],
    ) -> None:
        self.has_taken = False
        self._cadences, self._unobserved = cadences, unobserved
        self._observed, self._meter, self._incidents, self._ranks = layers, meter, incidents, ranks
        self._rank_count = 1 if ranks is None else ranks.size
        self._waiting: list[Record] = []
        self._pairing = Pairing()
        self._layers: dict[str, schema.Layer] = {}
        self._unit_counts: dict[str, int] = {}
        self._has_parameters = False
        self._make_writer = make_writer
        self.writer: Writer | None = None
        # A thread may end an evaluation while another ends a step.
        self._writing = threading.RLock()

    def open(self) -> None:
        """Make the recording, or take it up; until then nothing is claimed and nothing replaced."""
        if self._ranks is None or self._ranks.is_first:
            self.writer = self._make_writer()
            self.writer.warn = self._warn
            self._unit_counts = {layer.name: layer.unit_count for layer in self.writer.stored_layers}

    @property
    def is_resumed(self) -> bool:
        """Whether a recording is continued, as far as this rank can tell."""
        return self.writer is None or self.writer.resumed

    def resume_at(self, step: int) -> None:
        """Continue the recording at ``step``; rows of that step and later are set aside.

        What then is missing from the history is named: steps and layers left out, and a recording set aside as a whole.
        """
        self._pairing = Pairing(begin=step)
        if self.writer is None or not self.writer.resumed:
            return
        last = self.writer.last_steps[schema.LAYERS.name]
        moved = self.writer.resume_at(step)
        resumed = f"'{self.writer.path}' is resumed at step {step}"
        left_out = self._cadences.steps.between(last + 1, step)
        if left_out is not None:
            count, first, final = left_out
            self._warn(
                f"{resumed}, but {_ends(last)}: {count} steps that were due, from {first} to {final}, are in no "
                "record; start_step= counts the optimizer steps already done"
            )
        if moved and self.writer.last_steps[schema.LAYERS.name] < 0 <= last:
            self._warn(
                f"{resumed}, before its first record, and {_ends(last)}: all of them are set aside under superseded/; "
                "start_step= counts the optimizer steps already done"
            )
        lost = [layer.name for layer in self.writer.stored_layers if _module_of(layer.name) in self._unobserved]
        if lost:
            self._warn(
                f"{resumed} and holds layers that are not observed any more, {listed(lost)}: they read as absent from "
                "there on; give the layers= the recording was begun with to go on with them"
            )

    def _warn(self, message: str) -> None:
        self._incidents.warn_once(message, "recording", message)

    def give(self, block: Block, parameters: Mapping[str, Any], *, scale: float) -> None:
        """Take a closed block: to be written at once, or by rank 0 after the next :meth:`meet_ranks`."""
        self.has_taken = True
        with self._incidents.guard("record"):
            record = self._record(block, parameters, scale)
            if self._ranks is None:
                self._write([record])
            else:
                self._waiting.append(record)

    def meet_ranks(self, *, complete: int) -> None:
        """Exchange records with the other ranks, where there are any.

        To be called where every rank comes by, however different what they record: at the end of steps that are due.

        Parameters
        ----------
        complete : int
            Below this step this rank has given everything.
        """
        if self._ranks is not None:
            with self._incidents.guard("record"):
                self._exchange(self._ranks, complete)

    def _exchange(self, ranks: Ranks, complete: int) -> int:
        """Give what waits and write what no rank can add to; the step below which that is."""
        given, self._waiting = self._waiting, []
        try:
            exchange = ranks.exchange(given, complete=complete)
        except RuntimeError as error:
            self._lose_ranks(error, given)
            return ENDED
        self._pair(exchange.records, exchange.complete)
        return exchange.complete

    def _pair(self, records: Sequence[Record], complete: int) -> None:
        self._pairing.add(records)
        for together in self._pairing.taken(complete):
            with self._incidents.guard("record"):
                self._write(together)
        if self._pairing.overrun or self._pairing.late:
            message = (
                "the ranks count steps differently: records are missing, or hold the numbers of some ranks only; every "
                "rank needs the same every= and start_step="
            )
            self._incidents.warn_once("apart", "recording", message)

    def _record(self, block: Block, parameters: Mapping[str, Any], scale: float) -> Record:
        record = record_of(block, self._observed(), parameters)
        record.collected.pooled = unscaled(record.collected.pooled, scale)
        return replace(record, sharded=self._meter.sharded if parameters and self._rank_count > 1 else None)

    def _lose_ranks(self, error: RuntimeError, given: Sequence[Record]) -> None:
        """Go on alone, from what is here on: a rank that died will not come back."""
        self._ranks = None
        self._pair(given if self.writer is not None else [], ENDED)
        what = "nothing is recorded" if self.writer is None else "only this rank's own numbers are recorded"
        self._incidents.warn_once("rank", "recording", f"a rank did not answer ({error}); from here on {what}")

    def _write(self, given: Sequence[Record]) -> None:
        # Asked before the lock is: in a forked child nobody may be left to let go of it.
        if self.writer is not None and not self._is_left_to_parent(self.writer):
            with self._writing:
                self._write_alone(self.writer, given)

    def _write_alone(self, writer: Writer, given: Sequence[Record]) -> None:
        record = merged([self._in_known_units(one) for one in given], ranks=self._rank_count)
        try:
            self._declare(writer, record)
        except ResumeMismatch as error:
            self._warn(f"{error}; nothing of this run is recorded")
            return
        self._name_uncounted(record)
        self._append(writer, stored_rows(arranged(record, list(self._layers.values()))))

    def _is_left_to_parent(self, writer: Writer) -> bool:
        """Whether rows are those of a forked child, which trains a shared model perhaps; they are named and left."""
        if writer.is_forked:
            self._incidents.warn_once(
                "forked",
                "recording",
                "this process was forked while the model was recorded: what it trains is not in the recording, which "
                "its parent goes on writing. To record it, enter a recorder of its own, with a path of its own, here",
            )
        return writer.is_forked

    def _in_known_units(self, record: Record) -> Record:
        """The record with the units that its layers have had so far; the layers that came with others are named."""
        fitting, differing = in_known_units(record, self._unit_counts)
        for layer in differing:
            self._incidents.warn_once(
                "units",
                layer.name,
                f"layer '{layer.name}': {layer.unit_count} units, but it was recorded with "
                f"{self._unit_counts[layer.name]}; units are left out where their number is another, all else is "
                "recorded. To have them, begin a recording with unit_axis= naming an axis that keeps its length",
            )
        self._unit_counts |= {layer.name: layer.unit_count for layer in fitting.layers}
        return fitting

    def _name_uncounted(self, record: Record) -> None:
        for name in uncounted(record):
            self._incidents.warn_once(
                "uncounted",
                name,
                f"layer '{name}': more than {MOST_COUNTED:,} elements of a unit, or of a bin of its histogram, in one "
                f"record (step {record.step}); its units or its histogram are left out of such records, all else is "
                "recorded. To have them, give the model fewer examples in one evaluation, or in one step",
            )

    def _append(self, writer: Writer, rows: list[schema.Row]) -> None:
        """Acknowledge rows; what the disk refuses is lost, which is no defect and is named for what it is."""
        writer.keep_warnings(self._incidents.messages)
        try:
            writer.append(rows)
        except RecordingError as error:
            self._incidents.warn_once("refused", "recording", f"rows are missing from here on: {error}")

    def _declare(self, writer: Writer, record: Record) -> None:
        new = [layer for layer in record.layers if layer.name not in self._layers]
        writer.declare_layers(new)
        self._layers |= {layer.name: layer for layer in new}
        if record.parameters and not self._has_parameters:
            # Not before: the parameters of lazy modules have no size until the first forward pass.
            writer.declare_parameters(self._meter.parameters)
            self._has_parameters = True
            self._estimate_size()

    def _estimate_size(self) -> None:
        """Say so once where the recording will be large."""
        layers = self._layers.values()
        size = estimated_bytes(
            layers=len(layers),
            units=sum(layer.unit_count for layer in layers),
            parameters=len(self._meter.parameters),
            records=MANY,
            histograms=self._cadences.histograms.below(MANY),
            unit_records=self._cadences.units.below(MANY),
        )
        if size > LARGE:
            _logger.warning(
                "covshift: %s records of this model take about %.1f GB; fewer layers (layers=), or slower cadences of "
                "units and histograms (units_every=, histograms_every=), take less",
                f"{MANY:,}",
                size / 1e9,
            )

    def give_scalars(self, rows: Sequence[schema.Row]) -> None:
        """Take rows of logged scalars; of several ranks, those of the one that writes."""
        if rows and self.writer is not None:
            with self._incidents.guard("scalars"):
                if not self._is_left_to_parent(self.writer):
                    with self._writing:
                        self._append(self.writer, list(rows))

    def wait_for_ranks(self) -> None:
        """Give the last records, and take part in those of ranks that still train, until all have ended."""
        while self._ranks is not None:
            if self._exchange(self._ranks, ENDED) < ENDED:
                continue
            if self._ranks is not None:
                self._ranks.leave()
                self._ranks = None

    def part_from_ranks(self) -> None:
        """Write what is here of records that other ranks may have a part in: an exception ends this rank alone."""
        if self._ranks is not None:
            self._ranks = None
            with self._incidents.guard("record"):
                given, self._waiting = self._waiting, []
                self._pair(given if self.writer is not None else [], ENDED)
                if given:
                    self._incidents.note_once(
                        "parted",
                        "recording",
                        f"an exception ended this rank: its records from step {given[0].step} on are not merged",
                    )

    def snapshot(self, *, flush: bool) -> xr.DataTree:
        """Everything written so far, as :func:`covshift.open` reads it."""
        if self.writer is None:
            raise RecordingError(
                "recording: this recorder was not entered yet, or rank 0 holds what it records: read it inside the "
                'with or after it, and with ranks="merge" on rank 0'
            )
        if flush and self.writer.path is None:
            # On disk the journal is read along; a flush would only leave a partly filled chunk behind.
            self.writer.flush()
        return reader.open(self.writer.target)

    def close(self) -> None:
        """Write what waits. Neither a full disk nor a defect may cost the model, or hide the user's exception."""
        if self.writer is None or self.writer.is_forked:
            return
        try:
            self.writer.keep_warnings(self._incidents.messages)
            self.writer.close()
        except RecordingError as error:
            self._incidents.warn_once("unwritten", "recording", f"the end of the recording is not written: {error}")
        except Exception as error:  # noqa: BLE001 - see Incidents.failed
            self._incidents.failed("recording", error)


def _ends(last: int) -> str:
    return f"its last record is of step {last}" if last >= 0 else "it holds no record"


def _module_of(layer: str) -> str:
    return _SITE.sub("", layer)
