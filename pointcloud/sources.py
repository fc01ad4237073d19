"""Where labelled frames come from: a KITTI tree, a folder of one's own, or scenes that are made up."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ..core.errors import DataError, nearest
from .boxes import Calibration
from .formats import ENDINGS, read_cloud
from .kitti.frames import KittiFolder
from .kitti.objects import Objects, read_lines
from .kitti.prepare import lidar_boxes, read_splits
from .kitti.scenes import make_scene

Part = Literal["train", "val", "test", "predict"]
PARTS: tuple[Part, ...] = ("train", "val", "test")
_COLUMNS = ("frame", "class", "x", "y", "z", "length", "width", "height", "heading")


@dataclass(frozen=True)
class Frame:
    """One frame and what is known of it.

    Attributes:
        name: Its name.
        points: (N, F) float32: x, y, z in metres, and more.
        boxes: (M, 7) float32 lidar boxes of the labelled objects.
        names: Their classes.
        objects: KITTI's labels, where there are some.
        calibration: The camera's, where there is one.
        size: The image's (width, height) in pixels.
        image: The image's file.
    """

    name: str
    points: Tensor
    boxes: Tensor
    names: tuple[str, ...]
    objects: Objects | None = None
    calibration: Calibration | None = None
    size: tuple[int, int] | None = None
    image: Path | None = None

    @property
    def camera(self) -> tuple[Calibration, tuple[int, int]]:
        """The calibration, and the image's size.

        Raises:
            ValueError: The frame has none.
        """
        if self.calibration is None or self.size is None:
            raise ValueError(f"frame {self.name} has no camera")
        return self.calibration, self.size


class Source(Protocol):
    """Frames by number, and which of them are for what."""

    calibrated: ClassVar[bool]

    @property
    def where(self) -> str:
        """What to call it in messages."""
        ...

    @property
    def names(self) -> Sequence[str]:
        """The frames' names."""
        ...

    @property
    def parts(self) -> Mapping[Part, Sequence[int]]:
        """The frames for training, validation and test."""
        ...

    def read(self, index: int) -> Frame:
        """Return a frame."""
        ...

    def describe(self, index: int) -> Frame:
        """Return a frame without its points."""
        ...


class KittiSource:
    """The labelled part of a KITTI tree, points outside of the camera's view left out.

    Args:
        root: The tree, with ``training/velodyne``, ``calib`` and ``label_2``.
        lists: Folder whose ``ImageSets`` says which frames are for what; None takes the tree's own, or every other
            frame for validation. The validation frames are those of the test too.
        part: ``training``, or ``testing`` without labels.

    Raises:
        DataError: The tree is incomplete.
    """

    calibrated: ClassVar[bool] = True

    def __init__(self, root: str, lists: str | None = None, part: str = "training") -> None:
        self.folder, self.where, self.is_labelled = KittiFolder(root, part), root, part == "training"
        self.names = self.folder.frames
        number = {name: i for i, name in enumerate(self.names)}
        self.parts: dict[Part, list[int]] = {}
        if self.is_labelled:
            splits = read_splits(lists or root, self.names)
            train, val = ([number[frame] for frame in splits[part]] for part in ("train", "val"))
            self.parts = {"train": train, "val": val, "test": val}

    def read(self, index: int) -> Frame:
        """Return a frame."""
        frame, points = self.describe(index), self.folder.points(self.names[index])
        return replace(frame, points=points[frame.camera[0].in_view(points, frame.camera[1])])

    def describe(self, index: int) -> Frame:
        """Return a frame without its points."""
        name, folder = self.names[index], self.folder
        calibration, size = folder.calibration(name), folder.size(name)
        image = folder.folder / "image_2" / f"{name}.png"
        known = (calibration, size, image if image.is_file() else None)
        if not self.is_labelled:
            return Frame(name, torch.zeros(0, 4), torch.zeros(0, 7), (), None, *known)
        objects = folder.objects(name)
        rows, boxes = lidar_boxes(objects, calibration)
        names = tuple(objects.names[i] for i in rows.tolist())
        return Frame(name, torch.zeros(0, 4), boxes.float(), names, objects, *known)


