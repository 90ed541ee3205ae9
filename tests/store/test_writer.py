import dataclasses
import errno
import shutil
import subprocess
import sys

import numpy as np
import pytest
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from covshift import schema, store
from covshift.exceptions import CovshiftWarning, InvalidArgumentError, RecordingError, RecordingExists
from covshift.schema import Layer, Mode, Parameter, Row, Source, SparseCounts, Status
from covshift.store import Writer, documents, endings, folding, layout
from covshift.store.archive import Archive
from covshift.store.axes import Axes
from covshift.store.description import estimated_bytes
from covshift.store.medium import Directory

SPARSE = ("value_histogram", "gradient_histogram")


def a_layer(name: str = "fc", **fields) -> Layer:
    return Layer(name, module_type="Linear", depth=0, **fields)


def counts_row(step: int, layers: int = 1, **fields) -> Row:
    counts = np.arange(step, step + layers * 5, dtype="u8").reshape(layers, 5)
    return Row("layers", step, {"count": counts, "sum": counts / 7}, **fields)


def random_cells(variable: schema.Variable, lengths: dict[str, int], rng: np.random.Generator):
    """Any cells of the variable: counts over their whole range, floats with NaN, histograms sparse and unsorted."""
    shape = tuple(lengths[dim] for dim in variable.dims)
    dtype = np.dtype(variable.dtype)
    if variable.name in SPARSE:
        size = int(np.prod(shape))
        index = rng.choice(size, min(size, 20), replace=False).astype("u4")
        return SparseCounts(shape, index, rng.integers(1, 2**32, len(index), dtype="u4"))
    if variable.name == "wall_time":
        return np.float64(rng.integers(0, 2_000_000_000))
    if dtype.kind == "u":
        return rng.integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)
    return np.where(rng.random(shape) < 0.2, np.nan, rng.normal(size=shape)).astype(dtype)


def random_row(path: str, step: int, lengths: dict[str, int], rng: np.random.Generator) -> Row:
    group = schema.group_of(path)
    fixed = {dim: len(labels) for dim, labels in group.labels.items()}
    variables = {
        variable.name: random_cells(variable, lengths | fixed, rng)
        for variable in group.variables
        if rng.random() < 0.7
    }
    if path == "scalars":
        variables |= {name: np.float64(rng.normal()) for name in ("loss", "lr") if rng.random() < 0.5}
    source, mode = Source(rng.integers(4)), Mode(rng.integers(2))
    return Row(path, step, variables, source, mode)


def stacked(rows: list[Row], name: str, lengths: dict[str, int]) -> np.ndarray:
    """What the store must give back, cell by cell from the rows."""
    known = {variable.name: variable for variable in schema.group_of(rows[0].group).variables}
    variable = known.get(name, schema.Variable(name, (), "f8", ""))
    fixed = {dim: len(labels) for dim, labels in schema.group_of(rows[0].group).labels.items()}
    shape = tuple((lengths | fixed)[dim] for dim in variable.dims)
    expected = np.full((len(rows), *shape), np.nan if np.dtype(variable.dtype).kind == "f" else 0, variable.dtype)
    for position, row in enumerate(rows):
        cells = row.variables.get(name)
        if cells is not None:
            cells = cells.dense() if isinstance(cells, SparseCounts) else np.asarray(cells)
            expected[(position, *(slice(length) for length in cells.shape))] = cells
    return expected


def assert_holds(recording: xr.DataTree, rows: list[Row], lengths: dict[str, int]) -> None:
    assert {row.group for row in rows} | {"layers"} == set(recording.attrs["covshift_commit"]["records"])
    for path in {row.group for row in rows}:
        own = [row for row in rows if row.group == path]
        dataset = recording[path].to_dataset()
        assert dataset.step.values.tolist() == [row.step for row in own]
        if "source" in dataset:
            assert dataset.source.values.tolist() == [row.source for row in own]
            assert dataset["mode"].values.tolist() == [row.mode for row in own]
        for name in dataset.data_vars:
            expected = stacked(own, name, lengths)
            found = dataset[name].values
            if name == "wall_time":
                found = np.where(np.isnat(found), np.nan, (found - np.datetime64(0, "s")) / np.timedelta64(1, "s"))
            assert found.dtype == expected.dtype
            np.testing.assert_array_equal(found, expected, err_msg=f"{path}/{name}")


