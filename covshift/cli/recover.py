"""``covshift recover``: bring a recording that was left open, or damaged, into order."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from covshift.cli.common import Debug, Quiet, one_line_errors


def recover(
    run: Annotated[Path, typer.Argument(help="A recording that nobody is writing.", show_default=False)],
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Repair a recording after a crash: fold its journal, restore a damaged zarr.json, set damaged parts aside.

    What is whole is kept and nothing is deleted. Reading and resuming need no repair after a mere kill.

    Example: covshift recover runs/relu.zarr
    """
    from covshift.store.recovery import recover as repaired

    with one_line_errors(debug=debug):
        recovery = repaired(run)
    if not quiet:
        for note in recovery.notes:
            typer.echo(note)
        folded = ", ".join(f"{count} {group}" for group, count in recovery.folded.items())
        typer.echo(f"from the journal: {folded or 'nothing'}")
        typer.echo("records: " + ", ".join(f"{count} {group}" for group, count in recovery.records.items()))
        if recovery.set_aside is not None:
            typer.echo(f"set aside: {recovery.set_aside}")
    typer.echo(str(recovery.path))
