"""KITTI's lists of objects: labels and detections, one text file a frame."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ...core.errors import DataError
from ...core.storage import atomic_file
from ..boxes import wrap_angle

# What follows the name, in the files' order.
COLUMNS = (
    *("truncated", "occluded", "alpha", "left", "top", "right", "bottom"),
    *("height", "width", "length", "x", "y", "z", "rotation_y", "score"),
)
DIFFICULTIES = ("easy", "moderate", "hard")
MIN_HEIGHT = (40.0, 25.0, 25.0)
MAX_OCCLUSION = (0, 1, 2)
MAX_TRUNCATION = (0.15, 0.30, 0.50)


@dataclass(frozen=True)
class Objects:
    """The objects of one frame.

    Args:
        names: Each object's class.
        values: (N, 15) float64, the columns of KITTI's files after the name (`COLUMNS`); a label's score is 0.

    Raises:
        ValueError: ``values`` has another shape than ``names`` ask for.
    """

    names: tuple[str, ...]
    values: Tensor

    def __post_init__(self) -> None:
        if tuple(self.values.shape) != (len(self.names), len(COLUMNS)):
            raise ValueError(f"values has shape {tuple(self.values.shape)}, expected {(len(self.names), len(COLUMNS))}")
        # Thresholds such as 0.30 are compared with what the file says: float32's 0.30 would be larger.
        object.__setattr__(self, "values", self.values.detach().to("cpu", torch.float64))

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, column: str) -> Tensor:
        """Return one column (N,)."""
        return self.values[:, COLUMNS.index(column)]

    @property
    def image_boxes(self) -> Tensor:
        """Left, top, right, bottom (N, 4), pixels."""
        return self.values[:, 3:7]

    @property
    def camera_boxes(self) -> Tensor:
        """Camera boxes (N, 7): x, y, z of the bottom's middle, length, height, width, rotation_y."""
        return self.values[:, [10, 11, 12, 9, 7, 8, 13]]

    @classmethod
    def from_boxes(
        cls, names: tuple[str, ...], camera_boxes: Tensor, image_boxes: Tensor, scores: Tensor | None = None
    ) -> Objects:
        """Make detections from camera boxes.

        Args:
            names: Each object's class.
            camera_boxes: (N, 7), metres and radians.
            image_boxes: (N, 4) left, top, right, bottom, pixels.
            scores: (N,); None makes them 0.

        Returns:
            Objects whose alpha is the rotation seen from the camera, ``rotation_y - atan2(x, z)``.
        """
        boxes = camera_boxes.detach().to("cpu", torch.float64)
        values = torch.zeros(len(names), len(COLUMNS), dtype=torch.float64)
        values[:, :2] = -1
        alpha = boxes[:, 6] - torch.atan2(boxes[:, 0], boxes[:, 2])
        values[:, 2] = wrap_angle(alpha)
        values[:, 3:7] = image_boxes.detach().to(values)
        values[:, [10, 11, 12, 9, 7, 8, 13]] = boxes
        if scores is not None:
            values[:, 14] = scores.detach().to(values)
        return cls(tuple(names), values)

    def within(self, difficulty: int) -> Tensor:
        """Say which labels a difficulty counts (N,): 0 easy, 1 moderate, 2 hard.

        Source: KITTI's object development kit: the image box is more than 40 / 25 / 25 pixels high (its edition with 40
        recall positions leaves out labels of exactly that height), occlusion at most 0 / 1 / 2, truncation at most
        0.15 / 0.30 / 0.50.
        """
        high = self["bottom"] - self["top"] > MIN_HEIGHT[difficulty]
        clear = self["occluded"] <= MAX_OCCLUSION[difficulty]
        return high & clear & (self["truncated"] <= MAX_TRUNCATION[difficulty])

    def difficulty(self) -> Tensor:
        """Return each label's difficulty (N,) int64: the easiest that counts it, -1 where none does."""
        level = torch.full((len(self),), -1, dtype=torch.int64)
        for index in reversed(range(len(DIFFICULTIES))):
            level[self.within(index)] = index
        return level


def read_objects(path: str | Path, scored: bool = False) -> Objects:
    """Read a label file or a result file.

    Args:
        path: Text, an object a line: name and 14 numbers, and a score in results. An empty file is a frame without.
        scored: Whether each line must have a score.

    Returns:
        The frame's objects, in the file's order.

    Raises:
        DataError: The file is absent or unreadable, or a line is malformed; names the file and the line.
    """
    source = Path(path)
    names, rows = [], []
    for number, line in enumerate(read_lines(source), 1):
        words = line.split()
        if not words:
            continue
        wanted = (16,) if scored else (15, 16)
        if len(words) not in wanted:
            raise DataError(
                f"{source}:{number}: found {len(words)} columns, expected {' or '.join(map(str, wanted))}: "
                f"name {' '.join(COLUMNS if scored else COLUMNS[:-1])}"
            )
        names.append(words[0])
        rows.append([parse_number(word, f"{source}:{number}", COLUMNS[i]) for i, word in enumerate(words[1:])])
        rows[-1] += [0.0] * (len(COLUMNS) - len(rows[-1]))
    return Objects(tuple(names), torch.tensor(rows, dtype=torch.float64).reshape(-1, len(COLUMNS)))


def read_lines(path: Path) -> list[str]:
    """Return a text file's lines, or raise DataError that names it."""
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as text ({error})") from error


def parse_number(word: str, place: str, column: str) -> float:
    """Return a finite number, or raise DataError that names the place and the column."""
    try:
        value = float(word)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"{place}: {column} is {word!r}, expected a finite number")
    return value


def write_detections(path: str | Path, objects: Objects) -> None:
    """Write a frame's detections as a KITTI result file; without detections it is an empty file.

    Args:
        path: The file; it is whole or untouched.
        objects: The detections.

    Raises:
        DataError: A name is not one word, or a value is not finite.
        ConfigError: The file cannot be written.
    """
    _write(path, objects, lambda row: f"-1 -1 {_decimals(row[2:-1])} {row[-1]:.6f}")


def write_labels(path: str | Path, objects: Objects) -> None:
    """Write a frame's objects as a KITTI label file, without scores.

    Args:
        path: The file; it is whole or untouched.
        objects: The labels.

    Raises:
        DataError: A name is not one word, or a value is not finite.
        ConfigError: The file cannot be written.
    """
    _write(path, objects, lambda row: f"{row[0]:.2f} {row[1]:.0f} {_decimals(row[2:-1])}")


def _decimals(values: list[float]) -> str:
    return " ".join(f"{value:.4f}" for value in values)


def _write(path: str | Path, objects: Objects, columns: Callable[[list[float]], str]) -> None:
    if not bool(torch.isfinite(objects.values).all()):
        raise DataError(f"{path}: an object holds a value that is not finite")
    for name in objects.names:
        if name.split() != [name]:
            raise DataError(f"{path}: the class {name!r} is not one word, as the format asks for")
    with atomic_file(path, "w") as file:
        for name, row in zip(objects.names, objects.values.tolist(), strict=True):
            file.write(f"{name} {columns(row)}\n")
