"""Findings in figures: the loudest is the title, each is marked where it began, its threshold is drawn."""

from __future__ import annotations

from covshift import plots


def test_a_shift_of_units_is_not_told_as_one_of_the_layer(made, left_title, finding):
    moved = finding("shift", "unit_shift", "conv3", value=1.4)
    words = left_title(plots.plot_shift_map(made().shift(5, 4), findings=[moved]))
    assert words.startswith(
        "Layer 'conv3': units shift by 1.4 sd each from one record of units to the next (not drawn)"
    )


class TestFindings:
    def test_a_layer_that_stops_receiving_gradient_is_the_title_and_marked(self, made, line, headline, finding):
        found = [finding("gradient arrives", "gradient_missing", "conv2", since=20)]
        figure = plots.plot_gradient_zeros(made().share(5, 4), findings=found)
        assert headline(figure) == "Layer 'conv2' stops receiving gradient at step 20"
        marks = line(figure.axes[0], "onset of the finding")
        assert (list(marks.get_xdata()), list(marks.get_ydata())) == ([20.0], [2])

    def test_a_finding_on_the_producer_marks_the_row_of_its_nonlinearity(self, made, line, finding):
        rates = made().share(5, 3).assign_coords(producer=("layer", ["a", "b", "c"]))
        found = [finding("gradient zeros", "structural_zeros", "c", since=30)]
        marks = line(plots.plot_gradient_zeros(rates, findings=found).axes[0], "onset of the finding")
        assert list(marks.get_ydata()) == [2]

    def test_others_are_counted_and_the_loudest_comes_first(self, made, left_title, finding):
        found = [finding("shift", "shift", name, since=since) for name, since in (("conv3", 30), ("conv1", 10))]
        ax = plots.plot_shift_map(made().shift(5, 4), findings=found)
        assert left_title(ax).startswith(
            "Layer 'conv1' shifts by 1.0 sd from one histogram to the next since step 10 (and 1 more layer); "
        )

    def test_the_threshold_of_the_rule_is_a_line_on_the_colour_bar(self, made):
        ax = plots.plot_shift_map(made().shift(5, 4))
        bar = next(other for other in ax.get_figure().axes if other is not ax)
        assert [artist.get_ydata()[0] for artist in bar.get_lines() if artist.get_label() == "watch above 0.2"] == [0.2]
        assert "rule: watch above 0.2 sd" in [text.get_text() for text in ax.get_legend().texts]

    def test_a_key_of_many_entries_stays_inside_the_figure(self, made, finding):
        shift = made().shift(50, 30)
        shift["w1"][3] *= 1e4
        ax = plots.plot_shift_map(shift, findings=[finding("shift", "shift", "conv3", since=30)])
        figure = ax.get_figure()
        figure.canvas.draw()
        assert "beyond the scale" in [text.get_text() for text in ax.get_legend().texts]
        assert ax.get_legend().get_window_extent().x1 <= figure.bbox.x1
