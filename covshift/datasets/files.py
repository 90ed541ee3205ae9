"""Files of data sets: fetched with their checksum, read whole, and turned into a split.

A checksum is demanded of what is downloaded. A folder that somebody else filled is judged by its layout, and the hash
of its content is kept, so that results can say on which data they rest.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import tempfile
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from covshift.datasets.split import ImageSplit
from covshift.exceptions import DatasetError

Bytes = NDArray[np.uint8]

_PIECE = 1 << 20
_SECONDS = 60


class Download(NamedTuple):
    """A published file: where it is, what it is called in the folder, and its MD5 as published beside it."""

    url: str
    name: str
    md5: str


class Part(NamedTuple):
    """Pixels ``(examples, channels, height, width)`` and labels ``(examples,)`` of one part, 0 to 255."""

    pixels: Bytes
    labels: Bytes


def fetch(file: Download, folder: Path) -> Path:
    """Download a file into a folder, which is made if needed; a file that is there already is checked instead.

    It appears under its name only once it is complete and its checksum right, so that a broken connection leaves
    nothing behind that could be taken for data.

    Raises
    ------
    DatasetError
        If it cannot be fetched, cannot be written, or has another checksum.
    """
    target = folder / file.name
    if target.exists():
        _demand_checksum(file, hashlib.md5(target.read_bytes(), usedforsecurity=False).hexdigest(), str(target))
        return target
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle, partial = tempfile.mkstemp(prefix=f".{file.name}.", dir=folder)
    except OSError as error:
        raise DatasetError(f"data folder '{folder}' cannot be written ({error.strerror}); name another") from error
    try:
        with os.fdopen(handle, "wb") as sink:
            found = _receive(file.url, sink)
        _demand_checksum(file, found, file.url)
        os.replace(partial, target)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(partial)
    return target


def _receive(url: str, sink: IO[bytes]) -> str:
    """Write what the address gives, and return its MD5."""
    digest = hashlib.md5(usedforsecurity=False)
    try:
        with urllib.request.urlopen(url, timeout=_SECONDS) as source:
            while piece := source.read(_PIECE):
                digest.update(piece)
                sink.write(piece)
    except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
        raise DatasetError(
            f"{url}: could not be downloaded ({error}); fetch it by other means and name the folder that holds it"
        ) from error
    return digest.hexdigest()


def _demand_checksum(file: Download, found: str, where: str) -> None:
    if found != file.md5:
        raise DatasetError(
            f"{where}: has MD5 {found}, expected {file.md5}: broken off on the way, or another file; delete it if it "
            "is there, and try again"
        )


def content_hash(*parts: Part) -> str:
    """SHA-256 of the pixels and labels of all parts, in order: the same for every layout that holds the same images."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.pixels.tobytes())
        digest.update(part.labels.tobytes())
    return digest.hexdigest()


def published(
    train: Part, test: Part, *, name: str, classes: int, description: str, source: str, licence: str
) -> ImageSplit:
    """A data set split by its publisher: pixels divided by 255, the content hash over both parts."""
    train_images, test_images = (torch.from_numpy(part.pixels.astype(np.float32)).div_(255) for part in (train, test))
    train_labels, test_labels = (torch.from_numpy(part.labels.astype(np.int64)) for part in (train, test))
    return ImageSplit(
        train_images=train_images,
        train_labels=train_labels,
        test_images=test_images,
        test_labels=test_labels,
        name=name,
        classes=classes,
        description=description,
        source=source,
        licence=licence,
        sha256=content_hash(train, test),
    )


def demand_labels(found: Bytes, classes: int, where: str) -> Bytes:
    """The labels, having seen that each names a class.

    Raises
    ------
    DatasetError
        If one does not.
    """
    wrong = np.flatnonzero(found >= classes)
    if wrong.size:
        raise DatasetError(
            f"{where}: label {found[wrong[0]]} of image {wrong[0]} is no class from 0 to {classes - 1}; the file is "
            "damaged or of another data set"
        )
    return found
