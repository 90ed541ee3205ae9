"""River and shift map: the artists hold the distributions and shifts that were computed; noise is grey."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.colors import to_rgba

from covshift import plots
from covshift.plots import style


class TestActivationRiver:
    def test_cells_hold_the_counts_and_lines_the_quantiles(self, made, meshes, cells, line):
        river = made().river(6)
        ax = plots.plot_activation_river(river)
        drawn = cells(meshes(ax)[0])
        shown = np.isfinite(drawn)
        assert shown.any()
        np.testing.assert_allclose(drawn[shown], river["count"].transpose("step", "cell").values[shown])
        for probability in (1, 25, 50, 75, 99):
            expected = river["quantile"].sel(probability=probability / 100).values
            np.testing.assert_array_equal(line(ax, f"{probability}%").get_ydata(), expected)

    def test_the_title_tells_of_the_last_step_with_a_finite_value(self, made, left_title):
        river = made().river(4)
        river["quantile"].loc[{"step": [20, 30]}] = np.nan
        words = left_title(plots.plot_activation_river(river))
        assert " at step 10 (at step 0: " in words
        assert words.endswith("); no finite value after it")

    def test_a_line_marks_zero(self, made):
        ax = plots.plot_activation_river(made().river(3))
        assert any(np.all(np.asarray(artist.get_ydata()) == 0.0) for artist in ax.get_lines())

    @pytest.mark.parametrize("decades", [0, 5])
    def test_cells_are_even_on_the_axis_they_are_drawn_on(self, made, new_figure, decades):
        rng = np.random.default_rng(0)
        river = made().river(4, values=lambda step: rng.normal(0.0, 10.0 ** (-decades * step / 3), 2000))
        assert river.attrs["scale"] == ("symlog" if decades else "linear")
        figure = new_figure()
        ax = plots.plot_activation_river(river, ax=figure.subplots())
        figure.draw_without_rendering()
        edges = np.append(river["lower"].values, river["upper"].values[-1])
        heights = np.diff(ax.transData.transform(np.column_stack([np.zeros_like(edges), edges]))[:, 1])
        np.testing.assert_allclose(heights, heights.mean(), rtol=1e-6)

    def test_nan_and_infinite_elements_are_marked_where_they_happened(self, made, line):
        values = {1: [np.nan], 3: [np.inf, -np.inf]}
        river = made().river(5, values=lambda step: np.append(np.linspace(-1, 1, 50), values.get(step, [])))
        marked = line(plots.plot_activation_river(river), "NaN or infinite elements")
        np.testing.assert_array_equal(marked.get_xdata(), [10, 30])

    def test_steps_that_leave_the_axis_are_marked_at_the_edge(self, made, line):
        river = made().river(3)
        river["above"][1] = 0.02 * river["finite"][1]
        river["below"][2] = 0.005 * river["finite"][2]
        ax = plots.plot_activation_river(river)
        np.testing.assert_array_equal(line(ax, "more than 1 % above").get_xdata(), [10])
        assert not [artist for artist in ax.get_lines() if artist.get_label() == "more than 1 % below"]

    def test_the_title_states_layer_range_and_step(self, made, left_title):
        ax = plots.plot_activation_river(made().river(4))
        assert left_title(ax).startswith("conv3 activation: median 2.9, 1-99 % in ")
        assert "at step 30 (at step 0: " in left_title(ax)


class TestShiftMap:
    def test_coloured_cells_are_those_above_their_floor_and_grey_the_others(self, made, meshes, cells):
        shift = made().shift(5, 4)
        shift["w1"][0] = np.nan
        shift["off_centre"][1, 2] = True
        ax = plots.plot_shift_map(shift)
        moved, within = (cells(mesh) for mesh in meshes(ax)[:2])
        w1 = shift["w1"].values
        resolved = np.isfinite(w1) & ~shift["off_centre"].values
        np.testing.assert_array_equal(moved, np.where(resolved & (w1 > 0.1), w1, np.nan))
        np.testing.assert_array_equal(np.isfinite(within), resolved & ~(w1 > 0.1))

    @pytest.mark.parametrize("steps", [6, 50])
    def test_one_extreme_early_column_neither_fades_the_rest_nor_goes_unmarked(self, made, line, steps):
        shift = made().shift(steps, 40)
        shift["w1"][0], shift["noise_floor"][:] = np.logspace(3, 15, 40), 1e-3
        figure = plots.plot_shift_map(shift).get_figure()
        norm = figure.axes[0].collections[0].norm
        assert norm.vmax <= 20.0
        limit, usual = norm(0.2), norm(np.median(shift["w1"].values[1:]))
        assert 0.25 < limit < 0.95
        assert usual > 0.25
        marks = line(figure.axes[0], "beyond the scale")
        assert list(marks.get_xdata()) == [0]

    def test_grey_cells_have_the_colour_the_key_names(self, made, meshes):
        ax = plots.plot_shift_map(made().shift(5, 4))
        legend = ax.get_legend()
        key = dict(zip([text.get_text() for text in legend.texts], legend.get_patches(), strict=False))
        assert key["within the noise floor"].get_facecolor() == to_rgba(style.WITHIN_FLOOR)
        assert to_rgba(meshes(ax)[1].cmap(0)) == pytest.approx(to_rgba(style.WITHIN_FLOOR))

    def test_the_title_names_the_furthest_layer_and_step(self, made, left_title):
        shift = made().shift(5, 4)
        shift["w1"][3, 2] = 7.0
        assert left_title(plots.plot_shift_map(shift)).startswith("Furthest: conv2 by 7.0 sd at step 30; ")

    def test_without_movement_the_title_says_so(self, made, left_title):
        assert "No layer shifted beyond its noise floor (20 cells)" in left_title(
            plots.plot_shift_map(made(fill=0.05).shift(5, 4))
        )


def test_order_of_dimensions_does_not_matter(made, new_figure, meshes, cells):
    shift = made().shift(5, 4)
    drawn = [cells(meshes(plots.plot_shift_map(d, ax=new_figure().subplots()))[0]) for d in (shift, shift.transpose())]
    np.testing.assert_array_equal(*drawn)
