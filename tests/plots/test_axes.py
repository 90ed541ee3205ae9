"""Layers from top to bottom with labels that fit, steps where they are."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from covshift.plots import axes, row_labels

steps = st.lists(st.integers(0, 10**6), min_size=1, max_size=40, unique=True).map(sorted)


@given(steps)
def test_every_step_lies_in_its_own_cell(at):
    edges = axes.step_edges(at)
    assert edges.size == len(at) + 1
    assert (edges[:-1] < at).all()
    assert (at < edges[1:]).all()


@given(st.integers(1, 400), st.floats(20, 900))
def test_labels_fit_into_the_height_and_name_both_ends(rows, points):
    kept = row_labels.label_positions(rows, points=points)
    assert kept[0] == 0 or rows == 1 or len(kept) == 1
    assert kept[-1] == rows - 1
    gaps = np.diff(kept) * points / rows
    assert (gaps >= row_labels.LABEL_HEIGHT * 0.999).all()


@pytest.mark.parametrize("layers", [5, 50, 200])
def test_layer_labels_never_overlap(made, new_figure, layers):
    from covshift import plots

    names = [f"backbone.stages.{layer // 10}.blocks.{layer % 10}.attention.projection" for layer in range(layers)]
    figure = new_figure(figsize=(8, axes.layer_height(layers)))
    ax = plots.plot_shift_map(made(names=names).shift(6, layers), ax=figure.subplots())
    figure.draw_without_rendering()
    boxes = [label.get_window_extent() for label in ax.get_yticklabels()]
    tops = sorted((box.y0, box.y1) for box in boxes)
    assert len(boxes) >= min(layers, 12)
    assert all(below[1] <= above[0] + 1.0 for below, above in itertools.pairwise(tops))


def test_the_first_layer_stands_on_top(made, new_figure):
    from covshift import plots

    ax = plots.plot_shift_map(made().shift(3, 5), ax=new_figure().subplots())
    low, high = ax.get_ylim()
    assert low > high
    assert ax.get_yticklabels()[0].get_text() == "conv0"


@pytest.mark.parametrize(
    ("ends", "words"),
    [((1.5e-4, 6e-3), "2·10⁻⁴ 5·10⁻⁴ 10⁻³ 2·10⁻³ 5·10⁻³"), ((1.5e-3, 0.06), "0.002 0.005 0.01 0.02 0.05")],
)
def test_a_logarithmic_axis_has_one_notation(new_figure, ends, words):
    ax = new_figure().subplots()
    ax.set_yscale("log")
    ax.set_ylim(*ends)
    axes.label_amounts(ax.yaxis)
    ax.get_figure().draw_without_rendering()
    assert " ".join(label.get_text() for label in ax.get_yticklabels() if label.get_text()) == words


@given(st.lists(st.sampled_from([1.0, float("nan"), float("inf")]), max_size=12))
def test_isolated_records_are_those_a_line_does_not_join(values):
    pairs = [at for at in range(len(values) - 1) if values[at] == values[at + 1] == 1.0]
    joined = {end for at in pairs for end in (at, at + 1)}
    assert axes.isolated(values) == [at for at, value in enumerate(values) if value == 1.0 and at not in joined]


def test_own_line_breaks_survive_wrapping_and_per_cent_stays_with_its_number():
    broken = axes.wrapped("gradient zeros\nconv0: 0 % to 100 %", width=14)
    assert broken.replace("\N{NO-BREAK SPACE}", "~") == "gradient zeros\nconv0: 0~% to\n100~%"
