"""The command line: one file per command, each thin: parse, call, print.

Exit codes: 0 done; 1 the command could not be carried out, or ``check`` found what it was told to fail on; 2 wrong
usage, or nothing could be judged. Errors are one line with the remedy; ``--debug`` shows the traceback.
"""

from __future__ import annotations

import typer

from covshift.cli import check, demo, export, info, plot, recover, report, selfcheck, watch

app = typer.Typer(
    name="covshift",
    help="Flight recorder and diagnostic toolkit for the inside of neural networks.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
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
