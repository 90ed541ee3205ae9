"""A data file that is gone is noticed by name, never read as cells without counts."""

import json
import shutil

import numpy as np
import pytest
import xarray as xr

from covshift import store
from covshift.exceptions import CovshiftWarning, RecordingDamaged
from covshift.schema import Layer, Parameter, Row, Status
from covshift.store import Writer
from covshift.store.completeness import lost_files
from covshift.store.documents import nodes_of, root_of
from covshift.store.recovery import recover


def rows(step, layers=3):
    cells = np.full((layers, 5), step + 1, "u8")
    return [
        Row("layers", step, {"count": cells, "sum": cells / 2, "status": np.full((layers, 5), Status.OK, "u1")}),
        Row("histograms", step, {"gradient_histogram": np.full((layers, 2, 1024), 7, "u4")}),
        Row("scalars", step, {"loss": np.float64(step)} if step >= 5 else {}),
    ]


def record(path, steps, *, layers=3, **options):
    with Writer(path, attrs={}, **options) as writer:
        writer.declare_layers([Layer(f"fc{k}", "Linear", k, unit_count=1) for k in range(layers)])
        writer.declare_parameters([Parameter("w", 3, 2)])
        for step in steps:
            writer.append(rows(step, layers))
    return writer.path


def missing(path):
    return [one.key for one in lost_files(path, nodes_of(root_of((path / "zarr.json").read_bytes())))]


@pytest.mark.slow
def test_a_recording_has_every_file_within_its_shapes_whatever_came_late(tmp_path):
    with Writer(tmp_path / "run", attrs={}, flush_records=16, background=False) as writer:
        writer.append([Row("layers", 0, {}), Row("units", 0, {}), Row("scalars", 0, {})])
        writer.declare_layers([Layer("first", "Linear", 0, unit_count=2)])
        for step in range(1, 300):
            writer.append(rows(step, 1))
        writer.flush()
        writer.declare_layers([Layer(f"late{k}", "Linear", k, unit_count=300) for k in range(300)])
        writer.flush()
        assert missing(writer.path) == []
        for step in range(300, 340):
            writer.append([*rows(step, 301)[:2], Row("scalars", step, {"accuracy": np.float64(1)})])
            writer.append([Row("units", step, {"unit_mean": np.ones((2 + 300 * 300, 2), "f4")})])
            writer.append([Row("evaluation/layers", step, {})])
    assert missing(writer.path) == []
    with Writer(writer.path, attrs={}, resume=True) as again:
        again.resume_at(280)
    assert missing(writer.path) == []
    layers = store.open(writer.path)["layers/count"]
    assert layers.sizes == {"step": 280, "layer": 301, "signal": 5}
    np.testing.assert_array_equal(layers.sum("layer")[:, 0], [0, *np.arange(2, 281)])


@pytest.mark.slow
def test_every_single_file_that_is_lost_or_emptied_is_noticed_by_the_name_of_its_array(tmp_path):
    path = record(tmp_path / "run", range(6))
    everything = sorted(file for file in path.rglob("c/**/*") if file.is_file())
    assert len(everything) == 50
    for number, file in enumerate(everything):
        data = file.read_bytes()
        if number % 2:
            file.write_bytes(b"")
        else:
            file.unlink()
        array = str(file.relative_to(path)).split("/c/")[0]
        with pytest.raises(RecordingDamaged, match=rf"data files are missing or empty \(1\): '{array}'"):
            store.open(path)
        with pytest.raises(RecordingDamaged, match=f"'{array}'.*restore them from a copy"):
            Writer(path, attrs={}, resume=True)
        file.write_bytes(data)
    assert store.open(path)["layers"].sizes["step"] == 6


def test_the_error_names_variable_steps_and_layers(tmp_path):
    path = record(tmp_path / "run", range(0, 600, 2))
    shutil.rmtree(path / "layers/sum/c/1")
    with pytest.raises(RecordingDamaged, match=r"'layers/sum' \(steps 512 to 598, layers fc0 to fc2\); restore"):
        store.open(path)