class SceneSource:
    """Made-up frames in KITTI's terms, each made when it is first asked for and kept.

    Args:
        count: How many; three quarters are for training, an eighth each for validation and test.
        seed: Frame i is ``make_scene(seed + i)``.
        scene: What else :func:`~scanweave.pointcloud.kitti.make_scene` takes.
    """

    calibrated: ClassVar[bool] = True
    where = "made-up scenes"

    def __init__(self, count: int, seed: int = 0, **scene: int) -> None:
        if count < 8:
            raise DataError(f"made-up scenes: --data.scenes is {count}, expected at least 8")
        accepted = list(inspect.signature(make_scene).parameters)[1:]
        for key in scene:
            if key not in accepted:
                raise DataError(
                    f"made-up scenes: --data.scene has {key!r}{nearest(key, accepted)}; it takes {', '.join(accepted)}"
                )
        self.names = [f"{i:06d}" for i in range(count)]
        self.seed, self.scene = seed, scene
        held = count // 8
        self.parts: dict[Part, range] = {
            "train": range(count - 2 * held),
            "val": range(count - 2 * held, count - held),
            "test": range(count - held, count),
        }
        self._made: dict[int, Frame] = {}

    def make(self, indices: Sequence[int]) -> None:
        """Make some frames at once, so that processes started later share them."""
        for index in indices:
            self.read(index)

    def _make(self, index: int) -> Frame:
        scene = make_scene(self.seed + index, **self.scene)
        points = scene.points[scene.calibration.in_view(scene.points, scene.size)]
        known = (scene.objects, scene.calibration, scene.size)
        return Frame(self.names[index], points, scene.boxes.float(), scene.objects.names, *known)

    def read(self, index: int) -> Frame:
        """Return a frame."""
        if index not in self._made:
            self._made[index] = self._make(index)
        return self._made[index]

    def describe(self, index: int) -> Frame:
        """Return a frame without its points."""
        return replace(self.read(index), points=torch.zeros(0, 4))


class FolderSource:
    """A folder of clouds and boxes of one's own, lidar alone.

    ``points/NAME.bin`` (or .npy, .pcd, .las, .laz), and boxes as ``labels/NAME.json``, a list of ``{"class": "Car",
    "box": [x, y, z, length, width, height, heading]}``, or all in one ``boxes.csv`` with the columns frame, class, x,
    y, z, length, width, height, heading: the box's centre and sizes in metres, heading in radians from x towards y. A
    frame without objects has an empty list, or no row. ``train.txt``, ``val.txt`` and ``test.txt`` list frames, one a
    line; without them a share is held out.

    Args:
        root: The folder.
        features: Values of a point.
        shares: Shares of the frames held out for validation and test where there are no lists.
        seed: Seed of that division.

    Raises:
        DataError: Something is missing or malformed; names file and place.
    """

    calibrated: ClassVar[bool] = False

    def __init__(self, root: str, features: int, shares: tuple[float, float], seed: int) -> None:
        self.where, self.features, folder = root, features, Path(root)
        self.files = cloud_files(folder / "points")
        self.names = [file.stem for file in self.files]
        self.boxes = self._read_boxes(folder)
        self.parts = self._read_parts(folder) or self._divide(shares, seed)

    def _read_boxes(self, folder: Path) -> dict[str, list[tuple[str, list[float]]]]:
        table = folder / "boxes.csv"
        if table.is_file():
            return _boxes_of_table(table, self.names)
        labels = folder / "labels"
        if not labels.is_dir():
            raise DataError(f"{folder}: found neither labels/ nor boxes.csv; expected labels/NAME.json for each cloud")
        missing = [name for name in self.names if not (labels / f"{name}.json").is_file()]
        if missing:
            raise DataError(
                f"{labels}: no file for {len(missing)} of {len(self.names)} clouds, first {missing[0]}.json; a frame "
                "without objects has an empty list, []"
            )
        return {name: _boxes_of_json(labels / f"{name}.json") for name in self.names}

    def _read_parts(self, folder: Path) -> dict[Part, list[int]]:
        number = {name: i for i, name in enumerate(self.names)}
        parts: dict[Part, list[int]] = {}
        for part in PARTS:
            source = folder / f"{part}.txt"
            if not source.is_file():
                continue
            parts[part] = []
            for line_number, line in enumerate(read_lines(source), 1):
                name = line.strip()
                if name and name not in number:
                    raise DataError(f"{source}:{line_number}: there is no cloud {name!r}{nearest(name, self.names)}")
                if name:
                    parts[part].append(number[name])
        if parts and not {"train", "val"} <= set(parts):
            raise DataError(f"{folder}: found lists for {', '.join(parts)} alone, expected train.txt and val.txt")
        if parts:
            parts.setdefault("test", parts["val"])
        return parts

    def _divide(self, shares: tuple[float, float], seed: int) -> dict[Part, list[int]]:
        order = np.random.default_rng(seed).permutation(len(self.names)).tolist()
        counts = [max(1, round(share * len(order))) for share in shares]
        if len(order) < 3:
            raise DataError(
                f"{self.where}: found {len(order)} clouds, expected at least 3: for training, validation and test"
            )
        val, test = order[: counts[0]], order[counts[0] : sum(counts)]
        return {"train": sorted(order[sum(counts) :]), "val": sorted(val), "test": sorted(test)}

    def read(self, index: int) -> Frame:
        """Return a frame."""
        return replace(self.describe(index), points=read_cloud(self.files[index], self.features))

    def describe(self, index: int) -> Frame:
        """Return a frame without its points."""
        name = self.names[index]
        rows = self.boxes.get(name, [])
        boxes = torch.tensor([box for _, box in rows], dtype=torch.float32).reshape(-1, 7)
        return Frame(name, torch.zeros(0, self.features), boxes, tuple(kind for kind, _ in rows))


