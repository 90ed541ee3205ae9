"""Findings and diagnoses in a notebook: a table whose every word is escaped, since names of layers are data."""

from __future__ import annotations

import html
from collections.abc import Sequence

from covshift.diagnosis.finding import SEVERITY, Finding
from covshift.diagnosis.wording import plural

_MARKS = {
    "bad": ("#b3261e", "\N{BLACK SQUARE}"),
    "watch": ("#b26a00", "\N{BLACK UP-POINTING TRIANGLE}"),
    "ok": ("#3d7480", "\N{BLACK CIRCLE}"),
    "not measured": ("#6b7680", "\N{WHITE CIRCLE}"),
}
"""Colour and shape of a verdict, which also stands there as a word; each readable on white and on black paper."""

_CELL = "text-align: left; vertical-align: top"


def finding_html(finding: Finding) -> str:
    """One finding: verdict, check, layer, evidence, and what to try."""
    return f"<table><tbody>{_row(finding, [])}</tbody></table>"


def diagnosis_html(sentence: str, findings: Sequence[Finding]) -> str:
    """The sentence, causes with what they explain, and what was not measured; findings that are ok are counted."""
    shown = [one for one in findings if one.verdict != "ok" and not one.explained_by]
    shown.sort(key=lambda one: SEVERITY.index(one.verdict))
    body = "".join(_row(one, _following(one, findings)) for one in shown)
    fine = sum(one.verdict == "ok" for one in findings)
    head = f"<p><b>{html.escape(sentence)}</b></p>"
    return f"{head}<table><tbody>{body}</tbody></table><p>{plural(fine, 'finding')} ok.</p>"


def _following(cause: Finding, findings: Sequence[Finding]) -> list[Finding]:
    return [one for one in findings if one.explained_by == f"{cause.check} in {cause.layer}"]


def _row(finding: Finding, following: Sequence[Finding]) -> str:
    color, mark = _MARKS[finding.verdict]
    verdict = f'<span style="color: {color}">{mark}</span> {finding.verdict}'
    told = [html.escape(finding.reason)]
    if finding.advice:
        label = "Needed" if finding.verdict == "not measured" else "To try"
        told.append(f"<i>{label}: {html.escape(finding.advice)}</i>")
    if finding.explained_by:
        told.append(f"Explained by {html.escape(finding.explained_by)}")
    if following:
        told.append(f"Consequences: {plural(len(following), 'other finding')}")
    cells = (verdict, html.escape(finding.check), html.escape(finding.layer), "<br>".join(told))
    return "<tr>" + "".join(f'<td style="{_CELL}">{cell}</td>' for cell in cells) + "</tr>"
