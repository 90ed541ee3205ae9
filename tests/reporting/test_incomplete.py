"""Runs that are empty, damaged, without a group or of nothing but NaN have a page that says so."""

from __future__ import annotations

import re

import numpy as np
import pytest
import xarray as xr

from covshift.exceptions import RecordingDamaged


def test_a_recording_of_nothing_but_nan_has_a_report_without_a_warning(written, make_recording, tmp_path):
    lost = {name: np.full((16, 4), np.nan, dtype=np.float32) for name in ("activation", "activation_grad")}
    run = make_recording({step: {"a": lost, "b": lost} for step in (0, 10, 20)})
    made = written(tmp_path, run, figures_at_most=15)
    assert "NaN" in made.page.text


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