class CloudSource:
    """Clouds without labels: one file, or all of a folder.

    Args:
        root: The file or folder.
        features: Values of a point.

    Raises:
        DataError: There is none.
    """

    calibrated: ClassVar[bool] = False

    def __init__(self, root: str, features: int) -> None:
        path = Path(root)
        self.files = [path] if path.is_file() else cloud_files(path)
        self.where, self.features, self.names = root, features, [file.stem for file in self.files]
        self.parts: dict[Part, list[int]] = {}

    def read(self, index: int) -> Frame:
        """Return a frame."""
        return replace(self.describe(index), points=read_cloud(self.files[index], self.features))

    def describe(self, index: int) -> Frame:
        """Return a frame without its points."""
        return Frame(self.names[index], torch.zeros(0, self.features), torch.zeros(0, 7), ())


def cloud_files(folder: Path) -> list[Path]:
    """Return the clouds of a folder, sorted by name.

    Raises:
        DataError: The folder is absent or holds none, or two files differ in their endings alone.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; expected one with clouds ({', '.join(ENDINGS)})")
    files = sorted(file for file in folder.iterdir() if file.suffix in ENDINGS and not file.name.startswith("."))
    if not files:
        raise DataError(f"{folder}: holds no cloud; expected files that end in {', '.join(ENDINGS)}")
    stems = [file.stem for file in files]
    if twice := sorted({stem for stem in stems if stems.count(stem) > 1}):
        raise DataError(f"{folder}: found several files named {twice[0]}; each frame needs a name of its own")
    return files


def _boxes_of_json(source: Path) -> list[tuple[str, list[float]]]:
    try:
        rows = json.loads(source.read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"{source}: cannot be read as JSON ({error})") from error
    wanted = 'a list of {"class": "Car", "box": [x, y, z, length, width, height, heading]}'
    if not isinstance(rows, list):
        raise DataError(f"{source}: found a {type(rows).__name__}, expected {wanted}")
    found = []
    for place, row in enumerate(rows):
        if not isinstance(row, dict) or not isinstance(row.get("class"), str) or "box" not in row:
            raise DataError(f"{source}: entry {place} is {str(row)[:60]}, expected {wanted}")
        found.append((row["class"], _checked_box(row["box"], f"{source}: entry {place}")))
    return found


def _boxes_of_table(source: Path, names: Sequence[str]) -> dict[str, list[tuple[str, list[float]]]]:
    try:
        table = pd.read_csv(source, dtype={"frame": str, "class": str})
    except (OSError, ValueError) as error:
        raise DataError(f"{source}: cannot be read as CSV ({error})") from error
    if missing := [name for name in _COLUMNS if name not in table.columns]:
        raise DataError(f"{source}: found the columns {', '.join(table.columns)}; missing: {', '.join(missing)}")
    found: dict[str, list[tuple[str, list[float]]]] = {}
    known = set(names)
    for place, row in enumerate(table.to_dict("records"), 2):
        if row["frame"] not in known:
            raise DataError(f"{source}:{place}: there is no cloud {row['frame']!r}{nearest(str(row['frame']), names)}")
        if not isinstance(row["class"], str):
            raise DataError(f"{source}:{place}: the box has no class")
        box = _checked_box([row[name] for name in _COLUMNS[2:]], f"{source}:{place}")
        found.setdefault(row["frame"], []).append((row["class"], box))
    return found


def _checked_box(values: Any, place: str) -> list[float]:
    try:
        box = [float(value) for value in values]
    except (TypeError, ValueError):
        box = []
    if len(box) != 7 or not np.isfinite(box).all() or min(box[3:6]) <= 0:
        raise DataError(
            f"{place}: the box is {values}, expected seven finite numbers, x, y, z, length, width, height (above 0) "
            "and heading"
        )
    return box
