"""Locks, resumes, and what a second writer finds."""

import dataclasses
import json
import os
import shutil
import socket
import subprocess
import sys

import numpy as np
import pytest
import xarray as xr

from covshift import schema, store
from covshift.exceptions import InvalidArgumentError, RecordingDamaged, RecordingError, StoreLocked
from covshift.schema import Layer, Mode, Parameter, Row, SparseCounts
from covshift.store import Writer, endings, layout
from covshift.store.archive import Archive

LAYERS = [Layer("a", "Linear", 0, unit_count=2), Layer("b", "Linear", 1, unit_count=1, activation="relu")]


def rows(step, value, *, layers=2):
    counts = np.full((layers, 5), value, "u8") + np.arange(layers, dtype="u8")[:, None]
    return [Row("layers", step, {"count": counts}), Row("scalars", step, {"loss": np.float64(value)})]


def record(path, steps, value, *, resume_at=None, **options):
    with Writer(path, attrs={}, resume=resume_at is not None, **options) as writer:
        if resume_at is not None:
            writer.resume_at(resume_at)
        writer.declare_layers(LAYERS)
        writer.declare_parameters([Parameter("w", 3, 2)])
        for step in steps:
            writer.append(rows(step, value))
    return writer.path


def test_a_second_writer_is_told_pid_and_host_of_the_first(tmp_path):
    first = Writer(tmp_path / "run", attrs={})
    who = f"being written by pid {os.getpid()} on host {socket.gethostname()}"
    for options in ({}, {"overwrite": True}, {"resume": True}):
        with pytest.raises(StoreLocked, match=who):
            Writer(tmp_path / "run", attrs={}, **options)
    first.close()
    Writer(tmp_path / "run", attrs={}, overwrite=True).close()


@pytest.mark.parametrize("background", [False, True])
def test_a_writer_whose_recording_was_deleted_leaves_the_one_alone_that_took_its_place(tmp_path, background):
    layer, cells = Layer("fc", module_type="Linear", depth=0), np.full((1, 5), 7, dtype="u8")
    first = Writer(tmp_path / "run", attrs={}, flush_records=2, background=background)
    first.declare_layers([layer])
    first.append([Row("layers", 0, {"count": cells})])
    shutil.rmtree(tmp_path / "run.zarr")
    with Writer(tmp_path / "run", attrs={}) as second:
        second.declare_layers([layer])
        second.append([Row("layers", 5, {"count": cells + 1})])
        first.append([Row("layers", 1, {"count": cells})])
        first._folding.wait()
        # A warning, which is an error here, would tell of records that are safe in a journal.
        first._report_failure()
        with pytest.raises(RecordingError, match="deleted, moved or replaced since this writer opened it"):
            first.append([Row("layers", 2, {"count": cells})])
        with pytest.raises(RecordingError, match="deleted, moved or replaced since this writer opened it"):
            first.close()
        second.append([Row("layers", 6, {"count": cells + 1})])
    assert store.open(tmp_path / "run")["layers/count"].sel(signal="activation").values.tolist() == [[8], [8]]
    shutil.rmtree(tmp_path / "run.zarr")
    endings.dismiss(first)


def test_a_lock_file_that_somebody_cleared_away_costs_no_record(tmp_path):
    with Writer(tmp_path / "run", attrs={}) as writer:
        writer.declare_layers([Layer("fc", module_type="Linear", depth=0)])
        (writer.path / layout.HIDDEN / "lock").unlink()
        writer.append([Row("layers", 0, {"count": np.full((1, 5), 7, dtype="u8")})])
    assert store.open(tmp_path / "run")["layers/count"].sel(signal="activation").values.tolist() == [[7]]


