"""The gallery shows every figure at every size, in small pictures; CI runs the script that draws them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from covshift.plots import FIGURES

GALLERY = Path(__file__).parents[2] / "docs" / "gallery"
PICTURES = re.findall(r"!\[(.*?)\]\((.*?)\)", (GALLERY / "README.md").read_text())


def test_every_figure_is_shown_at_5_50_and_200_layers():
    assert [name for _, name in PICTURES] == [f"{name}-{size}.png" for name in FIGURES for size in (5, 50, 200)]


@pytest.mark.parametrize(("words", "name"), PICTURES, ids=[name for _, name in PICTURES])
def test_every_picture_is_there_small_and_said_in_words(words, name):
    assert 500 < (GALLERY / name).stat().st_size <= 60_000
    assert len(words) > 30
    assert "not measured" not in words


def test_no_picture_is_left_over():
    assert {path.name for path in GALLERY.glob("*.png")} == {name for _, name in PICTURES}
