"""Repair of a recording whose writer was killed or whose files were damaged: keeps what is whole, deletes nothing else.

A recording left by a killed writer needs no repair to be read by ``covshift.open`` or resumed; repair folds its
journal for readers that know none, and mends what only damage can break.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from covshift import schema
from covshift.exceptions import RecordingDamaged, RecordingError
from covshift.store import documents, journal, layout
from covshift.store.archive import ROOT_COPY
from covshift.store.completeness import bereft_groups, in_words, keep, lost_files, marked_absent
from covshift.store.integrity import damaged_files
from covshift.store.lock import Lock
from covshift.store.medium import Directory
from covshift.store.opening import ASIDE, LOCK, Opened, fold_tail, loaded


@dataclass(frozen=True)
class Recovery:
    """What :func:`recover` did.

    Attributes
    ----------
    path : Path
        The recording.
    folded : dict of str to int
        Rows taken from the journal, by group.
    records : dict of str to int
        Rows committed now, by group.
    set_aside : Path or None
        Where segments of the journal went that could not be folded to the end.
    notes : list of str
        What was damaged and what was done about it.
    """

    path: Path
    folded: dict[str, int]
    records: dict[str, int]
    set_aside: Path | None
    notes: list[str] = field(default_factory=list)


def recover(target: str | os.PathLike[str]) -> Recovery:
    """Fold the journal of a recording nobody writes, restore a damaged root, and mark the recording closed.

    Files that are lost, and chunks that do not have their checksum, read as absent from then on, with everything else
    of the same rows and layers; a group without its steps or labels is left out. What was there is kept in a directory
    inside ``.covshift``.

    Records of the journal that follow without a gap and have their checksum are folded. Segments that hold anything
    else are moved to a directory inside ``.covshift``, never deleted.

    Raises
    ------
    StoreLocked
        If a writer has it open.
    RecordingError
        If there is no recording at the path.
    RecordingDamaged
        If neither the root nor its copy can be read, or the schema is newer than this covshift knows.
    """
    path = _place(Path(target))
    lock = Lock(path / layout.HIDDEN / LOCK)
    try:
        return _recovered(path, lock)
    except OSError as error:
        if isinstance(error, RecordingError):
            raise
        raise RecordingError(f"recording '{path}' cannot be repaired: {error}") from error
    finally:
        lock.release()


def _place(path: Path) -> Path:
    for place in (path, layout.recording_path(path)):
        if (place / layout.ROOT).is_file() or (place / ROOT_COPY).is_file():
            return place
    raise RecordingError(f"no recording at '{path}': it holds neither {layout.ROOT} nor {ROOT_COPY}")


def _recovered(path: Path, lock: Lock) -> Recovery:
    medium, hidden, notes = Directory(path), path / layout.HIDDEN, []
    root, problem = _root(medium, layout.ROOT)
    if root is None:
        root, worse = _root(medium, ROOT_COPY)
        if root is None:
            raise RecordingDamaged(
                f"recording '{path}' cannot be repaired: {layout.ROOT}: {problem}; {ROOT_COPY}: {worse}; restore it "
                "from a copy"
            )
        medium.put(layout.ROOT, documents.as_json(root))
        notes.append(f"{layout.ROOT} was damaged ({problem}) and is restored from {ROOT_COPY}")
    lost = _lost_marked(medium, root)
    archive, axes = loaded(medium, path)
    archive.warn(lost)
    notes += [*lost, *_metadata_restored(medium, documents.nodes_of(root) or {})]
    tail = journal.tail(hidden, archive.committed, life=archive.life)
    opened = Opened(archive, journal.longer(axes, tail.axes), medium, path, path, hidden, lock, resumed=True)
    aside = fold_tail(opened, tail)
    archive.fold({}, opened.axes, closed=True)
    folded = {group: len(rows) for group, rows in tail.rows.items() if rows}
    committed = {group: count for group, count in archive.committed.items() if count}
    return Recovery(path, folded, committed, aside, [*notes, *tail.damaged, *tail.gaps])


def _lost_marked(medium: Directory, root: dict[str, Any]) -> list[str]:
    """Mark as absent what lost and damaged files held, for good, and say so."""
    nodes = documents.nodes_of(root) or {}
    lost = [*lost_files(medium.root, nodes), *damaged_files(medium.root, nodes)]
    aside = medium.root / layout.HIDDEN / f"{ASIDE}-{uuid.uuid4().hex[:8]}"
    bereft = bereft_groups(lost)
    if schema.LAYERS.name in bereft:
        raise RecordingDamaged(
            f"recording '{medium.root}' cannot be repaired: {in_words(bereft[schema.LAYERS.name], None)}; without "
            "labels the rest means nothing: restore them from a copy"
        )
    notes = []
    marked = [one for one in lost if one.group not in bereft]
    if marked:
        marked_absent(medium, nodes, marked, aside=aside)
        notes.append(
            f"{in_words(marked, None)}: absent since a repair; what stood there, and other variables of the same rows "
            f"and layers, is kept in '{aside}'"
        )
    for group, labels in bereft.items():
        _drop(medium, root, group, aside=aside)
        notes.append(
            f"{in_words(labels, None)}: without them the group '{group}' means nothing and is left out since a repair; "
            f"what was left of it is kept in '{aside}'"
        )
    return notes


def _metadata_restored(medium: Directory, nodes: Mapping[str, Any]) -> list[str]:
    """Write metadata of groups and arrays that are lost as the commit record has them, and say so."""
    missing = [key for key in nodes if medium.get(f"{key}/{layout.ROOT}") is None]
    for key in missing:
        medium.put(f"{key}/{layout.ROOT}", documents.as_json(nodes[key]))
    names = ", ".join(f"'{key}/{layout.ROOT}'" for key in missing)
    return [f"metadata restored from {layout.ROOT}: {names}"] if missing else []


def _drop(medium: Directory, root: dict[str, Any], group: str, *, aside: Path) -> None:
    """Take a group out of the commit record, then away."""
    nodes = documents.nodes_of(root) or {}
    for key in [key for key in nodes if key == group or key.startswith(f"{group}/")]:
        del nodes[key]
    root["attributes"][layout.COMMIT_ATTRIBUTE]["records"].pop(group, None)
    medium.put(layout.ROOT, documents.as_json(root))
    keep(medium, group, aside=aside)
    medium.delete(group)


def _root(medium: Directory, key: str) -> tuple[dict[str, Any] | None, str]:
    """The commit record stored as ``key``, or what is wrong with it."""
    try:
        root = documents.root_of(medium.get(key))
    except ValueError as error:
        return None, str(error)
    attributes = root.get("attributes", {})
    if layout.VERSION_ATTRIBUTE in attributes:
        schema.check_version(attributes)
    for attribute in (layout.VERSION_ATTRIBUTE, layout.COMMIT_ATTRIBUTE):
        if attribute not in attributes:
            return None, f"it has no attribute {attribute}"
    return (root, "") if documents.nodes_of(root) is not None else (None, "it has no consolidated metadata")
