"""The grid of verdicts: what is drawn is what was judged, and no worse row is left out for a better one."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from covshift import plots
from covshift.exceptions import InvalidArgumentError
from covshift.plots import style


class TestVerdictGrid:
    words = np.array(
        [["ok", "ok", "watch", ""], ["bad", "not measured", "ok", "ok"], ["ok", "ok", "ok", "ok"]], dtype="<U12"
    )

    def test_every_verdict_stands_at_its_layer_and_check(self, made, line):
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

    def test_the_title_counts_layers_by_their_worst_check(self, made, left_title):
        ax = plots.plot_verdict_grid(made().diagnosis(3, verdicts=self.words))
        assert left_title(ax) == "3 layers by their worst check: 1 bad, 1 watch, 1 ok"

    def test_the_whole_run_is_a_row_but_no_layer(self, made, left_title):
        ax = plots.plot_verdict_grid(made(names=["whole run", "a", "b"]).diagnosis(3, verdicts=self.words))
        assert left_title(ax) == "2 layers by their worst check: 1 bad, 1 ok"
        assert ax.get_yticklabels()[0].get_text() == "whole run"

    def test_only_the_worst_rows_are_kept_and_in_their_order(self, made, left_title):
        ax = plots.plot_verdict_grid(made().diagnosis(3, verdicts=self.words), rows=2)
        assert [label.get_text() for label in ax.get_yticklabels()] == ["conv0", "conv1"]
        assert left_title(ax).endswith("(1 of them left out: 1 ok)")

    def test_counts_in_title_and_on_the_axis_add_up_to_the_rows_drawn(self, made, left_title):
        names = ["whole run", "(input)", *(f"conv{at}" for at in range(9))]
        words = np.full((11, 4), "ok", dtype="<U12")
        words[4:, 0], words[5, 1:] = "bad", "bad"
        ax = plots.plot_verdict_grid(made(names=names).diagnosis(11, verdicts=words), rows=5)
        drawn = [label.get_text() for label in ax.get_yticklabels()]
        assert drawn[:2] == ["whole run", "(input)"]
        assert len(drawn) == 2 + 5
        said = "9 layers by their worst check: 7 bad, 2 ok (4 of them left out: 2 bad, 2 ok)"
        assert left_title(ax) == said
        assert ax.get_ylabel() == "layer (n = 5 of 9)\nno layer: whole run, (input)"

    @pytest.mark.parametrize("layers", [1, 5, 12, 13, 60])
    def test_what_the_rows_are_fits_beside_them(self, made, layers):
        names = ["whole run", "(input)", *(f"conv{at}" for at in range(layers))]
        ax = plots.plot_verdict_grid(made(names=names).diagnosis(layers + 2))
        ax.figure.draw_without_rendering()
        label = ax.yaxis.label.get_window_extent()
        assert 0.0 <= label.y0 < label.y1 <= ax.figure.bbox.height

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