HOLD = """
import os, sys, time
from covshift.store import Writer
writer = Writer(sys.argv[1], attrs={})
if len(sys.argv) > 2 and os.fork() == 0:
    time.sleep(60)
print("held", flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(os.name != "posix", reason="flock")
@pytest.mark.parametrize("words", [[], ["with a forked child that lives on"]])
def test_the_lock_dies_with_the_process_even_if_a_forked_child_survives_it(tmp_path, words):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path / "run.zarr", *words],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout.readline() == "held\n"
    with pytest.raises(StoreLocked, match=f"pid {process.pid} "):
        Writer(tmp_path / "run", attrs={}, resume=True)
    process.kill()
    process.wait()
    Writer(tmp_path / "run", attrs={}, resume=True).close()
    if words:
        os.killpg(process.pid, 9)
    process.stdout.close()


def test_a_forked_child_cannot_write(tmp_path, monkeypatch):
    writer = Writer(tmp_path / "run", attrs={})
    monkeypatch.setattr(os, "getpid", lambda: -1)
    with pytest.raises(RecordingError, match="a forked process cannot write it"):
        writer.append([])
    writer.close()
    monkeypatch.undo()
    writer.append([Row("scalars", 0, {})])
    writer.close()


@pytest.mark.parametrize("closed", [True, False])
def test_a_resume_supersedes_the_rows_from_its_step_on_and_steps_stay_unique(tmp_path, closed):
    path = record(tmp_path / "run", range(0, 200, 2), 1)
    if not closed:
        (path / ".covshift/lock").unlink()
    record(path, range(150, 250, 2), 2, resume_at=150)
    record(path, range(220, 224, 2), 3, resume_at=220)
    for tree in (store.open(path), xr.open_datatree(path)):
        steps = tree["layers"].step.values
        assert steps.tolist() == list(range(0, 224, 2))
        wanted = np.where(steps < 150, 1, np.where(steps < 220, 2, 3))
        np.testing.assert_array_equal(tree["layers/count"].sel(layer="a", signal="input"), wanted)
        np.testing.assert_array_equal(tree["scalars/loss"], wanted)
        assert tree["layers"].to_dataset().sel(step=slice(148, 152)).step.values.tolist() == [148, 150, 152]
        for attempt, value, replaced in ((0, 1, range(150, 200, 2)), (1, 2, range(220, 250, 2))):
            group = tree[f"superseded/attempt_{attempt}/layers"]
            assert group.step.values.tolist() == list(replaced)
            assert group.layer.values.tolist() == ["a", "b"]
            np.testing.assert_array_equal(group["count"].sel(layer="b"), np.full((len(replaced), 5), value + 1))
    noted = tree.attrs["covshift_resumes"]
    assert [(note["step"], note["superseded"]) for note in noted] == [
        (150, "superseded/attempt_0"),
        (220, "superseded/attempt_1"),
    ]


def evaluated(step, value, *, units=True, stream="evaluation"):
    row = Row(f"{stream}/layers", step, {"count": np.full((2, 5), value, "u8")}, schema.STREAMS[stream], Mode.EVAL)
    means = {"unit_mean": np.full((3, 2), value, "f4")}
    return [row, Row(f"{stream}/units", step, means, schema.STREAMS[stream], Mode.EVAL)] if units else [row]


@pytest.mark.parametrize("stream", ["evaluation", "probe"])
def test_rows_of_the_model_as_it_is_resumed_stay_until_they_are_made_again_and_go_as_a_whole_then(tmp_path, stream):
    with Writer(tmp_path / "run", attrs={}) as writer:
        writer.declare_layers(LAYERS)
        for step in range(6):
            writer.append([*rows(step, 1), *evaluated(step, 10 + step, stream=stream)])
    path = writer.path
    with Writer(path, attrs={}, resume=True) as writer:
        moved = {"layers": 3, "scalars": 3, f"{stream}/layers": 2, f"{stream}/units": 2}
        assert writer.resume_at(3) == moved
        writer.declare_layers(LAYERS)
        assert store.open(path)[f"{stream}/layers"].step.values.tolist() == [0, 1, 2, 3]
        writer.append(rows(3, 2))
        writer.append(evaluated(3, 20, units=False, stream=stream))
        writer.append([*rows(4, 2), *evaluated(4, 21, stream=stream)])
        in_journal = store.open(path).load()
    for tree in (in_journal, store.open(path), xr.open_datatree(path)):
        assert tree["layers"].step.values.tolist() == [0, 1, 2, 3, 4]
        assert tree["scalars/loss"].values.tolist() == [1, 1, 1, 2, 2]
        again = tree[f"{stream}/layers"]
        assert again.step.values.tolist() == [0, 1, 2, 3, 4]
        assert again["count"].sel(layer="a", signal="input").values.tolist() == [10, 11, 12, 20, 21]
        assert again["source"].values.tolist() == [schema.STREAMS[stream]] * 5
        assert tree[f"{stream}/units"].step.values.tolist() == [0, 1, 2, 4]
        aside = [tree[f"superseded/attempt_{attempt}"] for attempt in (0, 1)]
        assert [one[f"{stream}/units"].step.values.tolist() for one in aside] == [[4, 5], [3]]
        assert aside[1][f"{stream}/layers/count"].values.tolist() == [[[13] * 5] * 2]
        assert list(aside[1].children) == [stream]
    (noted,) = tree.attrs["covshift_resumes"]
    assert (noted["superseded"], noted["superseded_again"]) == ("superseded/attempt_0", ["superseded/attempt_1"])


def test_an_evaluation_made_again_that_the_disk_refuses_leaves_the_one_before(tmp_path, monkeypatch):
    with Writer(tmp_path / "run", attrs={}) as writer:
        writer.declare_layers(LAYERS)
        writer.append([*rows(0, 1), *evaluated(1, 10)])

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with Writer(writer.path, attrs={}, resume=True) as again:
        assert again.resume_at(1) == {}
        again.declare_layers(LAYERS)
        with monkeypatch.context() as patch:
            patch.setattr(Archive, "commit", full)
            with pytest.raises(RecordingError, match="No space left on device.*append it again"):
                again.append(evaluated(1, 20))
        assert store.open(writer.path)["evaluation/layers/count"].max() == 10
        again.append(evaluated(1, 20))
        assert store.open(writer.path)["evaluation/layers/count"].values.tolist() == [[[20] * 5] * 2]
        with pytest.raises(InvalidArgumentError, match="step=1: expected a step after 1"):
            again.append(evaluated(1, 30))


def test_every_variable_of_superseded_rows_equals_what_was_appended(tmp_path):
    rng = np.random.default_rng(0)
    cells = SparseCounts((2, 3, 4, 648), np.array([5, 9000], "u4"), np.array([7, 2**32 - 1], "u4"))
    originals = [
        Row(
            "histograms", step, {"value_histogram": cells, "gradient_histogram": rng.integers(0, 9, (2, 2, 1024), "u4")}
        )
        for step in range(20)
    ] + [Row("units", step, {"unit_mean": rng.normal(size=(3, 2)).astype("f4")}) for step in range(20)]
    with Writer(tmp_path / "run", attrs={}) as writer:
        writer.declare_layers(LAYERS)
        for row in originals:
            writer.append([row])
    with Writer(writer.path, attrs={}, resume=True) as again:
        assert again.resume_at(3) == {"histograms": 17, "units": 17}
    tree = store.open(writer.path)
    for row in originals:
        place = row.group if row.step < 3 else f"superseded/attempt_0/{row.group}"
        for name, values in row.variables.items():
            dense = values.dense() if isinstance(values, SparseCounts) else values
            np.testing.assert_array_equal(tree[place][name].sel(step=row.step), dense)
    assert tree["histograms"].sizes["step"] == 3


def test_scalars_logged_as_source_and_mode_are_superseded_like_any_others(tmp_path):
    with Writer(tmp_path / "run", attrs={}) as writer:
        for step in range(4):
            writer.append([Row("scalars", step, {"mode": np.float64(step + 0.37), "source": np.float64(-step)})])
    with Writer(writer.path, attrs={}, resume=True) as again:
        assert again.resume_at(2) == {"scalars": 2}
    tree = store.open(writer.path)
    for place, steps in (("scalars", [0, 1]), ("superseded/attempt_0/scalars", [2, 3])):
        assert tree[place].step.values.tolist() == steps
        assert tree[place]["mode"].values.tolist() == [step + 0.37 for step in steps]
        assert tree[place]["source"].values.tolist() == [-step for step in steps]


def test_rows_that_were_superseded_never_come_back_in_variables_the_new_rows_leave_out(tmp_path):
    path = record(tmp_path / "run", range(300), 1)
    with Writer(path, attrs={}, resume=True) as writer:
        writer.resume_at(64)
        writer.declare_layers(LAYERS)
        for step in range(64, 400):
            writer.append([Row("layers", step, {}), Row("scalars", step, {})])
    tree = xr.open_datatree(path)
    assert (tree["layers/count"].isel(step=slice(64, None)) == 0).all()
    assert tree["scalars/loss"].isel(step=slice(64, None)).isnull().all()
    assert (tree["layers/count"].isel(step=slice(64)) > 0).all()


def test_a_resumed_writer_may_meet_layers_in_another_order_and_new_ones(tmp_path):
    path = record(tmp_path / "run", range(5), 1)
    new = Layer("c", "Linear", 2, unit_count=2)
    cells = SparseCounts((2, 2, 1024), np.array([3, 2048 + 4], "u4"), np.array([30, 40], "u4"))
    with Writer(path, attrs={}, resume=True) as writer:
        writer.resume_at(5)
        writer.declare_layers([new, LAYERS[1]])
        writer.append([Row("layers", 5, {"count": np.array([[30] * 5, [20] * 5], "u8")})])
        writer.append([Row("units", 5, {"unit_mean": np.array([[3, 3], [4, 4], [2, 2]], "f4")})])
        writer.append([Row("histograms", 5, {"gradient_histogram": cells})])
        writer.declare_layers([LAYERS[0]])
        writer.append([Row("layers", 6, {"count": np.array([[30] * 5, [20] * 5, [10] * 5], "u8")})])
    tree = store.open(path)
    assert tree["layers"].layer.values.tolist() == ["a", "b", "c"]
    assert tree["layers/count"].sel(step=5, signal="input").values.tolist() == [0, 20, 30]
    assert tree["layers/count"].sel(step=6, signal="input").values.tolist() == [10, 20, 30]
    np.testing.assert_array_equal(tree["units/unit_mean"][0, :, 0], [np.nan, np.nan, 2, 3, 4])
    histogram = tree["histograms/gradient_histogram"][0].values
    assert (histogram[2, 0, 3], histogram[1, 0, 4], histogram.sum()) == (30, 40, 70)


def test_a_resume_with_another_model_is_refused(tmp_path):
    path = record(tmp_path / "run", range(5), 1)
    with Writer(path, attrs={}, resume=True) as writer:
        writer.resume_at(5)
        with pytest.raises(InvalidArgumentError, match="layer 'a': unit_count=9, but it was recorded with 2"):
            writer.declare_layers([dataclasses.replace(LAYERS[0], unit_count=9)])
        writer.declare_parameters([Parameter("w", 3, 2)])
        writer.append([Row("parameters", 5, {})])
    with Writer(path, attrs={}, resume=True) as writer:
        writer.resume_at(6)
        with pytest.raises(InvalidArgumentError, match="parameter 'w': size=4, but it was recorded with 3"):
            writer.declare_parameters([Parameter("w", 4, 2)])


def test_a_resume_says_where_before_rows_come_and_only_once(tmp_path):
    path = record(tmp_path / "run", range(5), 1)
    with Writer(path, attrs={}, resume=True) as writer:
        with pytest.raises(RecordingError, match=r"nobody said at which step: call resume_at\(step\) first"):
            writer.append(rows(9, 1))
        with pytest.raises(InvalidArgumentError, match="step=-1: expected the whole number of optimizer steps"):
            writer.resume_at(-1)
        assert writer.resume_at(5) == {}
        with pytest.raises(RecordingError, match="comes once, before the first row"):
            writer.resume_at(3)
    assert store.open(path)["layers"].sizes["step"] == 5


def test_resuming_where_nothing_stands_begins_a_recording(tmp_path):
    path = record(tmp_path / "run", range(3), 1, resume_at=7)
    assert store.open(path)["layers"].sizes["step"] == 3


def test_resume_and_overwrite_exclude_each_other(tmp_path):
    with pytest.raises(InvalidArgumentError, match="expected one of them"):
        Writer(tmp_path / "run", attrs={}, resume=True, overwrite=True)


def test_attributes_of_a_resumed_process_are_noted_where_they_differ(tmp_path):
    with Writer(tmp_path / "run", attrs={"seed": 1, "host": "x"}):
        pass
    with Writer(tmp_path / "run", attrs={"seed": 1, "host": "y"}, resume=True) as writer:
        writer.resume_at(0)
    attrs = store.open(writer.path).attrs
    assert (attrs["host"], attrs["covshift_resumes"][0]["attrs"]) == ("x", {"host": "y"})


def test_a_recording_with_other_chunks_is_read_but_not_continued(tmp_path, monkeypatch):
    monkeypatch.setitem(layout.CHUNKS, "layers", {"step": 16, "layer": 32})
    path = record(tmp_path / "run", range(40), 1)
    monkeypatch.undo()
    with pytest.raises(RecordingError, match="chunks of another size.*record into another path"):
        Writer(path, attrs={}, resume=True)
    assert store.open(path)["layers/count"].sum() > 0


def test_a_recording_of_a_newer_schema_is_not_continued(tmp_path):
    path = record(tmp_path / "run", range(4), 1)
    root = json.loads((path / "zarr.json").read_text())
    root["attributes"]["covshift_schema_version"] = 99
    (path / "zarr.json").write_text(json.dumps(root))
    with pytest.raises(RecordingDamaged, match="schema version 99 is newer"):
        Writer(path, attrs={}, resume=True)


def test_a_resume_that_the_disk_refuses_leaves_the_recording_and_can_be_repeated(tmp_path, monkeypatch):
    path = record(tmp_path / "run", range(100), 1)
    before = xr.open_datatree(path).load()
    writer = Writer(path, attrs={}, resume=True)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Archive, "commit", full)
        with pytest.raises(RecordingError, match="No space left on device"):
            writer.resume_at(50)
    xr.testing.assert_identical(xr.open_datatree(path).load()["layers"], before["layers"])
    assert writer.resume_at(50) == {"layers": 50, "scalars": 50}
    writer.close()
    assert store.open(path)["superseded/attempt_0/layers"].sizes["step"] == 50


def test_of_two_that_would_overwrite_the_second_waits_for_the_first_to_end(tmp_path):
    path = record(tmp_path / "run", range(3), 1)
    first = Writer(path, attrs={}, overwrite=True)
    with pytest.raises(StoreLocked, match=f"pid {os.getpid()}"):
        Writer(path, attrs={}, overwrite=True)
    first.declare_layers(LAYERS)
    first.append(rows(0, 7))
    first.close()
    assert store.open(path)["layers/count"].max() == 8
    with Writer(path, attrs={}, overwrite=True):
        assert store.open(path)["layers"].sizes["step"] == 0
    first.close()
    assert store.open(path)["layers"].sizes["step"] == 0
