"""Where images lie: files, members of a zip archive, arrays in memory; each reads one by its number."""

from __future__ import annotations

import io
import os
import stat
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...core.errors import DataError
from .decode import decode

Reader = Callable[[int, int], Image.Image]
"""Takes an image's number and the most pixels it may have, and returns it in mode L or RGB."""

_MEMBER_RATIO = 200
_MEMBER_BYTES = 1 << 30


@dataclass(frozen=True)
class ImageSet:
    """Images and their labels, none of them decoded.

    Args:
        source: Folder or file, for messages.
        names: (N,) what messages and predictions call each image.
        labels: (N,) class labels; None where the source has none.
        rows: (N,) each image's number for the reader.
        reader: Reads an image.
    """

    source: str
    names: list[str]
    labels: list[str] | None
    rows: list[int]
    reader: Reader = field(repr=False)

    def __len__(self) -> int:
        return len(self.names)

    def select(self, which: Sequence[int] | np.ndarray) -> ImageSet:
        """Return some of the images, by their numbers."""
        labels = None if self.labels is None else [self.labels[i] for i in which]
        return replace(self, names=[self.names[i] for i in which], labels=labels, rows=[self.rows[i] for i in which])

    def picture(self, index: int, max_pixels: int) -> Image.Image:
        """Decode an image.

        Args:
            index: Its number in this set.
            max_pixels: Most pixels it may have.

        Returns:
            The image, of mode L or RGB.

        Raises:
            DataError: It cannot be decoded.
        """
        return self.reader(self.rows[index], max_pixels)


class FileReader:
    """Reads image files.

    Args:
        paths: The files.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = list(paths)

    def __call__(self, row: int, max_pixels: int) -> Image.Image:
        return decode(self.paths[row], str(self.paths[row]), max_pixels)


class ZipReader:
    """Reads images from a zip archive, without unpacking it.

    Args:
        path: The archive.
        members: Names inside it.
    """

    def __init__(self, path: Path, members: Sequence[str]) -> None:
        self.path, self.members = path, list(members)
        self._archive: zipfile.ZipFile | None = None
        self._process = -1

    def __call__(self, row: int, max_pixels: int) -> Image.Image:
        name = f"{self.path}/{self.members[row]}"
        # A handle that a forked loader process shared would share its place in the file too.
        if self._archive is None or self._process != os.getpid():
            self._archive, self._process = zipfile.ZipFile(self.path), os.getpid()
        try:
            return decode(io.BytesIO(self._archive.read(self.members[row])), name, max_pixels)
        except (zipfile.BadZipFile, zipfile.LargeZipFile, RuntimeError, NotImplementedError) as error:
            raise DataError(f"{name}: cannot be unpacked ({error}), expected a whole archive; copy it again") from error

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_archive": None}


class ArrayReader:
    """Reads images that are in memory.

    Args:
        images: (N, H, W) uint8, grey.
    """

    def __init__(self, images: np.ndarray) -> None:
        self.images = images

    def __call__(self, row: int, max_pixels: int) -> Image.Image:
        return Image.fromarray(self.images[row])


class DatasetReader:
    """Reads images from a torchvision dataset.

    Args:
        dataset: Its items are pairs of an image and a number.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __call__(self, row: int, max_pixels: int) -> Image.Image:
        image = self.dataset[row][0]
        return image if image.mode == "L" else image.convert("RGB")


def zip_members(path: Path) -> list[str]:
    """Return the names in an archive, folders with a slash at their end.

    Args:
        path: The archive.

    Returns:
        The names, sorted.

    Raises:
        DataError: It is no zip archive, or holds a name that leads out of it, a link, a name twice, or a bomb.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError) as error:
        with path.open("rb") as file:
            head = file.read(16)
        raise DataError(
            f"{path}: not a zip archive ({error}); found bytes that start with {head!r}, expected b'PK'; is it a web "
            "page saved under this name?"
        ) from error
    names: set[str] = set()
    for entry in entries:
        place = f"{path}: member {entry.filename!r}"
        parts = entry.filename.replace("\\", "/").split("/")
        if entry.filename.startswith(("/", "\\")) or ".." in parts or ":" in parts[0]:
            raise DataError(f"{place}: refused, its name leads out of the archive; expected relative names")
        if stat.S_ISLNK(entry.external_attr >> 16):
            raise DataError(f"{place}: refused, it is a link; expected files and folders")
        if entry.file_size > _MEMBER_BYTES or entry.file_size > _MEMBER_RATIO * max(entry.compress_size, 1024):
            raise DataError(
                f"{place}: refused, {entry.compress_size} bytes unpack to {entry.file_size}; expected images, at most "
                f"{_MEMBER_BYTES} bytes and {_MEMBER_RATIO} times their packed size"
            )
        if entry.filename in names:
            raise DataError(f"{place}: found a second time, expected each name once; make the archive again")
        names.add(entry.filename)
    return sorted(names)


def folder_members(root: Path) -> list[str]:
    """Return the names of all files below a folder, and of its empty folders with a slash at their end, sorted.

    Links to folders are followed, each folder once.
    """
    found: list[str] = []
    seen: set[str] = set()

    def walk(folder: Path, prefix: str) -> None:
        real = os.path.realpath(folder)
        if real in seen:
            return
        seen.add(real)
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        if not entries and prefix:
            found.append(prefix)
        for entry in entries:
            if entry.is_dir():
                walk(Path(entry.path), f"{prefix}{entry.name}/")
            else:
                found.append(f"{prefix}{entry.name}")

    try:
        walk(root, "")
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be listed ({error.strerror}), expected a readable folder") from error
    return found
