import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr

from covshift import store
from covshift.exceptions import RecordingDamaged, RecordingError
from covshift.schema import Layer, Row


@pytest.fixture
def path(tmp_path):
    with store.Writer(tmp_path / "run", attrs={}) as recording:
        recording.declare_layers([Layer("conv", "Conv2d", 0, unit_count=2), Layer("fc", "Linear", 1)])
        for step in (0, 10):
            counts = np.full((2, 5), step + 1, dtype="u8")
            recording.append([Row("layers", step, {"count": counts, "zero_count": counts})])
            recording.append([Row("scalars", step, {"wall_time": np.float64(step), "loss": np.float64(step)})])
    return recording.path


def rewrite_root(path: Path, change) -> None:
    root = json.loads((path / "zarr.json").read_text())
    change(root)
    (path / "zarr.json").write_text(json.dumps(root))


def test_opening_gives_what_plain_xarray_gives(path):
    xr.testing.assert_identical(store.open(path).load(), xr.open_datatree(path).load())


@pytest.mark.parametrize("form", [str, Path, lambda path: f"{path}/", lambda path: path.with_suffix("")])
def test_a_path_may_be_text_and_leave_the_suffix_out(path, form):
    assert store.open(form(path))["layers"].sizes["step"] == 2


def test_opening_reads_no_row(path):
    for name in ("layers", "scalars"):
        for variable in store.open(path)[name].data_vars.values():
            assert not variable.variable._in_memory


def test_chunks_give_dask_arrays_of_the_same_values(path):
    lazy, plain = store.open(path, chunks={})["layers/count"], store.open(path)["layers/count"]
    assert lazy.chunks == ((2,), (2,), (5,))
    xr.testing.assert_identical(lazy.compute(), plain)


def test_recordings_with_different_layers_join_along_their_labels(path):
    layers = store.open(path)["layers"].to_dataset()
    runs = [layers.isel(layer=[0]), layers.isel(layer=[1])]
    joined = xr.concat(runs, dim="run", join="outer", data_vars="all", coords="minimal", compat="override")
    assert joined.layer.values.tolist() == ["conv", "fc"]
    np.testing.assert_array_equal(joined["count"].sel(layer="fc", step=10, signal="input"), [np.nan, 11])


def test_a_missing_path_is_said_to_be_missing(tmp_path):
    with pytest.raises(RecordingError, match=r"no recording at '.*run\.zarr': check the path"):
        store.open(tmp_path / "run")


def test_a_file_is_said_to_be_a_file(tmp_path):
    (tmp_path / "run.zarr").write_text("{}")
    with pytest.raises(RecordingError, match="is a file: expected the directory of a recording"):
        store.open(tmp_path / "run.zarr")


def test_an_empty_directory_is_no_recording(tmp_path):
    with pytest.raises(RecordingError, match=r"is no recording: it holds no zarr\.json"):
        store.open(tmp_path)


def test_other_zarr_data_are_no_recording(tmp_path):
    zarr.create_group(tmp_path / "other.zarr", attributes={"title": "weather"})
    with pytest.raises(RecordingError, match="is no covshift recording: it has no attribute covshift_schema_version"):
        store.open(tmp_path / "other.zarr")


@pytest.mark.parametrize("length", [0, 1, 100, 5000])
def test_a_truncated_root_is_damage(path, length):
    root = path / "zarr.json"
    root.write_bytes(root.read_bytes()[:length])
    with pytest.raises(
        RecordingDamaged, match=r"run\.zarr' is damaged: its zarr\.json cannot be read.*restore it from"
    ):
        store.open(path)


def test_a_root_without_the_commit_record_is_damage(path):
    rewrite_root(path, lambda root: root.pop("consolidated_metadata"))
    with pytest.raises(RecordingDamaged, match="no consolidated metadata, which are the commit record"):
        store.open(path)


@pytest.mark.parametrize("node", ["layers", "scalars", "layers/zero_count", "scalars/loss", "layers/step"])
def test_a_group_or_array_that_is_gone_is_named(path, node):
    shutil.rmtree(path / node)
    with pytest.raises(RecordingDamaged, match=f"'{node}.*' is missing"):
        store.open(path)


@pytest.mark.parametrize("group", ["layers", "scalars"])
def test_a_group_that_the_root_forgot_is_named(path, group):
    def forget(root):
        metadata = root["consolidated_metadata"]["metadata"]
        for node in [node for node in metadata if node.split("/")[0] == group]:
            del metadata[node]

    rewrite_root(path, forget)
    with pytest.raises(RecordingDamaged, match=f"group '{group}' is missing"):
        store.open(path)


