"""Ridgeline, operating point, stability, units, updates, ICS: what is drawn is what was computed."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import xarray as xr
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgba

from covshift import plots
from covshift.analysis.effects import effect_sizes
from covshift.analysis.seeds import over_seeds
from covshift.diagnosis import Finding
from covshift.diagnosis.thresholds import THRESHOLDS
from covshift.exceptions import InvalidArgumentError
from covshift.plots import style
from covshift.plots.ridgeline import MOST_ROWS, OVERLAP


def line(ax, label: str):
    return next(artist for artist in ax.get_lines() if artist.get_label() == label)


def labels(ax) -> list[str]:
    return [str(artist.get_label()) for artist in ax.get_lines()]


def left_title(ax) -> str:
    return " ".join(ax.get_title(loc="left").split())


def headline(figure) -> str:
    return " ".join(figure.get_suptitle().split())


def rows(ax) -> list[str]:
    return [label.get_text() for label in ax.get_yticklabels()]


def finding(check: str, threshold: str, layer: str, *, since: int | None = 10, value: float = 1.0) -> Finding:
    history = "" if since is None else f"since step {since}"
    steps = {"reached_step": since, "history": history}
    return Finding(check, layer, "bad", since, value, None, THRESHOLDS[threshold], "", "", **steps)


class TestRidgeline:
    def test_ridges_are_the_densities_on_one_scale(self, made):
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

    def test_means_stand_where_they_are(self, made):
        ridges = made().ridges(2, 5)
        np.testing.assert_array_equal(line(plots.plot_ridgeline(ridges), "mean").get_xdata(), ridges["mean"].values[-1])

    def test_the_first_step_is_an_outline_and_one_layer_has_a_row_a_step(self, made):
        assert "_first 4" in labels(plots.plot_ridgeline(made().ridges(2, 5)))
        ax = plots.plot_ridgeline(made().ridges(3, 1))
        assert rows(ax) == ["step 0", "step 10", "step 20"]
        assert not any(label.startswith("_first") for label in labels(ax))

    def test_of_many_layers_every_kth_is_drawn_the_ends_among_them(self, made):
        ax = plots.plot_ridgeline(made().ridges(1, 200))
        drawn = [label for label in labels(ax) if label.startswith("_ridge")]
        assert MOST_ROWS / 2 < len(drawn) <= MOST_ROWS
        assert ax.get_ylabel() == f"layer, input side on top ({len(drawn)} of n = 200 drawn)"
        assert rows(ax)[0] == "conv0"
        assert rows(ax)[-1] == "conv199"

    def test_rows_that_leave_the_axis_are_marked(self, made):
        ridges = made(fill=0.0).ridges(1, 4)
        ridges["above_share"][0, 2] = 0.02
        marked = line(plots.plot_ridgeline(ridges), "above_share")
        assert (list(marked.get_xdata()), list(marked.get_ydata())) == ([1.0], [2.0])


class TestOperatingTrack:
    def test_path_and_ribbon_are_mean_and_sd(self, made):
        track = made().track(6)
        path, _ = plots.plot_operating_track(track).axes
        np.testing.assert_array_equal(line(path, "mean of z").get_ydata(), track["mean"].values)
        outline = path.collections[0].get_paths()[0].vertices
        for sign in (-1, 1):
            ends = np.column_stack([track["step"], track["mean"] + sign * track["sd"]])
            assert all((np.abs(outline - end).sum(axis=1) < 1e-12).any() for end in ends)

    def test_the_curve_is_the_derivative_and_start_and_end_stand_on_it(self, made):
        track = made().track(6)
        _, curve = plots.plot_operating_track(track).axes
        np.testing.assert_array_equal(line(curve, "derivative").get_xdata(), track["derivative"].values)
        for name, at in (("start", 0), ("end", -1)):
            drawn = line(curve, name)
            assert drawn.get_xdata() == track["derivative_at_mean"].values[at]
            assert drawn.get_ydata() == track["mean"].values[at]

    def test_what_is_flat_is_shaded(self, made):
        track = made().track(3)
        path, _ = plots.plot_operating_track(track).axes
        spans = sorted((patch.get_y(), patch.get_y() + patch.get_height()) for patch in path.patches)
        z, flat = track["z"].values, track["flat"].values
        np.testing.assert_allclose(spans[0], [z[0], z[flat & (z < 0)][-1]])
        np.testing.assert_allclose(spans[1], [z[flat & (z > 0)][0], z[-1]])

    def test_records_beyond_the_axis_are_marked(self, made):
        track = made().track(4)
        track["mean"][1] = 9.0
        path, _ = plots.plot_operating_track(track).axes
        np.testing.assert_array_equal(line(path, "beyond the axis").get_xdata(), [10])

    def test_the_title_gives_where_it_is_and_the_active_share(self, made):
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
    def test_marks_and_intervals_are_the_drifts(self, made):
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

    def test_drifts_beyond_the_axis_are_arrows(self, made):
        found = made(fill=0.1).stability(8)
        found["location_drift"][5] = 50.0
        arrows = line(plots.plot_stability(found).axes[0], "_beyond")
        assert (arrows.get_marker(), list(arrows.get_ydata())) == (">", [5])

    def test_the_title_has_the_words(self, made):
        assert headline(plots.plot_stability(made().stability(8))) == (
            "2 of 8 layers stable, the last since step 80; 2 drifting (location: 2); 2 frozen; 2 "
            "undetermined (window: steps 80-100)"
        )

    def test_one_layer_is_drawn_over_the_ends_of_its_windows(self, made):
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


class TestDeadUnits:
    def test_bands_have_the_counts_as_heights(self, made):
        history = made().unit_history(5)
        ax = plots.plot_dead_units(history)
        words = {"born dead": "dead from the start", "silent": "silent, too few examples to say"}
        total = np.zeros(5)
        for fate in ("born dead", "died", "silent", "not recorded", "revived", "alive"):
            band = next(c for c in ax.collections if c.get_label() == words.get(fate, fate))
            corners = band.get_paths()[0].vertices
            total = total + history["count"].sel(fate=fate).values
            for step, height in zip(history["step"].values, total, strict=True):
                assert ((np.abs(corners[:, 0] - step) <= 5) & (corners[:, 1] == height)).any(), (fate, step)
        assert (total == 40).all()

    def test_thin_evidence_is_hatched(self, made):
        ax = plots.plot_dead_units(made().unit_history(5))
        hatched = {c.get_label() for c in ax.collections if c.get_hatch()}
        assert hatched == {"silent, too few examples to say", "not recorded"}

    def test_an_axis_that_is_cut_says_so(self, made):
        history = made().unit_history(3, units=400)
        history["count"][:] = [398, 0, 2, 0, 0, 0]
        ax = plots.plot_dead_units(history)
        assert ax.get_ylim() == (0, 100)
        assert ax.get_ylabel() == "units (n = 400), axis cut at 100"
        assert left_title(ax) == (
            "Training batches: 2 of 400 units silent at step 20, on fewer than the 3,000 examples it takes to call a "
            "unit dead"
        )

    def test_an_evaluation_pass_is_a_mark_and_a_sentence_of_its_own(self, made):
        silent = np.array([[True] * 3 + [False] * 37, [True] * 30 + [False] * 10])
        evaluated = xr.Dataset(
            {"silent": (("step", "unit"), silent), "examples": (("step", "unit"), np.full(silent.shape, 700))},
            {"step": [10, 25]},
        )
        history = made().unit_history(3)
        ax = plots.plot_dead_units(history, evaluated)
        marks = line(ax, "dead by an evaluation pass")
        np.testing.assert_array_equal(marks.get_xdata(), [10, 25])
        np.testing.assert_array_equal(marks.get_ydata(), [3, 30])
        assert left_title(ax).startswith("Training batches: ")
        assert left_title(ax).endswith(". Evaluation pass: 30 of 40 dead at step 25")

    def test_limits_of_the_rule_are_drawn_for_one_layer(self, made):
        ax = plots.plot_dead_units(made().unit_history(3), layer="act3")
        heights = {artist.get_label(): artist.get_ydata()[0] for artist in ax.get_lines()}
        assert heights == {"watch: 10 % dead": 4.0, "bad: 50 % dead": 20.0}


class TestUpdateRatio:
    def test_there_is_one_line_a_parameter(self, made):
        ratio = made().update_ratio(5, 4)
        ax = plots.plot_update_ratio(ratio)
        assert ax.get_yscale() == "log"
        for name in ratio["parameter"].values:
            np.testing.assert_array_equal(line(ax, str(name)).get_ydata(), ratio.sel(parameter=name).values)

    def test_band_and_guide_are_those_of_the_rule(self, made):
        ax = plots.plot_update_ratio(made().update_ratio(5, 4))
        band = ax.patches[0]
        assert (band.get_y(), band.get_y() + band.get_height()) == pytest.approx(THRESHOLDS["update_ratio"].watch)
        assert line(ax, "_guide").get_ydata()[0] == 1e-3
        assert {artist.get_ydata()[0] for artist in ax.get_lines() if artist.get_label() == "_bad"} == {1e-6, 1e-1}

    def test_an_update_of_zero_is_marked_at_its_step(self, made):
        ratio = made().update_ratio(5, 4)
        ratio[2, 1] = 0.0
        ax = plots.plot_update_ratio(ratio)
        np.testing.assert_array_equal(line(ax, "_an update of exactly 0").get_xdata(), [20])
        assert np.isnan(line(ax, "conv1.weight").get_ydata()[2])

    def test_one_early_outlier_does_not_stretch_the_axis(self, made):
        ratio = made().update_ratio(200, 4)
        ratio[0, 0] = 1e6
        ax = plots.plot_update_ratio(ratio)
        assert ax.get_ylim()[1] < 1.0
        np.testing.assert_array_equal(line(ax, "_beyond the axis").get_xdata(), [0])

    def test_the_loudest_finding_is_the_title_and_its_parameter_stands_out(self, made):
        found = [finding("update ratio", "update_ratio", "conv2", since=140, value=0.3)]
        ax = plots.plot_update_ratio(made().update_ratio(5, 4), findings=found)
        assert left_title(ax) == "Layer 'conv2': an update moves a weight by 0.30 of its length since step 140"
        widths = {label: line(ax, label).get_linewidth() for label in labels(ax) if label.startswith("conv")}
        assert max(widths, key=widths.get) == "conv2.weight"


class TestGradientICS:
    def test_numbers_of_the_cosine_stand_apart_however_far_it_reaches(self, made):
        ics, parts = made().ics(26), made().attribution(26)
        ics["cosine"][1] = -0.95
        ax = plots.plot_gradient_ics(ics, parts).axes[1]
        ax.get_figure(root=True).canvas.draw()
        boxes = [label.get_window_extent() for label in ax.get_xticklabels() if label.get_text()]
        assert len(boxes) >= 3
        assert all(left.x1 + 2 < right.x0 for left, right in itertools.pairwise(boxes))

    def test_norms_cosines_and_parts_are_those_measured(self, made):
        ics, parts = made().ics(6), made().attribution(6)
        norms, cosines, movement = plots.plot_gradient_ics(ics, parts).axes
        np.testing.assert_array_equal(line(norms, "change by the layers below").get_xdata(), ics["ics"].values)
        floor = line(norms, "change by another minibatch (floor)")
        np.testing.assert_array_equal(floor.get_xdata(), ics["gradient_noise"].values)
        np.testing.assert_array_equal(cosines.get_lines()[0].get_xdata(), ics["cosine"].values)
        widths = [bar.get_width() for bar in movement.patches]
        np.testing.assert_array_equal(widths, [*parts["upstream_rms"].values, *parts["own_rms"].values])

    def test_a_change_of_zero_is_an_arrow(self, made):
        ics = made().ics(6)
        ics["ics"][0] = 0.0
        arrow = line(plots.plot_gradient_ics(ics).axes[0], "exactly zero")
        assert list(arrow.get_ydata()) == [0]

    def test_the_title_names_the_layer_and_the_floor(self, made):
        ics = made(fill=0.1).ics(4)
        ics["relative_ics"][2], ics["ics_to_noise"][2] = 0.4, 0.25
        assert headline(plots.plot_gradient_ics(ics)) == (
            "Movement below changes the gradient most in 'conv2': by 40 % of its norm, "
            "0.25 times what another minibatch changes (n = 4 layers)"
        )

    def test_without_a_second_minibatch_there_is_no_floor(self, made):
        ics = made().ics(4)
        ics["gradient_noise"][:] = ics["ics_to_noise"][:] = np.nan
        figure = plots.plot_gradient_ics(ics)
        assert "change by another minibatch (floor)" not in labels(figure.axes[0])
        assert "minibatch" not in headline(figure)


class TestFindings:
    def test_a_layer_that_stops_receiving_gradient_is_the_title_and_marked(self, made):
        found = [finding("gradient arrives", "gradient_missing", "conv2", since=20)]
        figure = plots.plot_gradient_zeros(made().share(5, 4), findings=found)
        assert headline(figure) == "Layer 'conv2' stops receiving gradient at step 20"
        marks = line(figure.axes[0], "threshold mostly exceeded since here")
        assert (list(marks.get_xdata()), list(marks.get_ydata())) == ([20.0], [2])

    def test_a_finding_on_the_producer_marks_the_row_of_its_nonlinearity(self, made):
        rates = made().share(5, 3).assign_coords(producer=("layer", ["a", "b", "c"]))
        found = [finding("gradient zeros", "structural_zeros", "c", since=30)]
        marks = line(plots.plot_gradient_zeros(rates, findings=found).axes[0], "threshold mostly exceeded since here")
        assert list(marks.get_ydata()) == [2]

    def test_others_are_counted_and_the_loudest_comes_first(self, made):
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

    def test_a_key_of_many_entries_stays_inside_the_figure(self, made):
        shift = made().shift(50, 30)
        shift["w1"][3] *= 1e4
        ax = plots.plot_shift_map(shift, findings=[finding("shift", "shift", "conv3", since=30)])
        figure = ax.get_figure()
        figure.canvas.draw()
        assert "beyond the scale" in [text.get_text() for text in ax.get_legend().texts]
        assert ax.get_legend().get_window_extent().x1 <= figure.bbox.x1


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


def test_effects_are_drawn_with_their_intervals_and_filled_where_those_leave_zero_out(made):
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
