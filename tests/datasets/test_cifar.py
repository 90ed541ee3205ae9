import hashlib
import io
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from covshift.datasets import cifar, cifar10
from covshift.exceptions import DatasetError

COUNT = 20
"""Images in each file of the tests, where the published ones hold 10,000."""

rng = np.random.default_rng(0)
PIXELS = rng.integers(0, 256, (6, COUNT, 3, 32, 32), np.uint8)
LABELS = rng.integers(0, 10, (6, COUNT), np.uint8)
BINARY = [*cifar.BINARY[0], cifar.BINARY[1]]
PYTHON = [*cifar.PYTHON[0], cifar.PYTHON[1]]


@pytest.fixture(autouse=True)
def _small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar, "PER_FILE", COUNT)


def binary(index: int) -> bytes:
    """Label, then red, green and blue, pixel by pixel."""
    content = bytearray()
    for label, image in zip(LABELS[index], PIXELS[index], strict=True):
        content.append(int(label))
        for channel in image:
            for row in channel:
                content += bytes(row.tolist())
    return bytes(content)


def batch(index: int) -> bytes:
    """As Python 2 pickled them: keys are byte strings, and the array is rebuilt by numpy.core.multiarray."""
    return pickle.dumps(
        {b"data": PIXELS[index].reshape(COUNT, -1), b"labels": LABELS[index].tolist(), b"batch_label": b"one of five"},
        protocol=2,
    ).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


CONTENTS = {
    "binary": {name: binary(index) for index, name in enumerate(BINARY)},
    "python": {name: batch(index) for index, name in enumerate(PYTHON)},
}
FOLDER = {"binary": "cifar-10-batches-bin", "python": "cifar-10-batches-py"}


def write(folder: Path, layout: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in CONTENTS[layout].items():
        (folder / name).write_bytes(content)


def packed(contents: dict[str, bytes], folder: str) -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w:gz") as tar:
        for name, content in contents.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return target.getvalue()


def place(tmp_path: Path, layout: str, how: str) -> Path:
    """The layout in a folder as users have it: the files, their folder, or the archive."""
    if how == "files":
        write(tmp_path, layout)
    elif how == "folder":
        write(tmp_path / FOLDER[layout], layout)
    else:
        archive = packed(CONTENTS[layout], FOLDER[layout])
        (tmp_path / f"cifar-10-{layout}.tar.gz").write_bytes(archive)
    return tmp_path


@pytest.mark.parametrize("how", ["files", "folder", "archive"])
@pytest.mark.parametrize("layout", ["binary", "python"])
def test_every_layout_gives_the_same_images_in_the_order_of_the_files(tmp_path: Path, layout: str, how: str) -> None:
    data = cifar10(place(tmp_path, layout, how))
    pixels = torch.from_numpy(PIXELS).to(torch.float32) / 255
    assert torch.equal(data.train_images, pixels[:5].flatten(0, 1))
    assert torch.equal(data.test_images, pixels[5])
    assert data.train_labels.tolist() == LABELS[:5].ravel().tolist()
    assert data.test_labels.tolist() == LABELS[5].tolist()
    assert (data.train_images.dtype, data.train_labels.dtype) == (torch.float32, torch.int64)
    content = PIXELS[:5].tobytes() + LABELS[:5].tobytes() + PIXELS[5].tobytes() + LABELS[5].tobytes()
    assert data.sha256 == hashlib.sha256(content).hexdigest()
    assert "not checked" in data.description


def test_known_recompressed_images_are_named_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = place(tmp_path, "binary", "files")
    monkeypatch.setattr(cifar, "RECOMPRESSED", cifar10(folder).sha256)
    assert "recompressed as JPEG" in cifar10(folder).description


@pytest.mark.parametrize("name", [BINARY[0], BINARY[3], BINARY[5]])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    write(tmp_path, "binary")
    (tmp_path / name).unlink()
    with pytest.raises(DatasetError, match=f"{name} missing"):
        cifar10(tmp_path)


@pytest.mark.parametrize("cut", [1, 3073, 3073 * COUNT])
def test_a_truncated_binary_file_is_refused_even_where_whole_images_are_left(tmp_path: Path, cut: int) -> None:
    write(tmp_path, "binary")
    (tmp_path / BINARY[2]).write_bytes(CONTENTS["binary"][BINARY[2]][:-cut])
    with pytest.raises(DatasetError, match=r"data_batch_3.bin: has .* bytes, expected 61,460: truncated"):
        cifar10(tmp_path)


def test_a_label_that_is_no_class_is_refused_with_its_place(tmp_path: Path) -> None:
    write(tmp_path, "binary")
    content = bytearray(CONTENTS["binary"][BINARY[1]])
    content[3073 * 7] = 10
    (tmp_path / BINARY[1]).write_bytes(content)
    with pytest.raises(DatasetError, match="data_batch_2.bin: label 10 of image 7 is no class from 0 to 9"):
        cifar10(tmp_path)


@pytest.mark.parametrize(("content", "found"), [
    (batch(0)[:200], "cannot be read as a batch"),
    (b"", "cannot be read as a batch"),
    (b"not a pickle", "cannot be read as a batch"),
    (pickle.dumps([1, 2]), "holds no dictionary with 'data'"),
    (pickle.dumps({b"data": PIXELS[0].reshape(COUNT, -1)}), "holds no dictionary with 'labels'"),
    (pickle.dumps({b"data": PIXELS[0], b"labels": [0] * COUNT}), r"uint8 of shape \(20, 3, 32, 32\), expected uint8"),
    (pickle.dumps({b"data": b"abc", b"labels": [0] * COUNT}), "data are bytes, expected uint8"),
    (pickle.dumps({b"data": PIXELS[0].reshape(COUNT, -1), b"labels": [0]}), "expected a list of 20 labels"),
    (pickle.dumps({b"data": PIXELS[0].reshape(COUNT, -1), b"labels": [-1] * COUNT}), "integers from 0 to 9"),
])  # fmt: skip
def test_a_python_batch_of_another_kind_is_refused_by_name(tmp_path: Path, content: bytes, found: str) -> None:
    write(tmp_path, "python")
    (tmp_path / PYTHON[0]).write_bytes(content)
    with pytest.raises(DatasetError, match=f"data_batch_1: .*{found}"):
        cifar10(tmp_path)


def test_a_pickle_that_would_run_something_is_refused_and_does_not_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "sprung"),)

    write(tmp_path, "python")
    (tmp_path / PYTHON[4]).write_bytes(pickle.dumps({b"data": Trap(), b"labels": []}))
    with pytest.raises(DatasetError, match=r"data_batch_5: cannot be read .*it asks for posix.mkdir"):
        cifar10(tmp_path)
    assert not (tmp_path / "sprung").exists()


