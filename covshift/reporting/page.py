"""From content to HTML: templates, one style sheet, one script, and numbers that carry the path they came from.

The page is one file without an outside reference; a content security policy allows its own scripts, by their hashes,
and nothing else. Autoescaping is on for every template: names of layers and runs, and whatever was logged, are data.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup, escape

from covshift.exceptions import CovshiftError
from covshift.plots import labels, style
from covshift.reporting import vendored
from covshift.reporting.figures import Picture
from covshift.reporting.verdict_table import (
    alike_findings,
    bare_reason,
    explained,
    runs_by_checks,
    shown_names,
    verdict_table,
)

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


def mean_count(value: float | None) -> str:
    """A count, or a mean of counts with one decimal.

    Examples
    --------
    >>> mean_count(1400), mean_count(12.34), mean_count(None) == labels.MISSING
    ('1,400', '12.3', True)
    """
    return labels.count(value) if value is None or float(value).is_integer() else f"{value:,.1f}"


def _whole(value: int | None) -> str:
    return labels.MISSING if value is None else str(value)


MOST_COURSES = 500
"""Layers of all runs up to which a page holds the table of their first, middle and last record: some 250 kB."""

PRINTERS: Mapping[str, Printer] = {
    "accuracy": accuracy,
    "amount": labels.amount,
    "amount3": lambda value: labels.amount(value, digits=3),
    "amount5": lambda value: labels.amount(value, digits=5),
    "count": mean_count,
    "duration": labels.duration,
    "limit": lambda value: f"{value:g}",
    "share": labels.share,
    "step": _whole,
}
"""How a number of each kind is printed."""


def printed(value: Any, kind: str) -> str:
    """``value`` as numbers of ``kind`` are printed."""
    return PRINTERS[kind](value)


def kind_of_ends(low: float | None, high: float | None) -> str:
    """The kind of amount with the fewest digits that tell the ends of an interval apart.

    Examples
    --------
    >>> kind_of_ends(0.2, 0.4), kind_of_ends(0.331, 0.334), kind_of_ends(0.33331, 0.33332), kind_of_ends(None, None)
    ('amount', 'amount3', 'amount5', 'amount5')
    """
    kinds = ("amount", "amount3", "amount5")
    return next((kind for kind in kinds if printed(low, kind) != printed(high, kind)), kinds[-1])


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


def number_element(content: Mapping[str, Any], pointer: str, kind: str) -> Markup:
    """The number at ``pointer``, printed, in an element that names pointer and kind.

    Examples
    --------
    >>> print(number_element({"runs": [{"share": 0.31}]}, "/runs/0/share", "share"))
    <span data-key="/runs/0/share" data-kind="share">31 %</span>
    """
    text = printed(at(content, pointer), kind)
    return Markup('<span data-key="{}" data-kind="{}">{}</span>').format(pointer, kind, text)


def render(
    content: Mapping[str, Any],
    *,
    pictures: Sequence[Mapping[str, Sequence[Picture]]],
    comparison: Sequence[Picture] = (),
    layer_data: str = "",
    curve_data: str = "",
    refresh_seconds: int | None = None,
) -> str:
    """The page.

    Parameters
    ----------
    content : mapping
        From :func:`covshift.reporting.content.report_content`.
    pictures : sequence of mapping
        Pictures of each run by section, in the order of the runs.
    comparison : sequence of Picture
        Figures that compare several runs.
    layer_data, curve_data : str
        From :func:`covshift.reporting.embedding.block`: the charts of layers, and of logged values side by side.
    refresh_seconds : int, optional
        Let the page read itself again this often; not at all by default.

    Returns
    -------
    str
        A complete HTML document.

    Raises
    ------
    CovshiftError
        If the templates ask for what ``content`` does not hold.
    """
    scripts = [vendored.script(), _own("report.js")]
    numbers = [{row["layer"]: number for number, row in enumerate(run.get("layers", []))} for run in content["runs"]]

    named = [_quoted_names(known) for known in numbers]

    def layer_link(run: int, layer: str, text: str | None = None) -> Markup:
        """The name of a layer, or of a parameter of one, which leads to the layer's section."""
        shown = _breakable(layer) if text is None else escape(text)
        number = numbers[run].get(layer, numbers[run].get(layer.rpartition(".")[0]))
        return shown if number is None else Markup('<a href="#r{}-l{}">{}</a>').format(run, number, shown)

    def linked(run: int, text: str) -> Markup:
        """``text`` with links where it names a layer in quotes."""
        parts = enumerate(named[run].split(text))
        return Markup("").join(layer_link(run, part) if at % 2 else _breakable(part) for at, part in parts)

    return _filled(
        content=content,
        mark_of=_marks(content),
        pictures=pictures,
        comparison_pictures=comparison,
        n=lambda pointer, kind: number_element(content, pointer, kind),
        layer_link=layer_link,
        linked=linked,
        grid_of=verdict_table,
        style_sheet=Markup(vendored.style_sheet() + _style_sheet()),
        scripts=[Markup(script) for script in scripts],
        script_hashes=Markup(" ".join(_hash(script) for script in scripts)),
        layer_data=layer_data,
        curve_data=curve_data,
        refresh_seconds=refresh_seconds,
        courses=sum(map(len, numbers)) <= MOST_COURSES,
    )


