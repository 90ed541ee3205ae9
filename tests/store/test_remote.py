"""Recordings behind an fsspec URL: ``memory://`` stands for object stores."""

import os
import re
import stat

import fsspec
import numpy as np
import pytest
import xarray as xr

from covshift import store
from covshift.exceptions import RecordingError, RecordingExists, StoreLocked
from covshift.schema import Layer, Row
from covshift.store import Writer, endings
from covshift.store.opening import local_directory


@pytest.fixture
def url(request):
    name = f"memory://{request.node.name}/run.zarr"
    yield name
    fsspec.filesystem("memory").store.clear()


def row(step):
    return Row("layers", step, {"count": np.full((1, 5), step + 1, "u8")})


def record(url, steps, journal, **options):
    writer = Writer(url, attrs={}, journal_directory=journal, **options)
    if options.get("resume"):
        writer.resume_at(steps[0])
    writer.declare_layers([Layer("fc", "Linear", 0)])
    for step in steps:
        writer.append([row(step)])
    return writer


def assert_whole(tree, count):
    assert tree["layers"].step.values.tolist() == list(range(count))
    np.testing.assert_array_equal(tree["layers/count"][:, 0, 0], np.arange(1, count + 1))


def test_a_recording_at_a_url_reads_as_any_other(url, tmp_path):
    record(url, range(300), tmp_path).close()
    assert_whole(store.open(url), 300)
    with fsspec.open(f"{url}/zarr.json") as file:
        assert b"covshift_commit" in file.read()
    assert_whole(xr.open_datatree(url, engine="zarr"), 300)


def test_the_journal_lies_in_a_local_directory_and_is_folded_by_the_next_writer_there(url, tmp_path):
    writer = record(url, range(10), tmp_path, background=False)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["journal-000000000000", "lock"]
    assert store.open(url)["layers"].sizes["step"] == 0
    with pytest.raises(StoreLocked):
        Writer(url, attrs={}, resume=True, journal_directory=tmp_path)
    writer._opened.release()
    endings.dismiss(writer)
    record(url, range(10, 20), tmp_path, resume=True).close()
    assert_whole(store.open(url), 20)


def test_a_recording_at_a_url_is_not_replaced_unasked_and_is_resumed_and_superseded(url, tmp_path):
    record(url, range(100), tmp_path).close()
    with pytest.raises(RecordingExists, match="memory://"):
        Writer(url, attrs={}, journal_directory=tmp_path)
    record(url, range(70, 75), tmp_path, resume=True).close()
    assert_whole(store.open(url), 75)
    assert store.open(url)["superseded/attempt_0/layers"].sizes["step"] == 30
    record(url, range(3), tmp_path, overwrite=True).close()
    assert_whole(store.open(url), 3)


@pytest.mark.skipif(os.name != "posix", reason="users and modes of POSIX")
def test_without_a_directory_given_the_journal_lies_in_one_of_the_user_alone_below_the_temporary_one(
    url, tmp_path, monkeypatch
):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for user, steps in ((1, range(2)), (2, range(2, 4))):
        monkeypatch.setattr(os, "getuid", lambda user=user: user)
        record(url, steps, None, resume=user == 2).close()
    places = sorted(tmp_path.iterdir())
    assert [place.name for place in places] == ["covshift-1", "covshift-2"]
    assert [stat.S_IMODE(place.stat().st_mode) for place in places] == [0o700, 0o700]
    assert all(one.name.startswith("run.zarr-") for place in places for one in place.iterdir())
    assert_whole(store.open(url), 4)


@pytest.mark.parametrize("given", [True, False])
def test_a_local_directory_that_cannot_be_written_is_named_with_the_way_out(url, tmp_path, monkeypatch, given):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    place = tmp_path / "mine" if given else local_directory(url).parent
    place.write_text("no directory")
    words = f"path='{re.escape(url)}': its lock .* '{re.escape(str(place))}.*TMPDIR, or give .* journal_directory="
    with pytest.raises(RecordingError, match=words):
        Writer(url, attrs={}, journal_directory=place / "run" if given else None)
    assert not fsspec.filesystem("memory").exists(url)
