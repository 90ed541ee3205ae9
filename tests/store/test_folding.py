"""When waiting rows are folded into the arrays, and that a fold which fails or is killed loses none of them."""

import errno
import shutil

import numpy as np
import pytest
import xarray as xr

from covshift import schema, store
from covshift.exceptions import CovshiftWarning, InvalidArgumentError, RecordingError
from covshift.schema import Parameter, Row, SparseCounts
from covshift.store import Writer, endings, folding
from covshift.store.archive import Archive
from covshift.store.axes import Axes
from covshift.store.description import estimated_bytes
from covshift.store.medium import Directory


def test_rows_wait_as_small_as_they_came(a_layer):
    with Writer(None, attrs={}) as recording:
        recording.declare_layers([a_layer()])
        cells = SparseCounts((1, 3, 4, 648), np.array([7, 5], dtype="u4"), np.array([9, 8], dtype="u4"))
        recording.append([Row("histograms", 0, {"value_histogram": cells})])
        assert recording.buffered_bytes == 4 * 4
        recording.flush()
        assert recording.buffered_bytes == 0


@pytest.mark.parametrize(
    ("options", "rows_per_commit"),
    [({"flush_records": 2}, [0, 2, 2, 4]), ({"flush_seconds": 1e-9}, [1, 2, 2, 4]), ({}, [0, 0, 0, 0])],
)
def test_rows_are_folded_when_enough_wait_or_an_aged_fold_doubles_the_chunk(
    a_layer, counts_row, options, rows_per_commit
):
    committed = []
    with Writer(None, attrs={}, **options) as recording:
        recording.declare_layers([a_layer()])
        for step in range(4):
            recording.append([counts_row(step)])
            committed.append(store.open(recording.target)["layers"].sizes["step"])
    assert committed == rows_per_commit


def test_rows_are_written_when_they_hold_too_much_memory(a_layer, counts_row, monkeypatch):
    monkeypatch.setattr(folding, "BUFFER_BYTES", 100)
    with Writer(None, attrs={}) as recording:
        recording.declare_layers([a_layer()])
        recording.append([Row("layers", 0, {"count": np.ones((1, 5), "u8")})])
        assert recording.buffered_bytes == 40
        recording.append([counts_row(1)])
        assert recording.buffered_bytes == 0


@pytest.mark.parametrize("options", [{"flush_records": 0}, {"flush_seconds": 0.0}, {"flush_seconds": float("nan")}])
def test_flush_limits_that_mean_nothing_are_refused(options):
    with pytest.raises(InvalidArgumentError, match="expected at least 1 and more than 0"):
        Writer(None, attrs={}, **options)


class Killed(BaseException):
    """What nothing in the writer may catch."""


def test_a_kill_before_the_commit_leaves_readers_the_previous_commit(a_layer, counts_row, tmp_path, monkeypatch):
    recording = Writer(tmp_path / "run", attrs={}, background=False)
    recording.declare_layers([a_layer("a", unit_count=1)])
    recording.append([counts_row(0)])
    recording.flush()
    before = xr.open_datatree(recording.path).load()

    def killed(*_, **__):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Archive, "commit", killed)
        recording.declare_layers([a_layer("late", unit_count=1)])
        recording.append([counts_row(1, layers=2), Row("units", 1, {}), Row("scalars", 1, {"loss": np.float64(1)})])
        with pytest.raises(Killed):
            recording.flush()
    assert (recording.path / "scalars/loss/c/0").is_file()
    xr.testing.assert_identical(xr.open_datatree(recording.path).load(), before)
    tree = store.open(recording.path)
    assert tree["layers"].step.values.tolist() == [0, 1]
    assert tree["scalars/loss"].values.tolist() == [1]


@pytest.mark.slow
def test_every_state_of_the_files_reads_as_a_commit_and_with_the_journal_as_all_that_was_acknowledged(
    a_layer, counts_row, tmp_path, monkeypatch
):
    copies = []

    def copied(self, key, parts, replace=Directory._replace):
        replace(self, key, parts)
        copies.append(shutil.copytree(tmp_path / "run.zarr", tmp_path / f"copy{len(copies)}.zarr"))

    acknowledged = []
    with Writer(tmp_path / "run", attrs={}, background=False) as recording:
        monkeypatch.setattr(Directory, "_replace", copied)
        recording.declare_layers([a_layer()])
        for step in range(3):
            recording.append([counts_row(step), Row("scalars", step, {"loss": np.float64(step)})])
            recording.flush()
            acknowledged += [step + 1] * (len(copies) - len(acknowledged))
    acknowledged += [3] * (len(copies) - len(acknowledged))
    trees = [xr.open_datatree(path) for path in copies]
    lengths = [tree["layers"].sizes["step"] for tree in trees]
    assert lengths == sorted(lengths)
    assert set(lengths) == {0, 1, 2, 3}
    assert [store.open(path)["layers"].sizes["step"] for path in copies] == acknowledged
    for tree in [tree for tree in [*trees, *map(store.open, copies)] if tree["layers"].sizes["step"]]:
        rows = tree["layers"].sizes["step"]
        np.testing.assert_array_equal(tree["scalars/loss"], np.arange(rows))
        np.testing.assert_array_equal(
            tree["layers/count"], [counts_row(step).variables["count"] for step in range(rows)]
        )


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("works_for", [0, 5, 20])
def test_a_fold_that_fails_is_reported_once_loses_no_row_and_the_next_flush_writes_all(
    a_layer, counts_row, assert_holds, tmp_path, monkeypatch, works_for, background
):
    replace, calls = Directory._replace, []

    def full(*arguments):
        calls.append(arguments)
        if len(calls) <= works_for:
            return replace(*arguments)
        raise OSError(errno.ENOSPC, "No space left on device")

    rows = [counts_row(0), Row("scalars", 0, {"loss": np.float64(3)})]
    with Writer(tmp_path / "run", attrs={}, flush_records=2, background=background) as recording:
        recording.declare_layers([a_layer()])
        recording.append(rows)
        with monkeypatch.context() as patch:
            patch.setattr(Directory, "_replace", full)
            rows += [counts_row(1), Row("units", 1, {})]
            with pytest.warns(CovshiftWarning, match="No space left on device.*safe in the journal.*tried again"):
                recording.append(rows[2:])
                recording._folding.wait()
                rows.append(counts_row(2))
                recording.append(rows[4:])
            rows.append(counts_row(3))
            recording.append(rows[5:])
            with pytest.raises(RecordingError, match="No space left on device.*6 rows wait on.*flush again"):
                recording.flush()
            assert xr.open_datatree(recording.path)["layers"].sizes["step"] == 0
            assert store.open(recording.path)["layers"].sizes["step"] == 4
    assert_holds(store.open(recording.path), rows, {"layer": 1, "unit": 0})
    assert_holds(xr.open_datatree(recording.path), rows, {"layer": 1, "unit": 0})


