"""A damaged byte is told by recording, array and rows. Oracle: zarr itself, which refuses what lacks its checksum."""

import json
import shutil

import fsspec
import numpy as np
import pytest
import xarray as xr
from typer.testing import CliRunner

from covshift import store
from covshift.cli import app
from covshift.exceptions import RecordingDamaged, RecordingError
from covshift.schema import Layer, Parameter, Row, Status
from covshift.store import Writer, committed
from covshift.store.recovery import recover


def record(path, steps, *, layers=20, **options):
    with Writer(path, attrs={}, **options) as writer:
        if options.get("resume"):
            writer.resume_at(steps[0])
        writer.declare_layers([Layer(f"fc{k}", "Linear", k, unit_count=1) for k in range(layers)])
        writer.declare_parameters([Parameter("w", 3, 2)])
        for step in steps:
            count = np.full((layers, 5), step + 1, "u8")
            status = np.full((layers, 5), Status.OK, "u1")
            writer.append([Row("layers", step, {"count": count, "sum": count / 2, "status": status})])
            writer.append([Row("units", step, {"unit_mean": np.full((layers, 2), step, "f4")})])
            writer.append([Row("parameters", step, {"weight_norm": np.ones(1)})])
            writer.append([Row("scalars", step, {"loss": np.float64(step)})])
            writer.append([Row("evaluation/layers", step, {"count": count})])
    return writer.target


@pytest.fixture
def path(tmp_path):
    return record(tmp_path / "run", range(0, 400, 2))


def flip(file, position):
    data = bytearray(file.read_bytes())
    data[position] ^= 16
    file.write_bytes(data)


@pytest.mark.parametrize("chunks", [None, {}])
def test_a_flipped_byte_is_told_by_recording_array_rows_and_way_out(path, chunks):
    flip(path / "layers/sum/c/0/0/0", 100)
    recording = store.open(path, chunks=chunks)
    message = r"run.zarr' is damaged: .*'layers/sum' \(steps 0 to 126, layers fc0 to fc15\).*`covshift recover`"
    with pytest.raises(RecordingDamaged, match=message):
        recording["layers/sum"].load()
    assert recording["layers/count"].values[-1, 0, 0] == 399
    assert recording["layers/sum"].isel(layer=slice(16, None)).values[0, 0, 0] == 0.5


@pytest.mark.parametrize(
    "file",
    [
        "layers/sum/c/0/0/0",
        pytest.param("units/unit_mean/c/1/0/0", marks=pytest.mark.slow),
        pytest.param("scalars/loss/c/0", marks=pytest.mark.slow),
    ],
)
def test_covshift_names_damage_exactly_where_zarr_finds_some(path, file):
    whole = (path / file).read_bytes()
    array = file.partition("/c/")[0]
    rng = np.random.default_rng(0)
    positions = {0, 1, len(whole) - 1, len(whole) - 5, *rng.integers(0, len(whole), 5).tolist()}
    for position in sorted(positions):
        flip(path / file, position)
        try:
            expected = xr.open_datatree(path)[array].values
        except (ValueError, RuntimeError):
            with pytest.raises(RecordingDamaged, match=array):
                store.open(path)[array].load()
        else:
            np.testing.assert_array_equal(store.open(path)[array].values, expected)
        (path / file).write_bytes(whole)


def test_a_damaged_index_costs_the_shard(path):
    flip(path / "layers/sum/c/0/0/0", -6)
    with pytest.raises(RecordingDamaged, match=r"'layers/sum' \(steps 0 to 398, layers fc0 to fc19\)"):
        store.open(path)["layers/sum"].load()


def test_a_file_that_the_disk_cannot_read_is_damage_with_its_reason(path, monkeypatch):
    recording = store.open(path)

    def refused(path, byte_range):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(committed, "_bytes_of", refused)
    with pytest.raises(RecordingDamaged, match="'scalars/loss/c/0' cannot be read.*Input/output error") as caught:
        recording["scalars/loss"].load()
    assert caught.value.__cause__.errno == 5


