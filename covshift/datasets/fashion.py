"""Fashion-MNIST: 70,000 grey images of ten kinds of clothing, 28x28 pixels, from its IDX files.

Whoever needs a picture set without a licence question and smaller than CIFAR-10 takes this one. The files may be packed
by gzip or not.
"""

from __future__ import annotations

import gzip
import os
import zlib
from pathlib import Path

import numpy as np

from covshift.datasets.files import Bytes, Download, Part, demand_labels, fetch, published
from covshift.datasets.split import ImageSplit
from covshift.exceptions import DatasetError

CLASSES = 10
SIZES = {"train": 60_000, "t10k": 10_000}
"""Images of each part by the name of its files."""

SIDE = 28

_HOST = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"
# Checksums: https://github.com/zalandoresearch/fashion-mnist, README
FILES = tuple(
    Download(f"{_HOST}/{name}.gz", f"{name}.gz", md5)
    for name, md5 in (
        ("train-images-idx3-ubyte", "8d4fb7e6c68d591d4c3dfef9ec88bf0d"),
        ("train-labels-idx1-ubyte", "25c81989df183df01b3e8a0aad5dffbe"),
        ("t10k-images-idx3-ubyte", "bef4ecab320f06d8554ea6380940ec79"),
        ("t10k-labels-idx1-ubyte", "bb300cfdad3c16e7a12a480ee83cd310"),
    )
)
_UNSIGNED_BYTES = 8
_DESCRIPTION = (
    "70,000 grey images of 10 kinds of clothing, 28x28 pixels, split as published; pixels divided by 255 and not "
    "standardised."
)
_SOURCE = "H. Xiao, K. Rasul and R. Vollgraf, Fashion-MNIST, 2017, arXiv 1708.07747"
_LICENCE = "MIT"


def fashion_mnist(folder: str | os.PathLike[str], *, download: bool = False) -> ImageSplit:
    """Load Fashion-MNIST from a folder, or download it into one.

    Parameters
    ----------
    folder : path-like
        Holds the four IDX files ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte``, ``t10k-...``, each packed
        (``.gz``) or not; Debian's package ``dataset-fashion-mnist`` installs such a folder.
    download : bool, default False
        Fetch files that are missing (31 MB in all); their checksums are enforced.

    Returns
    -------
    ImageSplit
        60,000 images for training and 10,000 for testing in the order of the files, of shape
        ``(examples, 1, 28, 28)``.

    Raises
    ------
    DatasetError
        If a file is missing, truncated or something else, or the download fails.
    """
    place = Path(folder)
    contents = [_content(place, file, download) for file in FILES]
    train, test = (_part(part, *contents[first : first + 2]) for part, first in (("train", 0), ("t10k", 2)))
    return published(
        train,
        test,
        name="fashion-mnist",
        classes=CLASSES,
        description=_DESCRIPTION,
        source=_SOURCE,
        licence=_LICENCE,
    )


def _content(place: Path, file: Download, download: bool) -> bytes:
    """The unpacked content of a file, packed or not, fetched where it is missing and may be."""
    plain, packed = place / file.name.removesuffix(".gz"), place / file.name
    if plain.is_file():
        return plain.read_bytes()
    if not packed.is_file():
        if not download:
            raise DatasetError(
                f"data folder '{place}' holds neither {plain.name} nor {packed.name}; {file.url} gives it "
                "(download=True fetches it)"
            )
        fetch(file, place)
    try:
        return gzip.decompress(packed.read_bytes())
    except (EOFError, OSError, zlib.error) as error:
        raise DatasetError(f"{packed}: is no complete gzip file ({error}); delete it and fetch it again") from error


def _part(part: str, pixels: bytes, found: bytes) -> Part:
    count = SIZES[part]
    shaped = _idx(pixels, (count, SIDE, SIDE), f"{part}-images-idx3-ubyte")
    named = _idx(found, (count,), f"{part}-labels-idx1-ubyte")
    return Part(shaped[:, None], demand_labels(named, CLASSES, f"{part}-labels-idx1-ubyte"))


def _idx(content: bytes, shape: tuple[int, ...], name: str) -> Bytes:
    """Array of an IDX file: two zero bytes, type, number of dimensions, the dimensions big-endian, then the data."""
    header = 4 + 4 * len(shape)
    expected = bytes([0, 0, _UNSIGNED_BYTES, len(shape)]) + np.array(shape, ">u4").tobytes()
    if content[:header] != expected:
        raise DatasetError(
            f"{name}: begins with {content[:header].hex(' ', 4)}, expected {expected.hex(' ', 4)}, the header of "
            f"unsigned bytes of shape {shape}; it is another file or another data set"
        )
    if len(content) - header != np.prod(shape):
        raise DatasetError(
            f"{name}: holds {len(content) - header:,} bytes of data, expected {np.prod(shape):,}: truncated or damaged"
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)
