"""``covshift selfcheck``: planted faults and healthy twins, and whether the diagnosis knows which is which."""

from __future__ import annotations

import time

import typer

from covshift.cli.common import CANNOT, Debug, Quiet, console, one_line_errors


def selfcheck(quiet: Quiet = False, debug: Debug = False) -> None:
    """Plant known faults in small networks; each must be found in the right layer, and healthy twins stay silent.

    Takes about two minutes on one core. Exits with 1 if any answer is not the known one.

    Example: covshift selfcheck
    """
    # torch is imported when training is asked for: the other commands read recordings without it.
    import torch

    from covshift.selfcheck.suite import quick

    screen, started, wrong, runs = console(quiet=quiet), time.perf_counter(), 0, 0
    threads = torch.get_num_threads()
    # Small tensors: a second thread costs more than it gives, and one makes the run repeatable.
    torch.set_num_threads(1)
    try:
        with one_line_errors(debug=debug):
            for trial, outcome, known in quick():
                runs, wrong = runs + 1, wrong + (not known)
                expected = "found in its layer" if trial.kind == "fault" else "silent"
                flagged = "; ".join([*outcome.bad, *outcome.watch][:4]) or "nothing was flagged"
                said = expected if known else f"NOT {expected}: {flagged}"
                screen.print(f"{'ok  ' if known else 'FAIL'}  {trial.kind:8} {trial.name:28} {said}")
    finally:
        torch.set_num_threads(threads)
    if wrong or not quiet:
        typer.echo(f"{runs - wrong} of {runs} known answers, in {time.perf_counter() - started:.0f} s")
    if wrong:
        raise typer.Exit(CANNOT)