operations = st.lists(
    st.one_of(
        st.tuples(st.just("layers"), st.lists(st.integers(0, 3), min_size=1, max_size=3)),
        st.tuples(st.just("parameters"), st.integers(1, 3)),
        st.tuples(st.just("row"), st.integers(0, 1), st.integers(1, 5)),
        st.tuples(st.just("row"), st.integers(0, 1), st.integers(1, 5)),
        st.tuples(st.just("flush")),
    ),
    min_size=1,
    max_size=12,
)
two_paths = st.tuples(st.sampled_from(layout.PATHS), st.sampled_from(layout.PATHS))


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(operations=operations, paths=two_paths, seed=st.integers(0, 2**32 - 1))
def test_a_recording_gives_back_exactly_the_rows_it_took_whatever_was_declared_or_flushed_when(operations, paths, seed):
    rng = np.random.default_rng(seed)
    lengths = {"layer": 0, "unit": 0, "parameter": 0}
    rows: list[Row] = []
    with Writer(None, attrs={}, flush_records=3) as recording:
        for operation, *arguments in operations:
            if operation == "layers":
                names = [f"layer{lengths['layer'] + k}" for k in range(len(arguments[0]))]
                recording.declare_layers([a_layer(n, unit_count=u) for n, u in zip(names, arguments[0], strict=True)])
                lengths["layer"] += len(names)
                lengths["unit"] += sum(arguments[0])
            elif operation == "parameters":
                start, count = lengths["parameter"], arguments[0]
                recording.declare_parameters([Parameter(f"w{start + k}", k, 2) for k in range(count)])
                lengths["parameter"] += count
            elif operation == "row":
                path, gap = paths[arguments[0]], arguments[1]
                last = max((row.step for row in rows if row.group == path), default=-1)
                rows.append(random_row(path, last + gap, lengths, rng))
                recording.append([rows[-1]])
            else:
                recording.flush()
    assert_holds(store.open(recording.target), rows, lengths)


def test_memory_and_disk_hold_the_same(tmp_path):
    trees = []
    for path in (None, tmp_path / "run"):
        rng = np.random.default_rng(0)
        with Writer(path, attrs={"created": "now"}) as recording:
            recording.declare_layers([a_layer(unit_count=2)])
            recording.append([random_row(path, 0, {"layer": 1, "unit": 2}, rng) for path in ("layers", "units")])
        tree = store.open(recording.target).load()
        del tree.attrs["covshift_commit"], tree.attrs["run_id"]
        trees.append(tree)
    xr.testing.assert_identical(*trees)


def test_readers_of_an_open_recording_see_every_flushed_row_over_many_flushes_and_chunks(tmp_path):
    rows = [counts_row(step=3 * k) for k in range(150)]
    seen = []
    with Writer(tmp_path / "run", attrs={}, flush_records=40, background=False) as recording:
        recording.declare_layers([a_layer()])
        for start in range(0, 150, 50):
            for row in rows[start : start + 50]:
                recording.append([row])
            tree = xr.open_datatree(recording.path)
            seen.append(tree["layers"].sizes["step"])
            assert_holds(tree, rows[: seen[-1]], {"layer": 1})
            assert_holds(store.open(recording.path), rows[: start + 50], {"layer": 1})
    assert seen == [40, 80, 120]
    assert_holds(store.open(recording.path), rows, {"layer": 1})


