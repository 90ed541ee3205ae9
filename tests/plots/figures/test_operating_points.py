"""Ridgeline, operating track and stability: what is drawn is what was computed."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgba

from covshift import plots
from covshift.exceptions import InvalidArgumentError
from covshift.plots import style
from covshift.plots.ridgeline import MOST_ROWS, OVERLAP


def said(ax):
    """What stands in an empty panel, in one line."""
    return " ".join(ax.texts[0].get_text().split())


class TestRidgeline:
    def test_ridges_are_the_densities_on_one_scale(self, made, line):
        ridges = made().ridges(1, 5)
        ax = plots.plot_ridgeline(ridges)
        density = ridges["density"].values[0]
        heights = np.array([row - line(ax, f"_ridge {row}").get_ydata() for row in range(5)])
        scale = OVERLAP / np.quantile(density.max(axis=1), 0.9)
        np.testing.assert_allclose(heights, np.minimum(density * scale, OVERLAP), atol=1e-12)
        np.testing.assert_allclose(line(ax, "_ridge 0").get_xdata(), (ridges["lower"] + ridges["upper"]) / 2)

    def test_spikes_are_the_shares_of_zeros_in_rows(self, made):
        ridges = made().ridges(1, 5)
        ax = plots.plot_ridgeline(ridges)
        lines = [artist for artist in ax.collections if isinstance(artist, LineCollection)]
        spikes = next(artist for artist in lines if tuple(artist.get_color()[0]) == to_rgba(style.look().accent))
        heights = [abs(segment[1, 1] - segment[0, 1]) for segment in spikes.get_segments()]
        np.testing.assert_allclose(heights, OVERLAP * ridges["zero_share"].values[0])

    def test_means_stand_where_they_are(self, made, line):
        ridges = made().ridges(2, 5)
        np.testing.assert_array_equal(line(plots.plot_ridgeline(ridges), "mean").get_xdata(), ridges["mean"].values[-1])

    def test_the_first_step_is_an_outline_and_one_layer_has_a_row_a_step(self, made, labels, rows):
        assert "_first 4" in labels(plots.plot_ridgeline(made().ridges(2, 5)))
        ax = plots.plot_ridgeline(made().ridges(3, 1))
        assert rows(ax) == ["step 0", "step 10", "step 20"]
        assert not any(label.startswith("_first") for label in labels(ax))

    def test_of_many_layers_every_kth_is_drawn_the_ends_among_them(self, made, labels, rows):
        ax = plots.plot_ridgeline(made().ridges(1, 200))
        drawn = [label for label in labels(ax) if label.startswith("_ridge")]
        assert MOST_ROWS / 2 < len(drawn) <= MOST_ROWS
        assert ax.get_ylabel() == f"layer, input side on top ({len(drawn)} of n = 200 drawn)"
        assert rows(ax)[0] == "conv0"
        assert rows(ax)[-1] == "conv199"

    def test_rows_that_leave_the_axis_are_marked(self, made, line):
        ridges = made(fill=0.0).ridges(1, 4)
        ridges["above_share"][0, 2] = 0.02
        marked = line(plots.plot_ridgeline(ridges), "above_share")
        assert (list(marked.get_xdata()), list(marked.get_ydata())) == ([1.0], [2.0])


class TestOperatingTrack:
    def test_path_and_ribbon_are_mean_and_sd(self, made, line):
        track = made().track(6)
        path, _ = plots.plot_operating_track(track).axes
        np.testing.assert_array_equal(line(path, "mean of z").get_ydata(), track["mean"].values)
        outline = path.collections[0].get_paths()[0].vertices
        for sign in (-1, 1):
            ends = np.column_stack([track["step"], track["mean"] + sign * track["sd"]])
            assert all((np.abs(outline - end).sum(axis=1) < 1e-12).any() for end in ends)

    def test_the_curve_is_the_derivative_and_start_and_end_stand_on_it(self, made, line):
        track = made().track(6)
        _, curve = plots.plot_operating_track(track).axes
        np.testing.assert_array_equal(line(curve, "derivative").get_xdata(), track["derivative"].values)
        for name, at in (("start", 0), ("end", -1)):
            drawn = line(curve, name)
            assert drawn.get_xdata() == track["derivative_at_mean"].values[at]
            assert drawn.get_ydata() == track["mean"].values[at]

    def test_a_record_between_steps_without_z_is_marked(self, made, line):
        track = made().track(6)
        track["mean"][[1, 4]] = np.nan
        path, _ = plots.plot_operating_track(track).axes
        assert line(path, "mean of z").get_marker() == "o"
        assert line(path, "mean of z").get_markevery() == [0, 5]
        (spread,) = [artist for artist in path.collections if isinstance(artist, LineCollection)]
        mean, sd = track["mean"].values, track["sd"].values
        ends = [[mean[at] - sd[at], mean[at] + sd[at]] for at in (0, 5)]
        np.testing.assert_allclose([segment[:, 1] for segment in spread.get_segments()], ends)

    def test_what_is_flat_is_shaded(self, made):
        track = made().track(3)
        path, _ = plots.plot_operating_track(track).axes
        spans = sorted((patch.get_y(), patch.get_y() + patch.get_height()) for patch in path.patches)
        z, flat = track["z"].values, track["flat"].values
        np.testing.assert_allclose(spans[0], [z[0], z[flat & (z < 0)][-1]])
        np.testing.assert_allclose(spans[1], [z[flat & (z > 0)][0], z[-1]])

    def test_records_beyond_the_axis_are_marked(self, made, line):
        track = made().track(4)
        track["mean"][1] = 9.0
        path, _ = plots.plot_operating_track(track).axes
        np.testing.assert_array_equal(line(path, "beyond the axis").get_xdata(), [10])

    def test_the_title_gives_where_it_is_and_the_active_share(self, made, headline):
        track = made(fill=0.5).track(3)
        said = headline(plots.plot_operating_track(track))
        assert said == (
            "z of 'act3' is 0.50 ± 0.50 at step 20 (at step 0: 0.50 ± 0.50); "
            "Tanh passes a usable derivative at 50 % of it"
        )

    def test_an_unknown_nonlinearity_has_no_curve(self, made):
        track = made().track(3, kind="MyOwn")
        track["derivative"][:] = np.nan
        _, curve = plots.plot_operating_track(track).axes
        assert curve.texts[0].get_text() == "derivative of MyOwn: not known"


class TestStability:
    def test_marks_and_intervals_are_the_drifts(self, made, line, labels):
        found = made(fill=0.1).stability(8)
        location, scale, shape, settled = plots.plot_stability(found).axes
        for ax, part in ((location, "location"), (scale, "scale")):
            drawn = [line(ax, label).get_data() for label in labels(ax) if label[1:].isupper()]
            marks = {(row, drift) for drifts, at in drawn for row, drift in zip(at, drifts, strict=True)}
            assert marks == set(enumerate(found[f"{part}_drift"].values))
            ends = np.array([segment[:, 0] for segment in ax.collections[0].get_segments()])
            np.testing.assert_allclose(ends, found[[f"{part}_low", f"{part}_high"]].to_array().values.T)
            margin = found.attrs[f"{part}_margin"]
            assert [artist.get_xdata()[0] for artist in ax.get_lines()[:2]] == [-margin, margin]
        drawn = [line(shape, label).get_data() for label in labels(shape) if label[1:].isupper()]
        marks = {(row, change) for changes, at in drawn for row, change in zip(at, changes, strict=True)}
        assert marks == set(enumerate(found["shape_shift"].values))
        ends = np.array([segment[:, 0] for segment in shape.collections[0].get_segments()])
        np.testing.assert_allclose(ends, found[["shape_low", "shape_high"]].to_array().values.T)
        np.testing.assert_array_equal(line(settled, "_STABLE").get_xdata(), [0, 80])

    def test_drifts_beyond_the_axis_are_arrows(self, made, line):
        found = made(fill=0.1).stability(8)
        found["location_drift"][5] = 50.0
        arrows = line(plots.plot_stability(found).axes[0], "_beyond")
        assert (arrows.get_marker(), list(arrows.get_ydata())) == (">", [5])

    def test_the_title_has_the_words(self, made, headline):
        assert headline(plots.plot_stability(made().stability(8))) == (
            "2 of 8 layers stable, the last since step 80; 2 drifting (location: 2); 2 frozen; 2 "
            "undetermined (window: steps 80-100)"
        )

    def test_with_too_few_records_no_state_is_stated(self, made, headline):
        found = made(fill=0.1).stability(3, states=["UNDETERMINED"] * 3)
        found["records"][:], found["settled_step"][:] = [20, 19, 0], -1
        figure = plots.plot_stability(found)
        why = "at most 20 records in the last half of the run, at least 40 needed"
        assert headline(figure) == f"Whether 3 layers settled is not measured: {why} (window: steps 80-100)"
        assert [key.get_text() for key in figure.legends[0].texts] == ["not measured", "margin"]
        assert said(figure.axes[3]) == f"settled step: not measured ({why})"

    def test_nan_is_not_called_a_lack_of_records(self, made, headline):
        found = made(fill=np.nan).stability(3, states=["UNDETERMINED"] * 3)
        found["records"][:], found["settled_step"][:] = 0, -1
        found["broken"][:], found["finite_until"][:] = True, [0, 10, 0]
        figure = plots.plot_stability(found)
        assert headline(figure).startswith("Whether 3 layers settled is not measured: no finite value after step 10 (")
        assert all(said(ax).endswith("not measured (no finite value after step 10)") for ax in figure.axes)
        of_one = plots.plot_stability(found, made(fill=np.nan).stability_history(4, 3), layer="conv2")
        assert headline(of_one) == "Whether 'conv2' settled is not measured: no finite value after step 0"

    def test_one_layer_is_drawn_over_the_ends_of_its_windows(self, made, line, headline):
        history = made(fill=0.1).stability_history(4, 5)
        figure = plots.plot_stability(made(fill=0.1).stability(5), history, layer="conv4")
        drift = line(figure.axes[0], "drift")
        np.testing.assert_array_equal(drift.get_xdata(), history["end"].values)
        np.testing.assert_array_equal(drift.get_ydata(), history["location_drift"].sel(layer="conv4").values)
        assert line(figure.axes[0], "settled since step 80").get_xdata()[0] == 80
        assert headline(figure).startswith("'conv4' is stable since step 80: location drifts by 0.10 sd")

    def test_a_layer_that_is_not_there_is_refused(self, made):
        with pytest.raises(
            InvalidArgumentError, match="layer='conv9': expected a layer of both results; there are conv0"
        ):
            plots.plot_stability(made().stability(3), made().stability_history(2, 3), layer="conv9")
