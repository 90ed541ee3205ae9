"""What the page embeds of its layers: small, exact to three digits, and harmless whatever the names are."""

import base64
import json
import re
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_rgb, to_rgba

from covshift.diagnosis import diagnose
from covshift.grid import VALUES
from covshift.reporting import embedding, page
from covshift.reporting.charts import LEVELS, Axis, chart, line, log_levels, packed_levels, rounded, side_curve
from covshift.reporting.drawn_records import drawn_records, thinned
from covshift.reporting.layer_charts import layer_sections
from covshift.reporting.results import gather
from covshift.reporting.sections import course

HOSTILE = ["</script><script>alert(1)</script>", '"quoted" & <b>', "conv1", "act1"]


@pytest.fixture(scope="module")
def result(make_run):
    run = make_run(pairs=2, names=HOSTILE, steps=tuple(range(0, 60, 2)), dying=True)
    return gather("run", run, diagnose(run))


@pytest.fixture(scope="module")
def sections(result):
    return layer_sections(result, steps=200)


def test_numbers_keep_three_digits_and_what_is_no_number_is_null():
    values = np.array([0.0, -1.23456e-7, 98765.4, np.nan, np.inf, -np.inf])
    assert rounded(values) == [0.0, -1.23e-7, 98800.0, None, None, None]


@given(st.lists(st.floats(), max_size=20))
def test_numbers_are_those_that_three_digits_print(values):
    found = rounded(values)
    for value, three in zip(values, found, strict=True):
        if not np.isfinite(value):
            assert three is None
            continue
        assert three == float(f"{three:.3g}")
        # A number half-way between two of three digits may go either way.
        assert three == float(f"{value:.3g}") or abs(three - value) <= abs(float(f"{value:.3g}") - value) * (1 + 1e-9)


def test_levels_rise_with_the_count_and_none_but_nothing_is_empty():
    counts = np.array([[0.0, 1e-3, 1.0, 10.0, 1e6]])
    levels = log_levels(counts)[0]
    assert levels[0] == 0
    assert (levels[1:] >= 1).all()
    assert (np.diff(levels) >= 0).all()
    assert levels[-1] == LEVELS
    assert not log_levels(np.zeros((2, 3))).any()
    packed = packed_levels(np.arange(LEVELS + 1)[None])
    assert [ord(character) - 48 for character in packed] == list(range(LEVELS + 1))


@pytest.mark.parametrize("records", [1, 2, 199, 200, 201, 5000])
def test_thinned_records_are_different_ones_ends_included(records):
    chosen = thinned(records, 200)
    assert len(chosen) == min(records, 200)
    assert len(set(chosen.tolist())) == len(chosen)
    assert chosen[0] == 0
    assert chosen[-1] == records - 1
    assert not len(thinned(0, 200))


@pytest.mark.parametrize(("low", "high", "within"), [(-1e6, 1e6, 1e-3), (0.0, 50.0, 0.2), (-3.0, 0.1, 0.02)])
def test_ticks_of_a_symlog_axis_rise_inside_it_and_stay_few(low, high, within):
    ticks = Axis("z", "symlog", low, high, within).told()["ticks"]
    assert ticks == sorted(set(ticks))
    assert 0.0 in ticks
    assert all(low <= tick <= high for tick in ticks)
    assert len(ticks) <= 11


def turned_round(color):
    """What a dark page makes of a colour: CSS filters invert(1) hue-rotate(180deg), Filter Effects Module 1, 8.8.2."""
    rotation = [[-0.574, 1.43, 0.144], [0.426, 0.43, 0.144], [0.426, 1.43, -0.856]]
    return np.clip(rotation @ (1 - np.asarray(color)), 0, 1)


def luminance(color):
    """Relative luminance, WCAG 2."""
    color = np.asarray(color)
    linear = np.where(color <= 0.04045, color / 12.92, ((color + 0.055) / 1.055) ** 2.4)
    return linear @ [0.2126, 0.7152, 0.0722]