@pytest.mark.parametrize(
    ("path", "layers", "units"), [("layers", 130, 0), ("histograms", 17, 0), ("units", 2, 5000), ("parameters", 0, 0)]
)
def test_axes_may_be_longer_than_a_chunk_and_grow_across_its_end(path, layers, units):
    rng = np.random.default_rng(1)
    lengths = {"layer": layers - 1, "unit": (layers - 1) * units, "parameter": 255}
    with Writer(None, attrs={}) as recording:
        recording.declare_layers([a_layer(f"fc{k}", unit_count=units) for k in range(layers - 1)])
        recording.declare_parameters([Parameter(f"w{k}", 1, 1) for k in range(255)])
        rows = [random_row(path, 0, lengths, rng)]
        recording.append(rows)
        recording.flush()
        lengths = {"layer": layers, "unit": layers * units, "parameter": 257}
        recording.declare_layers([a_layer("last", unit_count=units)] if layers else [])
        recording.declare_parameters([Parameter("w255", 1, 1), Parameter("w256", 1, 1)])
        rows.append(random_row(path, 1, lengths, rng))
        recording.append(rows[1:])
    assert_holds(store.open(recording.target), rows, lengths)


def test_a_late_layer_is_absent_in_earlier_rows_even_of_groups_without_new_rows():
    with Writer(None, attrs={}) as recording:
        recording.declare_layers([a_layer("early")])
        ok = np.full((1, 5), Status.OK, dtype="u1")
        recording.append([counts_row(0), dataclasses.replace(counts_row(0), group="evaluation/layers")])
        recording.append([Row("layers", 1, {"status": ok})])
        recording.flush()
        recording.declare_layers([a_layer("late", activation="relu", linkage_members=2, unit_count=4)])
        recording.flush()
    tree = store.open(recording.target)
    for path in ("layers", "evaluation/layers"):
        late = tree[path].sel(layer="late")
        assert (late["status"] == Status.ABSENT).all()
        assert (late["count"] == 0).all()
        assert late["sum"].isnull().all()
        assert (late.activation.item(), late.linkage_members.item()) == ("relu", 2)
    assert (tree["layers/status"].sel(step=1, layer="early") == Status.OK).all()


def test_units_are_labelled_by_layer_position_and_linkage():
    with Writer(None, attrs={}) as recording:
        recording.declare_layers([a_layer("plain", unit_count=2), a_layer("none"), a_layer("x", unit_count=1)])
        recording.declare_layers([a_layer("linked", unit_count=4, linkage_members=2)])
        recording.append([Row("units", 0, {})])
    units = store.open(recording.target)["units"]
    assert units.layer_index.values.tolist() == [0, 0, 2, 3, 3, 3, 3]
    assert units.unit_in_layer.values.tolist() == [0, 1, 0, 0, 1, 2, 3]
    assert units.linked_unit.values.tolist() == [-1, -1, -1, 0, 1, 0, 1]


def test_a_scalar_logged_late_is_nan_before():
    with Writer(None, attrs={}, flush_records=1) as recording:
        recording.append([Row("scalars", 0, {"loss": np.float64(1)})])
        recording.append([Row("scalars", 1, {"lr": np.float32(0.5), "loss": np.int64(2)})])
    scalars = store.open(recording.target)["scalars"]
    np.testing.assert_array_equal(scalars["loss"], [1.0, 2.0])
    np.testing.assert_array_equal(scalars["lr"], [np.nan, 0.5])


def test_a_recording_without_rows_opens_with_its_layers():
    with Writer(None, attrs={}) as recording:
        assert store.open(recording.target)["layers"].sizes == {"step": 0, "layer": 0, "signal": 5}
        recording.declare_layers([a_layer("a"), a_layer("b")])
    tree = store.open(recording.target)
    assert tree["layers"].layer.values.tolist() == ["a", "b"]
    assert list(tree.children) == ["layers"]


def test_chunks_of_nothing_but_absence_are_not_written(tmp_path):
    with Writer(tmp_path / "run", attrs={}) as recording:
        recording.declare_layers([a_layer(f"fc{k}") for k in range(20)])
        cells = SparseCounts((20, 3, 4, 648), np.array([5], dtype="u4"), np.array([9], dtype="u4"))
        nothing = np.zeros((20, 2, 1024), dtype="u4")
        recording.append([Row("histograms", 0, {"value_histogram": cells, "gradient_histogram": nothing})])
    sizes = {}
    for kind, signals in (("value", 3), ("gradient", 2)):
        files = [file for file in (recording.path / f"histograms/{kind}_histogram/c").rglob("*") if file.is_file()]
        assert len(files) == 1
        # Of each chunk in a shard the index holds place and length; a checksum follows.
        index = 64 // 8 * 256 // 8 * signals * 16 + 4
        sizes[kind] = files[0].stat().st_size - index
    assert sizes["gradient"] == 0
    assert sizes["value"] > 0


