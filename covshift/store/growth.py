"""Whether a recording is still growing, for whoever follows it while it is written."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from covshift.store import layout, lock, reader
from covshift.store.opening import LOCK


@dataclass(frozen=True)
class Growth:
    """How far a recording has come.

    Attributes
    ----------
    records : int
        Rows of all groups, those in the journal included.
    goes_on : bool
        Whether a process writes it. Where the system has no locks: whether nobody closed it.
    """

    records: int
    goes_on: bool


def growth(target: str | os.PathLike[str]) -> Growth:
    """How far the recording in the directory ``target`` has come.

    Raises
    ------
    RecordingError, RecordingDamaged
        As :func:`covshift.store.open`.
    """
    path = reader.existing(Path(target))
    # asked before the records are counted: a writer that ends in between has its last ones among them
    held = lock.is_held(path / layout.HIDDEN / LOCK)
    recording, _ = reader.opened_with_warnings(path)
    records = sum(node.sizes.get("step", 0) for node in recording.subtree)
    closed = bool(recording.attrs[layout.COMMIT_ATTRIBUTE]["closed"])
    return Growth(records, held or (lock.fcntl is None and not closed))
