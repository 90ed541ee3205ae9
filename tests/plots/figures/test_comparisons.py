"""Runs side by side and minus each other: the artists hold what was computed; what chance can do is grey."""

from __future__ import annotations

import numpy as np
import pytest

from covshift import plots
from covshift.exceptions import InvalidArgumentError
from covshift.plots import style


class TestComparison:
    def test_every_layer_has_one_mark_a_run_joined_by_a_line(self, made):
        paired = made().paired(6)
        figure = plots.plot_comparison(paired, measures=["gradient_zero_rate"])
        (ax,) = figure.axes
        for run, drawn in zip(("plain", "linked"), ax.get_lines(), strict=True):
            np.testing.assert_array_equal(drawn.get_xdata(), paired["gradient_zero_rate"].sel(run=run).values)
        joined = np.array([segment[:, 0] for segment in ax.collections[0].get_segments()])
        values = paired["gradient_zero_rate"].values
        np.testing.assert_array_equal(joined, np.column_stack([values.min(axis=0), values.max(axis=0)]))

    def test_a_run_keeps_colour_and_marker_in_every_panel(self, made):
        figure = plots.plot_comparison(made().paired(6), made().curves(9))
        looks = [
            [(artist.get_color(), artist.get_marker()) for artist in ax.get_lines()]
            for band in figure.subfigs
            for ax in band.axes
        ]
        assert len(looks) == 6
        assert all(panel == looks[0] for panel in looks)

    def test_curves_hold_what_was_logged_without_the_gaps(self, made, left_title):
        curves = made().curves(9)
        curves["loss"][0, 3] = np.nan
        upper = plots.plot_comparison(made().paired(6), curves).subfigs[0]
        drawn = upper.axes[0].get_lines()[0]
        np.testing.assert_array_equal(drawn.get_xdata(), [0, 1, 2, 4, 5, 6, 7, 8])
        assert left_title(upper.axes[0]).startswith("loss at the end: ")

    def test_the_title_names_the_layer_in_which_runs_differ_most(self, made, left_title):
        paired = made(fill=0.5).paired(6)
        paired["gradient_zero_rate"][:, 3] = [0.25, 0.75]
        figure = plots.plot_comparison(paired, measures=["gradient_zero_rate"])
        assert left_title(figure.axes[0]) == "gradient zeros conv3: 25 % to 75 %"

    def test_a_zero_on_a_logarithmic_axis_is_an_arrow_at_its_edge(self, made):
        paired = made().paired(6)
        paired["gradient_rms"][1, 4] = 0.0
        ax = plots.plot_comparison(paired, measures=["gradient_rms"]).axes[0]
        (arrow,) = [artist for artist in ax.get_lines() if artist.get_marker() == "<"]
        assert (list(arrow.get_xdata()), list(arrow.get_ydata())) == ([0.0], [4])

    def test_a_layer_that_one_run_lacks_still_has_the_other_runs_mark(self, made):
        paired = made().paired(3)
        paired["activation_sd"][0, 1] = np.nan
        ax = plots.plot_comparison(paired, measures=["activation_sd"]).axes[0]
        assert np.isnan(ax.get_lines()[0].get_xdata()[1])
        assert np.isfinite(ax.get_lines()[1].get_xdata()[1])

    def test_measures_nobody_recorded_are_left_out(self, made, left_title):
        paired = made().paired(3)
        paired["structural_rate"][:] = np.nan
        drawn = [left_title(ax).split(" conv")[0] for ax in plots.plot_comparison(paired).axes]
        assert drawn == ["gradient zeros", "gradient rms", "activation sd", "shift, sd"]

    def test_an_unknown_measure_is_refused_by_name(self, made):
        with pytest.raises(InvalidArgumentError, match="no momentum in the comparison; it has gradient_zero_rate"):
            plots.plot_comparison(made().paired(3), measures=["momentum"])

    def test_a_measure_of_the_users_own_is_drawn_too(self, made, left_title):
        paired = made().paired(3).assign(entropy=(("run", "layer"), np.arange(6.0).reshape(2, 3)))
        ax = plots.plot_comparison(paired, measures=["entropy"]).axes[0]
        assert left_title(ax) == "entropy conv0: 0 to 3.0"