def test_a_lost_file_of_superseded_rows_is_noticed_too(tmp_path):
    path = record(tmp_path / "run", range(10))
    with Writer(path, attrs={}, resume=True) as writer:
        writer.resume_at(4)
    shutil.rmtree(path / "superseded/attempt_0/layers/count/c")
    with pytest.raises(RecordingDamaged, match=r"'superseded/attempt_0/layers/count' \(steps 4 to 9"):
        store.open(path)


def test_recover_marks_rows_and_layers_of_a_lost_file_absent_in_every_variable_and_keeps_the_rest(tmp_path):
    path = record(tmp_path / "run", range(300))
    kept = (path / "layers/sum/c/0/0/0").read_bytes()
    before = xr.open_datatree(path).load()
    shutil.rmtree(path / "layers/count/c/0")
    recovery = recover(path)
    assert "layers/count" in recovery.notes[0]
    recording = store.open(path)
    assert "'layers/count' (rows 0 to 255, layers 0 to 2): absent since a repair" in recording.attrs["warnings"][0]
    first = recording["layers"].isel(step=slice(256))
    assert (first["status"] == Status.ABSENT).all()
    assert (first["count"] == 0).all()
    assert np.isnan(first["sum"]).all()
    assert recording["layers"].step.values.tolist() == list(range(300))
    xr.testing.assert_equal(
        recording["layers"].to_dataset().isel(step=slice(256, None)).compute(),
        before["layers"].to_dataset().isel(step=slice(256, None)),
    )
    xr.testing.assert_equal(recording["histograms"].to_dataset().compute(), before["histograms"].to_dataset())
    aside = next((path / ".covshift").glob("set-aside-*"))
    assert (aside / "layers/sum/c/0/0/0").read_bytes() == kept
    with Writer(path, attrs={}, resume=True) as writer:
        writer.resume_at(300)


def test_recover_gives_a_scalar_back_without_its_lost_values_and_refuses_where_steps_are_lost(tmp_path):
    path = record(tmp_path / "run", range(10))
    (path / "scalars/loss/c/0").unlink()
    recover(path)
    assert store.open(path)["scalars/loss"].isnull().all()
    assert store.open(path)["scalars"].sizes["step"] == 10
    (path / "layers/step/c/0").unlink()
    with pytest.raises(RecordingDamaged, match="cannot be repaired.*'layers/step'.*restore them from a copy"):
        recover(path)


def test_a_file_that_vanishes_while_it_is_written_stops_the_fold_and_keeps_the_rows_in_the_journal(tmp_path):
    writer = Writer(tmp_path / "run", attrs={}, background=False, flush_records=8)
    writer.declare_layers([Layer("fc0", "Linear", 0)])
    for step in range(10):
        writer.append([Row("layers", step, {"count": np.full((1, 5), 3, "u8")})])
    shard = writer.path / "layers/count/c/0/0/0"
    data = shard.read_bytes()
    shard.unlink()
    with pytest.warns(CovshiftWarning, match="folding failed .*a file with committed rows is missing"):
        for step in range(10, 20):
            writer.append([Row("layers", step, {"count": np.full((1, 5), 3, "u8")})])
    shard.write_bytes(data)
    writer.close()
    assert (store.open(writer.path)["layers/count"] == 3).all()
    assert store.open(writer.path)["layers"].sizes["step"] == 20


@pytest.mark.parametrize("value", [None, 3, "x", [], [-1, 2, 3], [10**12, 1, 5], {}])
@pytest.mark.parametrize("field", ["shape", "chunk_grid", "dimension_names", "node_type"])
def test_metadata_of_an_array_that_make_no_sense_are_damage_in_one_line(tmp_path, field, value):
    path = record(tmp_path / "run", range(3))
    root = json.loads((path / "zarr.json").read_text())
    root["consolidated_metadata"]["metadata"]["layers/count"][field] = value
    (path / "zarr.json").write_text(json.dumps(root))
    with pytest.raises(RecordingDamaged) as caught:
        store.open(path)
    assert str(path) in str(caught.value)
    assert caught.value.__cause__ is None
