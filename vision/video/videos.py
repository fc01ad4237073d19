"""Where videos lie: files, folders of frames, arrays in memory; each gives chosen frames, or all in turn."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ...core.errors import DataError
from ..classification.decode import decode
from ..classification.layout import is_image
from .decode import ENDINGS, Index, read_frames, read_index, stream_frames

_FOLDER_FPS = 25.0


class Video(ABC):
    """Frames in an order.

    Args:
        name: What messages and predictions call it.
        first: The first frame that counts.
        last: The last one that counts; None for the end.
    """

    def __init__(self, name: str, first: int = 0, last: int | None = None) -> None:
        self.name, self.first, self.last = name, first, last

    @property
    @abstractmethod
    def fps(self) -> float:
        """Frames per second."""

    @abstractmethod
    def count(self) -> int:
        """Return the number of frames there are."""

    @abstractmethod
    def pixels(self, numbers: Sequence[int]) -> np.ndarray:
        """Return frames by number, (len(numbers), H, W, 3) uint8."""

    @abstractmethod
    def all_frames(self) -> Iterator[np.ndarray]:
        """Give each frame in turn, (H, W, 3) uint8."""

    def __len__(self) -> int:
        last = self.count() - 1 if self.last is None else self.last
        if not 0 <= self.first <= last < self.count():
            raise DataError(f"{self.name}: listed are the frames {self.first} to {last}, found {self.count()} frames")
        return last - self.first + 1

    def read(self, numbers: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return frames by their numbers among those that count.

        Args:
            numbers: From 0 to ``len(video) - 1``.

        Returns:
            (len(numbers), H, W, 3) uint8, RGB.

        Raises:
            DataError: The video cannot be read, or has no such frame.
        """
        return self.pixels([self.first + int(n) for n in numbers])

    def frames(self) -> Iterator[np.ndarray]:
        """Give each frame that counts in turn; one at a time is held."""
        for number, frame in enumerate(self.all_frames()):
            if self.last is not None and number > self.last:
                return
            if number >= self.first:
                yield frame


class VideoFile(Video):
    """A video file.

    Args:
        path: The file.
        name: What messages call it.
        first: The first frame that counts.
        last: The last one; None for the end.
    """

    def __init__(self, path: Path, name: str, first: int = 0, last: int | None = None) -> None:
        super().__init__(name, first, last)
        self.path = path
        self._index: Index | None = None

    @property
    def index(self) -> Index:
        """The file's index, read once."""
        if self._index is None:
            self._index = read_index(self.path)
        return self._index

    @property
    def fps(self) -> float:
        return self.index.fps

    def count(self) -> int:
        return self.index.frames

    def pixels(self, numbers: Sequence[int]) -> np.ndarray:
        return read_frames(self.path, numbers, self.index)

    def all_frames(self) -> Iterator[np.ndarray]:
        return stream_frames(self.path)


class FrameFolder(Video):
    """A folder of images, one for each frame, in the order of the numbers in their names.

    Args:
        path: The folder.
        name: What messages call it.
        first: The first frame that counts.
        last: The last one; None for the end.
    """

    def __init__(self, path: Path, name: str, first: int = 0, last: int | None = None) -> None:
        super().__init__(name, first, last)
        self.path = path
        self._files: list[Path] | None = None

    @property
    def files(self) -> list[Path]:
        """The frames' files."""
        if self._files is None:
            found = [file for file in self.path.iterdir() if is_image(file.name)]
            if not found:
                raise DataError(f"{self.path}: found 0 frames, expected an image for each")
            self._files = sorted(found, key=lambda file: _natural(file.name))
        return self._files

    @property
    def fps(self) -> float:
        return _FOLDER_FPS

    def count(self) -> int:
        return len(self.files)

    def pixels(self, numbers: Sequence[int]) -> np.ndarray:
        if max(numbers) >= len(self.files):
            raise DataError(f"{self.path}: asked for frame {max(numbers)}, found {len(self.files)} frames")
        frames = [self._frame(self.files[n]) for n in numbers]
        if len({frame.shape for frame in frames}) > 1:
            raise DataError(f"{self.path}: found frames of {sorted({f.shape[:2] for f in frames})}, expected one size")
        return np.stack(frames)

    def all_frames(self) -> Iterator[np.ndarray]:
        return map(self._frame, self.files)

    def _frame(self, file: Path) -> np.ndarray:
        return np.array(decode(file, str(file)).convert("RGB"))


def open_video(path: Path, name: str, first: int = 0, last: int | None = None) -> Video:
    """Return the video at a path: a file, or a folder of frames; nothing is read yet.

    Raises:
        DataError: There is neither.
    """
    if path.is_dir():
        return FrameFolder(path, name, first, last)
    if not path.is_file():
        raise DataError(f"{name}: there is no file and no folder of frames {path}")
    if not is_video(path.name):
        raise DataError(f"{path}: found the ending {path.suffix!r}, expected one of {', '.join(ENDINGS)}")
    return VideoFile(path, name, first, last)


def is_video(name: str) -> bool:
    """Whether a name has a video's ending."""
    return Path(name).suffix.lower() in ENDINGS


def _natural(name: str) -> list[tuple[int, int | str]]:
    """Return a key that puts frame 2 before frame 10."""
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in re.split(r"(\d+)", name) if part]
