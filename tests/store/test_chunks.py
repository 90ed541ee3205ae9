"""Shards are only extended: whoever holds an old index reads what it promised, whatever was written since."""

import numpy as np
import pytest
import xarray as xr
import zarr
from zarr.abc.store import SuffixByteRequest
from zarr.storage import LocalStore

from covshift import store
from covshift.schema import Layer, Row
from covshift.store import Writer, committed
from covshift.store.medium import Directory


def counts(step, layers=40):
    return np.random.default_rng(step).integers(1, 2**63, (layers, 5), "u8")


def rows(step, layers=40):
    return [
        Row("layers", step, {"count": counts(step, layers)}),
        Row("histograms", step, {"gradient_histogram": np.full((layers, 2, 1024), step + 1, "u4")}),
    ]


def begin(path, **options):
    writer = Writer(path, attrs={}, background=False, **options)
    writer.declare_layers([Layer(f"fc{k}", "Linear", k) for k in range(40)])
    return writer


def test_a_reader_between_the_index_and_the_chunks_of_a_shard_that_is_replaced_reads_what_the_index_promised(
    tmp_path, monkeypatch
):
    writer = begin(tmp_path / "run", flush_records=1)
    for step in range(10):
        writer.append(rows(step))
    recording = xr.open_datatree(writer.path)
    get, later = LocalStore.get, iter(range(10, 1000))

    async def interrupted(self, key, prototype, byte_range=None):
        found = await get(self, key, prototype, byte_range)
        if isinstance(byte_range, SuffixByteRequest):
            for _ in range(3):
                writer.append(rows(next(later)))
        return found

    monkeypatch.setattr(LocalStore, "get", interrupted)
    for layer in (0, 17, 39):
        found = recording["layers/count"].isel(layer=layer).values
        np.testing.assert_array_equal(found, [counts(step)[layer] for step in range(10)])
        found = recording["histograms/gradient_histogram"].isel(layer=layer).values
        np.testing.assert_array_equal(found[:, 0, 0], np.arange(1, 11))
    assert next(later) >= 10 + 3 * 6
    writer.close()


def test_every_byte_an_index_points_to_stays_where_it_is(tmp_path, monkeypatch):
    extended = []

    def checked(self, key, keep, data, extend=Directory.extend):
        before = (self.root / key).read_bytes()
        extend(self, key, keep, data)
        after = (self.root / key).read_bytes()
        index = np.frombuffer(before[keep:-4], "<u8").reshape(-1, 2)
        used = index[index[:, 0] != np.iinfo("u8").max]
        assert (used.sum(axis=1) <= keep).all()
        assert after[:keep] == before[:keep]
        extended.append(key)

    monkeypatch.setattr(Directory, "extend", checked)
    with begin(tmp_path / "run", flush_records=24) as writer:
        for step in range(300):
            writer.append(rows(step))
    assert len(set(extended)) >= 6
    np.testing.assert_array_equal(store.open(writer.path)["layers/count"], [counts(step) for step in range(300)])


def test_records_need_a_shard_for_every_256_and_array(tmp_path):
    with begin(tmp_path / "run") as writer:
        for step in range(1030):
            writer.append([Row("layers", step, {"count": counts(step)})])
    shards = [file for file in (writer.path / "layers/count/c").rglob("*") if file.is_file()]
    assert len(shards) == 5
    data = sum(shard.stat().st_size for shard in shards)
    assert data < 1030 * 40 * 5 * 8 * 1.1


def test_one_layer_is_read_without_most_of_the_others(tmp_path, monkeypatch):
    with begin(tmp_path / "run") as writer:
        for step in range(64):
            writer.append(rows(step))
    read = []
    bytes_of = committed._bytes_of

    def counted(path, byte_range):
        found = bytes_of(path, byte_range)
        read.append(len(found))
        return found

    count = store.open(writer.path)["layers/count"]
    monkeypatch.setattr(committed, "_bytes_of", counted)
    count.sel(layer="fc20").load()
    whole = (writer.path / "layers/count/c/0/0/0").stat().st_size
    assert 0 < sum(read) < 0.5 * whole


