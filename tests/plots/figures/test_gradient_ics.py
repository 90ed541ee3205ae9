"""Gradient ICS: norms, cosines and parts are those measured, a change of zero is an arrow."""

from __future__ import annotations

import itertools

import numpy as np

from covshift import plots


class TestGradientICS:
    def test_numbers_of_the_cosine_stand_apart_however_far_it_reaches(self, made):
        ics, parts = made().ics(26), made().attribution(26)
        ics["cosine"][1] = -0.95
        ax = plots.plot_gradient_ics(ics, parts).axes[1]
        ax.get_figure(root=True).canvas.draw()
        boxes = [label.get_window_extent() for label in ax.get_xticklabels() if label.get_text()]
        assert len(boxes) >= 3
        assert all(left.x1 + 2 < right.x0 for left, right in itertools.pairwise(boxes))

    def test_norms_cosines_and_parts_are_those_measured(self, made, line):
        ics, parts = made().ics(6), made().attribution(6)
        norms, cosines, movement = plots.plot_gradient_ics(ics, parts).axes
        np.testing.assert_array_equal(line(norms, "change by the layers below").get_xdata(), ics["ics"].values)
        floor = line(norms, "change by another minibatch (floor)")
        np.testing.assert_array_equal(floor.get_xdata(), ics["gradient_noise"].values)
        np.testing.assert_array_equal(cosines.get_lines()[0].get_xdata(), ics["cosine"].values)
        widths = [bar.get_width() for bar in movement.patches]
        np.testing.assert_array_equal(widths, [*parts["upstream_rms"].values, *parts["own_rms"].values])

    def test_a_change_of_zero_is_an_arrow(self, made, line):
        ics = made().ics(6)
        ics["ics"][0] = 0.0
        arrow = line(plots.plot_gradient_ics(ics).axes[0], "exactly zero")
        assert list(arrow.get_ydata()) == [0]

    def test_the_title_names_the_layer_and_the_floor(self, made, headline):
        ics = made(fill=0.1).ics(4)
        ics["relative_ics"][2], ics["ics_to_noise"][2] = 0.4, 0.25
        assert headline(plots.plot_gradient_ics(ics)) == (
            "Movement below changes the gradient most in 'conv2': by 40 % of its norm, "
            "0.25 times what another minibatch changes (n = 4 layers)"
        )

    def test_where_no_gradient_changes_the_title_says_so(self, made, headline):
        ics = made(fill=0.1).ics(4)
        ics["relative_ics"][:] = [np.nan, 0.0, np.nan, 0.0]
        assert headline(plots.plot_gradient_ics(ics)) == "Movement below changes no gradient (n = 4 layers)"

    def test_gradients_of_zero_are_told_from_those_that_were_not_measured(self, made):
        ics = made().ics(4)
        for value, words in ((0.0, "exactly 0"), (np.nan, "not measured")):
            for name in ("ics", "gradient_noise", "gradient_norm"):
                ics[name][:] = value
            told = [text.get_text() for text in plots.plot_gradient_ics(ics).axes[0].texts]
            assert told == [f"change of the gradient: {words}"]

    def test_without_a_second_minibatch_there_is_no_floor(self, made, labels, headline):
        ics = made().ics(4)
        ics["gradient_noise"][:] = ics["ics_to_noise"][:] = np.nan
        figure = plots.plot_gradient_ics(ics)
        assert "change by another minibatch (floor)" not in labels(figure.axes[0])
        assert "minibatch" not in headline(figure)
