"""``covshift watch``: a run in the terminal while it trains: verdicts, worst layers, curves."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
import xarray as xr
from numpy.typing import NDArray
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from covshift.analysis import rows
from covshift.cli.common import Debug, Quiet, console, one_line_errors
from covshift.diagnosis import Diagnosis, diagnose
from covshift.diagnosis.causes import by_severity
from covshift.diagnosis.finding import of_layers, worst
from covshift.diagnosis.terminal import STYLES
from covshift.exceptions import SignalNotRecorded
from covshift.store import reader

WORST_LAYERS, CURVES = 8, 6
BARS = "▁▂▃▄▅▆▇█"
SPARK_WIDTH, LAYER_WIDTH = 40, 20


def watch(
    run: Annotated[Path, typer.Argument(help="A recording, usually one that is being written.", show_default=False)],
    seconds: Annotated[float, typer.Option(min=0.1, help="How often to look.")] = 5.0,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Show a run as it trains: verdicts, the worst layers, logged values; ends when the run does.

    Example: covshift watch runs/relu.zarr
    """
    from covshift.cli.following import follow

    with one_line_errors(debug=debug), Live(console=console(quiet=quiet), auto_refresh=False) as live:
        try:
            for goes_on in follow([run], seconds=seconds):
                recording = rows.in_memory(reader.open(run))
                live.update(view(recording, diagnose(recording), goes_on=goes_on), refresh=True)
        except KeyboardInterrupt:
            return


def view(recording: xr.DataTree, diagnosis: Diagnosis, *, goes_on: bool) -> RenderableType:
    """One frame: the run, its sentence, layers counted by verdict, the worst of them, and what was logged."""
    layers = rows.group(recording, "layers")
    steps = layers["step"].values
    reached = f"step {steps[-1]}, {len(steps)} records" if len(steps) else "nothing recorded yet"
    head = f"{recording.attrs.get('run_name', 'run')}: {reached}, {'going on' if goes_on else 'ended'}"
    return Group(
        Text(head, style="bold"),
        Text(diagnosis.sentence),
        _counts(diagnosis),
        _worst_layers(recording, diagnosis),
        _curves(recording),
    )


def sparkline(values: NDArray[np.float64], *, width: int = SPARK_WIDTH) -> str:
    """Values over the steps as bars of eight heights, the last value of each part of ``width``; a blank for NaN.

    Examples
    --------
    >>> sparkline(np.array([0.0, 1.0, np.nan, 7.0])), sparkline(np.array([2.0, 2.0]))
    ('▁▂ █', '▁▁')
    """
    parts = [part[-1] for part in np.array_split(values, min(width, len(values))) if len(part)] if len(values) else []
    shown = np.array(parts, dtype=np.float64)
    known = np.isfinite(shown)
    if not known.any():
        return " " * len(shown)
    low, span = shown[known].min(), np.ptp(shown[known]) or 1.0
    heights = np.round((np.where(known, shown, low) - low) / span * (len(BARS) - 1)).astype(int)
    return "".join(BARS[height] if there else " " for height, there in zip(heights, known, strict=True))


def _counts(diagnosis: Diagnosis) -> Text:
    verdicts: dict[str, list[str]] = {}
    for finding in diagnosis.findings:
        if of_layers([finding.layer]):
            verdicts.setdefault(finding.layer, []).append(finding.verdict)
    counts = Counter(worst(found) for found in verdicts.values())  # type: ignore[arg-type]
    text = Text("layers: ")
    for verdict in ("bad", "watch", "ok", "not measured"):
        text.append(f"{counts[verdict]} {verdict}  ", style=STYLES.get(verdict, ""))
    return text


def _worst_layers(recording: xr.DataTree, diagnosis: Diagnosis) -> Table:
    """Causes first; beside each the size of its gradient, in logarithms, over the steps."""
    table = Table(box=None, pad_edge=False)
    for heading in ("", "check", "layer", "since step", "gradient, log rms"):
        table.add_column(heading, overflow="fold")
    sizes = _gradient_sizes(recording)
    for verdict, finding in by_severity(diagnosis.findings)[:WORST_LAYERS]:
        curve = sparkline(sizes[finding.layer], width=LAYER_WIDTH) if finding.layer in sizes else ""
        since = "" if finding.since_step is None else str(finding.since_step)
        table.add_row(Text(verdict, STYLES[verdict]), Text(finding.check), Text(finding.layer), since, curve)
    return table


def _gradient_sizes(recording: xr.DataTree) -> dict[str, NDArray[np.float64]]:
    try:
        rms = rows.moments(recording, signal="activation_grad")["rms"]
    except SignalNotRecorded:
        return {}
    logs = np.log10(np.where(rms.values > 0, rms.values, np.nan))
    return dict(zip(rows.names(rms).tolist(), logs.T, strict=True))


def _curves(recording: xr.DataTree) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    try:
        logged = rows.group(recording, "scalars").drop_vars("wall_time", errors="ignore")
    except SignalNotRecorded:
        return table
    for name in list(logged.data_vars)[:CURVES]:
        values = logged[name].values
        known = values[np.isfinite(values)]
        last = f"{known[-1]:.4g}" if known.size else "none"
        last += f", no number in {gone} records since" if (gone := rows.ended_before(values)) else ""
        table.add_row(Text(str(name)), last, sparkline(values))
    return table