def test_a_truncated_archive_is_refused(tmp_path: Path) -> None:
    archive = packed(CONTENTS["binary"], FOLDER["binary"])
    for size in (10, len(archive) // 2):
        (tmp_path / "cifar-10-binary.tar.gz").write_bytes(archive[:size])
        with pytest.raises(DatasetError, match=r"cifar-10-binary.tar.gz: is no complete archive"):
            cifar10(tmp_path)


def test_an_archive_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(packed({"train.bin": b"x"}, "cifar-100-binary"))
    with pytest.raises(DatasetError, match=r"holds no data_batch_1.bin, .*another data set"):
        cifar10(tmp_path)


@pytest.mark.parametrize("exists", [True, False])
def test_a_folder_without_it_is_told_what_belongs_there(tmp_path: Path, exists: bool) -> None:
    folder = tmp_path if exists else tmp_path / "nowhere"
    with pytest.raises(DatasetError, match=r"holds no CIFAR-10: expected test_batch.bin .*download=True"):
        cifar10(folder)


def served(monkeypatch: pytest.MonkeyPatch, url: str, md5: str) -> None:
    monkeypatch.setattr(cifar, "ARCHIVE", cifar.ARCHIVE._replace(url=url, md5=md5))


ARCHIVE = packed(CONTENTS["binary"], FOLDER["binary"])
MD5 = hashlib.md5(ARCHIVE).hexdigest()


def test_a_download_is_checked_kept_and_not_repeated(tmp_path, monkeypatch, server) -> None:
    served(monkeypatch, server.put("c.tar.gz", ARCHIVE), MD5)
    data = cifar10(tmp_path / "new", download=True)
    assert data.test_labels.tolist() == LABELS[5].tolist()
    assert "whose checksum was checked" in data.description
    server.put("c.tar.gz", b"the server has something else by now")
    again = cifar10(tmp_path / "new", download=True)
    assert again.sha256 == data.sha256
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["cifar-10-binary.tar.gz"]


def test_a_wrong_checksum_leaves_nothing_behind(tmp_path, monkeypatch, server) -> None:
    served(monkeypatch, server.put("c.tar.gz", ARCHIVE), "0" * 32)
    with pytest.raises(DatasetError, match=f"has MD5 {MD5}, expected 000"):
        cifar10(tmp_path, download=True)
    assert list(tmp_path.iterdir()) == []


def test_a_connection_that_breaks_leaves_nothing_behind(tmp_path, monkeypatch, server) -> None:
    served(monkeypatch, server.put("c.tar.gz", ARCHIVE[:5000], promised=len(ARCHIVE)), MD5)
    with pytest.raises(DatasetError, match=r"could not be downloaded|has MD5"):
        cifar10(tmp_path, download=True)
    assert list(tmp_path.iterdir()) == []


def test_an_address_that_gives_nothing_is_an_error_with_the_way_out(tmp_path, monkeypatch, server) -> None:
    served(monkeypatch, f"{server.address}/missing", MD5)
    with pytest.raises(DatasetError, match=r"could not be downloaded .*404.* by other means"):
        cifar10(tmp_path, download=True)
    served(monkeypatch, "http://127.0.0.1:9/closed", MD5)
    with pytest.raises(DatasetError, match="could not be downloaded .*refused"):
        cifar10(tmp_path, download=True)


def test_a_folder_that_cannot_be_made_is_named(tmp_path, monkeypatch, server) -> None:
    served(monkeypatch, server.put("c.tar.gz", ARCHIVE), MD5)
    (tmp_path / "file").write_text("")
    with pytest.raises(DatasetError, match="cannot be written"):
        cifar10(tmp_path / "file" / "inside", download=True)
