"""From content to HTML: one template, one style sheet, and numbers that carry the path they came from.

The page is one file without a script or an outside reference. Autoescaping is on for every template: names of layers
and runs, and whatever was logged, are data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup, escape

from covshift.plots import labels, style
from covshift.reporting.figures import Picture

MANY_LAYERS = 60
"""Layers from which the verdict table folds away those that nothing was found in."""

Printer = Callable[[Any], str]


def accuracy(value: float | None) -> str:
    """A share as a percentage with one decimal; never a rounded 100 %.

    Examples
    --------
    >>> accuracy(0.9127), accuracy(0.9999), accuracy(None) == labels.MISSING
    ('91.3 %', '> 99.9 %', True)
    """
    if value is None:
        return labels.MISSING
    return "> 99.9 %" if 0.9995 <= value < 1 else f"{value * 100:.1f} %"


def _whole(value: int | None) -> str:
    return labels.MISSING if value is None else str(value)


PRINTERS: Mapping[str, Printer] = {
    "accuracy": accuracy,
    "amount": labels.amount,
    "amount3": lambda value: labels.amount(value, digits=3),
    "count": labels.count,
    "duration": labels.duration,
    "limit": lambda value: f"{value:g}",
    "share": labels.share,
    "step": _whole,
}
"""How a number of each kind is printed."""


def at(content: Any, pointer: str) -> Any:
    """What stands at ``pointer`` (RFC 6901, as ``/runs/0/name``) in ``content``.

    Examples
    --------
    >>> at({"runs": [{"name": "a"}]}, "/runs/0/name")
    'a'
    """
    for part in pointer.split("/")[1:]:
        content = content[int(part)] if isinstance(content, list) else content[part]
    return content


def number_element(content: Mapping[str, Any], pointer: str, kind: str, *, tag: str = "span") -> Markup:
    """The number at ``pointer``, printed, in an element that names pointer and kind.

    Examples
    --------
    >>> print(number_element({"runs": [{"share": 0.31}]}, "/runs/0/share", "share", tag="td"))
    <td data-key="/runs/0/share" data-kind="share">31 %</td>
    """
    text = PRINTERS[kind](at(content, pointer))
    return Markup('<{0} data-key="{1}" data-kind="{2}">{3}</{0}>').format(tag, pointer, kind, text)


def render(
    content: Mapping[str, Any],
    *,
    pictures: Sequence[Mapping[str, Sequence[Picture]]],
    comparison: Picture | None,
) -> str:
    """The page.

    Parameters
    ----------
    content : mapping
        From :func:`covshift.reporting.content.report_content`.
    pictures : sequence of mapping
        Pictures of each run by section, in the order of the runs.
    comparison : Picture or None
        The figure that compares several runs.

    Returns
    -------
    str
        A complete HTML document.
    """

    def number(pointer: str, kind: str) -> Markup:
        return number_element(content, pointer, kind)

    def cell(pointer: str, kind: str) -> Markup:
        return number_element(content, pointer, kind, tag="td")

    template = _environment().get_template("report.html.j2")
    return template.render(
        content=content,
        positions=[position for position, run in enumerate(content["runs"]) if run["recorded"]],
        pictures=pictures,
        comparison_picture=comparison,
        n=number,
        cell=cell,
        style_sheet=Markup(_style_sheet()),
        run_marks=RUN_MARKS,
        many_layers=MANY_LAYERS,
    )


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("covshift.reporting"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["breakable"] = _breakable
    environment.globals["short_names"] = labels.short_names
    environment.globals["svg"] = lambda picture: Markup(picture.svg)
    return environment


def _breakable(name: str) -> Markup:
    """``name`` with places where a narrow column may break it, after dots and underscores, and none before a ``%``."""
    return Markup(str(escape(name)).replace(".", ".<wbr>").replace("_", "_<wbr>").replace(" %", "&nbsp;%"))


def _style_sheet() -> str:
    sheet = resources.files("covshift.reporting").joinpath("templates", "report.css").read_text(encoding="utf-8")
    return sheet.replace("/* light */", _roles(LIGHT)).replace("/* dark */", _roles(DARK))


def _roles(colors: Mapping[str, str]) -> str:
    return " ".join(f"--{role}: {color};" for role, color in colors.items())


LIGHT: Mapping[str, str] = {
    "page": "#f6f7f8",
    "card": style.PAPER,
    "ink": style.INK,
    "muted": style.MUTED,
    "line": style.LINE,
    "within-floor": style.WITHIN_FLOOR,
    "accent": style.ACCENT,
    "second": style.SECOND,
    "zero": style.ZERO,
    **{f"verdict-{word.replace(' ', '-')}": mark.color for word, mark in style.VERDICTS.items()},
    **{f"run-{run}": color for run, color in enumerate(style.RUN_COLORS)},
}
"""Colours by role on a light page: those of the figures."""

DARK: Mapping[str, str] = {
    "page": "#101418",
    "card": "#181d22",
    "ink": "#e7eaed",
    "muted": "#a3adb8",
    "line": "#303840",
    "within-floor": "#181716",
    "accent": "#ff9466",
    "second": "#6fb3d3",
    "zero": "#5fd0c5",
    "verdict-bad": "#ff7a70",
    "verdict-watch": "#f2ab45",
    "verdict-ok": "#79b7c4",
    "verdict-not-measured": "#8592a0",
    "run-0": "#4fa8dc",
    "run-1": "#ff8f52",
    "run-2": "#37c495",
    "run-3": "#e3a5c8",
    "run-4": "#8fd2f7",
    "run-5": "#f5bd4f",
    "run-6": "#b3bcc6",
    "run-7": "#c8a57e",
}
"""The same roles on a dark page, each light enough to be read there."""

RUN_MARKS: Sequence[str] = (
    '<circle cx="6" cy="6" r="4.5"/>',
    '<rect x="2" y="2" width="8" height="8"/>',
    '<polygon points="6,1 11,10.5 1,10.5"/>',
    '<polygon points="6,0.8 11.2,6 6,11.2 0.8,6"/>',
    '<polygon points="1,1.5 11,1.5 6,11"/>',
    '<polygon points="4,1 8,1 8,4 11,4 11,8 8,8 8,11 4,11 4,8 1,8 1,4 4,4"/>',
    '<polygon points="3,1 6,4 9,1 11,3 8,6 11,9 9,11 6,8 3,11 1,9 4,6 1,3"/>',
    '<polygon points="6,1 11,4.7 9.1,10.6 2.9,10.6 1,4.7"/>',
)
"""The markers of :data:`covshift.plots.style.RUN_MARKERS` as SVG shapes in a box of 12, in the same order."""
