import gzip
import hashlib
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from covshift.datasets import fashion, fashion_mnist
from covshift.exceptions import DatasetError

SIZES = {"train": 60, "t10k": 20}
rng = np.random.default_rng(0)
PIXELS = {part: rng.integers(0, 256, (count, 28, 28), np.uint8) for part, count in SIZES.items()}
LABELS = {part: rng.integers(0, 10, count, np.uint8) for part, count in SIZES.items()}


@pytest.fixture(autouse=True)
def _small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fashion, "SIZES", SIZES)


def contents() -> dict[str, bytes]:
    """The four files by the definition of the format: magic number, sizes big-endian, bytes."""
    files = {}
    for part, count in SIZES.items():
        files[f"{part}-images-idx3-ubyte"] = struct.pack(">IIII", 0x803, count, 28, 28) + bytes(
            PIXELS[part].ravel().tolist()
        )
        files[f"{part}-labels-idx1-ubyte"] = struct.pack(">II", 0x801, count) + bytes(LABELS[part].tolist())
    return files


def write(folder: Path, *, packed: bool, **changed: bytes) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in (contents() | changed).items():
        (folder / f"{name}{'.gz' if packed else ''}").write_bytes(gzip.compress(content, 1) if packed else content)
    return folder


@pytest.mark.parametrize("packed", [True, False])
def test_images_and_labels_are_those_of_the_files_in_their_order(tmp_path: Path, packed: bool) -> None:
    data = fashion_mnist(write(tmp_path, packed=packed))
    for images, labels, part in (
        (data.train_images, data.train_labels, "train"),
        (data.test_images, data.test_labels, "t10k"),
    ):
        assert images.shape == (SIZES[part], 1, 28, 28)
        assert torch.equal(images, torch.from_numpy(PIXELS[part])[:, None].to(torch.float32) / 255)
        assert labels.tolist() == LABELS[part].tolist()
    content = b"".join(array.tobytes() for part in SIZES for array in (PIXELS[part], LABELS[part]))
    assert data.sha256 == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("name", contents())
@pytest.mark.parametrize("packed", [True, False])
def test_truncated_data_are_refused_by_name(tmp_path: Path, name: str, packed: bool) -> None:
    write(tmp_path, packed=packed, **{name: contents()[name][:-1]})
    with pytest.raises(DatasetError, match=f"{name}: holds .* bytes of data, expected .*: truncated"):
        fashion_mnist(tmp_path)


def test_more_data_than_the_header_promises_are_refused(tmp_path: Path) -> None:
    name = "t10k-labels-idx1-ubyte"
    write(tmp_path, packed=False, **{name: contents()[name] + b"\x00"})
    with pytest.raises(DatasetError, match=f"{name}: holds 21 bytes of data, expected 20"):
        fashion_mnist(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\x00\x00\x08", contents()["train-labels-idx1-ubyte"],
                                     struct.pack(">IIII", 0x803, 59, 28, 28) + bytes(59 * 784),
                                     struct.pack(">IIII", 0x803, 60, 32, 32) + bytes(60 * 1024)])  # fmt: skip
def test_another_header_is_refused_with_what_was_expected(tmp_path: Path, content: bytes) -> None:
    write(tmp_path, packed=False, **{"train-images-idx3-ubyte": content})
    with pytest.raises(DatasetError, match=r"train-images-idx3-ubyte: begins with .*shape \(60, 28, 28\)"):
        fashion_mnist(tmp_path)


def test_a_label_that_is_no_class_is_refused(tmp_path: Path) -> None:
    content = bytearray(contents()["train-labels-idx1-ubyte"])
    content[8 + 3] = 17
    write(tmp_path, packed=True, **{"train-labels-idx1-ubyte": bytes(content)})
    with pytest.raises(DatasetError, match="train-labels-idx1-ubyte: label 17 of image 3"):
        fashion_mnist(tmp_path)


def test_a_truncated_gzip_file_is_refused(tmp_path: Path) -> None:
    write(tmp_path, packed=True)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DatasetError, match=r"train-images-idx3-ubyte.gz: is no complete gzip file"):
        fashion_mnist(tmp_path)


def test_a_missing_file_is_named_with_where_to_get_it(tmp_path: Path) -> None:
    write(tmp_path, packed=True)
    (tmp_path / "t10k-images-idx3-ubyte.gz").unlink()
    with pytest.raises(DatasetError, match=r"neither t10k-images-idx3-ubyte nor .*\.gz; http.*download=True"):
        fashion_mnist(tmp_path)


def test_missing_files_are_downloaded_and_checked(tmp_path, monkeypatch, server) -> None:
    packed = {name: gzip.compress(content, 1) for name, content in contents().items()}
    files = tuple(
        fashion.Download(server.put(f"{name}.gz", content), f"{name}.gz", hashlib.md5(content).hexdigest())
        for name, content in packed.items()
    )
    monkeypatch.setattr(fashion, "FILES", files)
    data = fashion_mnist(tmp_path, download=True)
    assert data.test_labels.tolist() == LABELS["t10k"].tolist()
    (tmp_path / files[1].name).unlink()
    server.put(files[1].name, b"something else")
    with pytest.raises(DatasetError, match="has MD5"):
        fashion_mnist(tmp_path, download=True)


def test_the_files_to_download_are_the_four_in_the_order_they_are_read() -> None:
    names = [file.name for file in fashion.FILES]
    assert names == [f"{name}.gz" for name in contents()]
    assert all(file.url.endswith(file.name) and len(file.md5) == 32 for file in fashion.FILES)
