"""Runs that end in NaN: figures tell up to where values are finite, and call nothing alive after that."""

from __future__ import annotations

import numpy as np
import pytest

from covshift import plots
from covshift.analysis.dead_units import dead_units, survival
from covshift.analysis.ridges import ridges
from covshift.analysis.shift import between_steps
from covshift.schema import Layer


@pytest.fixture
def broken(make_recording):
    """One layer of four units over steps 0 to 50, NaN from step 30 on."""
    rng = np.random.default_rng(0)
    outputs = {step: np.maximum(rng.normal(size=(50, 4)), 0) for step in range(0, 60, 10)}
    steps = {
        step: {"act": {"activation": np.full((50, 4), np.nan) if step >= 30 else out}} for step, out in outputs.items()
    }
    return make_recording(steps, layers=[Layer("act", "ReLU", 0, 1, 0, 4, activation="ReLU")])


def test_a_ridgeline_names_the_steps_without_a_finite_value(broken, left_title):
    words = left_title(plots.plot_ridgeline(ridges(broken, steps=[0, 20, 50])))
    assert " at step 0, " in words
    assert words.endswith(" at step 20; no finite value at step 50")


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ([1.0, None, None], "no finite value after step 0"),
        ([None, None, None], "no finite value"),
        ([1.0], "a shift needs histograms at two steps"),
        ([0.0, 0.0, 0.0], "no layer has a spread at two steps with histograms"),
    ],
)
def test_a_map_without_a_shift_says_why(make_recording, values, why):
    drawn = np.random.default_rng(0).normal(size=(50, 4))
    steps = {
        10 * at: {"fc": {"activation": np.full((50, 4), np.nan) if size is None else size * drawn}}
        for at, size in enumerate(values)
    }
    ax = plots.plot_shift_map(between_steps(make_recording(steps)))
    assert " ".join(ax.texts[0].get_text().split()) == f"shift: not measured ({why})"


def test_curves_of_survival_end_where_values_do(broken, made):
    alive = survival(dead_units(broken))
    assert np.isnan(alive.sel(step=slice(30, None))).all()
    figure = plots.plot_gradient_zeros(made().share(5, 1), alive)
    words = " ".join(figure.axes[1].get_title(loc="left").split())
    assert words.endswith("; no finite value in 1 after step 20")
