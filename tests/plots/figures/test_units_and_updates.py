"""Units and update ratios: every mark is a count or a ratio that was measured."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from covshift import plots
from covshift.diagnosis.thresholds import THRESHOLDS


class TestDeadUnits:
    def test_bands_have_the_counts_as_heights(self, made):
        history = made().unit_history(5)
        ax = plots.plot_dead_units(history)
        words = {"born dead": "dead from the start", "silent": "silent, too few examples to say"}
        words["not finite"] = "not a finite value"
        total = np.zeros(5)
        for fate in ("born dead", "died", "not finite", "silent", "not recorded", "revived", "alive"):
            band = next(c for c in ax.collections if c.get_label() == words.get(fate, fate))
            corners = band.get_paths()[0].vertices
            total = total + history["count"].sel(fate=fate).values
            for step, height in zip(history["step"].values, total, strict=True):
                assert ((np.abs(corners[:, 0] - step) <= 5) & (corners[:, 1] == height)).any(), (fate, step)
        assert (total == 40).all()

    def test_thin_evidence_is_hatched(self, made):
        ax = plots.plot_dead_units(made().unit_history(5))
        hatched = {c.get_label() for c in ax.collections if c.get_hatch()}
        assert hatched == {"silent, too few examples to say", "not recorded", "not a finite value"}

    def test_units_without_a_finite_value_are_told_from_live_ones(self, made, left_title):
        history = made().unit_history(3)
        history["count"][:] = [[40, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 40, 0], [0, 0, 0, 0, 0, 40, 0]]
        history.attrs["finite_until"] = 0
        ax = plots.plot_dead_units(history, layer="act3")
        bands = {band.get_label(): band for band in ax.collections}
        assert set(bands) == {"alive", "not a finite value"}
        assert bands["not a finite value"].get_hatch() == "xxx"
        assert left_title(ax) == "Training batches: 40 of 40 units of 'act3' give no finite value after step 0"

    def test_units_that_no_nonlinearity_has_are_not_called_unrecorded(self, made):
        said = [plots.plot_dead_units(made().unit_history(steps, units=0)).texts[0].get_text() for steps in (3, 0)]
        assert [" ".join(words.split()) for words in said] == [
            "units: not measured (no layer recorded is a nonlinearity)",
            "units: not measured (units_every= records them)",
        ]

    def test_what_layers_alone_tell_is_no_record_of_units(self, made):
        history = made().unit_history(4).assign_coords(step=[0, 10, 110, 190])
        history.attrs["unit_records"] = 3
        ax = plots.plot_dead_units(history)
        assert ax.get_xlabel() == "optimizer step (n = 3 records of units; step 190: of layers alone)"
        assert ax.get_xlim()[1] == 195
        assert max(band.get_paths()[0].vertices[:, 0].max() for band in ax.collections) == 195
        history.attrs["unit_records"] = 4
        assert plots.plot_dead_units(history).get_xlabel() == "optimizer step (n = 4 records of units)"

    def test_an_axis_that_is_cut_says_so(self, made, left_title):
        history = made().unit_history(3, units=400)
        history["count"][:] = [398, 0, 2, 0, 0, 0, 0]
        ax = plots.plot_dead_units(history)
        assert ax.get_ylim() == (0, 100)
        assert ax.get_ylabel() == "units (n = 400), axis cut at 100"
        assert left_title(ax) == (
            "Training batches: 2 of 400 units silent at step 20, on fewer than the 3,000 examples it takes to call a "
            "unit dead"
        )

    def test_an_evaluation_pass_is_a_mark_and_a_sentence_of_its_own(self, made, line, left_title):
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
        watch, bad = (style[1] for style in (artist._unscaled_dash_pattern for artist in ax.get_lines()))
        assert watch[0] < bad[0]  # dots and dashes, on the axis and in the key
        keys = [
            artist
            for artist in ax.get_legend().legend_handles
            if "dead" in artist.get_label() and ":" in artist.get_label()
        ]
        assert [key._unscaled_dash_pattern[1] for key in keys] == [watch, bad]


class TestUpdateRatio:
    def test_there_is_one_line_a_parameter(self, made, line):
        ratio = made().update_ratio(5, 4)
        ax = plots.plot_update_ratio(ratio)
        assert ax.get_yscale() == "log"
        for name in ratio["parameter"].values:
            np.testing.assert_array_equal(line(ax, str(name)).get_ydata(), ratio.sel(parameter=name).values)

    def test_band_and_guide_are_those_of_the_rule(self, made, line):
        ax = plots.plot_update_ratio(made().update_ratio(5, 4))
        band = ax.patches[0]
        assert (band.get_y(), band.get_y() + band.get_height()) == pytest.approx(THRESHOLDS["update_ratio"].watch)
        assert line(ax, "_guide").get_ydata()[0] == 1e-3
        assert {artist.get_ydata()[0] for artist in ax.get_lines() if artist.get_label() == "_bad"} == {1e-6, 1e-1}

    def test_an_update_of_zero_is_marked_at_its_step(self, made, line):
        ratio = made().update_ratio(5, 4)
        ratio[2, 1] = 0.0
        ax = plots.plot_update_ratio(ratio)
        np.testing.assert_array_equal(line(ax, "_an update of exactly 0").get_xdata(), [20])
        assert np.isnan(line(ax, "conv1.weight").get_ydata()[2])

    def test_the_key_names_only_lines_that_are_drawn(self, made, labels, finding):
        ratio = made().update_ratio(5, 5)
        still = ratio["parameter"].values[:2]
        ratio.loc[{"parameter": still}] = 0.0
        found = [finding("update ratio", "update_ratio", str(name).rpartition(".")[0], value=0.0) for name in still]
        ax = plots.plot_update_ratio(ratio, findings=found)
        keys = [text.get_text() for text in ax.get_legend().get_texts()]
        assert [key for key in keys if key.endswith("weight")] == [
            str(ratio["parameter"].values[at]) for at in (2, 3, 4)
        ]

    @pytest.mark.parametrize(("parameters", "keyed"), [(6, [0, 1, 2, 3, 4, 5]), (7, [0, 6])])
    def test_of_few_parameters_all_are_in_the_key(self, made, parameters, keyed):
        ratio = made().update_ratio(5, parameters)
        keys = [text.get_text() for text in plots.plot_update_ratio(ratio).get_legend().get_texts()]
        assert [key for key in keys if key.endswith("weight")] == [f"conv{at}.weight" for at in keyed]

    @pytest.mark.parametrize("told", [[], [1]])
    def test_a_ratio_between_steps_without_one_is_marked(self, made, line, finding, told):
        ratio = made().update_ratio(8, 3)
        ratio[1:, 1], ratio[:, 2] = np.nan, [1e-3, 1e-3, np.nan, 1e-3, np.nan, 0.0, 1e-3, np.nan]
        found = [finding("update ratio", "update_ratio", f"conv{at}") for at in told]
        ax = plots.plot_update_ratio(ratio, findings=found)
        drawn = [line(ax, f"conv{at}.weight") for at in range(3)]
        assert drawn[0].get_marker() in ("", "None")
        assert [one.get_markevery() for one in drawn[1:]] == [sorted({0, *(range(8) if told else [])}), [3, 6]]
        assert all(one.get_marker() not in ("", "None") for one in drawn[1:])

    def test_one_early_outlier_does_not_stretch_the_axis(self, made, line):
        ratio = made().update_ratio(200, 4)
        ratio[0, 0] = 1e6
        ax = plots.plot_update_ratio(ratio)
        assert ax.get_ylim()[1] < 1.0
        np.testing.assert_array_equal(line(ax, "_beyond the axis").get_xdata(), [0])

    def test_the_loudest_finding_is_the_title_and_its_parameter_stands_out(
        self, made, line, labels, left_title, finding
    ):
        found = [finding("update ratio", "update_ratio", "conv2", since=140, value=0.3)]
        ax = plots.plot_update_ratio(made().update_ratio(5, 4), findings=found)
        assert left_title(ax) == "Layer 'conv2': an update moves a weight by 0.30 of its length since step 140"
        widths = {label: line(ax, label).get_linewidth() for label in labels(ax) if label.startswith("conv")}
        assert max(widths, key=widths.get) == "conv2.weight"