class TestDifferences:
    measures = ("structural_rate", "gradient_rms", "activation_sd")

    def test_cells_are_the_differences_and_grey_where_the_interval_covers_zero(self, made, meshes, cells):
        found = made().differences(7, 6)
        figure = plots.plot_differences(found)
        for ax, measure in zip(figure.axes, self.measures, strict=False):
            values, low, high = (found[f"{measure}{end}"].values[0] for end in ("", "_low", "_high"))
            known = np.isfinite(values).any(axis=0)
            covers = (low <= 0) & (high >= 0)
            colored, grey = meshes(ax)
            np.testing.assert_array_equal(cells(colored), np.where(covers, np.nan, values)[:, known])
            np.testing.assert_array_equal(cells(grey) == 1, covers[:, known])
            names = found["layer"].values[known].tolist()
            # Rows that are those of the panel to the left go without names.
            shown = [label.get_text() for label in ax.get_yticklabels()]
            assert shown == ([] if measure == "activation_sd" else names)

    def test_the_scale_is_centred_on_zero_and_the_same_for_every_group(self, made, meshes):
        found = made().differences(7, 40, groups=("linked", "batch-norm"))
        figure = plots.plot_differences(found)
        assert [title.split(" minus ")[0] for title in style.titles_of(figure)[:2]] == ["linked", "batch-norm"]
        above, below, scales = figure.subfigs
        for upper, lower, scale, measure in zip(above.axes, below.axes, scales.axes, self.measures, strict=True):
            ends = [meshes(ax)[0].norm for ax in (upper, lower)]
            assert scale.get_xlim() == (ends[0].vmin, ends[0].vmax)
            assert "difference" in scale.get_xlabel()
            sizes = np.abs(found[measure].values[np.isfinite(found[measure].values)])
            assert {(norm.vmin, norm.vmax) for norm in ends} == {(-ends[0].vmax, ends[0].vmax)}
            assert 0.97 <= np.mean(sizes <= ends[0].vmax) <= 0.99

    def test_one_seed_greys_nothing_and_is_called_an_illustration(self, made, meshes, cells):
        figure = plots.plot_differences(made().differences(4, 6, seeds=1))
        assert "one seed each: an illustration" in figure.subfigs[0].get_suptitle()
        assert all(np.isnan(cells(meshes(ax)[1])).all() for ax in figure.axes[:3])
        assert [text.get_text() for text in figure.subfigs[-1].legends[0].texts] == ["not measured"]

    def test_what_was_left_out_is_said(self, made):
        figure = plots.plot_differences(made().differences(4, 6))
        assert "left out as unmatched: 2 steps and 1 layer" in figure.subfigs[0].get_suptitle()

    def test_the_title_names_the_furthest_cell_that_is_not_grey(self, made, left_title):
        found = made(fill=0.0).differences(4, 6)
        for name, value in (("structural_rate", -0.4), ("structural_rate_low", -0.5), ("structural_rate_high", -0.3)):
            found[name][0, 2, 3] = value
        found["structural_rate"][0, 3, 1::2], found["structural_rate_low"][0, 3, 1::2] = -0.2, -0.3
        found["structural_rate_high"][0, 3, 1::2] = -0.1
        found["structural_rate"][0, 1, 1] = 0.9
        found["structural_rate_low"][0, 1, 1], found["structural_rate_high"][0, 1, 1] = -0.1, 1.9
        first, second, *_ = plots.plot_differences(found).axes
        said = "conv3 \N{MINUS SIGN}40 points, step 20; 4 of 12 cells not grey"
        assert left_title(first) == f"Structural zeros at z {said}"
        assert left_title(second) == "Gradient rms no difference"

    def test_an_infinite_difference_lies_beyond_all_others_and_is_counted(self, made, meshes, cells, left_title):
        found = made().differences(4, 6, seeds=1)
        found["gradient_rms"][0, :2, 3] = np.inf
        figure = plots.plot_differences(found)
        drawn = cells(meshes(figure.axes[1])[0])
        others = np.delete(drawn.ravel(), [3, 9])
        assert drawn[:2, 3].min() > np.abs(others).max()
        np.testing.assert_array_equal(others, np.delete(found["gradient_rms"].values[0].ravel(), [3, 9]))
        assert left_title(figure.axes[1]) == "Gradient rms 2 of 24 cells exactly zero in plain alone"
        assert "beyond the scale, or exactly zero in plain alone" in [
            t.get_text() for t in figure.subfigs[-1].legends[0].texts
        ]

    def test_no_layer_is_named_where_no_more_cells_are_coloured_than_chance_colours(self, made, left_title):
        found = made(fill=0.0).differences(4, 10)
        found["gradient_rms"][0, 2, 3], found["gradient_rms_low"][0, 2, 3] = 0.4, 0.3
        said = left_title(plots.plot_differences(found).axes[1])
        assert said == "Gradient rms 1 of 40 cells not grey: no more than chance"


def test_large_panels_are_drawn_as_images(made):
    many = made().paired(style.VECTOR_MARKS)
    ax = plots.plot_comparison(many, measures=["w1"]).axes[0]
    assert all(artist.get_rasterized() for artist in ax.get_lines())
