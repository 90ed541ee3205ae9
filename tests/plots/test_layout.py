"""Figures are laid out as matplotlib's constrained layout lays them out, with a fraction of its measuring."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from covshift import plots
from covshift.plots import style
from covshift.plots.layout import MeasuredOnce

NAMES = [f"backbone.stages.{layer // 10}.blocks.{layer % 10}.attention.projection" for layer in range(60)]


def drawn(made, layout=None):
    """Shares of zeros of many layers with long names: maps side by side, a colour bar, curves, a key."""
    with style.detached():
        figure = style.root(plots.plot_gradient_zeros(*(made(names=NAMES).share(12, 60) for _ in range(2))))
    if layout is not None:
        figure.set_layout_engine(layout)
    figure.draw_without_rendering()
    return figure


def test_what_surrounds_an_axes_is_measured_once_a_drawing(made, monkeypatch):
    measured: Counter[int] = Counter()
    measure = Axes.get_tightbbox

    def counted(ax, *args, **options):
        measured[id(ax)] += 1
        return measure(ax, *args, **options)

    monkeypatch.setattr(Axes, "get_tightbbox", counted)
    figure = drawn(made)
    assert measured == {id(ax): 1 for ax in figure.axes}


def test_every_axes_stands_where_constrained_layout_puts_it(made):
    ours, theirs = drawn(made), drawn(made, "constrained")
    assert len(ours.axes) == len(theirs.axes)
    for one, other in zip(ours.axes, theirs.axes, strict=True):
        np.testing.assert_allclose(one.get_position().extents, other.get_position().extents, atol=0.01)


def test_long_names_of_many_layers_lie_inside_the_figure_and_beside_the_name_of_their_axis(made):
    figure = drawn(made)
    axis = figure.axes[0].yaxis
    labels = [label.get_window_extent() for label in axis.get_majorticklabels()]
    assert len(labels) >= 12
    name = axis.label.get_window_extent()
    assert name.x0 >= -1.0
    assert min(box.x0 for box in labels) >= name.x1
    for ax in figure.axes:
        for part in (ax.xaxis, ax.yaxis):
            box = part.get_tightbbox()
            assert box is None or (box.x0 >= -1.0 and box.x1 <= figure.bbox.x1 + 1.0)


@pytest.mark.parametrize("fails", [False, True])
def test_an_axes_measures_itself_again_once_laid_out(fails, monkeypatch):
    figure = Figure(layout=MeasuredOnce())
    ax = figure.subplots()
    if fails:
        monkeypatch.setattr(type(ax), "get_window_extent", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            figure.draw_without_rendering()
    else:
        figure.draw_without_rendering()
    assert "get_tightbbox" not in vars(ax)
