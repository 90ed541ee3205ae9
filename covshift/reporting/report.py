"""The door: recordings in, one self-contained HTML file out, and its JSON twin where asked for."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from json import dumps
from pathlib import Path
from typing import Any

import xarray as xr

from covshift import schema
from covshift.analysis import comparison
from covshift.diagnosis import Diagnosis, diagnose
from covshift.exceptions import CovshiftError, InvalidArgumentError, RecordingDamaged
from covshift.reporting import content, figures, page
from covshift.reporting.results import gather

Recordings = xr.DataTree | Mapping[str, xr.DataTree] | Sequence[xr.DataTree]


class ReportExists(CovshiftError, FileExistsError):  # noqa: N818 - reads like its sibling RecordingExists
    """A file already stands where a report was to be written; ``overwrite=True`` replaces it."""


def write_report(
    recordings: Recordings,
    path: str | os.PathLike[str],
    *,
    diagnoses: Mapping[str, Diagnosis] | None = None,
    json: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    title: str | None = None,
) -> Path:
    """Write a report of one recording, or of several side by side, as one HTML file that opens offline.

    The page begins with the verdict; its numbers carry the path at which the JSON twin holds them.

    Parameters
    ----------
    recordings : DataTree, mapping of str to DataTree, or sequence of DataTree
        One run, or several. A run is called what the mapping says, or else its attribute ``run_name``.
    path : path-like
        Where the page goes.
    diagnoses : mapping of str to Diagnosis, optional
        Diagnoses by name of the run; a run without one is diagnosed here.
    json : path-like, optional
        Where to put the same numbers and findings as JSON; nowhere by default.
    overwrite : bool, default False
        Replace files that exist.
    title : str, optional
        Heading of the page; made from the names of the runs by default.

    Returns
    -------
    Path
        ``path``, once the file is complete; a report that fails leaves no file behind.

    Raises
    ------
    InvalidArgumentError
        If ``recordings`` is empty or holds something else than recordings, or ``diagnoses`` names an unknown run.
    RecordingDamaged
        If a recording lacks what the schema demands; the message names the run.
    ReportExists
        If a file stands at ``path`` or ``json`` and ``overwrite`` is False.

    Notes
    -----
    A recording without a single record is reported as such. A page of 100 layers takes a few megabytes at most:
    heat maps are embedded as images and long curves thinned by the renderer.
    """
    runs = _named(recordings)
    given = dict(diagnoses or {})
    unknown = sorted(set(given) - set(runs))
    if unknown:
        raise InvalidArgumentError(f"diagnoses: no run called {', '.join(unknown)}; runs: {', '.join(runs)}")
    targets = [Path(target) for target in (path, json) if target is not None]
    _demand_free(targets, overwrite=overwrite)
    told, html = _compose(runs, given, title=title or _default_title(runs))
    texts = [html, dumps(told, indent=1, allow_nan=False, ensure_ascii=False) + "\n"]
    for target, text in zip(targets, texts, strict=False):
        _write(target, text)
    return targets[0]


def _compose(
    runs: Mapping[str, xr.DataTree], diagnoses: Mapping[str, Diagnosis], *, title: str
) -> tuple[dict[str, Any], str]:
    """Content and page of the report."""
    recorded = {name: recording for name, recording in runs.items() if _is_recorded(recording)}
    paired = comparison.paired_layers(recorded) if recorded else None
    told: list[dict[str, Any]] = []
    pictures: list[Mapping[str, Sequence[figures.Picture]]] = []
    for number, (name, recording) in enumerate(runs.items()):
        if paired is None or name not in recorded:
            told.append(content.empty_run(name, recording))
            pictures.append({})
            continue
        diagnosis = diagnoses.get(name) or diagnose(recording)
        result = gather(name, recording, diagnosis, paired.sel(run=name))
        told.append(content.run_content(result))
        pictures.append(figures.run_pictures(result, prefix=f"run-{number}"))
    compared = figures.comparison_picture(recorded, paired) if paired is not None and len(recorded) > 1 else None
    report = content.report_content(title, told)
    return report, page.render(report, pictures=pictures, comparison=compared)


def _named(recordings: Recordings) -> dict[str, xr.DataTree]:
    """Recordings by name, each checked against the schema."""
    if isinstance(recordings, Mapping) and not isinstance(recordings, xr.DataTree):
        runs = {str(name): recording for name, recording in recordings.items()}
    else:
        listed = [recordings] if isinstance(recordings, xr.DataTree) else recordings
        runs = _by_run_name(listed)
    if not runs:
        raise InvalidArgumentError("recordings: none given; expected one recording, or a list or mapping of several")
    for name, recording in runs.items():
        _demand_recording(name, recording)
    return runs


def _by_run_name(listed: Any) -> dict[str, xr.DataTree]:
    if isinstance(listed, str | os.PathLike) or not isinstance(listed, Sequence):
        raise InvalidArgumentError(
            f"recordings={listed!r}: expected the DataTree of covshift.open, or a list or mapping of several"
        )
    runs: dict[str, xr.DataTree] = {}
    for position, recording in enumerate(listed, start=1):
        name = str(getattr(recording, "attrs", {}).get("run_name") or f"run {position}")
        runs[name if name not in runs else f"{name} ({position})"] = recording
    return runs


def _demand_recording(name: str, recording: Any) -> None:
    if not isinstance(recording, xr.DataTree):
        raise InvalidArgumentError(
            f"recordings: run {name!r} is a {type(recording).__name__}; expected the DataTree of covshift.open"
        )
    try:
        schema.check(recording)
    except RecordingDamaged as damage:
        raise RecordingDamaged(f"run {name!r}: {damage}") from damage


def _is_recorded(recording: xr.DataTree) -> bool:
    sizes = recording["layers"].sizes
    return bool(sizes["step"] and sizes["layer"])


def _default_title(runs: Mapping[str, xr.DataTree]) -> str:
    names = list(runs)
    return names[0] if len(names) == 1 else f"{len(names)} runs side by side"


def _demand_free(targets: Sequence[Path], *, overwrite: bool) -> None:
    if len(set(targets)) < len(targets):
        raise InvalidArgumentError(f"json='{targets[-1]}': expected another file than that of the page")
    for target in targets:
        if not target.parent.is_dir():
            raise InvalidArgumentError(f"path='{target}': the folder '{target.parent}' does not exist; create it first")
        if target.exists() and not overwrite:
            raise ReportExists(
                f"'{target}' exists: choose another path, or replace it with overwrite=True (command line: --overwrite)"
            )


def _write(target: Path, text: str) -> None:
    """Put ``text`` at ``target`` whole or not at all."""
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise


def _umask() -> int:
    """The process's mask of permissions; reading it means setting it for an instant."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
