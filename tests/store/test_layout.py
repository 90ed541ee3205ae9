import json
import math
import warnings
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr

import covshift
from covshift import schema
from covshift.exceptions import InvalidArgumentError
from covshift.grid import GRADIENTS, VALUES
from covshift.schema import Layer, Mode, Parameter, Row, Source
from covshift.store import Writer, documents, layout


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A recording with one row in every group; tests only read it."""
    with Writer(tmp_path_factory.mktemp("layout") / "run", attrs={"seed": 7, "title": "one row each"}) as writer:
        writer.declare_layers([Layer("conv", "Conv2d", 0, unit_count=2), Layer("fc", "Linear", 1, unit_count=3)])
        writer.declare_parameters([Parameter("conv.weight", size=6, ndim=2)])
        for path in layout.PATHS:
            source, mode = (Source.EVALUATION, Mode.EVAL) if "/" in path else (Source.TRAIN, Mode.TRAIN)
            writer.append([Row(path, step=3, variables={}, source=source, mode=mode)])
        writer.append([Row("scalars", step=4, variables={"wall_time": np.float64(1.75e9), "loss": np.float64(0.5)})])
    return writer.path


def consolidated(path: Path) -> dict:
    return json.loads((path / "zarr.json").read_text())["consolidated_metadata"]["metadata"]


@pytest.mark.parametrize(
    ("given", "name"), [("runs/plain", "plain.zarr"), ("runs/plain.zarr/", "plain.zarr"), ("v1.5", "v1.5.zarr")]
)
def test_a_recording_path_ends_in_zarr(given, name):
    assert layout.recording_path(given).name == name


@pytest.mark.parametrize("given", ["", "/", ".."])
def test_a_path_without_a_name_is_refused(given):
    with pytest.raises(InvalidArgumentError, match="expected the name of a recording"):
        layout.recording_path(given)


def test_plain_xarray_reads_every_group_with_the_schemas_dims_types_and_attributes(path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tree = xr.open_datatree(path).load()
    schema.check(tree)
    for name in layout.PATHS:
        dataset = tree[name].to_dataset()
        for variable in schema.group_of(name).variables:
            found = dataset[variable.name]
            assert found.dims == ("step", *variable.dims)
            assert found.attrs["long_name"] == variable.long_name
            if variable.name != "wall_time":
                assert found.dtype == np.dtype(variable.dtype)
                assert found.attrs == variable.attrs


def test_every_coordinate_of_the_schema_is_a_coordinate_for_xarray(path):
    tree = xr.open_datatree(path)
    for name in layout.PATHS:
        group = schema.group_of(name)
        expected = {coordinate.name for coordinate in group.coordinates} | (set(group.dims) - {"unit"})
        if name not in ("parameters", "scalars"):
            expected |= {"source", "mode"}
        assert set(tree[name].coords) == expected


def test_labels_are_those_of_the_schema_and_the_grid(path):
    tree = xr.open_datatree(path)
    assert tree["layers"].signal.values.tolist() == list(schema.SIGNALS)
    assert tree["units"].signal.values.tolist() == list(schema.UNIT_SIGNALS)
    histograms = tree["histograms"]
    for name, grid in {"value_bin": VALUES, "gradient_bin": GRADIENTS}.items():
        assert histograms[name].values.tolist() == list(range(grid.size))
        np.testing.assert_array_equal(histograms[f"{name}_lower"], grid.lower)
        np.testing.assert_array_equal(histograms[f"{name}_upper"], grid.upper)
    assert histograms.value_signal.values.tolist() == list(schema.VALUE_SIGNALS)
    assert histograms.gradient_signal.values.tolist() == list(schema.GRADIENT_SIGNALS)
    assert histograms.group.values.tolist() == list(range(schema.EXAMPLE_GROUPS))


def test_source_and_mode_are_cf_flags_and_tell_training_from_evaluation(path):
    tree = xr.open_datatree(path)
    for name, source, mode in [
        ("layers", Source.TRAIN, Mode.TRAIN),
        ("evaluation/layers", Source.EVALUATION, Mode.EVAL),
    ]:
        group = tree[name]
        assert (int(group.source[0]), int(group["mode"][0])) == (source, mode)
        meanings = group.source.attrs["flag_meanings"].split()
        assert dict(zip(meanings, group.source.attrs["flag_values"], strict=True))["evaluation"] == Source.EVALUATION


def test_wall_time_decodes_to_dates_and_is_missing_where_it_was_not_given(path):
    times = xr.open_datatree(path)["scalars/wall_time"]
    assert times.dtype.kind == "M"
    assert np.isnat(times.values[0])
    assert times.values[1] == np.datetime64("2025-06-15T15:06:40")


def test_root_attributes_say_what_the_recording_is(path):
    attrs = xr.open_datatree(path).attrs
    assert attrs["Conventions"] == "CF-1.11"
    assert attrs["covshift_schema_version"] == schema.VERSION
    assert (attrs["title"], attrs["seed"]) == ("one row each", 7)
    assert attrs["covshift_version"] == covshift.__version__
    assert abs(datetime.now(UTC) - datetime.fromisoformat(attrs["created"])) < timedelta(hours=1)
    commit = attrs["covshift_commit"]
    assert commit["closed"] is True
    assert commit["records"] == {name: 2 if name == "scalars" else 1 for name in layout.PATHS}


def test_the_root_repeats_the_metadata_of_every_group_and_array(path):
    nodes = consolidated(path)
    files = {file.parent.relative_to(path).as_posix() for file in path.rglob("zarr.json")} - {"."}
    assert set(nodes) == files
    for node, document in nodes.items():
        on_disk = json.loads((path / node / "zarr.json").read_text())
        on_disk.pop("consolidated_metadata", None)
        assert document == on_disk, node


def test_rows_are_sharded_in_chunks_of_at_most_a_megabyte_dense(path):
    for node, document in consolidated(path).items():
        if document["node_type"] == "array" and document["data_type"] != "string":
            array = zarr.open_array(path, path=node, mode="r")
            assert (array.shards is None) == (array.ndim == 1), node
            assert math.prod(array.chunks) * array.dtype.itemsize <= 2**20, node


def test_the_metadata_written_by_hand_are_those_zarr_would_write(path):
    for node, document in consolidated(path).items():
        if document["node_type"] == "array":
            array = zarr.open_array(path, path=node, mode="r")
            assert json.loads(json.dumps(array.metadata.to_dict())) == document, node


def test_every_fixed_length_and_shard_is_a_whole_number_of_chunks():
    for name in schema.GROUPS:
        for variable in layout.data_variables(name):
            tiling = layout.tiling_of(name, variable)
            if tiling.shard is not None:
                assert all(shard % chunk == 0 for shard, chunk in zip(tiling.shard, tiling.chunk, strict=True))


@pytest.mark.parametrize("name", ["train/loss", "step", "zarr.json", "", ".hidden", "__private", "a\\b", "a\nb"])
def test_a_scalar_name_that_cannot_name_an_array_is_refused(name):
    with pytest.raises(InvalidArgumentError, match="cannot be stored"):
        layout.logged_scalar(name)


@pytest.mark.parametrize("name", ["loss", "train.loss", "lr (group 0)", "Genauigkeit_µ", "c"])
def test_other_scalar_names_are_kept_as_they_are(tmp_path, name):
    with Writer(tmp_path / "run", attrs={}) as writer:
        writer.append([Row("scalars", step=0, variables={name: np.float64(2)})])
    assert float(xr.open_datatree(writer.path)["scalars"][name][0]) == 2


@pytest.mark.parametrize(
    "content", [None, b"", b"[1]", b"{", b"\xff", b'{"attributes": {"a": 1}}', b'{"attributes": 3}']
)
def test_only_a_directory_that_says_so_is_a_recording(tmp_path, content):
    if content is not None:
        (tmp_path / "zarr.json").write_bytes(content)
    assert not documents.is_recording(tmp_path)


def test_a_written_recording_is_one(path):
    assert documents.is_recording(path)
