"""What the page embeds of its layers: small, exact to three digits, and harmless whatever the names are."""

import base64
import json
import re
import zlib

import numpy as np
import pytest

from covshift.diagnosis import diagnose
from covshift.reporting import embedding
from covshift.reporting.charts import LEVELS, Axis, chart, line, log_levels, packed_levels, rounded
from covshift.reporting.drawn_records import drawn_records, thinned
from covshift.reporting.layer_charts import layer_sections
from covshift.reporting.results import gather

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


def test_a_chart_without_a_number_is_none():
    empty = line("a", [np.nan, np.nan], "ink")
    assert chart("k", "t", x="layers", y=Axis("y"), lines=[empty]) is None
    assert chart("k", "t", x="layers", y=Axis("y"), lines=[empty], cells="0") is not None


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