def test_rows_wait_as_small_as_they_came():
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
def test_rows_are_folded_when_enough_wait_or_an_aged_fold_doubles_the_chunk(options, rows_per_commit):
    committed = []
    with Writer(None, attrs={}, **options) as recording:
        recording.declare_layers([a_layer()])
        for step in range(4):
            recording.append([counts_row(step)])
            committed.append(store.open(recording.target)["layers"].sizes["step"])
    assert committed == rows_per_commit


def test_rows_are_written_when_they_hold_too_much_memory(monkeypatch):
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


@pytest.mark.parametrize("steps", [(5, 5), (5, 4)])
@pytest.mark.parametrize("at_once", [True, False])
def test_a_step_must_come_after_the_last_of_its_group_also_after_a_flush(steps, at_once):
    first, second = (counts_row(step) for step in steps)
    elsewhere = dataclasses.replace(counts_row(5), group="evaluation/layers")
    with Writer(None, attrs={}) as recording:
        recording.declare_layers([a_layer()])
        if not at_once:
            recording.append([first])
            recording.flush()
        with pytest.raises(InvalidArgumentError, match=f"layers: step={second.step}: expected a step after 5"):
            recording.append([first, second] if at_once else [elsewhere, second])
        assert recording.buffered_bytes == 0
        recording.append([dataclasses.replace(second, step=6), elsewhere])
    assert store.open(recording.target)["layers"].step.values[-1] == 6


BIG = np.zeros((2, 2), dtype="i8")
BIG[1, 0] = 2**32
REFUSED = {
    "unknown group": (Row("layer", 0, {}), "group='layer': expected one of layers, histograms"),
    "no evaluation scalars": (Row("evaluation/scalars", 0, {}), "expected one of layers"),
    "negative step": (Row("layers", -1, {}), "step=-1: expected an integer, 0 or more"),
    "fractional step": (Row("layers", 1.5, {}), "step=1.5: expected an integer"),
    "unknown variable": (
        Row("layers", 0, {"mean": np.zeros((2, 5))}),
        "unknown variable 'mean': expected some of count",
    ),
    "undeclared layers": (
        Row("layers", 0, {"sum": np.zeros((3, 5))}),
        r"shape \(3, 5\): expected \(layer <= 2, signal = 5\)",
    ),
    "missing signals": (Row("layers", 0, {"sum": np.zeros((2, 2))}), "layers/sum: shape"),
    "missing axis": (Row("layers", 0, {"sum": np.zeros(2)}), "layers and parameters are declared before"),
    "scalar array": (Row("scalars", 0, {"loss": np.zeros(1)}), r"scalars/loss: shape \(1,\): expected \(\)"),
    "text scalar": (Row("scalars", 0, {"loss": np.array("low")}), "scalars/loss: dtype <U3"),
    "no value": (Row("scalars", 0, {"loss": None}), "dtype object: expected float64"),
    "scalar with a slash": (Row("scalars", 0, {"a/b": np.float64(1)}), "'a/b' cannot be stored"),
    "fractional count": (Row("layers", 0, {"count": np.zeros((2, 5))}), "layers/count: dtype float64: expected uint64"),
    "negative count": (Row("layers", 0, {"count": np.full((2, 5), -3)}), "-3 for layer 'a' does not fit uint64"),
    "count of a unit": (
        Row("units", 0, {"unit_count": BIG}),
        "for unit 0 of layer 'b' does not fit uint32",
    ),
    "count of a parameter": (
        Row("parameters", 0, {"gradient_zero_count": np.array([-1])}),
        "parameters/gradient_zero_count: -1 for parameter 'w' does not fit uint64",
    ),
    "dense histogram count": (
        Row("histograms", 0, {"gradient_histogram": np.full((2, 2, 1024), 2**32)}),
        "histograms/gradient_histogram: 4294967296 for layer 'a' does not fit uint32: expected 0 to 4294967295",
    ),
    "sparse histogram count": (
        Row(
            "histograms",
            0,
            {"value_histogram": SparseCounts((2, 3, 4, 648), np.array([1, 8000]), np.array([1, 2**32]))},
        ),
        "histograms/value_histogram: 4294967296 for layer 'b' does not fit uint32",
    ),
    "sparse index outside": (
        Row("histograms", 0, {"value_histogram": SparseCounts((1, 3, 4, 648), np.array([7776]), np.array([1]))}),
        "indices 7776 to 7776: expected 0 to 7775",
    ),
    "sparse index and counts of two lengths": (
        Row("histograms", 0, {"value_histogram": SparseCounts((1, 3, 4, 648), np.array([1, 2]), np.array([1]))}),
        "expected one integer index per count",
    ),
    "sparse moments": (
        Row("layers", 0, {"sum": SparseCounts((1, 5), np.array([0]), np.array([1]))}),
        "layers/sum: SparseCounts came: expected an array",
    ),
}