@pytest.mark.parametrize("words", ["check {}", "plot {} norm --out x.png", "export {} x.nc", "report {} --out x.html"])
def test_every_command_tells_damage_in_covshifts_own_line(path, tmp_path, words, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for file in [*path.glob("layers/*/c/0/0/0"), *path.glob("parameters/*/c/0/0")]:
        flip(file, 50)
    result = CliRunner().invoke(app, [word.format(path) for word in words.split()])
    page = tmp_path / "x.html"
    said = " ".join((result.output + (page.read_text() if page.exists() else "")).split())
    assert "do not have their checksum" in said, said
    assert "covshift recover" in said
    assert "Traceback" not in said
    assert "Stored and computed" not in said


def test_recover_marks_exactly_the_rows_and_layers_of_a_damaged_chunk_absent_in_every_variable(path):
    before = xr.open_datatree(path).load()
    shard = (path / "layers/sum/c/0/0/0").read_bytes()
    flip(path / "layers/sum/c/0/0/0", 100)
    notes = recover(path).notes
    assert len(notes) == 1
    assert "do not have their checksum (1): 'layers/sum' (rows 0 to 63, layers 0 to 15): absent since" in notes[0]
    after = store.open(path)
    assert after.attrs["warnings"] == notes
    lost = after["layers"].isel(step=slice(64), layer=slice(16))
    assert (lost["status"] == Status.ABSENT).all()
    assert (lost["count"] == 0).all()
    assert lost["sum"].isnull().all()
    for part in ({"step": slice(64, None)}, {"layer": slice(16, None)}):
        xr.testing.assert_equal(
            after["layers"].to_dataset().isel(part).compute(), before["layers"].to_dataset().isel(part)
        )
    for group in ("units", "parameters", "scalars", "evaluation/layers"):
        xr.testing.assert_equal(after[group].to_dataset().compute(), before[group].to_dataset())
    (aside,) = (path / ".covshift").glob("set-aside-*")
    flip(aside / "layers/sum/c/0/0/0", 100)
    assert (aside / "layers/sum/c/0/0/0").read_bytes() == shard
    assert recover(path).notes == []
    record(path, range(400, 410), resume=True)
    assert store.open(path)["layers/count"].sel(layer="fc0", signal="input").values[[0, 64, -1]].tolist() == [
        0,
        129,
        410,
    ]


@pytest.mark.parametrize("damage", ["index", "cut", "index and chunk of another variable"])
def test_recover_takes_a_shard_without_its_index_for_lost(path, damage):
    shard = path / "layers/sum/c/0/0/0"
    if damage == "cut":
        shard.write_bytes(shard.read_bytes()[:-100])
    else:
        flip(shard, -6)
    if "another" in damage:
        flip(path / "layers/count/c/0/0/0", 30)
    (note,) = recover(path).notes
    assert "'layers/sum' (rows 0 to 199, layers 0 to 19)" in note
    after = store.open(path)
    assert (after["layers/status"] == Status.ABSENT).all()
    assert after["layers/sum"].isnull().all()
    assert after["units"].sizes["step"] == 200


def test_recover_blanks_a_damaged_scalar_and_refuses_damaged_steps_of_layers(path):
    flip(path / "scalars/loss/c/0", 9)
    assert "'scalars/loss'" in recover(path).notes[0]
    assert store.open(path)["scalars/loss"].isnull().all()
    flip(path / "layers/step/c/0", 9)
    with pytest.raises(RecordingDamaged, match="cannot be repaired.*'layers/step'.*restore them from a copy"):
        recover(path)


@pytest.mark.parametrize("group", ["units", "parameters", "scalars", "evaluation/layers"])
@pytest.mark.parametrize("damage", ["gone", "steps flipped"])
def test_recover_leaves_out_a_group_without_its_steps_and_keeps_the_rest(path, group, damage):
    before = xr.open_datatree(path).load()
    if damage == "gone":
        shutil.rmtree(path / group)
    else:
        flip(path / group / "step/c/0", 9)
    recovery = recover(path)
    assert f"the group '{group}' means nothing and is left out" in recovery.notes[-1]
    assert group not in recovery.records
    after = store.open(path)
    assert f"/{group}" not in after.groups
    for other in {"layers", "units", "parameters", "scalars", "evaluation/layers"} - {group}:
        xr.testing.assert_equal(after[other].to_dataset().compute(), before[other].to_dataset())
    if damage != "gone":
        assert list((path / ".covshift").glob(f"set-aside-*/{group}/step/c/0"))
    record(path, range(400, 410), resume=True)
    assert store.open(path)[group].step.values.tolist() == list(range(400, 410))


def test_recover_restores_metadata_of_arrays_and_groups_from_the_commit_record(path):
    before = xr.open_datatree(path).load()
    for name in ("layers/zarr.json", "layers/count/zarr.json", "evaluation/zarr.json"):
        (path / name).unlink()
    with pytest.raises(RecordingDamaged, match="is missing; try `covshift recover`"):
        store.open(path)
    assert recover(path).notes == [
        "metadata restored from zarr.json: 'evaluation/zarr.json', 'layers/zarr.json', 'layers/count/zarr.json'"
    ]
    assert recover(path).notes == []
    assert json.loads((path / "layers/count/zarr.json").read_text())["shape"] == [200, 20, 5]
    xr.testing.assert_equal(store.open(path).load(), before)


@pytest.fixture
def url(tmp_path):
    fsspec.filesystem("memory").store.clear()
    yield record("memory://damage/run.zarr", range(20), journal_directory=tmp_path)
    fsspec.filesystem("memory").store.clear()


def test_a_recording_at_a_url_that_was_deleted_or_damaged_is_an_error_not_zeros(url):
    recording = store.open(url)
    files = fsspec.filesystem("memory")
    shard = files.cat("/damage/run.zarr/layers/sum/c/0/0/0")
    files.pipe("/damage/run.zarr/layers/sum/c/0/0/0", bytes([shard[0] ^ 1]) + shard[1:])
    with pytest.raises(RecordingDamaged, match=r"'layers/sum' \(steps 0 to 19, layers fc0 to fc15\); restore"):
        recording["layers/sum"].load()
    files.rm("/damage", recursive=True)
    with pytest.raises(RecordingError, match="deleted"):
        recording["layers/count"].load()
    with pytest.raises(RecordingError):
        store.open(url)
