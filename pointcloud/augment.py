"""Random changes of training frames: objects of other frames put in, and the whole mirrored, turned and scaled."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from ..core.errors import DataError
from .boxes import points_in_boxes
from .overlap import box_iou


@dataclass(frozen=True)
class Database:
    """Objects of the training frames, by class.

    Attributes:
        points: Of each object (K, F): x, y, z from the box's centre, and more.
        boxes: (M, 7) lidar boxes.
        labels: (M,) int64, class numbers.
    """

    points: Sequence[Tensor]
    boxes: Tensor
    labels: Tensor

    @classmethod
    def read(cls, path: Path, classes: Sequence[str], least: int) -> Database:
        """Read what :func:`~scanweave.pointcloud.kitti.prepare` wrote.

        Args:
            path: Its ``database.npz``.
            classes: The classes, by label; objects of others are left out.
            least: Fewest points of an object that is kept.

        Returns:
            The database.

        Raises:
            DataError: The file is none of these.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                points, boxes = torch.from_numpy(file["points"]), torch.from_numpy(file["boxes"])
                first, names = file["first"].tolist(), file["names"].tolist()
        except (OSError, ValueError, KeyError, BadZipFile) as error:
            raise DataError(f"{path}: cannot be read as a database of objects ({error}); prepare it anew") from error
        number = {name: label for label, name in enumerate(classes)}
        counts = (end - start for start, end in pairwise(first))
        rows = [i for i, count in enumerate(counts) if count >= least and names[i] in number]
        labels = torch.tensor([number[names[i]] for i in rows], dtype=torch.int64)
        return cls([points[first[i] : first[i + 1]] for i in rows], boxes[rows], labels)

    @classmethod
    def collect(cls, frames: Iterable[tuple[Tensor, Tensor, Tensor]], least: int, margin: float = 0.01) -> Database:
        """Cut the objects out of frames.

        Args:
            frames: Points (N, F), boxes (M, 7) and labels (M,) of each.
            least: Fewest points of an object that is kept.
            margin: Metres beside a box at which points still count as its own.

        Returns:
            The database.
        """
        points, boxes, labels = [], [torch.zeros(0, 7)], [torch.zeros(0, dtype=torch.int64)]
        for cloud, own, kinds in frames:
            inside = points_in_boxes(cloud, own, margin)
            for row in range(len(own)):
                found = cloud[inside[:, row]].clone()
                if len(found) >= least:
                    found[:, :3] -= own[row, :3]
                    points.append(found)
                    boxes.append(own[row : row + 1])
                    labels.append(kinds[row : row + 1])
        return cls(points, torch.cat(boxes), torch.cat(labels))


@dataclass(frozen=True)
class FrameAugmentation:
    """What is changed at random; it draws from PyTorch's own generator.

    Attributes:
        paste: How many objects of each class a frame has at least after others were put in, where they find room.
        flip: Chance of a mirror image, left for right.
        rotation: Largest turn about z either way, radians.
        scale: Least and largest factor on all lengths.

    Source:
        Yan et al., SECOND (2018), section 3.3; ranges: Liu et al., LION (2024), its configuration for KITTI.
    """

    paste: Mapping[int, int]
    flip: float = 0.5
    rotation: float = math.pi / 4
    scale: tuple[float, float] = (0.95, 1.05)

    def apply(
        self, points: Tensor, boxes: Tensor, labels: Tensor, database: Database | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Change a frame.

        Args:
            points: (N, F).
            boxes: (M, 7).
            labels: (M,) int64.
            database: Where objects are taken from; None puts none in.

        Returns:
            Points, boxes and labels.
        """
        if database is not None:
            points, boxes, labels = self._paste(points, boxes, labels, database)
        points, boxes = points.clone(), boxes.clone()
        if torch.rand(()) < self.flip:
            points[:, 1] *= -1
            boxes[:, 1] *= -1
            boxes[:, 6] *= -1
        turn = (2 * torch.rand(()) - 1) * self.rotation
        turned = torch.stack([turn.cos(), turn.sin(), -turn.sin(), turn.cos()]).view(2, 2)
        points[:, :2] = points[:, :2] @ turned
        boxes[:, :2] = boxes[:, :2] @ turned
        boxes[:, 6] += turn
        factor = self.scale[0] + (self.scale[1] - self.scale[0]) * torch.rand(())
        points[:, :3] *= factor
        boxes[:, :6] *= factor
        return points, boxes, labels

    def _paste(
        self, points: Tensor, boxes: Tensor, labels: Tensor, database: Database
    ) -> tuple[Tensor, Tensor, Tensor]:
        chosen = []
        for label, count in self.paste.items():
            rows = (database.labels == label).nonzero().squeeze(1)
            wanted = max(0, count - int((labels == label).sum()))
            chosen.append(rows[torch.randperm(len(rows))[:wanted]])
        rows = torch.cat(chosen) if chosen else torch.zeros(0, dtype=torch.int64)
        if not len(rows):
            return points, boxes, labels
        new = database.boxes[rows]
        free = ~(box_iou(new, boxes, "bev") > 0).any(1) if len(boxes) else torch.ones(len(new), dtype=torch.bool)
        clash = (box_iou(new, new, "bev") > 0).triu(1)
        for row in range(len(new)):
            # An object gives way to those before it that found room.
            free[row] &= ~(clash[:row, row] & free[:row]).any()
        new, rows = new[free], rows[free]
        points = points[~points_in_boxes(points, new).any(1)]
        added = []
        for row, box in zip(rows.tolist(), new, strict=True):
            own = database.points[row].clone()
            own[:, :3] += box[:3]
            added.append(own)
        return torch.cat([points, *added]), torch.cat([boxes, new]), torch.cat([labels, database.labels[rows]])
