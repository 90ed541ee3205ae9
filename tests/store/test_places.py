"""Where a recording may begin: nothing that stands there is continued, replaced or deleted unasked."""

import numpy as np
import pytest

from covshift import store
from covshift.exceptions import RecordingError, RecordingExists
from covshift.schema import Row
from covshift.store import Writer, documents


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
