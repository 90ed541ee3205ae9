"""Runs over seeds: intervals, differences and their keys are those computed."""

from __future__ import annotations

import numpy as np
import xarray as xr

from covshift import plots
from covshift.analysis.effects import effect_sizes
from covshift.analysis.seeds import over_seeds


def test_intervals_over_seeds_are_those_computed_and_the_dumbbells_stay_joined(made):
    paired = made().paired(5)
    for end, change in (("low", -0.005), ("high", 0.005)):
        paired[f"activation_sd_{end}"] = paired["activation_sd"] + change
    paired = paired.assign_coords(seeds=("run", [3, 3]))
    figure = plots.plot_comparison(paired, measures=["activation_sd"])
    bars, *intervals = figure.axes[0].collections
    ends = [[segment[:, 0].tolist() for segment in collection.get_segments()] for collection in intervals]
    expected = xr.concat([paired["activation_sd_low"], paired["activation_sd_high"]], "end").transpose(
        "run", "layer", "end"
    )
    np.testing.assert_allclose(ends, expected.values)
    marks = [list(zip(drawn.get_xdata(), drawn.get_ydata(), strict=True)) for drawn in figure.axes[0].get_lines()]
    for bar, pair in zip(bars.get_segments(), zip(*marks, strict=True), strict=True):
        assert sorted(map(tuple, bar.tolist())) == sorted(pair)
    said = [text.get_text() for text in figure.legends[0].texts]
    assert said == ["plain (3 seeds)", "linked (3 seeds)", "90 % interval of the mean over seeds"]


def test_effects_are_drawn_with_their_intervals_and_filled_where_those_leave_zero_out(made, left_title):
    rng, groups = np.random.default_rng(3), {f"{group}{seed}": group for group in ("a", "b") for seed in range(3)}
    drawn = rng.normal(0.5, 0.05, (6, 4)) + np.repeat([[0.0], [0.1]], 3, axis=0) * [[0, 1, 2, 3]]
    coords = {"run": list(groups), "layer": [f"conv{at}" for at in range(4)]}
    paired = xr.Dataset({"structural_rate": (("run", "layer"), drawn)}, coords)
    effects = effect_sizes(paired, groups)
    figure = plots.plot_comparison(over_seeds(paired, groups), effects=effects, measures=["structural_rate"])
    ax = figure.axes[-1] if "minus a" in left_title(figure.axes[-1]) else figure.axes[0]
    value, low, high = (effects[f"structural_rate{end}"].values[0] for end in ("", "_low", "_high"))
    (bars,) = ax.collections
    np.testing.assert_allclose([segment[:, 0] for segment in bars.get_segments()], np.column_stack([low, high]))
    sure = low > 0
    assert 0 < sure.sum() < 4
    filled, open_ = (artist for artist in ax.get_lines() if artist.get_label() == "_b")
    np.testing.assert_array_equal(filled.get_xdata(), value[sure])
    np.testing.assert_array_equal(open_.get_xdata(), value[~sure])
    assert left_title(ax).startswith("structural zeros, minus a conv3: 3")
    assert left_title(ax).endswith(f"{sure.sum()} of 4 leave 0 out")


def test_hollow_marks_have_a_key_and_the_note_on_matching_stands_with_the_runs(made):
    groups = {f"{group}{seed}": group for group in ("a", "b") for seed in range(3)}
    drawn = np.tile([[0.50, 0.50], [0.52, 0.52], [0.54, 0.54]], (2, 1)) + np.repeat([[0, 0], [0, 0.3]], 3, axis=0)
    coords = {"run": list(groups), "layer": ["conv0", "conv1"]}
    paired = xr.Dataset({"structural_rate": (("run", "layer"), drawn)}, coords, {"matching": "Paired by $depth_."})
    effects = effect_sizes(paired, groups)
    figure = plots.plot_comparison(over_seeds(paired, groups), effects=effects, measures=["structural_rate"])
    figure.draw_without_rendering()
    legends = [legend for band in figure.subfigs for legend in band.legends]
    keys = {
        text.get_text(): handle
        for legend in legends
        for text, handle in zip(legend.texts, legend.legend_handles, strict=True)
    }
    assert keys["90 % interval of the difference leaves 0 out"].get_fillstyle() == "full"
    assert keys["hollow: 90 % interval covers 0"].get_fillstyle() == "none"
    assert "Paired by $depth_." in [legend.get_title().get_text() for legend in legends]
    only = plots.plot_comparison(
        over_seeds(paired, groups), effects=effects.isel(layer=[1]), measures=["structural_rate"]
    )
    assert not any(
        "hollow" in text.get_text() for band in only.subfigs for legend in band.legends for text in legend.texts
    )