@pytest.mark.parametrize(("row", "message"), REFUSED.values(), ids=REFUSED)
def test_what_would_have_to_be_guessed_or_wrapped_is_refused_and_nothing_taken(row, message):
    with Writer(None, attrs={}) as recording:
        recording.declare_layers([a_layer("a", unit_count=1), a_layer("b", unit_count=2)])
        recording.declare_parameters([Parameter("w", 3, 1)])
        with pytest.raises(InvalidArgumentError, match=message):
            recording.append([counts_row(0), row])
        assert recording.buffered_bytes == 0


def test_numbers_of_other_types_are_converted_where_nothing_is_lost():
    with Writer(None, attrs={}) as recording:
        recording.declare_layers([a_layer(unit_count=1)])
        row = {"count": np.full((1, 5), 7, "i2"), "sum": np.full((1, 5), 3, "i4")}
        recording.append([Row("layers", np.int32(0), row)])
        recording.append([Row("units", 0, {"unit_m2": np.array([[1e300, 0.25]])})])
    tree = store.open(recording.target)
    assert (tree["layers/count"] == 7).all()
    assert (tree["layers/sum"] == 3).all()
    assert tree["units/unit_m2"].values.tolist() == [[[np.inf, 0.25]]]


@pytest.mark.parametrize(
    ("declare", "one"), [("declare_layers", a_layer()), ("declare_parameters", Parameter("fc", 1, 1))]
)
def test_a_name_is_declared_once_and_a_refused_declaration_declares_nothing(declare, one):
    other = dataclasses.replace(one, name="other")
    with Writer(None, attrs={}) as recording:
        with pytest.raises(InvalidArgumentError, match="'fc' is declared twice"):
            getattr(recording, declare)([other, one, one])
        getattr(recording, declare)([one])
        with pytest.raises(InvalidArgumentError, match="'fc' is declared twice"):
            getattr(recording, declare)([one])
        getattr(recording, declare)([other])


def test_a_negative_unit_count_is_refused():
    with Writer(None, attrs={}) as recording, pytest.raises(InvalidArgumentError, match="'fc': unit_count=-1"):
        recording.declare_layers([a_layer(unit_count=-1)])


class Killed(BaseException):
    """What nothing in the writer may catch."""


def test_a_kill_before_the_commit_leaves_readers_the_previous_commit(tmp_path, monkeypatch):
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