def _filled(**names: Any) -> str:
    """The templates with ``names`` put in; what they lack is a fault of this package, and is told as such."""
    try:
        return _environment().get_template("report.html.j2").render(**names)
    except (jinja2.TemplateError, LookupError) as error:
        raise CovshiftError(
            f"the page cannot be written: {error}. The recording is sound, this is a defect of covshift: please report "
            "it with this message; `covshift check` tells the findings meanwhile"
        ) from error


def _hash(script: str) -> str:
    """A script's name in a content security policy."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _marks(content: Mapping[str, Any]) -> list[int]:
    """Number of the mark and colour of each run: its group's, where runs were compared."""
    marks = list(range(len(content["runs"])))
    for number, group in enumerate((content["comparison"] or {}).get("groups", [])):
        for run in group["runs"]:
            marks[run] = number
    return marks


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
    environment.globals |= {
        "svg": lambda picture: Markup(picture.svg),
        "printed": printed,
        "kind_of_ends": kind_of_ends,
        "explained": explained,
        "runs_by_checks": runs_by_checks,
        "shown_names": shown_names,
        "bare": bare_reason,
        "alike_findings": alike_findings,
        "run_marks": RUN_MARKS,
        "vendored": vendored.credit(),
    }
    return environment


_JOINT = re.compile(r"(?<!\d)\.(?=\w)|\.(?=[^\W\d])|_(?=\w)")
"""Where the words of a name meet: a dot or an underscore, but no dot between digits, which may be a decimal point."""


def _breakable(text: str) -> Markup:
    """``text`` with places where a narrow column may break the names in it; numbers stay whole, with their ``%``.

    Examples
    --------
    >>> print(_breakable("block.3.conv_a fell from -0.13 to 0.032, 31 %"))
    block.<wbr>3.<wbr>conv_<wbr>a fell from -0.13 to 0.032, 31&nbsp;%
    """
    return Markup(_JOINT.sub(r"\g<0><wbr>", str(escape(text))).replace(" %", "&nbsp;%"))


def _quoted_names(layers: Collection[str]) -> re.Pattern[str]:
    """Finds names of layers, and of parameters of theirs, between the quotes in which findings set them.

    Examples
    --------
    >>> _quoted_names(["conv1", "conv1.a"]).split("'conv1' and 'conv1.a.weight', not conv1 or 'conv2'")
    ["'", 'conv1', "' and '", 'conv1.a.weight', "', not conv1 or 'conv2'"]
    """
    names = "|".join(re.escape(name) for name in sorted(layers, key=len, reverse=True))
    return re.compile(rf"(?<=')((?:{names})(?:\.\w+)?)(?=')" if names else r"(?!)")


def _own(name: str) -> str:
    return resources.files("covshift.reporting").joinpath("templates", name).read_text(encoding="utf-8")


def _style_sheet() -> str:
    return _own("report.css").replace("/* light */", _roles(LIGHT)).replace("/* dark */", _roles(DARK))


def _roles(colors: Mapping[str, str]) -> str:
    return " ".join(f"--{role}: {color};" for role, color in colors.items())


LIGHT: Mapping[str, str] = {
    "chart-ink": style.INK,
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
    "chart-ink": style.INK,
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
