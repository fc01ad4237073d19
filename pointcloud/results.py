"""What a test and a prediction leave behind: boxes as a table and as KITTI's files, averages as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from ..core.errors import DataError, nearest
from ..core.storage import atomic_file
from .boxes import Calibration, camera_to_image, lidar_to_camera
from .head import Detections
from .kitti.objects import DIFFICULTIES, Objects

COLUMNS = ("frame", "class", "score", "x", "y", "z", "length", "width", "height", "heading")


def kitti_objects(
    detections: Detections, classes: Sequence[str], calibration: Calibration, size: tuple[int, int]
) -> Objects:
    """Return detections in KITTI's terms; those that lie outside the image are left out.

    Args:
        detections: Of one frame.
        classes: The classes' names, by label.
        calibration: The frame's.
        size: The image's (width, height) in pixels.

    Returns:
        The objects, with scores.
    """
    camera = lidar_to_camera(detections.boxes.cpu().double(), calibration)
    image = camera_to_image(camera, calibration, size)
    seen = torch.nonzero((image[:, 2] > image[:, 0]) & (image[:, 3] > image[:, 1]) & (camera[:, 2] > 0))[:, 0]
    names = tuple(classes[label] for label in detections.labels.cpu()[seen].tolist())
    return Objects.from_boxes(names, camera[seen], image[seen], detections.scores.cpu().double()[seen])


def write_table(path: Path, frames: Sequence[str], detections: Sequence[Detections], classes: Sequence[str]) -> Path:
    """Write detections as CSV: frame, class, score, centre and sizes in metres, heading in radians.

    Args:
        path: The file.
        frames: The frames' names.
        detections: Of each frame.
        classes: The classes' names, by label.

    Returns:
        The file.
    """
    rows = []
    for frame, found in zip(frames, detections, strict=True):
        for label, score, box in zip(
            found.labels.tolist(), found.scores.tolist(), found.boxes.double().tolist(), strict=True
        ):
            rows.append((frame, classes[label], round(score, 6), *(round(value, 4) for value in box)))
    with atomic_file(path, "w") as file:
        pd.DataFrame(rows, columns=list(COLUMNS)).to_csv(file, index=False)
    return path


def read_table(path: Path, frame: str) -> Tensor:
    """Return one frame's boxes (K, 7) from a table of :func:`write_table`.

    Raises:
        DataError: The file cannot be read, or lacks a column.
    """
    try:
        table = pd.read_csv(path, dtype={"frame": str})
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as CSV ({error})") from error
    for name in COLUMNS:
        if name not in table.columns:
            raise DataError(f"{path}: there is no column {name!r}{nearest(name, list(table.columns))}")
    own = table[table["frame"] == frame]
    return torch.tensor(own[list(COLUMNS[3:])].to_numpy(dtype="float64"))


def kitti_table(values: Mapping[str, float]) -> pd.DataFrame:
    """Return averages by KITTI's rules as a table.

    Args:
        values: ``class/metric/R40-or-R11/difficulty`` -> percent, as of :class:`~scanweave.pointcloud.kitti.KittiAP`.

    Returns:
        Rows of class, metric, recall positions, easy, moderate, hard.
    """
    rows: dict[tuple[str, ...], dict[str, float]] = {}
    for key, value in values.items():
        *place, difficulty = key.split("/")
        rows.setdefault(tuple(place), {})[difficulty] = round(value, 4)
    return pd.DataFrame(
        [(*place, *(found[name] for name in DIFFICULTIES)) for place, found in rows.items()],
        columns=["class", "metric", "recalls", *DIFFICULTIES],
    )
