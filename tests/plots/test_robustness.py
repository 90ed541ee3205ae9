"""No figure fails, warns or lies where there is little or nothing to draw, or where names are hostile."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.figure import Figure, SubFigure
from matplotlib.text import Text

from covshift import plots


def figure_of(drawn) -> Figure:
    figure = drawn if isinstance(drawn, Figure | SubFigure) else drawn.get_figure()
    while isinstance(figure, SubFigure):
        figure = figure.figure
    return figure


def texts(drawn) -> str:
    return " | ".join(text.get_text() for text in figure_of(drawn).findobj(Text) if text.get_text())


@pytest.mark.parametrize(("steps", "layers"), [(1, 5), (6, 1), (1, 1), (2, 2), (30, 70)])
def test_any_number_of_steps_and_layers_can_be_drawn(subject, made, steps, layers):
    figure_of(subject(made(), steps, layers)).draw_without_rendering()


def test_nothing_but_nan_gives_a_message(subject, made):
    drawn = subject(made(fill=np.nan), 4, 5)
    figure_of(drawn).draw_without_rendering()
    assert "not measured" in texts(drawn) or "no finite values recorded" in texts(drawn) or "not logged" in texts(drawn)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_constant_results_can_be_drawn(subject, made, value):
    figure_of(subject(made(fill=value), 4, 5)).draw_without_rendering()


def test_no_layer_and_no_step_give_a_message(made, new_figure):
    empty = made()
    drawings = [
        plots.plot_verdict_grid(empty.diagnosis(0), ax=new_figure().subplots()),
        plots.plot_activation_river(empty.river(0), ax=new_figure().subplots()),
        plots.plot_shift_map(empty.shift(0, 0), ax=new_figure().subplots()),
        plots.plot_shift_map(empty.shift(0, 3), ax=new_figure().subplots()),
        plots.plot_norm_profile(empty.profile(0, 3), ax=new_figure().subplots()),
        plots.plot_gradient_zeros(empty.share(0, 0), empty.share(0, 0), ax=new_figure()),
        plots.plot_comparison(empty.paired(0), ax=new_figure()),
    ]
    for drawn in drawings:
        figure_of(drawn).draw_without_rendering()
        said = texts(drawn)
        assert "not measured" in said or "recorded" in said or "nothing was measured" in said or "no layer" in said


def test_hostile_names_are_text(subject, made):
    names = ["$x^", "$\\frac{1}$ $", "<script>alert(1)", "a\nb\tc", "\x1b[31m", "layer " * 40]
    drawn = subject(made(names=names), 3, len(names))
    figure_of(drawn).draw_without_rendering()
    shown = ("$x^", "$\\frac{1}$ $", "<script>alert(1)", "a b c", "\ufffd[31m")
    assert subject.name == "activation river" or all(name in texts(drawn) for name in shown)


def test_every_figure_draws_where_it_is_told_and_returns_it(subject, made, new_figure):
    figure = new_figure()
    if subject.several:
        assert subject(made(), 3, 4, ax=figure) is figure
    else:
        ax = figure.subplots()
        assert subject(made(), 3, 4, ax=ax) is ax


def test_every_figure_makes_its_own_where_it_is_not_told(subject, made):
    drawn = subject(made(), 3, 4)
    assert isinstance(drawn, Figure) if subject.several else drawn.get_figure() is not None


def test_panels_can_fill_part_of_a_figure(made, new_figure):
    left, right = new_figure(figsize=(14, 6)).subfigures(1, 2)
    assert plots.plot_gradient_zeros(made().share(3, 4), ax=left) is left
    assert plots.plot_comparison(made().paired(4), made().curves(5), ax=right) is right
    figure_of(left).draw_without_rendering()


def test_every_axis_says_what_it_shows(subject, made):
    drawn = subject(made(), 5, 6)
    figure = figure_of(drawn)
    figure.draw_without_rendering()
    said = texts(drawn)
    assert "layer (n = 6)" in said or "layer, input side on top (n = 6)" in said or "elements per cell" in said
