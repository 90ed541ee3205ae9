"""A matplotlib figure as a piece of a page: inline SVG that follows the page's colours and owns its identifiers.

Heat maps are embedded as raster images by the plots themselves, all else stays vector and text stays text. Nothing of
the result refers to anything outside the page.
"""

from __future__ import annotations

import io
import re
import warnings
from typing import Any
from xml.sax.saxutils import quoteattr

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from covshift.plots import style
from covshift.plots.row_labels import as_one_artist

RASTER_DPI = 144
"""Resolution of embedded heat maps: twice that of a common screen at the figure's natural size."""

HEAVY = 300_000
"""Characters from which the marks of a figure are embedded as an image; its text stays text."""

ROLES = {
    style.INK: "ink",
    style.MUTED: "muted",
    style.LINE: "line",
    style.PAPER: "card",
    style.WITHIN_FLOOR: "within-floor",
    style.ACCENT: "accent",
    style.SECOND: "second",
    style.ZERO: "zero",
    **{mark.color: f"verdict-{word.replace(' ', '-')}" for word, mark in style.VERDICTS.items()},
    **{color: f"run-{number}" for number, color in enumerate(style.RUN_COLORS)},
}
"""Style sheet variable that stands for each colour of the plots, so that a dark page can give it another value."""

_TAG = re.compile(r"<[^<>]+>")
_FONT = re.compile(r"font: (?:(?P<weight>\w+) )?(?P<size>[\d.]+px) [^;\"]*")
_FONT_FAMILY = re.compile(r"font-family: [^;\"]*;? ?")
_NOT_OURS = re.compile(r"<(metadata|style)\b.*?</\1>", flags=re.DOTALL)
_IMAGE = re.compile(r"<image\b[^<>]*>")
_OWN_REFERENCE = re.compile(r"(\bid=\"|xlink:href=\"#|url\(#)")


def inline_svg(figure: Figure, *, prefix: str, label: str) -> str:
    """``figure`` as an ``<svg>`` element to be put into an HTML page.

    Parameters
    ----------
    figure : Figure
        Drawn with the colours of :mod:`covshift.plots.style`.
    prefix : str
        Put before every identifier; one of its own for each figure of a page.
    label : str
        What a screen reader says in place of the picture.

    Returns
    -------
    str
        Markup. The same figure gives the same bytes.
    """
    as_one_artist(figure)
    text = _saved(figure, prefix=prefix)
    if len(text) - sum(len(image) for image in _IMAGE.findall(text)) > HEAVY:
        for axes in figure.get_axes():
            for artist in (*axes.lines, *axes.collections, *axes.patches):
                artist.set_rasterized(True)
        figure.set_layout_engine("none")  # it is laid out; what is an image now takes no other room
        text = _saved(figure, prefix=prefix)
    return _for_page(text, prefix=prefix, label=label, width=figure.get_size_inches()[0] * 96.0)


def _saved(figure: Figure, *, prefix: str) -> str:
    settings: Any = {"svg.fonttype": "none", "svg.hashsalt": prefix, "svg.image_inline": True}
    buffer = io.StringIO()
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        # text stays text, so the reader's fonts draw the characters that this machine's fonts lack
        warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
        # savefig would draw twice, once only to lay the figure out, which drawing does in any case
        figure.set(facecolor="none", dpi=RASTER_DPI)
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        FigureCanvasSVG(figure).print_svg(buffer, metadata=nothing)  # type: ignore[no-untyped-call]
    return buffer.getvalue()


def _for_page(document: str, *, prefix: str, label: str, width: float) -> str:
    body = document[document.index("<svg") :]
    view_box = re.search(r'viewBox="[^"]*"', body)
    assert view_box is not None
    inside = _NOT_OURS.sub("", body[body.index(">") + 1 :]).replace("base64,\n", "base64,")
    # only tags are rewritten: what stands between them is text, which may look like anything
    inside = _TAG.sub(lambda tag: _for_page_tag(tag.group(), prefix=prefix), inside)
    inside = re.sub(r">\s+<", "><", inside)
    attributes = f'{view_box.group()} role="img" aria-label={quoteattr(label)} style="max-width: {width:.0f}px"'
    return f"<svg {attributes}>{inside.strip()}"


def _for_page_tag(tag: str, *, prefix: str) -> str:
    if tag.startswith("<image"):
        tag = re.sub(r' id="[^"]*"', "", tag)  # nothing refers to it, and equal images have equal ones
    tag = _OWN_REFERENCE.sub(rf"\g<1>{prefix}-", tag)
    tag = _FONT_FAMILY.sub("", _FONT.sub(_font, tag))
    for color, role in ROLES.items():
        tag = tag.replace(color, f"var(--{role})")
    return re.sub(r"\s*\n\s*", " ", tag)


def _font(match: re.Match[str]) -> str:
    weight = f"; font-weight: {match['weight']}" if match["weight"] else ""
    return f"font-size: {match['size']}{weight}"
