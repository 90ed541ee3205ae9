"""Names of rows in one artist stand where ticks would have named them."""

from __future__ import annotations

import io
import re

import matplotlib
import pytest
from matplotlib.figure import Figure

from covshift import plots
from covshift.plots import style
from covshift.plots.row_labels import RowLabels, as_one_artist

TEXT = re.compile(r'<text[^>]*style="(?P<look>[^"]*)"[^>]*\bx="(?P<x>[^"]*)" y="(?P<y>[^"]*)"[^>]*>(?P<text>[^<]*)<')


def texts_of(figure: Figure) -> list[tuple[str, str, float, float]]:
    """Text, look and place of everything written in a figure."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg")
    found = TEXT.finditer(buffer.getvalue())
    return sorted((one["text"], one["look"], float(one["x"]), float(one["y"])) for one in found)


def drawings(made, layers):
    """The same figures twice: maps that share their rows, curves over rows, rows that start below those of a grid."""
    names = [f"backbone.stages.{layer // 10}.$blocks$.{layer % 10}.projection" for layer in range(layers)]
    shares = [made(names=names).share(12, layers) for _ in range(2)]
    differences = made(names=names).differences(7, layers)
    for draw in (lambda: plots.plot_gradient_zeros(*shares), lambda: plots.plot_differences(differences)):
        with style.detached():
            yield style.root(draw()), style.root(draw())


@pytest.mark.parametrize("layers", [1, 5, pytest.param(60, marks=pytest.mark.slow)])
def test_every_text_is_the_one_that_ticks_write_and_stands_within_two_points_of_its_place(made, layers):
    for ticks, artists in drawings(made, layers):
        as_one_artist(artists)
        assert any(isinstance(child, RowLabels) for ax in artists.axes for child in ax.get_children())
        expected, found = texts_of(ticks), texts_of(artists)
        assert [one[:2] for one in found] == [one[:2] for one in expected]
        for (*_, x, y), (*_, expected_x, expected_y) in zip(found, expected, strict=True):
            assert (x, y) == pytest.approx((expected_x, expected_y), abs=2.0)


def test_an_axes_that_shows_no_names_gets_none(made):
    with style.detached():
        figure = style.root(plots.plot_gradient_zeros(*(made().share(12, 5) for _ in range(2))))
    as_one_artist(figure)
    named = [sum(isinstance(child, RowLabels) for child in ax.get_children()) for ax in figure.axes[:2]]
    assert named == [1, 0]
