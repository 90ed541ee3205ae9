"""Runs that are empty, damaged, without a group or of nothing but NaN have a page that says so."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import xarray as xr

from covshift.exceptions import CovshiftError, RecordingDamaged
from covshift.reporting.page import render
from covshift.schema import Layer


def test_a_recording_of_nothing_but_nan_has_a_report_without_a_warning(written, make_recording, tmp_path):
    lost = {name: np.full((16, 4), np.nan, dtype=np.float32) for name in ("activation", "activation_grad")}
    run = make_recording({step: {"a": lost, "b": lost} for step in (0, 10, 20)})
    made = written(tmp_path, run, figures_at_most=15)
    assert "NaN" in made.page.text


def _rectifier_that_breaks(make_recording, name, *, broken):
    """A ReLU of six units whose first ``broken`` give nothing but NaN from step 30 on."""
    rng = np.random.default_rng(0)
    steps = {}
    for step in range(0, 60, 10):
        z = rng.normal(size=(16, 6)).astype(np.float32)
        z[:, : broken if step >= 30 else 0] = np.nan
        steps[step] = {
            "fc": {"activation": z, "activation_grad": z},
            "act": {"activation": np.maximum(z, 0), "activation_grad": z},
        }
    relu = {"activation": "ReLU", "preactivation_of": "fc", "structural_measured": True}
    layers = [Layer("fc", "Linear", 0, 1, 0, 6), Layer("act", "ReLU", 1, 1, 0, 6, **relu)]
    run = make_recording(steps, layers=layers, flat={"act": lambda z: z <= 0})
    run.attrs["run_name"] = name
    return run


@pytest.mark.parametrize("broken", [(4,), (4, 6), (0, 4)], ids=["alone", "two broken", "beside a sound one"])
def test_units_that_gave_nothing_finite_are_counted_on_the_page(written, make_recording, tmp_path, broken):
    runs = [_rectifier_that_breaks(make_recording, f"run{n}", broken=count) for n, count in enumerate(broken)]
    page = written(tmp_path, runs).page
    for number, count in enumerate(broken):
        (table,) = page.find("table", id=f"runs-{number}-units-by_layer-table")
        heads = [cell.words for cell in table.find("thead")[0].find("th")]
        (cells,) = [[cell.words for cell in row.children] for row in table.find("tbody")[0].find("tr")]
        shown = dict(zip(heads, cells, strict=True))
        assert (shown["layer"], shown["units"]) == ("act", "6")
        assert shown.get("not finite") == (str(count) if count else None)
        keys = page.find("span", data_key=f"/runs/{number}/units/not_finite")
        assert [one.words for one in keys] == ([str(count)] if count else [])


@pytest.mark.parametrize("missing", ["groups", "layers_by_verdict"])
def test_a_page_that_asks_for_what_is_not_there_fails_in_words_of_covshift(single, missing):
    content = {**single.told, "runs": [{**single.told["runs"][0]}]}
    del content["runs"][0][missing]
    with pytest.raises(CovshiftError) as failed:
        render(content, pictures=[{}])
    message = str(failed.value)
    assert "page cannot be written" in message
    assert "defect of covshift: please report" in message
    assert f"'{missing}'" in message


def test_a_recording_without_records_gets_a_page_that_says_so(written, make_run, tmp_path):
    report = written(tmp_path, make_run(steps=(), name="empty"))
    assert "Nothing was recorded: the recording holds 0 records of 6 layers" in report.page.text
    assert report.told["runs"][0]["verdict"] == "not measured"


@pytest.mark.parametrize("given", ["tree", "error"])
def test_a_damaged_recording_gets_a_page_that_says_so_beside_the_whole_one(written, make_run, tmp_path, given):
    whole = make_run(pairs=1, steps=(0, 10))
    damaged = xr.DataTree.from_dict({"layers": whole["layers"].to_dataset().drop_vars("count")})
    damaged.attrs = whole.attrs
    error = RecordingDamaged("recording 'x' is damaged: group 'layers' has no variable 'count'")
    report = written(tmp_path, {"good": whole, "bad": damaged if given == "tree" else error})
    assert [run["recorded"] for run in report.told["runs"]] == [True, False]
    assert re.search(r"Cannot be read: .*no variable 'count'", report.told["runs"][1]["sentence"])
    assert "no variable 'count'" in report.page.text


def test_a_chunk_that_cannot_be_read_is_damage_not_a_crash(written, make_run, tmp_path):
    whole = make_run(pairs=1, steps=(0, 10))
    torn = whole.copy()
    layers = torn["layers"].to_dataset()
    lazy = layers["m2"].chunk()
    failing = lazy.data.map_blocks(_fail, dtype=lazy.dtype, meta=np.zeros((0, 0, 0)))
    torn["layers"] = layers.assign(m2=(layers["m2"].dims, failing, layers["m2"].attrs))
    report = written(tmp_path, torn)
    assert "Cannot be read: layers/m2: checksum does not match" in report.told["runs"][0]["sentence"]


def _fail(block):
    raise RuntimeError("checksum does not match")


def test_with_too_few_records_page_and_finding_agree_that_no_operating_point_is_measured(written, make_run, tmp_path):
    report = written(tmp_path, make_run(pairs=2, steps=range(0, 240, 10)))
    (run,) = report.told["runs"]
    (found,) = [one for one in run["findings"] if one["check"] == "operating point"]
    assert found["reason"].endswith("at most 12 records in the last half of the run")
    assert {row["state"] for row in run["operating"]} == {"not measured"}
    assert run["missing"]["operating"] == "at most 12 records in the last half of the run, at least 40 needed"
    assert f"States of operating points not measured: {run['missing']['operating']}" in report.page.text


def test_an_empty_run_stands_beside_a_recorded_one(written, make_run, tmp_path):
    report = written(tmp_path, {"empty": make_run(steps=()), "full": make_run(pairs=1, steps=(0, 10))})
    assert [run["recorded"] for run in report.told["runs"]] == [False, True]
    assert report.told["comparison"] is None
    assert "Nothing was recorded" in report.page.text


def test_a_run_without_nonlinearities_says_so_in_place_of_units_and_linkage(written, make_recording, tmp_path):
    values = np.random.default_rng(0).normal(size=(16, 4)).astype(np.float32)
    signals = {"activation": values, "activation_grad": values}
    run = make_recording({step: {"fc": signals} for step in (0, 10)}, layers=[Layer("fc", "Linear", 0, 1, 0, 4)])
    text = " ".join(written(tmp_path, run).page.text.split())
    assert "Structural zeros not measured: recording: no layer is a nonlinearity; record the activation modules" in text
    assert "signal=" not in text


@pytest.mark.parametrize(
    ("group", "missing"),
    [
        ("histograms", {"shift"}),
        ("units", {"units", "survival"}),
        ("parameters", {"parameters"}),
        ("scalars", {"cost"}),
        ("evaluation", set()),
    ],
)
def test_a_recording_without_one_group_has_a_report_that_names_what_is_missing(
    written, make_run, tmp_path, group, missing
):
    run = make_run(pairs=1, steps=(0, 10))
    without = xr.DataTree.from_dict({path: run[path].to_dataset() for path in run.groups if f"/{group}" not in path})
    without.attrs = run.attrs
    (whole,), (partial,) = (written(tmp_path, one, overwrite=True).told["runs"] for one in (run, without))
    assert set(partial["missing"]) - set(whole["missing"]) == missing
    assert (partial["logged"] == []) == (group == "scalars")


@pytest.mark.parametrize("count", [0, 1, 2, 3])
@pytest.mark.parametrize("stored", [list, json.dumps])
def test_what_the_recorder_warned_of_stands_below_the_verdict(written, make_run, tmp_path, count, stored):
    said = [f"layer '{name}': <b>not</b> summarised" for name in "abc"[:count]]
    run = make_run(pairs=1, steps=(0, 10), attrs={"warnings": stored(said)})
    report = written(tmp_path, {"warned": run, "other": make_run(pairs=1, steps=(0, 10))})
    assert [told["warnings"] for told in report.told["runs"]] == [said, []]
    found = [one for one in report.page.find("details") if one.attributes.get("class") == "said"]
    assert len(found) == (count > 0)
    for one in found:
        heading, *messages = [part.words for tag in ("summary", "li") for part in one.find(tag)]
        assert heading == ("1 warning" if count == 1 else f"{count} warnings") + " while recording"
        assert messages == said
        assert ("open" in one.attributes) == (count <= 2)
    assert "warnings" not in [entry["name"] for entry in report.told["runs"][0]["provenance"]]
