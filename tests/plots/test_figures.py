"""What is drawn is what was computed: artists read back, figure by figure."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import xarray as xr
from matplotlib.collections import QuadMesh
from matplotlib.colors import to_rgba

from covshift import plots
from covshift.exceptions import InvalidArgumentError
from covshift.plots import style


def meshes(ax) -> list[QuadMesh]:
    return [artist for artist in ax.collections if isinstance(artist, QuadMesh)]


def cells(mesh: QuadMesh) -> np.ndarray:
    """Numbers of a mesh as (step, layer), NaN where it shows nothing."""
    return np.ma.filled(mesh.get_array().astype(float), np.nan).T


def line(ax, label: str):
    return next(artist for artist in ax.get_lines() if artist.get_label() == label)


def labels(ax) -> list[str]:
    return [str(artist.get_label()) for artist in ax.get_lines()]


def left_title(ax) -> str:
    return " ".join(ax.get_title(loc="left").split())


class TestVerdictGrid:
    words = np.array(
        [["ok", "ok", "watch", ""], ["bad", "not measured", "ok", "ok"], ["ok", "ok", "ok", "ok"]], dtype="<U12"
    )

    def test_every_verdict_stands_at_its_layer_and_check(self, made):
        ax = plots.plot_verdict_grid(made().diagnosis(3, verdicts=self.words))
        for word, mark in style.VERDICTS.items():
            drawn = line(ax, word)
            assert drawn.get_marker() == mark.marker
            assert drawn.get_markeredgecolor() == mark.color
            expected = {(column, row) for row, column in zip(*np.nonzero(self.words == word), strict=True)}
            assert set(zip(drawn.get_xdata(), drawn.get_ydata(), strict=True)) == expected

    def test_every_cell_says_its_verdict_and_an_empty_one_nothing(self, made):
        ax = plots.plot_verdict_grid(made().diagnosis(3, verdicts=self.words))
        assert sorted(text.get_text() for text in ax.texts) == sorted(self.words[self.words != ""].tolist())

    def test_the_title_counts_layers_by_their_worst_check(self, made):
        ax = plots.plot_verdict_grid(made().diagnosis(3, verdicts=self.words))
        assert left_title(ax) == "3 layers by their worst check: 1 bad, 1 watch, 1 ok"

    def test_the_whole_run_is_a_row_but_no_layer(self, made):
        ax = plots.plot_verdict_grid(made(names=["whole run", "a", "b"]).diagnosis(3, verdicts=self.words))
        assert left_title(ax) == "2 layers by their worst check: 1 bad, 1 ok"
        assert ax.get_yticklabels()[0].get_text() == "whole run"

    def test_only_the_worst_rows_are_kept_and_in_their_order(self, made):
        ax = plots.plot_verdict_grid(made().diagnosis(3, verdicts=self.words), rows=2)
        assert [label.get_text() for label in ax.get_yticklabels()] == ["conv0", "conv1"]
        assert left_title(ax).endswith("(1 of them left out: 1 ok)")

    def test_counts_in_title_and_on_the_axis_add_up_to_the_rows_drawn(self, made):
        names = ["whole run", "(input)", *(f"conv{at}" for at in range(9))]
        words = np.full((11, 4), "ok", dtype="<U12")
        words[4:, 0], words[5, 1:] = "bad", "bad"
        ax = plots.plot_verdict_grid(made(names=names).diagnosis(11, verdicts=words), rows=5)
        drawn = [label.get_text() for label in ax.get_yticklabels()]
        assert drawn[:2] == ["whole run", "(input)"]
        assert len(drawn) == 2 + 5
        said = "9 layers by their worst check: 7 bad, 2 ok (4 of them left out: 2 bad, 2 ok)"
        assert left_title(ax) == said
        assert ax.get_ylabel() == "layer, input side on top (n = 5 of 9); no layer: whole run, (input)"

    def test_no_row_is_drawn_while_a_worse_one_or_one_that_causes_it_is_left_out(self, made):
        words = np.full((6, 4), "watch", dtype="<U12")
        words[1, 0] = words[5, 0] = "bad"
        words[1, 1:] = words[5, 1:] = "ok"
        words[3] = "bad"
        cause = SimpleNamespace(layer="conv5", verdict="bad")
        for rows, expected in ((1, ["conv5"]), (2, ["conv3", "conv5"]), (3, ["conv1", "conv3", "conv5"])):
            ax = plots.plot_verdict_grid(made().diagnosis(6, verdicts=words, causes=(cause,)), rows=rows)
            assert [label.get_text() for label in ax.get_yticklabels()] == expected

    def test_rows_below_one_are_refused(self, made):
        with pytest.raises(InvalidArgumentError, match="rows=0: expected at least 1"):
            plots.plot_verdict_grid(made().diagnosis(3), rows=0)


class TestActivationRiver:
    def test_cells_hold_the_counts_and_lines_the_quantiles(self, made):
        river = made().river(6)
        ax = plots.plot_activation_river(river)
        drawn = cells(meshes(ax)[0])
        shown = np.isfinite(drawn)
        assert shown.any()
        np.testing.assert_allclose(drawn[shown], river["count"].transpose("step", "cell").values[shown])
        for probability in (1, 25, 50, 75, 99):
            expected = river["quantile"].sel(probability=probability / 100).values
            np.testing.assert_array_equal(line(ax, f"{probability}%").get_ydata(), expected)

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

    def test_nan_and_infinite_elements_are_marked_where_they_happened(self, made):
        values = {1: [np.nan], 3: [np.inf, -np.inf]}
        river = made().river(5, values=lambda step: np.append(np.linspace(-1, 1, 50), values.get(step, [])))
        marked = line(plots.plot_activation_river(river), "NaN or infinite elements")
        np.testing.assert_array_equal(marked.get_xdata(), [10, 30])

    def test_steps_that_leave_the_axis_are_marked_at_the_edge(self, made):
        river = made().river(3)
        river["above"][1] = 0.02 * river["finite"][1]
        river["below"][2] = 0.005 * river["finite"][2]
        ax = plots.plot_activation_river(river)
        np.testing.assert_array_equal(line(ax, "more than 1 % above").get_xdata(), [10])
        assert not [artist for artist in ax.get_lines() if artist.get_label() == "more than 1 % below"]

    def test_the_title_states_layer_range_and_step(self, made):
        ax = plots.plot_activation_river(made().river(4))
        assert left_title(ax).startswith("conv3 activation: median 2.9, 1-99 % in ")
        assert "at step 30 (at step 0: " in left_title(ax)


class TestShiftMap:
    def test_coloured_cells_are_those_above_their_floor_and_grey_the_others(self, made):
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
    def test_one_extreme_early_column_neither_fades_the_rest_nor_goes_unmarked(self, made, steps):
        shift = made().shift(steps, 40)
        shift["w1"][0], shift["noise_floor"][:] = np.logspace(3, 15, 40), 1e-3
        figure = plots.plot_shift_map(shift).get_figure()
        norm = figure.axes[0].collections[0].norm
        assert norm.vmax <= 20.0
        limit, usual = norm(0.2), norm(np.median(shift["w1"].values[1:]))
        assert 0.25 < limit < 0.95
        assert usual > 0.25
        marks = line(figure.axes[0], "beyond the colours")
        assert list(marks.get_xdata()) == [0]

    def test_grey_cells_have_the_colour_the_key_names(self, made):
        ax = plots.plot_shift_map(made().shift(5, 4))
        legend = ax.get_legend()
        key = dict(zip([text.get_text() for text in legend.texts], legend.get_patches(), strict=False))
        assert key["within the noise floor"].get_facecolor() == to_rgba(style.WITHIN_FLOOR)
        assert to_rgba(meshes(ax)[1].cmap(0)) == pytest.approx(to_rgba(style.WITHIN_FLOOR))

    def test_the_title_names_the_furthest_layer_and_step(self, made):
        shift = made().shift(5, 4)
        shift["w1"][3, 2] = 7.0
        assert left_title(plots.plot_shift_map(shift)).startswith("Furthest: conv2 by 7.0 sd at step 30; ")

    def test_without_movement_the_title_says_so(self, made):
        assert "No layer shifted beyond its noise floor (20 cells)" in left_title(
            plots.plot_shift_map(made(fill=0.05).shift(5, 4))
        )


class TestGradientZeros:
    def test_every_panel_holds_its_shares_on_the_scale_from_none_to_all(self, made):
        rate, structural, survival = (made().share(5, 4) for _ in range(3))
        figure = plots.plot_gradient_zeros(rate, survival, structural=structural)
        for ax, expected in zip(figure.axes[:2], (rate, structural), strict=True):
            np.testing.assert_array_equal(cells(meshes(ax)[0]), expected.values)
            assert meshes(ax)[0].get_clim() == (0.0, 1.0)

    def test_there_is_one_survival_curve_a_layer(self, made):
        survival = made().share(5, 9)
        ax = plots.plot_gradient_zeros(made().share(5, 9), survival).axes[1]
        curves = {tuple(artist.get_ydata()) for artist in ax.get_lines() if len(artist.get_ydata()) == 5}
        assert curves == {tuple(column) for column in survival.values.T}

    def test_equal_survival_curves_are_one_line_as_strong_as_all_of_them(self, made):
        survival = made(fill=1.0).share(5, 9)
        survival[:3, 8] = np.nan
        lines = plots.plot_gradient_zeros(made().share(5, 9), survival).axes[1].get_lines()
        drawn = [line for line in lines if len(line.get_ydata()) == 5]
        known = {int(np.isfinite(line.get_ydata()).sum()): line.get_alpha() for line in drawn}
        assert known == {5: pytest.approx(1 - (1 - 0.4) ** 8), 2: pytest.approx(0.4)}

    def test_the_layers_that_lost_most_are_named(self, made):
        survival = made(fill=1.0).share(5, 9)
        survival[-1, 4], survival[-1, 7] = 0.25, 0.5
        figure = plots.plot_gradient_zeros(made().share(5, 9), survival)
        ax = figure.axes[1]
        assert [text.get_text() for text in figure.legends[0].texts] == ["conv4 (25 %)", "conv7 (50 %)"]
        assert left_title(ax) == "2 of 9 layers lost units (one line each)"

    def test_the_last_known_share_counts_where_the_last_record_is_missing(self, made):
        survival = made(fill=1.0).share(5, 3)
        survival[3, 1], survival[4, 1] = 0.75, np.nan
        figure = plots.plot_gradient_zeros(made().share(5, 3), survival)
        assert [text.get_text() for text in figure.legends[0].texts] == ["conv1 (75 %)"]

    def test_the_title_counts_layers_without_any_gradient(self, made):
        rate = made().share(5, 4)
        rate[-1, :2] = 1.0
        title = " ".join(plots.plot_gradient_zeros(rate).get_suptitle().split())
        assert title == "Gradient zeros at step 40: 2 layers receive no gradient at all"

    def test_else_it_names_the_layer_with_most_zeros(self, made):
        rate = made(fill=0.25).share(5, 4)
        rate[-1, 2] = 0.5
        title = " ".join(plots.plot_gradient_zeros(rate).get_suptitle().split())
        assert title.endswith("most in conv2, 50 % of elements")


class TestNormProfile:
    def test_lines_hold_the_norms_at_first_middle_and_last_step(self, made):
        profile = made().profile(5, 6)
        (ax,) = plots.plot_norm_profile(profile).axes
        assert ax.get_xscale() == "log"
        for step in (0, 20, 40):
            drawn = line(ax, f"step {step}")
            np.testing.assert_array_equal(drawn.get_xdata(), profile["rms"].sel(step=step).values)
            np.testing.assert_array_equal(drawn.get_ydata(), np.arange(6))

    def test_layers_with_an_all_zero_gradient_are_marked_at_the_edge(self, made):
        profile = made().profile(3, 6)
        profile["rms"][2, [1, 4]] = 0.0
        (ax,) = plots.plot_norm_profile(profile).axes
        marked = line(ax, "exactly zero at step 20")
        np.testing.assert_array_equal(marked.get_ydata(), [1, 4])
        assert np.isnan(line(ax, "step 20").get_xdata()[[1, 4]]).all()

    @pytest.mark.parametrize(("slope", "words"), [(0.16, "shrinks by 0.16"), (-0.08, "grows by 0.080")])
    def test_the_title_gives_slope_interval_and_total(self, made, slope, words):
        profile = made().profile(3, 6)
        fitted = {"slope": slope, "slope_low": slope - 0.01, "slope_high": slope + 0.01, "total_decades": 6 * slope}
        profile = profile.assign({name: ("step", np.full(3, value)) for name, value in fitted.items()})
        said = left_title(plots.plot_norm_profile(profile).axes[0])
        low, high = sorted((abs(slope) - 0.01, abs(slope) + 0.01))
        assert said.startswith(f"Gradient {words} decades a layer towards the input at step 20")
        assert f"90 % interval {low:.2g}" in said.replace("0.070", "0.07")
        assert f"to {high:.2g}" in said.replace("0.090", "0.09")

    def test_the_title_says_first_where_the_gradient_is_lost(self, made):
        profile = made().profile(3, 6)
        profile["vanished"][2] = 2
        said = left_title(plots.plot_norm_profile(profile).axes[0])
        assert said.startswith("Gradient is exactly zero in 2 of 6 layers, elsewhere it shrinks by 0.")

    def test_a_slope_that_was_not_fitted_is_not_claimed(self, made):
        profile = made().profile(3, 4).assign(slope=("step", np.full(3, np.nan)))
        assert left_title(plots.plot_norm_profile(profile).axes[0]).endswith("no slope fitted")

    def test_chosen_steps_are_drawn_and_others_refused(self, made):
        (ax,) = plots.plot_norm_profile(made().profile(5, 6), steps=[10]).axes
        assert [label for label in labels(ax) if label.startswith("step")] == ["step 10"]
        with pytest.raises(InvalidArgumentError, match=r"steps=\[15\]: \[15\] not recorded; recorded: \[0, 10"):
            plots.plot_norm_profile(made().profile(5, 6), steps=[15])

    def test_guides_have_the_slopes_at_which_the_rule_speaks(self, made):
        profile = made().profile(3, 6)
        (ax,) = plots.plot_norm_profile(profile).axes
        for word, limit in (("watch", 0.10), ("bad", 0.15)):
            guide = line(ax, f"{word}: {limit:g} decades a layer")
            slopes = np.diff(np.log10(guide.get_xdata())) / np.diff(guide.get_ydata())
            np.testing.assert_allclose(slopes, limit)
            assert guide.get_xdata()[-1] == profile["rms"].values[-1, -1]

    def test_norms_before_clipping_are_drawn_where_clipping_shortened_them(self, made):
        norms = made().parameter_norms(3, 4)
        norms["before"][2] = 2 * norms["after"][2]
        right = plots.plot_norm_profile(made().profile(3, 6), norms).axes[1]
        np.testing.assert_array_equal(line(right, "step 20").get_xdata(), norms["after"].values[2])
        np.testing.assert_array_equal(line(right, "before clipping").get_xdata(), norms["before"].values[2])
        assert left_title(right) == "Clipping left 50 % of the gradient's length at step 20"


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

    def test_curves_hold_what_was_logged_without_the_gaps(self, made):
        curves = made().curves(9)
        curves["loss"][0, 3] = np.nan
        upper = plots.plot_comparison(made().paired(6), curves).subfigs[0]
        drawn = upper.axes[0].get_lines()[0]
        np.testing.assert_array_equal(drawn.get_xdata(), [0, 1, 2, 4, 5, 6, 7, 8])
        assert left_title(upper.axes[0]).startswith("loss at the end: ")

    def test_the_title_names_the_layer_in_which_runs_differ_most(self, made):
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

    def test_measures_nobody_recorded_are_left_out(self, made):
        paired = made().paired(3)
        paired["structural_rate"][:] = np.nan
        drawn = [left_title(ax).split(" conv")[0] for ax in plots.plot_comparison(paired).axes]
        assert drawn == ["gradient zeros", "gradient rms", "activation sd", "shift, sd"]

    def test_an_unknown_measure_is_refused_by_name(self, made):
        with pytest.raises(InvalidArgumentError, match="no momentum in the comparison; it has gradient_zero_rate"):
            plots.plot_comparison(made().paired(3), measures=["momentum"])

    def test_a_measure_of_the_users_own_is_drawn_too(self, made):
        paired = made().paired(3).assign(entropy=(("run", "layer"), np.arange(6.0).reshape(2, 3)))
        ax = plots.plot_comparison(paired, measures=["entropy"]).axes[0]
        assert left_title(ax) == "entropy conv0: 0 to 3.0"


class TestDifferences:
    measures = ("structural_rate", "gradient_rms", "activation_sd")

    def test_cells_are_the_differences_and_grey_where_the_interval_covers_zero(self, made):
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

    def test_the_scale_is_centred_on_zero_and_the_same_for_every_group(self, made):
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

    def test_one_seed_greys_nothing_and_is_called_an_illustration(self, made):
        figure = plots.plot_differences(made().differences(4, 6, seeds=1))
        assert "one seed each: an illustration" in figure.subfigs[0].get_suptitle()
        assert all(np.isnan(cells(meshes(ax)[1])).all() for ax in figure.axes[:3])
        assert [text.get_text() for text in figure.subfigs[-1].legends[0].texts] == ["not measured"]

    def test_what_was_left_out_is_said(self, made):
        figure = plots.plot_differences(made().differences(4, 6))
        assert "left out as unmatched: 2 steps and 1 layer" in figure.subfigs[0].get_suptitle()

    def test_the_title_names_the_furthest_cell_that_is_not_grey(self, made):
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

    def test_an_infinite_difference_lies_beyond_all_others_and_is_counted(self, made):
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

    def test_no_layer_is_named_where_no_more_cells_are_coloured_than_chance_colours(self, made):
        found = made(fill=0.0).differences(4, 10)
        found["gradient_rms"][0, 2, 3], found["gradient_rms_low"][0, 2, 3] = 0.4, 0.3
        said = left_title(plots.plot_differences(found).axes[1])
        assert said == "Gradient rms 1 of 40 cells not grey: no more than chance"


def test_large_panels_are_drawn_as_images(made):
    many = made().paired(style.VECTOR_MARKS)
    ax = plots.plot_comparison(many, measures=["w1"]).axes[0]
    assert all(artist.get_rasterized() for artist in ax.get_lines())


def test_order_of_dimensions_does_not_matter(made, new_figure):
    shift = made().shift(5, 4)
    drawn = [cells(meshes(plots.plot_shift_map(d, ax=new_figure().subplots()))[0]) for d in (shift, shift.transpose())]
    np.testing.assert_array_equal(*drawn)
    assert isinstance(shift, xr.Dataset)