@pytest.mark.parametrize("background", [False, True])
def test_waste_of_aged_folds_never_exceeds_the_data(tmp_path, background):
    path = tmp_path / "run"
    writer = Writer(path, attrs={}, background=background, flush_seconds=1e-9)
    writer.declare_layers([Layer(f"fc{k}", "Linear", k) for k in range(40)])
    for step in range(64):
        writer.append([Row("layers", step, {"count": counts(step)})])
    writer.close()
    with begin(tmp_path / "at once") as reference:
        for step in range(64):
            reference.append([Row("layers", step, {"count": counts(step)})])
    sizes = [(one / "layers/count/c/0/0/0").stat().st_size for one in (writer.path, reference.path)]
    assert sizes[0] < 2.1 * sizes[1]


@pytest.mark.slow
def test_dask_gives_every_variable_its_own_values_in_chunks_of_bounded_size(tmp_path):
    writer = begin(tmp_path / "run", flush_records=16)
    for step in range(40):
        writer.append(rows(step))
    for chunks in ({}, "auto", {"step": 5}):
        lazy, plain = store.open(writer.path, chunks=chunks), store.open(writer.path)
        for path in ("layers", "histograms"):
            dataset = lazy[path].to_dataset()
            xr.testing.assert_identical(dataset.compute(), plain[path].to_dataset().compute())
        for name in ("count", "m2"):
            assert lazy["layers"][name].chunks is not None
    assert max(store.open(writer.path, chunks={"step": 5})["layers/count"].chunks[0]) == 5
    writer.close()


def test_recordings_above_a_size_open_as_dask_arrays(tmp_path, monkeypatch):
    with begin(tmp_path / "run") as writer:
        writer.append(rows(0))
    assert store.open(writer.path)["layers/count"].chunks is None
    monkeypatch.setattr(store.reader, "EAGER_BYTES", 1000)
    assert store.open(writer.path)["layers/count"].chunks is not None


def test_opening_with_a_journal_reads_no_committed_row_and_makes_no_row_dense(tmp_path, monkeypatch):
    writer = begin(tmp_path / "run", flush_records=8)
    for step in range(20):
        writer.append(rows(step))
    recording = store.open(writer.path)
    for path in ("layers", "histograms"):
        for variable in recording[path].data_vars.values():
            assert not variable.variable._in_memory
    assert recording["layers"].sizes["step"] == 20
    count = recording["layers/count"]
    for key in ((slice(14, 18), 3), (np.array([19, 2]), slice(None)), (-1, slice(5, 9))):
        expected = np.array([counts(step) for step in range(20)])[key]
        np.testing.assert_array_equal(count.isel(step=key[0], layer=key[1]), expected)
    writer.close()


def test_layers_declared_since_the_commit_are_absent_in_committed_rows(tmp_path):
    writer = begin(tmp_path / "run", flush_records=8)
    for step in range(8):
        writer.append(rows(step))
    writer.declare_layers([Layer("late", "Linear", 40)])
    writer.append(rows(8, 41))
    count = store.open(writer.path)["layers/count"]
    assert count.sizes == {"step": 9, "layer": 41, "signal": 5}
    assert (count.sel(layer="late").isel(step=slice(8)) == 0).all()
    np.testing.assert_array_equal(count.isel(step=8), counts(8, 41))
    np.testing.assert_array_equal(count.isel(step=3, layer=slice(40)), counts(3))
    writer.close()


def test_zarr_reads_what_is_written_by_hand_and_its_checksums(tmp_path):
    with begin(tmp_path / "run") as writer:
        for step in range(70):
            writer.append(rows(step))
    array = zarr.open_group(writer.path, mode="r")["layers/count"]
    np.testing.assert_array_equal(array[:], [counts(step) for step in range(70)])
    assert array[-1, -1, -1] == counts(69)[-1, -1]


def test_opening_shows_one_commit_and_its_journal_whatever_is_committed_while_it_opens(tmp_path, monkeypatch):
    writer = begin(tmp_path / "run", flush_records=8)
    for step in range(12):
        writer.append(rows(step))
    opened, steps = store.reader._opened, iter(range(12, 100))

    def disturbed(target, place):
        for _ in range(20):
            writer.append(rows(next(steps)))
        return opened(target, place)

    monkeypatch.setattr(store.reader, "_opened", disturbed)
    recording = store.open(writer.path)
    assert next(steps) == 32
    np.testing.assert_array_equal(recording["layers/count"], [counts(step) for step in range(12)])
    assert recording["histograms"].sizes["step"] == 12
    writer.close()
