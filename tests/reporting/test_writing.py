"""How a page comes to disk: refused, replaced, repeated, and without what a report has no need of."""

import subprocess
import sys
from pathlib import Path

import pytest
import xarray as xr

from covshift.diagnosis import diagnose
from covshift.exceptions import InvalidArgumentError
from covshift.reporting import ReportExists, write_report


def test_the_same_recordings_give_the_same_bytes(make_run, tmp_path):
    run = make_run(pairs=1, steps=(0, 10))
    first, second = (write_report(run, tmp_path / name, figures_at_most=3).read_bytes() for name in ("a", "b"))
    assert first == second


class TestRefusals:
    def test_nothing_is_overwritten_unasked(self, make_run, tmp_path):
        path = tmp_path / "report.html"
        path.write_text("mine")
        with pytest.raises(ReportExists, match=r"report.html' exists: .* overwrite=True"):
            write_report(make_run(steps=(0,)), path)
        assert path.read_text() == "mine"

    def test_an_existing_json_twin_stops_the_page_too(self, make_run, tmp_path):
        (tmp_path / "twin.json").write_text("mine")
        with pytest.raises(ReportExists, match="twin.json"):
            write_report(make_run(steps=(0,)), tmp_path / "report.html", json=tmp_path / "twin.json")
        assert [path.name for path in tmp_path.iterdir()] == ["twin.json"]

    def test_overwriting_replaces(self, make_run, tmp_path):
        path = tmp_path / "report.html"
        path.write_text("old")
        write_report(make_run(steps=()), path, overwrite=True)
        assert path.read_text().startswith("<!doctype html>")
        assert [p.name for p in tmp_path.iterdir()] == ["report.html"]

    @pytest.mark.parametrize("given", [[], {}])
    def test_no_recording_is_refused(self, tmp_path, given):
        with pytest.raises(InvalidArgumentError, match="recordings: none given"):
            write_report(given, tmp_path / "report.html")

    @pytest.mark.parametrize("given", ["runs/a.zarr", Path("a.zarr"), 3])
    def test_a_path_is_no_recording(self, tmp_path, given):
        with pytest.raises(InvalidArgumentError, match=r"expected the DataTree of covshift\.open"):
            write_report(given, tmp_path / "report.html")

    def test_something_else_in_the_list_is_named(self, make_run, tmp_path):
        with pytest.raises(InvalidArgumentError, match="run 'run 2' is a Dataset"):
            write_report([make_run(steps=()), xr.Dataset()], tmp_path / "report.html")

    def test_a_diagnosis_of_an_unknown_run_is_refused(self, make_run, tmp_path):
        run = make_run(pairs=1, steps=(0, 10), name="a")
        with pytest.raises(InvalidArgumentError, match="no run called b; runs: a"):
            write_report(run, tmp_path / "report.html", diagnoses={"b": diagnose(run)})

    def test_a_missing_folder_is_named(self, make_run, tmp_path):
        with pytest.raises(InvalidArgumentError, match="the folder '.*nowhere' does not exist"):
            write_report(make_run(steps=()), tmp_path / "nowhere" / "report.html")

    def test_page_and_twin_cannot_share_a_file(self, make_run, tmp_path):
        with pytest.raises(InvalidArgumentError, match="expected another file"):
            write_report(make_run(steps=()), tmp_path / "report.html", json=tmp_path / "report.html")


def test_reporting_touches_neither_pyplot_nor_torch():
    code = (
        "import sys, covshift.reporting as r\n"
        "sys.exit(bool({'torch', 'matplotlib.pyplot', 'seaborn'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
