"""A recording is judged alike however it was opened. Oracle: the one that covshift.open returns."""

import pytest
import torch
import xarray as xr
from torch import nn
from typer.testing import CliRunner

import covshift
from covshift.analysis import dead_units, ridges, unit_history, unit_profile
from covshift.cli import app
from covshift.exceptions import InvalidArgumentError, RecordingError


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("openings")
    torch.manual_seed(0)
    for name in ("a", "b"):
        model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with covshift.record(model, folder / name, every=1):
            for _ in range(12):
                model(torch.randn(16, 6)).square().mean().backward()
                optimizer.step()
                optimizer.zero_grad()
    return [folder / "a.zarr", folder / "b.zarr"]


def judged(recording):
    found = covshift.diagnose(recording)
    return found.sentence, [str(finding) for finding in found.findings]


def test_plain_xarray_is_enough_for_a_diagnosis_and_a_report(paths, tmp_path):
    plain = xr.open_datatree(paths[0])
    assert judged(plain) == judged(covshift.open(paths[0]))
    page = covshift.report(plain, tmp_path / "page.html")
    assert covshift.diagnose(plain).sentence.split(":")[0] in page.read_text()


def test_an_export_to_netcdf_is_judged_like_the_recording(paths, tmp_path):
    out = tmp_path / "a.nc"
    assert CliRunner().invoke(app, ["export", str(paths[0]), str(out), "--to", "netcdf"]).exit_code == 0
    exported = xr.open_datatree(out)
    assert judged(exported) == judged(covshift.open(paths[0]))
    assert covshift.report(exported, tmp_path / "page.html").exists()
    exported.close()


def test_several_runs_side_by_side_are_not_damage_and_the_way_out_works(paths, tmp_path):
    runs = covshift.open(str(paths[0].parent / "*.zarr"))
    said = r"recording: expected one run, got 2 \(a, b\); take one with recording.sel\(run='a'\)"
    readers = (covshift.diagnose, dead_units.dead_units, lambda tree: covshift.report(tree, tmp_path / "page.html"))
    for read in readers:
        with pytest.raises(InvalidArgumentError, match=said):
            read(runs)
    assert judged(runs.sel(run="a")) == judged(covshift.open(paths[0]))


@pytest.mark.parametrize(
    "read", [dead_units.dead_units, unit_profile.unit_profile, unit_history.unit_history, ridges.ridges]
)
def test_the_name_of_one_layer_stands_for_a_list_of_it(paths, read):
    recording = covshift.open(paths[0])
    xr.testing.assert_identical(read(recording, layers="1"), read(recording, layers=["1"]))


@pytest.mark.parametrize(("target", "came"), [(None, "NoneType"), (["a.zarr", "b.zarr"], "list")])
def test_what_is_no_path_is_told_what_is(target, came):
    with pytest.raises(InvalidArgumentError, match=f"expected the path of a recording, .* got {came}"):
        covshift.open(target)


def test_a_folder_of_recordings_names_them(paths):
    with pytest.raises(RecordingError, match="is no recording: .*open one of the recordings in it, such as a.zarr, b"):
        covshift.open(paths[0].parent)


def test_a_report_does_not_take_the_place_of_a_folder(paths, tmp_path):
    with pytest.raises(InvalidArgumentError, match="is a folder: name a file"):
        covshift.report(covshift.open(paths[0]), tmp_path, overwrite=True)
