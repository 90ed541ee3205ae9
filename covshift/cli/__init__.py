"""The command line: one file per command, each thin: parse, call, print.

Exit codes: 0 done; 1 the command could not be carried out, or ``check`` found what it was told to fail on; 2 wrong
usage, or nothing could be judged. Errors are one line with the remedy; ``--debug`` shows the traceback.
"""

from __future__ import annotations

from typing import Annotated

import typer

import covshift
from covshift.cli import check, demo, export, info, plot, recover, report, selfcheck, watch

app = typer.Typer(
    name="covshift",
    help="Flight recorder and diagnostic toolkit for the inside of neural networks.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"covshift {covshift.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options of the command itself."""


app.command()(demo.demo)
app.command()(report.report)
app.command()(watch.watch)
app.command()(plot.plot)
app.command()(check.check)
app.command()(info.info)
app.command()(recover.recover)
app.command()(export.export)
app.command()(selfcheck.selfcheck)


def main() -> None:
    """Run the command line."""
    app()