def contrast(one, other):
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def lab(color):
    """CIE L*a*b* of an sRGB colour, D65."""
    color = np.asarray(color)
    linear = np.where(color <= 0.04045, color / 12.92, ((color + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x, y, z = np.cbrt(np.maximum(to_xyz @ linear / [0.9505, 1.0, 1.089], 0.008856))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.fixture(params=["light", "dark"])
def on_page(request):
    """A colour as it is shown, laid over the card of the page if it is not opaque, and the card."""
    dark = request.param == "dark"
    card = np.array(to_rgb((page.DARK if dark else page.LIGHT)["card"]))

    def shown(color):
        *rgb, alpha = to_rgba(color)
        return alpha * (turned_round(rgb) if dark else np.array(rgb)) + (1 - alpha) * card

    return shown, card


def test_lines_of_a_chart_stand_out_from_the_page_and_shades_are_seen(on_page):
    shown, card = on_page
    for role in ("ink", "muted", "accent", "second", "zero", "bad"):
        assert contrast(shown(embedding.COLORS[role]), card) >= 3, role
    assert contrast(shown(embedding.COLORS["shade"]), card) >= 1.3


def test_the_lines_of_a_river_are_told_from_every_shade_of_its_cells(on_page, sections):
    shown, card = on_page
    palette = embedding.unpacked(embedding.block({}))["palette"]
    (river,) = [one for one in sections["layers"][1]["charts"] if one["key"] == "river"]
    quantiles = [one for one in river["lines"] if one["label"].endswith("%")]
    for role in {one["role"] for one in quantiles}:
        line = lab(shown(embedding.COLORS[role]))
        for cell in [card, *map(shown, palette[1:])]:
            assert np.linalg.norm(line - lab(cell)) > 40  # a just noticeable difference is 2.3
    looks = {one["label"]: (one["width"], one.get("dash", False)) for one in quantiles}
    assert looks["50%"][0] > looks["25%"][0]
    assert looks["1%"] == looks["99%"] != looks["25%"] == looks["75%"]


def test_beside_the_track_stands_the_derivative_on_the_same_axis(sections):
    tracks = [one for layer in sections["layers"] for one in layer["charts"] if one["key"] == "track"]
    assert ["curve" in one for one in tracks] == [False, True, False, True]
    for track in tracks[1::2]:
        axis, curve = track["y"], track["curve"]
        low, high = axis["range"]
        assert low < 0 < high
        reached = [value for part in track["lines"] for value in part["values"] if value is not None]
        assert low <= min(reached) <= max(reached) <= high
        places = Axis("z", axis["scale"], low, high, axis.get("within")).centres(len(curve["values"]))
        assert curve["values"] == (places > 0).tolist()
        assert curve["most"] == 1
        mean = [value for value in track["lines"][1]["values"] if value is not None]
        assert [at for at, _ in curve["marks"]] == pytest.approx([mean[0], mean[-1]])
        assert [value for _, value in curve["marks"]] == [float(at > 0) for at, _ in curve["marks"]]
        assert "right: |derivative| of ReLU" in track["title"]


def test_a_flat_region_is_shaded_and_told_where_the_axis_shows_it(make_run):
    run = make_run(pairs=1, steps=(0, 10, 20))
    layers = run["layers"].to_dataset()
    run["layers"] = layers.assign(activation=layers["activation"].where(layers["activation"] == "", "SELU"))
    for depth in (1.0, 3.0):
        layers = run["layers"].to_dataset()
        run["layers"] = layers.assign(m2=layers["m2"] * depth**2)
        (track,) = [one for one in sections_of(run)["layers"][1]["charts"] if one["key"] == "track"]
        below = bool(track["y"]["range"][0] < -np.log(10))  # SELU's derivative falls as exp(z) from its largest at 0
        assert below == (depth == 3)
        assert [[low, round(high, 2)] for low, high in track.get("shades", [])] == ([[None, -2.3]] if below else [])
        assert ("shaded" in track["title"]) == below


def sections_of(run):
    return layer_sections(gather("run", run, diagnose(run)), steps=200)


def test_a_curve_that_is_not_known_is_none():
    assert side_curve("g", [np.nan, 1.0], []) is None
    assert side_curve("g", [0.0, 0.0], []) is None


def test_a_chart_without_a_number_is_none():
    empty = line("a", [np.nan, np.nan], "ink")
    assert chart("k", "t", x="layers", y=Axis("y"), lines=[empty]) is None
    assert chart("k", "t", x="layers", y=Axis("y"), lines=[empty], cells="0") is not None


def test_a_layer_without_a_finite_element_says_so_and_draws_no_shares(make_run):
    sections = sections_of(without_numbers(make_run(pairs=1, steps=(0, 10, 20)), at=(0, 1, 2)))
    charts = {one["key"]: one for one in sections["layers"][1]["charts"]}
    assert charts["river"]["title"] == "Distribution of z: no finite element in 3 histograms"
    assert [one["label"] for one in charts["river"]["lines"] if None not in one["values"]] == ["NaN or infinite"]
    assert "ridges" not in charts


def test_shares_are_drawn_of_the_histograms_that_have_a_finite_element(make_run):
    run = make_run(pairs=1, steps=(0, 10, 20, 30, 40))
    whole = {one["key"]: one for one in sections_of(run)["layers"][1]["charts"]}
    charts = {one["key"]: one for one in sections_of(without_numbers(run, at=(0, 2, 4)))["layers"][1]["charts"]}
    assert [one["label"] for one in charts["ridges"]["lines"]] == ["step 10", "step 30"]
    assert all(sum(one["values"]) == pytest.approx(1, abs=0.01) for one in charts["ridges"]["lines"])
    assert whole["ridges"]["lines"][0]["label"] == "step 0"


def without_numbers(run, *, at):
    """The run with every element of the histograms at positions ``at`` NaN."""
    histograms = run["histograms"].to_dataset().copy(deep=True)
    counts = histograms["value_histogram"].transpose("step", "value_bin", ...).values
    lost = counts[list(at)].sum(axis=1)
    counts[list(at)] = 0
    counts[list(at), VALUES.nan] = lost
    lost_too = run.copy()
    lost_too["histograms"] = histograms
    return lost_too


def test_every_layer_has_a_section_with_its_findings_and_charts(sections, result):
    assert [layer["name"] for layer in sections["layers"]] == HOSTILE
    told = [tuple(finding) for layer in sections["layers"] for finding in layer["findings"]]
    for found in result.diagnosis.findings:
        named = found.layer.rpartition(".")[0] if found.layer.endswith((".weight", ".bias")) else found.layer
        if named in HOSTILE:
            assert (found.check, found.verdict, found.reason, found.advice) in told
    nonlinear = [one["key"] for one in sections["layers"][1]["charts"]]
    assert nonlinear == ["river", "ridges", "track", "zeros", "units", "shift", "sizes"]
    assert [one["key"] for one in sections["layers"][0]["charts"]][-1] == "updates"


def test_outputs_of_one_module_have_its_update_ratio(make_run):
    run = make_run(pairs=2, names=["rnn:0", "act0", "rnn:1", "act1"])
    owned = {"parameter": ["rnn.weight_ih", "rnn.weight_hh"]}
    run["parameters"] = run["parameters"].to_dataset().assign_coords(owned)
    found = gather("run", run)
    for row in course(found):
        assert row["update_ratio"] == (pytest.approx(1e-3) if row["layer"].startswith("rnn") else None)
    charts = {layer["name"]: layer["charts"][-1] for layer in layer_sections(found, steps=200)["layers"]}
    for name in ("rnn:0", "rnn:1"):
        assert charts[name]["key"] == "updates"
        assert [line["label"] for line in charts[name]["lines"]] == ["weight_ih", "weight_hh"]
    assert charts["act0"]["key"] != "updates"


def test_every_line_is_as_long_as_its_axis_and_every_cell_has_a_place(sections):
    for layer in sections["layers"]:
        for one in layer["charts"]:
            along = sections["steps"][one["x"]] if isinstance(one["x"], str) else range(one["x"]["centres"])
            assert {len(part["values"]) for part in one["lines"]} == {len(along)}
            if one["cells"]:
                assert len(one["cells"]) % len(along) == 0
                assert len(one["cells"]) // len(along) <= 64


def test_units_are_filled_where_silent_those_silent_first_at_the_bottom(sections, result):
    (strip,) = [one for one in sections["layers"][1]["charts"] if one["key"] == "units"]
    cells = np.array([ord(c) - 48 for c in strip["cells"]]).reshape(len(sections["steps"]["units"]), -1)
    mine = result.trained_units.isel(unit=result.trained_units["layer"].values == HOSTILE[1])
    silent = mine["silent"].values
    assert set(cells.ravel().tolist()) == {0, LEVELS}
    np.testing.assert_array_equal(np.sort(cells.sum(axis=0)), np.sort(LEVELS * silent.sum(axis=0)))
    assert (np.diff(cells.sum(axis=0)) <= 0).all()
    alive = (~silent).sum(axis=1)
    assert strip["lines"][0]["values"] == alive.tolist()


def test_fewer_steps_are_some_of_the_recorded_ones(result):
    read = drawn_records(result, most=7)
    assert len(read.steps["layers"]) == 7
    assert set(read.steps["layers"]) <= set(range(0, 60, 2))
    for layer, series in read.shift.items():
        chosen = result.shift["w1"].sel(layer=layer, step=read.steps["shift"])
        np.testing.assert_array_equal(series["w1"], chosen.values)


def test_a_layer_takes_less_than_30_kilobytes_and_the_block_only_harmless_characters(sections):
    for layer in sections["layers"]:
        assert len(zlib.compress(json.dumps(layer).encode(), 9)) < 30_000
    block = embedding.block({"runs": [sections]})
    assert re.fullmatch(r"[A-Za-z0-9+/]*={0,2}", block)
    assert embedding.unpacked(block)["runs"] == [json.loads(json.dumps(sections))]
    assert json.loads(zlib.decompress(base64.b64decode(block)))["palette"][0].startswith("#")
