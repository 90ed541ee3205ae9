"""info, recover and export as a user meets them."""

import json
import os
import shutil
import sys

import netCDF4
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from typer.testing import CliRunner

from covshift import store
from covshift.cli import app
from covshift.grid import GRADIENTS, VALUES
from covshift.schema import Layer, Mode, Parameter, Row, Source, SparseCounts
from covshift.store import Writer, endings

runner = CliRunner()
LAYERS = [Layer("conv", "Conv2d", 0, unit_count=2), Layer("act", "ReLU", 1, unit_count=2, activation="relu")]
VALUE, GRADIENT = np.array([1.6875, 2.625, -0.53125, np.nan]), np.array([1e-3, -1e-3])


def invoke(*words):
    result = runner.invoke(app, [str(word) for word in words])
    assert "Traceback" not in result.output
    return result


def error_line(result):
    lines = [line for line in result.stderr.splitlines() if line]
    assert len(lines) == 1, result.stderr
    return lines[0]


def histogram(values, grid, place, shape):
    index, counts = np.unique(grid.ids(values) + place * grid.size, return_counts=True)
    return SparseCounts(shape, index.astype("u4"), counts.astype("u4"))


def rows(step):
    count, moments = np.zeros((2, 5), "u8"), np.full((2, 5), np.nan)
    count[1, 2] = 4
    finite = VALUE[:3]
    arrays = {name: moments.copy() for name in ("sum", "m2", "min", "max")}
    for name, value in {"sum": finite.sum(), "m2": finite.var() * 3, "min": finite.min(), "max": finite.max()}.items():
        arrays[name][1, 2] = value
    histograms = {
        "value_histogram": histogram(VALUE, VALUES, (1 * 3 + 2) * 4, (2, 3, 4, VALUES.size)),
        "gradient_histogram": histogram(GRADIENT, GRADIENTS, 1 * 2, (2, 2, GRADIENTS.size)),
    }
    units = np.zeros((4, 2), "u4")
    units[3, 0] = 9
    evaluation = {"source": Source.EVALUATION, "mode": Mode.EVAL}
    return [
        Row("layers", step, {"count": count, "status": (count > 0).astype("u1"), **arrays}),
        Row("histograms", step, histograms),
        Row("units", step, {"unit_count": units}),
        Row("parameters", step, {"weight_norm": np.array([step / 2])}),
        Row("scalars", step, {"wall_time": np.float64(1.75e9 + step), "loss": np.float64(10 - step)}),
        Row("evaluation/layers", step, {"count": count, "status": (count > 0).astype("u1"), **arrays}, **evaluation),
        Row("evaluation/histograms", step, histograms, **evaluation),
    ]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    attrs = {"run_name": "a run", "torch_version": "2.13", "nested": {"lr": [0.1, None]}, "flag": True}
    with Writer(tmp_path_factory.mktemp("runs") / "run", attrs=attrs) as writer:
        writer.declare_layers(LAYERS)
        writer.declare_parameters([Parameter("conv.weight", 9, 4)])
        for step in range(0, 50, 5):
            writer.append(rows(step))
    return writer.path


@pytest.fixture
def left_open(tmp_path):
    writer = Writer(tmp_path / "left", attrs={}, background=False)
    writer.declare_layers(LAYERS)
    for step in range(3):
        writer.append(rows(step)[:2])
    writer._opened.release()
    endings.dismiss(writer)
    return writer.path


def test_info_says_what_a_recording_holds(run):
    text = " ".join(invoke("info", run).stdout.split())
    for words in (
        "run a run",
        "state closed",
        "torch 2.13, schema 1",
        "steps 0 to 45",
        "10 layers, 10 histograms, 10 units",
        "2 layers, 4 units, 1 parameters",
        "signals activation logged loss",
    ):
        assert words in text
    values = json.loads(invoke("info", run, "--json").stdout)
    assert values["records"]["evaluation/layers"] == 10
    sizes = [os.path.getsize(os.path.join(folder, name)) for folder, _, names in os.walk(run) for name in names]
    assert (values["bytes"], values["files"]) == (sum(sizes), len(sizes))
    assert values["warnings"] == []


@pytest.mark.parametrize("words", [["--quiet"], ["--quiet", "--json"]])
def test_quiet_info_says_only_whether_there_is_a_recording(run, tmp_path, words):
    whole = invoke("info", run, *words)
    assert (whole.exit_code, whole.output) == (0, "")
    missing = invoke("info", tmp_path / "none.zarr", *words)
    assert missing.exit_code == 1
    assert "none.zarr" in missing.stderr


def test_info_tells_a_live_recording_from_one_left_open_and_counts_its_journal(left_open, tmp_path):
    values = json.loads(invoke("info", left_open, "--json").stdout)
    assert values["state"].startswith("left open")
    assert (values["records"], values["in_journal"]) == ({"layers": 3, "histograms": 3}, {"layers": 3, "histograms": 3})
    with Writer(tmp_path / "live", attrs={}) as writer:
        assert json.loads(invoke("info", writer.path, "--json").stdout)["state"] == (
            f"being written by pid {os.getpid()} on host {os.uname().nodename}"
        )


def test_info_names_a_damaged_journal_and_still_says_what_is_there(left_open):
    (segment,) = (left_open / ".covshift").glob("journal-*")
    data = bytearray(segment.read_bytes())
    data[-1] ^= 1
    segment.write_bytes(data)
    values = json.loads(invoke("info", left_open, "--json").stdout)
    assert values["records"]["layers"] == 2
    assert "damaged" in values["warnings"][0]


