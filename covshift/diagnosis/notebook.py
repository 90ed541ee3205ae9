"""Findings and diagnoses in a notebook: a table whose every word is escaped, since names of layers are data."""

from __future__ import annotations

import html
from collections.abc import Sequence

from covshift.diagnosis.causes import by_severity, following, standing
from covshift.diagnosis.finding import Finding
from covshift.diagnosis.names import short_names
from covshift.diagnosis.threshold import Verdict
from covshift.diagnosis.wording import plural

_MARKS = {
    "bad": ("#b3261e", "\N{BLACK SQUARE}"),
    "watch": ("#b26a00", "\N{BLACK UP-POINTING TRIANGLE}"),
    "ok": ("#3d7480", "\N{BLACK CIRCLE}"),
    "not measured": ("#6b7680", "\N{WHITE CIRCLE}"),
}
"""Colour and shape of a verdict, which also stands there as a word; each readable on white and on black paper."""

_CELL = "text-align: left; vertical-align: top"

_WRAPPED = "overflow-wrap: anywhere"
"""For text with names of layers in it, which may be longer than any line."""

_NAME = 30
"""Most characters of a layer's name in its own cell, whose title holds the full one."""


def finding_html(finding: Finding) -> str:
    """One finding: verdict, check, layer, evidence, and what to try."""
    (layer,) = short_names([finding.layer], width=_NAME)
    return f"<table><tbody>{_row(finding, [], layer, finding.verdict)}</tbody></table>"


def diagnosis_html(sentence: str, findings: Sequence[Finding]) -> str:
    """The sentence, causes with what they explain, and what was not measured; findings that are ok are counted."""
    unknown: list[tuple[Verdict, Finding]] = [(one.verdict, one) for one in findings if one.verdict == "not measured"]
    shown = [*by_severity(findings), *unknown]
    layers = list(dict.fromkeys(one.layer for _, one in shown))
    short = dict(zip(layers, short_names(layers, width=_NAME), strict=True))
    body = "".join(_row(one, following(one, findings), short[one.layer], verdict) for verdict, one in shown)
    fine = sum(one.verdict == "ok" for one in findings)
    head = f'<p style="{_WRAPPED}"><b>{html.escape(sentence)}</b></p>'
    return f"{head}<table><tbody>{body}</tbody></table><p>{plural(fine, 'finding')} ok.</p>"


def _row(finding: Finding, after: Sequence[Finding], layer: str, verdict: Verdict) -> str:
    """A row about ``finding``, which ranks by ``verdict``: by the worst of itself and of what comes ``after`` it."""
    color, mark = _MARKS[verdict]
    word = f'<span style="color: {color}">{mark}</span> {standing(finding, verdict)}'
    told = [html.escape(finding.reason)]
    if finding.advice:
        label = "Needed" if finding.verdict == "not measured" else "To try"
        told.append(f"<i>{label}: {html.escape(finding.advice)}</i>")
    if finding.explained_by:
        told.append(f"Explained by {html.escape(finding.explained_by)}")
    if after:
        told.append(f"Consequences: {plural(len(after), 'other finding')}")
    title = f' title="{html.escape(finding.layer)}"' if layer != finding.layer else ""
    cells = (
        f'<td style="{_CELL}">{word}</td>',
        f'<td style="{_CELL}">{html.escape(finding.check)}</td>',
        f'<td style="{_CELL}"{title}>{html.escape(layer)}</td>',
        f'<td style="{_CELL}; {_WRAPPED}">{"<br>".join(told)}</td>',
    )
    return f"<tr>{''.join(cells)}</tr>"
