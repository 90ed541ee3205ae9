"""The colours of every figure by role, light and dark, and the marks that carry them.

Colour never stands alone: a verdict is a shape, a colour and a word; a run is a colour and a marker. Amounts have one
map whose lightness is monotone, so that they survive grey print; signed change has one diverging map.

References
----------
B. Ottosson, A perceptual color space for image processing (2020), for OKLab, in which the maps are evenly spaced. The
run colours on paper are those of M. Okabe & K. Ito, Color universal design (2008), without their yellow; those on dark
were moved until any two differ as much under the deficiencies of colour vision that G. M. Machado et al. (2009) model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from matplotlib.colors import ListedColormap, to_hex, to_rgb
from numpy.typing import NDArray

HATCH = "/////"
"""Fill of what has no number."""

RUN_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")


@dataclass(frozen=True)
class VerdictMark:
    """How one verdict word is shown: a colour, a matplotlib marker, its size in points, and whether it is filled."""

    color: str
    marker: str
    size: float
    filled: bool = True


@dataclass(frozen=True)
class Palette:
    """Colours by role.

    Attributes
    ----------
    ink, muted, line, paper : str
        Text and axes, secondary text, grid lines, background.
    within_floor, not_measured : str
        Cells inside a noise floor; cells without a number, which are hatched as well.
    accent, second, zero : str
        The line that matters most, the one after it, the line at zero.
    target : str
        Thresholds and bands that rules used.
    verdicts : mapping of str to VerdictMark
        The four verdict words, loudest first.
    runs : tuple of str
        One colour a run.
    amount, change : ListedColormap
        How much; and signed change about the middle.
    """

    ink: str
    muted: str
    line: str
    paper: str
    within_floor: str
    not_measured: str
    accent: str
    second: str
    zero: str
    target: str
    verdicts: Mapping[str, VerdictMark]
    runs: tuple[str, ...]
    amount: ListedColormap
    change: ListedColormap

    def sequence(self, count: int) -> list[str]:
        """``count`` colours of the map for amounts, from little to much, all visible on paper."""
        return [to_hex(self.amount(at)) for at in np.linspace(0.3, 1.0, count)]


def _oklab(colors: NDArray[np.float64]) -> NDArray[np.float64]:
    """OKLab coordinates of sRGB colours, both ``(n, 3)``."""
    linear = np.where(colors <= 0.04045, colors / 12.92, ((colors + 0.055) / 1.055) ** 2.4)
    return np.asarray(np.cbrt(linear @ _TO_CONE.T) @ _CONE_TO_LAB.T)


def _srgb(lab: NDArray[np.float64]) -> NDArray[np.float64]:
    """Inverse of :func:`_oklab`, clipped to what a screen can show."""
    linear = (lab @ np.linalg.inv(_CONE_TO_LAB).T) ** 3 @ np.linalg.inv(_TO_CONE).T
    gamma = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * np.maximum(linear, 0.0) ** (1 / 2.4) - 0.055)
    return np.clip(gamma, 0.0, 1.0)


_TO_CONE = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_CONE_TO_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)


def _even_colormap(name: str, anchors: tuple[str, ...], *, size: int = 256) -> ListedColormap:
    """Colour map through ``anchors`` whose neighbours are equally far apart in OKLab."""
    corners = _oklab(np.array([to_rgb(anchor) for anchor in anchors]))
    reached = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(corners, axis=0), axis=1))])
    along = np.linspace(0.0, reached[-1], size)
    lab = np.stack([np.interp(along, reached, corner) for corner in corners.T], axis=1)
    return ListedColormap(_srgb(lab).tolist(), name=name)


def _verdicts(bad: str, watch: str, ok: str, not_measured: str) -> dict[str, VerdictMark]:
    return {
        "bad": VerdictMark(bad, "s", 5.6),
        "watch": VerdictMark(watch, "^", 5.6),
        "ok": VerdictMark(ok, "o", 3.6),
        "not measured": VerdictMark(not_measured, "o", 3.6, filled=False),
    }


LIGHT = Palette(
    ink="#1d2429",
    muted="#5d6975",
    line="#d9dee3",
    paper="#ffffff",
    within_floor="#e9e8e6",
    not_measured="#ffffff",
    accent="#c2410c",
    second="#2c7294",
    zero="#0f766e",
    target="#6b4fa0",
    verdicts=_verdicts("#b3261e", "#d97f00", "#4d8a99", "#8a95a0"),
    runs=("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#4b5563", "#8c6d46"),
    amount=_even_colormap("covshift_amount", ("#dcebee", "#86b9c4", "#2c7294", "#0e2c49")),
    change=_even_colormap(
        "covshift_change", ("#0e2c49", "#2c7294", "#9cc3cf", "#f4f2ef", "#eda97f", "#c2410c", "#5c1c04")
    ),
)

DARK = Palette(
    ink="#e6eaee",
    muted="#a3aeb9",
    line="#343c44",
    paper="#14181c",
    within_floor="#2b3036",
    not_measured="#14181c",
    accent="#ff8a4c",
    second="#6fb3d2",
    zero="#4fc4b4",
    target="#b39ddb",
    verdicts=_verdicts("#ff6b5e", "#f0a830", "#7fb3bf", "#84909c"),
    runs=("#0084e4", "#be5c1f", "#1dd275", "#a765a1", "#b2cfff", "#ffab16", "#74806a", "#e0d0cc"),
    amount=_even_colormap("covshift_amount_dark", ("#1d2f3a", "#2c6582", "#6fb0c0", "#e2f4f2")),
    change=_even_colormap(
        "covshift_change_dark", ("#a8dcee", "#3f86a8", "#1f3d4d", "#22262b", "#5c3320", "#d9642b", "#ffd0b0")
    ),
)

PALETTES: Mapping[str, Palette] = {"light": LIGHT, "dark": DARK}