def test_recover_folds_a_journal_and_prints_the_path(left_open):
    result = invoke("recover", left_open)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.splitlines() == [
        "from the journal: 3 layers, 3 histograms",
        "records: 3 layers, 3 histograms",
        str(left_open),
    ]
    assert xr.open_datatree(left_open)["layers"].sizes["step"] == 3
    assert invoke("recover", left_open, "--quiet").stdout == f"{left_open}\n"


@pytest.mark.parametrize("words", [["info"], ["recover"], ["export", "OUT"]])
def test_what_is_no_recording_is_one_clear_line(tmp_path, words):
    result = invoke(words[0], tmp_path / "nothing", *[tmp_path / word for word in words[1:]])
    assert result.exit_code == 1
    assert "no recording at" in error_line(result)


def test_netcdf_holds_every_group_and_value(run, tmp_path):
    out = tmp_path / "run.nc"
    result = invoke("export", run, out, "--to", "netcdf")
    assert (result.exit_code, result.stdout) == (0, f"{out}\n")
    recording, exported = store.open(run), xr.open_datatree(out, engine="netcdf4")
    assert set(exported.groups) == set(recording.groups)
    for path in recording.groups:
        for name, values in recording[path].to_dataset().variables.items():
            np.testing.assert_array_equal(exported[path][name].values, values.values)
    with netCDF4.Dataset(out) as file:
        assert json.loads(file.getncattr("nested")) == {"lr": [0.1, None]}
        assert file["layers/count"].dtype == np.dtype("u8")


def test_csv_has_a_line_for_every_measured_cell(run, tmp_path):
    assert invoke("export", run, tmp_path / "tables", "--to", "csv").exit_code == 0
    names = sorted(file.name for file in (tmp_path / "tables").iterdir())
    tables = {name: pd.read_csv(tmp_path / "tables" / name) for name in names}
    assert names == [
        "evaluation-histograms.csv",
        "evaluation-layers.csv",
        "histograms.csv",
        "layers.csv",
        "parameters.csv",
        "scalars.csv",
        "units.csv",
    ]
    layers = tables["layers.csv"]
    assert len(layers) == 10
    assert layers[["step", "layer", "signal", "count"]].values.tolist()[1] == [5, "act", "activation", 4]
    np.testing.assert_allclose(layers["sum"], VALUE[:3].sum())
    bins = tables["histograms.csv"]
    finite = bins[(bins.step == 10) & (bins.signal == "activation")].dropna()
    assert finite["count"].tolist() == [1, 1, 1]
    for value, (_, line) in zip(sorted(VALUE[:3]), finite.iterrows(), strict=True):
        assert line.lower <= value <= line.upper
    assert tables["units.csv"][["layer", "unit_in_layer", "unit_count"]].values.tolist() == [["act", 1, 9]] * 10
    assert tables["scalars.csv"]["loss"].tolist() == [10 - step for step in range(0, 50, 5)]
    assert tables["parameters.csv"]["parameter"].unique().tolist() == ["conv.weight"]


def test_tensorboards_own_loader_reads_the_events(run, tmp_path):
    result = invoke("export", run, tmp_path / "events", "--to", "tensorboard")
    assert result.exit_code == 0, result.stderr
    events = EventAccumulator(str(tmp_path / "events"), size_guidance={"histograms": 0, "scalars": 0})
    events.Reload()
    tags = events.Tags()
    assert tags["scalars"] == ["loss"]
    assert set(tags["histograms"]) == {
        "act/activation",
        "act/activation_grad",
        "evaluation/act/activation",
        "evaluation/act/activation_grad",
    }
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(s, 10 - s) for s in range(0, 50, 5)]
    assert events.Scalars("loss")[1].wall_time == 1.75e9 + 5
    values = events.Histograms("act/activation")[3].histogram_value
    assert (values.min, values.max, values.num, values.sum) == (-0.53125, 2.625, 3, VALUE[:3].sum())
    np.testing.assert_allclose(values.sum_squares, (VALUE[:3] ** 2).sum())
    assert sum(values.bucket) == 3
    limits = np.array(values.bucket_limit)
    for value in VALUE[:3]:
        position = int(np.searchsorted(limits, value, side="right"))
        assert values.bucket[position] == 1


@pytest.mark.parametrize("to", ["netcdf", "csv", pytest.param("tensorboard", marks=pytest.mark.slow)])
def test_nothing_is_overwritten_unasked_and_a_failed_export_leaves_nothing(run, tmp_path, to):
    out = tmp_path / "out"
    out.write_text("mine")
    result = invoke("export", run, out, "--to", to)
    assert result.exit_code == 1
    assert "overwrite" in error_line(result)
    assert out.read_text() == "mine"
    assert invoke("export", run, out, "--to", to, "--overwrite").exit_code == 0
    assert invoke("export", run, out / "below" if to == "netcdf" else out / "x" / "", "--to", to).exit_code in (0, 1)
    assert [child.name for child in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("to", ["netcdf", "csv", pytest.param("tensorboard", marks=pytest.mark.slow)])
def test_overwrite_replaces_an_earlier_export_and_never_a_directory_of_anything_else(run, tmp_path, to):
    earlier, runs = tmp_path / "earlier", tmp_path / "runs"
    shutil.copytree(run, runs / "run.zarr")
    for out in (runs, runs / "run.zarr"):
        result = invoke("export", runs / "run.zarr", out, "--to", to, "--overwrite")
        assert result.exit_code == 1
        assert "is not deleted even with overwrite=True" in error_line(result)
    assert xr.open_datatree(runs / "run.zarr").identical(xr.open_datatree(run))
    for _ in range(2):
        assert invoke("export", run, earlier, "--to", to, "--overwrite").exit_code == 0


def test_without_tensorboard_the_export_says_how_to_install_it(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    result = invoke("export", run, tmp_path / "events", "--to", "tensorboard")
    assert result.exit_code == 1
    assert 'pip install "covshift[tensorboard]"' in error_line(result)