def test_every_state_of_the_files_reads_as_a_commit_and_with_the_journal_as_all_that_was_acknowledged(
    tmp_path, monkeypatch
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
    tmp_path, monkeypatch, works_for, background
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


def test_closing_commits_what_waits_marks_the_recording_closed_and_may_be_repeated(tmp_path):
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


def test_rows_taken_before_an_error_in_the_with_block_are_kept():
    recording = Writer(None, attrs={})
    with pytest.raises(ZeroDivisionError), recording:
        recording.declare_layers([a_layer()])
        recording.append([counts_row(0)])
        raise ZeroDivisionError
    assert store.open(recording.target)["layers"].sizes["step"] == 1


def test_an_existing_recording_is_neither_continued_nor_replaced_unasked(tmp_path):
    with Writer(tmp_path / "run", attrs={"name": "old"}) as recording:
        recording.append([Row("scalars", 0, {"loss": np.float64(1)})])
    with pytest.raises(RecordingExists, match=r"run\.zarr' holds a recording: resume=True continues it, overwrite"):
        Writer(tmp_path / "run.zarr", attrs={})
    assert store.open(tmp_path / "run").attrs["name"] == "old"


def test_overwrite_replaces_a_recording_as_a_whole(tmp_path):
    with Writer(tmp_path / "run", attrs={"name": "old"}) as recording:
        recording.append([Row("scalars", 0, {"loss": np.float64(1)})])
    with Writer(tmp_path / "run", attrs={"name": "new"}, overwrite=True):
        pass
    tree = store.open(tmp_path / "run")
    assert (tree.attrs["name"], list(tree.children)) == ("new", ["layers"])
    assert sorted(child.name for child in (tmp_path / "run.zarr").iterdir()) == [".covshift", "layers", "zarr.json"]
    assert sorted(child.name for child in (tmp_path / "run.zarr/.covshift").iterdir()) == ["lock", "root.json"]


@pytest.mark.parametrize("name", ["notes.txt", "zarr.json"])
def test_what_is_no_recording_is_never_deleted(tmp_path, name):
    path = tmp_path / "run.zarr"
    path.mkdir()
    (path / name).write_text("mine")
    with pytest.raises(RecordingError, match="not deleted even with overwrite=True; choose another path"):
        Writer(path, attrs={}, overwrite=True)
    assert (path / name).read_text() == "mine"


def test_a_file_in_the_place_of_a_recording_is_never_deleted(tmp_path):
    (tmp_path / "run.zarr").write_text("mine")
    with pytest.raises(RecordingError, match="is a file: expected a new directory"):
        Writer(tmp_path / "run", attrs={}, overwrite=True)
    assert (tmp_path / "run.zarr").read_text() == "mine"


def test_an_empty_directory_may_become_a_recording(tmp_path):
    (tmp_path / "run.zarr").mkdir()
    with Writer(tmp_path / "run", attrs={}):
        pass
    assert documents.is_recording(tmp_path / "run.zarr")


def test_a_place_that_cannot_be_written_is_named_with_the_remedy(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordingError, match=r"file/run\.zarr.*cannot be created.*choose a directory you may write to"):
        Writer(tmp_path / "file" / "run", attrs={})


@pytest.mark.parametrize("name", ["Conventions", "covshift_schema_version", "covshift_commit"])
def test_attributes_that_the_writer_sets_are_refused(name):
    with pytest.raises(InvalidArgumentError, match=f"{name} are set by the writer"):
        Writer(None, attrs={name: 1})


@pytest.mark.parametrize("value", [np.float32(1), float("nan"), {1, 2}])
def test_attributes_that_json_cannot_hold_are_refused_before_anything_is_written(tmp_path, value):
    with pytest.raises(InvalidArgumentError, match="attrs cannot be stored as JSON"):
        Writer(tmp_path / "run", attrs={"seed": value})
    assert not list(tmp_path.iterdir())


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
import numpy as np
from covshift import schema, store
with store.Writer(None, attrs={}) as recording:
    recording.declare_layers([schema.Layer("fc", "Linear", 0)])
    recording.append([schema.Row("layers", 0, {"count": np.ones((1, 5), "u8")})])
print(int(store.open(recording.target)["layers/count"].sum()))
"""


def test_recordings_are_written_and_read_where_torch_is_not_installed():
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("5\n", "")


def test_what_a_fold_wrote_in_part_is_not_published_by_a_later_fold_that_takes_other_groups(tmp_path, monkeypatch):
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


def test_a_recording_in_memory_takes_no_more_than_it_may_and_says_so_once():
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


def test_the_estimated_size_of_a_recording_is_near_its_size(tmp_path):
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
