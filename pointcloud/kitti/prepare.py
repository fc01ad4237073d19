"""What training reads instead of KITTI's many text files: splits, infos, and a database of labelled objects' points."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...core.errors import DataError, nearest
from ...core.storage import atomic_file
from ..boxes import Calibration, camera_to_lidar, points_in_boxes
from .frames import KittiFolder
from .objects import Objects, read_lines

SPLITS = ("train", "val")
# The database takes points a centimetre beside a box as well: labels are not drawn more exactly.
_MARGIN = 0.01


@dataclass(frozen=True)
class Prepared:
    """What `prepare` wrote.

    Args:
        folder: Where it lies.
        frames: Frames by split.
        objects: Labelled objects by class, of all splits.
        stored: Objects in the database by class, of the training split.
    """

    folder: Path
    frames: dict[str, int]
    objects: dict[str, int]
    stored: dict[str, int]


def read_splits(root: str | Path, frames: Sequence[str]) -> dict[str, list[str]]:
    """Return the frames of "train" and "val".

    Args:
        root: Folder whose ``ImageSets/train.txt`` and ``val.txt`` list frames, one a line. Without that folder every
            other frame goes to "val": fit for trying out, but neighbouring frames of one drive resemble each other.
        frames: The frames that exist.

    Returns:
        Split -> frames.

    Raises:
        DataError: One list is absent, names an unknown frame (file:line), or both name the same one.
    """
    folder = Path(root) / "ImageSets"
    if not folder.is_dir():
        return {"train": list(frames[::2]), "val": list(frames[1::2])}
    known = set(frames)
    splits: dict[str, list[str]] = {}
    taken: dict[str, str] = {}
    for split in SPLITS:
        source = folder / f"{split}.txt"
        if not source.is_file():
            raise DataError(f"{source}: absent; expected lists of frames for {' and '.join(SPLITS)}")
        splits[split] = []
        for number, line in enumerate(read_lines(source), 1):
            frame = line.strip()
            if not frame:
                continue
            if frame not in known:
                raise DataError(f"{source}:{number}: there is no scan {frame!r}{nearest(frame, frames)}")
            if frame in taken:
                raise DataError(f"{source}:{number}: frame {frame!r} is listed already, in {taken[frame]}.txt")
            taken[frame] = split
            splits[split].append(frame)
    return splits


def lidar_boxes(objects: Objects, calibration: Calibration) -> tuple[Tensor, Tensor]:
    """Return the indices (M,) of the objects with a box in space, all but DontCare, and their lidar boxes (M, 7)."""
    index = torch.tensor([i for i, name in enumerate(objects.names) if name != "DontCare"], dtype=torch.int64)
    return index, camera_to_lidar(objects.camera_boxes[index], calibration)


def describe(folder: KittiFolder, frame: str) -> dict[str, Any]:
    """Return one frame's info: image size, calibration and objects, as plain values.

    Args:
        folder: The training part.
        frame: Its name, as "000123".

    Returns:
        ``frame``, ``image_size`` (width, height), ``calibration`` and ``objects``: for each its ``name``,
        ``truncated``, ``occluded``, ``alpha``, ``image_box``, ``camera_box``, ``difficulty`` (0 easy to 2 hard, -1
        none), ``lidar_box`` and ``points``, how many of the points in the camera's view lie in the box. A DontCare
        region has neither of the last two.

    Raises:
        DataError: One of the frame's files is unusable.
    """
    points, calibration, objects = folder.points(frame), folder.calibration(frame), folder.objects(frame)
    size = folder.size(frame)
    index, boxes = lidar_boxes(objects, calibration)
    counts = points_in_boxes(points[calibration.in_view(points, size)], boxes).sum(0)
    spatial = {int(i): (box, int(count)) for i, box, count in zip(index, boxes.tolist(), counts, strict=True)}
    difficulty = objects.difficulty().tolist()
    described = []
    for i, name in enumerate(objects.names):
        box, count = spatial.get(i, (None, None))
        described.append(
            {
                "name": name,
                "truncated": float(objects["truncated"][i]),
                "occluded": int(objects["occluded"][i]),
                "alpha": float(objects["alpha"][i]),
                "image_box": objects.image_boxes[i].tolist(),
                "camera_box": objects.camera_boxes[i].tolist(),
                "difficulty": difficulty[i],
                "lidar_box": box,
                "points": count,
            }
        )
    matrices = {"P2": calibration.p2, "R0_rect": calibration.r0, "Tr_velo_to_cam": calibration.tr}
    return {
        "frame": frame,
        "image_size": list(size),
        "calibration": {name: matrix.tolist() for name, matrix in matrices.items()},
        "objects": described,
    }


def collect(folder: KittiFolder, frames: Iterable[str]) -> dict[str, np.ndarray]:
    """Return the points of every labelled object of some frames.

    Args:
        folder: The training part.
        frames: The frames to take objects from.

    Returns:
        ``points`` (K, 4) float32, x, y, z from their box's centre and intensity; ``first`` (M + 1,) int64, object m
        owns ``points[first[m]:first[m + 1]]``; ``boxes`` (M, 7) float32 lidar boxes; ``names`` (M,) text;
        ``difficulty`` (M,) int64; ``frames`` (M,) text; ``index`` (M,) int64, the object's place in its label file.
        Objects without points are left out.

    Raises:
        DataError: One of a frame's files is unusable.
    """
    points, boxes, rows = [torch.zeros(0, 4)], [torch.zeros(0, 7, dtype=torch.float64)], []
    for frame in frames:
        scan, objects = folder.points(frame), folder.objects(frame)
        index, frame_boxes = lidar_boxes(objects, folder.calibration(frame))
        inside = points_in_boxes(scan, frame_boxes, margin=_MARGIN)
        difficulty = objects.difficulty()
        for m, i in enumerate(index.tolist()):
            own = scan[inside[:, m]]
            if len(own):
                centre = torch.cat((frame_boxes[m, :3], torch.zeros(1, dtype=torch.float64)))
                points.append((own - centre).float())
                boxes.append(frame_boxes[m : m + 1])
                rows.append((objects.names[i], int(difficulty[i]), frame, i))
    return {
        "points": torch.cat(points).numpy(),
        "first": np.cumsum([len(part) for part in points], dtype=np.int64),
        "boxes": torch.cat(boxes).float().numpy(),
        "names": np.array([row[0] for row in rows], dtype=np.str_),
        "difficulty": np.array([row[1] for row in rows], dtype=np.int64),
        "frames": np.array([row[2] for row in rows], dtype=np.str_),
        "index": np.array([row[3] for row in rows], dtype=np.int64),
    }


def prepare(root: str | Path, out: str | Path, size: tuple[int, int] = (1242, 375)) -> Prepared:
    """Check a KITTI tree and write what training reads.

    Into ``out`` go ``ImageSets/train.txt`` and ``val.txt``, ``infos_train.json`` and ``infos_val.json`` (`describe`),
    and ``database.npz`` (`collect`, of the training split). Images and planes are not needed.

    Args:
        root: Folder with ``training/velodyne``, ``calib`` and ``label_2``; its ``ImageSets`` are kept where there.
        out: Folder to write to; each file is whole or untouched.
        size: Image size (width, height) for frames without an image.

    Returns:
        What was written.

    Raises:
        DataError: The tree is incomplete or a file is malformed; names file and line.
        ConfigError: A file cannot be written.
    """
    folder = KittiFolder(root, "training", size)
    splits = read_splits(root, folder.frames)
    infos = {split: [describe(folder, frame) for frame in frames] for split, frames in splits.items()}
    database: dict[str, Any] = collect(folder, splits["train"])
    target = Path(out)
    for split, frames in splits.items():
        with atomic_file(target / "ImageSets" / f"{split}.txt", "w") as file:
            file.write("".join(f"{frame}\n" for frame in frames))
        with atomic_file(target / f"infos_{split}.json", "w") as file:
            json.dump({"split": split, "frames": infos[split]}, file)
    with atomic_file(target / "database.npz") as file:
        np.savez(file, **database)
    names = Counter(item["name"] for frames in infos.values() for info in frames for item in info["objects"])
    return Prepared(
        target,
        {split: len(frames) for split, frames in splits.items()},
        dict(names),
        dict(Counter(database["names"].tolist())),
    )
