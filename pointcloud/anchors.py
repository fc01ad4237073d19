"""Anchors: boxes of usual sizes at every place, what is learned about them, and which of them an object is told to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .boxes import wrap_angle

CODE = 7
"""Numbers that tell a box from an anchor."""


@dataclass(frozen=True)
class AnchorClass:
    """A class of objects, and the anchors that look for it.

    Attributes:
        name: The class.
        size: Length, width and height, metres.
        bottom: Height of the anchors' lower side, metres.
        matched: An anchor with an overlap above this is told the object.
        unmatched: An anchor with all overlaps below this is told that there is none.
        rotations: Headings, radians.
    """

    name: str
    size: tuple[float, float, float]
    bottom: float
    matched: float
    unmatched: float
    rotations: tuple[float, ...] = (0.0, math.pi / 2)


KITTI_CLASSES = (
    AnchorClass("Car", (3.9, 1.6, 1.56), -1.78, 0.6, 0.45),
    AnchorClass("Pedestrian", (0.8, 0.6, 1.73), -0.6, 0.5, 0.35),
    AnchorClass("Cyclist", (1.76, 0.6, 1.73), -0.6, 0.5, 0.35),
)
"""Sizes, heights and overlaps as SECOND has them for KITTI."""


def make_anchors(classes: Sequence[AnchorClass], area: Sequence[float], cells: tuple[int, int]) -> Tensor:
    """Return the anchors at the centre of every cell.

    Args:
        classes: What is looked for.
        area: Least x, y and greatest x, y of the map, metres.
        cells: Cells along y and x.

    Returns:
        (Y, X, A, 7) lidar boxes; A runs over the classes, and over the rotations of each.
    """
    rows, columns = cells
    left, low, right, high = area
    x = left + (torch.arange(columns) + 0.5) * (right - left) / columns
    y = low + (torch.arange(rows) + 0.5) * (high - low) / rows
    shapes = torch.tensor([[c.bottom + c.size[2] / 2, *c.size, r] for c in classes for r in c.rotations])
    place = torch.stack([x.expand(rows, columns), y[:, None].expand(rows, columns)], -1)
    place = place[:, :, None].expand(rows, columns, len(shapes), 2)
    return torch.cat([place, shapes.expand(rows, columns, *shapes.shape)], -1)


def encode(boxes: Tensor, anchors: Tensor) -> Tensor:
    """Return what tells boxes (..., 7) from their anchors (..., 7).

    ``(x - x_a) / d, (y - y_a) / d, (z - z_a) / h_a, log l / l_a, log w / w_a, log h / h_a, heading - heading_a`` with d
    the anchor's diagonal seen from above.

    Source:
        Yan et al., SECOND (2018), section 3.2.1, equation 1, after VoxelNet (2018).
    """
    diagonal = anchors[..., 3:5].norm(dim=-1, keepdim=True)
    place = (boxes[..., :2] - anchors[..., :2]) / diagonal
    height = (boxes[..., 2:3] - anchors[..., 2:3]) / anchors[..., 5:6]
    return torch.cat(
        [place, height, (boxes[..., 3:6] / anchors[..., 3:6]).log(), boxes[..., 6:] - anchors[..., 6:]], -1
    )


def decode(codes: Tensor, anchors: Tensor) -> Tensor:
    """Return the boxes (..., 7) that :func:`encode` made the codes (..., 7) of."""
    diagonal = anchors[..., 3:5].norm(dim=-1, keepdim=True)
    place = codes[..., :2] * diagonal + anchors[..., :2]
    height = codes[..., 2:3] * anchors[..., 5:6] + anchors[..., 2:3]
    # A network that has not learned yet may ask for any size.
    sizes = codes[..., 3:6].clamp(-5, 5).exp() * anchors[..., 3:6]
    return torch.cat([place, height, sizes, codes[..., 6:] + anchors[..., 6:]], -1)


def upright(boxes: Tensor) -> Tensor:
    """Return the upright rectangles (..., 4), least x, y and greatest x, y, nearest to boxes (..., 7) from above."""
    turned = wrap_angle(boxes[..., 6]).abs()
    across = (turned > math.pi / 4) & (turned < 3 * math.pi / 4)
    size = torch.where(across.unsqueeze(-1), boxes[..., [4, 3]], boxes[..., 3:5])
    return torch.cat([boxes[..., :2] - size / 2, boxes[..., :2] + size / 2], -1)


def rectangle_iou(a: Tensor, b: Tensor) -> Tensor:
    """Return the intersection over union of rectangles (..., 4), broadcast against each other."""
    shared = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0).prod(-1)
    sizes = [(r[..., 2:] - r[..., :2]).prod(-1) for r in (a, b)]
    return shared / (sizes[0] + sizes[1] - shared).clamp(min=1e-9)


def assign(anchors: Tensor, boxes: Tensor, matched: float, unmatched: float) -> Tensor:
    """Say which object each anchor of a class is told.

    Overlaps are those of the nearest upright rectangles seen from above. An anchor is told the object that it overlaps
    most, if by ``matched`` or more; each object is told to the anchors that overlap it most, however little.

    Args:
        anchors: (N, 7) lidar boxes of one class.
        boxes: (M, 7) lidar boxes of the objects of that class.
        matched: Overlap from which an anchor is told an object.
        unmatched: Overlap below which it is told that there is none.

    Returns:
        (N,) int64: the object's row, -1 for none, -2 where nothing is learned.

    Source:
        Yan et al., SECOND (2018), section 3.2; Ren et al., Faster R-CNN (2015), section 3.1.2.
    """
    found = torch.full((len(anchors),), -1, dtype=torch.int64, device=anchors.device)
    if not len(boxes):
        return found
    flat, wanted = upright(anchors), upright(boxes)
    best = torch.zeros(len(anchors), dtype=anchors.dtype, device=anchors.device)
    claimed: list[tuple[Tensor, int]] = []
    for row in range(len(boxes)):
        # Of hundreds of thousands of anchors a few hundred touch an object.
        near = ((flat[:, :2] < wanted[row, 2:]) & (flat[:, 2:] > wanted[row, :2])).all(1).nonzero().squeeze(1)
        overlap = rectangle_iou(flat[near], wanted[row])
        better = overlap > best[near]
        best[near[better]], found[near[better]] = overlap[better], row
        if len(near):
            claimed.append((near[overlap >= overlap.max() - 1e-6], row))
    found[best < matched] = -2
    found[best < unmatched] = -1
    for rows, row in claimed:
        found[rows] = row
    return found
