"""The data of all layer sections as one piece of text for the page: JSON, deflated, in base64.

Base64 holds none of the characters that could end a script element, so names need no escaping here; the script of the
page writes them as text.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Mapping
from typing import Any

from matplotlib.colors import to_hex

from covshift.plots import style
from covshift.reporting.charts import LEVELS

PAGE_STEPS = 32_000
"""Steps drawn of all layers of a page together; what a page of 5 MB has room for."""

COLORS = {
    "ink": style.INK,
    "muted": style.MUTED,
    "line": style.LINE,
    "accent": style.ACCENT,
    "second": style.SECOND,
    "zero": style.ZERO,
    "bad": style.VERDICTS["bad"].color,
    "shade": f"{style.INK}29",
    **{f"run-{run}": color for run, color in enumerate(style.RUN_COLORS)},
}
"""Colours by role, as on a light page; a dark page turns the finished picture round.

A shade is thin ink: a sixth of it is told from paper on either page, where a grey of its own would vanish on one.
"""


def block(told: Mapping[str, Any]) -> str:
    """``told`` and the colours to draw it in, as the page embeds it."""
    shades = style.AMOUNT([level / LEVELS for level in range(LEVELS + 1)])
    whole = {"colors": COLORS, "palette": [to_hex(shade) for shade in shades], **told}
    text = json.dumps(whole, separators=(",", ":"), allow_nan=False)
    return base64.b64encode(zlib.compress(text.encode())).decode("ascii")


def unpacked(text: str) -> dict[str, Any]:
    """Inverse of :func:`block`."""
    told: dict[str, Any] = json.loads(zlib.decompress(base64.b64decode(text)))
    return told