def test_a_variable_that_the_root_forgot_is_named(path):
    rewrite_root(path, lambda root: root["consolidated_metadata"]["metadata"].pop("layers/m2"))
    with pytest.raises(RecordingDamaged, match="group 'layers' has no variable 'm2'"):
        store.open(path)


def test_arrays_of_different_lengths_are_damage(path):
    def shorten(root):
        root["consolidated_metadata"]["metadata"]["layers/count"]["shape"][0] = 1

    rewrite_root(path, shorten)
    with pytest.raises(RecordingDamaged, match=re.escape("xarray cannot open it (conflicting sizes")):
        store.open(path)


def test_a_group_shorter_than_committed_is_damage(path):
    def shorten(root):
        for node, document in root["consolidated_metadata"]["metadata"].items():
            if node.startswith("scalars/"):
                document["shape"][0] = 1

    rewrite_root(path, shorten)
    with pytest.raises(RecordingDamaged, match="group 'scalars' has 1 rows, 2 were committed"):
        store.open(path)


def test_steps_of_another_recording_are_damage(tmp_path):
    paths = []
    for rows in (2, 4):
        with store.Writer(tmp_path / f"{rows}", attrs={}) as recording:
            recording.append([Row("scalars", step, {}) for step in range(rows)])
        paths.append(recording.path / "scalars/step/c/0")
    paths[1].write_bytes(paths[0].read_bytes())
    with pytest.raises(RecordingDamaged, match="the steps of group 'scalars' are not strictly increasing from 0"):
        store.open(recording.path)


def test_unreadable_steps_are_damage(path):
    chunk = path / "layers/step/c/0"
    chunk.write_bytes(chunk.read_bytes()[:-3])
    with pytest.raises(RecordingDamaged, match="do not have their checksum .1.: .layers/step. .rows 0 to 1."):
        store.open(path)


@pytest.mark.parametrize(
    ("version", "message"), [(2, "schema version 2 is newer than 1"), ("x", "expected a whole number")]
)
def test_a_newer_or_senseless_schema_version_is_refused_before_the_groups_are_read(path, version, message):
    def change(root):
        root["attributes"]["covshift_schema_version"] = version
        root["consolidated_metadata"]["metadata"]["layers/count"]["data_type"] = "of the future"

    rewrite_root(path, change)
    with pytest.raises(RecordingDamaged, match=message):
        store.open(path)


def test_what_a_recording_holds_does_not_depend_on_where_the_process_stands_when_it_is_read(path, monkeypatch):
    monkeypatch.chdir(path.parent)
    recording = store.open("run")
    (path.parent / "elsewhere").mkdir()
    monkeypatch.chdir(path.parent / "elsewhere")
    assert recording["layers/count"].sel(signal="activation").values.tolist() == [[1, 1], [11, 11]]


def replace(path: Path) -> None:
    with store.Writer(path, attrs={}, overwrite=True) as recording:
        recording.declare_layers([Layer("conv", "Conv2d", 0, unit_count=2), Layer("fc", "Linear", 1)])
        recording.append([Row("layers", 0, {"count": np.full((2, 5), 7, dtype="u8")})])


def take_up_again(path: Path) -> None:
    with store.Writer(path, attrs={}, resume=True) as recording:
        recording.resume_at(5)
        recording.declare_layers([Layer("conv", "Conv2d", 0, unit_count=2), Layer("fc", "Linear", 1)])
        recording.append([Row("layers", 10, {"count": np.full((2, 5), 7, dtype="u8")})])


@pytest.mark.parametrize("chunks", [None, {}])
@pytest.mark.parametrize(
    "change", [shutil.rmtree, lambda path: path.rename(path.with_name("b.zarr")), replace, take_up_again]
)
def test_rows_that_are_gone_by_the_time_they_are_read_are_an_error_never_zeros_or_another_runs(path, change, chunks):
    recording = store.open(path, chunks=chunks)
    change(path)
    with pytest.raises(RecordingError, match="was moved, deleted, replaced or resumed since it was opened"):
        recording["layers/count"].load()


def test_rows_stay_readable_while_a_recording_grows(path):
    recording = store.open(path)
    with store.Writer(path, attrs={}, resume=True) as writer:
        writer.resume_at(20)
        writer.declare_layers([Layer("conv", "Conv2d", 0, unit_count=2), Layer("fc", "Linear", 1)])
        writer.append([Row("layers", 20, {"count": np.full((2, 5), 7, dtype="u8")})])
    assert recording["layers/count"].sel(signal="activation").values.tolist() == [[1, 1], [11, 11]]
