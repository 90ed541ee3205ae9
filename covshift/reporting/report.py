"""The door: recordings in, one self-contained HTML file out, and its JSON twin where asked for."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from json import dumps
from pathlib import Path
from typing import Any

import xarray as xr

from covshift import schema
from covshift.analysis import arguments, rows
from covshift.diagnosis import Diagnosis
from covshift.exceptions import CovshiftError, InvalidArgumentError, RecordingDamaged
from covshift.reporting import content, embedding, figures, page
from covshift.reporting.compared import compare
from covshift.reporting.drawn_records import FEWEST_STEPS, MOST_STEPS
from covshift.reporting.layer_charts import layer_sections
from covshift.reporting.results import Results, gather

MOST_BYTES = 5_000_000
"""Of a page; see :func:`write_report`."""

Recordings = xr.DataTree | Mapping[str, xr.DataTree | RecordingDamaged] | Sequence[xr.DataTree]


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
    figures_at_most: int = figures.MOST_FIGURES,
    refresh_seconds: int | None = None,
) -> Path:
    """Write a report of one recording, or of several side by side, as one HTML file that opens offline.

    The page begins with the verdict; its numbers carry the path at which the JSON twin holds them.

    Parameters
    ----------
    recordings : DataTree, mapping of str to DataTree or RecordingDamaged, or sequence of DataTree
        One run, or several. A run is called what the mapping says, or else its attribute ``run_name``. One that could
        not be opened is given as the error, and reported as such.
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
    figures_at_most : int, default 15
        Overview figures, drawn by matplotlib; 0 is fastest. Charts of single layers are there all the same.
    refresh_seconds : int, optional
        Let the page read itself again this often, for a report that is rewritten while a run goes on.

    Returns
    -------
    Path
        ``path``, once the file is complete; a report that fails leaves no file behind.

    Raises
    ------
    InvalidArgumentError
        If ``recordings`` is empty or holds something else than recordings, or ``diagnoses`` names an unknown run.
    ReportExists
        If a file stands at ``path`` or ``json`` and ``overwrite`` is False.

    Notes
    -----
    A recording without a single record, or one that is damaged, is reported as such. A page takes 5 MB at most, unless
    its tables alone take more: the more layers and runs, the fewer of their records are drawn, at least two.
    """
    runs = _named(recordings)
    given = dict(diagnoses or {})
    unknown = sorted(set(given) - set(runs))
    if unknown:
        raise InvalidArgumentError(f"diagnoses: no run called {', '.join(unknown)}; runs: {', '.join(runs)}")
    targets = [Path(target) for target in (path, json) if target is not None]
    _demand_free(targets, overwrite=overwrite)
    told, html = _compose(
        runs,
        given,
        title=title or _default_title(runs),
        figures_at_most=figures_at_most,
        refresh_seconds=refresh_seconds,
    )
    texts = [html]
    if json is not None:
        texts.append(dumps(told, indent=1, allow_nan=False, ensure_ascii=False) + "\n")
    for target, text in zip(targets, texts, strict=True):
        _write(target, text)
    return targets[0]


def _compose(
    runs: Mapping[str, xr.DataTree | str],
    diagnoses: Mapping[str, Diagnosis],
    *,
    title: str,
    figures_at_most: int,
    refresh_seconds: int | None,
) -> tuple[dict[str, Any], str]:
    """Content and page of the report; a run that cannot be read is the reason why."""
    results: dict[str, Results] = {}
    told: list[dict[str, Any]] = []
    for name, run in runs.items():
        judged = _judged(name, run, diagnoses.get(name))
        told.append(judged if isinstance(judged, dict) else content.run_content(judged))
        if isinstance(judged, Results):
            results[name] = judged
    compared = compare(told, results, most=figures_at_most) if len(results) > 1 else None
    left = figures_at_most - len(compared.pictures if compared else ())
    report = content.report_content(title, told, comparison=compared.content if compared else None)
    render = partial(
        page.render,
        report,
        pictures=figures.pictures_of_runs(list(runs), results, most=left),
        comparison=compared.pictures if compared else (),
        curve_data=compared.curve_data if compared else "",
        refresh_seconds=refresh_seconds,
    )
    return report, _fitting(render, told, results)


def _fitting(render: Callable[..., str], told: Sequence[Mapping[str, Any]], results: Mapping[str, Results]) -> str:
    """The page with the charts of all layers, drawn at so many records as there is room for."""
    count = sum(len(run.get("layers", ())) for run in told)
    records = max((rows.group(result.recording, "layers").sizes["step"] for result in results.values()), default=0)
    steps = max(min(MOST_STEPS, embedding.PAGE_STEPS // max(count, 1), records), FEWEST_STEPS)
    while True:
        layer_data = _layer_data(told, results, steps=steps) if count else ""
        html = render(layer_data=layer_data)
        excess = len(html.encode()) - MOST_BYTES
        if excess <= 0 or steps == FEWEST_STEPS or not count:
            return html
        left = max(len(layer_data) - excess, 0) / len(layer_data)
        steps = max(min(int(steps * left), steps - 1), FEWEST_STEPS)


def _judged(name: str, run: xr.DataTree | str, diagnosis: Diagnosis | None) -> Results | dict[str, Any]:
    """What the analysis says of a run, or the content that tells why it says nothing."""
    if isinstance(run, str):
        return content.damaged_run(name, run)
    if not _is_recorded(run):
        return content.empty_run(name, run)
    try:
        return gather(name, rows.in_memory(run), diagnosis)
    except (OSError, ValueError, RuntimeError) as error:
        reason = _unreadable(run)
        if not reason:
            raise error
        return content.damaged_run(name, reason)


def _unreadable(recording: xr.DataTree) -> str:
    """Why some chunk of the recording cannot be read, or nothing."""
    for node in recording.subtree:
        for name, variable in node.data_vars.items():
            try:
                variable.compute()
            except (OSError, ValueError, RuntimeError) as error:
                return f"{node.path.lstrip('/')}/{name}: {error}; try `covshift recover`, or restore it from a copy"
    return ""


def _layer_data(told: Sequence[Mapping[str, Any]], results: Mapping[str, Results], *, steps: int) -> str:
    """The charts of all layers of all runs; a run without records has none, but keeps its place."""
    sections = [
        layer_sections(results[run["name"]], steps=steps) if run["recorded"] else {"name": run["name"], "layers": []}
        for run in told
    ]
    return embedding.block({"runs": sections})


def _named(recordings: Recordings) -> dict[str, xr.DataTree | str]:
    """Recordings by name, or the reason why one cannot be read."""
    if isinstance(recordings, Mapping) and not isinstance(recordings, xr.DataTree):
        given: dict[str, Any] = {str(name): recording for name, recording in recordings.items()}
    else:
        given = _by_run_name([recordings] if isinstance(recordings, xr.DataTree) else recordings)
    if not given:
        raise InvalidArgumentError("recordings: none given; expected one recording, or a list or mapping of several")
    return {name: _checked(name, recording) for name, recording in given.items()}


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


def _checked(name: str, recording: Any) -> xr.DataTree | str:
    if isinstance(recording, RecordingDamaged):
        return str(recording)
    if not isinstance(recording, xr.DataTree):
        raise InvalidArgumentError(
            f"recordings: run {name!r} is a {type(recording).__name__}; expected the DataTree of covshift.open"
        )
    if "layers" in recording.children:
        arguments.demand_one_run(recording["layers"].to_dataset())
    try:
        schema.check(recording)
    except RecordingDamaged as damage:
        return str(damage)
    return recording


def _is_recorded(recording: xr.DataTree) -> bool:
    sizes = recording["layers"].sizes
    return bool(sizes["step"] and sizes["layer"])


def _default_title(runs: Mapping[str, object]) -> str:
    names = list(runs)
    return names[0] if len(names) == 1 else f"{len(names)} runs side by side"


def _demand_free(targets: Sequence[Path], *, overwrite: bool) -> None:
    if len(set(targets)) < len(targets):
        raise InvalidArgumentError(f"json='{targets[-1]}': expected another file than that of the page")
    for target in targets:
        if not target.parent.is_dir():
            raise InvalidArgumentError(f"path='{target}': the folder '{target.parent}' does not exist; create it first")
        if target.is_dir():
            raise InvalidArgumentError(f"path='{target}' is a folder: name a file, in it perhaps")
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
