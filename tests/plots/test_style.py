"""One look for every figure, evenly spaced amounts, and nothing left behind in the user's settings."""

from __future__ import annotations

import subprocess
import sys

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_rgb, to_rgba

from covshift.exceptions import InvalidArgumentError
from covshift.plots import palette, style


def cielab(colors: np.ndarray) -> np.ndarray:
    """CIE 1976 L*a*b* of sRGB colours under D65: another perceptual space than the one the map is spaced in."""
    linear = np.where(colors <= 0.04045, colors / 12.92, ((colors + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    scaled = linear @ to_xyz.T / np.array([0.9505, 1.0, 1.089])
    curved = np.where(scaled > (6 / 29) ** 3, np.cbrt(scaled), scaled / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.stack(
        [
            116 * curved[:, 1] - 16,
            500 * (curved[:, 0] - curved[:, 1]),
            200 * (curved[:, 1] - curved[:, 2]),
        ],
        axis=1,
    )


def contrast(color: str, background: str) -> float:
    """Contrast ratio of WCAG 2."""

    def luminance(name: str) -> float:
        rgb = np.array(to_rgb(name))
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    bright, dark = sorted((luminance(color), luminance(background)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


@pytest.mark.parametrize(("name", "sign"), [("light", -1), ("dark", 1)])
def test_amounts_leave_the_paper_all_the_way_in_equal_steps(name, sign):
    lab = cielab(palette.PALETTES[name].amount(np.arange(256))[:, :3])
    steps = np.linalg.norm(np.diff(lab[::8], axis=0), axis=1)
    assert (sign * np.diff(lab[:, 0]) > 0).all()
    assert steps.max() < 1.8 * steps.min()


@pytest.mark.parametrize("name", ["light", "dark"])
def test_signed_change_is_nearest_to_the_paper_in_the_middle(name):
    chosen = palette.PALETTES[name]
    away = np.abs(cielab(chosen.change(np.arange(256))[:, :3])[:, 0] - cielab(np.array([to_rgb(chosen.paper)]))[0, 0])
    assert 118 <= away.argmin() <= 138
    assert min(away[0], away[-1]) > 40


# Linear RGB as a dichromat sees it: G. M. Machado, M. M. Oliveira & L. A. F. Fernandes (2009), severity 1.
VISION = {
    "all cones": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "tritanopia": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
    ),
}


@pytest.mark.parametrize("vision", VISION)
@pytest.mark.parametrize("name", ["light", "dark"])
def test_runs_can_be_told_apart_by_every_kind_of_colour_vision(name, vision):
    rgb = np.array([to_rgb(color) for color in palette.PALETTES[name].runs])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ VISION[vision].T, 0.0, 1.0)
    lab = cielab(np.where(seen <= 0.0031308, 12.92 * seen, 1.055 * seen ** (1 / 2.4) - 0.055))
    apart = np.linalg.norm(lab[:, None] - lab[None], axis=2) + 1e3 * np.eye(len(lab))
    assert apart.min() > 15.0


def test_a_cell_without_a_number_is_transparent():
    assert style.AMOUNT(np.ma.masked_all(1))[0, 3] == 0.0


def test_verdicts_differ_in_shape_as_well_as_colour():
    looks = [(mark.marker, mark.filled) for mark in style.VERDICTS.values()]
    assert len(set(looks)) == len({mark.color for mark in style.VERDICTS.values()}) == len(style.VERDICTS) == 4


@pytest.mark.parametrize("name", ["light", "dark"])
def test_text_can_be_read_and_marks_can_be_seen_on_paper(name):
    chosen = palette.PALETTES[name]
    marks = [
        *chosen.runs,
        *(mark.color for mark in chosen.verdicts.values()),
        chosen.target,
        chosen.zero,
        chosen.second,
    ]
    assert min(contrast(color, chosen.paper) for color in (chosen.ink, chosen.muted)) >= 4.5
    assert contrast(chosen.accent, chosen.paper) >= 4.5
    assert min(contrast(color, chosen.paper) for color in marks) >= 2.0


def test_a_theme_that_does_not_exist_is_refused_and_the_old_one_stays():
    with (
        pytest.raises(InvalidArgumentError, match="theme='grey': expected one of 'light', 'dark'"),
        style.theme("grey"),
    ):
        pass
    with pytest.raises(RuntimeError), style.theme("dark"):
        raise RuntimeError
    assert style.look() is palette.LIGHT


def test_no_two_runs_share_colour_or_marker():
    assert len(set(style.RUN_COLORS)) == len(set(palette.RUN_MARKERS)) == len(style.RUN_COLORS)


def test_drawing_leaves_the_settings_as_they_were(subject, made):
    before = dict(matplotlib.rcParams)
    subject(made(), 3, 4)
    assert dict(matplotlib.rcParams) == before


def test_drawing_does_not_depend_on_the_users_settings(made, new_figure):
    from covshift import plots

    def drawn() -> list[object]:
        figure = new_figure()
        ax = plots.plot_shift_map(made().shift(4, 5), ax=figure.subplots())
        figure.draw_without_rendering()
        ticks = [label for label in ax.get_yticklabels() + ax.get_xticklabels() if label.get_text()]
        texts = [*ticks, ax.xaxis.label, ax.yaxis.label, ax.get_legend().texts[0]]
        return [(to_rgba(text.get_color()), text.get_fontsize()) for text in texts]

    plain = drawn()
    with matplotlib.rc_context({"xtick.color": "red", "axes.labelcolor": "red", "axes.labelsize": 20}):
        assert drawn() == plain


def test_what_cannot_be_drawn_on_is_refused(new_figure):
    with pytest.raises(InvalidArgumentError, match=r"ax=.*expected a matplotlib Axes, Figure or SubFigure"):
        style.figure_on("figure", width=1, height=1)


def test_importing_the_figures_leaves_pyplot_alone():
    code = "import sys, covshift.plots; sys.exit('matplotlib.pyplot' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
