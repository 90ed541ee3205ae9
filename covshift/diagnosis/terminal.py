"""A diagnosis in a terminal: causes with evidence and advice, what follows from them in a line, what is unknown in one.

It is written to be read at 80 columns: prose wraps, so there are few columns and no row for what another row explains.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from covshift.diagnosis import sentence as sentence_of
from covshift.diagnosis.causes import by_severity, following, standing
from covshift.diagnosis.finding import Finding, of_layers
from covshift.diagnosis.threshold import Verdict
from covshift.diagnosis.wording import plural, quoted

if TYPE_CHECKING:
    from rich.console import Group
    from rich.text import Text

SHOWN = 12
"""Causes shown; there is no use in more at once, and ``to_frame`` has all."""

STYLES: Mapping[Verdict, str] = {"bad": "bold red", "watch": "yellow", "not measured": "dim"}


def shown(sentence: str, findings: Sequence[Finding]) -> Group:
    """What ``rich`` prints of a diagnosis."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    if sentence_of.is_empty(findings):
        return Group(Text(sentence, style="bold"))
    causes = by_severity(findings)
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for verdict, finding in causes[:SHOWN]:
        table.add_row(Text(verdict, style=STYLES[verdict]), _cause(verdict, finding, findings))
    if len(causes) > SHOWN:
        table.add_row("", Text(f"and {plural(len(causes) - SHOWN, 'further cause')}; to_frame() lists all findings"))
    for check, unknown in _unknown(findings).items():
        table.add_row(Text("not measured", style="dim"), _not_measured(check, unknown, findings))
    return Group(Text(sentence, style="bold"), Text(""), table)


def _cause(verdict: Verdict, finding: Finding, findings: Sequence[Finding]) -> Text:
    from rich.text import Text

    text = Text()
    text.append(f"{finding.check}, {quoted(finding.layer)}", style="bold")
    text.append("\n" if finding.verdict == verdict else f": {standing(finding, verdict)}\n")
    text.append(f"{finding.reason}\n")
    text.append(f"Try: {finding.advice}\n", style="italic")
    after = following(finding, findings)
    if after:
        checks = dict.fromkeys(one.check for one in after)
        parts = [f"{check} ({sum(one.check == check for one in after)})" for check in checks]
        text.append(f"Consequences: {', '.join(parts)}\n", style="dim")
    return text


def _unknown(findings: Sequence[Finding]) -> dict[str, list[Finding]]:
    unknown: dict[str, list[Finding]] = {}
    for finding in findings:
        if finding.verdict == "not measured":
            unknown.setdefault(finding.check, []).append(finding)
    return unknown


def _not_measured(check: str, unknown: Sequence[Finding], findings: Sequence[Finding]) -> Text:
    """One line a check: in how many layers, why in the first of them, and what would be needed."""
    from rich.text import Text

    of = len(of_layers([finding.layer for finding in findings if finding.check == check]))
    missing = len(of_layers([finding.layer for finding in unknown]))
    where = f" in {missing} of {plural(of, 'layer')}" if missing else ""
    return Text(f"{check}{where}. {unknown[0].reason}. Needed: {unknown[0].advice}", style="dim")
