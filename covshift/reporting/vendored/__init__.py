"""The charting library inside the page: one released file and its style sheet, unchanged, with their licence.

``vendored.json`` pins version and checksums; a test compares them, so that an update is a decision. Nothing is ever
fetched.
"""

from __future__ import annotations

import json
from importlib import resources
from typing import Any


def script() -> str:
    """The library as one script, its licence before it, as the licence asks."""
    return f"/*\n{_text('uPlot.LICENSE')}\n*/\n{_text('uPlot.iife.min.js')}"


def style_sheet() -> str:
    """The style sheet of the library."""
    return _text("uPlot.min.css")


def credit() -> str:
    """Name, version and licence of the library."""
    told = manifest()
    return f"{told['name']} {told['version']} ({told['license']} licence)"


def manifest() -> dict[str, Any]:
    """What is vendored: name, version, licence, source and the SHA-256 of every file."""
    told: dict[str, Any] = json.loads(_text("vendored.json"))
    return told


def _text(name: str) -> str:
    return resources.files("covshift.reporting.vendored").joinpath(name).read_text(encoding="utf-8")
