"""Zeros of the gradient and its norm over depth: the artists hold what was computed, titles what is lost."""

from __future__ import annotations

import numpy as np
import pytest

from covshift import plots
from covshift.exceptions import InvalidArgumentError


def named(figure):
    """Layers in the key of a figure of survival."""
    return [text.get_text() for text in figure.legends[0].texts if "if the rest is dead" not in text.get_text()]


class TestGradientZeros:
    def test_every_panel_holds_its_shares_on_the_scale_from_none_to_all(self, made, meshes, cells):
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

    def test_the_layers_that_lost_most_are_named(self, made, left_title):
        survival = made(fill=1.0).share(5, 9)
        survival[-1, 4], survival[-1, 7] = 0.25, 0.5
        figure = plots.plot_gradient_zeros(made().share(5, 9), survival)
        ax = figure.axes[1]
        assert named(figure) == ["conv4 (25 %)", "conv7 (50 %)"]
        assert left_title(ax) == "2 of 9 layers have silent units (one line each); fewer fire than at first in 2"

    def test_a_layer_whose_units_wake_up_has_silent_ones_but_lost_none(self, made, left_title):
        survival = made(fill=1.0).share(5, 9)
        survival[:, 4], survival[:, 7] = [0.6, 0.6, 0.7, 0.8, 0.9], [np.nan, 0.6, np.nan, 0.6, 0.6]
        ax = plots.plot_gradient_zeros(made().share(5, 9), survival).axes[1]
        assert left_title(ax) == "2 of 9 layers have silent units (one line each)"

    def test_a_lone_record_of_survival_is_marked(self, made):
        survival = made(fill=1.0).share(5, 2)
        survival[:, 0], survival[:, 1] = [1, np.nan, 1, 1, 1], [0.5, 0.5, 0.5, np.nan, 0.5]
        lines = plots.plot_gradient_zeros(made().share(5, 2), survival).axes[1].get_lines()[:2]
        assert all(one.get_marker() == "o" for one in lines)
        assert lines[0].get_markevery() == [0]
        assert 4 in lines[1].get_markevery()

    def test_limits_on_dead_units_are_named_in_the_key_and_not_over_the_curves(self, made):
        figure = plots.plot_gradient_zeros(made().share(5, 2), made(fill=0.5).share(5, 2))
        assert not figure.axes[1].texts
        keys = {key.get_label(): key for key in figure.legends[0].legend_handles}
        limits = [line for line in figure.axes[1].get_lines() if "if the rest is dead" in str(line.get_label())]
        assert [line.get_ydata()[0] for line in limits] == [0.9, 0.5]
        assert [line.get_label() for line in limits] == [
            "watch below 90 % alive, if the rest is dead",
            "bad below 50 % alive, if the rest is dead",
        ]
        dashes = [keys[line.get_label()]._unscaled_dash_pattern for line in limits]
        assert dashes == [line._unscaled_dash_pattern for line in limits]
        assert dashes[0] != dashes[1]

    def test_the_last_known_share_counts_where_the_last_record_is_missing(self, made):
        survival = made(fill=1.0).share(5, 3)
        survival[3, 1], survival[4, 1] = 0.75, np.nan
        figure = plots.plot_gradient_zeros(made().share(5, 3), survival)
        assert named(figure) == ["conv1 (75 %)"]

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
    def test_lines_hold_the_norms_at_first_middle_and_last_step(self, made, line):
        profile = made().profile(5, 6)
        (ax,) = plots.plot_norm_profile(profile).axes
        assert ax.get_xscale() == "log"
        for step in (0, 20, 40):
            drawn = line(ax, f"step {step}")
            np.testing.assert_array_equal(drawn.get_xdata(), profile["rms"].sel(step=step).values)
            np.testing.assert_array_equal(drawn.get_ydata(), np.arange(6))

    def test_layers_with_an_all_zero_gradient_are_marked_at_the_edge(self, made, line):
        profile = made().profile(3, 6)
        profile["rms"][2, [1, 4]] = 0.0
        (ax,) = plots.plot_norm_profile(profile).axes
        marked = line(ax, "exactly zero at step 20")
        np.testing.assert_array_equal(marked.get_ydata(), [1, 4])
        assert np.isnan(line(ax, "step 20").get_xdata()[[1, 4]]).all()

    @pytest.mark.parametrize(("slope", "words"), [(0.16, "shrinks by 0.16"), (-0.08, "grows by 0.080")])
    def test_the_title_gives_slope_interval_and_total(self, made, left_title, slope, words):
        profile = made().profile(3, 6)
        fitted = {"slope": slope, "slope_low": slope - 0.01, "slope_high": slope + 0.01, "total_decades": 6 * slope}
        profile = profile.assign({name: ("step", np.full(3, value)) for name, value in fitted.items()})
        said = left_title(plots.plot_norm_profile(profile).axes[0])
        low, high = sorted((abs(slope) - 0.01, abs(slope) + 0.01))
        assert said.startswith(f"Gradient {words} decades a layer towards the input at step 20")
        assert f"90 % interval {low:.2g}" in said.replace("0.070", "0.07")
        assert f"to {high:.2g}" in said.replace("0.090", "0.09")

    def test_the_title_says_first_where_the_gradient_is_lost(self, made, left_title):
        profile = made().profile(3, 6)
        profile["vanished"][2] = 2
        said = left_title(plots.plot_norm_profile(profile).axes[0])
        assert said.startswith("Gradient is exactly zero in 2 of 6 layers, elsewhere it shrinks by 0.")

    def test_a_slope_that_was_not_fitted_is_not_claimed(self, made, left_title):
        profile = made().profile(3, 4).assign(slope=("step", np.full(3, np.nan)))
        assert left_title(plots.plot_norm_profile(profile).axes[0]).endswith("no slope fitted")

    def test_chosen_steps_are_drawn_and_others_refused(self, made, labels):
        (ax,) = plots.plot_norm_profile(made().profile(5, 6), steps=[10]).axes
        assert [label for label in labels(ax) if label.startswith("step")] == ["step 10"]
        with pytest.raises(InvalidArgumentError, match=r"steps=\[15\]: \[15\] not recorded; recorded: \[0, 10"):
            plots.plot_norm_profile(made().profile(5, 6), steps=[15])

    def test_guides_have_the_slopes_at_which_the_rule_speaks(self, made, line):
        profile = made().profile(3, 6)
        (ax,) = plots.plot_norm_profile(profile).axes
        for word, limit in (("watch", 0.10), ("bad", 0.15)):
            guide = line(ax, f"{word}: {limit:g} decades a layer")
            slopes = np.diff(np.log10(guide.get_xdata())) / np.diff(guide.get_ydata())
            np.testing.assert_allclose(slopes, limit)
            assert guide.get_xdata()[-1] == profile["rms"].values[-1, -1]

    def test_norms_before_clipping_are_drawn_where_clipping_shortened_them(self, made, line, left_title):
        norms = made().parameter_norms(3, 4)
        norms["before"][2] = 2 * norms["after"][2]
        right = plots.plot_norm_profile(made().profile(3, 6), norms).axes[1]
        np.testing.assert_array_equal(line(right, "step 20").get_xdata(), norms["after"].values[2])
        np.testing.assert_array_equal(line(right, "before clipping").get_xdata(), norms["before"].values[2])
        assert left_title(right) == "Clipping left 50 % of the gradient's length at step 20"