def test_closing_commits_what_waits_marks_the_recording_closed_and_may_be_repeated(a_layer, counts_row, tmp_path):
    recording = Writer(tmp_path / "run", attrs={})
    recording.declare_layers([a_layer()])
    recording.append([counts_row(0)])
    assert store.open(recording.path).attrs["covshift_commit"]["closed"] is False
    recording.close()
    commit = store.open(recording.path).attrs["covshift_commit"]
    assert (commit["closed"], commit["records"]) == (True, {"layers": 1})
    recording.close()
    recording.flush()
    assert store.open(recording.path).attrs["covshift_commit"] == commit
    for act in (recording.append, recording.declare_layers, recording.declare_parameters):
        with pytest.raises(RecordingError, match=r"run\.zarr is closed"):
            act([])


def test_rows_taken_before_an_error_in_the_with_block_are_kept(a_layer, counts_row):
    recording = Writer(None, attrs={})
    with pytest.raises(ZeroDivisionError), recording:
        recording.declare_layers([a_layer()])
        recording.append([counts_row(0)])
        raise ZeroDivisionError
    assert store.open(recording.target)["layers"].sizes["step"] == 1


def test_what_a_fold_wrote_in_part_is_not_published_by_a_later_fold_that_takes_other_groups(
    a_layer, counts_row, assert_holds, tmp_path, monkeypatch
):
    rows = [counts_row(step) for step in range(3)]
    scalars = [Row("scalars", step, {"loss": np.float64(step)}) for step in range(5)]
    recording = Writer(tmp_path / "run", attrs={}, flush_records=4, background=False)
    recording.declare_layers([a_layer()])
    recording.append([*rows[:1], *scalars[:1]])
    recording.flush()
    recording.append([*rows[1:3], *scalars[1:2]])

    def full(self, key, parts, replace=Directory._replace):
        if key.startswith("scalars/"):
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(self, key, parts)

    with monkeypatch.context() as patch:
        patch.setattr(Directory, "_replace", full)
        recording.declare_layers([a_layer("late")])
        with pytest.raises(RecordingError, match="No space left"):
            recording.flush()
    recording._archive.fold({"scalars": scalars[1:2]}, Axes([a_layer()]))
    committed = xr.open_datatree(recording.path)
    assert (committed["layers"].sizes["step"], committed["layers"].sizes["layer"]) == (1, 1)
    recording._opened.release()
    endings.dismiss(recording)
    assert_holds(store.open(recording.path), [*rows[:3], *scalars[:2]], {"layer": 1})


def test_a_recording_in_memory_takes_no_more_than_it_may_and_says_so_once(a_layer):
    recording = Writer(None, attrs={}, max_memory=250_000, flush_records=16)
    recording.declare_layers([a_layer(f"fc{k}") for k in range(50)])
    rng = np.random.default_rng(0)
    with pytest.warns(CovshiftWarning, match="in memory has reached 0.00025 GB.*record to a disk with path=") as warned:
        for step in range(400):
            recording.append([Row("layers", step, {"sum": rng.normal(size=(50, 5))})])
    assert [one.filename for one in warned] == [__file__]
    recording.close()
    kept = store.open(recording.target)["layers"].sizes["step"]
    assert 20 < kept < 200


def test_the_estimated_size_of_a_recording_is_near_its_size(a_layer, tmp_path):
    rng = np.random.default_rng(0)
    lengths = {"layer": 40, "unit": 2000, "parameter": 40}
    with Writer(tmp_path / "run", attrs={}) as recording:
        recording.declare_layers([a_layer(f"fc{k}", unit_count=50) for k in range(40)])
        recording.declare_parameters([Parameter(f"w{k}", 9, 2) for k in range(40)])
        for step in range(128):
            for path in ("layers", "parameters", *(["units"] if step % 8 == 0 else [])):
                fixed = {dim: len(labels) for dim, labels in schema.group_of(path).labels.items()}
                cells = {}
                for variable in schema.group_of(path).variables:
                    shape = tuple((lengths | fixed)[dim] for dim in variable.dims)
                    drawn = rng.normal(size=shape) if variable.dtype[0] == "f" else rng.binomial(65536, 0.3, shape)
                    cells[variable.name] = (drawn % 2 if variable.dtype == "u1" else drawn).astype(variable.dtype)
                recording.append([Row(path, step, cells)])
    size = sum(file.stat().st_size for file in recording.path.rglob("*") if file.is_file())
    counts = {"records": 128, "histograms": 0, "unit_records": 16}
    assert 0.4 * size < estimated_bytes(layers=40, units=2000, parameters=40, **counts) < 2.5 * size
