"""A recording gives back the rows it took, whatever was declared or flushed when. Oracle: the rows themselves."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from covshift import schema, store
from covshift.schema import Mode, Parameter, Row, Source, SparseCounts, Status
from covshift.store import Writer, layout

SPARSE = ("value_histogram", "gradient_histogram")


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
def test_a_recording_gives_back_exactly_the_rows_it_took_whatever_was_declared_or_flushed_when(
    a_layer, assert_holds, operations, paths, seed
):
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


def test_memory_and_disk_hold_the_same(a_layer, tmp_path):
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


def test_readers_of_an_open_recording_see_every_flushed_row_over_many_flushes_and_chunks(
    a_layer, counts_row, assert_holds, tmp_path
):
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
def test_axes_may_be_longer_than_a_chunk_and_grow_across_its_end(a_layer, assert_holds, path, layers, units):
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


def test_a_late_layer_is_absent_in_earlier_rows_even_of_groups_without_new_rows(a_layer, counts_row):
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


def test_units_are_labelled_by_layer_position_and_linkage(a_layer):
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


def test_a_recording_without_rows_opens_with_its_layers(a_layer):
    with Writer(None, attrs={}) as recording:
        assert store.open(recording.target)["layers"].sizes == {"step": 0, "layer": 0, "signal": 5}
        recording.declare_layers([a_layer("a"), a_layer("b")])
    tree = store.open(recording.target)
    assert tree["layers"].layer.values.tolist() == ["a", "b"]
    assert list(tree.children) == ["layers"]


def test_chunks_of_nothing_but_absence_are_not_written(a_layer, tmp_path):
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


def test_numbers_of_other_types_are_converted_where_nothing_is_lost(a_layer):
    with Writer(None, attrs={}) as recording:
        recording.declare_layers([a_layer(unit_count=1)])
        row = {"count": np.full((1, 5), 7, "i2"), "sum": np.full((1, 5), 3, "i4")}
        recording.append([Row("layers", np.int32(0), row)])
        recording.append([Row("units", 0, {"unit_m2": np.array([[1e300, 0.25]])})])
    tree = store.open(recording.target)
    assert (tree["layers/count"] == 7).all()
    assert (tree["layers/sum"] == 3).all()
    assert tree["units/unit_m2"].values.tolist() == [[[np.inf, 0.25]]]


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
